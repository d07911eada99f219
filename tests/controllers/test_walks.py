"""Walks: what a person sees of deployments, on the real API, controllers and scheduler with played pods."""

from pathlib import Path
from typing import Any

import pytest

from tests.client.world import World, deployment, image, whole_world
from wherry.client.informer import Informer
from wherry.clock import VirtualClock
from wherry.controllers.objects import Deployment
from wherry.errors import Forbidden
from wherry.model.kinds import (
    CONFIGMAPS,
    DEPLOYMENTS,
    ENDPOINTSLICES,
    EVENTS,
    NAMESPACES,
    PODS,
    REPLICASETS,
    SERVICEACCOUNTS,
    SERVICES,
)

Json = dict[str, Any]


async def sizes(world: World) -> list[int]:
    """Pods asked for by each ReplicaSet, oldest revision first."""
    found = await world.list(REPLICASETS)
    found.sort(key=lambda one: int(one["metadata"]["annotations"]["deployment.kubernetes.io/revision"]))
    return [one["spec"]["replicas"] for one in found]


async def count(world: World, kind: Any, namespace: str = "default") -> int:
    return len(await world.list(kind, namespace))


def condition(body: Json, type: str) -> Json:
    return next(one for one in body["status"]["conditions"] if one["type"] == type)


async def test_a_new_version_rolls_out_without_a_gap(tmp_path: Path) -> None:
    async with whole_world(tmp_path) as (world, _):
        await world.create(DEPLOYMENTS, deployment("web", replicas=4))
        await world.until(lambda: world.rolled_out("web"))
        ready: list[int] = []
        asked: list[int] = []
        async with Informer(world.client, DEPLOYMENTS, Deployment) as view:
            await view.wait_synced()
            view.on_change(lambda _, now: ready.append(now.status.available_replicas) if now else None)
            view.on_change(lambda _, now: asked.append(now.status.replicas) if now else None)
            await world.patch(DEPLOYMENTS, "web", image("web:2"))
            await world.until(lambda: world.rolled_out("web"))
        assert min(ready) >= 3  # 25 % of 4 may be away
        assert max(asked) <= 5  # and as many more may be there
        images = {pod["spec"]["containers"][0]["image"] for pod in await world.list(PODS)}
        assert images == {"web:2"}
        found = await world.get(DEPLOYMENTS, "web")
        assert found is not None
        assert found["metadata"]["annotations"]["deployment.kubernetes.io/revision"] == "2"
        assert condition(found, "Progressing")["reason"] == "NewReplicaSetAvailable"
        assert await sizes(world) == [0, 4]


async def test_zero_unavailable_keeps_every_replica(tmp_path: Path) -> None:
    strategy = {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}
    async with whole_world(tmp_path) as (world, _):
        await world.create(DEPLOYMENTS, deployment("web", replicas=3, strategy=strategy))
        await world.until(lambda: world.rolled_out("web"))
        ready: list[int] = []
        async with Informer(world.client, DEPLOYMENTS, Deployment) as view:
            await view.wait_synced()
            view.on_change(lambda _, now: ready.append(now.status.available_replicas) if now else None)
            await world.patch(DEPLOYMENTS, "web", image("web:2"))
            await world.until(lambda: world.rolled_out("web"))
        assert min(ready) >= 3


async def test_scaling_up_and_down(tmp_path: Path) -> None:
    async with whole_world(tmp_path) as (world, _):
        await world.create(DEPLOYMENTS, deployment("web", replicas=2))
        await world.until(lambda: world.rolled_out("web"))
        for wanted in (9, 1, 0):
            await world.patch(DEPLOYMENTS, "web", {"spec": {"replicas": wanted}}, subresource="scale")
            await world.until(lambda: world.rolled_out("web"))

            async def gone(wanted: int = wanted) -> bool:
                return await count(world, PODS) == wanted

            await world.until(gone)
        assert await count(world, REPLICASETS) == 1


