"""Logs that grew too long are renamed, and conmon told to begin a new one."""

import logging
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from wherry.engine import monitor
from wherry.engine.records import ContainerRecord
from wherry.errors import Conflict

log = logging.getLogger(__name__)


def rotate(record: ContainerRecord, bundle: Path) -> bool:
    """Rotate a running container's log if it is longer than it may be; say whether it was.

    Renames come first: conmon goes on writing to the renamed file until it opens the new one. A rotation that a kill cut
    short is finished here too: then there is no file by the log's name.
    """
    spec = record.spec
    if spec.log_driver != "cri" or spec.log_max_bytes <= 0:
        return False
    path = record.log_path
    with suppress(OSError):
        size = os.stat(path).st_size if os.path.exists(path) else -1
        if 0 <= size <= spec.log_max_bytes:
            return False
        if size >= 0:
            _shift(path, spec.log_max_files)
        with suppress(Conflict):  # it has just ended
            monitor.reopen_log(bundle)
        return True
    return False


def rotate_all(running: Iterable[tuple[ContainerRecord, Path]]) -> int:
    """Rotate all that need it; return how many did."""
    return sum(rotate(record, bundle) for record, bundle in running)


def _shift(path: str, most: int) -> None:
    """Rename LOG.1 to LOG.2 and so on, then LOG to LOG.1; keep at most `most` files with the one being written."""
    kept = max(1, most) - 1
    for number in range(kept, 0, -1):
        source = f"{path}.{number - 1}" if number > 1 else path
        with suppress(FileNotFoundError):
            os.replace(source, f"{path}.{number}")
    if kept == 0:
        with suppress(FileNotFoundError):
            os.unlink(path)
