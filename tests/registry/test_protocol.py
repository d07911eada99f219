"""The distribution protocol as a client sees it. Source: OCI distribution-spec 1.1."""

import base64
import os
from typing import Any

import msgspec
import pytest
from tests.content.images import FILE, sample, tar
from tests.registry.conftest import TOKEN, Served

from wherry.content.digests import digest_of
from wherry.content.oci import OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_MANIFEST, Descriptor, manifest_of
from wherry.wire.client import HttpAnswer, HttpClient

BASIC = {"Authorization": "Basic " + base64.b64encode(f"me:{TOKEN}".encode()).decode()}


async def error_of(answer: HttpAnswer) -> tuple[int, str]:
    said: dict[str, Any] = msgspec.json.decode(await answer.read())
    assert said["errors"][0]["message"]
    return answer.status, said["errors"][0]["code"]


async def push_blob(client: HttpClient, name: str, data: bytes) -> str:
    digest = digest_of(data)
    begun = await client.request("POST", f"/v2/{name}/blobs/uploads/")
    await begun.read()
    assert begun.status == 202
    done = await client.request("PUT", begun.headers["location"], [("digest", digest)], body=data)
    await done.read()
    assert (done.status, done.headers["docker-content-digest"]) == (201, digest)
    assert done.headers["location"] == f"/v2/{name}/blobs/{digest}"
    return digest


async def push_image(client: HttpClient, name: str, tag: str, layer: bytes, **more: Any) -> tuple[str, bytes]:
    config = (
        b'{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":["%s"]}}'
        % digest_of(layer).encode()
    )
    await push_blob(client, name, config)
    await push_blob(client, name, layer)
    manifest = manifest_of(
        Descriptor(OCI_CONFIG, digest_of(config), len(config)), [Descriptor(OCI_LAYER, digest_of(layer), len(layer))]
    )
    manifest = msgspec.json.encode({**msgspec.json.decode(manifest), **more})
    done = await client.request(
        "PUT", f"/v2/{name}/manifests/{tag}", headers={"Content-Type": OCI_MANIFEST}, body=manifest
    )
    await done.read()
    assert done.status == 201
    return done.headers["docker-content-digest"], manifest


async def test_a_pushed_image_is_pulled_back(served: Served) -> None:
    layer = tar([("a", FILE, os.urandom(300_000))])
    digest, manifest = await push_image(served.local, "team/web", "1", layer)
    for reference in ("1", digest):
        got = await served.tcp.request("GET", f"/v2/team/web/manifests/{reference}", headers={"Accept": OCI_MANIFEST})
        assert await got.read() == manifest
        assert got.headers["content-type"] == OCI_MANIFEST
        assert got.headers["docker-content-digest"] == digest
        head = await served.tcp.request("HEAD", f"/v2/team/web/manifests/{reference}")
        await head.read()
        assert (head.status, head.headers["content-length"]) == (200, str(len(manifest)))
    url = f"/v2/team/web/blobs/{digest_of(layer)}"
    whole = await served.tcp.request("GET", url)
    assert await whole.read() == layer
    part = await served.tcp.request("GET", url, headers={"Range": "bytes=100-199"})
    assert (part.status, await part.read()) == (206, layer[100:200])
    assert part.headers["content-range"] == f"bytes 100-199/{len(layer)}"
    tail = await served.tcp.request("GET", url, headers={"Range": "bytes=-5"})
    assert await tail.read() == layer[-5:]
    beyond = await served.tcp.request("GET", url, headers={"Range": f"bytes={len(layer)}-"})
    assert (await error_of(beyond))[0] == 416
    head = await served.tcp.request("HEAD", url)
    await head.read()
    assert head.headers["content-length"] == str(len(layer))
    same = await served.tcp.request("GET", url, headers={"If-None-Match": f'"{digest_of(layer)}"'})
    assert (same.status, await same.read()) == (304, b"")
    await served.clock.advance(7200)
    assert await served.content.collect() == []


async def test_a_blob_comes_in_chunks_and_each_begins_where_the_last_ended(served: Served) -> None:
    data = os.urandom(200_000)
    begun = await served.local.request("POST", "/v2/web/blobs/uploads/")
    await begun.read()
    url = begun.headers["location"]
    first = await served.local.request("PATCH", url, headers={"Content-Range": "0-99999"}, body=data[:100_000])
    await first.read()
    assert (first.status, first.headers["range"]) == (202, "0-99999")
    wrong = await served.local.request("PATCH", url, headers={"Content-Range": "0-99999"}, body=data[:100_000])
    assert wrong.headers["range"] == "0-99999"
    assert await error_of(wrong) == (416, "BLOB_UPLOAD_INVALID")
    status = await served.local.request("GET", url)
    await status.read()
    assert (status.status, status.headers["range"]) == (204, "0-99999")
    last = await served.local.request(
        "PUT", url, [("digest", digest_of(data))], {"Content-Range": "100000-199999"}, data[100_000:]
    )
    await last.read()
    assert last.status == 201
    assert await served.content.read(digest_of(data)) == data
    gone = await served.local.request("GET", url)
    assert await error_of(gone) == (404, "BLOB_UPLOAD_UNKNOWN")


