"""Who is at the other end, and who may connect at all."""

import asyncio
import os
import socket
import ssl
import stat
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from wherry.clock import machine
from wherry.errors import AlreadyExists, Invalid, Unavailable
from wherry.wire.client import Endpoint, HttpClient
from wherry.wire.http import Peer, Request, Response
from wherry.wire.server import Server


class Authority:
    """A CA for one test: writes a certificate and its key as files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "ca")])
        made = self._builder(self.name, self.key).add_extension(x509.BasicConstraints(True, None), critical=True)
        self.path = folder / "ca.pem"
        self.path.write_bytes(made.sign(self.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))

    def _builder(self, name: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        now = datetime.fromtimestamp(machine.now(), UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(self.name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(days=1))
        )

    def issue(self, common_name: str, organizations: tuple[str, ...] = ()) -> tuple[str, str]:
        """Issue a certificate for `common_name`, valid for 127.0.0.1 as a server too."""
        import ipaddress

        key = ec.generate_private_key(ec.SECP256R1())
        names = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, each) for each in organizations]
        subject = x509.Name([*names, x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
        alternative = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
        made = self._builder(subject, key).add_extension(alternative, critical=False).sign(self.key, hashes.SHA256())
        stem = common_name.replace(":", "-")
        cert, private = self.folder / f"{stem}.pem", self.folder / f"{stem}.key"
        cert.write_bytes(made.public_bytes(serialization.Encoding.PEM))
        private.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return str(cert), str(private)

    def server_context(self) -> ssl.SSLContext:
        """Make a server's context that asks for a client certificate and goes on without."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(self.path))
        context.load_cert_chain(*self.issue("server"))
        context.verify_mode = ssl.CERT_OPTIONAL
        return context

    def client_context(self, common_name: str = "", organizations: tuple[str, ...] = ()) -> ssl.SSLContext:
        """Make a client's context, with a certificate when it has a name."""
        context = ssl.create_default_context(cafile=str(self.path))
        if common_name:
            context.load_cert_chain(*self.issue(common_name, organizations))
        return context


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def keeping(peers: list[Peer]) -> Callable[[Request], object]:
    async def handle(request: Request) -> Response:
        peers.append(request.peer)
        return Response.text(str(len(await request.body(limit=1 << 30))))

    return handle


