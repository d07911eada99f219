"""The client against servers that behave and servers that do not."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from wherry.clock import machine
from wherry.errors import BadRequest, DeadlineExceeded, Invalid, TooLarge, Unavailable
from wherry.wire.client import Endpoint, HttpClient
from wherry.wire.http import Request, Response

Talker = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Crooked:
    """A server that does what the test says on its n-th connection (the last one for all further)."""

    def __init__(self, path: str, talkers: list[Talker]) -> None:
        self.path = path
        self.talkers = talkers
        self.connections = 0
        self.tasks: list[asyncio.Task[Any]] = []

    async def __aenter__(self) -> HttpClient:
        self.server = await asyncio.start_unix_server(self._talk, self.path)
        self.client = HttpClient(Endpoint.parse(f"unix:{self.path}"), connect_s=0.3, head_s=0.3)
        return self.client

    async def __aexit__(self, *exc: object) -> None:
        await self.client.close()
        self.server.close()
        if self.tasks:
            await asyncio.wait(self.tasks, timeout=5)

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.tasks.append(task)
        talker = self.talkers[min(self.connections, len(self.talkers) - 1)]
        self.connections += 1
        try:
            await talker(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


def says(text: bytes, times: int = 1) -> Talker:
    """Read that many requests, answer each with `text`, close at the next."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(times):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(text)
        await reader.readuntil(b"\r\n\r\n")

    return talk


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("unix:/run/a.sock", "unix:/run/a.sock"),
        ("unix:///run/a.sock", "unix:/run/a.sock"),
        ("http://127.0.0.1:80", "http://127.0.0.1"),
        ("http://[::1]:8080/", "http://[::1]:8080"),
        ("https://h", "https://h"),
        ("https://h:6443", "https://h:6443"),
        ("tcp://h:2375", "http://h:2375"),
    ],
)
def test_endpoints_are_read(text: str, shown: str) -> None:
    assert str(Endpoint.parse(text)) == shown


@pytest.mark.parametrize(
    "text", ["", "unix:", "unix:relative", "ftp://h", "http://", "http://h/path", "http://h:99999"]
)
def test_other_endpoints_are_refused(text: str) -> None:
    with pytest.raises(Invalid, match="endpoint"):
        Endpoint.parse(text)


async def test_nobody_there(tmp_path: Path) -> None:
    async with HttpClient(Endpoint.parse(f"unix:{tmp_path}/none.sock")) as client:
        with pytest.raises(Unavailable, match=r"none\.sock"):
            await client.request("GET", "/")


async def test_an_idempotent_request_survives_a_stale_connection(tmp_path: Path) -> None:
    server = Crooked(str(tmp_path / "s"), [says(OK), says(OK, 9)])
    async with server as client:
        for method in ("GET", "PUT", "DELETE"):
            assert (await (await client.request(method, "/", body=b"same")).read()) == b"ok"
    assert server.connections == 2


async def test_a_post_is_not_sent_twice(tmp_path: Path) -> None:
    server = Crooked(str(tmp_path / "s"), [says(OK)])
    async with server as client:
        await (await client.request("POST", "/")).read()
        with pytest.raises(Unavailable, match="without an answer"):
            await client.request("POST", "/")


async def test_a_fresh_connection_is_not_tried_again(tmp_path: Path) -> None:
    server = Crooked(str(tmp_path / "s"), [says(b"", 0)])
    async with server as client:
        with pytest.raises(Unavailable, match="without an answer"):
            await client.request("GET", "/")
    assert server.connections == 1


@pytest.mark.parametrize(
    "text",
    [
        b"nonsense\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\nhello",
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX-A: " + b"a" * 1_200_000,
    ],
)
async def test_an_answer_that_cannot_be_read(tmp_path: Path, text: bytes) -> None:
    async with Crooked(str(tmp_path / "s"), [says(text)]) as client:
        with pytest.raises(Unavailable):
            await client.request("GET", "/")


@pytest.mark.parametrize(
    "text",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nhello\r\n",
    ],
)
async def test_an_answer_that_breaks_off(tmp_path: Path, text: bytes) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(text)

    async with Crooked(str(tmp_path / "s"), [talk]) as client:
        with pytest.raises(Unavailable):
            await (await client.request("GET", "/")).read()


