"""Requests that are passed on to a server behind another."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from wherry.clock import machine
from wherry.errors import Unavailable
from wherry.wire import channels, websocket
from wherry.wire.client import Endpoint, HttpClient
from wherry.wire.http import Headers, Request, Response
from wherry.wire.proxy import end_to_end, forward
from wherry.wire.streams import Stream
from wherry.wire.websocket import WebSocket


async def beyond(request: Request) -> Response:
    """The server behind."""
    match request.path:
        case "/stream":

            async def pieces() -> AsyncIterator[bytes]:
                async for piece in request.stream():
                    yield piece

            return Response.stream(pieces())
        case "/none":
            return Response(204)
        case "/sized":
            return Response(200, {"X-B": "1"}, b"sized")
        case "/ws":

            async def echo(ws: WebSocket) -> None:
                while (message := await ws.recv()) is not None:
                    await ws.send(message)
                    if message == "end":
                        return

            return websocket.accept(request, channels.PROTOCOLS, echo)
        case "/raw":

            async def shout(stream: Stream) -> None:
                while data := await stream.read():
                    await stream.write(data.upper())
                await stream.write(b"bye")

            return Response.upgrade({"Upgrade": "tcp"}, shout)
        case _:
            body = (await request.body()).decode()
            return Response.json(
                {
                    "method": request.method,
                    "target": request.target,
                    "body": body,
                    "fields": request.headers.lower(),
                },
                201,
            )


@pytest.fixture
async def front(serve: Any) -> Any:
    """A server that passes everything on."""
    back = await serve(beyond)

    async def handle(request: Request) -> Response:
        if request.path == "/renamed":
            return await forward(
                request, back.client, "/other name", {"X-User": "me"}, drop=frozenset(("authorization",))
            )
        return await forward(request, back.client)

    house = await serve(handle)
    house.back = back
    return house


async def test_what_is_passed_on_and_what_is_not(front: Any) -> None:
    answer = await front.client.request(
        "PATCH",
        "/a b",
        [("q", "1 2")],
        {"X-A": "1", "Connection": "X-Hop, close", "X-Hop": "2", "TE": "trailers"},
        b"body",
    )
    assert answer.status == 201
    said = json.loads(await answer.read())
    assert (said["method"], said["target"], said["body"]) == ("PATCH", "/a%20b?q=1+2", "body")
    assert said["fields"] == {"host": "localhost", "x-a": "1", "content-length": "4"}


async def test_a_path_and_fields_can_be_changed(front: Any) -> None:
    answer = await front.client.request(
        "GET", "/renamed", [("q", "1")], {"Authorization": "Bearer secret", "x-user": "forged"}
    )
    said = json.loads(await answer.read())
    assert said["target"] == "/other%20name?q=1"
    assert said["fields"] == {"host": "localhost", "x-user": "me"}


async def test_streams_pass_both_ways(front: Any) -> None:
    async def body() -> AsyncIterator[bytes]:
        for _ in range(30):
            yield b"x" * 100_000

    answer = await front.client.request("POST", "/stream", body=body())
    assert len(await answer.read()) == 3_000_000


async def test_bodiless_answers(front: Any) -> None:
    assert (await front.client.request("GET", "/none")).status == 204
    answer = await front.client.request("HEAD", "/sized")
    assert (answer.headers["content-length"], answer.headers["x-b"]) == ("5", "1")
    assert await (await front.client.request("GET", "/sized")).read() == b"sized"
    assert front.server.connections == front.back.server.connections == 1


async def test_a_websocket_passes(front: Any) -> None:
    ws = await websocket.connect(front.client, "/ws", [channels.V5])
    assert ws.protocol == channels.V5
    await ws.send(b"x" * 500_000)
    assert await ws.recv() == b"x" * 500_000
    await ws.send("end")
    assert await ws.recv() == "end"
    assert await ws.recv() is None
    assert ws.close_code == 1000
    await ws.close()


async def test_a_refused_websocket_passes(front: Any) -> None:
    answer, stream = await front.client.upgrade("GET", "/other", headers={"Upgrade": "websocket"})
    assert (answer.status, stream.closed) == (201, True)
    assert json.loads(await answer.read())["method"] == "GET"


async def test_a_half_close_passes(front: Any) -> None:
    answer, stream = await front.client.upgrade("POST", "/raw", headers={"Upgrade": "tcp"})
    assert answer.headers["upgrade"] == "tcp"
    await stream.write(b"hello")
    assert await stream.read() == b"HELLO"
    await stream.write_eof()
    assert await stream.read() == b"bye"
    assert await stream.read() == b""


async def test_a_client_that_goes_is_gone_behind_too(serve: Any, eventually: Any) -> None:
    closed = asyncio.Event()

    async def watch(request: Request) -> Response:
        async def pieces() -> AsyncIterator[bytes]:
            try:
                yield b"event"
                await machine.sleep(100)
            finally:
                closed.set()

        return Response.stream(pieces())

    back = await serve(watch)

    async def handle(request: Request) -> Response:
        return await forward(request, back.client)

    house = await serve(handle)
    answer = await house.client.request("GET", "/")
    async for _ in answer.chunks():
        break
    await answer.close()
    async with machine.timeout(5):
        await closed.wait()
    await eventually(lambda: back.server.connections == 0)


async def test_a_raw_client_that_goes_is_gone_behind_too(front: Any, eventually: Any) -> None:
    _, stream = await front.client.upgrade("POST", "/raw", headers={"Upgrade": "tcp"})
    await stream.write(b"hello")
    assert await stream.read() == b"HELLO"
    stream.abort()
    await eventually(lambda: front.back.server.connections == 0)
    await eventually(lambda: front.server.connections == 0)


async def test_nobody_behind(serve: Any, tmp_path: Any) -> None:
    async with HttpClient(Endpoint.parse(f"unix:{tmp_path}/none.sock")) as client:

        async def handle(request: Request) -> Response:
            return await forward(request, client)

        house = await serve(handle)
        assert (await house.client.request("GET", "/")).status == 503
        with pytest.raises(Unavailable):
            await forward(Request.local("GET", "/"), client)


async def test_an_answer_that_breaks_off_behind_breaks_off_in_front(serve: Any, tmp_path: Any) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
        await writer.drain()
        writer.close()

    path = str(tmp_path / "b")
    server = await asyncio.start_unix_server(talk, path)
    async with HttpClient(Endpoint.parse(f"unix:{path}")) as client:

        async def handle(request: Request) -> Response:
            return await forward(request, client)

        house = await serve(handle)
        text = await house.ask(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert not text.endswith(b"0\r\n\r\n")
    server.close()


def test_the_fields_of_one_hop() -> None:
    kept = end_to_end(Headers([("Connection", "a, B"), ("A", "1"), ("b", "2"), ("C", "3"), ("Upgrade", "x")]))
    assert kept.items() == [("C", "3")]
