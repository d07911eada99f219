"""Kubernetes' remote command over WebSocket: each frame's first byte says which stream it is of.

Channels: 0 stdin, 1 stdout, 2 stderr, 3 the outcome as a Status, 4 the terminal's size, 255 (v5) the end of the channel
that the next byte names. Source: Kubernetes, `remotecommand` and `wsstream` (v4.channel.k8s.io, v5.channel.k8s.io).
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any, Protocol

import msgspec

from wherry.errors import WherryError
from wherry.wire.envelopes import message_of
from wherry.wire.websocket import WebSocket

V5 = "v5.channel.k8s.io"
V4 = "v4.channel.k8s.io"
# What we speak, best first: for `websocket.accept`.
PROTOCOLS = (V5, V4)

STDIN, STDOUT, STDERR, ERROR, RESIZE, CLOSE = 0, 1, 2, 3, 4, 255
# Output is cut into frames of at most this; clients size their buffers by what upstream sends.
FRAME_BYTES = 32 * 1024


class Session(Protocol):
    """A process's streams; the same shape as `engine.types.Session`, which this floor may not import."""

    def output(self) -> AsyncIterator[tuple[str, bytes]]:
        """Yield ("stdout"|"stderr", data) until both end."""
        ...

    async def write(self, data: bytes) -> None:
        """Send to stdin."""
        ...

    async def close_stdin(self) -> None:
        """End stdin."""
        ...

    async def resize(self, rows: int, columns: int) -> None:
        """Set the terminal's size."""
        ...

    async def wait(self) -> int:
        """Return the exit code."""
        ...

    async def close(self) -> None:
        """Let go of the streams."""
        ...


class _Size(msgspec.Struct):
    """A terminal's size as clients send it."""

    Width: int = 0
    Height: int = 0


def outcome(code: int) -> dict[str, Any]:
    """Make the Status of an exit code: Success for 0, else NonZeroExitCode with the code among its causes."""
    if code == 0:
        return {"metadata": {}, "status": "Success"}
    return {
        "metadata": {},
        "status": "Failure",
        "message": f"command terminated with non-zero exit code: exit status {code}",
        "reason": "NonZeroExitCode",
        "details": {"causes": [{"reason": "ExitCode", "message": str(code)}]},
    }


def failure(message: str) -> dict[str, Any]:
    """Make the Status of a session that could not be or broke."""
    return {"metadata": {}, "status": "Failure", "message": message, "reason": "InternalError", "code": 500}


async def serve_session(ws: WebSocket, session: Session, *, stdin: bool, stdout: bool, stderr: bool, tty: bool) -> None:
    """Join a client and a process until the process ends (its outcome is then told) or the client goes.

    The flags say what the client asked for; input that it did not ask for is dropped, output too. With a `tty` all output is
    stdout. The session is closed at the end; the process is never killed.
    """
    wanted = {"stdout": stdout, "stderr": stderr and not tty}
    try:
        async with asyncio.TaskGroup() as group:
            inward = group.create_task(_inward(ws, session, stdin=stdin), name="channels: input")
            outward = group.create_task(_outward(ws, session, wanted), name="channels: output")
            # The client's end ends the session; the output's end ends it with an outcome.
            done, _ = await asyncio.wait((inward, outward), return_when=asyncio.FIRST_COMPLETED)
            if inward in done and outward not in done:
                outward.cancel()
            inward.cancel()
    except* ConnectionError:
        pass  # the client is gone
    finally:
        await session.close()
    await ws.close()


async def _inward(ws: WebSocket, session: Session, *, stdin: bool) -> None:
    """Pass on what the client sends until it closes."""
    open_stdin = stdin
    while (message := await ws.recv()) is not None:
        data = message.encode() if isinstance(message, str) else message
        if not data:
            continue
        channel, payload = data[0], data[1:]
        if channel == STDIN and open_stdin:
            if payload:
                # A process that has closed its stdin, or has ended, must not end the session: its output still counts.
                with contextlib.suppress(WherryError, ConnectionError):
                    await session.write(payload)
        elif channel == RESIZE:
            with contextlib.suppress(msgspec.MsgspecError, WherryError):
                size = msgspec.json.decode(payload, type=_Size)
                if 0 < size.Width < 65536 and 0 < size.Height < 65536:
                    await session.resize(size.Height, size.Width)
        elif channel == CLOSE and ws.protocol == V5 and payload[:1] == bytes((STDIN,)) and open_stdin:
            open_stdin = False
            with contextlib.suppress(WherryError, ConnectionError):
                await session.close_stdin()


async def _outward(ws: WebSocket, session: Session, wanted: dict[str, bool]) -> None:
    """Pass on what the process writes, then how it ended."""
    try:
        async for name, data in session.output():
            if not wanted.get(name):
                continue
            channel = bytes((STDOUT if name == "stdout" else STDERR,))
            for start in range(0, len(data), FRAME_BYTES):
                await ws.send(channel + data[start : start + FRAME_BYTES])
        status = outcome(await session.wait())
    except WherryError as error:
        status = failure(message_of(error))
    await ws.send(bytes((ERROR,)) + msgspec.json.encode(status))
