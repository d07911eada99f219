"""Connections that become raw streams."""

import asyncio
import socket
from typing import Any

import pytest

from wherry.clock import machine
from wherry.errors import Forbidden
from wherry.wire import sending
from wherry.wire.http import Request, Response
from wherry.wire.server import Limits
from wherry.wire.streams import Stream


async def shout(stream: Stream) -> None:
    """Send back what comes in capitals, and a goodbye at the end."""
    while data := await stream.read():
        await stream.write(data.upper())
    await stream.write(b"bye")


async def hijack(request: Request) -> Response:
    """Answer as Docker's attach does: 101 to a client that asks for it, else 200."""
    body = (await request.body()).decode()
    if request.path == "/refused":
        raise Forbidden("no")
    if request.upgrade:
        return Response.upgrade({"Upgrade": "tcp", "X-Body": body}, shout)
    return Response.upgrade({"Content-Type": "application/vnd.docker.raw-stream", "X-Body": body}, shout, 200)


@pytest.mark.parametrize(
    ("fields", "status"), [({"Connection": "Upgrade", "Upgrade": "tcp"}, 101), ({"Connection": "keep-alive"}, 200)]
)
async def test_a_raw_stream_with_a_half_close(serve: Any, fields: dict[str, str], status: int) -> None:
    house = await serve(hijack)
    answer, stream = await house.client.upgrade("POST", "/attach", headers=fields, body=b'{"Tty":false}')
    assert answer.status == status
    assert answer.headers["x-body"] == '{"Tty":false}'
    await stream.write(b"hello")
    assert await stream.read() == b"HELLO"
    await stream.write_eof()
    assert await stream.read() == b"bye"
    assert await stream.read() == b""
    stream.close()


@pytest.mark.parametrize("upgrade", ["Connection: Upgrade\r\nUpgrade: tcp\r\n", ""])
@pytest.mark.parametrize("step", [1, 7, 10_000])
async def test_what_is_sent_before_the_answer_is_not_lost(serve: Any, upgrade: str, step: int) -> None:
    house = await serve(hijack)
    talk = await house.talk()
    head = f"POST /exec HTTP/1.1\r\nHost: x\r\n{upgrade}Content-Length: 2\r\n\r\n{{}}".encode()
    early = b"early words"
    # A client that asks for no upgrade cannot send raw bytes in the same breath: they could be its next request.
    data = head + early if upgrade else head
    for start in range(0, len(data), step):
        await talk.send(data[start : start + step])
        await machine.sleep(0)
    if not upgrade:
        await machine.sleep(0.01)
        await talk.send(early)
    talk.eof()
    status, fields = await talk.head()
    assert (status, fields["x-body"]) == (101 if upgrade else 200, "{}")
    assert await talk.rest() == b"EARLY WORDSbye"


async def test_a_chunked_body_before_an_upgrade(serve: Any) -> None:
    house = await serve(hijack)
    talk = await house.talk()
    await talk.send(
        b"POST /exec HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: tcp\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"1\r\n{\r\n1\r\n}\r\n0\r\n\r\n"
    )
    assert (await talk.head())[1]["x-body"] == "{}"


async def test_an_upgrade_that_is_not_taken_is_an_ordinary_request(serve: Any) -> None:
    async def handle(request: Request) -> Response:
        return Response.text(request.path + (await request.body()).decode())

    house = await serve(handle)
    talk = await house.talk()
    h2c = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAA\r\n"
    await talk.send(
        b"GET /1 HTTP/1.1\r\nHost: x\r\n" + h2c + b"\r\n"
        b"POST /2 HTTP/1.1\r\nHost: x\r\n" + h2c + b"Content-Length: 3\r\n\r\nabc"
        b"GET /3 HTTP/1.1\r\nHost: x\r\n\r\n"
    )
    for expected in (b"/1", b"/2abc", b"/3"):
        assert (await talk.answer())[2] == expected


