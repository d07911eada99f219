"""Pulls and pushes against a registry that misbehaves: broken connections, refusals, tokens, redirects, wrong bytes."""

import base64
import datetime
import ipaddress
import os
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from tests.content.images import FILE, Sample, sample, tar

from wherry.clock import VirtualClock
from wherry.content import remote as remote_module
from wherry.content.credentials import Credentials
from wherry.content.digests import digest_of
from wherry.content.local import LocalContent
from wherry.content.oci import OCI_INDEX, OCI_MANIFEST
from wherry.content.protocol import Digest
from wherry.content.push import push
from wherry.content.remote import Remote
from wherry.content.steps import Step
from wherry.content.transfer import pull
from wherry.errors import BadRequest, Damaged, Forbidden, NotFound, TooManyRequests, Unauthorized, Unavailable
from wherry.wire.http import Request, Response
from wherry.wire.server import Server

Twist = Callable[[Request, Response], Response]


class Odd:
    """A registry over a content store, read and written without a thought; `twist` changes its answers."""

    def __init__(self, content: LocalContent) -> None:
        self.content = content
        self.twist: Twist = lambda request, response: response
        self.seen: Counter[str] = Counter()
        self.ranges: list[str | None] = []
        self.authorizations: list[str | None] = []
        self.tags: dict[str, tuple[Digest, str]] = {}
        self.starts: list[int] = []
        self.cut_after = 0

    async def handle(self, request: Request) -> Response:
        kind = request.path.split("/")[-2]
        self.seen[f"{request.method} {kind}"] += 1
        self.authorizations.append(request.headers.get("authorization"))
        return self.twist(request, await self._plain(request, kind, request.path.rsplit("/", 1)[-1]))

    async def _plain(self, request: Request, kind: str, last: str) -> Response:
        if kind == "manifests" and request.method == "PUT":
            data = await request.body(1 << 20)
            self.tags[last] = ((await self.content.put(data)).digest, request.headers.get("content-type") or "")
            return Response(201)
        if kind == "manifests":
            digest, media_type = self.tags.get(last, (Digest(last), OCI_MANIFEST))
            if (digest not in (last,) and last not in self.tags) or await self.content.stat(digest) is None:
                return Response.json({"errors": [{"code": "MANIFEST_UNKNOWN", "message": "no such thing"}]}, 404)
            return Response(200, {"Content-Type": media_type}, await self.content.read(digest))
        if request.method == "POST":
            writer = await self.content.ingest(lease="")
            await writer.close()
            return Response(202, {"Location": f"/v2/web/blobs/uploads/{writer.id}?state={'x' * 20}"})
        if kind == "uploads":
            return await self._upload(request, last)
        self.ranges.append(request.headers.get("range"))
        if await self.content.stat(Digest(last)) is None:
            return Response(404)
        path = self.content.path(Digest(last))
        start = int((request.headers.get("range") or "bytes=0-")[6:-1])
        return Response.file(path, start, None, status=206 if start else 200)

    async def _upload(self, request: Request, id: str) -> Response:
        writer = await self.content.resume(id)
        self.starts.append(writer.offset)
        try:
            async for part in request.stream():
                await writer.write(part)
                if self.cut_after and writer.offset >= self.cut_after:
                    self.cut_after = 0
                    return Response(503)
            if request.method == "PUT":
                await writer.commit(Digest(request.first("digest") or ""))
                return Response(201)
        finally:
            await writer.close()
        said = {"Location": request.target, "Range": f"0-{max(0, writer.offset - 1)}"}
        return Response(204 if request.method == "GET" else 202, said)


@pytest.fixture
async def odd(tmp_path: Path, clock: VirtualClock, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Odd]:
    monkeypatch.setattr(remote_module, "BACK_OFF_S", 0.01)
    store = LocalContent.open(tmp_path / "far", clock=clock)
    yield Odd(store)
    await store.close()


@pytest.fixture
async def address(odd: Odd) -> AsyncIterator[str]:
    async with Server(odd.handle) as server:
        host, port = await server.start_tcp("127.0.0.1", 0)
        yield f"http://{host}:{port}"


@pytest.fixture
async def image(odd: Odd) -> Sample:
    made = await sample(odd.content, tar([("a", FILE, os.urandom(1_500_000))]), tar([("b", FILE, b"2")]))
    odd.tags["1"] = (made.digest, OCI_MANIFEST)
    return made


async def take(content: LocalContent, address: str, reference: str = "1", **more: object) -> Digest:
    lease = await content.lease(seconds=600)
    async with Remote(address, **more) as remote:  # type: ignore[arg-type]
        return (await pull(content, remote, "web", reference, lease=lease)).manifest


