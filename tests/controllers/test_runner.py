"""The runner: failures stay where they are, and an API that fails half the time delays things and breaks nothing."""

import asyncio
import random
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from tests.client.world import Player, World, api_world, deployment, image, whole_world
from wherry.client.api import ApiClient
from wherry.client.objects import Key, Object, Partial
from wherry.client.protocol import Answer
from wherry.client.transports import LocalTransport
from wherry.controllers.cluster import Cluster, Controller, Watch, itself
from wherry.controllers.runner import CONTROLLERS, Controllers
from wherry.errors import Unavailable
from wherry.model import users
from wherry.model.kinds import CONFIGMAPS, DEPLOYMENTS, ENDPOINTSLICES, KINDS, PODS, REPLICASETS, SERVICES
from wherry.model.users import User
from wherry.scheduler.scheduler import Scheduler


async def test_one_that_fails_does_not_stop_the_others(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    done: list[str] = []
    tries: list[str] = []

    async def good(key: Key, cluster: Cluster) -> None:
        done.append(key[1])

    async def bad(key: Key, cluster: Cluster) -> None:
        tries.append(key[1])
        if key[1] == "a":
            raise RuntimeError("a bug")
        done.append(f"bad {key[1]}")

    def broken(cluster: Cluster, before: Object | None, now: Object | None) -> Sequence[Key]:
        raise RuntimeError("a bug in what wakes")

    several = (
        Controller("root-ca-cert-publisher", (Watch(CONFIGMAPS, Partial, itself),), bad),
        Controller("namespace-controller", (Watch(CONFIGMAPS, Partial, broken),), good),
        Controller("service-account-controller", (Watch(CONFIGMAPS, Partial, itself),), good),
    )
    async with api_world(tmp_path) as world:
        async with Controllers(world.as_user, clock=world.clock, controllers=several) as controllers:
            await controllers.wait_synced()
            for name in ("a", "b"):
                await world.create(CONFIGMAPS, {"metadata": {"name": name}})

            async def seen() -> bool:
                return {"a", "b", "bad b"} <= set(done) and tries.count("a") > 2

            await world.until(seen)
    assert "bad a" not in done
    assert "a bug" in caplog.text


def test_every_controller_has_an_identity_that_the_api_knows() -> None:
    from wherry.api.roles import CONTROLLERS as ROLES

    assert {one.acts_as or one.name for one in CONTROLLERS} <= set(ROLES)
    assert len({one.name for one in CONTROLLERS}) == len(CONTROLLERS)
    assert users.controller("x").name == "system:controller:x"
    watched = {watch.kind for one in CONTROLLERS for watch in one.watches}
    assert watched <= set(KINDS)


class Flaky(LocalTransport):
    """A third of all requests fail, before or after they were done."""

    rate = 0.3

    async def send(
        self,
        method: str,
        path: str,
        *,
        query: Sequence[tuple[str, str]] = (),
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
    ) -> Answer:
        luck = random.random()
        if luck < self.rate / 2:
            raise Unavailable("lost on the way there")
        answer = await super().send(method, path, query=query, headers=headers, body=body)
        if luck < self.rate:
            await answer.close()
            raise Unavailable("lost on the way back")
        return answer


async def test_an_api_that_fails_often_delays_and_breaks_nothing(tmp_path: Path) -> None:
    random.seed(7)
    async with api_world(tmp_path) as world:
        for name in ("node-1", "node-2"):
            await world.add_node(name)

        def flaky(user: User) -> ApiClient:
            return ApiClient(Flaky(world.api.serve, user))

        async with (
            Controllers(flaky, clock=world.clock) as controllers,
            Scheduler(flaky(User("system:kube-scheduler", ("system:authenticated",))), clock=world.clock) as scheduler,
        ):
            await controllers.wait_synced()
            await scheduler.wait_synced()
            play = asyncio.create_task(Player(world).run())
            service = {"selector": {"app": "web"}, "ports": [{"port": 80}]}
            await world.create(SERVICES, {"metadata": {"name": "web"}, "spec": service})
            await world.create(DEPLOYMENTS, deployment("web", replicas=3))
            await world.until(lambda: world.rolled_out("web"), 30)
            await world.patch(DEPLOYMENTS, "web", {"spec": {"replicas": 6, **image("web:2")["spec"]}})
            await world.until(lambda: world.rolled_out("web"), 30)

            async def exact() -> bool:
                pods = await world.list(PODS)
                slices = await world.list(ENDPOINTSLICES, labels="kubernetes.io/service-name=web")
                sets = [one["spec"]["replicas"] for one in await world.list(REPLICASETS)]
                backends = [one["addresses"][0] for slice in slices for one in slice["endpoints"] or []]
                return (
                    {pod["spec"]["containers"][0]["image"] for pod in pods} == {"web:2"}
                    and sorted(sets) == [0, 6]
                    and sorted(backends) == sorted(pod["status"]["podIP"] for pod in pods)
                    and len(pods) == 6
                )

            await world.until(exact, 30)
            await world.client.delete(DEPLOYMENTS, "web", "default", propagation="Foreground")

            async def gone() -> bool:
                return not [one for kind in (DEPLOYMENTS, REPLICASETS, PODS) for one in await world.list(kind)]

            await world.until(gone, 30)
            play.cancel()
            await asyncio.gather(play, return_exceptions=True)


async def test_controllers_that_start_late_catch_up(tmp_path: Path) -> None:
    """What was made, changed and deleted while nobody looked is settled when they come back."""

    async def made(world: World) -> None:
        await world.create(DEPLOYMENTS, deployment("old", replicas=2))
        await world.until(lambda: world.rolled_out("old"))

    async with whole_world(tmp_path) as (world, _):
        await made(world)
        assert world.controllers is not None
        await world.controllers.__aexit__(None, None, None)
        await world.client.delete(DEPLOYMENTS, "old", "default")  # nobody collects what it leaves
        await world.create(DEPLOYMENTS, deployment("new", replicas=2))
        assert len(await world.list(REPLICASETS)) == 1
        async with Controllers(world.as_user, clock=world.clock) as again:
            await again.wait_synced()
            await world.until(lambda: world.rolled_out("new"))

            async def tidy() -> bool:
                return [one["metadata"]["labels"]["app"] for one in await world.list(PODS)] == ["new", "new"]

            await world.until(tidy)
