"""Logs that grew too long are renamed, conmon told to begin a new one, and what was renamed compressed where that is asked.

A container's files together stay near `log_max_bytes * log_max_files`: the oldest go as soon as all are longer than that, also
when the process writes faster than we look.
"""

import asyncio
import logging
import os
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from wherry.clock import machine
from wherry.engine import monitor
from wherry.engine.logs import GZ
from wherry.engine.records import ContainerRecord
from wherry.errors import Conflict

log = logging.getLogger(__name__)

LEAST_S = 0.1
"""The shortest time between two looks."""
FINISH_S = 2.0
"""So long may conmon take to begin a new file. Told twice it begins two, and what it wrote to the first is lost."""
_PIECE = 256 * 1024

Running = Sequence[tuple[ContainerRecord, Path]]


class Rotation:
    """Looks at the logs of what `running` gives: every `every_s`, and sooner at what grows fast."""

    def __init__(self, running: Callable[[], Running], every_s: float) -> None:
        self._running = running
        self._every_s = every_s
        self._sizes: dict[str, tuple[float, int]] = {}
        self._missing: dict[str, float] = {}

    async def run(self) -> None:
        """Look for ever."""
        pause_s = self._every_s
        while True:
            await machine.sleep(pause_s)
            pause_s = await asyncio.to_thread(self.look, self._running())

    def look(self, running: Running) -> float:
        """Rotate what has to be, compress what was; say when to look again, in seconds."""
        soonest = self._every_s
        sizes: dict[str, tuple[float, int]] = {}
        for record, bundle in running:
            if record.spec.log_driver != "cri" or record.spec.log_max_bytes <= 0:
                continue
            now = machine.monotonic()
            rotated = rotate(record, bundle)
            if rotated or os.path.exists(record.log_path):
                self._missing.pop(record.id, None)
            elif now - self._missing.setdefault(record.id, now) > FINISH_S:
                _reopen(bundle)
                del self._missing[record.id]
            if record.spec.log_compress:
                compress(record)
            size = 0 if rotated else _size(record.log_path)
            sizes[record.id] = (now, size)
            before = self._sizes.get(record.id)
            if rotated:
                soonest = LEAST_S
            elif before is not None and size > before[1]:
                rate = (size - before[1]) / max(1e-3, now - before[0])
                soonest = min(soonest, (record.spec.log_max_bytes - size) / rate / 2)
        self._sizes = sizes
        return max(LEAST_S, soonest)


def rotate(record: ContainerRecord, bundle: Path) -> bool:
    """Rotate a running container's log if it is longer than it may be; say whether it was.

    Renames come first: conmon goes on writing to the renamed file until it opens the new one. A rotation that a kill cut
    short, so that there is no file by the log's name, `Rotation` finishes.
    """
    spec = record.spec
    if spec.log_driver != "cri" or spec.log_max_bytes <= 0:
        return False
    path = record.log_path
    if _size(path) <= spec.log_max_bytes:
        return False
    with suppress(OSError):
        _shift(path, spec.log_max_files)
        _trim(path, spec.log_max_files, spec.log_max_bytes * max(1, spec.log_max_files))
    _reopen(bundle)
    return True


def _reopen(bundle: Path) -> None:
    with suppress(Conflict, OSError):  # it has just ended
        monitor.reopen_log(bundle)


def compress(record: ContainerRecord) -> int:
    """Compress a log's rotated files but the newest, which conmon may still be writing to; return how many."""
    done = 0
    for number in range(2, record.spec.log_max_files + 1):
        plain = f"{record.log_path}.{number}"
        with suppress(FileNotFoundError):
            made = f"{plain}{GZ}.making"
            try:
                _pack(plain, made)
                os.replace(made, f"{plain}{GZ}")
                os.unlink(plain)
                done += 1
            except FileNotFoundError:
                raise
            except OSError as error:  # a full disk: it stays as it is
                log.warning("%s: not compressed: %s", plain, error.strerror)
                with suppress(OSError):
                    os.unlink(made)
    return done


def files_of(record: ContainerRecord) -> Sequence[str]:
    """Name the files that a log may have, the newest first."""
    path = record.log_path
    numbers = range(1, max(1, record.spec.log_max_files) + 1)
    return [path, *(f"{path}.{number}{end}" for number in numbers for end in ("", GZ, f"{GZ}.making"))]


def size_of(record: ContainerRecord) -> int:
    """Count the bytes of a log on disk, with its rotated files."""
    return sum(_size(path) for path in files_of(record)) if record.log_path else 0


def _shift(path: str, most: int) -> None:
    """Rename LOG.1 to LOG.2 and so on, then LOG to LOG.1; keep at most `most` files with the one being written."""
    kept = max(1, most) - 1
    for number in range(kept, 0, -1):
        for end in ("", GZ):
            target, other = f"{path}.{number}{end}", f"{path}.{number}{GZ if not end else ''}"
            source = f"{path}.{number - 1}{end}" if number > 1 else path
            if number == 1 and end:
                continue
            with suppress(FileNotFoundError):
                os.replace(source, target)
                with suppress(FileNotFoundError):
                    os.unlink(other)
    if kept == 0:
        with suppress(FileNotFoundError):
            os.unlink(path)


def _trim(path: str, most: int, budget: int) -> None:
    """Remove the oldest rotated files while all are longer than `budget`; the newest always stays."""
    total = 0
    for number in range(1, max(1, most) + 1):
        for name in (f"{path}.{number}", f"{path}.{number}{GZ}"):
            total += _size(name)
            if total > budget and number > 1:
                with suppress(FileNotFoundError):
                    os.unlink(name)


def _pack(source: str, target: str) -> None:
    packer = zlib.compressobj(6, zlib.DEFLATED, 31)
    with open(source, "rb") as reading, open(target, "wb") as writing:
        while piece := reading.read(_PIECE):
            writing.write(packer.compress(piece))
        writing.write(packer.flush())


def _size(path: str) -> int:
    with suppress(OSError):
        return os.stat(path).st_size
    return 0
