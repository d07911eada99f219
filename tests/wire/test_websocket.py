"""WebSocket: our two sides with each other, and with a foreign implementation."""

import asyncio
import os
from typing import Any

import pytest
import websockets
from hypothesis import given, settings
from hypothesis import strategies as st

from wherry.errors import BadRequest, Forbidden, NotFound, Unavailable
from wherry.wire import websocket
from wherry.wire.client import Endpoint, HttpClient
from wherry.wire.frames import Frame, FrameReader, Opcode, Violation, close_payload, encode, mask, parse_close
from wherry.wire.http import Request, Response
from wherry.wire.websocket import WebSocket

PROTOCOLS = ("v5.channel.k8s.io", "v4.channel.k8s.io")


async def echo(ws: WebSocket) -> None:
    """Send back each message as it came."""
    while (message := await ws.recv()) is not None:
        await ws.send(message)
        if message == "end":
            return


async def handle(request: Request) -> Response:
    """Serve an echo, or refuse."""
    if request.path == "/refused":
        raise Forbidden("you may not exec here")
    if request.path == "/plain":
        return Response.text("no websocket")
    limit_bytes = 1000 if request.path == "/small" else 1 << 20
    return websocket.accept(request, PROTOCOLS if request.path == "/k8s" else (), echo, limit_bytes=limit_bytes)


# frames -----------------------------------------------------------------------------------------------------------------
@given(data=st.binary(max_size=2000), key=st.binary(min_size=4, max_size=4))
def test_masking_is_the_xor_of_the_standard_and_its_own_inverse(data: bytes, key: bytes) -> None:
    assert mask(data, key) == bytes(byte ^ key[at % 4] for at, byte in enumerate(data))
    assert mask(mask(data, key), key) == data


@settings(max_examples=150, deadline=None)
@given(
    payloads=st.lists(
        st.tuples(st.sampled_from((Opcode.TEXT, Opcode.BINARY)), st.integers(0, 70_000), st.booleans()), max_size=4
    ),
    masked=st.booleans(),
    cuts=st.lists(st.integers(0, 1 << 18), max_size=6),
)
def test_frames_are_read_as_they_were_written_however_they_are_cut(
    payloads: list[tuple[Opcode, int, bool]], masked: bool, cuts: list[int]
) -> None:
    frames = [Frame(opcode, b"x" * size, final) for opcode, size, final in payloads]
    data = b"".join(
        encode(each.opcode, each.payload, final=each.final, key=os.urandom(4) if masked else None) for each in frames
    )
    reader = FrameReader(masked=masked, limit_bytes=1 << 20)
    got: list[Frame] = []
    ends = sorted(min(cut, len(data)) for cut in cuts)
    for start, stop in zip([0, *ends], [*ends, len(data)], strict=True):
        got.extend(reader.feed(data[start:stop]))
    assert got == frames


@given(data=st.binary(max_size=200), masked=st.booleans())
def test_garbage_is_a_violation_or_not_whole(data: bytes, masked: bool) -> None:
    codes: set[int] = set()
    try:
        FrameReader(masked=masked, limit_bytes=1000).feed(data)
    except Violation as violation:
        codes.add(violation.code)
    assert codes <= {1002, 1009}


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (bytes((0xC1, 0x80)), 1002),  # a reserved bit
        (bytes((0x83, 0x80)), 1002),  # opcode 3
        (bytes((0x81, 0x01)), 1002),  # not masked
        (bytes((0x09, 0x80)), 1002),  # a fragmented ping
        (bytes((0x89, 0xFE, 0, 126)), 1002),  # a ping of 126 bytes
        (bytes((0x81, 0xFE, 0, 5)), 1002),  # a short length in two bytes
        (bytes((0x81, 0xFF, 0, 0, 0, 0, 0, 0, 0xFF, 0xFF)), 1002),  # and in eight
        (bytes((0x81, 0xFF, 0x80, 0, 0, 0, 0, 0, 0, 0)), 1002),  # a negative length
        (bytes((0x82, 0xFF, 0, 0, 0, 0, 0, 1, 0, 0)), 1009),  # larger than the limit
    ],
)
def test_violations(data: bytes, code: int) -> None:
    with pytest.raises(Violation) as caught:
        FrameReader(masked=True, limit_bytes=1000).feed(data)
    assert caught.value.code == code


