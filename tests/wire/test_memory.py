"""Peers that do not read, or that send more than is read: what we hold for them is bounded."""

import asyncio
import os
import tracemalloc
from collections.abc import AsyncIterator
from typing import Any

from wherry.clock import machine
from wherry.wire import websocket
from wherry.wire.http import Request, Response
from wherry.wire.server import Limits
from wherry.wire.streams import Stream
from wherry.wire.websocket import WebSocket

MIB = 1 << 20
GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


class Growth:
    """How much Python's memory grew since the start, in bytes, now and at most."""

    def __enter__(self) -> "Growth":
        tracemalloc.start()
        return self

    def __exit__(self, *exc: object) -> None:
        tracemalloc.stop()

    @property
    def most(self) -> int:
        return tracemalloc.get_traced_memory()[1]


async def settle(count: Any) -> None:
    """Wait until a counter stands still: everything is blocked."""
    last, still = -1, 0
    async with machine.timeout(10):
        while still < 10:
            still = still + 1 if count() == last else 0
            last = count()
            await machine.sleep(0.005)


async def test_a_stream_whose_clients_do_not_read_is_held_back(serve: Any) -> None:
    made = 0
    piece = os.urandom(10_000)

    async def pieces() -> AsyncIterator[bytes]:
        nonlocal made
        while True:
            made += len(piece)
            yield piece

    async def handle(request: Request) -> Response:
        return Response.stream(pieces())

    house = await serve(handle)
    with Growth() as growth:
        for _ in range(20):
            await (await house.talk()).send(GET)
        await settle(lambda: made)
        # Each has its kernel buffer (~0.4 MB on Linux, not ours), the test's own reader (128 KiB) and what we hold.
        assert growth.most < 20 * 0.6 * MIB
    assert made < 20 * 2 * MIB


async def test_a_large_answer_is_not_copied_for_slow_readers(serve: Any) -> None:
    body = os.urandom(16 * MIB)

    async def handle(request: Request) -> Response:
        return Response(200, None, body)

    house = await serve(handle)
    with Growth() as growth:
        talks = [await house.talk() for _ in range(20)]
        for talk in talks:
            await talk.send(GET)
        await machine.sleep(0.1)
        assert growth.most < 20 * MIB  # 320 MB if each had its copy
        assert (await talks[0].answer())[2] == body


async def test_an_upload_that_nobody_reads_is_held_back(serve: Any, eventually: Any) -> None:
    go = asyncio.Event()
    sent = 0

    async def handle(request: Request) -> Response:
        await go.wait()
        return Response.text(str(sum([len(piece) async for piece in request.stream()])))

    async def body() -> AsyncIterator[bytes]:
        nonlocal sent
        for _ in range(640):
            sent += 65536
            yield b"x" * 65536

    house = await serve(handle)
    with Growth() as growth:
        asked = asyncio.create_task(house.client.request("PUT", "/", body=body()))
        await settle(lambda: sent)
        assert sent < 4 * MIB
        go.set()
        assert await (await asked).read() == b"41943040"
        assert growth.most < 8 * MIB


async def test_an_answer_that_its_client_does_not_read_is_held_back(serve: Any) -> None:
    made = 0

    async def pieces() -> AsyncIterator[bytes]:
        nonlocal made
        for _ in range(640):
            made += 65536
            yield b"x" * 65536

    async def handle(request: Request) -> Response:
        return Response.stream(pieces())

    house = await serve(handle)
    answer = await house.client.request("GET", "/")
    await settle(lambda: made)
    assert made < 4 * MIB
    assert len(await answer.read()) == 640 * 65536


async def test_raw_streams_and_websockets_hold_their_writers(serve: Any) -> None:
    written = 0

    async def flood(stream: Stream) -> None:
        nonlocal written
        while True:
            await stream.write(b"x" * 65536)
            written += 65536

    async def flood_frames(ws: WebSocket) -> None:
        nonlocal written
        while True:
            await ws.send(b"x" * 65536)
            written += 65536

    async def handle(request: Request) -> Response:
        if request.path == "/ws":
            return websocket.accept(request, (), flood_frames)
        return Response.upgrade({"Upgrade": "tcp"}, flood)

    house = await serve(handle)
    _, stream = await house.client.upgrade("POST", "/", headers={"Upgrade": "tcp"})
    await settle(lambda: written)
    assert written < 2 * MIB
    stream.abort()
    written = 0
    ws = await websocket.connect(house.client, "/ws")
    await settle(lambda: written)
    assert written < 2 * MIB
    assert await ws.recv() == b"x" * 65536
    ws._stream.abort()  # pyright: ignore[reportPrivateUsage]


async def test_a_raw_stream_that_nobody_reads_holds_its_sender(serve: Any) -> None:
    async def wait(stream: Stream) -> None:
        await machine.sleep(100)

    async def handle(request: Request) -> Response:
        return Response.upgrade({"Upgrade": "tcp"}, wait)

    house = await serve(handle)
    _, stream = await house.client.upgrade("POST", "/", headers={"Upgrade": "tcp"})
    written = 0

    async def flood() -> None:
        nonlocal written
        while True:
            await stream.write(b"x" * 65536)
            written += 65536

    task = asyncio.create_task(flood())
    await settle(lambda: written)
    assert written < 4 * MIB
    task.cancel()
    stream.abort()


async def test_a_flood_of_pipelined_requests_is_held_back(serve: Any) -> None:
    go = asyncio.Event()

    async def handle(request: Request) -> Response:
        await go.wait()
        return Response.text("ok")

    house = await serve(handle)
    talk = await house.talk()
    sent = 0

    async def flood() -> None:
        nonlocal sent
        for _ in range(500):
            await talk.send(GET * 500)
            sent += 500

    with Growth() as growth:
        task = asyncio.create_task(flood())
        await settle(lambda: sent)
        assert growth.most < 4 * MIB
    go.set()
    for _ in range(sent):
        assert (await talk.answer())[0] == 200
    task.cancel()


async def test_a_reader_that_makes_no_progress_is_cut_off(serve: Any, eventually: Any) -> None:
    limits = Limits(write_s=0.2)
    ended = asyncio.Event()

    async def pieces() -> AsyncIterator[bytes]:
        try:
            while True:
                yield b"x" * 65536
        finally:
            ended.set()

    async def handle(request: Request) -> Response:
        if request.path == "/whole":
            return Response(200, None, b"x" * 4 * MIB)
        if request.path == "/file":
            return Response.file("/usr/bin/env", 0, 10**9)
        return Response.stream(pieces())

    house = await serve(handle, limits=limits)
    for path in (b"/", b"/whole"):
        await (await house.talk()).send(GET.replace(b"/ ", path + b" ", 1))
    async with machine.timeout(5):
        await ended.wait()
    await eventually(lambda: house.server.connections == 0)


async def test_a_file_whose_reader_makes_no_progress_is_cut_off(serve: Any, eventually: Any, tmp_path: Any) -> None:
    (tmp_path / "blob").write_bytes(b"x" * 8 * MIB)

    async def handle(request: Request) -> Response:
        return Response.file(tmp_path / "blob")

    house = await serve(handle, limits=Limits(write_s=0.2))
    await (await house.talk()).send(GET)
    await eventually(lambda: house.server.connections == 1)
    await eventually(lambda: house.server.connections == 0)
