"""Disk space kept aside for those who have to write in order to make room.

On a full disk even removing something takes a few bytes: the row that says so. A reserve is a file that nobody reads; it
is given up for a moment when the disk is full and somebody who makes room has to write.
"""

import os
from contextlib import suppress
from pathlib import Path

SIZE_BYTES = 1 << 20
FULL_BYTES = 256 << 10
"""With less than this left the disk counts as full."""
ROOM = 16
"""A reserve is made where there is this many times its size."""


class Reserve:
    """A file of a mebibyte at `path`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._kept_bytes = path.stat().st_size if path.exists() else 0
        self._was_spent = False

    def fill(self) -> None:
        """Keep space aside where there is plenty; after it was given up, as much as there is."""
        if self._kept_bytes >= SIZE_BYTES:
            return
        free = self._free_bytes()
        wanted = SIZE_BYTES if free >= ROOM * SIZE_BYTES else min(SIZE_BYTES, free) if self._was_spent else 0
        if wanted <= self._kept_bytes:
            return
        try:
            fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError:
            return  # it can wait: whoever has to write says what is wrong
        try:
            os.posix_fallocate(fd, 0, wanted)
            self._kept_bytes = wanted
        except OSError:
            self._give_up()
        finally:
            os.close(fd)

    def spend_if_full(self) -> None:
        """Give the space up if the disk is full: the caller is about to make room, and calls `fill` when it has."""
        if self._kept_bytes and self._free_bytes() < FULL_BYTES:
            self._give_up()
            self._was_spent = True

    def _give_up(self) -> None:
        with suppress(OSError):
            self._path.unlink(missing_ok=True)
            self._kept_bytes = 0

    def _free_bytes(self) -> int:
        try:
            seen = os.statvfs(self._path.parent)
        except OSError:
            return 0
        return seen.f_bavail * seen.f_frsize