async def test_a_body_may_end_with_the_connection(tmp_path: Path) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n\r\nto the end")

    async with Crooked(str(tmp_path / "s"), [talk]) as client:
        assert await (await client.request("GET", "/")).read() == b"to the end"


async def test_interim_answers_are_passed_over(tmp_path: Path) -> None:
    early = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\n"
    async with Crooked(str(tmp_path / "s"), [says(early + OK)]) as client:
        assert (await client.request("GET", "/")).status == 200


async def test_deadlines(tmp_path: Path) -> None:
    async with Crooked(str(tmp_path / "s"), [says(b"", 2)]) as client:
        with pytest.raises(DeadlineExceeded, match="did not answer"):
            await client.request("GET", "/")
    half = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhe"
    async with Crooked(str(tmp_path / "t"), [says(half)]) as client:
        answer = await client.request("GET", "/")
        answer.read_s = 0.05
        with pytest.raises(DeadlineExceeded):
            await answer.read()


async def test_an_answer_larger_than_the_limit(tmp_path: Path) -> None:
    async with Crooked(str(tmp_path / "s"), [says(OK)]) as client:
        with pytest.raises(TooLarge):
            await (await client.request("GET", "/")).read(limit=1)


async def test_connections_are_bounded_and_come_back(serve: Any) -> None:
    async def handle(request: Request) -> Response:
        await machine.sleep(0.01)
        return Response.text("ok")

    house = await serve(handle)
    async with HttpClient(house.client.endpoint, connections=3, idle=2) as client:

        async def one() -> bytes:
            return await (await client.request("GET", "/")).read()

        assert set(await asyncio.gather(*(one() for _ in range(20)))) == {b"ok"}
        assert house.server.connections <= 3
    async with HttpClient(house.client.endpoint, connections=1, connect_s=0.05) as client:
        answer = await client.request("GET", "/")
        await answer.read()
        held = asyncio.create_task(client.request("GET", "/"))
        await machine.sleep(0)
        assert (await held).status == 200


async def test_a_slot_comes_back_when_the_caller_gives_up(serve: Any) -> None:
    async def handle(request: Request) -> Response:
        if request.path == "/slow":
            await machine.sleep(100)
        return Response.text("ok")

    house = await serve(handle)
    async with HttpClient(house.client.endpoint, connections=1, connect_s=1) as client:
        for _ in range(3):
            with pytest.raises(TimeoutError):
                async with machine.timeout(0.02):
                    await client.request("GET", "/slow")
        assert await (await client.request("GET", "/")).read() == b"ok"


async def test_an_answer_let_go_in_its_middle_frees_its_slot(serve: Any) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        while True:
            yield b"x" * 10_000
            await machine.sleep(0)

    async def handle(request: Request) -> Response:
        return Response.stream(pieces())

    house = await serve(handle)
    async with HttpClient(house.client.endpoint, connections=1, connect_s=1) as client:
        for _ in range(3):
            answer = await client.request("GET", "/")
            async for _piece in answer.chunks():
                break
            await answer.close()


async def test_a_body_that_fails_fails_the_request(serve: Any) -> None:
    async def handle(request: Request) -> Response:
        return Response.text(str(len(await request.body())))

    async def body() -> AsyncIterator[bytes]:
        yield b"some"
        await machine.sleep(0)
        raise ZeroDivisionError

    house = await serve(handle)
    with pytest.raises(ZeroDivisionError):
        await house.client.request("PUT", "/", body=body())
    assert (await house.client.request("GET", "/")).status == 200


async def test_what_cannot_be_in_a_request_is_refused(serve: Any) -> None:
    async def handle(request: Request) -> Response:
        return Response.text("ok")

    house = await serve(handle)
    with pytest.raises(BadRequest):
        await house.client.request("GET", "/", headers={"X-A": "b\r\nX-C: d"})
    with pytest.raises(BadRequest):
        await house.client.request("GET", "/", target="/ HTTP/1.1\r\nX: y")
    with pytest.raises(BadRequest):
        await house.client.request("GE T", "/")


async def test_a_closed_client_says_so(serve: Any) -> None:
    async def handle(request: Request) -> Response:
        return Response.text("ok")

    house = await serve(handle)
    await house.client.request("GET", "/")
    await house.client.close()
    with pytest.raises(Unavailable, match="closed"):
        await house.client.request("GET", "/")
