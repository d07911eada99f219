"""Informers: they show what is there, tell of changes, and come back from whatever happens to a watch."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import orjson
import pytest

from tests.client.world import World, api_world
from wherry.client.informer import Informer
from wherry.client.objects import Object, Partial
from wherry.client.protocol import Change, Json, Listing
from wherry.errors import DeadlineExceeded, Expired, Invalid, Unavailable
from wherry.model.kinds import CONFIGMAPS, Kind


class Config(Object, frozen=True):
    data: dict[str, str] = {}


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with api_world(tmp_path) as world:
        yield world


def by_colour(one: Config) -> list[str]:
    return [one.data["colour"]] if "colour" in one.data else []


async def put(world: World, name: str, **data: str) -> Json:
    return await world.create(CONFIGMAPS, {"metadata": {"name": name}, "data": data})


async def test_it_shows_what_is_there_and_what_changes(world: World) -> None:
    await put(world, "a", colour="red")
    told: list[tuple[str, str]] = []

    def tell(before: Config | None, now: Config | None) -> None:
        told.append((before.data.get("colour", "") if before else "-", now.data.get("colour", "") if now else "-"))

    async with Informer(world.client, CONFIGMAPS, Config, "default", indices={"colour": by_colour}) as view:
        await view.wait_synced()
        view.on_change(tell)
        assert [one.metadata.name for one in view.by_index("colour", "red")] == ["a"]
        changed = await world.patch(CONFIGMAPS, "a", {"data": {"colour": "blue"}})
        await view.wait_for(changed["metadata"]["resourceVersion"])
        found = view.get("a", "default")
        assert found is not None
        assert found.data == {"colour": "blue"}
        assert view.by_index("colour", "red") == []
        await put(world, "b")
        await world.client.delete(CONFIGMAPS, "a", "default")
        await view.wait_until(lambda: view.get("a", "default") is None)
        assert [one.metadata.name for one in view.list("default")] == ["b"]
        assert view.by_index("colour", "blue") == []
    assert told == [("-", "red"), ("red", "blue"), ("-", ""), ("blue", "-")]


async def test_a_selector_narrows_the_view(world: World) -> None:
    async with Informer(world.client, CONFIGMAPS, Partial, "default", labels="app=web") as view:
        await view.wait_synced()
        await put(world, "a")
        await world.create(CONFIGMAPS, {"metadata": {"name": "b", "labels": {"app": "web"}}})
        await view.wait_until(lambda: bool(view.list()))
        assert [one.metadata.name for one in view.list()] == ["b"]
        await world.patch(CONFIGMAPS, "b", {"metadata": {"labels": {"app": "db"}}})
        await view.wait_until(lambda: not view.list())


async def test_waiting_has_an_end(world: World) -> None:
    async with Informer(world.client, CONFIGMAPS, Partial) as view:
        await view.wait_synced()
        with pytest.raises(DeadlineExceeded, match="configmaps"):
            await view.wait_for(view.version + 1000, timeout_s=0.05)
    late = Informer(world.client, CONFIGMAPS, Partial)
    with pytest.raises(DeadlineExceeded, match="first listing"):
        await late.wait_synced(timeout_s=0.01)


async def test_an_object_that_does_not_fit_is_left_out(world: World, caplog: pytest.LogCaptureFixture) -> None:
    class Strict(Object, frozen=True):
        data: dict[str, int] = {}

    await put(world, "text", n="1")
    await put(world, "none")
    async with Informer(world.client, CONFIGMAPS, Strict, "default") as view:
        await view.wait_synced()
        assert [one.metadata.name for one in view.list()] == ["none"]
    assert "does not fit" in caplog.text


class Scripted:
    """A client whose lists and watches go by a script: each watch plays one act, which may end in an error."""

    def __init__(self, *acts: list[Change | Exception]) -> None:
        self.acts = list(acts)
        self.listed = 0
        self.versions: list[str] = []
        self.items: list[bytes] = []
        self.version = "1"
        self.refuses_initial = True

    async def list(self, kind: Kind, namespace: str = "", *, labels: str = "", fields: str = "") -> Listing:
        self.listed += 1
        return Listing(self.items, self.version)

    async def watch(
        self,
        kind: Kind,
        namespace: str = "",
        *,
        version: str,
        labels: str = "",
        fields: str = "",
        initial: bool = False,
    ) -> AsyncIterator[Change]:
        if initial and self.refuses_initial:
            raise Invalid("sendInitialEvents is not supported")
        self.versions.append(version)
        for step in self.acts.pop(0) if self.acts else []:
            if isinstance(step, Exception):
                raise step
            yield step
        if not self.acts:
            await asyncio.Event().wait()


def config(name: str, version: int, type: str = "ADDED") -> Change:
    return Change(type, orjson.dumps({"metadata": {"name": name, "namespace": "n", "resourceVersion": str(version)}}))


def bookmark(version: int, *, end: bool = False) -> Change:
    annotations = {"k8s.io/initial-events-end": "true"} if end else {}
    return Change("BOOKMARK", orjson.dumps({"metadata": {"resourceVersion": str(version), "annotations": annotations}}))


async def test_a_server_without_watch_list_is_listed(caplog: pytest.LogCaptureFixture) -> None:
    client = Scripted([config("b", 5)])
    client.items = [config("a", 1).object]
    async with Informer(client, CONFIGMAPS, Partial) as view:  # type: ignore[arg-type]
        await view.wait_for(5)
        assert client.listed == 1
        assert {one.metadata.name for one in view.list()} == {"a", "b"}


async def test_it_goes_on_where_a_watch_ended() -> None:
    client = Scripted([config("a", 5)], [Unavailable("away")], [bookmark(9)], [config("b", 10)])
    async with Informer(client, CONFIGMAPS, Partial) as view:  # type: ignore[arg-type]
        await view.wait_for(10)
        assert client.versions == ["1", "5", "5", "9"]
        assert client.listed == 1


async def test_after_expired_it_lists_again_and_tells_the_difference() -> None:
    client = Scripted([config("a", 5), config("b", 6), Expired("compacted")], [])
    gone: list[str] = []
    client.items = []
    async with Informer(client, CONFIGMAPS, Partial) as view:  # type: ignore[arg-type]
        view.on_change(lambda before, now: gone.append(before.metadata.name) if before and not now else None)
        await view.wait_for(6)
        client.items, client.version = [config("b", 6).object, config("c", 8).object], "8"
        await view.wait_for(8)
        assert {one.metadata.name for one in view.list()} == {"b", "c"}
        assert gone == ["a"]


async def test_a_handler_that_fails_does_not_stop_the_others() -> None:
    client = Scripted([config("a", 5)])
    seen: list[str] = []

    def fail(before: Partial | None, now: Partial | None) -> None:
        raise RuntimeError("no")

    async with Informer(client, CONFIGMAPS, Partial) as view:  # type: ignore[arg-type]
        view.on_change(fail)
        view.on_change(lambda before, now: seen.append(now.metadata.name) if now else None)
        await view.wait_for(5)
    assert seen == ["a"]


async def test_a_watch_list_is_one_request() -> None:
    client = Scripted([config("a", 3), bookmark(7, end=True), config("b", 8)])
    client.refuses_initial = False
    async with Informer(client, CONFIGMAPS, Partial) as view:  # type: ignore[arg-type]
        await view.wait_synced()
        await view.wait_for(8)
        assert client.listed == 0
        assert client.versions == [""]
