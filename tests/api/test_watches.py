"""Lists and watches: nothing is missed, nothing comes twice, and what a selector hides is hidden."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wherry.api.pki import Authority
from wherry.api.server import Api
from wherry.api.settings import Settings
from wherry.clock import RealClock, machine
from wherry.store.sqlite import SqliteStore
from wherry.wire.http import Request

from .conftest import ADMIN, Running, Start

Json = dict[str, Any]
MAPS = "/api/v1/namespaces/default/configmaps"
MERGE = {"Content-Type": "application/merge-patch+json"}


def _map(name: str, **labels: str) -> Json:
    return {"metadata": {"name": name, "labels": labels}, "data": {"x": "1"}}


async def _take(events: AsyncIterator[Json], count: int) -> list[Json]:
    found: list[Json] = []
    async with machine.timeout(5):
        while len(found) < count:
            found.append(await anext(events))
    return found


def _said(events: list[Json]) -> list[tuple[str, str]]:
    return [(one["type"], one["object"]["metadata"].get("name", "")) for one in events]


async def test_a_watch_goes_on_from_a_list(api: Running) -> None:
    await api.make(MAPS, _map("a"))
    listed = (await api.ask("GET", MAPS)).json
    await api.make(MAPS, _map("b"))
    await api.ask("PATCH", f"{MAPS}/a", {"data": {"x": "2"}}, headers=MERGE)
    await api.ask("DELETE", f"{MAPS}/b")
    async with aclosing(api.watch(f"{MAPS}?resourceVersion={listed['metadata']['resourceVersion']}")) as events:
        seen = await _take(events, 3)
        assert _said(seen) == [("ADDED", "b"), ("MODIFIED", "a"), ("DELETED", "b")]
        versions = [int(one["object"]["metadata"]["resourceVersion"]) for one in seen]
        assert versions == sorted(set(versions))
        await api.make(MAPS, _map("c"))
        assert _said(await _take(events, 1)) == [("ADDED", "c")]


async def test_an_object_enters_and_leaves_a_selection(api: Running) -> None:
    await api.make(MAPS, _map("a", tier="back"))
    await api.make(MAPS, _map("z", tier="front"))
    async with aclosing(api.watch(f"{MAPS}?labelSelector=tier%3Dfront".replace("%3D", "="))) as events:
        assert _said(await _take(events, 1)) == [("ADDED", "z")]
        await api.ask("PATCH", f"{MAPS}/a", {"metadata": {"labels": {"tier": "front"}}}, headers=MERGE)
        await api.ask("PATCH", f"{MAPS}/a", {"data": {"x": "2"}}, headers=MERGE)
        left = (await api.ask("PATCH", f"{MAPS}/a", {"metadata": {"labels": {"tier": "no"}}}, headers=MERGE)).json
        await api.ask("PATCH", f"{MAPS}/a", {"data": {"x": "3"}}, headers=MERGE)
        await api.ask("DELETE", f"{MAPS}/z")
        seen = await _take(events, 4)
        assert _said(seen) == [("ADDED", "a"), ("MODIFIED", "a"), ("DELETED", "a"), ("DELETED", "z")]
        gone = seen[2]["object"]["metadata"]
        assert gone["resourceVersion"] == left["metadata"]["resourceVersion"]
        assert gone["labels"] == {"tier": "front"}  # as it was when it was last in sight


async def test_a_watch_by_name_and_namespace(api: Running) -> None:
    await api.make("/api/v1/namespaces", {"metadata": {"name": "other"}})
    async with aclosing(api.watch(f"{MAPS}?fieldSelector=metadata.name=a&resourceVersion=0")) as events:
        await api.make("/api/v1/namespaces/other/configmaps", _map("a"))
        await api.make(MAPS, _map("b"))
        await api.make(MAPS, _map("a"))
        seen = await _take(events, 1)
        assert seen[0]["object"]["metadata"]["namespace"] == "default"


async def test_watch_list_tells_where_the_beginning_ends(start: Start) -> None:
    api = await start(settings=Settings(bookmark_s=0.05))
    await api.make(MAPS, _map("a"))
    query = "sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true"
    async with aclosing(api.watch(f"{MAPS}?{query}")) as events:
        seen = await _take(events, 2)
        assert _said(seen) == [("ADDED", "a"), ("BOOKMARK", "")]
        assert seen[1]["object"]["metadata"]["annotations"] == {"k8s.io/initial-events-end": "true"}
        later = await _take(events, 1)  # and bookmarks go on, without that mark
        assert later[0]["type"] == "BOOKMARK"
        assert "annotations" not in later[0]["object"]["metadata"]


async def test_a_watch_ends_in_time_with_a_bookmark(api: Running) -> None:
    seen = [one async for one in api.watch(f"{MAPS}?timeoutSeconds=1&allowWatchBookmarks=true&resourceVersion=0")]
    assert _said(seen) == [("BOOKMARK", "")]


async def test_watches_end_with_the_server(api: Running) -> None:
    async with aclosing(api.watch(f"{MAPS}?resourceVersion=0")) as events:
        waiting = asyncio.ensure_future(anext(events, None))
        await machine.sleep(0.01)
        await api.api.close()
        async with machine.timeout(2):
            assert await waiting is None


async def test_a_watch_from_too_long_ago_is_told_to_list_again(start: Start) -> None:
    api = await start(settings=Settings(event_window=3))
    listed = (await api.ask("GET", MAPS)).json
    for number in range(5):
        await api.make(MAPS, _map(f"a{number}"))
    version = listed["metadata"]["resourceVersion"]
    seen = await _take(api.watch(f"{MAPS}?resourceVersion={version}"), 1)
    assert seen[0]["type"] == "ERROR"
    assert (seen[0]["object"]["code"], seen[0]["object"]["reason"]) == (410, "Expired")


async def test_a_watcher_too_slow_is_told_to_list_again(start: Start) -> None:
    api = await start(settings=Settings(event_window=3))
    async with aclosing(api.watch(f"{MAPS}?resourceVersion=0")) as events:
        first = asyncio.ensure_future(anext(events))
        await machine.sleep(0)
        await api.make(MAPS, _map("first"))
        assert (await first)["type"] == "ADDED"
        for number in range(10):
            await api.make(MAPS, _map(f"a{number}"))
        assert (await _take(events, 1))[0]["object"]["code"] == 410


async def test_tables_and_partial_metadata_are_watched_too(api: Running) -> None:
    response = await api.api.serve(
        Request.local("GET", MAPS, [("watch", "1")], {"Accept": "application/json;as=Table;v=v1;g=meta.k8s.io"}), ADMIN
    )
    await api.make(MAPS, _map("a"))
    await api.make(MAPS, _map("b"))
    assert not isinstance(response.body, bytes)
    lines: list[Json] = []
    async with machine.timeout(5), aclosing(response.body.pieces) as pieces:  # type: ignore[type-var]
        async for piece in pieces:
            lines += [json.loads(line) for line in piece.splitlines()]
            if len(lines) == 2:
                break
    assert [line["object"]["rows"][0]["cells"][0] for line in lines] == ["a", "b"]
    assert [bool(line["object"]["columnDefinitions"]) for line in lines] == [True, False]


async def test_a_read_sees_an_own_write(api: Running) -> None:
    for number in range(50):
        made = await api.make(MAPS, _map(f"a{number}"))
        got = (await api.ask("GET", f"{MAPS}/a{number}")).json
        assert got["metadata"]["resourceVersion"] == made["metadata"]["resourceVersion"]


# --- lists --------------------------------------------------------------------------------------------------------------


async def test_pages_are_of_one_moment(api: Running) -> None:
    for name in "abcde":
        await api.make(MAPS, _map(name))
    first = (await api.ask("GET", f"{MAPS}?limit=2")).json
    assert first["metadata"]["remainingItemCount"] == 3
    await api.ask("DELETE", f"{MAPS}/c")
    await api.make(MAPS, _map("cc"))
    names = [one["metadata"]["name"] for one in first["items"]]
    page = first
    while page["metadata"].get("continue"):
        page = (await api.ask("GET", f"{MAPS}?limit=2&continue={page['metadata']['continue']}")).json
        assert page["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"]
        names += [one["metadata"]["name"] for one in page["items"]]
    assert names == ["a", "b", "c", "d", "e"]


async def test_pages_of_a_selection(api: Running) -> None:
    for number in range(6):
        await api.make(MAPS, _map(f"a{number}", odd=str(number % 2)))
    first = (await api.ask("GET", f"{MAPS}?limit=2&labelSelector=odd=1")).json
    assert "remainingItemCount" not in first["metadata"]
    second = await api.ask("GET", f"{MAPS}?limit=2&labelSelector=odd=1&continue={first['metadata']['continue']}")
    names = [one["metadata"]["name"] for one in (*first["items"], *second.json["items"])]
    assert names == ["a1", "a3", "a5"]


async def test_an_expired_page_says_how_to_go_on(api: Running) -> None:
    for name in "abc":
        await api.make(MAPS, _map(name))
    first = (await api.ask("GET", f"{MAPS}?limit=1")).json
    await api.make(MAPS, _map("d"))
    await api.store.compact(await api.store.revision())
    answer = await api.ask("GET", f"{MAPS}?limit=1&continue={first['metadata']['continue']}")
    assert (answer.status, answer.json["reason"]) == (410, "Expired")
    rest = (await api.ask("GET", f"{MAPS}?continue={answer.json['metadata']['continue']}")).json
    assert [one["metadata"]["name"] for one in rest["items"]] == ["b", "c", "d"]


async def test_versions_of_lists(api: Running) -> None:
    before = (await api.make(MAPS, _map("a")))["metadata"]["resourceVersion"]
    await api.make(MAPS, _map("b"))
    exact = (await api.ask("GET", f"{MAPS}?resourceVersion={before}&resourceVersionMatch=Exact")).json
    assert [one["metadata"]["name"] for one in exact["items"]] == ["a"]
    assert exact["metadata"]["resourceVersion"] == before
    for query in (
        "resourceVersion=0",
        f"resourceVersion={before}",
        f"resourceVersion={before}&resourceVersionMatch=NotOlderThan",
    ):
        found = (await api.ask("GET", f"{MAPS}?{query}")).json
        assert [one["metadata"]["name"] for one in found["items"]] == ["a", "b"]


# --- a property: a list and a watch from any revision make the state ----------------------------------------------------

_STEPS = st.lists(
    st.tuples(st.sampled_from(["put", "label", "delete"]), st.sampled_from("abcd"), st.sampled_from(["x", "y"])),
    min_size=1,
    max_size=14,
)


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps=_STEPS, at=st.integers(0, 13), selective=st.booleans())
def test_a_list_and_a_watch_from_any_revision_make_the_state(
    tmp_path_factory: Any, steps: list[tuple[str, str, str]], at: int, selective: bool
) -> None:
    asyncio.run(_replay(tmp_path_factory.mktemp("replay"), steps, at, selective))


async def _replay(root: Path, steps: list[tuple[str, str, str]], at: int, selective: bool) -> None:
    clock = RealClock()
    store = await SqliteStore.open(root / "store", clock=clock, durability="test")
    server = Api(store, clock=clock, authority=Authority.load_or_create(root / "pki", clock))
    await server.start()
    api = Running(server, store, server.core.authority, "", root, root)
    query = "labelSelector=tier=x&" if selective else ""
    state: dict[str, str] = {}
    version = ""
    for number, (step, name, tier) in enumerate(steps):
        if number == min(at, len(steps) - 1):
            listed = (await api.ask("GET", f"{MAPS}?{query}limit=0")).json
            state = _state(listed["items"])
            version = listed["metadata"]["resourceVersion"]
        match step:
            case "put":
                await api.ask("POST", MAPS, _map(name, tier=tier))
            case "label":
                await api.ask("PATCH", f"{MAPS}/{name}", {"metadata": {"labels": {"tier": tier}}}, headers=MERGE)
            case _:
                await api.ask("DELETE", f"{MAPS}/{name}")
    wanted = (await api.ask("GET", f"{MAPS}?{query}limit=0")).json
    end = wanted["metadata"]["resourceVersion"]
    path = f"{MAPS}?{query}resourceVersion={version}&allowWatchBookmarks=true&timeoutSeconds=1"
    server.core.settings = Settings(bookmark_s=0.02)
    async with aclosing(api.watch(path)) as events:
        async for event in events:
            obj = event["object"]
            if event["type"] == "BOOKMARK":
                if obj["metadata"]["resourceVersion"] == end:
                    break
                continue
            name = obj["metadata"]["name"]
            known = name in state
            assert known is (event["type"] != "ADDED"), (event["type"], name, state)
            if event["type"] == "DELETED":
                del state[name]
            else:
                state[name] = obj["metadata"]["resourceVersion"]
    assert state == _state(wanted["items"])
    await server.close()
    await store.close()


def _state(items: list[Json]) -> dict[str, str]:
    return {one["metadata"]["name"]: one["metadata"]["resourceVersion"] for one in items}
