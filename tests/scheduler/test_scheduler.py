"""The loop on the real API: pods are bound, refusals are told and taken back, and what could help wakes who waits."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.client.world import SCHEDULER, World, api_world
from wherry.client.api import ApiClient
from wherry.clock import VirtualClock, machine
from wherry.errors import Conflict, Unavailable
from wherry.model.kinds import EVENTS, NODES, PODS, PRIORITYCLASSES
from wherry.scheduler.decision import Code
from wherry.scheduler.scheduler import PLACEMENT, Scheduler

Json = dict[str, Any]


@asynccontextmanager
async def scheduling(path: Path, *nodes: str, cpu: str = "4") -> AsyncIterator[World]:
    """A cluster with a scheduler and nothing else that acts; its clock stands still."""
    async with api_world(path, clock=VirtualClock()) as world:
        for name in nodes:
            await world.add_node(name, cpu=cpu)
        async with Scheduler(world.as_user(SCHEDULER), clock=world.clock) as scheduler:
            world.scheduler = scheduler
            await scheduler.wait_synced()
            yield world


async def add(world: World, name: str, cpu: str = "1", **spec: Any) -> None:
    container = {"name": "c", "image": "x:1", "resources": {"requests": {"cpu": cpu}}}
    await world.create(
        PODS, {"metadata": {"name": name, "labels": {"app": name}}, "spec": {"containers": [container], **spec}}
    )


async def node_of(world: World, name: str) -> str:
    found = await world.get(PODS, name)
    assert found is not None
    return str(found["spec"].get("nodeName", ""))


async def bound(world: World, *names: str) -> None:
    async def all_bound() -> bool:
        return all([await node_of(world, name) for name in names])

    await world.until(all_bound)


async def refused(world: World, name: str) -> Json:
    async def told() -> bool:
        return bool((await conditions(world, name)).get(PLACEMENT))

    await world.until(told)
    return await conditions(world, name)


async def conditions(world: World, name: str) -> Json:
    found = await world.get(PODS, name)
    assert found is not None
    return {one["type"]: one for one in found["status"].get("conditions", [])}


async def test_pods_are_bound_and_spread(tmp_path: Path) -> None:
    async with scheduling(tmp_path, "a", "b") as world:
        for number in range(4):
            await add(world, f"p{number}")
        await bound(world, *(f"p{number}" for number in range(4)))
        nodes = [await node_of(world, f"p{number}") for number in range(4)]
        assert sorted(nodes) == ["a", "a", "b", "b"]
        assert (await conditions(world, "p0"))["PodScheduled"]["status"] == "True"
        assert world.scheduler is not None
        why = world.scheduler.why("default", "p0")
        assert why is not None
        assert why.node == nodes[0]


async def test_a_pod_that_fits_nowhere_is_told_why_and_goes_when_it_can(tmp_path: Path) -> None:
    async with scheduling(tmp_path, "a", "b", cpu="1") as world:
        await world.patch(NODES, "b", {"spec": {"taints": [{"key": "k", "effect": "NoSchedule"}]}})
        await world.settle()
        await add(world, "big", cpu="2")
        found = await refused(world, "big")
        assert found["PodScheduled"]["status"] == "False"
        assert found["PodScheduled"]["reason"] == "Unschedulable"
        message = "0/2 nodes are available: 1 Insufficient cpu, 1 node(s) had untolerated taint {k: }."
        assert found["PodScheduled"]["message"] == message
        assert json.loads(found[PLACEMENT]["message"])["nodes"]["a"] == [["InsufficientCpu", "cpu: asks for 2, 1 free"]]
        assert world.scheduler is not None
        why = world.scheduler.why("default", "big")
        assert why is not None
        assert why.nearest == "a"
        assert {refusal.code for refusal in why.refusals["b"]} == {Code.TAINT, Code.CPU}

        async def event() -> bool:
            return any(
                one["reason"] == "FailedScheduling" and one["message"] == message for one in await world.list(EVENTS)
            )

        await world.until(event)
        await world.add_node("c", cpu="3")  # the clock stands still: no back-off stands in its way
        await bound(world, "big")

        async def taken_back() -> bool:
            now = await conditions(world, "big")
            return PLACEMENT not in now and now["PodScheduled"]["status"] == "True"

        await world.until(taken_back)


async def test_a_pod_that_goes_makes_room(tmp_path: Path) -> None:
    async with scheduling(tmp_path, "a", cpu="1") as world:
        await add(world, "first")
        await bound(world, "first")
        await add(world, "second")
        await refused(world, "second")
        await world.client.delete(PODS, "first", "default", grace_s=0)
        await bound(world, "second")


async def test_what_affinity_waits_for_may_come_later(tmp_path: Path) -> None:
    async with scheduling(tmp_path, "a", "b") as world:
        term = {"labelSelector": {"matchLabels": {"app": "db"}}, "topologyKey": "kubernetes.io/hostname"}
        affinity = {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}
        await add(world, "web", affinity=affinity)
        assert (await refused(world, "web"))[PLACEMENT]["reason"] == "PodAffinityMismatch"
        await add(world, "db")
        await bound(world, "web", "db")
        assert await node_of(world, "web") == await node_of(world, "db")


async def test_important_pods_go_first(tmp_path: Path) -> None:
    async with scheduling(tmp_path) as world:
        await world.create(PRIORITYCLASSES, {"metadata": {"name": "high"}, "value": 1000})
        await add(world, "low")
        await add(world, "high", priorityClassName="high")
        for name in ("low", "high"):
            await refused(world, name)
        await world.add_node("a", cpu="1")
        await bound(world, "high")
        await world.settle()
        assert await node_of(world, "low") == ""


async def test_gates_are_waited_for(tmp_path: Path) -> None:
    async with scheduling(tmp_path, "a") as world:
        await add(world, "gated", schedulingGates=[{"name": "example.com/wait"}])

        async def told() -> bool:
            return (await conditions(world, "gated")).get("PodScheduled", {}).get("reason") == "SchedulingGated"

        await world.until(told)
        assert await node_of(world, "gated") == ""
        await world.patch(PODS, "gated", {"spec": {"schedulingGates": None}})
        await bound(world, "gated")


async def test_pods_of_other_schedulers_are_left_alone(tmp_path: Path) -> None:
    async with scheduling(tmp_path, "a") as world:
        await add(world, "theirs", schedulerName="another")
        await add(world, "ours")
        await bound(world, "ours")
        await world.settle()
        assert await node_of(world, "theirs") == ""
        assert world.scheduler is not None
        assert world.scheduler.why("default", "theirs") is None


class Unreliable(ApiClient):
    """Every other binding fails: some before they are done, some after."""

    count = 0

    async def post(self, kind: Any, name: str, namespace: str, subresource: str, body: Json) -> bytes:
        self.count += 1
        if self.count % 4 == 0:
            raise Unavailable("away")
        if self.count % 4 == 2:
            raise Conflict("somebody was faster")
        answer = await super().post(kind, name, namespace, subresource, body)
        if self.count % 4 == 3:
            raise Unavailable("the answer is lost")
        return answer


async def test_a_burst_never_overfills_a_node_even_when_binding_fails(tmp_path: Path) -> None:
    async with api_world(tmp_path) as world:
        for name in ("a", "b", "c"):
            await world.add_node(name, cpu="4")
        client = Unreliable(world.as_user(SCHEDULER)._transport)
        await asyncio.gather(*(add(world, f"p{number:02}") for number in range(20)))
        async with Scheduler(client, clock=world.clock) as scheduler:
            await scheduler.wait_synced()

            async def full() -> bool:
                return sum([bool(pod["spec"].get("nodeName")) for pod in await world.list(PODS)]) == 12

            await world.until(full)
            await machine.sleep(0.3)
            on = [pod["spec"].get("nodeName") for pod in await world.list(PODS)]
            assert sorted(filter(None, on)) == ["a"] * 4 + ["b"] * 4 + ["c"] * 4


async def test_a_hundred_pods_are_bound_quickly(tmp_path: Path) -> None:
    async with scheduling(tmp_path, *(f"n{number}" for number in range(10)), cpu="20") as world:
        began = machine.monotonic()
        await asyncio.gather(*(add(world, f"p{number}") for number in range(100)))
        await bound(world, *(f"p{number}" for number in range(100)))
        assert machine.monotonic() - began < 10
