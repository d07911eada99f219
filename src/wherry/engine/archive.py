"""Files of a container as a tar, out and in, beneath its root: what the container does meanwhile leads nowhere else.

Reading opens each directory on its own and follows no link; writing is content/unpack's, which reads links itself and
keeps them beneath the root.
"""

import os
import posixpath
import stat
from collections.abc import Generator
from contextlib import suppress
from dataclasses import dataclass

from wherry.content.tarwrite import END, Entry, header, padding
from wherry.content.unpack import extract
from wherry.errors import Invalid, NotFound
from wherry.host import engine_calls
from wherry.host.idmaps import IdRange

PIECE_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class PathStat:
    """What is at a path: `mode` as lstat(2) has it, `mtime` in seconds; `link`: where a symlink leads, from the root."""

    name: str
    size: int
    mode: int
    mtime: float
    link: str = ""


def look(root: int, path: str) -> PathStat:
    """Look at a path beneath the open directory `root`; the last part is followed only with a trailing slash or dot.

    Raises NotFound.
    """
    path = _absolute(path)
    parent, name = _open_parent(root, path)
    try:
        try:
            seen = os.stat(name or ".", dir_fd=parent, follow_symlinks=False)
            target = os.readlink(name, dir_fd=parent) if stat.S_ISLNK(seen.st_mode) else ""
        except OSError:
            raise NotFound(f"Could not find the file {path}") from None
    finally:
        os.close(parent)
    link = posixpath.normpath(posixpath.join(posixpath.dirname(path), target)) if target else ""
    return PathStat(posixpath.basename(path.rstrip("/")) or "/", seen.st_size, seen.st_mode, seen.st_mtime, link)


def read(root: int, path: str, ids: IdRange | None = None) -> Generator[bytes]:
    """Yield a tar of what is at a path, under its last part as a name.

    A file that grows or shrinks meanwhile is cut, or filled with zeros. `ids`: owners are seen with these, and told without.
    """
    base = "." if path.endswith("/.") else posixpath.basename(posixpath.normpath("/" + path)) or "/"
    parent, name = _open_parent(root, _absolute(path))
    try:
        yield from _entries(parent, name or ".", base, {}, ids)
    finally:
        os.close(parent)
    yield END


def read_tree(root: int, ids: IdRange | None = None) -> Generator[bytes]:
    """Yield a tar of everything beneath the open directory `root`; `ids` as in `read`."""
    links: dict[tuple[int, int], str] = {}
    for name in sorted(os.listdir(root)):
        yield from _entries(root, name, name, links, ids)
    yield END


def write(
    root: int,
    path: str,
    source: int,
    *,
    owner: tuple[int, int] | None,
    keep_kinds: bool,
    ids: IdRange | None = None,
) -> None:
    """Unpack an open tar (plain, gzip or zstd) into the directory at `path`. Raises NotFound, Invalid, Damaged, Broken.

    `owner` takes the place of the owners in the tar; with `keep_kinds` a directory never gives way to a file, nor the
    other way round. Devices are refused. `ids`: what owners are there; the calling thread makes files as their root.
    """
    try:
        place = engine_calls.open_beneath(root, path, os.O_PATH)
    except OSError:
        raise NotFound(f"Could not find the file {path}") from None
    try:
        if not stat.S_ISDIR(os.fstat(place).st_mode):
            raise Invalid(f"extraction point is not a directory: {path}")
    finally:
        os.close(place)
    extract(
        source,
        root,
        name="archive",
        owners=True,
        layer=False,
        below=path.strip("/"),
        owner=owner,
        keep_kinds=keep_kinds,
        outside=ids.outside if ids is not None else None,
    )


def _absolute(path: str) -> str:
    if "\0" in path:
        raise Invalid(f"path {path!r}: it has a NUL character")
    ends_open = path.endswith(("/", "/."))
    clean = posixpath.normpath("/" + path.lstrip("/"))
    return f"{clean}/" if ends_open and clean != "/" else clean


def _open_parent(root: int, path: str) -> tuple[int, str]:
    """Open the directory that a path lies in, and name the rest; "" when the path is a directory to go into."""
    directory, _, name = path.rpartition("/")
    try:
        return engine_calls.open_beneath(root, directory or "/", os.O_RDONLY | os.O_DIRECTORY), name
    except OSError:
        raise NotFound(f"Could not find the file {path}") from None


def _entries(
    parent: int, name: str, path: str, links: dict[tuple[int, int], str], ids: IdRange | None
) -> Generator[bytes]:
    try:
        seen = os.stat(name, dir_fd=parent, follow_symlinks=False)
    except FileNotFoundError:
        return  # it went while we read its directory
    kind = _kind(seen.st_mode)
    if kind in ("file", "dir"):
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            fd = os.open(name, flags | (os.O_DIRECTORY if kind == "dir" else 0), dir_fd=parent)
        except OSError:
            return  # it has become something else
        try:
            seen = os.fstat(fd)
            if _kind(seen.st_mode) == kind:
                yield from _opened(fd, kind, path, seen, links, ids)
        finally:
            os.close(fd)
    elif kind:
        link = ""
        if kind == "symlink":
            with suppress(OSError):
                link = os.readlink(name, dir_fd=parent)
            if not link:
                return
        device = (os.major(seen.st_rdev), os.minor(seen.st_rdev)) if kind in ("char", "block") else (0, 0)
        yield header(
            Entry(
                path,
                kind,
                stat.S_IMODE(seen.st_mode),
                *_owner(seen, ids),
                int(seen.st_mtime),
                link,
                device=device,
            )
        )


def _opened(
    fd: int, kind: str, path: str, seen: os.stat_result, links: dict[tuple[int, int], str], ids: IdRange | None
) -> Generator[bytes]:
    mode, when, owner = stat.S_IMODE(seen.st_mode), int(seen.st_mtime), _owner(seen, ids)
    if kind == "dir":
        yield header(Entry(path, kind, mode, *owner, when, xattrs=_attributes(fd)))
        for name in sorted(os.listdir(fd)):
            yield from _entries(fd, name, f"{path.rstrip('/')}/{name}", links, ids)
        return
    if seen.st_nlink > 1:
        first = links.setdefault((seen.st_dev, seen.st_ino), path)
        if first != path:
            yield header(Entry(path, "link", mode, *owner, when, first))
            return
    size = seen.st_size
    yield header(Entry(path, kind, mode, *owner, when, size=size, xattrs=_attributes(fd)))
    left = size
    while left:
        data = os.read(fd, min(left, PIECE_BYTES)) or bytes(min(left, PIECE_BYTES))
        left -= len(data)
        yield data
    yield padding(size)


def _owner(seen: os.stat_result, ids: IdRange | None) -> tuple[int, int]:
    return (seen.st_uid, seen.st_gid) if ids is None else (ids.inside(seen.st_uid), ids.inside(seen.st_gid))


def _attributes(fd: int) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    with suppress(OSError):
        for name in os.listxattr(fd):
            if name == "security.capability" or (name.startswith("user.") and not name.startswith("user.overlay.")):
                found[name] = os.getxattr(fd, name)
    return found


def _kind(mode: int) -> str:
    kinds = {
        stat.S_IFREG: "file", stat.S_IFDIR: "dir", stat.S_IFLNK: "symlink", stat.S_IFCHR: "char", stat.S_IFBLK: "block",
        stat.S_IFIFO: "fifo",
    }  # fmt: skip
    return kinds.get(stat.S_IFMT(mode), "")
