"""Requests and answers as clients walk through them."""

import asyncio
import hashlib
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from wherry.clock import machine
from wherry.errors import Forbidden, Invalid, TooManyRequests
from wherry.wire.http import Request, Response
from wherry.wire.router import Route, Router
from wherry.wire.server import Limits


async def echo(request: Request) -> Response:
    """Say what came."""
    return Response.json(
        {
            "method": request.method,
            "path": request.path,
            "query": request.query,
            "body": (await request.body(limit=1 << 30)).decode("latin-1"),
        }
    )


async def sized(request: Request) -> Response:
    """Say how much came."""
    return Response.text(str(len(await request.body(limit=1 << 30))))


async def test_a_request_and_its_answer(serve: Any) -> None:
    house = await serve(echo)
    answer = await house.client.request("POST", "/a b/é", [("x", "1&2"), ("y", "")], {"X-Tag": "t"}, b"hello")
    assert answer.status == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["date"].endswith(" GMT")
    assert json.loads(await answer.read()) == {
        "method": "POST",
        "path": "/a b/é",
        "query": [["x", "1&2"], ["y", ""]],
        "body": "hello",
    }


async def test_a_connection_is_kept_and_used_again(serve: Any) -> None:
    house = await serve(echo)
    for _ in range(5):
        assert (await (await house.client.request("GET", "/")).read()).startswith(b"{")
    assert house.server.connections == 1


async def test_pipelined_requests_are_answered_in_order(serve: Any) -> None:
    async def slow_first(request: Request) -> Response:
        if request.path == "/0":
            await machine.sleep(0.02)
        return Response.text(request.path + (await request.body()).decode())

    house = await serve(slow_first)
    talk = await house.talk()
    await talk.send(
        b"".join(
            b"POST /%d HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\n%d" % (each, each % 10) for each in range(300)
        )
    )
    for each in range(300):
        assert (await talk.answer())[2] == b"/%d%d" % (each, each % 10)


