"""Deleting trees off the critical path: a rename now, the work in a thread later (or at the next start)."""

import asyncio
import logging
import os
import secrets
import shutil
from contextlib import suppress
from pathlib import Path

from wherry.errors import Broken

log = logging.getLogger(__name__)


def disk_usage(directory: str) -> int:
    """Count the bytes that files below a directory take on disk, hard links once; what vanishes meanwhile does not count."""
    total = 0
    seen: set[tuple[int, int]] = set()
    for folder, _, names in os.walk(directory):
        for name in names:
            with suppress(OSError):
                found = os.lstat(f"{folder}/{name}")
                if found.st_nlink > 1:
                    if (found.st_dev, found.st_ino) in seen:
                        continue
                    seen.add((found.st_dev, found.st_ino))
                total += found.st_blocks * 512
    return total


class Trash:
    """A directory whose content is to be deleted. It lies on the file system of what is thrown in."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._emptying = asyncio.Lock()

    def put(self, tree: Path) -> None:
        """Throw a directory in; nothing if it is not there. Raises Broken."""
        try:
            tree.rename(self._directory / secrets.token_hex(8))
        except OSError as error:
            if os.path.lexists(tree):
                raise Broken(f"{tree}: cannot be taken away: {error.strerror}") from error

    async def empty(self) -> None:
        """Delete what is in it. What cannot be deleted stays for the next time, with a warning."""
        async with self._emptying:
            for entry in list(os.scandir(self._directory)):
                try:
                    if entry.is_dir(follow_symlinks=False):
                        await asyncio.to_thread(shutil.rmtree, entry.path)
                    else:
                        os.unlink(entry.path)
                except OSError as error:
                    log.warning("%s: cannot be deleted: %s", entry.path, error)
