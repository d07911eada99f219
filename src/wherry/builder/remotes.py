"""Contexts from an address: a git repository, an archive, or a Dockerfile alone.

Source: Docker Engine API, "Build an image", `remote`.
"""

import asyncio
import lzma
from dataclasses import dataclass
from pathlib import Path

from wherry.builder.adding import fetched, is_archive, plain_tar
from wherry.builder.git import GitAccess, checkout, resolve
from wherry.builder.gitnames import parse_git
from wherry.builder.operations import is_git, is_url
from wherry.builder.selection import CopyError
from wherry.content.unpack_child import unpack
from wherry.errors import Cause, Invalid, Unavailable


@dataclass(frozen=True, slots=True)
class Brought:
    """Where the files are; `is_file`: only a Dockerfile, by that name. `commit` is that of a repository."""

    root: Path
    url: str
    commit: str = ""
    is_file: bool = False


def is_remote(text: str) -> bool:
    """Say whether a context is written as an address."""
    return is_git(text) or is_url(text)


async def bring(url: str, access: GitAccess, scratch: Path) -> Brought:
    """Get a context. Raises Invalid, NotFound, Unavailable, Broken, DeadlineExceeded."""
    if is_git(url):
        source = parse_git(url)
        commit = await resolve(source, access, scratch / "git")
        made = await checkout(source, commit, access, scratch / "git", keeps=bool(source.keeps))
        shown = f"{source.shown}#{source.ref}" if source.ref else source.shown
        return Brought(made.root, shown, commit)
    if not is_url(url):
        message = f"build context {url!r}: it is neither a git repository nor an http address"
        raise Invalid(message, causes=[Cause("remote", "Invalid", message)])
    root = scratch / "files"
    try:
        source = await fetched(url, "", scratch / "url", "build context")
    except CopyError as error:
        raise Unavailable(str(error)) from error
    place = source.node.origin
    assert isinstance(place, Path)
    root.mkdir()
    if await asyncio.to_thread(is_archive, place):
        await unpack_context(place, root)
        return Brought(root, url.partition("?")[0])
    await asyncio.to_thread(place.rename, root / "Dockerfile")
    (root / "Dockerfile").chmod(0o644)
    return Brought(root, url.partition("?")[0], is_file=True)


async def unpack_context(archive: Path, root: Path) -> None:
    """Unpack a context's tar, plain or by gzip, bzip2, xz or zstd, in a child without rights. Raises Invalid, Damaged."""
    try:
        plain = await asyncio.to_thread(plain_tar, archive, "build context", archive.parent)
    except (OSError, EOFError, lzma.LZMAError, CopyError) as error:
        raise Invalid(f"build context: the archive cannot be read: {error}") from error
    await unpack(plain, root, name="build context", layer=False)
    archive.unlink()
    if plain != archive:
        plain.unlink()
