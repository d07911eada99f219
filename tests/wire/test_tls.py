"""TLS whose two directions end apart, as Docker's clients use it; by Python's own TLS and a client of another kind."""

import asyncio
import os
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.wire.test_peers import Authority

from wherry.wire.client import Endpoint, HttpClient
from wherry.wire.http import Request, Response
from wherry.wire.hub import Limits
from wherry.wire.server import Server

HEAD = b"POST /shout HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


def required(authority: Authority) -> ssl.SSLContext:
    context = authority.server_context()
    context.verify_mode = ssl.CERT_REQUIRED
    return context


def trusting(authority: Authority) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(authority.path))
    context.load_cert_chain(*authority.issue("somebody"))
    return context


async def handle(request: Request) -> Response:
    if request.path == "/big":
        return Response(body=b"x" * 5_000_000)
    if request.path == "/body":
        return Response.text(f"{len(await request.body(limit=1 << 30))} from {request.peer.common_name}")

    async def shout(stream) -> None:  # type: ignore[no-untyped-def]
        """All that comes, only once it has ended: who cannot end without closing gets nothing."""
        said = b""
        while piece := await stream.read():
            said += piece
        await stream.write(said.upper() + b"!")

    return Response.upgrade({"Upgrade": "tcp"}, shout)


@pytest.fixture
async def port(authority: Authority) -> AsyncIterator[int]:
    async with Server(handle, limits=Limits(handshake_s=0.5)) as server:
        yield (await server.start_tcp("127.0.0.1", 0, ssl_context=required(authority), half_close=True))[1]


class Talk:
    """A blocking TLS client on a socket of its own, which sends what OpenSSL makes and no more."""

    def __init__(self, port: int, context: ssl.SSLContext) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port), 10)
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_hostname="127.0.0.1")
        self.again(self.tls.do_handshake)

    def again(self, step):  # type: ignore[no-untyped-def]
        while True:
            try:
                done = step()
                self.sock.sendall(self.outgoing.read())
                return done
            except ssl.SSLWantReadError:
                self.sock.sendall(self.outgoing.read())
                data = self.sock.recv(65536)
                if not data:
                    raise ConnectionError("closed") from None
                self.incoming.write(data)

    def end(self) -> None:
        """close_notify, and the connection stays."""
        with pytest.raises(ssl.SSLWantReadError):
            self.tls.unwrap()
        self.sock.sendall(self.outgoing.read())

    def rest(self) -> bytes:
        """All that comes until the other side says that it has ended."""
        got = b""
        while True:
            try:
                piece = self.again(lambda: self.tls.read(65536))
            except ssl.SSLZeroReturnError:  # both sides have ended; b"" when it is the other alone
                piece = b""
            if not piece:
                return got
            got += piece


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_a_client_that_has_said_all_still_hears_all(
    authority: Authority, port: int, version: ssl.TLSVersion
) -> None:
    def walk() -> bytes:
        context = trusting(authority)
        context.minimum_version = context.maximum_version = version
        talk = Talk(port, context)
        with talk.sock:
            talk.again(lambda: talk.tls.write(HEAD + b"all " * 50_000))
            talk.end()
            return talk.rest()

    head, _, body = (await asyncio.to_thread(walk)).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 101")
    assert body == b"ALL " * 50_000 + b"!"


async def test_requests_bodies_and_slow_readers(authority: Authority, port: int) -> None:
    async with HttpClient(Endpoint.parse(f"https://127.0.0.1:{port}", trusting(authority))) as client:
        for _ in range(3):
            answer = await client.request("POST", "/body", body=os.urandom(3_000_000))
            assert await answer.read() == b"3000000 from somebody"
        assert len(await (await client.request("GET", "/big")).read()) == 5_000_000

    def slow() -> int:
        talk = Talk(port, trusting(authority))
        with talk.sock:
            talk.again(lambda: talk.tls.write(b"GET /big HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"))
            talk.sock.recv(1, socket.MSG_PEEK)  # the answer is on its way, and more of it than the kernel holds
            return len(talk.rest().partition(b"\r\n\r\n")[2])

    assert await asyncio.to_thread(slow) == 5_000_000


async def test_the_stock_client_of_openssl_is_answered(authority: Authority, port: int, tmp_path: Path) -> None:
    certificate, key = authority.issue("curl")
    words = ["curl", "--silent", "--cacert", str(authority.path), "--cert", certificate, "--key", key]
    done = await asyncio.to_thread(
        subprocess.run, [*words, "--data", "a" * 1000, f"https://127.0.0.1:{port}/body"], capture_output=True,
        text=True, timeout=20, check=False,
    )  # fmt: skip
    assert done.stdout == "1000 from curl"


async def test_who_shows_no_certificate_is_refused_and_plain_text_is_told_why(authority: Authority, port: int) -> None:
    bare = ssl.create_default_context(cafile=str(authority.path))

    def refused(context: ssl.SSLContext) -> None:
        talk = Talk(port, context)
        with talk.sock:
            talk.again(lambda: talk.tls.write(b"GET /body HTTP/1.1\r\nHost: x\r\n\r\n"))
            talk.rest()

    with pytest.raises(ssl.SSLError, match=r"certificate required|handshake failure"):
        await asyncio.to_thread(refused, bare)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /_ping HTTP/1.1\r\nHost: x\r\n\r\n")
    answer = await reader.read()
    writer.close()
    assert answer.startswith(b"HTTP/1.0 400")
    assert b"Client sent an HTTP request to an HTTPS server" in answer
    for rubbish in (b"\x16\x03\x01\x00\x05hello", b"\x16" + bytes(200)):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(rubbish)
        await reader.read()  # an alert, or nothing; then the end
        writer.close()


async def test_who_says_nothing_is_let_go(port: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    assert await reader.read() == b""
    writer.close()


async def test_a_client_that_vanishes_ends_what_runs_for_it(authority: Authority) -> None:
    ended = asyncio.Event()

    async def forever(request: Request) -> Response:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        raise AssertionError("never")

    async with Server(forever, limits=Limits(half_close_s=0.2)) as server:
        _, port = await server.start_tcp("127.0.0.1", 0, ssl_context=required(authority), half_close=True)
        context = trusting(authority)
        _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        await writer.drain()
        writer.close()
        await asyncio.wait_for(ended.wait(), 10)
