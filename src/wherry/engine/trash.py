"""Deleting trees off the critical path: a rename now, the work in a thread later (or at the next start)."""

import asyncio
import logging
import os
import secrets
import shutil
from contextlib import suppress
from pathlib import Path

log = logging.getLogger(__name__)


class Trash:
    """A directory whose content is to be deleted. It lies on the file system of what is thrown in."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._emptying = asyncio.Lock()

    def put(self, tree: Path) -> None:
        """Throw a directory in; nothing if it is not there."""
        with suppress(FileNotFoundError):
            tree.rename(self._directory / secrets.token_hex(8))

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
