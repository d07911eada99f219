"""Docker's streams: multiplexed frames, and a client joined to a process over a hijacked connection."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Protocol

from wherry.doors.docker.keys import DetachKeys
from wherry.engine.types import Session
from wherry.errors import BadRequest, WherryError
from wherry.wire.http import Request, Response
from wherry.wire.streams import Stream

RAW = "application/vnd.docker.raw-stream"
MULTIPLEXED = "application/vnd.docker.multiplexed-stream"

KINDS = {"stdin": 0, "stdout": 1, "stderr": 2}
READ_BYTES = 32 * 1024
LINGER_S = 2.0
"""How long a client may take to close after our last byte: closing with its own unread loses what it has not read yet."""


def frame(stream: str, data: bytes) -> bytes:
    """Frame a piece of output: kind, three zeros, length, data."""
    return bytes((KINDS[stream], 0, 0, 0)) + len(data).to_bytes(4, "big") + data


class Pipe(Protocol):
    """A client's connection, both ways: a hijacked one, or a WebSocket."""

    async def read(self, n: int = ...) -> bytes:
        """Return what it sends next; b"" at its end."""
        ...

    async def write(self, data: bytes) -> None:
        """Send; waits while it does not read. Raises ConnectionError when it has gone."""
        ...

    async def finish(self, linger_s: float) -> None:
        """End our side, and let it close."""
        ...

    def close(self) -> None:
        """Let go of it."""
        ...


def hijacked(request: Request, talk: Callable[[Stream], Awaitable[None]], *, tty: bool) -> Response:
    """Take the connection over: 101 for a client that asks for an upgrade, 200 for one that does not."""
    headers = {"Content-Type": RAW if tty else MULTIPLEXED}
    if request.upgrade:
        return Response.upgrade({**headers, "Connection": "Upgrade", "Upgrade": "tcp"}, talk)
    return Response.upgrade(headers, talk, status=200)


def read_size(request: Request) -> tuple[int, int]:
    """Read the size of a terminal: (rows, columns). Raises BadRequest."""
    rows, columns = request.first("h") or "", request.first("w") or ""
    if not all(each.isascii() and each.isdigit() and int(each) < 65536 for each in (rows, columns)):
        raise BadRequest("resize: h and w are numbers of rows and columns")
    return int(rows), int(columns)


async def join(
    stream: Pipe,
    session: Session,
    *,
    tty: bool,
    stdin: bool,
    stdout: bool,
    stderr: bool,
    first: bytes = b"",
    keys: DetachKeys | None = None,
    raw: bool = False,
    on_detach: Callable[[], None] | None = None,
) -> None:
    """Carry a client's input and a process's output until the process's output ends or the client goes.

    The session is closed at the end; the process is never killed. `keys`, typed, end it too, and `on_detach` is told.
    Without a terminal output is framed, unless it is to be `raw`. A client that does not read makes the process wait as
    soon as what the kernel and our own bounded buffers hold is full: as with Docker, nothing is dropped.
    """

    async def inward() -> None:
        with suppress(WherryError):  # the process reads no more: what it writes still counts
            while data := await stream.read(READ_BYTES):
                detached = False
                if keys is not None:
                    data, detached = keys.feed(data)
                if stdin and data:
                    await session.write(data)
                if detached:
                    if on_detach is not None:
                        on_detach()
                    stream.close()
                    await session.close()
                    return
            if stdin:
                await session.close_stdin()

    wanted = {"stdout": stdout, "stderr": stderr}
    reader = asyncio.create_task(inward(), name="docker:stdin")
    try:
        if first:
            await stream.write(first)
        async for name, data in session.output():
            if wanted[name]:
                await stream.write(data if tty or raw else frame(name, data))
        reader.cancel()
        with suppress(asyncio.CancelledError, ConnectionError, OSError):
            await reader
        await stream.finish(LINGER_S)
    except (ConnectionError, OSError):
        return  # the client has gone
    finally:
        reader.cancel()
        with suppress(asyncio.CancelledError, ConnectionError, OSError):
            await reader
        await session.close()
        stream.close()
