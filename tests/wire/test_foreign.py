"""Stock clients against our server, a stock server against our client."""

import asyncio
import http.client
import json
import socket
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
from aiohttp import web

from wherry.wire.client import Endpoint, HttpClient
from wherry.wire.http import Request, Response


async def echo(request: Request) -> Response:
    """Send the body back as a stream, its size in a field."""
    if request.path == "/sized":
        return Response.text(str(len(await request.body(limit=1 << 30))))

    async def pieces() -> AsyncIterator[bytes]:
        async for piece in request.stream():
            yield piece

    return Response.stream(pieces())


async def test_the_standard_library_s_client(serve: Any) -> None:
    house = await serve(echo)

    def walk() -> list[Any]:
        connection = http.client.HTTPConnection("localhost")
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.connect(house.path)
        said: list[Any] = []
        for method, body in (("GET", b""), ("POST", b"x" * 100_000), ("PUT", iter([b"a" * 5000] * 9))):
            connection.request(method, "/sized", body, encode_chunked=not isinstance(body, bytes))
            answer = connection.getresponse()
            said.append((answer.status, answer.read()))
        connection.request("HEAD", "/sized")
        answer = connection.getresponse()
        said.append((answer.status, answer.read(), answer.headers["Content-Length"]))
        connection.close()
        return said

    assert await asyncio.to_thread(walk) == [(200, b"0"), (200, b"100000"), (200, b"45000"), (200, b"", "1")]
    assert house.server.connections <= 1


async def test_aiohttp_s_client(serve: Any) -> None:
    async def body() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield b"y" * 50_000

    house = await serve(echo)
    async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(house.path)) as session:
        async with session.post("http://x/", data=body(), expect100=True) as answer:
            assert len(await answer.read()) == 1_000_000
        for _ in range(3):
            async with session.get("http://x/sized?a=b") as answer:
                assert await answer.text() == "0"
    assert house.server.connections <= 1


async def test_aiohttp_s_server(tmp_path: Any) -> None:
    async def handle(request: web.Request) -> web.StreamResponse:
        if request.path == "/stream":
            stream = web.StreamResponse()
            await stream.prepare(request)
            async for piece in request.content.iter_any():
                await stream.write(piece)
            return stream
        return web.json_response({"q": request.query_string, "b": (await request.read()).decode()}, status=201)

    async def body() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield b"y" * 50_000

    runner = web.ServerRunner(web.Server(handle))
    await runner.setup()
    path = str(tmp_path / "a.sock")
    await web.UnixSite(runner, path).start()
    async with HttpClient(Endpoint.parse(f"unix:{path}")) as client:
        answer = await client.request("POST", "/a b", [("q", "1 2")], body=b"hello")
        assert (answer.status, json.loads(await answer.read())) == (201, {"q": "q=1 2", "b": "hello"})
        answer = await client.request("POST", "/stream", body=body())
        assert len(await answer.read()) == 1_000_000
        assert (await client.request("HEAD", "/")).status == 201
    await runner.cleanup()