async def test_a_unix_peer_is_known_by_its_credentials(serve, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    peers: list[Peer] = []
    house = await serve(keeping(peers))
    await house.client.request("GET", "/")
    assert peers == [Peer("unix", uid=os.getuid(), gid=os.getgid(), pid=os.getpid())]


@pytest.mark.root
async def test_a_unix_peer_of_another_user_is_told_apart(tmp_path: Path) -> None:
    peers: list[Peer] = []
    async with Server(keeping(peers)) as server:  # type: ignore[arg-type]
        with socket.socketpair()[0]:
            path = f"/tmp/wire-test-{os.getpid()}.sock"
        await server.start_unix(path, mode=0o660, gid=65534)
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o660
        assert os.stat(path).st_gid == 65534
        ask = (
            "import os,socket,sys\n"
            "os.setgroups([]); os.setgid(int(sys.argv[2])); os.setuid(65533)\n"
            "s=socket.socket(socket.AF_UNIX); s.connect(sys.argv[1])\n"
            "s.sendall(b'GET / HTTP/1.1\\r\\nHost: x\\r\\nConnection: close\\r\\n\\r\\n'); s.recv(100)\n"
        )
        for gid, may in ((65534, True), (65532, False)):
            child = await asyncio.create_subprocess_exec(
                sys.executable, "-c", ask, path, str(gid), stderr=subprocess.DEVNULL
            )
            assert (await child.wait() == 0) is may
    assert [(peer.uid, peer.gid) for peer in peers] == [(65533, 65534)]
    assert not os.path.exists(path)


async def test_a_stale_socket_is_replaced_and_a_living_one_is_not(tmp_path: Path) -> None:
    path = str(tmp_path / "s.sock")
    left = socket.socket(socket.AF_UNIX)
    left.bind(path)
    left.close()
    async with Server(keeping([])) as server:  # type: ignore[arg-type]
        await server.start_unix(path)
        other = Server(keeping([]))  # type: ignore[arg-type]
        with pytest.raises(AlreadyExists, match=r"s\.sock"):
            await other.start_unix(path)
        await other.close(0)
    assert not os.path.exists(path)
    (tmp_path / "file").write_text("precious")
    other = Server(keeping([]))  # type: ignore[arg-type]
    with pytest.raises(Invalid, match="not a socket"):
        await other.start_unix(tmp_path / "file")
    with pytest.raises(Invalid, match="107 bytes"):
        await other.start_unix(tmp_path / ("x" * 120))
    await other.close(0)


async def test_tcp_ports(tmp_path: Path) -> None:
    peers: list[Peer] = []
    async with Server(keeping(peers)) as server:  # type: ignore[arg-type]
        host, port = await server.start_tcp("127.0.0.1", 0)
        assert (host, port > 0) == ("127.0.0.1", True)
        async with HttpClient(Endpoint.parse(f"http://127.0.0.1:{port}")) as client:
            assert (await client.request("GET", "/")).status == 200
        assert peers[0].kind == "tcp"
        assert peers[0].address.startswith("127.0.0.1:")
        with pytest.raises(AlreadyExists, match=str(port)):
            await server.start_tcp("127.0.0.1", port)
        with pytest.raises(Invalid, match=r"192\.0\.2\.1"):
            await server.start_tcp("192.0.2.1", 0)
        with pytest.raises(Invalid, match="not known"):
            await server.start_tcp("no such host.invalid", 0)
        assert (await server.start_tcp("192.0.2.1", 0, freebind=True))[0] == "192.0.2.1"


async def test_a_client_certificate_names_its_user(authority: Authority) -> None:
    peers: list[Peer] = []
    async with Server(keeping(peers)) as server:  # type: ignore[arg-type]
        _, port = await server.start_tcp("127.0.0.1", 0, ssl_context=authority.server_context())
        contexts = (
            authority.client_context("system:node:a", ("system:nodes", "extra")),
            authority.client_context(),
        )
        for context in contexts:
            async with HttpClient(Endpoint.parse(f"https://127.0.0.1:{port}", context)) as client:
                answer = await client.request("POST", "/", body=b"x" * 1_000_000)
                assert await answer.read() == b"1000000"
    first, second = peers
    assert (first.kind, first.common_name, first.organizations) == ("tls", "system:node:a", ("system:nodes", "extra"))
    assert x509.load_der_x509_certificate(first.certificate_der).subject
    assert (second.kind, second.common_name, second.organizations) == ("tls", "", ())
    assert second.certificate_der == b""


async def test_a_certificate_of_another_authority_is_refused(authority: Authority, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    stranger = Authority(tmp_path / "other").client_context("system:masters")
    stranger.load_verify_locations(str(authority.path))
    async with Server(keeping([])) as server:  # type: ignore[arg-type]
        _, port = await server.start_tcp("127.0.0.1", 0, ssl_context=authority.server_context())
        async with HttpClient(Endpoint.parse(f"https://127.0.0.1:{port}", stranger)) as client:
            with pytest.raises(Unavailable):
                await client.request("GET", "/")
        async with HttpClient(Endpoint.parse(f"https://127.0.0.1:{port}", ssl.create_default_context())) as client:
            with pytest.raises(Unavailable, match="certificate"):
                await client.request("GET", "/")


async def test_files_streams_and_upgrades_over_tls(authority: Authority, tmp_path: Path) -> None:
    data = os.urandom(3_000_000)
    (tmp_path / "blob").write_bytes(data)

    async def handle(request: Request) -> Response:
        if request.path == "/file":
            return Response.file(tmp_path / "blob")

        async def talk(stream) -> None:  # type: ignore[no-untyped-def]
            while piece := await stream.read():
                await stream.write(piece.upper())
                if piece.endswith(b"!"):
                    return

        return Response.upgrade({"Upgrade": "shout"}, talk)

    async with Server(handle) as server:
        _, port = await server.start_tcp("127.0.0.1", 0, ssl_context=authority.server_context())
        async with HttpClient(Endpoint.parse(f"https://127.0.0.1:{port}", authority.client_context())) as client:
            assert await (await client.request("GET", "/file")).read() == data
            _, stream = await client.upgrade("GET", "/", headers={"Upgrade": "shout"})
            await stream.write(b"hello")
            assert await stream.read() == b"HELLO"
            await stream.write(b"bye!")
            assert await stream.read() == b"BYE!"
            assert await stream.read() == b""


async def test_a_plain_request_to_a_tls_port_does_no_harm(
    authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    async with Server(keeping([])) as server:  # type: ignore[arg-type]
        _, port = await server.start_tcp("127.0.0.1", 0, ssl_context=authority.server_context())
        async with HttpClient(Endpoint.parse(f"http://127.0.0.1:{port}")) as client:
            with pytest.raises(Unavailable):
                await client.request("GET", "/")
        context = authority.client_context()
        async with HttpClient(Endpoint.parse(f"https://127.0.0.1:{port}", context)) as client:
            assert (await client.request("GET", "/")).status == 200
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []
