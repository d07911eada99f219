"""The rarer corners of distribution-spec 1.1 and of its draft."""

from typing import Any

import msgspec
from tests.content.images import FILE, tar
from tests.registry.conftest import Served
from tests.registry.test_protocol import error_of, push_blob, push_image

from wherry.content.digests import digest_of
from wherry.content.oci import DOCKER_INDEX, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST
from wherry.registry.access import Caller
from wherry.registry.rules import RepositorySettings, TagPatterns


async def put(served: Served, path: str, kind: str, document: Any, query: Any = ()) -> Any:
    data = document if isinstance(document, bytes) else msgspec.json.encode(document)
    return await served.local.request("PUT", path, query, {"Content-Type": kind}, data)


async def configure(served: Served, name: str, **settings: Any) -> None:
    event = served.registry.event(Caller("test"), f"repository {name}")
    await served.registry.metadata.configure(name, RepositorySettings(**settings), "", event)


async def test_a_manifest_by_digest_gets_several_tags(served: Served) -> None:
    _, manifest = await push_image(served.local, "web", "1", tar([("a", FILE, b"1")]))
    for algorithm in ("sha256", "sha512"):
        digest = digest_of(manifest, algorithm)
        done = await put(
            served, f"/v2/web/manifests/{digest}", OCI_MANIFEST, manifest, [("tag", f"{algorithm}-a"), ("tag", "b")]
        )
        await done.read()
        assert (done.status, done.headers["docker-content-digest"]) == (201, digest)
        got = await served.tcp.request("GET", "/v2/web/manifests/b")
        assert (await got.read(), got.headers["docker-content-digest"]) == (manifest, digest)
    bad = await put(served, f"/v2/web/manifests/{digest}", OCI_MANIFEST, manifest, [("tag", "no way")])
    assert (await error_of(bad))[0] == 400


async def test_a_sparse_image_is_taken_where_the_settings_say_so(served: Served) -> None:
    config = await push_blob(served.local, "web", b"{}")
    absent = {"mediaType": "application/octet-stream", "digest": digest_of(b"absent"), "size": 6}
    document = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {"mediaType": "application/x", "digest": config, "size": 2},
        "layers": [absent],
    }
    refused = await put(served, "/v2/web/manifests/1", OCI_MANIFEST, document)
    assert await error_of(refused) == (404, "MANIFEST_BLOB_UNKNOWN")
    await configure(served, "web", sparse=True)
    taken = await put(served, "/v2/web/manifests/1", OCI_MANIFEST, document)
    await taken.read()
    assert taken.status == 201
    elsewhere = {**absent, "urls": ["https://example.com/layer"], "digest": digest_of(b"foreign")}
    taken = await put(served, "/v2/other/manifests/1", OCI_MANIFEST, {**document, "layers": [elsewhere]})
    await taken.read()
    assert taken.status == 201


async def test_docker_documents_and_indexes_of_indexes(served: Served) -> None:
    digest, manifest = await push_image(
        served.local, "web", "oci", tar([("a", FILE, b"1")]), annotations={"custom": "kept"}, unknown={"field": 1}
    )
    docker = msgspec.json.encode({**msgspec.json.decode(manifest), "mediaType": DOCKER_MANIFEST})
    child = {"mediaType": DOCKER_MANIFEST, "digest": digest_of(docker), "size": len(docker)}
    lists = {"schemaVersion": 2, "mediaType": DOCKER_INDEX, "manifests": [child]}
    inner = msgspec.json.encode(lists)
    outer = {
        "schemaVersion": 2,
        "mediaType": OCI_INDEX,
        "manifests": [{"mediaType": DOCKER_INDEX, "digest": digest_of(inner), "size": len(inner)}],
    }
    for tag, kind, data in (("d", DOCKER_MANIFEST, docker), ("l", DOCKER_INDEX, inner), ("o", OCI_INDEX, outer)):
        done = await put(served, f"/v2/web/manifests/{tag}", kind, data)
        await done.read()
        assert done.status == 201
        got = await served.tcp.request("GET", f"/v2/web/manifests/{tag}", headers={"Accept": kind})
        assert (got.status, await got.read()) == (200, data if isinstance(data, bytes) else msgspec.json.encode(data))
    refused = await served.local.request("DELETE", f"/v2/web/manifests/{digest_of(inner)}")
    assert await error_of(refused) == (409, "DENIED")
    empty = await push_blob(served.local, "web", b"")
    head = await served.tcp.request("GET", f"/v2/web/blobs/{empty}")
    assert (head.status, await head.read()) == (200, b"")
    assert digest != digest_of(docker)


async def test_referrers_come_in_pages_by_type(served: Served) -> None:
    digest, manifest = await push_image(served.local, "web", "1", tar([("a", FILE, b"1")]))
    subject = {"mediaType": OCI_MANIFEST, "digest": digest, "size": len(manifest)}
    for number in range(5):
        kind = "application/a" if number % 2 else "application/b"
        await push_image(
            served.local,
            "web",
            f"s{number}",
            b"%d" % number,
            subject=subject,
            artifactType=kind,
            annotations={"n": "1"},
        )
    for kind, count in (("", 5), ("application/a", 2), ("application/none", 0)):
        seen: list[str] = []
        url = f"/v2/web/referrers/{digest}?n=2" + (f"&artifactType={kind}" if kind else "")
        while url:
            path, _, query = url.partition("?")
            fields = [tuple(field.replace("%2F", "/").replace("%3A", ":").split("=")) for field in query.split("&")]
            page = await served.tcp.request("GET", path, fields)  # type: ignore[arg-type]
            seen += [entry["digest"] for entry in msgspec.json.decode(await page.read())["manifests"]]
            assert page.headers.get("oci-filters-applied") == ("artifactType" if kind else None)
            url = page.headers.get("link", "").partition("<")[2].partition(">")[0]
        assert len(set(seen)) == len(seen) == count
    tags = await served.tcp.request("GET", "/v2/web/tags/list", [("n", "2"), ("last", "s1")])
    assert msgspec.json.decode(await tags.read())["tags"] == ["s2", "s3"]


async def test_immutable_and_protected_tags(served: Served) -> None:
    await configure(
        served,
        "web",
        immutable=TagPatterns(("*",), ("latest",)),
        protected=TagPatterns(("v*",)),
    )
    digest, _ = await push_image(served.local, "web", "v1", tar([("a", FILE, b"1")]))
    await push_image(served.local, "web", "v1", tar([("a", FILE, b"1")]))  # the same again is no change
    await push_image(served.local, "web", "latest", tar([("a", FILE, b"1")]))
    other, manifest = await push_image(served.local, "web", "latest", tar([("a", FILE, b"2")]))
    refused = await put(served, "/v2/web/manifests/v1", OCI_MANIFEST, manifest)
    assert await error_of(refused) == (409, "DENIED")
    for reference in ("v1", digest):
        kept = await served.local.request("DELETE", f"/v2/web/manifests/{reference}")
        assert await error_of(kept) == (409, "DENIED")
    gone = await served.local.request("DELETE", f"/v2/web/manifests/{other}")
    await gone.read()
    assert gone.status == 202


async def test_a_range_of_a_damaged_blob_is_not_served(served: Served) -> None:
    digest = await push_blob(served.local, "web", b"0123456789" * 1000)
    path = served.content.path(digest_of(b"0123456789" * 1000))
    path.write_bytes(b"x" + path.read_bytes()[1:])
    answer = await served.tcp.request("GET", f"/v2/web/blobs/{digest}", headers={"Range": "bytes=5-9"})
    await answer.read()
    assert answer.status >= 500
