"""Elections: at most one leads; another takes over when it has died; and events, written and counted."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.client.world import World, api_world
from wherry.client.election import Election
from wherry.client.events import About, Recorder
from wherry.clock import VirtualClock, machine
from wherry.model.kinds import EVENTS, LEASES, PODS


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with api_world(tmp_path, clock=VirtualClock()) as world:
        yield world


def clock_of(world: World) -> VirtualClock:
    assert isinstance(world.clock, VirtualClock)
    return world.clock


async def pass_(world: World, seconds: float) -> None:
    async def settle() -> None:
        await machine.sleep(0.005)

    await settle()
    await clock_of(world).advance(seconds, settle=settle)
    await settle()


async def test_one_leads_and_another_takes_over(world: World) -> None:
    leading: list[str] = []

    async def stand(name: str) -> None:
        async def work() -> None:
            leading.append(name)
            try:
                await asyncio.Event().wait()
            finally:
                leading.remove(name)

        await Election(world.client, "scheduler", name, clock=world.clock).run(work)

    tasks = {name: asyncio.create_task(stand(name)) for name in ("a", "b", "c")}
    await pass_(world, 5)
    assert len(leading) == 1
    first = leading[0]
    await pass_(world, 60)
    assert leading == [first]
    tasks[first].cancel()
    await asyncio.gather(tasks.pop(first), return_exceptions=True)
    await pass_(world, 10)  # it gave its lease back: nobody waits for it to run out
    assert len(leading) == 1
    assert leading != [first]
    lease = await world.get(LEASES, "scheduler", "kube-system")
    assert lease is not None
    assert lease["spec"]["holderIdentity"] == leading[0]
    for task in tasks.values():
        task.cancel()
    await asyncio.gather(*tasks.values(), return_exceptions=True)


async def test_a_lease_that_runs_out_is_taken(world: World) -> None:
    spec = {"holderIdentity": "dead", "leaseDurationSeconds": 15}
    await world.create(LEASES, {"metadata": {"name": "scheduler"}, "spec": spec}, "kube-system")
    led = asyncio.Event()

    async def work() -> None:
        led.set()

    election = asyncio.create_task(Election(world.client, "scheduler", "b", clock=world.clock).run(work))
    await pass_(world, 10)
    assert not led.is_set()
    await pass_(world, 10)
    assert led.is_set()
    await election


async def test_a_leader_whose_lease_is_taken_stops(world: World) -> None:
    leading = asyncio.Event()

    async def work() -> None:
        leading.set()
        try:
            await asyncio.Event().wait()
        finally:
            leading.clear()

    election = asyncio.create_task(Election(world.client, "scheduler", "a", clock=world.clock).run(work))
    await pass_(world, 1)
    assert leading.is_set()
    await world.patch(LEASES, "scheduler", {"spec": {"holderIdentity": "thief"}}, "kube-system")
    await pass_(world, 4)
    assert not leading.is_set()
    election.cancel()
    await asyncio.gather(election, return_exceptions=True)


async def test_events_are_counted_when_they_repeat(world: World) -> None:
    about = About(PODS, "default", "web-1", "uid-1")
    async with Recorder(world.client, world.clock, "test") as recorder:
        for _ in range(3):
            recorder.event(about, "Pulled", "the image is here")
        recorder.event(about, "Failed", "it is not", warning=True)
        async with machine.timeout(5):
            await recorder.flush()
        found = {event["reason"]: event for event in await world.list(EVENTS)}
        assert found["Pulled"]["count"] == 3
        assert found["Failed"]["type"] == "Warning"
        assert found["Failed"]["involvedObject"]["name"] == "web-1"
        for event in found.values():
            await world.client.delete(EVENTS, event["metadata"]["name"], "default")
        recorder.event(about, "Pulled", "the image is here")
        async with machine.timeout(5):
            await recorder.flush()
        assert [event["count"] for event in await world.list(EVENTS)] == [1]


async def test_a_loop_somewhere_does_not_fill_the_store(world: World) -> None:
    async with Recorder(world.client, world.clock, "test") as recorder:
        for number in range(200):
            recorder.event(About(PODS, "default", "web-1", "uid-1"), "Loop", f"again {number}")
        recorder.event(About(PODS, "default", "other", "uid-2"), "Fine", "all others are heard")
        async with machine.timeout(10):
            await recorder.flush()
        found = await world.list(EVENTS)
        assert len(found) == 26
        assert any(event["reason"] == "Fine" for event in found)