async def test_a_large_body_ends_where_its_length_says_and_the_next_request_begins_there(serve: Any) -> None:
    async def digest(request: Request) -> Response:
        if request.path == "/early":
            return Response.text("no", headers={"Connection": "close"})
        return Response.text(f"{request.path} {hashlib.sha256(await request.body(1 << 30)).hexdigest()}")

    house = await serve(digest)
    talk = await house.talk()
    bodies = [os.urandom(size) for size in (1_500_000, 300_000, 5, 700_001)]
    head = b"PUT /%d HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
    whole = b"".join(head % (number, len(body)) + body for number, body in enumerate(bodies))
    sending = asyncio.create_task(_in_pieces(talk, whole), name="send")
    for number, body in enumerate(bodies):
        status, _, said = await talk.answer()
        assert (status, said) == (200, f"/{number} {hashlib.sha256(body).hexdigest()}".encode())
    await sending
    # What an answer that closes leaves unread is no request, whatever it says.
    smuggled = b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n" * 10_000
    await talk.send(b"PUT /early HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (len(smuggled) + 9) + smuggled)
    assert (await talk.answer())[2] == b"no"
    assert await talk.rest() == b""


async def _in_pieces(talk: Any, data: bytes) -> None:
    for start in range(0, len(data), 99_991):
        await talk.send(data[start : start + 99_991])


async def test_a_request_may_arrive_byte_by_byte(serve: Any) -> None:
    house = await serve(echo)
    talk = await house.talk()
    head = b"POST /p?q=1 HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    for byte in head + b"3\r\nabc\r\n2;x=y\r\nde\r\n0\r\nT: 1\r\n\r\n":
        await talk.send(bytes((byte,)))
        await machine.sleep(0)
    status, _, body = await talk.answer()
    assert (status, json.loads(body)["body"]) == (200, "abcde")


async def test_chunked_bodies_go_both_ways(serve: Any) -> None:
    async def double(request: Request) -> Response:
        async def pieces() -> AsyncIterator[bytes]:
            async for piece in request.stream():
                yield piece
                yield piece

        return Response.stream(pieces())

    async def body() -> AsyncIterator[bytes]:
        for _ in range(50):
            yield b"x" * 30_000

    house = await serve(double)
    answer = await house.client.request("PUT", "/", body=body())
    assert answer.headers["transfer-encoding"] == "chunked"
    assert len(await answer.read()) == 3_000_000


async def test_head_has_the_length_and_no_body(serve: Any) -> None:
    house = await serve(echo)
    talk = await house.talk()
    await talk.send(b"HEAD / HTTP/1.1\r\nHost: x\r\n\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n")
    status, fields, _ = await talk.answer("HEAD")
    assert status == 200
    _, as_get, body = await talk.answer()
    assert int(as_get["content-length"]) == len(body)
    assert int(fields["content-length"]) == len(body) + 1  # it names its method: HEAD


async def test_head_of_a_stream_makes_none_of_it(serve: Any) -> None:
    made: list[int] = []

    async def pieces() -> AsyncIterator[bytes]:
        made.append(1)
        yield b"x"

    async def handle(request: Request) -> Response:
        return Response.stream(pieces(), {"Content-Length": "1"})

    house = await serve(handle)
    talk = await house.talk()
    await talk.send(b"HEAD / HTTP/1.1\r\nHost: x\r\n\r\n")
    assert (await talk.head())[1]["content-length"] == "1"
    assert made == []


@pytest.mark.parametrize("status", [204, 304])
async def test_answers_without_a_body_have_none(serve: Any, status: int) -> None:
    async def handle(request: Request) -> Response:
        return Response(status, {"ETag": '"a"'}, b"this must not be sent")

    house = await serve(handle)
    talk = await house.talk()
    for _ in range(2):
        await talk.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        got, fields, _ = await talk.answer()
        assert got == status
        assert "content-length" not in fields
        assert "transfer-encoding" not in fields


async def test_expect_100_continue_is_answered_when_the_body_is_wanted(serve: Any) -> None:
    house = await serve(sized)
    talk = await house.talk()
    await talk.send(b"PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n")
    assert await talk.until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    await talk.send(b"hello")
    assert (await talk.answer())[2] == b"5"


async def test_a_refusal_comes_instead_of_100_continue(serve: Any) -> None:
    async def refuse(request: Request) -> Response:
        raise Forbidden("not you")

    house = await serve(refuse)
    talk = await house.talk()
    await talk.send(b"PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n")
    status, _, body = await talk.answer()
    assert status == 403
    assert json.loads(body) == {"message": "not you"}
    assert await talk.closed()


async def test_other_expectations_fail(serve: Any) -> None:
    house = await serve(echo)
    assert (await house.ask(b"GET / HTTP/1.1\r\nHost: x\r\nExpect: tea\r\n\r\n")).startswith(b"HTTP/1.1 417 ")


async def test_http_1_0_gets_what_it_can_read(serve: Any) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b"one "
        yield b"two"

    async def handle(request: Request) -> Response:
        return Response.stream(pieces()) if request.path == "/stream" else Response.text("whole")

    house = await serve(handle)
    assert (await house.ask(b"GET / HTTP/1.0\r\n\r\n")).endswith(b"Connection: close\r\n\r\nwhole")
    talk = await house.talk()
    await talk.send(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
    status, fields, _ = await talk.answer()
    assert (status, fields["connection"]) == (200, "keep-alive")
    await talk.send(b"GET /stream HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
    text = await talk.rest()
    assert b"chunked" not in text
    assert text.endswith(b"\r\n\r\none two")


async def test_connection_close_is_kept(serve: Any) -> None:
    house = await serve(echo)
    talk = await house.talk()
    await talk.send(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert (await talk.answer())[1]["connection"] == "close"
    assert await talk.closed()


async def test_errors_of_handlers_become_envelopes(serve: Any, caplog: pytest.LogCaptureFixture) -> None:
    async def handle(request: Request) -> Response:
        if request.path == "/busy":
            raise TooManyRequests("later", retry_after_s=7)
        if request.path == "/invalid":
            raise Invalid("spec.replicas: -1 is negative")
        raise ZeroDivisionError("a secret in a message")

    house = await serve(handle)
    answer = await house.client.request("GET", "/busy")
    assert (answer.status, answer.headers["retry-after"]) == (429, "7")
    assert json.loads(await answer.read()) == {"message": "later"}
    assert (await house.client.request("GET", "/invalid")).status == 422
    answer = await house.client.request("GET", "/bug")
    assert answer.status == 500
    assert b"secret" not in await answer.read()
    assert len([record for record in caplog.records if record.exc_info]) == 1  # a bug is logged, once


async def test_a_door_has_its_own_envelope(serve: Any) -> None:
    async def handle(request: Request) -> Response:
        raise Forbidden("no")

    def envelope(request: Request, error: Exception) -> Response:
        return Response.json({"errors": [{"code": "DENIED", "message": str(error)}]}, 403)

    house = await serve(handle, on_error=envelope)
    answer = await house.client.request("GET", "/")
    assert json.loads(await answer.read()) == {"errors": [{"code": "DENIED", "message": "no"}]}


async def test_a_stream_sends_each_piece_at_once(serve: Any) -> None:
    gate: asyncio.Queue[bytes] = asyncio.Queue()

    async def pieces() -> AsyncIterator[bytes]:
        while piece := await gate.get():
            yield piece

    async def handle(request: Request) -> Response:
        return Response.stream(pieces(), {"Content-Type": "application/json"})

    house = await serve(handle)
    talk = await house.talk()
    await talk.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    assert (await talk.head())[1]["transfer-encoding"] == "chunked"  # before there is anything to say
    for each in (b"first", b"second"):
        gate.put_nowait(each)
        assert await talk.until(b"\r\n") == b"%x\r\n" % len(each)
        assert await talk.until(b"\r\n") == each + b"\r\n"
    gate.put_nowait(b"")
    assert await talk.until(b"0\r\n\r\n") == b"0\r\n\r\n"
    await talk.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    assert (await talk.head())[0] == 200


async def test_a_stream_that_fails_before_its_first_byte_is_an_error_answer(serve: Any) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        raise Forbidden("not this one")
        yield b""

    async def handle(request: Request) -> Response:
        return Response.stream(pieces())

    house = await serve(handle)
    answer = await house.client.request("GET", "/")
    assert answer.status == 403


async def test_a_stream_that_fails_later_breaks_the_connection(serve: Any, caplog: pytest.LogCaptureFixture) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b"some"
        await machine.sleep(0.01)
        raise ZeroDivisionError

    async def handle(request: Request) -> Response:
        return Response.stream(pieces())

    house = await serve(handle)
    text = await house.ask(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    assert b"some" in text
    assert not text.endswith(b"0\r\n\r\n")  # the client can tell that it is not whole


@pytest.mark.parametrize("announced", [3, 5])
async def test_a_wrong_content_length_breaks_the_connection(serve: Any, announced: int) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b"fo"
        await machine.sleep(0)
        yield b"ur"

    async def handle(request: Request) -> Response:
        return Response.stream(pieces(), {"Content-Length": str(announced)})

    house = await serve(handle)
    talk = await house.talk()
    await talk.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    text = await talk.rest()
    assert b"\r\n\r\nfour" not in text or announced == 5


async def test_files_go_by_sendfile_whole_and_in_part(serve: Any, tmp_path: Path) -> None:
    data = bytes(range(256)) * 20_000  # 5 MB
    (tmp_path / "blob").write_bytes(data)

    async def handle(request: Request) -> Response:
        if request.path == "/part":
            return Response.file(tmp_path / "blob", 1000, 3_000_001, status=206)
        if request.path == "/small":
            return Response.file(tmp_path / "blob", 10, 20)
        if request.path == "/gone":
            return Response.file(tmp_path / "nothing")
        return Response.file(tmp_path / "blob", headers={"X-Digest": "d"})

    house = await serve(handle)
    answer = await house.client.request("GET", "/")
    assert answer.headers["x-digest"] == "d"
    assert await answer.read() == data
    answer = await house.client.request("GET", "/part")
    assert (answer.status, await answer.read()) == (206, data[1000:3_000_001])
    assert await (await house.client.request("GET", "/small")).read() == data[10:20]
    assert (await house.client.request("GET", "/gone")).status == 500
    assert house.server.connections == 1


async def test_a_file_that_shrinks_breaks_the_connection(serve: Any, tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(b"x" * 100_000)

    async def handle(request: Request) -> Response:
        return Response.file(tmp_path / "blob", 0, 200_000)

    house = await serve(handle)
    text = await house.ask(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    assert b"Content-Length: 200000" in text
    assert len(text) < 150_000


async def test_header_injection_is_not_possible(serve: Any, caplog: pytest.LogCaptureFixture) -> None:
    async def handle(request: Request) -> Response:
        return Response(200, {"X-Name": request.first("name") or ""}, b"ok")

    house = await serve(handle)
    text = await house.ask(b"GET /?name=a%0d%0aSet-Cookie:%20b HTTP/1.1\r\nHost: x\r\n\r\n")
    assert text.startswith(b"HTTP/1.1 500 ")
    assert b"Set-Cookie" not in text


async def test_close_lets_a_running_request_finish(serve: Any) -> None:
    started = asyncio.Event()
    go = asyncio.Event()

    async def handle(request: Request) -> Response:
        started.set()
        await go.wait()
        return Response.text("done")

    house = await serve(handle)
    idle = await house.talk()
    talk = await house.talk()
    await talk.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    await started.wait()
    closing = asyncio.create_task(house.server.close(5))
    assert await idle.closed()
    go.set()
    _, fields, body = await talk.answer()
    assert (fields["connection"], body) == ("close", b"done")
    await closing
    with pytest.raises(OSError):
        await house.talk()


async def test_close_cancels_what_does_not_finish_in_time(serve: Any) -> None:
    cancelled = asyncio.Event()
    started = asyncio.Event()

    async def handle(request: Request) -> Response:
        started.set()
        try:
            await machine.sleep(100)
        finally:
            cancelled.set()
        return Response()

    house = await serve(handle)
    talk = await house.talk()
    await talk.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    await started.wait()
    await house.server.close(0.05)
    assert cancelled.is_set()
    assert house.server.connections == 0


async def test_close_ends_live_streams_in_order(serve: Any) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b"event"
        await machine.sleep(100)

    async def handle(request: Request) -> Response:
        return Response.stream(pieces(), live=True)

    house = await serve(handle)
    talk = await house.talk()
    await talk.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    await talk.until(b"event\r\n")
    await house.server.close(5)
    assert await talk.rest() == b"0\r\n\r\n"


async def test_routes(serve: Any) -> None:
    async def handle(request: Request) -> Response:
        return Response.json(request.params)

    router = Router(
        [
            Route("GET", "/v2/", handle),
            Route("GET", "/v2/{name:path}/blobs/{digest}", handle),
            Route("PUT", "/v2/{name:path}/blobs/uploads/{id}", handle),
            Route("*", "/{any}", handle),
        ]
    )

    async def serve_route(request: Request) -> Response:
        handler, request.params = router.match(request.method, request.path)
        return await handler(request)

    house = await serve(serve_route)

    async def get(method: str, path: str) -> tuple[int, Any]:
        answer = await house.client.request(method, path)
        body = await answer.read()
        return answer.status, json.loads(body) if body else None

    assert await get("GET", "/v2/") == (200, {})
    assert await get("GET", "/v2/a/b/c/blobs/sha256:1") == (200, {"name": "a/b/c", "digest": "sha256:1"})
    assert await get("PUT", "/v2/a/blobs/uploads/7") == (200, {"name": "a", "id": "7"})
    assert await get("PATCH", "/anything") == (200, {"any": "anything"})
    assert (await get("HEAD", "/v2/"))[0] == 200
    assert (await get("DELETE", "/v2/a/blobs/d"))[0] == 405
    assert (await get("GET", "/v2/a"))[0] == 404


async def test_too_many_connections_are_told_so(serve: Any) -> None:
    house = await serve(echo, limits=Limits(connections=2))
    first, second = await house.talk(), await house.talk()
    for talk in (first, second):
        await talk.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await talk.answer())[0] == 200
    third = await house.talk()
    assert (await third.answer())[0] == 503
    assert await third.closed()


async def test_gzip_is_for_far_clients_that_take_it(serve: Any) -> None:
    import zlib

    from wherry.wire.http import Headers, Peer
    from wherry.wire.sending import _gzip, _wants_gzip  # pyright: ignore[reportPrivateUsage]

    def wants(kind: Any, address: str, accepts: str) -> bool:
        return _wants_gzip(Request("GET", "/", (), Headers({"Accept-Encoding": accepts}), Peer(kind, address=address)))

    assert wants("tls", "10.1.2.3:5", "deflate, gzip;q=0.9")
    assert not wants("tls", "10.1.2.3:5", "gzip;q=0, br")
    assert not wants("tls", "10.1.2.3:5", "br")
    assert not wants("tls", "127.0.0.1:5", "gzip")
    assert not wants("unix", "", "gzip")
    for size in (20_000, 500_000):
        assert zlib.decompress(await _gzip(b"x" * size), 31) == b"x" * size