async def test_a_single_post_and_a_cancelled_upload(served: Served) -> None:
    data = b"in one go"
    done = await served.local.request("POST", "/v2/web/blobs/uploads/", [("digest", digest_of(data))], body=data)
    await done.read()
    assert done.status == 201
    begun = await served.local.request("POST", "/v2/web/blobs/uploads/")
    await begun.read()
    dropped = await served.local.request("DELETE", begun.headers["location"])
    await dropped.read()
    assert dropped.status == 204
    other = await served.local.request("POST", "/v2/web/blobs/uploads/")
    await other.read()
    stolen = await served.local.request("PATCH", other.headers["location"].replace("web", "other"), body=b"x")
    assert await error_of(stolen) == (404, "BLOB_UPLOAD_UNKNOWN")


@pytest.mark.parametrize(
    ("method", "path", "query", "headers", "body", "status", "code"),
    [
        ("GET", "/v2/web/manifests/none", (), {}, b"", 404, "NAME_UNKNOWN"),
        ("GET", "/v2/known/manifests/none", (), {}, b"", 404, "MANIFEST_UNKNOWN"),
        ("GET", "/v2/known/manifests/sha256:12", (), {}, b"", 400, "DIGEST_INVALID"),
        ("GET", "/v2/known/blobs/" + digest_of(b"absent"), (), {}, b"", 404, "BLOB_UNKNOWN"),
        ("GET", "/v2/known/blobs/sha256:zz", (), {}, b"", 400, "DIGEST_INVALID"),
        ("GET", "/v2/Bad/manifests/1", (), {}, b"", 400, "NAME_INVALID"),
        ("GET", "/v2/a/../b/manifests/1", (), {}, b"", 400, "NAME_INVALID"),
        ("PUT", "/v2/known/manifests/1", (), {"Content-Type": OCI_MANIFEST}, b"{}", 400, "MANIFEST_INVALID"),
        ("PUT", "/v2/known/manifests/1", (), {"Content-Type": OCI_MANIFEST}, b"no json", 400, "MANIFEST_INVALID"),
        ("PUT", "/v2/known/manifests/1", (), {"Content-Type": "application/vnd.x"}, b"{}", 400, "MANIFEST_INVALID"),
        ("PUT", "/v2/known/manifests/-bad", (), {"Content-Type": OCI_MANIFEST}, b"{}", 400, "MANIFEST_INVALID"),
        ("PUT", "/v2/known/manifests/" + digest_of(b"other"), (), {"Content-Type": OCI_MANIFEST}, b"{}", 400, "DIGEST_INVALID"),
        ("POST", "/v2/known/blobs/uploads/", (("digest", digest_of(b"a")),), {}, b"b", 400, "DIGEST_INVALID"),
        ("PUT", "/v2/known/blobs/uploads/0000", (("digest", digest_of(b"a")),), {}, b"", 404, "BLOB_UPLOAD_UNKNOWN"),
        ("GET", "/v2/none/tags/list", (), {}, b"", 404, "NAME_UNKNOWN"),
        ("GET", "/v2/known/tags/list", (("n", "many"),), {}, b"", 400, "UNSUPPORTED"),
        ("DELETE", "/v2/known/manifests/none", (), {}, b"", 404, "MANIFEST_UNKNOWN"),
        ("DELETE", "/v2/known/tags/list", (), {}, b"", 405, "UNSUPPORTED"),
        ("GET", "/v2/known/nothing", (), {}, b"", 404, "UNSUPPORTED"),
    ],
)  # fmt: skip
async def test_a_wrong_request_gets_its_own_code(
    served: Served,
    method: str,
    path: str,
    query: tuple[tuple[str, str], ...],
    headers: dict[str, str],
    body: bytes,
    status: int,
    code: str,
) -> None:
    await push_blob(served.local, "known", b"something")
    answer = await served.local.request(method, path, query, headers, body)
    assert await error_of(answer) == (status, code)


