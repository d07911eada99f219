"""Container logs in CRI's format, as conmon writes them: read across rotated files, followed while they grow.

A line is `TIME STREAM P|F TEXT`; P marks a piece of a line that goes on, and its newline is not the process's. Rotated
files are `LOG.1` (the newest) to `LOG.N`, or `LOG.N.gz`. conmon closes a file before the next one with the log's name
appears, so whoever sees a new file there knows that the old one is complete. A file that was compressed while somebody
read it is known by its first bytes. Source: Kubernetes, CRI logging proposal; conmon 2.1.
"""

import asyncio
import contextlib
import functools
import os
import zlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from io import FileIO

from wherry.clock import machine, parse_rfc3339, rfc3339_nano
from wherry.engine.lives import Life
from wherry.engine.types import LogLine
from wherry.errors import Unsupported
from wherry.host.engine_calls import Inotify

BLOCK_BYTES = 65536
READ_BYTES = 256 * 1024
"""How much of a log is read and taken apart at once, in a thread: the loop has others to serve meanwhile."""
GZ = ".gz"
HEAD_BYTES = 64
FOLLOW_S = 5.0
"""A follower looks again after this long even when nothing told it to."""


def parse(line: bytes) -> LogLine | None:
    """Read one line (with its newline); None for one that is not of the format. Pure."""
    parts = line.split(b" ", 3)
    if len(parts) != 4 or parts[1] not in (b"stdout", b"stderr") or not line.endswith(b"\n"):
        return None
    try:
        stamp = parts[0].decode("ascii")
        when = _time(stamp)
    except (ValueError, UnicodeDecodeError):
        return None
    is_partial = parts[2].startswith(b"P")
    stamp = f"{stamp[:29]}Z" if len(stamp) == 35 and stamp.endswith("+00:00") else rfc3339_nano(when)
    return LogLine(when, parts[1].decode(), parts[3][:-1] if is_partial else parts[3], is_partial, stamp)


async def read(
    path: str,
    most: int,
    inotify: Inotify,
    *,
    follow: bool,
    tail: int | None,
    since: float,
    has_ended: Callable[[], bool],
    ending: Callable[[Callable[[], None]], Callable[[], None]],
) -> AsyncGenerator[Sequence[LogLine]]:
    """Yield the lines of a log from `since`, the last `tail` of them; with `follow` until `has_ended` and all is read.

    They come by the hundreds, as they were read. `ending(wake)` calls `wake` when the container ends, and returns what
    takes that back.
    """
    reader = _Reader(path, most)

    def some() -> Sequence[LogLine] | None:
        lines = reader.lines()
        if not lines:
            return None
        return [found for line in lines if (found := parse(line)) is not None and found.time >= since]

    changed = asyncio.Event()
    stops: list[Callable[[], None]] = []
    if follow:
        with contextlib.suppress(FileNotFoundError):
            os.makedirs(os.path.dirname(path), exist_ok=True)
            stops.append(inotify.watch(os.path.dirname(path), lambda _: changed.set()))
        stops.append(ending(changed.set))
    try:
        await asyncio.to_thread(reader.begin, tail)
        while True:
            changed.clear()
            over = not follow or has_ended()  # asked before reading: then what we read is all
            while (lines := await asyncio.to_thread(some)) is not None:
                if lines:
                    yield lines
            if over:
                return
            with contextlib.suppress(TimeoutError):
                async with machine.timeout(FOLLOW_S):
                    await changed.wait()
    finally:
        for stop in stops:
            stop()
        reader.close()


async def each(blocks: AsyncGenerator[Sequence[LogLine]]) -> AsyncIterator[LogLine]:
    """Yield the lines of `blocks` one by one."""
    async with contextlib.aclosing(blocks):
        async for lines in blocks:
            for line in lines:
                yield line


def read_life(
    life: Life, inotify: Inotify, *, follow: bool, tail: int | None, since: float
) -> AsyncGenerator[Sequence[LogLine]]:
    """Read the log of a container, many lines at once. Raises Unsupported for one that keeps none."""
    record = life.record
    if record.spec.log_driver != "cri":
        raise Unsupported(f"container {record.name}: its log driver is {record.spec.log_driver}, so there is no log")

    def ending(wake: Callable[[], None]) -> Callable[[], None]:
        life.listeners.append(wake)
        return lambda: life.listeners.remove(wake)

    return read(
        record.log_path,
        record.spec.log_max_files,
        inotify,
        follow=follow,
        tail=tail,
        since=since,
        has_ended=lambda: not life.may_write,
        ending=ending,
    )


