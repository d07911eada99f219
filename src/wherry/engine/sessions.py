"""Streams of a process, as callers hold them: the queue behind them, and a container's own through conmon."""

import asyncio
import socket
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path

from wherry.engine import monitor
from wherry.errors import Conflict

CHUNK_BYTES = 65536
QUEUE_CHUNKS = 16
_STREAMS = {2: "stdout", 3: "stderr"}


class Output:
    """A bounded queue of (stream, data) with an end: a reader who lags makes the writer wait, and nothing grows."""

    def __init__(self) -> None:
        self._items: deque[tuple[str, bytes]] = deque()
        self._changed = asyncio.Event()
        self._room = asyncio.Event()
        self._has_ended = False
        self._is_dropped = False

    @property
    def has_ended(self) -> bool:
        """Nothing comes any more, and what came was read."""
        return self._has_ended and not self._items

    async def put(self, stream: str, data: bytes) -> None:
        """Hand on data; waits while the reader is behind, drops it when the reader has gone."""
        while len(self._items) >= QUEUE_CHUNKS and not self._is_dropped:
            self._room.clear()
            await self._room.wait()
        if not self._is_dropped:
            self._items.append((stream, data))
            self._changed.set()

    def end(self) -> None:
        """Nothing comes any more."""
        self._has_ended = True
        self._changed.set()

    def drop(self) -> None:
        """Nobody reads any more."""
        self._is_dropped = self._has_ended = True
        self._items.clear()
        self._changed.set()
        self._room.set()

    async def read(self) -> AsyncIterator[tuple[str, bytes]]:
        """Yield until the end."""
        while True:
            if self._items:
                item = self._items.popleft()
                self._room.set()
                yield item
            elif self._has_ended:
                return
            else:
                self._changed.clear()
                await self._changed.wait()


class Attached:
    """An attachment to a container's main process, through conmon (engine/types.Session).

    conmon waits for a reader who lags, and the container then waits for conmon: read, or close.
    """

    def __init__(
        self, connection: socket.socket, bundle: Path, *, stdin: bool, tty: bool, code: Callable[[], Awaitable[int]]
    ) -> None:
        self._connection = connection
        self._bundle = bundle
        self._stdin = stdin
        self._tty = tty
        self._code = code
        self._is_reading = False
        self._is_closed = False

    async def output(self) -> AsyncIterator[tuple[str, bytes]]:
        """Yield what it writes from now on, until it ends."""
        loop = asyncio.get_running_loop()
        self._is_reading = True
        was_reset = False
        try:
            while not self._is_closed:
                try:
                    message = await loop.sock_recv(self._connection, CHUNK_BYTES)
                except ConnectionResetError:
                    if was_reset:
                        return
                    was_reset = (
                        True  # conmon ended with input unread: the kernel says so first, what it sent comes after
                    )
                    continue
                except OSError:
                    return
                if not message:
                    return
                stream = _STREAMS.get(message[0])
                if stream is not None and len(message) > 1:
                    yield stream, message[1:]
        finally:
            self._is_reading = False
            if self._is_closed:
                self._connection.close()

    async def write(self, data: bytes) -> None:
        """Send to stdin. Raises Conflict when the container has none, or has ended."""
        if not self._stdin:
            raise Conflict("this container was made without stdin")
        loop = asyncio.get_running_loop()
        for at in range(0, len(data), monitor.STDIN_BYTES):
            try:
                await loop.sock_sendall(self._connection, data[at : at + monitor.STDIN_BYTES])
            except OSError as error:
                raise Conflict(f"stdin of this container is closed: {error.strerror}") from error

    async def close_stdin(self) -> None:
        """End stdin; a container made with `stdin` but without `stdin_once` keeps it open for others."""
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_WR)

    async def resize(self, rows: int, columns: int) -> None:
        """Set the terminal's size; nothing without a terminal, or when it has ended."""
        if self._tty and not self._is_closed:
            with suppress(Conflict):
                monitor.resize(self._bundle, rows, columns)

    async def wait(self) -> int:
        """Wait for the container's end."""
        return await self._code()

    async def close(self) -> None:
        """Detach."""
        if self._is_closed:
            return
        self._is_closed = True
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)  # wakes who reads; they close it
        if not self._is_reading:
            self._connection.close()
