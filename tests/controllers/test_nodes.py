"""Walks: nodes that fall silent, come back, are tainted, or vanish; in virtual time."""

from pathlib import Path
from typing import Any

from tests.client.world import World, deployment, whole_world
from wherry.clock import VirtualClock
from wherry.controllers.cluster import Memory
from wherry.controllers.eviction import FENCE
from wherry.controllers.settings import Settings
from wherry.model.kinds import DEPLOYMENTS, ENDPOINTSLICES, NODES, PODS, SERVICES

Json = dict[str, Any]


async def pods_on(world: World, node: str, *, ending: bool | None = None) -> list[str]:
    found = [pod for pod in await world.list(PODS) if pod["spec"].get("nodeName") == node]
    if ending is not None:
        found = [pod for pod in found if ("deletionTimestamp" in pod["metadata"]) is ending]
    return [pod["metadata"]["name"] for pod in found]


async def ready_on(world: World, node: str) -> int:
    found = [pod for pod in await world.list(PODS) if pod["spec"].get("nodeName") == node]
    return sum(
        one["type"] == "Ready" and one["status"] == "True" for pod in found for one in pod["status"]["conditions"]
    )


async def taints(world: World, node: str) -> set[str]:
    found = await world.get(NODES, node)
    assert found is not None
    return {f"{one['key'].rpartition('/')[2]}:{one['effect']}" for one in found["spec"].get("taints") or []}


async def running_web(world: World) -> None:
    await world.create(DEPLOYMENTS, deployment("web", replicas=4))
    await world.until(lambda: world.rolled_out("web"))
    assert len(await pods_on(world, "node-1")) == 2


async def test_a_lost_node_is_replaced_after_upstreams_times(tmp_path: Path) -> None:
    async with whole_world(tmp_path, clock=VirtualClock()) as (world, player):
        await running_web(world)
        player.lost.add("node-1")
        await world.advance(55)  # 40 s grace since it was last heard of
        assert await taints(world, "node-1") == {"unreachable:NoSchedule", "unreachable:NoExecute"}
        assert await ready_on(world, "node-1") == 0
        assert len(await pods_on(world, "node-1", ending=False)) == 2  # they tolerate that for 300 s
        await world.advance(310)
        assert len(await pods_on(world, "node-1", ending=True)) == 2  # nobody can say that they have ended
        assert len(await pods_on(world, "node-2", ending=False)) == 4
        await world.until(lambda: world.rolled_out("web"))


async def test_a_fenced_node_is_replaced_in_seconds(tmp_path: Path) -> None:
    settings = Settings.fast_failover()
    async with whole_world(tmp_path, clock=VirtualClock(), settings=settings, toleration_s=1, renew_s=1.0) as (
        world,
        player,
    ):
        await world.patch(NODES, "node-1", {"metadata": {"annotations": {FENCE: "3.5"}}})
        await world.create(
            SERVICES, {"metadata": {"name": "web"}, "spec": {"selector": {"app": "web"}, "ports": [{"port": 80}]}}
        )
        await running_web(world)
        player.lost.add("node-1")
        await world.advance(7)
        await world.until(lambda: world.rolled_out("web"))
        assert await pods_on(world, "node-1") == []  # cut off for sure, so they are gone for sure
        assert len(await pods_on(world, "node-2")) == 4
        found = await world.list(ENDPOINTSLICES, labels="kubernetes.io/service-name=web")
        assert {one["nodeName"] for slice in found for one in slice["endpoints"]} == {"node-2"}


async def test_without_a_fence_nothing_is_forced(tmp_path: Path) -> None:
    settings = Settings.fast_failover()
    async with whole_world(tmp_path, clock=VirtualClock(), settings=settings, toleration_s=1, renew_s=1.0) as (
        world,
        player,
    ):
        await running_web(world)
        player.lost.add("node-1")
        await world.advance(8)
        assert len(await pods_on(world, "node-1", ending=True)) == 2
        assert len(await pods_on(world, "node-2")) == 4