def test_close_payloads() -> None:
    assert parse_close(b"") == (1005, "")
    assert parse_close(close_payload(1000, "é" * 100)) == (1000, "é" * 61)
    for payload in (b"\x03", b"\x03\xe7", b"\x03\xed", b"\xff\xff", b"\x03\xe8\xff"):
        with pytest.raises(Violation):
            parse_close(payload)


# both sides ours --------------------------------------------------------------------------------------------------------
async def test_messages_both_ways(serve: Any) -> None:
    house = await serve(handle)
    ws = await websocket.connect(house.client, "/k8s", ["other", PROTOCOLS[1], PROTOCOLS[0]])
    assert ws.protocol == PROTOCOLS[0]
    for message in ("", "tëxt", b"", b"\0" * 125, b"x" * 126, os.urandom(70_000), "é" * 40_000):
        await ws.send(message)
        assert await ws.recv() == message
    await ws.ping(b"?")
    await ws.send("end")
    assert await ws.recv() == "end"
    assert await ws.recv() is None
    assert ws.close_code == 1000
    await ws.close()
    with pytest.raises(ConnectionResetError):
        await ws.send("late")


async def test_refusals_are_told(serve: Any) -> None:
    house = await serve(handle)
    with pytest.raises(Forbidden, match="you may not exec here"):
        await websocket.connect(house.client, "/refused")
    with pytest.raises(Unavailable, match="no WebSocket"):
        await websocket.connect(house.client, "/plain")
    with pytest.raises(BadRequest, match=r"in common.*v9"):
        await websocket.connect(house.client, "/k8s", ["v9"])
    with pytest.raises(BadRequest):
        await websocket.connect(house.client, "/k8s")


async def test_wrong_handshakes(serve: Any) -> None:
    house = await serve(handle)
    good = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
    }
    answer, stream = await house.client.upgrade("GET", "/", headers=good)
    assert answer.headers["sec-websocket-accept"] == "ICX+Yqv66kxgM0FcWaLWlFLwTAI="
    stream.close()
    for changed, status in (
        ({"Upgrade": "tea"}, 400),
        ({"Sec-WebSocket-Version": "8"}, 426),
        ({"Sec-WebSocket-Key": "short"}, 400),
        ({"Sec-WebSocket-Key": "é"}, 400),
    ):
        answer, _ = await house.client.upgrade("GET", "/", headers=good | changed)
        assert answer.status == status
        await answer.close()
    assert (await house.client.request("GET", "/")).status == 400
    answer, _ = await house.client.upgrade("POST", "/", headers=good)
    assert answer.status == 400


@pytest.mark.parametrize(
    ("frames", "code"),
    [
        ([(Opcode.TEXT, b"\xff\xfe", True)], 1007),
        ([(Opcode.TEXT, b"\xc3", False), (Opcode.CONTINUATION, b"(", True)], 1007),
        ([(Opcode.CONTINUATION, b"x", True)], 1002),
        ([(Opcode.TEXT, b"x", False), (Opcode.TEXT, b"y", True)], 1002),
        ([(Opcode.BINARY, b"x" * 600_000, False), (Opcode.CONTINUATION, b"x" * 600_000, True)], 1009),
        ([(Opcode.BINARY, b"", False), *[(Opcode.CONTINUATION, b"", False)] * 30_000], 1009),
        ([(Opcode.CLOSE, b"\x03", True)], 1002),
    ],
)
async def test_a_client_that_breaks_the_protocol_is_closed_with_a_code(
    serve: Any, frames: list[tuple[Opcode, bytes, bool]], code: int
) -> None:
    house = await serve(handle)
    ws = await websocket.connect(house.client, "/")
    data = b"".join(encode(opcode, payload, final=final, key=b"abcd") for opcode, payload, final in frames)
    await ws._stream.write(data)  # pyright: ignore[reportPrivateUsage]
    assert await ws.recv() is None
    assert ws.close_code == code