async def test_a_refused_upgrade_can_be_read(serve: Any) -> None:
    house = await serve(hijack)
    answer, stream = await house.client.upgrade("POST", "/refused", headers={"Upgrade": "tcp"})
    assert (answer.status, await answer.read()) == (403, b'{"message":"no"}')
    assert stream.closed
    assert await stream.read() == b""
    with pytest.raises(ConnectionResetError):
        await stream.write(b"x")


async def test_requests_behind_one_that_becomes_raw_break_the_connection(serve: Any) -> None:
    house = await serve(hijack)
    talk = await house.talk()
    await talk.send(b"POST / HTTP/1.1\r\nHost: x\r\n\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n")
    assert await talk.closed()


async def test_the_last_bytes_arrive_although_the_client_still_sends(serve: Any) -> None:
    async def end_at_once(stream: Stream) -> None:
        await stream.write(b"exit code 1")

    async def handle(request: Request) -> Response:
        return Response.upgrade({"Upgrade": "tcp"}, end_at_once)

    house = await serve(handle)
    _, stream = await house.client.upgrade("POST", "/", headers={"Upgrade": "tcp"})
    for _ in range(20):
        await stream.write(b"input that nobody reads" * 100)
    assert await stream.read() == b"exit code 1"
    assert await stream.read() == b""
    stream.close()


async def test_a_client_that_vanishes_ends_the_stream(serve: Any, eventually: Any) -> None:
    ended = asyncio.Event()

    async def silent(stream: Stream) -> None:
        try:
            assert await stream.read() == b""  # it may be a half-close only ...
            await machine.sleep(100)
        finally:
            ended.set()

    async def handle(request: Request) -> Response:
        return Response.upgrade({"Upgrade": "tcp"}, silent)

    house = await serve(handle, limits=Limits(linger_s=0.2))
    _, stream = await house.client.upgrade("POST", "/", headers={"Upgrade": "tcp"})
    stream.close()  # ... but a unix socket tells when both sides are closed
    async with machine.timeout(5):
        await ended.wait()
    await eventually(lambda: house.server.connections == 0)


async def test_close_cancels_raw_streams_after_the_grace(serve: Any) -> None:
    started = asyncio.Event()

    async def wait(stream: Stream) -> None:
        started.set()
        await machine.sleep(100)

    async def handle(request: Request) -> Response:
        return Response.upgrade({"Upgrade": "tcp"}, wait)

    house = await serve(handle)
    _, stream = await house.client.upgrade("POST", "/", headers={"Upgrade": "tcp"})
    await started.wait()
    await house.server.close(0.05)
    assert await stream.read() == b""
    assert house.server.connections == 0


async def test_the_first_bytes_do_not_arrive_with_the_head(serve: Any) -> None:
    """docker-py buffers what comes with the head, then reads past its buffer: frames in it would be lost."""

    async def speak(stream: Stream) -> None:
        await stream.write(b"first frame")

    async def handle(request: Request) -> Response:
        return Response.upgrade({"Upgrade": "tcp"}, speak)

    house = await serve(handle)
    sock = socket.socket(socket.AF_UNIX)
    sock.setblocking(False)
    loop = asyncio.get_running_loop()
    with sock:
        await loop.sock_connect(sock, house.path)
        await loop.sock_sendall(sock, b"POST / HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: tcp\r\n\r\n")
        await machine.sleep(0.1)  # a client that is slow to read: without the wait all is in the socket by now
        async with machine.timeout(10):
            head = await loop.sock_recv(sock, 65536)
            assert head.endswith(b"\r\n\r\n")
            assert await loop.sock_recv(sock, 65536) == b"first frame"


async def test_a_client_that_never_reads_the_head_is_served_all_the_same(serve: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(sending, "HEAD_READ_S", 0.05)
    served = asyncio.Event()

    async def speak(stream: Stream) -> None:
        served.set()

    async def handle(request: Request) -> Response:
        return Response.upgrade({"Upgrade": "tcp"}, speak)

    house = await serve(handle)
    talk = await house.talk()
    talk.reader._transport.pause_reading()
    await talk.send(b"POST / HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: tcp\r\n\r\n")
    async with machine.timeout(10):
        await served.wait()
