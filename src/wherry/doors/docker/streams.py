"""Docker's streams: multiplexed frames, and a client joined to a process over a hijacked connection."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress

from wherry.clock import rfc3339_nano
from wherry.doors.docker.keys import DetachKeys
from wherry.engine.types import LogLine, Session
from wherry.errors import WherryError
from wherry.wire.streams import Stream

KINDS = {"stdin": 0, "stdout": 1, "stderr": 2}
READ_BYTES = 32 * 1024
LINGER_S = 2.0
"""How long a client may take to close after our last byte: closing with its own unread loses what it has not read yet."""


def frame(stream: str, data: bytes) -> bytes:
    """Frame a piece of output: kind, three zeros, length, data."""
    return bytes((KINDS[stream], 0, 0, 0)) + len(data).to_bytes(4, "big") + data


async def join(
    stream: Stream,
    session: Session,
    *,
    tty: bool,
    stdin: bool,
    stdout: bool,
    stderr: bool,
    first: bytes = b"",
    keys: DetachKeys | None = None,
) -> None:
    """Carry a client's input and a process's output until the process's output ends or the client goes.

    The session is closed at the end; the process is never killed. `keys`, typed, end it too.
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
                await stream.write(data if tty else frame(name, data))
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


async def log_pieces(
    lines: AsyncIterator[LogLine], *, tty: bool, stdout: bool, stderr: bool, timestamps: bool, until: float
) -> AsyncIterator[bytes]:
    """A log as Docker sends it."""
    fresh = True
    async for line in lines:
        if until and line.time > until:
            return
        if (line.stream == "stdout" and stdout) or (line.stream == "stderr" and stderr):
            data = line.data
            if timestamps and fresh:
                data = rfc3339_nano(line.time).encode() + b" " + data
            fresh = not line.partial
            yield data if tty else frame(line.stream, data)