async def test_a_manifest_needs_its_blobs_in_the_repository(served: Served) -> None:
    image = await sample(served.content, tar([("a", FILE, b"1")]))  # in the store, but pushed to no repository
    data = await served.content.read(image.digest)
    headers = {"Content-Type": OCI_MANIFEST, **BASIC}
    refused = await served.tcp.request("PUT", "/v2/web/manifests/1", headers=headers, body=data)
    assert await error_of(refused) == (404, "MANIFEST_BLOB_UNKNOWN")
    taken = await served.local.request(
        "PUT", "/v2/web/manifests/1", headers=headers, body=data
    )  # a trusted peer moves no byte
    await taken.read()
    assert taken.status == 201
    got = await served.tcp.request("GET", f"/v2/web/blobs/{image.layers[0]}")
    assert len(await got.read()) == (await served.content.stat(image.layers[0])).size_bytes  # type: ignore[union-attr]
    lied = data.replace(b'"size":10240', b'"size":10241')
    assert lied != data
    wrong = await served.local.request("PUT", "/v2/web/manifests/2", headers=headers, body=lied)
    assert await error_of(wrong) == (400, "MANIFEST_INVALID")


async def test_a_mount_moves_no_bytes_where_it_is_granted(served: Served) -> None:
    digest = await push_blob(served.local, "a", b"shared")
    query = [("mount", digest), ("from", "a")]
    granted = await served.tcp.request("POST", "/v2/b/blobs/uploads/", query, BASIC)
    await granted.read()
    assert granted.status == 201
    head = await served.tcp.request("HEAD", f"/v2/b/blobs/{digest}")
    await head.read()
    assert head.status == 200
    anywhere = await served.tcp.request("POST", "/v2/c/blobs/uploads/", [("mount", digest)], BASIC)
    await anywhere.read()
    assert anywhere.status == 201
    for from_where in ([("from", "nowhere")],):
        begun = await served.tcp.request("POST", "/v2/c/blobs/uploads/", [("mount", digest), *from_where], BASIC)
        await begun.read()
        assert begun.status == 202
    local = await served.local.request("POST", "/v2/d/blobs/uploads/", [("mount", digest)])
    await local.read()
    assert local.status == 201


async def test_deleting_a_tag_leaves_the_image_and_its_other_tags(served: Served) -> None:
    layer = tar([("a", FILE, b"1")])
    digest, _ = await push_image(served.local, "web", "1", layer)
    await push_image(served.local, "web", "stable", layer)
    deleted = await served.local.request("DELETE", "/v2/web/manifests/1")
    await deleted.read()
    assert deleted.status == 202
    tags = await served.tcp.request("GET", "/v2/web/tags/list")
    assert msgspec.json.decode(await tags.read()) == {"name": "web", "tags": ["stable"]}
    needed = await served.local.request("DELETE", f"/v2/web/blobs/{digest_of(layer)}")
    assert await error_of(needed) == (405, "UNSUPPORTED")
    deleted = await served.local.request("DELETE", f"/v2/web/manifests/{digest}")
    await deleted.read()
    assert deleted.status == 202
    gone = await served.tcp.request("GET", "/v2/web/manifests/stable")
    assert await error_of(gone) == (404, "MANIFEST_UNKNOWN")
    unlinked = await served.tcp.request("GET", f"/v2/web/blobs/{digest_of(layer)}")
    assert await error_of(unlinked) == (404, "BLOB_UNKNOWN")
    await served.clock.advance(7200)
    assert len(await served.content.collect()) == 3


async def test_an_index_keeps_its_images(served: Served) -> None:
    digest, manifest = await push_image(served.local, "web", "amd64", tar([("a", FILE, b"1")]))
    index = msgspec.json.encode(
        {
            "schemaVersion": 2,
            "mediaType": OCI_INDEX,
            "manifests": [
                {
                    "mediaType": OCI_MANIFEST,
                    "digest": digest,
                    "size": len(manifest),
                    "platform": {"os": "linux", "architecture": "amd64"},
                }
            ],
        }
    )
    done = await served.local.request("PUT", "/v2/web/manifests/all", headers={"Content-Type": OCI_INDEX}, body=index)
    await done.read()
    assert done.status == 201
    kept = await served.local.request("DELETE", f"/v2/web/manifests/{digest}")
    assert await error_of(kept) == (409, "DENIED")
    await (await served.local.request("DELETE", "/v2/web/manifests/amd64")).read()
    await served.clock.advance(7200)
    assert await served.content.collect() == []
    narrow = await served.tcp.request("GET", "/v2/web/manifests/all", headers={"Accept": OCI_MANIFEST})
    assert await error_of(narrow) == (404, "MANIFEST_UNKNOWN")


