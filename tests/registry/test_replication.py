"""Copies to other registries by rules: a second real registry is the target, behind a door that can refuse."""

import os
from typing import Any

import msgspec
import pytest
from tests.registry.conftest import Served
from tests.registry.far import API, Far, ask
from tests.registry.test_protocol import push_image

from wherry.clock import VirtualClock
from wherry.content.digests import digest_of
from wherry.content.oci import OCI_INDEX, OCI_MANIFEST
from wherry.wire.client import HttpClient


async def rule(client: HttpClient, url: str, **more: Any) -> str:
    body = {"url": url, "username": "any", "password": "far away", **more}
    status, said = await ask(client, "POST", f"{API}/replications", body)
    assert status == 201, said
    assert b"far away" not in said
    return msgspec.json.decode(said)["id"]


async def copies(client: HttpClient, id: str) -> list[dict[str, Any]]:
    return msgspec.json.decode((await ask(client, "GET", f"{API}/replications/{id}/copies"))[1])["copies"]


@pytest.fixture
async def near(served: Served) -> Served:
    """Without the worker of its own: the tests say when it works."""
    await served.registry.replication.close()
    return served


async def test_what_is_pushed_goes_there_too(near: Served, far: Far) -> None:
    id = await rule(near.local, far.address, repositories="team/*", prefix="copy/")
    layer = os.urandom(3_000_000)
    digest, manifest = await push_image(near.local, "team/web", "v1", layer)
    await push_image(near.local, "other", "v1", b"not wanted")
    child = {"mediaType": OCI_MANIFEST, "digest": digest, "size": len(manifest)}
    index = msgspec.json.encode({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [child]})
    put = await near.local.request(
        "PUT", "/v2/team/web/manifests/multi", headers={"Content-Type": OCI_INDEX}, body=index
    )
    assert (put.status, await put.read()) == (201, b"")
    signature, _ = await push_image(near.local, "team/web", "sig", b"signature", subject=child)
    assert await near.registry.replication.work() == 3
    assert await ask(far.client, "GET", "/v2/copy/team/web/manifests/v1") == (200, manifest)
    assert await ask(far.client, "GET", f"/v2/copy/team/web/blobs/{digest_of(layer)}") == (200, layer)
    assert await ask(far.client, "GET", "/v2/copy/team/web/manifests/multi") == (200, index)
    assert signature.encode() in (await ask(far.client, "GET", f"/v2/copy/team/web/referrers/{digest}"))[1]
    assert (await ask(far.client, "GET", "/v2/copy/other/manifests/v1"))[0] == 404
    assert {row["state"] for row in await copies(near.local, id)} == {"done"}
    assert await near.registry.replication.work() == 0


async def test_it_is_tried_again_until_the_target_is_there(near: Served, far: Far, clock: VirtualClock) -> None:
    id = await rule(near.local, far.address)
    _, manifest = await push_image(near.local, "web", "v1", b"layer")
    far.status = 503
    await near.registry.replication.work()
    [row] = await copies(near.local, id)
    assert (row["state"], row["attempts"]) == ("waiting", 1)
    assert "503" in row["answer"]
    far.status = 0
    assert await near.registry.replication.work() == 0  # not yet
    await clock.advance(10)
    assert await near.registry.replication.work() == 1
    assert await ask(far.client, "GET", "/v2/web/manifests/v1") == (200, manifest)


async def test_deletions_go_along_where_asked(near: Served, far: Far) -> None:
    keeps = await rule(near.local, far.address, prefix="keeps/")
    follows = await rule(near.local, far.address, prefix="follows/", deletions=True)
    digest, _ = await push_image(near.local, "web", "v1", b"layer")
    await near.registry.replication.work()
    assert (await ask(near.local, "DELETE", f"/v2/web/manifests/{digest}"))[0] == 202
    await near.registry.replication.work()
    assert (await ask(far.client, "GET", "/v2/keeps/web/manifests/v1"))[0] == 200
    assert (await ask(far.client, "GET", "/v2/follows/web/manifests/v1"))[0] == 404
    assert len(await copies(near.local, keeps)) == 1
    assert [row["action"] for row in await copies(near.local, follows)] == ["delete", "push"]


async def test_all_that_is_here_can_be_copied(near: Served, far: Far) -> None:
    _, manifest = await push_image(near.local, "web", "v1", b"layer")
    await push_image(near.local, "web", "dev-1", b"dev")
    id = await rule(near.local, far.address, tags="v*")
    assert await near.registry.replication.work() == 0  # a rule is for what happens from now on ...
    _, said = await ask(near.local, "POST", f"{API}/replications/{id}/copies")
    assert msgspec.json.decode(said) == {"copies": 1}  # ... unless it is asked for the rest
    await near.registry.replication.work()
    assert await ask(far.client, "GET", "/v2/web/manifests/v1") == (200, manifest)
    assert (await ask(far.client, "GET", "/v2/web/manifests/dev-1"))[0] == 404
    await ask(near.local, "POST", f"{API}/replications/{id}/copies")
    await near.registry.replication.work()
    assert (await copies(near.local, id))[0]["answer"] == "it was there"
    assert (await ask(near.local, "DELETE", f"{API}/replications/{id}"))[0] == 200
    assert (await ask(near.local, "DELETE", f"{API}/replications/{id}"))[0] == 404


@pytest.mark.parametrize(
    "body", [{"url": "x"}, {"url": "https://x", "prefix": "a"}, {"url": "https://x", "password": "p"}]
)
async def test_a_wrong_rule_is_refused(near: Served, body: dict[str, str]) -> None:
    assert (await ask(near.local, "POST", f"{API}/replications", body))[0] == 400