async def test_a_broken_blob_goes_on_where_it_stopped(
    odd: Odd, address: str, image: Sample, content: LocalContent
) -> None:
    async def cut(path: Path, start: int, count: int) -> AsyncIterator[bytes]:
        yield path.read_bytes()[start : start + count]
        raise ConnectionError("gone")

    def twist(request: Request, response: Response) -> Response:
        size = odd.content.path(image.layers[0]).stat().st_size
        start = int((request.headers.get("range") or "bytes=0-")[6:-1])
        if request.path.endswith(image.layers[0]) and start < 1_000_000:
            pieces = cut(odd.content.path(image.layers[0]), start, 600_000)
            return Response.stream(pieces, {"Content-Length": str(size - start)}, status=response.status)
        return response

    odd.twist = twist
    assert await take(content, address) == image.digest
    starts = [int(text[6:-1]) for text in odd.ranges if text]
    assert len(starts) >= 1
    assert starts == sorted(starts)
    assert starts[0] > 0
    assert await content.read(image.layers[0]) == await odd.content.read(image.layers[0])


async def test_a_registry_without_ranges_is_read_anew(
    odd: Odd, address: str, image: Sample, content: LocalContent
) -> None:
    broken: list[str] = []

    async def half(path: Path) -> AsyncIterator[bytes]:
        yield path.read_bytes()[:700_000]
        raise ConnectionError("gone")

    def twist(request: Request, response: Response) -> Response:
        if not request.path.endswith(image.layers[0]):
            return response
        path = odd.content.path(image.layers[0])
        if not broken:
            broken.append("once")
            return Response.stream(half(path), {"Content-Length": str(path.stat().st_size)})
        return Response.file(path)

    odd.twist = twist
    assert await take(content, address) == image.digest


async def test_refusals_for_now_are_tried_again_and_others_not(
    odd: Odd, address: str, image: Sample, content: LocalContent
) -> None:
    times: Counter[str] = Counter()

    def busy(request: Request, response: Response) -> Response:
        times[request.path] += 1
        if times[request.path] == 1:
            return Response(503)
        return Response(429, {"Retry-After": "0"}) if times[request.path] == 2 else response

    odd.twist = busy
    assert await take(content, address) == image.digest
    odd.twist = lambda request, response: Response(503)
    with pytest.raises(Unavailable, match=r"127\.0\.0\.1.*503"):
        await take(content, address)
    odd.twist = lambda request, response: Response(429, {"Retry-After": "0"})
    with pytest.raises(TooManyRequests):
        await take(content, address)
    for status, kind in ((403, Forbidden), (401, Unauthorized), (404, NotFound), (400, BadRequest)):
        odd.seen.clear()
        odd.twist = lambda request, response, status=status: Response.json(
            {"errors": [{"code": "CODE", "message": "its words"}]}, status
        )
        with pytest.raises(kind, match="CODE: its words"):
            await take(content, address)
        assert odd.seen.total() == 1
    with pytest.raises(Unavailable, match="cannot be reached"):
        await take(content, "http://127.0.0.1:1")


async def test_other_bytes_than_promised_are_never_kept(
    odd: Odd, address: str, image: Sample, content: LocalContent
) -> None:
    for change, words in (
        (lambda data: data[:-1] + b"!", "other bytes"),
        (lambda data: data + b"!", "more bytes"),
    ):

        def twist(request: Request, response: Response, change: Callable[[bytes], bytes] = change) -> Response:
            if request.path.endswith(image.layers[1]):
                return Response(200, {}, change(odd.content.path(image.layers[1]).read_bytes()))
            return response

        odd.twist = twist
        with pytest.raises(Damaged, match=words):
            await take(content, address)
        assert await content.stat(image.layers[1]) is None
        wrong = image.layers[1].replace(":", "")
        assert not [path for path in (content.root / "uploads").iterdir() if path.name.endswith(wrong)]
    odd.twist = lambda request, response: Response(200, {"Content-Type": OCI_MANIFEST}, b'{"schemaVersion":2}')
    with pytest.raises(Damaged, match="digest"):
        await take(content, address, digest_of(b"another manifest"))


async def test_a_token_is_asked_for_once_and_stays_with_its_registry(
    odd: Odd, address: str, image: Sample, content: LocalContent
) -> None:
    elsewhere: list[str | None] = []

    async def cdn(request: Request) -> Response:
        elsewhere.append(request.headers.get("authorization"))
        return Response.file(odd.content.path(Digest(request.path[1:])))

    async with Server(cdn) as server:
        host, port = await server.start_tcp("127.0.0.1", 0)

        def twist(request: Request, response: Response) -> Response:
            if request.path.endswith("/token"):
                basic = base64.b64encode(b"me:secret").decode()
                assert request.headers.get("authorization") == f"Basic {basic}"
                assert ("scope", "repository:web:pull") in request.query
                return Response.json({"access_token": "abc"})
            if request.headers.get("authorization") != "Bearer abc":
                realm = f'Bearer realm="{address}/auth/token",service="odd",scope="repository:web:pull"'
                return Response(401, {"WWW-Authenticate": realm})
            if "/blobs/" in request.path and request.method == "GET":
                return Response(307, {"Location": f"http://{host}:{port}/{request.path.rsplit('/', 1)[-1]}"})
            return response

        odd.twist = twist
        got = await take(content, address, credentials=Credentials("me", "secret"))
        assert got == image.digest
        assert odd.seen["GET auth"] == 1
        assert elsewhere == [None] * 3
        odd.twist = lambda request, response: Response(401, {"WWW-Authenticate": 'Bearer realm="ftp://evil/"'})
        with pytest.raises(Unauthorized, match="nothing is sent there"):
            await take(content, address, "2", credentials=Credentials("me", "secret"))
        odd.twist = lambda request, response: Response(307, {"Location": str(request.target)})
        with pytest.raises(Unavailable, match="redirects more than"):
            await take(content, address)