async def test_fragments_with_a_ping_between_them(serve: Any) -> None:
    house = await serve(handle)
    ws = await websocket.connect(house.client, "/")
    for opcode, payload, final in (
        (Opcode.TEXT, b"a\xc3", False),
        (Opcode.PING, b"?", True),
        (Opcode.CONTINUATION, b"\xa9", False),
        (Opcode.CONTINUATION, b"z", True),
    ):
        await ws._stream.write(encode(opcode, payload, final=final, key=b"abcd"))  # pyright: ignore[reportPrivateUsage]
    assert await ws.recv() == "aéz"
    await ws.close()


async def test_a_broken_connection_is_1006(serve: Any) -> None:
    house = await serve(handle)
    ws = await websocket.connect(house.client, "/")
    await house.server.close(0)
    assert await ws.recv() is None
    assert ws.close_code in (1001, 1006)


# a foreign peer ---------------------------------------------------------------------------------------------------------
async def test_a_foreign_client(serve: Any) -> None:
    house = await serve(handle)
    async with websockets.unix_connect(
        house.path, "ws://localhost/k8s", subprotocols=[websockets.Subprotocol(PROTOCOLS[1])], max_size=None
    ) as ws:
        assert ws.subprotocol == PROTOCOLS[1]
        for message in ("tëxt", b"", os.urandom(200_000), "x" * 65_536):
            await ws.send(message)
            assert await ws.recv() == message
        await ws.send(["frag", "ment", "ed"])
        assert await ws.recv() == "fragmented"
        latency = await ws.ping()
        await ws.send("more")
        assert await ws.recv() == "more"
        assert await latency >= 0
        await ws.send("end")
        assert await ws.recv() == "end"
        await ws.wait_closed()
        assert ws.close_code == 1000
    async with websockets.unix_connect(house.path, "ws://localhost/") as ws:
        await ws.close(4321, "because")
    async with websockets.unix_connect(house.path, "ws://localhost/small") as ws:
        await ws.send(b"x" * 1001)
        with pytest.raises(websockets.ConnectionClosedError):
            await ws.recv()
        assert ws.close_code == 1009


async def test_a_foreign_server(tmp_path: Any) -> None:
    async def serve(ws: websockets.ServerConnection) -> None:
        await ws.ping()
        async for message in ws:
            await ws.send(message)
            if message == "end":
                await ws.close(3000, "as you wish")

    path = str(tmp_path / "ws.sock")
    async with (
        websockets.unix_serve(serve, path, subprotocols=[websockets.Subprotocol("v2"), websockets.Subprotocol("v1")]),
        HttpClient(Endpoint.parse(f"unix:{path}")) as client,
    ):
        ws = await websocket.connect(client, "/a b", ["v1"], query=[("q", "1 2")])
        assert ws.protocol == "v1"
        for message in ("tëxt", b"", os.urandom(200_000), b"x" * 126):
            await ws.send(message)
            assert await ws.recv() == message
        await ws.send("end")
        assert await ws.recv() == "end"
        assert await ws.recv() is None
        assert (ws.close_code, ws.close_reason) == (3000, "as you wish")
        await ws.close()
        ws = await websocket.connect(client, "/", ["v1"])
        await ws.close(1000, "done")
        assert ws.close_code == 1000


async def test_a_foreign_server_that_refuses(tmp_path: Any) -> None:
    def refuse(connection: websockets.ServerConnection, request: Any) -> Any:
        return connection.respond(404, "no such pod\n")

    async def serve(ws: websockets.ServerConnection) -> None:
        await asyncio.Future()

    path = str(tmp_path / "ws.sock")
    async with (
        websockets.unix_serve(serve, path, process_request=refuse),
        HttpClient(Endpoint.parse(f"unix:{path}")) as client,
    ):
        with pytest.raises(NotFound, match="no such pod"):
            await websocket.connect(client, "/")
