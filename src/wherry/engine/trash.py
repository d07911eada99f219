"""Deleting trees off the critical path: a rename now, the work in a thread later (or at the next start)."""

import asyncio
import logging
import os
import secrets
import shutil
from contextlib import suppress
from pathlib import Path

from wherry.engine.paths import Paths

log = logging.getLogger(__name__)


def put(paths: Paths, tree: Path) -> None:
    """Move a directory to the trash; nothing if it is not there."""
    with suppress(FileNotFoundError):
        tree.rename(paths.trash / secrets.token_hex(8))


async def empty(paths: Paths) -> None:
    """Delete what is in the trash. What cannot be deleted stays for the next time, with a warning."""
    for entry in list(os.scandir(paths.trash)):
        try:
            await asyncio.to_thread(shutil.rmtree, entry.path)
        except OSError as error:
            log.warning("%s: cannot be deleted: %s", entry.path, error)