async def test_undo_makes_the_old_version_the_newest_revision(tmp_path: Path) -> None:
    async with whole_world(tmp_path) as (world, _):
        await world.create(DEPLOYMENTS, deployment("web", replicas=2))
        await world.until(lambda: world.rolled_out("web"))
        for version in ("web:2", "web:1"):
            await world.patch(DEPLOYMENTS, "web", image(version))
            await world.until(lambda: world.rolled_out("web"))
        found = await world.list(REPLICASETS)
        by_size = sorted(found, key=lambda one: one["spec"]["replicas"])
        annotations = by_size[-1]["metadata"]["annotations"]
        assert len(found) == 2
        assert annotations["deployment.kubernetes.io/revision"] == "3"
        assert annotations["deployment.kubernetes.io/revision-history"] == "1"
        reasons = {event["reason"] for event in await world.list(EVENTS)}
        assert {"ScalingReplicaSet", "SuccessfulCreate", "SuccessfulDelete", "Scheduled"} <= reasons


async def test_a_paused_rollout_waits_and_still_scales(tmp_path: Path) -> None:
    async with whole_world(tmp_path) as (world, _):
        await world.create(DEPLOYMENTS, deployment("web", replicas=2))
        await world.until(lambda: world.rolled_out("web"))
        await world.patch(DEPLOYMENTS, "web", {"spec": {"paused": True, **image("web:2")["spec"], "replicas": 3}})

        async def scaled() -> bool:
            return await sizes(world) == [3]

        await world.until(scaled)
        await world.settle()
        assert await sizes(world) == [3]
        await world.patch(DEPLOYMENTS, "web", {"spec": {"paused": False}})
        await world.until(lambda: world.rolled_out("web"))
        assert await sizes(world) == [0, 3]


async def test_recreate_ends_all_old_pods_first(tmp_path: Path) -> None:
    async with whole_world(tmp_path) as (world, _):
        strategy = {"type": "Recreate", "rollingUpdate": None}
        await world.create(DEPLOYMENTS, deployment("web", replicas=3, strategy={"type": "Recreate"}))
        await world.until(lambda: world.rolled_out("web"))
        together: list[bool] = []

        from wherry.controllers.objects import Pod

        async with Informer(world.client, PODS, Pod) as view:
            await view.wait_synced()

            def look(before: Pod | None, now: Pod | None) -> None:
                hashes = {pod.metadata.labels["pod-template-hash"] for pod in view.list()}
                together.append(len(hashes) > 1)

            view.on_change(look)
            await world.patch(DEPLOYMENTS, "web", {"spec": {"strategy": strategy, **image("web:2")["spec"]}})
            await world.until(lambda: world.rolled_out("web"))
        assert together
        assert not any(together)


async def test_old_revisions_beyond_the_limit_go(tmp_path: Path) -> None:
    async with whole_world(tmp_path) as (world, _):
        await world.create(DEPLOYMENTS, deployment("web", replicas=1, revisionHistoryLimit=1))
        for version in ("web:2", "web:3", "web:4"):
            await world.until(lambda: world.rolled_out("web"))
            await world.patch(DEPLOYMENTS, "web", image(version))
        await world.until(lambda: world.rolled_out("web"))

        async def tidy() -> bool:
            return await count(world, REPLICASETS) == 2

        await world.until(tidy)


