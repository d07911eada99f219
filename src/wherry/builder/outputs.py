"""What a build gives besides an image in the store: the root file system as a tar, or as a directory."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from wherry.builder.adding import materialise
from wherry.builder.layers import Listings, fetch
from wherry.builder.selection import Source
from wherry.builder.tree import Node
from wherry.content.protocol import Content, Digest
from wherry.content.tarwrite import END, Entry, header, padding
from wherry.errors import Broken

_CHUNK = 1024 * 1024


async def files_of(content: Content, listings: Listings, layers: Sequence[str], scratch: Path) -> Source:
    """The files of layers put over each other, with their bytes below `scratch`."""
    tree = await listings.tree([Digest(layer) for layer in layers])
    source = Source("", tree.get("") or Node("dir"), list(tree.walk("")))
    return (await fetch(content, [source], scratch))[0]


async def rootfs_tar(source: Source) -> AsyncIterator[bytes]:
    """Yield the files as a tar, in order of names: the same files give the same bytes."""
    for path, node in source.below:
        origin = node.origin
        yield header(
            Entry(
                *(path, node.kind, node.mode, node.uid, node.gid, node.mtime, node.link, node.size),
                *(None, node.device, node.xattrs),
            )
        )
        if node.kind == "file" and node.size and isinstance(origin, Path):
            with origin.open("rb") as file:
                while data := await asyncio.to_thread(file.read, _CHUNK):
                    yield data
            yield padding(node.size)
    yield END


async def rootfs_directory(source: Source, dest: Path) -> None:
    """Write the files into a directory that is not there, or empty. Raises Broken."""
    try:
        dest.mkdir(parents=True, exist_ok=True)
        if any(dest.iterdir()):
            raise Broken(f"output {dest}: the directory is not empty")
        await asyncio.to_thread(materialise, [source], dest)
    except OSError as error:
        raise Broken(f"output {dest}: {error.strerror}") from error
