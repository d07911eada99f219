"""Looking into layers: what an image's tree holds, and the bytes of chosen files of it."""

import asyncio
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import msgspec

from wherry.builder.selection import Source
from wherry.builder.tree import Node, Tree
from wherry.content.inflate import pieces
from wherry.content.protocol import Content, Digest
from wherry.content.tars import Member, Tar
from wherry.errors import Broken, Damaged, NotFound

LISTS_MAX = 256
"""Lists of layers' entries kept on disk, the least used going first."""


class Listings:
    """The entries of layers, kept below `root` so that a base image is read once."""

    def __init__(self, content: Content, root: Path) -> None:
        self._content = content
        self._root = root
        root.mkdir(parents=True, exist_ok=True)

    async def tree(self, layers: Sequence[Digest], below: Tree | None = None) -> Tree:
        """The tree of some layers, lowest first, over the tree `below`, which is left as it is."""
        if below is not None and not layers:
            return below
        tree = Tree() if below is None else below.copy()
        for layer in layers:
            tree.lay(layer, await self.members(layer))
        return tree

    async def members(self, layer: Digest) -> Sequence[Member]:
        """The entries of a layer, in order. Raises NotFound, Damaged."""
        return await asyncio.to_thread(self._members, layer)

    def _members(self, layer: Digest) -> Sequence[Member]:
        kept = self._root / layer.replace(":", "-")
        try:
            found = msgspec.msgpack.decode(kept.read_bytes(), type=list[Member])
            os.utime(kept)
            return [_with_text(member) for member in found]
        except (FileNotFoundError, msgspec.MsgspecError):
            pass
        with _opened(self._content, layer) as fd:
            members = list(Tar(pieces(fd.fileno(), name=layer), name=layer))
        fresh = kept.with_suffix(f".{os.getpid()}")
        try:
            fresh.write_bytes(msgspec.msgpack.encode([_with_bytes(member) for member in members]))
            fresh.rename(kept)
            self._trim()
        except OSError as error:
            fresh.unlink(missing_ok=True)
            raise Broken(f"{self._root}: the list of the layer {layer} cannot be kept: {error.strerror}") from error
        return members

    def _trim(self) -> None:
        kept = sorted((path.stat().st_mtime, path) for path in self._root.iterdir())
        for _, path in kept[:-LISTS_MAX]:
            with suppress(FileNotFoundError):
                path.unlink()


@dataclass(frozen=True, slots=True)
class _Wanted:
    layer: str
    path: str


async def fetch(content: Content, sources: Sequence[Source], scratch: Path) -> Sequence[Source]:
    """Take the files of sources that lie in layers out into `scratch`; return the sources with paths for origins."""
    wanted: dict[str, set[str]] = {}
    for source in sources:
        for node in (source.node, *(node for _, node in source.below)):
            if isinstance(node.origin, tuple):
                wanted.setdefault(node.origin[0], set()).add(node.origin[1])
    places: dict[_Wanted, Path] = {}
    for number, (layer, paths) in enumerate(wanted.items()):
        folder = scratch / str(number)
        folder.mkdir(parents=True)
        places |= await asyncio.to_thread(_take, content, Digest(layer), paths, folder)

    def placed(node: Node) -> Node:
        if not isinstance(node.origin, tuple):
            return node
        return replace(node, origin=places[_Wanted(*node.origin)])

    return [
        replace(source, node=placed(source.node), below=[(name, placed(node)) for name, node in source.below])
        for source in sources
    ]


async def read_text(content: Content, tree: Tree, path: str) -> str:
    """Read a small text file of a tree; "" when there is none."""
    real = tree.resolve(path)
    node = tree.get(real) if real is not None else None
    if node is None or not isinstance(node.origin, tuple) or node.size > 4 * 1024 * 1024:
        return ""
    layer, inner = node.origin

    def read() -> bytes:
        with _opened(content, Digest(layer)) as file:
            tar = Tar(pieces(file.fileno(), name=layer), name=layer)
            for member in tar:
                if member.path == inner and member.kind == "file":
                    return b"".join(bytes(part) for part in tar.data())
        return b""

    return (await asyncio.to_thread(read)).decode(errors="replace")


def _take(content: Content, layer: Digest, paths: Collection[str], folder: Path) -> Mapping[_Wanted, Path]:
    places: dict[_Wanted, Path] = {}
    with _opened(content, layer) as file:
        tar = Tar(pieces(file.fileno(), name=layer), name=layer)
        for member in tar:
            if member.path in paths and member.kind == "file":
                place = folder / str(len(places))
                with place.open("wb") as out:
                    _copy(tar.data(), out.fileno())
                places[_Wanted(layer, member.path)] = place
    missing = set(paths) - {wanted.path for wanted in places}
    if missing:
        raise Damaged(f"layer {layer}: it no longer has {sorted(missing)[0]!r}")
    return places


def _copy(parts: Iterable[memoryview], fd: int) -> None:
    for part in parts:
        view = part
        while view:
            view = view[os.write(fd, view) :]


def _opened(content: Content, layer: Digest) -> BinaryIO:
    try:
        return content.path(layer).open("rb")
    except FileNotFoundError:
        raise NotFound(f"layer {layer}: not on this machine") from None


def _with_bytes(member: Member) -> Member:
    """msgpack has no surrogates: names that are not UTF-8 go as escapes."""
    return replace(member, path=_escape(member.path), link=_escape(member.link))


def _with_text(member: Member) -> Member:
    return replace(member, path=_unescape(member.path), link=_unescape(member.link))


def _escape(text: str) -> str:
    return text.encode("utf-8", "surrogateescape").decode("latin-1")


def _unescape(text: str) -> str:
    return text.encode("latin-1").decode("utf-8", "surrogateescape")