async def test_when_all_nodes_fall_silent_nothing_is_evicted(tmp_path: Path) -> None:
    async with whole_world(tmp_path, clock=VirtualClock(), toleration_s=5) as (world, player):
        await running_web(world)
        player.lost.update(("node-1", "node-2"))
        await world.advance(100)
        assert await taints(world, "node-2") == {"unreachable:NoSchedule"}
        assert len(await pods_on(world, "node-1", ending=False)) == 2


async def test_a_node_that_comes_back_loses_its_taints(tmp_path: Path) -> None:
    async with whole_world(tmp_path, clock=VirtualClock()) as (world, player):
        await running_web(world)
        player.lost.add("node-1")
        await world.advance(55)
        assert await taints(world, "node-1")
        player.lost.clear()
        ready = {"type": "Ready", "status": "True", "reason": "KubeletReady"}
        await world.renew("node-1")
        await world.patch(NODES, "node-1", {"status": {"conditions": [ready]}}, subresource="status")
        await world.advance(1)
        assert await taints(world, "node-1") == set()
        assert await ready_on(world, "node-1") == 0  # its agent may have something to say of them first
        await world.advance(5)
        assert await ready_on(world, "node-1") == 2


def test_after_a_pause_of_our_own_nobody_is_taken_for_lost() -> None:
    memory = Memory()
    memory.awake(1000.0, 1000.0)
    assert memory.since("node-1", "renewed", 1000.0) == 1000.0
    memory.awake(1001.0, 1001.0)
    assert memory.since("node-1", "renewed", 1001.0) == 1000.0
    memory.awake(1601.0, 1601.0)  # the lid was closed for ten minutes
    assert memory.since("node-1", "renewed", 1601.0) == 1600.0
    memory.awake(1601.1, 5000.0)  # cluster time was moved on, by a person: that is no pause
    assert memory.since("node-1", "renewed", 5000.0) == 1600.0


async def test_a_no_execute_taint_evicts_what_does_not_tolerate_it(tmp_path: Path) -> None:
    async with whole_world(tmp_path) as (world, _):
        await running_web(world)
        taint = {"key": "upkeep", "effect": "NoExecute"}
        await world.patch(NODES, "node-1", {"spec": {"taints": [taint]}})

        async def moved() -> bool:
            return len(await pods_on(world, "node-2")) == 4 and await pods_on(world, "node-1") == []

        await world.until(moved)
        await world.until(lambda: world.rolled_out("web"))


async def test_a_cordoned_node_says_so_by_a_taint(tmp_path: Path) -> None:
    async with whole_world(tmp_path) as (world, _):
        await world.patch(NODES, "node-1", {"spec": {"unschedulable": True}})

        async def tainted() -> bool:
            return await taints(world, "node-1") == {"unschedulable:NoSchedule"}

        await world.until(tainted)
        await world.create(DEPLOYMENTS, deployment("web"))
        await world.until(lambda: world.rolled_out("web"))
        assert await pods_on(world, "node-1") == []


async def test_pods_of_a_deleted_node_are_removed(tmp_path: Path) -> None:
    async with whole_world(tmp_path, clock=VirtualClock()) as (world, player):
        await running_web(world)
        player.lost.add("node-1")
        await world.client.delete(NODES, "node-1")
        await world.advance(60)
        assert await pods_on(world, "node-1") == []
        await world.until(lambda: world.rolled_out("web"))
        assert len(await pods_on(world, "node-2")) == 4


async def test_finished_pods_beyond_the_limit_go(tmp_path: Path) -> None:
    clock = VirtualClock()
    async with whole_world(tmp_path, clock=clock, settings=Settings(finished_pods=2), nodes=1) as (world, _):
        for number in range(4):
            spec = {"containers": [{"name": "c", "image": "job:1"}], "nodeName": "node-1"}
            await world.create(PODS, {"metadata": {"name": f"job-{number}"}, "spec": spec})
            await world.settle()
            await world.patch(PODS, f"job-{number}", {"status": {"phase": "Succeeded"}}, subresource="status")
            await world.advance(1)

        async def kept() -> bool:
            return {pod["metadata"]["name"] for pod in await world.list(PODS)} == {"job-2", "job-3"}

        await world.until(kept)