async def test_a_rollout_that_does_not_get_ahead_says_so(tmp_path: Path) -> None:
    clock = VirtualClock()
    async with whole_world(tmp_path, clock=clock) as (world, player):
        await world.create(DEPLOYMENTS, deployment("web", replicas=2, progressDeadlineSeconds=60))
        await world.until(lambda: world.rolled_out("web"))
        player.broken.add("web:bad")
        await world.patch(DEPLOYMENTS, "web", image("web:bad"))

        async def started() -> bool:
            return await sizes(world) == [2, 1]

        await world.until(started)
        await world.advance(65)

        async def timed_out() -> bool:
            found = await world.get(DEPLOYMENTS, "web")
            return found is not None and condition(found, "Progressing")["reason"] == "ProgressDeadlineExceeded"

        await world.until(timed_out)
        found = await world.get(DEPLOYMENTS, "web")
        assert found is not None
        assert condition(found, "Progressing")["status"] == "False"
        assert condition(found, "Available")["status"] == "True"
        await world.patch(DEPLOYMENTS, "web", image("web:3"))
        await world.until(lambda: world.rolled_out("web"))


async def test_pods_count_as_available_after_min_ready_seconds(tmp_path: Path) -> None:
    clock = VirtualClock()
    async with whole_world(tmp_path, clock=clock) as (world, _):
        await world.create(DEPLOYMENTS, deployment("web", replicas=2, minReadySeconds=30))

        async def ready() -> bool:
            found = await world.get(DEPLOYMENTS, "web")
            return found is not None and found.get("status", {}).get("readyReplicas") == 2

        await world.until(ready)
        assert not await world.rolled_out("web")
        await world.advance(31)
        await world.until(lambda: world.rolled_out("web"))


@pytest.mark.parametrize("policy", ["Background", "Foreground"])
async def test_deleting_a_deployment_takes_all_below_it(tmp_path: Path, policy: str) -> None:
    async with whole_world(tmp_path) as (world, _):
        await world.create(DEPLOYMENTS, deployment("web"))
        await world.until(lambda: world.rolled_out("web"))
        await world.client.delete(DEPLOYMENTS, "web", "default", propagation=policy)

        async def gone() -> bool:
            return not [one for kind in (DEPLOYMENTS, REPLICASETS, PODS) for one in await world.list(kind)]

        await world.until(gone)


async def test_orphans_stay_and_are_adopted_again(tmp_path: Path) -> None:
    async with whole_world(tmp_path) as (world, _):
        await world.create(DEPLOYMENTS, deployment("web"))
        await world.until(lambda: world.rolled_out("web"))
        before = {one["metadata"]["uid"] for one in await world.list(PODS)}
        await world.client.delete(DEPLOYMENTS, "web", "default", propagation="Orphan")

        async def orphaned() -> bool:
            found = await world.list(REPLICASETS)
            gone = await world.get(DEPLOYMENTS, "web") is None
            return gone and not any(one["metadata"].get("ownerReferences") for one in found)

        await world.until(orphaned)
        await world.settle()
        assert {one["metadata"]["uid"] for one in await world.list(PODS)} == before
        await world.create(DEPLOYMENTS, deployment("web"))
        await world.until(lambda: world.rolled_out("web"))
        assert {one["metadata"]["uid"] for one in await world.list(PODS)} == before
        assert await count(world, REPLICASETS) == 1


async def test_a_pod_that_loses_its_labels_is_released_and_replaced(tmp_path: Path) -> None:
    async with whole_world(tmp_path) as (world, _):
        await world.create(DEPLOYMENTS, deployment("web", replicas=2))
        await world.until(lambda: world.rolled_out("web"))
        name = (await world.list(PODS))[0]["metadata"]["name"]
        await world.patch(PODS, name, {"metadata": {"labels": {"app": "other"}}})

        async def released() -> bool:
            found = await world.get(PODS, name)
            return found is not None and not found["metadata"].get("ownerReferences") and await count(world, PODS) == 3

        await world.until(released)
        await world.patch(PODS, name, {"metadata": {"labels": {"app": "web"}}})  # back: one of three is surplus

        async def two() -> bool:
            return await count(world, PODS) == 2

        await world.until(two)


