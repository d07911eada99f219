"""Flow control in both directions: a bounded queue of arriving bytes, and a gate that holds writers."""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Protocol

# Above HIGH we stop reading from the socket, below LOW we go on: a slow handler holds at most HIGH and one read (256 KiB).
HIGH_BYTES = 256 * 1024
LOW_BYTES = 64 * 1024
# What may wait in a transport for a slow reader before `drain` holds us.
WRITE_HIGH_BYTES = 64 * 1024


class Source(Protocol):
    """What can be told to read less: an asyncio transport."""

    def pause_reading(self) -> None:
        """Stop reading from the socket."""
        ...

    def resume_reading(self) -> None:
        """Go on reading."""
        ...


class Inflow:
    """Bytes as they arrive, in order, for one reader. The socket is paused while more than HIGH_BYTES wait.

    `on_wait` is called once, when the reader first has to wait (the server then sends `100 Continue`).
    `received_bytes` counts everything that came.
    """

    __slots__ = (
        "_chunks",
        "_discarding",
        "_failure",
        "_offset",
        "_paused",
        "_source",
        "_waiter",
        "ended",
        "on_wait",
        "received_bytes",
        "size_bytes",
    )

    def __init__(self, source: Source | None, on_wait: Callable[[], None] | None = None) -> None:
        self._chunks: deque[bytes] = deque()
        self._offset = 0
        self._source = source
        self._paused = False
        self._discarding = False
        self._failure: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None
        self.ended = False
        self.on_wait = on_wait
        self.received_bytes = 0
        self.size_bytes = 0

    @property
    def waiting(self) -> bool:
        """Whether a reader waits for the peer."""
        return self._waiter is not None

    @property
    def held(self) -> bool:
        """Whether we hold the peer back."""
        return self._paused

    def feed(self, data: bytes) -> None:
        """Add what arrived."""
        size = len(data)
        self.received_bytes += size
        if self._discarding or not size:
            return
        self._chunks.append(data)
        self.size_bytes += size
        if self.size_bytes > HIGH_BYTES and not self._paused and self._source is not None:
            self._paused = True
            self._source.pause_reading()
        self._wake()

    def end(self) -> None:
        """Nothing more will come."""
        self.ended = True
        self._wake()

    def fail(self, error: Exception) -> None:
        """The rest will not come: the reader gets `error` after what is there; nothing when it has ended."""
        if not self.ended and self._failure is None:
            self._failure = error
            self._wake()

    def discard(self) -> None:
        """Drop what is there and what will come."""
        self._discarding = True
        self._chunks.clear()
        self.size_bytes = 0
        self._resume()

    async def take(self, most: int = HIGH_BYTES) -> bytes:
        """Return the next piece, of at most `most` bytes; b"" at the end. Raises what `fail` was given."""
        while not self._chunks:
            if self._failure is not None:
                raise self._failure
            if self.ended:
                return b""
            if self._waiter is not None:
                raise RuntimeError("two tasks read one stream")
            if self.on_wait is not None:
                on_wait, self.on_wait = self.on_wait, None
                on_wait()
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        chunk = self._chunks[0]
        start = self._offset
        if len(chunk) - start <= most:
            self._chunks.popleft()
            self._offset = 0
            piece = chunk[start:] if start else chunk
        else:
            self._offset = start + most
            piece = chunk[start : start + most]
        self.size_bytes -= len(piece)
        if self.size_bytes <= LOW_BYTES:
            self._resume()
        return piece

    def _resume(self) -> None:
        if self._paused and self._source is not None:
            self._paused = False
            self._source.resume_reading()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Outflow:
    """The gate of a transport's write side: asyncio closes and opens it, writers wait at it."""

    __slots__ = ("_waiters", "blocked", "lost")

    def __init__(self) -> None:
        self._waiters: list[asyncio.Future[None]] = []
        self.blocked = False
        self.lost = False

    def pause(self) -> None:
        """The transport's buffer is full."""
        self.blocked = True

    def resume(self) -> None:
        """The transport's buffer has room."""
        self.blocked = False
        self._wake()

    def lose(self) -> None:
        """The connection is gone: nobody waits any more."""
        self.lost = True
        self._wake()

    async def drain(self) -> None:
        """Return when there is room. Raises ConnectionResetError when the peer is gone."""
        while self.blocked and not self.lost:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            try:
                await waiter
            finally:
                if waiter in self._waiters:
                    self._waiters.remove(waiter)
        if self.lost:
            raise ConnectionResetError("the peer closed the connection")

    def _wake(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)
