"""Words that nobody should send: no 500, nothing written outside the store, one connection cannot hold the others."""

import asyncio
from pathlib import Path
from typing import Any

import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.registry.conftest import Served

from wherry.clock import VirtualClock, machine
from wherry.content.digests import digest_of
from wherry.content.local import LocalContent
from wherry.content.oci import OCI_INDEX, OCI_MANIFEST
from wherry.registry.admin import OPERATIONS, PREFIX
from wherry.registry.service import Registry
from wherry.wire.http import Request

NAMES = st.sampled_from(
    ("a", "a/b", "../x", "a/../b", "A", "a" * 300, "a//b", ".", "-", "a%00", "é", "_catalog", "a/_x")
)
DIGESTS = st.sampled_from(
    (digest_of(b"x"), "sha256:" + "A" * 64, "sha256:../../x", "sha512:00", "md5:00", ":", "sha256:" + "0" * 64)
)
REFERENCES = st.one_of(DIGESTS, st.sampled_from(("1", "-x", "x" * 129, "a b", "..")))
NUMBERS = st.sampled_from(("0", "-1", "9" * 30, "1e9", "", "x", "５"))
RANGES = st.sampled_from(
    (
        "bytes=0-",
        "bytes=-0",
        "bytes=5-1",
        "bytes=9999999999999999999-",
        "0-0",
        "bytes=0-0,2-3",
        "x",
        "5-3",
        "0-99999999999999999999",
    )
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.text(max_size=5) | DIGESTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(("schemaVersion", "mediaType", "config", "layers", "manifests", "digest", "size", "subject", "urls",
                         "annotations", "artifactType", "data", "name", "Statement", "settings", "scope", "bytes")),
        inner, max_size=4),
    max_leaves=8,
)  # fmt: skip
BODIES = st.one_of(st.binary(max_size=30), JSON.map(lambda value: _encode(value)))


def _encode(value: Any) -> bytes:
    import json

    return json.dumps(value).encode()


@st.composite
def requests(draw: st.DrawFn) -> tuple[str, str, list[tuple[str, str]], dict[str, str], bytes]:
    name, digest, reference = draw(NAMES), draw(DIGESTS), draw(REFERENCES)
    paths = [
        f"/v2/{name}/manifests/{reference}", f"/v2/{name}/blobs/{digest}", f"/v2/{name}/blobs/uploads/", "/v2/_catalog",
        f"/v2/{name}/blobs/uploads/{digest}", f"/v2/{name}/tags/list", f"/v2/{name}/referrers/{reference}", "/v2/token",
        *(PREFIX + one.path.replace("{name:path}", name).replace("{target:path}", name).replace("{scope:path}", name)
          .replace("{prefix:path}", name).replace("{person}", "p").replace("{policy}", "p").replace("{team}", "t")
          .replace("{id}", reference).replace("{hook}", "h") for one in OPERATIONS),
    ]  # fmt: skip
    method = draw(st.sampled_from(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "BREW")))
    query = draw(st.lists(st.one_of(
        st.tuples(st.sampled_from(("n", "before", "since")), NUMBERS),
        st.tuples(st.sampled_from(("digest", "mount", "last")), DIGESTS),
        st.tuples(st.sampled_from(("from", "tag", "scope", "artifactType")), NAMES)), max_size=3))  # fmt: skip
    headers = draw(st.fixed_dictionaries({}, optional={
        "Range": RANGES, "Content-Range": RANGES,
        "Content-Type": st.sampled_from((OCI_MANIFEST, OCI_INDEX, "application/vnd.x", ";")),
        "Accept": st.sampled_from(("*/*", OCI_INDEX, ",;q")),
        "Authorization": st.sampled_from(("Basic x", "Bearer a.b", "Basic", "Digest q", "Basic YTpi")),
    }))  # fmt: skip
    return method, draw(st.sampled_from(paths)), query, headers, draw(BODIES)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(asked=st.lists(requests(), min_size=1, max_size=5), trusted=st.booleans())
async def test_no_words_make_it_fail(asked: Any, trusted: bool, tmp_path: Path) -> None:
    clock = VirtualClock()
    content = LocalContent.open(tmp_path / "in" / "content", clock=clock)
    registry = Registry(content, tmp_path / "in" / "registry", clock=clock, trusted=lambda _: trusted, open=False)
    await registry.access.start()
    for method, path, query, headers, body in asked:
        answer = await registry.handle(Request.local(method, path, query, headers, body))
        assert answer.status < 500, (method, path, query, headers, body)
        if answer.status >= 400 and isinstance(answer.body, bytes) and answer.body:
            said = msgspec.json.decode(answer.body)
            assert said["errors"][0]["code"]
            assert said["errors"][0]["message"]
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
    await registry.close()
    await content.close()


async def test_silent_and_endless_clients_hold_up_nobody(served: Served) -> None:
    host, _, port = served.address.partition(":")
    idle = [await asyncio.open_connection(host, int(port)) for _ in range(200)]
    slow_reader, slow = await asyncio.open_connection(host, int(port))
    slow.write(b"PUT /v2/web/manifests/1 HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
    begun = machine.monotonic()
    answer = await served.tcp.request("GET", "/v2/_catalog")
    await answer.read()
    assert answer.status == 200
    assert machine.monotonic() - begun < 5
    large = await served.local.request(
        "PUT", "/v2/web/manifests/1", (), {"Content-Type": OCI_MANIFEST}, b" " * (4 * 1024 * 1024 + 1)
    )
    await large.read()
    assert large.status == 413
    for _, writer in (*idle, (slow_reader, slow)):
        writer.transport.abort()