async def test_a_namespace_ends_with_all_that_is_in_it(tmp_path: Path) -> None:
    async with whole_world(tmp_path) as (world, _):
        await world.create(NAMESPACES, {"metadata": {"name": "shop"}})

        async def given() -> bool:
            account = await world.get(SERVICEACCOUNTS, "default", "shop")
            return account is not None and await world.get(CONFIGMAPS, "kube-root-ca.crt", "shop") is not None

        await world.until(given)
        await world.create(DEPLOYMENTS, deployment("web"), "shop")
        await world.create(CONFIGMAPS, {"metadata": {"name": "c", "finalizers": ["example.com/wait"]}}, "shop")
        await world.until(lambda: world.rolled_out("web", "shop"))
        await world.client.delete(NAMESPACES, "shop")

        async def waits() -> bool:
            found = await world.get(NAMESPACES, "shop")
            assert found is not None
            conditions = {one["type"]: one for one in found["status"].get("conditions", [])}
            remaining = conditions.get("NamespaceContentRemaining", {})
            return "configmaps has 1" in remaining.get("message", "") and await count(world, PODS, "shop") == 0

        await world.until(waits)
        with pytest.raises(Forbidden, match="terminated"):
            await world.create(CONFIGMAPS, {"metadata": {"name": "late"}}, "shop")
        await world.patch(CONFIGMAPS, "c", {"metadata": {"finalizers": None}}, "shop")

        async def gone() -> bool:
            return await world.get(NAMESPACES, "shop") is None

        await world.until(gone)
        assert await count(world, DEPLOYMENTS, "shop") == 0


async def test_what_every_namespace_has_comes_again(tmp_path: Path) -> None:
    async with whole_world(tmp_path, nodes=0) as (world, _):

        async def given() -> bool:
            found = await world.get(CONFIGMAPS, "kube-root-ca.crt")
            account = await world.get(SERVICEACCOUNTS, "default")
            return account is not None and found is not None and found["data"] == {"ca.crt": "PEM"}

        await world.until(given)
        await world.client.delete(SERVICEACCOUNTS, "default", "default")
        await world.patch(CONFIGMAPS, "kube-root-ca.crt", {"data": {"ca.crt": "forged"}})
        await world.until(given)


async def test_endpoints_follow_the_pods_of_a_service(tmp_path: Path) -> None:
    async with whole_world(tmp_path) as (world, player):
        service = {"selector": {"app": "web"}, "ports": [{"name": "http", "port": 80, "targetPort": 8080}]}
        await world.create(SERVICES, {"metadata": {"name": "web"}, "spec": service})
        await world.create(DEPLOYMENTS, deployment("web"))
        player.broken.add("web:bad")

        async def slices() -> list[Json]:
            return await world.list(ENDPOINTSLICES, labels="kubernetes.io/service-name=web")

        async def addresses(ready: bool = True) -> set[str]:
            found = [one for slice in await slices() for one in slice["endpoints"] or []]
            return {one["addresses"][0] for one in found if one["conditions"]["ready"] is ready}

        async def agree(wanted: int, unready: int = 0) -> bool:
            pods = {pod["status"].get("podIP") for pod in await world.list(PODS)}
            now = await addresses()
            return len(now) == wanted and now <= pods and len(await addresses(False)) == unready

        await world.until(lambda: agree(3))
        found = (await slices())[0]
        assert found["ports"] == [{"name": "http", "protocol": "TCP", "port": 8080}]
        assert (
            found["metadata"]["labels"]["endpointslice.kubernetes.io/managed-by"] == "endpointslice-controller.k8s.io"
        )
        assert found["endpoints"][0]["targetRef"]["kind"] == "Pod"
        await world.patch(DEPLOYMENTS, "web", image("web:bad"))
        await world.until(lambda: agree(3, unready=1))
        await world.patch(DEPLOYMENTS, "web", {"spec": {"replicas": 0}})
        await world.until(lambda: agree(0))
        await world.client.delete(SERVICES, "web", "default")

        async def gone() -> bool:
            return not await slices()

        await world.until(gone)
