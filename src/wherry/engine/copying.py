"""Copying a tree of files with all that it says: owners, modes, times, attributes, links, devices.

Nobody changes the source meanwhile; no link in it is followed.
"""

import os
import stat
from contextlib import suppress
from pathlib import Path

_PIECE = 1024 * 1024


def copy_tree(source: Path, target: Path) -> None:
    """Copy what is in the directory `source` into the directory `target`, which is there. Raises OSError."""
    _copy(str(source), str(target), {})


def copy_attributes(source: Path, target: Path, seen: os.stat_result) -> None:
    """Give `target` the owner, mode, attributes and times of `source`, which was seen as `seen`."""
    _settle(str(source), str(target), seen, follow=True)


def _copy(source: str, target: str, links: dict[tuple[int, int], str]) -> None:
    with os.scandir(source) as found:
        names = [entry.name for entry in found]
    for name in names:
        old, new = f"{source}/{name}", f"{target}/{name}"
        seen = os.lstat(old)
        mode = seen.st_mode
        if stat.S_ISSOCK(mode):
            continue
        if not stat.S_ISDIR(mode) and seen.st_nlink > 1:
            first = links.setdefault((seen.st_dev, seen.st_ino), new)
            if first != new:
                os.link(first, new, follow_symlinks=False)
                continue
        if stat.S_ISDIR(mode):
            os.mkdir(new, 0o700)
            _copy(old, new, links)
        elif stat.S_ISLNK(mode):
            os.symlink(os.readlink(old), new)
        elif stat.S_ISREG(mode):
            _copy_file(old, new, seen.st_size)
        else:
            os.mknod(new, stat.S_IFMT(mode) | 0o600, seen.st_rdev)
        _settle(old, new, seen, follow=False)


def _copy_file(source: str, target: str, size: int) -> None:
    reading = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        writing = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            while os.sendfile(writing, reading, None, max(_PIECE, min(size, 1 << 30))):
                pass
        finally:
            os.close(writing)
    finally:
        os.close(reading)


def _settle(source: str, target: str, seen: os.stat_result, *, follow: bool) -> None:
    os.chown(target, seen.st_uid, seen.st_gid, follow_symlinks=follow)
    if not stat.S_ISLNK(seen.st_mode):
        with suppress(OSError):  # a file system without attributes
            for name in os.listxattr(source, follow_symlinks=follow):
                if not name.startswith("trusted."):
                    os.setxattr(target, name, os.getxattr(source, name, follow_symlinks=follow), follow_symlinks=follow)
        os.chmod(target, stat.S_IMODE(seen.st_mode))
    os.utime(target, ns=(seen.st_atime_ns, seen.st_mtime_ns), follow_symlinks=follow)