async def test_lists_come_in_pages(served: Served) -> None:
    layer = tar([("a", FILE, b"1")])
    for tag in ("c", "a", "b"):
        await push_image(served.local, "web", tag, layer)
    await push_blob(served.local, "other", b"x")
    seen: list[str] = []
    url = "/v2/web/tags/list?n=2"
    while url:
        path, _, query = url.partition("?")
        page = await served.tcp.request("GET", path, [tuple(field.split("=")) for field in query.split("&")])  # type: ignore[misc]
        seen += msgspec.json.decode(await page.read())["tags"]
        link = page.headers.get("link", "")
        url = link.partition("<")[2].partition(">")[0]
    assert seen == ["a", "b", "c"]
    none = await served.tcp.request("GET", "/v2/web/tags/list", [("n", "0")])
    assert msgspec.json.decode(await none.read())["tags"] == []
    catalog = await served.tcp.request("GET", "/v2/_catalog", [("n", "1")])
    assert msgspec.json.decode(await catalog.read()) == {"repositories": ["other"]}
    assert catalog.headers["link"] == '</v2/_catalog?n=1&last=other>; rel="next"'


async def test_what_is_attached_to_an_image_is_found(served: Served) -> None:
    digest, manifest = await push_image(served.local, "web", "1", tar([("a", FILE, b"1")]))
    subject = {"mediaType": OCI_MANIFEST, "digest": digest, "size": len(manifest)}
    attached, _ = await push_image(
        served.local,
        "web",
        "sig",
        tar([("s", FILE, b"2")]),
        subject=subject,
        artifactType="application/x.sig",
        annotations={"k": "v"},
    )
    for query, count in (([], 1), ([("artifactType", "application/x.sig")], 1), ([("artifactType", "x/y")], 0)):
        answer = await served.tcp.request("GET", f"/v2/web/referrers/{digest}", query)
        listed = msgspec.json.decode(await answer.read())
        assert answer.headers["content-type"] == OCI_INDEX
        assert [entry["digest"] for entry in listed["manifests"]] == [attached] * count
        assert not count or listed["manifests"][0]["annotations"] == {"k": "v"}


async def test_who_may_write(served: Served) -> None:
    asked = await served.tcp.request("GET", "/v2/")
    assert 'Bearer realm="http://127.0.0.1' in asked.headers["www-authenticate"]
    assert await error_of(asked) == (401, "UNAUTHORIZED")
    refused = await served.tcp.request("POST", "/v2/web/blobs/uploads/")
    assert 'scope="repository:web:pull,push"' in refused.headers["www-authenticate"]
    assert await error_of(refused) == (401, "UNAUTHORIZED")
    bad = {"Authorization": "Basic " + base64.b64encode(b"me:guess").decode()}
    for path, headers in (
        ("/v2/", bad),
        ("/v2/token", bad),
        ("/v2/", {"Authorization": "Bearer x.y"}),
        ("/v2/", {"Authorization": "Bearer é"}),
    ):
        try:
            answer = await served.tcp.request("GET", path, headers=headers)
        except UnicodeEncodeError:
            continue
        assert await error_of(answer) == (401, "UNAUTHORIZED")
    for headers, may_write in (({}, False), (BASIC, True)):
        given = await served.tcp.request("GET", "/v2/token", [("service", "wherry")], headers)
        bearer = {"Authorization": f"Bearer {msgspec.json.decode(await given.read())['token']}"}
        read = await served.tcp.request("GET", "/v2/", headers=bearer)
        await read.read()
        assert read.status == 200
        write = await served.tcp.request("POST", "/v2/web/blobs/uploads/", headers=bearer)
        await write.read()
        assert write.status == (202 if may_write else 403)
    await served.clock.advance(400)
    late = await served.tcp.request("GET", "/v2/", headers=bearer)
    assert await error_of(late) == (401, "UNAUTHORIZED")


async def test_a_damaged_blob_is_not_served_and_the_rest_is(served: Served) -> None:
    layer = os.urandom(1_000_000)
    digest, _ = await push_image(served.local, "web", "1", layer)
    path = served.content.path(digest_of(layer))
    path.write_bytes(layer[:-1] + bytes([layer[-1] ^ 1]))
    got = b""
    broken = False
    answer = await served.tcp.request("GET", f"/v2/web/blobs/{digest_of(layer)}")
    try:
        got = await answer.read()
    except Exception:
        broken = True
    assert broken or len(got) < len(layer)
    fine = await served.tcp.request("GET", f"/v2/web/manifests/{digest}")
    await fine.read()
    assert fine.status == 200


async def test_a_hold_without_a_record_is_released_at_the_next_start(served: Served) -> None:
    digest, _ = await push_image(served.local, "web", "1", tar([("a", FILE, b"1")]))
    loose = await served.content.put(b"{}")
    await served.content.hold("repo/web", loose.digest)
    await served.registry.start()
    assert [held for _, held in await served.content.holders("repo/")] == [digest]
