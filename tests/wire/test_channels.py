"""Remote command over WebSocket: kubectl's v5 and the Python client's v4."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from wherry.clock import machine
from wherry.errors import Broken
from wherry.wire import channels, websocket
from wherry.wire.http import Request, Response
from wherry.wire.websocket import WebSocket


class Cat:
    """A process that says back what it is told, to stdout or (lines with "!") to stderr, until stdin ends."""

    def __init__(self, code: int = 0, error: Exception | None = None) -> None:
        self.code = code
        self.error = error
        self.sizes: list[tuple[int, int]] = []
        self.closed = asyncio.Event()
        self._lines: asyncio.Queue[tuple[str, bytes] | None] = asyncio.Queue()

    async def output(self) -> AsyncIterator[tuple[str, bytes]]:
        if self.error is not None:
            raise self.error
        while (line := await self._lines.get()) is not None:
            yield line

    async def write(self, data: bytes) -> None:
        await self._lines.put(("stderr" if b"!" in data else "stdout", data))

    async def close_stdin(self) -> None:
        await self._lines.put(None)

    async def resize(self, rows: int, columns: int) -> None:
        self.sizes.append((rows, columns))

    async def wait(self) -> int:
        return self.code

    async def close(self) -> None:
        self.closed.set()


async def exec_in(serve: Any, cat: Cat, protocol: str, **flags: bool) -> WebSocket:
    """Serve the process and connect to it."""
    asked = {"stdin": True, "stdout": True, "stderr": True, "tty": False} | flags

    async def handle(request: Request) -> Response:
        async def talk(ws: WebSocket) -> None:
            await channels.serve_session(ws, cat, **asked)

        return websocket.accept(request, channels.PROTOCOLS, talk)

    house = await serve(handle)
    return await websocket.connect(house.client, "/exec", [protocol])


async def outcome_of(ws: WebSocket) -> Any:
    """Read to the end; return the Status of channel 3."""
    found = None
    while (message := await ws.recv()) is not None:
        assert isinstance(message, bytes)
        if message[0] == 3:
            found = json.loads(message[1:])
    assert ws.close_code == 1000
    await ws.close()
    return found


async def test_v5_streams_and_the_end_of_stdin(serve: Any) -> None:
    cat = Cat()
    ws = await exec_in(serve, cat, channels.V5)
    await ws.send(b"\x00hello")
    assert await ws.recv() == b"\x01hello"
    await ws.send(b"\x00help!")
    assert await ws.recv() == b"\x02help!"
    await ws.send(b"\xff\x00")
    assert await outcome_of(ws) == {"metadata": {}, "status": "Success"}
    assert cat.closed.is_set()


async def test_v4_has_no_end_of_stdin_and_text_frames_count(serve: Any) -> None:
    cat = Cat()
    ws = await exec_in(serve, cat, channels.V4)
    await ws.send(b"\xff\x00")  # means nothing in v4
    await ws.send("\x00text")
    assert await ws.recv() == b"\x01text"
    await ws.close()
    async with machine.timeout(5):
        await cat.closed.wait()


async def test_an_exit_code_is_told_as_a_cause(serve: Any) -> None:
    cat = Cat(code=42)
    ws = await exec_in(serve, cat, channels.V4)
    await cat.close_stdin()
    assert await outcome_of(ws) == {
        "metadata": {},
        "status": "Failure",
        "message": "command terminated with non-zero exit code: exit status 42",
        "reason": "NonZeroExitCode",
        "details": {"causes": [{"reason": "ExitCode", "message": "42"}]},
    }


async def test_an_error_of_the_engine_is_told(serve: Any) -> None:
    ws = await exec_in(serve, Cat(error=Broken("crun: no such file")), channels.V5)
    status = await outcome_of(ws)
    assert (status["reason"], status["message"]) == ("InternalError", "crun: no such file")


async def test_the_terminal_s_size(serve: Any, eventually: Any) -> None:
    cat = Cat()
    ws = await exec_in(serve, cat, channels.V5, tty=True)
    await ws.send(b'\x04{"Width":120,"Height":40}')
    for wrong in (
        b"",
        b"{}",
        b"nonsense",
        b'{"Width":0,"Height":1}',
        b'{"Width":99999999,"Height":1}',
        b'{"Width":"a"}',
    ):
        await ws.send(b"\x04" + wrong)
    await eventually(lambda: cat.sizes)
    await ws.send(b"\x00help!")  # with a terminal there is no stderr, so nobody sends any
    await ws.send(b"\xff\x00")
    await outcome_of(ws)
    assert cat.sizes == [(40, 120)]


async def test_what_was_not_asked_for_is_dropped(serve: Any) -> None:
    cat = Cat()
    ws = await exec_in(serve, cat, channels.V5, stdin=False, stderr=False)
    await ws.send(b"\x00ignored")
    await ws.send(b"")
    await ws.send(b"\x07unknown")
    await cat.write(b"dropped!")
    await cat.write(b"x" * 100_000)
    got = b""
    while len(got) < 100_000:
        message = await ws.recv()
        assert isinstance(message, bytes)
        assert message[0] == 1
        assert len(message) <= channels.FRAME_BYTES + 1
        got += message[1:]
    await cat.close_stdin()
    assert (await outcome_of(ws))["status"] == "Success"


async def test_a_client_that_goes_lets_go_of_the_process(serve: Any) -> None:
    cat = Cat()
    ws = await exec_in(serve, cat, channels.V5)
    ws._stream.abort()  # pyright: ignore[reportPrivateUsage]
    async with machine.timeout(5):
        await cat.closed.wait()


@pytest.mark.parametrize("flood", [b"\x01", b"\x02", b"\x03", b"\xfe"])
async def test_channels_that_a_client_may_not_send_on_are_ignored(serve: Any, flood: bytes) -> None:
    cat = Cat()
    ws = await exec_in(serve, cat, channels.V5)
    await ws.send(flood + b"x" * 1000)
    await ws.send(b"\x00still here")
    assert await ws.recv() == b"\x01still here"
    await ws.send(b"\xff\x00")
    assert (await outcome_of(ws))["status"] == "Success"
