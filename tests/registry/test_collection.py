"""Collection, lifecycle, quotas and scrubbing against a simple model, with crashes between any two steps."""

import asyncio
import os
import random
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.content.images import FILE, tar
from tests.registry.conftest import Served
from tests.registry.test_protocol import error_of, push_blob, push_image
from tests.registry.test_spec import configure

from wherry.clock import VirtualClock
from wherry.content.digests import digest_of
from wherry.content.local import LocalContent
from wherry.content.oci import OCI_INDEX, OCI_MANIFEST
from wherry.content.protocol import Digest
from wherry.registry import space
from wherry.registry.rules import DAY_S, Image, LifecycleRule, RepositorySettings, TagPatterns, expiring, read_settings
from wherry.registry.service import Registry
from wherry.wire.http import Request

HOUR_S = 3600.0


class Crash(BaseException):
    """The process is gone: nothing after this line runs."""


class World:
    """A registry that can be killed, and what must be true of it."""

    def __init__(self, root: Path, seed: int) -> None:
        self.root = root
        self.clock = VirtualClock()
        self.random = random.Random(seed)
        self.tags: dict[tuple[str, str], str] = {}
        self.manifests: dict[tuple[str, str], tuple[set[str], set[str]]] = {}
        self.open()

    def open(self) -> None:
        self.content = LocalContent.open(self.root / "content", clock=self.clock)
        self.registry = Registry(self.content, self.root / "registry", clock=self.clock)

    async def restart(self) -> None:
        await self.registry.close()
        await self.content.close()
        self.open()
        await self.registry.start()

    async def ask(self, method: str, path: str, query: Any = (), kind: str = "", body: bytes = b"") -> Any:
        return await self.registry.handle(
            Request.local(method, path, query, {"Content-Type": kind} if kind else {}, body)
        )

    async def push(self, name: str, tag: str, number: int, *, index: bool, stop: int) -> None:
        """Push an image of two layers, one of them shared; with `index`, an index of it. Dies before step `stop`."""
        steps = 0

        def step() -> None:
            nonlocal steps
            steps += 1
            if steps == stop:
                raise Crash

        blobs = {digest_of(data): data for data in (b"{}", b"layer %d" % number, b"shared %d" % (number % 3))}
        for digest, data in blobs.items():
            step()
            assert (await self.ask("POST", f"/v2/{name}/blobs/uploads/", [("digest", digest)], body=data)).status == 201
        entries = [{"mediaType": "application/x", "digest": d, "size": len(data)} for d, data in blobs.items()]
        manifest = msgspec.json.encode(
            {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": entries[0], "layers": entries[1:]}
        )
        step()
        image = digest_of(manifest)
        reference = image if index else tag
        done = await self.ask("PUT", f"/v2/{name}/manifests/{reference}", (), OCI_MANIFEST, manifest)
        assert done.status == 201
        self.manifests[name, image] = (set(blobs), set())
        if not index:
            self.tags[name, tag] = image
            return
        step()
        child = {"mediaType": OCI_MANIFEST, "digest": image, "size": len(manifest)}
        data = msgspec.json.encode({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [child]})
        assert (await self.ask("PUT", f"/v2/{name}/manifests/{tag}", (), OCI_INDEX, data)).status == 201
        self.manifests[name, digest_of(data)] = (set(), {image})
        self.tags[name, tag] = digest_of(data)

    async def delete(self, name: str, tag: str) -> None:
        answer = await self.ask("DELETE", f"/v2/{name}/manifests/{tag}")
        assert answer.status == (202 if self.tags.pop((name, tag), None) else 404)

    def reachable(self) -> set[tuple[str, str]]:
        found: set[tuple[str, str]] = set()
        pending = [(name, digest) for (name, _), digest in self.tags.items()]
        while pending:
            one = pending.pop()
            if one not in found:
                found.add(one)
                pending += [(one[0], child) for child in self.manifests[one][1]]
        return found

    async def check_nothing_lost(self) -> None:
        for (name, tag), digest in self.tags.items():
            answer = await self.ask("GET", f"/v2/{name}/manifests/{tag}")
            assert (answer.status, answer.headers.get("docker-content-digest")) == (200, digest)
        for name, digest in self.reachable():
            assert (await self.ask("GET", f"/v2/{name}/manifests/{digest}")).status == 200
            for blob in self.manifests[name, digest][0]:
                assert (await self.ask("HEAD", f"/v2/{name}/blobs/{blob}")).status == 200

    async def check_nothing_kept(self) -> None:
        """After two runs when all leases are over."""
        for _ in range(2):
            await self.clock.advance(2 * HOUR_S)
            dry = await self.registry.collector.collect(untagged=True, dry_run=True)
            wet = await self.registry.collector.collect(untagged=True)
            assert (dry.bytes, dry.blobs, dry.manifests) == (wet.bytes, wet.blobs, wet.manifests)
        reachable = self.reachable()
        self.manifests = {key: value for key, value in self.manifests.items() if key in reachable}
        wanted = {digest for _, digest in reachable} | {b for key in reachable for b in self.manifests[key][0]}
        kept = {f"{path.parent.name}:{path.name}" for path in (self.root / "content" / "blobs").glob("*/*")}
        assert kept == wanted
        await self.check_exact()

    async def check_exact(self) -> None:
        database = self.registry.database
        before = [await database.rows(f"SELECT * FROM {table} ORDER BY 1, 2") for table in ("space", "usage")]
        await database.write(space.recount)
        after = [await database.rows(f"SELECT * FROM {table} ORDER BY 1, 2") for table in ("space", "usage")]
        assert before[0] == after[0]
        assert {row for row in before[1] if row[1]} == set(after[1])


ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(("push", "push", "push", "delete", "collect", "restart", "later")),
        st.sampled_from(("a", "b", "team/c")),
        st.sampled_from(("1", "2")),
        st.integers(0, 5),
        st.booleans(),
        st.integers(0, 8),
    ),
    max_size=14,
)


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(actions=ACTIONS, seed=st.integers(0, 1000))
async def test_nothing_reachable_is_lost_and_nothing_else_is_kept(
    actions: Any, seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    world = World(tmp_path_factory.mktemp("world"), seed)
    await world.registry.start()
    for action, name, tag, number, index, stop in actions:
        match action:
            case "push":
                try:
                    await world.push(name, tag, number, index=index, stop=stop)
                except Crash:
                    await world.restart()
            case "delete":
                await world.delete(name, tag)
            case "collect":
                await world.registry.collector.collect(untagged=bool(stop % 2))
            case "restart":
                await world.restart()
            case _:
                await world.clock.advance(HOUR_S * 0.7)
        await world.check_nothing_lost()
        await world.check_exact()
    await world.check_nothing_kept()
    await world.check_nothing_lost()
    await world.registry.close()
    await world.content.close()


async def test_pushes_and_pulls_run_through_collections(tmp_path: Path) -> None:
    world = World(tmp_path, 1)
    await world.registry.start()
    done = asyncio.Event()

    async def collect() -> int:
        runs = 0
        while not done.is_set():
            await world.registry.collector.collect(untagged=True)
            runs += 1
        return runs

    async def work(name: str) -> None:
        for turn in range(12):
            await world.push(name, f"{turn % 4}", turn, index=turn % 2 == 0, stop=0)
            if turn % 3 == 2:
                await world.delete(name, f"{turn % 4}")

    collecting = asyncio.create_task(collect(), name="collect")
    await asyncio.gather(*(work(name) for name in ("a", "b", "team/c", "team/d")))
    done.set()
    assert await collecting > 0
    await world.check_nothing_lost()
    await world.check_nothing_kept()
    await world.registry.close()
    await world.content.close()


async def test_quotas_state_what_there_is_and_deleting_always_works(served: Served) -> None:
    await served.registry.database.execute("INSERT INTO quotas VALUES ('team/', 1000)")
    await push_blob(served.local, "team/a", b"a" * 600)
    await push_blob(served.local, "team/b", b"a" * 600)  # the same bytes: they count once in the namespace
    refused = await served.local.request(
        "POST", "/v2/team/b/blobs/uploads/", [("digest", digest_of(b"b" * 600))], body=b"b" * 600
    )
    assert refused.status == 403
    assert "600 bytes used of 1000, 600 more needed" in (await refused.read()).decode()
    begun = await served.local.request("POST", "/v2/team/b/blobs/uploads/")
    await begun.read()
    part = await served.local.request("PATCH", begun.headers["location"], body=b"b" * 1001)
    assert await error_of(part) == (403, "DENIED")
    await served.registry.database.execute("UPDATE quotas SET bytes = 1")
    gone = await served.local.request("DELETE", f"/v2/team/a/blobs/{digest_of(b'a' * 600)}")
    await gone.read()
    assert gone.status == 202
    rows = await served.registry.database.rows("SELECT scope, bytes FROM usage WHERE bytes > 0 ORDER BY scope")
    assert rows == [("team/", 600), ("team/b", 600)]


async def test_an_upload_survives_a_restart_and_goes_after_its_time(tmp_path: Path) -> None:
    world = World(tmp_path, 1)
    await world.registry.start()
    begun = await world.ask("POST", "/v2/web/blobs/uploads/")
    url = begun.headers.get("location")
    assert url is not None
    await world.ask("PATCH", url, body=b"first ")
    await world.restart()
    status = await world.ask("GET", url)
    assert (status.status, status.headers.get("range")) == (204, "0-5")
    done = await world.ask("PUT", url, [("digest", digest_of(b"first second"))], body=b"second")
    assert done.status == 201
    left = await world.ask("POST", "/v2/web/blobs/uploads/")
    await world.clock.advance(23 * HOUR_S)
    assert (await world.registry.collector.collect()).uploads == 0
    await world.clock.advance(2 * HOUR_S)
    assert (await world.registry.collector.collect(dry_run=True)).uploads == 1
    assert (await world.registry.collector.collect()).uploads == 1
    assert (await world.ask("GET", left.headers.get("location") or "")).status == 404
    assert list((tmp_path / "content" / "uploads").iterdir()) == []
    await world.registry.close()


async def test_two_pushes_of_one_blob_cost_one_copy(served: Served) -> None:
    data = os.urandom(3_000_000)
    await asyncio.gather(*(push_blob(served.tcp if n % 2 else served.local, "web", data) for n in (0, 2, 4)))
    blobs = served.content.root / "blobs" / "sha256"
    assert sum(path.stat().st_size for path in blobs.iterdir()) == len(data)


async def test_scrub_puts_damage_aside_and_a_push_heals_it(served: Served) -> None:
    from wherry.registry.scrub import scrub

    layer = tar([("a", FILE, b"1")])
    await push_image(served.local, "web", "1", layer)
    assert (await scrub(served.content, served.registry.database)).findings == []
    path = served.content.path(digest_of(layer))
    path.write_bytes(b"rotten" + layer[6:])
    found = (await scrub(served.content, served.registry.database)).findings
    assert [(one.digest, one.problem, one.repositories) for one in found] == [(digest_of(layer), "damaged", ["web"])]
    assert Path(found[0].put_aside).read_bytes().startswith(b"rotten")
    head = await served.tcp.request("HEAD", f"/v2/web/blobs/{digest_of(layer)}")
    await head.read()
    assert head.status == 404
    await push_image(served.local, "web", "1", layer)
    assert (await scrub(served.content, served.registry.database)).findings == []


NOW = 100 * DAY_S


def image(name: str, *tags: str, age: float = 0.0, pulled: float | None = None, **more: Any) -> Image:
    used = 0.0 if pulled is None else NOW - pulled * DAY_S
    return Image(Digest(name), tags, NOW - age * DAY_S, used, **more)


V, ANY = TagPatterns(("v*",)), TagPatterns(("*",))


@pytest.mark.parametrize(
    ("rules", "images", "gone"),
    [
        ([LifecycleRule("n", V, newest=1)], [image("a", "v1", age=2), image("b", "v2", age=1)], "a"),
        ([LifecycleRule("n", V, newest=1)], [image("a", "v1", "prod", age=2), image("b", "v2", age=1)], ""),
        ([LifecycleRule("n", ANY, newest=0), LifecycleRule("k", V, keep=True)], [image("a", "v1"), image("b", "x")], "b"),
        ([LifecycleRule("p", ANY, pushed_days=5)], [image("a", "x", age=6), image("b", "y", age=4)], "a"),
        ([LifecycleRule("u", ANY, used_days=5)], [image("a", "x", age=9, pulled=1), image("b", "y", age=9, pulled=8)], "b"),
        ([LifecycleRule("u", ANY, used_days=5)], [image("a", "x", age=1), image("b", "y", age=9, tagged=NOW)], ""),
        ([LifecycleRule("t", untagged=True, pushed_days=1)], [image("a", age=2), image("b", "x", age=2)], "a"),
        ([LifecycleRule("t", untagged=True, pushed_days=1)],
         [image("i", "x", age=2, children=[Digest("a")]), image("a", age=2), image("r", age=2, subject="a")], ""),
        ([LifecycleRule("p", ANY, pushed_days=1)],
         [image("i", "x", age=2, children=[Digest("a")]), image("a", age=0), image("r", age=0, subject="i")], "air"),
        ([LifecycleRule("p", V, pushed_days=1)],
         [image("i", "v1", age=2, children=[Digest("a")]), image("j", "x", children=[Digest("a")]), image("a")], "i"),
        ([], [image("a", age=99), image("b", "x", age=99)], ""),
    ],
)  # fmt: skip
def test_the_rules_of_life(rules: list[LifecycleRule], images: list[Image], gone: str) -> None:
    found = expiring(images, RepositorySettings(lifecycle=tuple(rules)), NOW)
    assert "".join(expiry.digest for expiry in found) == gone


async def test_a_preview_equals_the_run(served: Served) -> None:
    for number in range(5):
        await push_image(served.local, "web", f"v{number}", b"%d" % number)
        await served.clock.advance(DAY_S)
    await push_image(served.local, "web", "stable", b"0")
    await configure(
        served,
        "web",
        lifecycle=(LifecycleRule("few", ANY, newest=2), LifecycleRule("keep", TagPatterns(("stable",)), keep=True)),
    )
    planned = await served.registry.collector.preview("web")
    done = await served.registry.collector.expire("web", by="test")
    assert [expiry.digest for expiry in planned] == [expiry.digest for expiry in done]
    tags = await served.tcp.request("GET", "/v2/web/tags/list")
    assert msgspec.json.decode(await tags.read())["tags"] == ["stable", "v0", "v3", "v4"]
    assert await served.registry.collector.preview("web") == []
    told = await served.registry.journal.search(action="expire", repository="web")
    assert {event.digest for event in told} == {expiry.digest for expiry in done}


@pytest.mark.parametrize(
    "text",
    ['{"lifecycle": [{"name": "x"}]}', '{"visibility": "x"}', '{"imutable": {}}', "[",
     '{"lifecycle": [{"name": "x", "tags": {"match": ["*"]}}]}',
     '{"lifecycle": [{"name": "x", "untagged": true, "newest": -1}]}'],
)  # fmt: skip
def test_wrong_settings_are_refused(text: str) -> None:
    from wherry.errors import Invalid

    with pytest.raises(Invalid):
        read_settings(text)