class _Reader:
    """Where one reader stands in a log: an open file, and the bytes of a line that is not whole yet.

    Files move while we look, from LOG to LOG.1 and on. So they are looked for in that direction: one may be met twice,
    none is missed.
    """

    def __init__(self, path: str, most: int) -> None:
        self._path = path
        self._most = most
        self._file: FileIO | None = None
        self._rest = b""
        self._before = b""

    def begin(self, tail: int | None) -> None:
        """Open the oldest file, or the place from which on there are `tail` lines."""
        opened = self._open_all()
        chosen: FileIO | None = None
        try:
            if tail is None:
                chosen = opened[0].content() if opened else None
            else:
                left = tail
                for each in reversed(opened):
                    file = each.content()
                    at, found = _seek_back(file, left)
                    file.seek(at)
                    if chosen is not None:
                        chosen.close()
                    chosen = file
                    left -= found
                    if left <= 0:
                        break
            self._file = chosen
        finally:
            for each in opened:
                each.close()

    def lines(self) -> list[bytes]:
        """Read some whole lines; none at the present end. Goes on to the next file at the end of a rotated one."""
        while True:
            if self._file is None:
                self.begin(None)
            if self._file is None:
                return []
            data = self._file.read(READ_BYTES)
            if data:
                pieces = (self._rest + data).split(b"\n")
                self._rest = pieces.pop()
                if pieces:
                    return [piece + b"\n" for piece in pieces]
            elif not self._go_on(self._file):
                return []

    def close(self) -> None:
        """Let go of the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _go_on(self, ours: FileIO) -> bool:
        """Take the file after ours, when there is one: ours is complete then. False when ours is the newest."""
        try:
            seen = os.stat(self._path)
        except FileNotFoundError:
            return False  # a rotation under way: the new file is not there yet
        if _place(ours) == (seen.st_dev, seen.st_ino):
            return False
        opened = self._open_all()
        try:
            if not opened or opened[-1].name != self._path:
                return False
            if os.fstat(ours.fileno()).st_size > ours.tell():
                return True  # written between our last read and the new file
            head = _head(ours)
            mine = next((at for at, each in enumerate(opened) if each.is_same(ours, head)), None)
            if (
                mine is None and not head
            ):  # conmon has put another in the place of an empty one: it is the next of the last
                mine = next((at for at, each in enumerate(opened) if each.begins(self._before)), None)
            if mine == len(opened) - 1:
                return False
            following = opened[0 if mine is None else mine + 1].content()
            self._before = head or self._before
            self.close()
            self._file, self._rest = following, b""
            return True
        finally:
            for each in opened:
                each.close()

    def _open_all(self) -> list["_Part"]:
        """Open each file once, oldest first."""
        found: dict[tuple[int, int], _Part] = {}
        for number in range(self._most + 1):
            for name in (self._path,) if number == 0 else (f"{self._path}.{number}", f"{self._path}.{number}.gz"):
                with contextlib.suppress(FileNotFoundError):
                    part = _Part(name)
                    if found.setdefault(part.place, part) is not part:
                        part.close()
                    break
        return list(reversed(found.values()))


class _Part:
    """One file of a log, open; compressed ones are opened up only when they are read."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._raw = open(name, "rb", buffering=0)  # noqa: SIM115  # whoever made us closes us
        self.place = _place(self._raw)

    def content(self) -> FileIO:
        """Give its lines, as a file of the caller's own."""
        if not self.name.endswith(GZ):
            return FileIO(os.dup(self._raw.fileno()), "rb")
        whole = FileIO(os.open(os.path.dirname(self.name), os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600), "r+b")
        inflate = zlib.decompressobj(31)
        while packed := self._raw.read(BLOCK_BYTES):
            whole.write(inflate.decompress(packed))
        whole.write(inflate.flush())
        whole.seek(0)
        return whole

    def is_same(self, file: FileIO, head: bytes) -> bool:
        """Say whether `file`, which begins with `head`, has the same lines."""
        return (not self.name.endswith(GZ) and self.place == _place(file)) or self.begins(head)

    def begins(self, head: bytes) -> bool:
        """Say whether these are its first bytes; never for none."""
        if not head or not self.name.endswith(GZ):
            return bool(head) and _head(self._raw) == head
        return zlib.decompressobj(31).decompress(os.pread(self._raw.fileno(), 4096, 0), HEAD_BYTES) == head

    def close(self) -> None:
        """Let go of it."""
        self._raw.close()


def _head(file: FileIO) -> bytes:
    """Read the first bytes of a file: the time of its first line is in them, so no other file has them."""
    return os.pread(file.fileno(), HEAD_BYTES, 0)


def _place(file: FileIO) -> tuple[int, int]:
    seen = os.fstat(file.fileno())
    return seen.st_dev, seen.st_ino


def _seek_back(file: FileIO, lines: int) -> tuple[int, int]:
    """Find where the last `lines` whole lines of a file begin: (offset, how many lines are from there on).

    Pieces of one line count as one: only a piece with the tag F ends a line.
    """
    end = file.seek(0, os.SEEK_END)
    if lines <= 0:
        return end, 0
    size = BLOCK_BYTES
    while True:
        start = max(0, end - size)
        file.seek(start)
        records = _read_all(file, end - start).split(b"\n")
        first = 0 if start == 0 else 1  # the first may be cut
        ends = [index for index in range(first, len(records) - 1) if _ends_line(records[index])]
        begun = any(records[(ends[-1] + 1 if ends else first) : -1])  # pieces of a line that goes on
        count = len(ends) + begun
        if count > lines:
            last_before = ends[begun - lines - 1]
            return start + sum(len(record) + 1 for record in records[: last_before + 1]), lines
        if start == 0:
            return 0, count
        size *= 4


def _read_all(file: FileIO, size: int) -> bytes:
    pieces: list[bytes] = []
    while size > 0 and (piece := file.read(size)):
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)


def _ends_line(record: bytes) -> bool:
    parts = record.split(b" ", 3)
    return len(parts) == 4 and not parts[2].startswith(b"P")


def _time(text: str) -> float:
    """Read `2026-01-31T23:59:59.123456789+00:00`; many lines come in one second, so its whole part is remembered."""
    head, fraction, zone = text[:19], text[19:29], text[29:]
    if zone != "+00:00" or len(fraction) != 10 or fraction[0] != ".":
        return parse_rfc3339(text)
    return _second(head) + int(fraction[1:]) / 1e9


@functools.lru_cache(maxsize=16)
def _second(text: str) -> float:
    return parse_rfc3339(text + "Z")