async def test_of_an_index_our_platform_is_pulled(odd: Odd, address: str, image: Sample, content: LocalContent) -> None:
    def child(digest: str, architecture: str) -> dict[str, object]:
        platform = {"os": "linux", "architecture": architecture}
        return {"mediaType": OCI_MANIFEST, "digest": digest, "size": 1, "platform": platform}

    absent = "sha256:" + "0" * 64
    here = {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine)
    rows = [child(absent, "s390x"), child(image.digest, here)]
    index = await odd.content.put(msgspec.json.encode({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": rows}))
    odd.tags["all"] = (index.digest, OCI_INDEX)
    lease = await content.lease(seconds=60)
    async with Remote(address) as remote:
        pulled = await pull(content, remote, "web", "all", lease=lease)
        assert (pulled.root, pulled.manifest) == (index.digest, image.digest)
        await content.hold("image/x", pulled.root)
        await content.end_lease(lease)
        assert await content.collect() == []
        with pytest.raises(NotFound, match="neither here nor there"):
            await push(content, remote, "other", "all", pulled.root)


async def test_a_push_is_tried_again_and_sends_each_blob_once(odd: Odd, address: str, content: LocalContent) -> None:
    image = await sample(content, tar([("a", FILE, os.urandom(600_000))]))
    steps: list[Step] = []
    failed: list[str] = []

    def twist(request: Request, response: Response) -> Response:
        if request.method == "PUT" and not failed:
            failed.append(request.path)
            return Response(500)
        return response

    odd.twist = twist
    async with Remote(address) as remote:
        sent = await push(content, remote, "web", "new", image.digest, progress=steps.append)
    assert odd.tags["new"][0] == image.digest
    assert sent > 600_000
    assert Counter(step.action for step in steps)["done"] == 2
    async with Remote(address) as remote:
        await push(content, remote, "web", "newer", image.digest, progress=steps.append)
    assert Counter(step.action for step in steps)["exists"] == 2


def test_secrets_are_in_no_representation() -> None:
    assert "hunter2" not in repr(Credentials("me", "hunter2"))
    made = Credentials.of({"auth": base64.b64encode(b"me:p:w").decode()})
    assert made is not None
    assert (made.username, made.password) == ("me", "p:w")
    assert Credentials.of({}) is None
    with pytest.raises(BadRequest):
        Credentials.of({"auth": "%%%"})


async def test_tls_goes_by_its_own_client_and_checks_the_certificate(
    odd: Odd, image: Sample, content: LocalContent, tmp_path: Path
) -> None:
    ours, theirs = _certificate(tmp_path)
    async with Server(odd.handle) as server:
        host, port = await server.start_tcp("127.0.0.1", 0, ours)
        assert await take(content, f"https://{host}:{port}", tls=theirs) == image.digest
        with pytest.raises(Unavailable, match=r"(?i)certificate"):
            await take(content, f"https://{host}:{port}")
        odd.twist = lambda request, response: Response(307, {"Location": f"http://{host}:{port}/plain"})
        with pytest.raises(Unavailable, match="not followed"):
            await take(content, f"https://{host}:{port}", "2", tls=theirs)
        odd.twist = lambda request, response: response
        more = await sample(content, tar([("c", FILE, os.urandom(2_000_000))]))
        async with Remote(f"https://{host}:{port}", tls=theirs) as remote:
            await push(content, remote, "web", "tls", more.digest)
    assert await odd.content.read(more.layers[0]) == await content.read(more.layers[0])


def _certificate(folder: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A server's context and a client's that trusts it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "odd")])
    start = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(start)
        .not_valid_after(start + datetime.timedelta(days=36500))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .sign(key, hashes.SHA256())
    )
    plain, pkcs8 = serialization.NoEncryption(), serialization.PrivateFormat.PKCS8
    pem = folder / "pem"
    data = made.public_bytes(serialization.Encoding.PEM)
    pem.write_bytes(data + key.private_bytes(serialization.Encoding.PEM, pkcs8, plain))
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(pem)
    return server, ssl.create_default_context(cadata=data.decode())
