"""Requests that are wrong, hostile, slow or cut off."""

import asyncio
import json
import logging
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wherry.clock import machine
from wherry.wire.http import Request, Response
from wherry.wire.server import Limits, Server

QUICK = Limits(idle_s=0.2, head_s=0.2, body_s=0.2, write_s=0.4, half_close_s=0.2, linger_s=0.2)


async def sized(request: Request) -> Response:
    """Say how much came."""
    return Response.text(f"{request.method} {len(await request.body(limit=1 << 20))}")


def request_of(*fields: str, line: str = "POST / HTTP/1.1", body: bytes = b"") -> bytes:
    """Write a request with these fields, as they are."""
    return "\r\n".join((line, *fields, "", "")).encode("latin-1") + body


REFUSED = {
    "both lengths": (request_of("Host: x", "Content-Length: 3", "Transfer-Encoding: chunked", body=b"0\r\n\r\n"), 400),
    "both lengths, other order": (
        request_of("Host: x", "Transfer-Encoding: chunked", "Content-Length: 3", body=b"0\r\n\r\n"),
        400,
    ),
    "two lengths": (request_of("Host: x", "Content-Length: 3", "Content-Length: 4", body=b"abcd"), 400),
    "the same length twice": (request_of("Host: x", "Content-Length: 3", "Content-Length: 3", body=b"abc"), 400),
    "a list of lengths": (request_of("Host: x", "Content-Length: 3, 3", body=b"abc"), 400),
    "a signed length": (request_of("Host: x", "Content-Length: +3", body=b"abc"), 400),
    "a negative length": (request_of("Host: x", "Content-Length: -3", body=b"abc"), 400),
    "a hexadecimal length": (request_of("Host: x", "Content-Length: 0x3", body=b"abc"), 400),
    "a length beyond 64 bits": (request_of("Host: x", "Content-Length: 99999999999999999999", body=b"abc"), 400),
    "an empty length": (request_of("Host: x", "Content-Length: ", body=b"abc"), 400),
    "another encoding": (request_of("Host: x", "Transfer-Encoding: gzip, chunked", body=b"0\r\n\r\n"), 400),
    "identity encoding": (request_of("Host: x", "Transfer-Encoding: identity", body=b"abc"), 400),
    "an encoding that is nearly chunked": (
        request_of("Host: x", "Transfer-Encoding: xchunked", body=b"0\r\n\r\n"),
        400,
    ),
    "two encodings": (
        request_of("Host: x", "Transfer-Encoding: chunked", "Transfer-Encoding: chunked", body=b"0\r\n\r\n"),
        400,
    ),
    "chunked on 1.0": (
        request_of("Host: x", "Transfer-Encoding: chunked", line="POST / HTTP/1.0", body=b"0\r\n\r\n"),
        400,
    ),
    "a folded field": (request_of("Host: x", "X-A: one", " two"), 400),
    "a folded first field": (request_of(" Host: x"), 400),
    "a space before the colon": (request_of("Host: x", "Content-Length : 3", body=b"abc"), 400),
    "a field without a name": (request_of("Host: x", ": value"), 400),
    "a field without a colon": (request_of("Host: x", "nonsense"), 400),
    "a NUL in a field": (request_of("Host: x", "X-A: a\0b"), 400),
    "a bare CR in a field": (request_of("Host: x", "X-A: a\rb"), 400),
    "a bare LF as line end": (b"GET / HTTP/1.1\nHost: x\n\n", 400),
    "no host": (request_of("X-A: b", line="GET / HTTP/1.1"), 400),
    "two hosts": (request_of("Host: x", "Host: y", line="GET / HTTP/1.1"), 400),
    "HTTP/2 with prior knowledge": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", None),
    "a TLS hello on a plain port": (bytes.fromhex("16030100c8010000c40303") + b"\0" * 200, 400),
    "no version": (b"GET /\r\n\r\n", None),
    "a version from the future": (request_of("Host: x", line="GET / HTTP/1.2"), None),
    "a made-up method": (request_of("Host: x", line="BREW / HTTP/1.1"), 400),
    "a method in lower case": (request_of("Host: x", line="get / HTTP/1.1"), 400),
    "a space in the target": (request_of("Host: x", line="GET /a b HTTP/1.1"), 400),
    "a target that is no path": (request_of("Host: x", line="GET a HTTP/1.1"), 400),
    "a target with escapes that are no UTF-8": (request_of("Host: x", line="GET /%ff HTTP/1.1"), 400),
    "a target with NUL": (request_of("Host: x", line="GET /%00 HTTP/1.1"), 400),
    "CONNECT": (request_of("Host: x", line="CONNECT x:1 HTTP/1.1"), 405),
    "a head that is too large": (request_of("Host: x", "X-A: " + "a" * 70_000), 431),
    "too many fields": (request_of("Host: x", *(f"X-{each}: a" for each in range(200))), 431),
    "a target that is too long": (request_of("Host: x", line=f"GET /{'a' * 70_000} HTTP/1.1"), 414),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_a_wrong_request_is_refused_in_a_small_envelope(
    serve: Any, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[Request] = []

    async def handle(request: Request) -> Response:
        seen.append(request)
        return await sized(request)

    data, expected = REFUSED[name]
    house = await serve(handle)
    talk = await house.talk()
    await talk.send(data)
    status, fields, body = await talk.answer()
    assert status == expected or (expected is None and status in (400, 505))
    assert fields["connection"] == "close"
    assert json.loads(body)["message"]
    assert b"Traceback" not in body
    assert await talk.closed()
    assert seen == []
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


BAD_CHUNKS = {
    "no number": b"zz\r\nabc\r\n0\r\n\r\n",
    "a negative size": b"-3\r\nabc\r\n0\r\n\r\n",
    "a size with a prefix": b"0x3\r\nabc\r\n0\r\n\r\n",
    "data longer than its size": b"2\r\nabc\r\n0\r\n\r\n",
    "a size of 17 digits": b"11111111111111111\r\nabc\r\n0\r\n\r\n",
    "a bare LF after the size": b"3\nabc\r\n0\r\n\r\n",
    "a space after the size": b"3 \r\nabc\r\n0\r\n\r\n",
    "trailers without end": b"0\r\n" + b"X-A: " + b"a" * 70_000 + b"\r\n" + b"X-B: c\r\n\r\n",
}


@pytest.mark.parametrize("name", BAD_CHUNKS)
async def test_a_wrong_chunk_ends_the_body_with_an_error(serve: Any, name: str) -> None:
    house = await serve(sized)
    talk = await house.talk()
    await talk.send(request_of("Host: x", "Transfer-Encoding: chunked", body=BAD_CHUNKS[name]))
    await talk.send(request_of("Host: x", line="GET /smuggled HTTP/1.1"))
    status, fields, _ = await talk.answer()
    assert (status, fields["connection"]) == (400, "close")
    assert await talk.closed()


async def test_a_body_that_is_announced_too_large_is_refused_before_it_comes(serve: Any) -> None:
    house = await serve(sized)
    talk = await house.talk()
    await talk.send(request_of("Host: x", "Content-Length: 9000000000000"))
    assert (await talk.answer())[0] == 413
    assert await talk.closed()


async def test_a_refused_upload_still_reads_its_answer(serve: Any) -> None:
    """The rest of a large body is dropped for a moment: a reset would overtake the answer."""
    house = await serve(sized)

    async def body() -> AsyncIterator[bytes]:
        for _ in range(400):
            yield b"x" * 65536

    answer = await house.client.request("PUT", "/", body=body())
    assert answer.status == 413
    answer = await house.client.request("PUT", "/", headers={"Content-Length": str(400 * 65536)}, body=body())
    assert answer.status == 413


async def test_a_short_body_that_nobody_reads_is_dropped_and_the_connection_goes_on(serve: Any) -> None:
    async def handle(request: Request) -> Response:
        return Response.text(request.path)

    house = await serve(handle)
    talk = await house.talk()
    await talk.send(request_of("Host: x", "Content-Length: 100000", line="POST /one HTTP/1.1"))
    assert (await talk.answer())[2] == b"/one"
    await talk.send(b"x" * 100_000 + request_of("Host: x", line="GET /two HTTP/1.1"))
    assert (await talk.answer())[2] == b"/two"


async def test_an_idle_connection_is_closed(serve: Any) -> None:
    house = await serve(sized, limits=QUICK)
    talk = await house.talk()
    await talk.send(request_of("Host: x", line="GET / HTTP/1.1"))
    assert (await talk.answer())[0] == 200
    assert await talk.closed()


async def test_a_head_that_trickles_in_is_refused(serve: Any) -> None:
    house = await serve(sized, limits=QUICK)
    talk = await house.talk()

    async def trickle() -> None:
        await talk.send(b"GET / HTTP/1.1\r\n")
        while True:
            await talk.send(b"X-A: b\r\n")
            await machine.sleep(0.02)

    task = asyncio.create_task(trickle())
    try:
        assert (await talk.answer())[0] == 408
    finally:
        task.cancel()


async def test_a_body_that_stalls_is_an_error_in_the_handler(serve: Any) -> None:
    house = await serve(sized, limits=QUICK)
    talk = await house.talk()
    await talk.send(request_of("Host: x", "Content-Length: 10", body=b"abc"))
    status, fields, _ = await talk.answer()
    assert (status, fields["connection"]) == (504, "close")
    assert await talk.closed()


async def test_a_body_that_its_handler_ignores_does_not_hold_the_connection(serve: Any, eventually: Any) -> None:
    async def handle(request: Request) -> Response:
        return Response.text("ok")

    house = await serve(handle, limits=QUICK)
    talk = await house.talk()
    await talk.send(request_of("Host: x", "Content-Length: 10", body=b"abc"))
    assert (await talk.answer())[0] == 200
    assert await talk.closed()
    await eventually(lambda: house.server.connections == 0)


async def test_a_slow_handler_is_not_taken_for_a_stalled_body(serve: Any) -> None:
    async def handle(request: Request) -> Response:
        await machine.sleep(0.6)
        return await sized(request)

    house = await serve(handle, limits=QUICK)
    talk = await house.talk()
    await talk.send(request_of("Host: x", "Content-Length: 3", body=b"abc"))
    assert (await talk.answer())[2] == b"POST 3"


async def test_a_client_that_goes_cancels_a_watch(serve: Any) -> None:
    closed = asyncio.Event()

    async def pieces() -> AsyncIterator[bytes]:
        try:
            yield b"event"
            await machine.sleep(100)
        finally:
            closed.set()

    async def handle(request: Request) -> Response:
        return Response.stream(pieces())

    house = await serve(handle)
    answer = await house.client.request("GET", "/")
    async for piece in answer.chunks():
        assert piece == b"event"
        break
    await answer.close()
    async with machine.timeout(5):
        await closed.wait()


async def test_a_client_that_goes_cancels_a_handler_that_has_not_answered(serve: Any) -> None:
    started, cancelled = asyncio.Event(), asyncio.Event()

    async def handle(request: Request) -> Response:
        started.set()
        try:
            await machine.sleep(100)
        finally:
            cancelled.set()
        return Response()

    house = await serve(handle, limits=QUICK)
    talk = await house.talk()
    await talk.send(request_of("Host: x", line="GET / HTTP/1.1"))
    await started.wait()
    talk.close()
    async with machine.timeout(5):
        await cancelled.wait()


async def test_a_client_that_ends_its_side_still_gets_its_answer(serve: Any) -> None:
    async def handle(request: Request) -> Response:
        await machine.sleep(0.05)
        return await sized(request)

    house = await serve(handle)
    assert (await house.ask(request_of("Host: x", line="GET / HTTP/1.1"))).endswith(b"GET 0")


async def test_a_body_that_is_cut_off_is_an_error_in_the_handler(serve: Any) -> None:
    house = await serve(sized)
    assert (await house.ask(request_of("Host: x", "Content-Length: 10", body=b"abc"))).startswith(b"HTTP/1.1 400 ")


METHODS = st.sampled_from(("GET", "POST", "PUT", "DELETE"))
BODIES = st.binary(max_size=300)


@st.composite
def conversations(draw: st.DrawFn) -> tuple[bytes, list[str], list[int]]:
    """Make requests one behind the other, what their answers say, and where to cut them."""
    data = b""
    expected: list[str] = []
    for _ in range(draw(st.integers(1, 4))):
        method, body = draw(METHODS), draw(BODIES)
        fields = ["Host: x", *(f"X-{each}: {'v' * each}" for each in range(draw(st.integers(0, 3))))]
        if draw(st.booleans()):
            cuts = sorted(draw(st.lists(st.integers(0, len(body)), max_size=3)))
            pieces = [body[a:b] for a, b in zip([0, *cuts], [*cuts, len(body)], strict=True) if a < b]
            data += request_of(*fields, "Transfer-Encoding: chunked", line=f"{method} / HTTP/1.1")
            data += b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
        else:
            data += request_of(*fields, f"Content-Length: {len(body)}", line=f"{method} / HTTP/1.1", body=body)
        expected.append(f"{method} {len(body)}")
    return data, expected, sorted(draw(st.lists(st.integers(0, len(data)), max_size=6)))


async def converse(path: Path, data: bytes, cuts: list[int]) -> bytes:
    """Send `data` cut into pieces to a server of its own; return what it answers."""
    name = str(path / "fuzz.sock")
    async with Server(sized, limits=QUICK) as server:
        await server.start_unix(name)
        reader, writer = await asyncio.open_unix_connection(name)
        for start, stop in zip([0, *cuts], [*cuts, len(data)], strict=True):
            writer.write(data[start:stop])
            await machine.sleep(0)
            await machine.sleep(0)
        writer.write_eof()
        async with machine.timeout(5):
            answer = await reader.read()
        writer.close()
        return answer


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(conversation=conversations())
def test_where_a_request_is_cut_makes_no_difference(
    tmp_path: Path, conversation: tuple[bytes, list[str], list[int]]
) -> None:
    data, expected, cuts = conversation
    answer = asyncio.run(converse(tmp_path, data, cuts)).decode()
    assert re.findall(r"\r\n\r\n([A-Z]+ \d+)", answer) == expected


GARBAGE = st.one_of(
    st.binary(max_size=400),
    st.lists(
        st.sampled_from(
            (
                b"GET / HTTP/1.1\r\n", b"POST /a?b=%zz HTTP/1.1\r\n", b"Host: x\r\n", b"\r\n", b"\n", b"\r", b" ", b"\0",
                b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n", b"5\r\nhello\r\n", b"0\r\n\r\n", b"hello",
                b"Connection: Upgrade\r\nUpgrade: x\r\n", b"Connection: close\r\n", b"Expect: 100-continue\r\n", b"\xff",
                b"PRI * HTTP/2.0\r\n", b"CONNECT a:1 HTTP/1.1\r\n", b"OPTIONS * HTTP/1.1\r\n", b"GET http://h/p HTTP/1.1\r\n",
            )
        ),
        max_size=14,
    ).map(b"".join),
)  # fmt: skip


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=GARBAGE, cuts=st.lists(st.integers(0, 400), max_size=3))
def test_garbage_is_never_an_internal_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, data: bytes, cuts: list[int]
) -> None:
    caplog.clear()
    answer = asyncio.run(converse(tmp_path, data, sorted(min(cut, len(data)) for cut in cuts)))
    statuses = {int(each) for each in re.findall(rb"HTTP/1\.1 (\d{3}) ", answer)}
    assert statuses <= {100, 200, 400, 405, 408, 413, 414, 417, 431, 505}
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []
