"""Repositories that stand for another registry's: a real one behind a door that counts, waits, cuts and refuses."""

import asyncio
import os
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.registry.conftest import Served
from tests.registry.far import API, Far, ask
from tests.registry.test_protocol import push_image

from wherry.clock import VirtualClock, machine
from wherry.content.digests import digest_of


async def join(served: Served, far: Far, **more: Any) -> None:
    body = {"url": far.address, "username": "any", "password": "far away", **more}
    status, said = await ask(served.local, "PUT", f"{API}/upstreams/hub/", body)
    assert status == 200, said
    assert b"far away" not in said


async def test_what_the_upstream_has_is_fetched_once_and_kept(served: Served, far: Far, clock: VirtualClock) -> None:
    await join(served, far)
    layer = os.urandom(700_000)
    digest, manifest = await push_image(far.client, "team/web", "v1", layer)
    blob = f"/v2/hub/team/web/blobs/{digest_of(layer)}"
    assert (await ask(served.tcp, "GET", blob))[0] == 404  # no image that was pulled has it
    assert await ask(served.tcp, "GET", "/v2/hub/team/web/manifests/v1") == (200, manifest)
    head = await served.tcp.request("HEAD", blob)
    await head.read()
    assert (head.status, head.headers["content-length"]) == (200, str(len(layer)))
    assert await ask(served.tcp, "GET", blob) == (200, layer)
    before = far.asked.copy()
    assert await ask(served.tcp, "GET", blob) == (200, layer)
    assert await ask(served.tcp, "GET", "/v2/hub/team/web/manifests/v1") == (200, manifest)
    assert await ask(served.tcp, "GET", f"/v2/hub/team/web/manifests/{digest}") == (200, manifest)
    assert far.asked == before  # a fresh tag, and what never changes, are not asked for again
    await clock.advance(61)
    assert await ask(served.tcp, "GET", "/v2/hub/team/web/manifests/v1") == (200, manifest)
    assert far.asked - before == Counter({("HEAD", "manifests"): 1})
    _, second = await push_image(far.client, "team/web", "v1", b"other layer")
    await clock.advance(61)
    assert await ask(served.tcp, "GET", "/v2/hub/team/web/manifests/v1") == (200, second)
    await served.registry.collector.collect()
    assert await ask(served.tcp, "GET", blob) == (200, layer)  # it is still held by the image that has it


async def test_what_is_here_is_served_while_the_upstream_refuses(served: Served, far: Far, clock: VirtualClock) -> None:
    await join(served, far)
    _, manifest = await push_image(far.client, "web", "v1", b"layer")
    assert (await ask(served.tcp, "GET", "/v2/hub/web/manifests/v1"))[0] == 200
    for status in (429, 503, 401, 404):
        far.status = status
        await clock.advance(100)
        assert await ask(served.tcp, "GET", "/v2/hub/web/manifests/v1") == (200, manifest), status
    assert (await ask(served.tcp, "GET", "/v2/hub/web/manifests/v2"))[0] == 404
    far.status = 0
    await clock.advance(100)
    assert (await ask(served.tcp, "GET", "/v2/hub/web/manifests/v2"))[0] == 404


async def test_one_fetch_serves_all_who_wait_while_it_runs(served: Served, far: Far) -> None:
    await join(served, far)
    layer = os.urandom(900_000)
    await push_image(far.client, "web", "v1", layer)
    await ask(served.tcp, "GET", "/v2/hub/web/manifests/v1")
    far.gate.clear()
    url = f"/v2/hub/web/blobs/{digest_of(layer)}"
    first = await served.tcp.request("GET", url)
    parts = first.chunks()
    got = await anext(parts)
    assert layer.startswith(got)
    assert got  # it streams while it is fetched
    others = [asyncio.create_task(ask(served.tcp, "GET", url)) for _ in range(8)]
    ranged = asyncio.create_task(ask(served.tcp, "GET", url, headers={"Range": "bytes=5-9"}))
    gone = await served.tcp.request("GET", url)
    await gone.close()  # one that goes away ends nothing
    far.gate.set()
    async with machine.timeout(20):
        assert got + b"".join([part async for part in parts]) == layer
        assert await asyncio.gather(*others) == [(200, layer)] * 8
        assert await ranged == (206, layer[5:10])
    assert far.asked["GET", "blobs"] == 1


