"""Paths below one directory that nothing can lead out of: each step is opened on its own, and links are read by us.

This is what keeps a hostile layer inside: `..`, absolute links and links to links all end below the root.
"""

import errno
import os
import shutil
import stat
from collections.abc import Callable
from itertools import accumulate

from wherry.errors import Invalid

HOPS_MAX = 40
_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_CACHE = 256
"""Directories kept open: entries come in the order of a tree, so the next one's directory, or one above it, is among them."""
_DEEP = 64
"""Of a path of more directories none but the last is kept open: the others' descriptors stay good meanwhile."""


class Rooted:
    """A directory tree by its open root. Not for use by several threads at once."""

    def __init__(self, root: int, *, name: str = "layer", made: Callable[[int, str, str], None] | None = None) -> None:
        """`made(parent, name, path)` hears of each directory that had to be made on the way."""
        self._root = root
        self._name = name
        self._made = made
        self._cache: dict[str, tuple[int, str]] = {}
        self._stale = False
        self.uncovered: set[str] = set()
        """Real paths where a whiteout of this layer gave way to a directory: the directory hides what is below."""

    def close(self) -> None:
        """Close every directory but the root."""
        for found in self._cache.values():
            self._close(found)
        self._cache.clear()
        self._stale = False

    def _close(self, found: tuple[int, str]) -> None:
        if found[0] != self._root:
            os.close(found[0])

    def place(self, path: str) -> tuple[int, str, str]:
        """Find where `path` goes: (its directory, its name, its directory's real path); directories are made as needed.

        The last part is not followed; name "" means the root itself. The descriptor is good until the call after the
        next one, or until the next one after `remove`. Raises Invalid for a path with `..` in it.
        """
        parts = [part for part in path.split("/") if part not in ("", ".")]
        if ".." in parts:
            raise Invalid(f"{self._name}: the entry {path!r} has '..' in its path; such layers are not unpacked")
        if not parts:
            return self._root, "", ""
        if self._stale:
            self.close()
        name = parts.pop()
        if not parts:
            return self._root, name, ""
        head = "/".join(parts)
        found = self._cache.get(head) or self._down(parts) or self._walk(parts, path)
        self._keep(head, found)
        return found[0], name, found[1]

    def remove(self, parent: int, name: str) -> None:
        """Remove whatever is there, directories with all that is in them."""
        try:
            plain = stat.S_ISREG(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode)
            os.unlink(name, dir_fd=parent)
        except IsADirectoryError:
            plain = False
            shutil.rmtree(name, dir_fd=parent)
        self._stale = self._stale or not plain  # cached paths may have gone through the link or the directory

    def _down(self, parts: list[str]) -> tuple[int, str] | None:
        """Go down from the nearest directory that is open, and keep those on the way open; None where there is a link."""
        if len(parts) > _DEEP:
            return None
        heads = list(accumulate(parts, "{}/{}".format))
        at = len(heads)
        while at and heads[at - 1] not in self._cache:
            at -= 1
        fd, real = self._root, ""
        if at:
            fd, real = self._cache[heads[at - 1]]
            self._keep(heads[at - 1], (fd, real))
        for head, part in zip(heads[at:], parts[at:], strict=True):
            try:
                try:
                    deeper = os.open(part, _DIRECTORY, dir_fd=fd)
                except FileNotFoundError:
                    self._make(fd, part, real)
                    deeper = os.open(part, _DIRECTORY, dir_fd=fd)
            except OSError as error:
                if error.errno not in (errno.ENOTDIR, errno.ELOOP):
                    raise
                return None  # it may lead up again: `_walk` follows it from the root
            fd, real = deeper, f"{real}/{part}" if real else part
            self._keep(head, (fd, real))
        return fd, real

    def _keep(self, head: str, found: tuple[int, str]) -> None:
        """Have it in the cache as what was used last."""
        if self._cache.pop(head, None) is None and len(self._cache) >= _CACHE:
            self._close(self._cache.pop(next(iter(self._cache))))
        self._cache[head] = found

    def _walk(self, parts: list[str], path: str) -> tuple[int, str]:
        waiting = list(reversed(parts))
        held: list[tuple[int, str]] = [(self._root, "")]
        hops = 0
        try:
            while waiting:
                part = waiting.pop()
                if part == "..":
                    if len(held) > 1:
                        os.close(held.pop()[0])
                    continue
                parent, real = held[-1]
                try:
                    held.append((os.open(part, _DIRECTORY, dir_fd=parent), f"{real}/{part}" if real else part))
                except FileNotFoundError:
                    self._make(parent, part, real)
                    waiting.append(part)
                except OSError as error:
                    if error.errno not in (errno.ENOTDIR, errno.ELOOP):
                        raise
                    hops += 1
                    link = self._link(parent, part, real, path) if hops <= HOPS_MAX else None
                    if link is None:
                        raise Invalid(
                            f"{self._name}: the entry {path!r} goes through more than {HOPS_MAX} links"
                        ) from None
                    if link.startswith("/"):
                        while len(held) > 1:
                            os.close(held.pop()[0])
                    waiting += [step for step in reversed(link.split("/")) if step not in ("", ".")]
            last = held.pop()
            return last if last[0] != self._root else (self._root, "")
        finally:
            for fd, _ in held:
                if fd != self._root:
                    os.close(fd)

    def _link(self, parent: int, part: str, real: str, path: str) -> str:
        seen = os.stat(part, dir_fd=parent, follow_symlinks=False)
        if stat.S_ISLNK(seen.st_mode):
            return os.readlink(part, dir_fd=parent)
        if stat.S_ISCHR(seen.st_mode) and seen.st_rdev == 0:  # a whiteout of this layer, and now something below it
            os.unlink(part, dir_fd=parent)
            self.uncovered.add(f"{real}/{part}" if real else part)
            return part
        raise Invalid(f"{self._name}: the entry {path!r} lies below {part!r}, which is not a directory")

    def _make(self, parent: int, part: str, real: str) -> None:
        try:
            os.mkdir(part, 0o755, dir_fd=parent)
        except FileExistsError:
            return
        if self._made is not None:
            self._made(parent, part, f"{real}/{part}" if real else part)