async def test_a_cut_connection_is_gone_on_with(served: Served, far: Far) -> None:
    await join(served, far)
    layer = os.urandom(400_000)
    await push_image(far.client, "web", "v1", layer)
    await ask(served.tcp, "GET", "/v2/hub/web/manifests/v1")
    far.cut = 2
    assert await ask(served.tcp, "GET", f"/v2/hub/web/blobs/{digest_of(layer)}") == (200, layer)
    assert far.asked["GET", "blobs"] == 3


async def test_wrong_bytes_reach_nobody_whole_and_are_not_kept(served: Served, far: Far, tmp_path: Path) -> None:
    await join(served, far)
    layer = os.urandom(300_000)
    await push_image(far.client, "web", "v1", layer)
    await ask(served.tcp, "GET", "/v2/hub/web/manifests/v1")
    far.spoil = True
    answer = await served.tcp.request("GET", f"/v2/hub/web/blobs/{digest_of(layer)}")
    with pytest.raises(Exception, match=r"closed|ended|short|incomplete"):
        await answer.read()
    assert await served.content.stat(digest_of(layer)) is None
    assert list((tmp_path / "registry" / "spool").iterdir()) == []
    far.spoil = False
    assert (await ask(served.tcp, "GET", f"/v2/hub/web/blobs/{digest_of(layer)}"))[0] == 200


async def test_nobody_pushes_where_another_registry_is_meant(served: Served, far: Far) -> None:
    await join(served, far)
    status, said = await ask(served.local, "POST", "/v2/hub/web/blobs/uploads/")
    assert (status, b"it stands for" in said) == (403, True)
    status, said = await ask(served.local, "PUT", "/v2/hub/web/manifests/1", {})
    assert (status, b"it stands for" in said) == (403, True)
    assert (await ask(served.local, "POST", "/v2/hubs/web/blobs/uploads/"))[0] == 202


async def test_an_upstream_with_a_prefix_and_its_end(served: Served, far: Far) -> None:
    await join(served, far, url=far.address + "/deep/er")
    _, manifest = await push_image(far.client, "deep/er/web", "v1", b"layer")
    assert await ask(served.tcp, "GET", "/v2/hub/web/manifests/v1") == (200, manifest)
    _, listed = await ask(served.local, "GET", f"{API}/upstreams")
    [row] = msgspec.json.decode(listed)["upstreams"]
    assert (row["prefix"], row["username"], "password" in row) == ("hub/", "any", False)
    assert (await ask(served.local, "DELETE", f"{API}/upstreams/hub/"))[0] == 200
    assert await ask(served.tcp, "GET", "/v2/hub/web/manifests/v1") == (200, manifest)  # what was fetched stays
    assert (await ask(served.tcp, "GET", "/v2/hub/web/manifests/v2"))[0] == 404


async def test_what_another_process_says_of_upstreams_is_known_a_moment_later(
    served: Served, far: Far, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wherry.registry.upstreams.KNOWN_S", 0.1)
    assert (await ask(served.local, "POST", "/v2/hub/web/blobs/uploads/"))[0] == 202  # nothing stands for another yet
    body = msgspec.json.encode({"url": far.address, "username": "any", "password": "far away"})
    await served.registry.database.execute("INSERT INTO upstreams (prefix, body) VALUES (?, ?)", "hub/", body)
    async with machine.timeout(10):
        while (await ask(served.local, "POST", "/v2/hub/web/blobs/uploads/"))[0] != 403:
            await machine.sleep(0.05)


@pytest.mark.parametrize(
    ("prefix", "body"),
    [
        ("hub/", {"url": "ftp://x"}),
        ("hub/", {"url": "https://a:b@x"}),
        ("hub/", {"url": "https://x", "username": "only"}),
        ("hub/", {"url": "https://x", "revalidate_s": -1}),
        ("hub/", {"url": "https://x", "speed": 1}),
        ("hub", {"url": "https://x"}),
        ("Hub/", {"url": "https://x"}),
    ],
)
async def test_a_wrong_upstream_is_refused(served: Served, prefix: str, body: dict[str, object]) -> None:
    assert (await ask(served.local, "PUT", f"{API}/upstreams/{prefix}", body))[0] == 400
