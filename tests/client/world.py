"""A whole control plane in one test: real store and API, controllers and scheduler, and pods that are only played."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import orjson

from wherry.api.pki import Authority
from wherry.api.server import Api
from wherry.api.settings import Settings as ApiSettings
from wherry.client.api import ApiClient
from wherry.client.informer import Informer
from wherry.client.transports import LocalTransport
from wherry.clock import Clock, RealClock, VirtualClock, machine, rfc3339, rfc3339_micro
from wherry.controllers.objects import Pod
from wherry.controllers.runner import Controllers
from wherry.controllers.settings import Settings
from wherry.errors import Conflict, NotFound, WherryError
from wherry.model.kinds import DEPLOYMENTS, LEASES, NAMESPACES, NODES, PODS, Kind
from wherry.model.users import User
from wherry.scheduler.scheduler import Scheduler
from wherry.store.sqlite import SqliteStore

ADMIN = User("admin", ("system:masters", "system:authenticated"))
SCHEDULER = User("system:kube-scheduler", ("system:authenticated",))

Json = dict[str, Any]


class World:
    """What a test holds: clients, and questions about the cluster."""

    def __init__(self, api: Api, clock: Clock) -> None:
        self.api, self.clock = api, clock
        self.client = self.as_user(ADMIN)
        self.controllers: Controllers | None = None
        self.scheduler: Scheduler | None = None

    def as_user(self, user: User) -> ApiClient:
        return ApiClient(LocalTransport(self.api.serve, user))

    async def get(self, kind: Kind, name: str, namespace: str = "default") -> Json | None:
        try:
            return orjson.loads(await self.client.get(kind, name, namespace if kind.namespaced else ""))
        except NotFound:
            return None

    async def list(self, kind: Kind, namespace: str = "default", labels: str = "") -> list[Json]:
        found = await self.client.list(kind, namespace if kind.namespaced else "", labels=labels)
        return [orjson.loads(item) for item in found.items]

    async def create(self, kind: Kind, body: Json, namespace: str = "default") -> Json:
        body = {"apiVersion": kind.api_version, "kind": kind.kind, **body}
        return orjson.loads(await self.client.create(kind, body, namespace if kind.namespaced else ""))

    async def patch(
        self, kind: Kind, name: str, patch: Json, namespace: str = "default", subresource: str = ""
    ) -> Json:
        where = namespace if kind.namespaced else ""
        return orjson.loads(await self.client.patch(kind, name, where, patch, subresource=subresource))

    async def add_node(self, name: str, *, annotations: Json | None = None, **allocatable: str) -> None:
        """A node that says it is ready; its lease is renewed once."""
        amounts = {"cpu": "4", "memory": "8Gi", "pods": "110", **allocatable}
        now = rfc3339(self.clock.now())
        ready = {"type": "Ready", "status": "True", "reason": "KubeletReady", "lastTransitionTime": now}
        labels = {"kubernetes.io/hostname": name}
        await self.create(NODES, {"metadata": {"name": name, "labels": labels, "annotations": annotations or {}}})
        status = {"capacity": amounts, "allocatable": amounts, "conditions": [ready]}
        await self.patch(NODES, name, {"status": status}, subresource="status")
        await self.renew(name)

    async def renew(self, name: str) -> None:
        """The node's agent lives."""
        spec = {"holderIdentity": name, "leaseDurationSeconds": 40, "renewTime": rfc3339_micro(self.clock.now())}
        try:
            await self.patch(LEASES, name, {"spec": spec}, "kube-node-lease")
        except NotFound:
            await self.create(LEASES, {"metadata": {"name": name}, "spec": spec}, "kube-node-lease")

    async def until(self, holds: Callable[[], Awaitable[object]], timeout_s: float = 15.0) -> None:
        """Wait for a state."""
        try:
            async with machine.timeout(timeout_s):
                while not await holds():
                    await machine.sleep(0.01)
        except TimeoutError:
            raise AssertionError(f"not within {timeout_s} s: {holds}; {await self.summary()}") from None

    async def settle(self) -> None:
        """Wait until the controllers and the scheduler have nothing to do, and the views show what was done."""
        quiet = 0
        while quiet < 3:
            await machine.sleep(0.015)
            parts = [part for part in (self.controllers, self.scheduler) if part is not None]
            quiet = quiet + 1 if all(part.is_idle for part in parts) else 0

    async def advance(self, seconds: float) -> None:
        """Move a virtual clock, timer by timer, letting everybody finish what each woke."""
        assert isinstance(self.clock, VirtualClock)
        await self.settle()
        await self.clock.advance(seconds, settle=self.settle)
        await self.settle()

    async def summary(self) -> str:
        lines = [
            f"{one['kind']} {one['metadata']['name']} {orjson.dumps(one.get('status', {})).decode()[:600]}"
            for kind in (DEPLOYMENTS, PODS)
            for one in await self.list(kind, "")
        ]
        return "\n".join(lines)

    async def rolled_out(self, name: str, namespace: str = "default") -> bool:
        """What `kubectl rollout status` waits for."""
        found = await self.get(DEPLOYMENTS, name, namespace)
        if found is None:
            return False
        status, wanted = found.get("status", {}), found["spec"]["replicas"]
        return status.get("observedGeneration", 0) >= found["metadata"]["generation"] and all(
            status.get(count, 0) == wanted for count in ("replicas", "updatedReplicas", "availableReplicas")
        )


class Player:
    """Plays the agents of all nodes: a bound pod runs and is ready at once, a deleted one goes at once.

    Nodes in `lost` are silent: nothing of theirs changes. Images in `broken` never become ready.
    """

    def __init__(self, world: World, renew_s: float = 10.0) -> None:
        self.world, self.renew_s = world, renew_s
        self.lost: set[str] = set()
        self.broken: set[str] = set()
        self._number = 0
        self._todo: asyncio.Queue[Pod] = asyncio.Queue()

    async def heartbeats(self) -> None:
        """Renew the leases of the nodes that live."""
        while True:
            await self.world.clock.sleep(self.renew_s)
            for node in await self.world.list(NODES):
                if node["metadata"]["name"] not in self.lost:
                    await self.world.renew(node["metadata"]["name"])

    async def run(self) -> None:
        async with Informer(self.world.client, PODS, Pod) as pods:
            await pods.wait_synced()
            pods.on_change(lambda before, now: self._todo.put_nowait(now) if now is not None else None)
            while True:
                pod = await self._todo.get()
                try:
                    await self._play(pod)
                except (NotFound, Conflict):
                    continue

    async def _play(self, pod: Pod) -> None:
        node = pod.spec.node_name
        if not node or node in self.lost:
            return
        client, meta = self.world.client, pod.metadata
        if pod.is_deleting:
            await client.delete(PODS, meta.name, meta.namespace, uid=meta.uid, grace_s=0)
            return
        if pod.status.phase != "Pending":
            return
        body = orjson.loads(await client.get(PODS, meta.name, meta.namespace))
        ready = body["spec"]["containers"][0]["image"] not in self.broken
        self._number += 1
        time = rfc3339(self.world.clock.now())
        address = f"10.42.{self._number // 250}.{self._number % 250 + 1}"
        conditions = [
            {"type": type, "status": "True" if ready else "False", "lastTransitionTime": time}
            for type in ("Initialized", "ContainersReady", "Ready", "PodScheduled")
        ]
        status = {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}], "conditions": conditions}
        patch = {"metadata": {"uid": meta.uid}, "status": status}
        await client.patch(PODS, meta.name, meta.namespace, patch, subresource="status", type="strategic")


@asynccontextmanager
async def api_world(path: Path, *, clock: Clock | None = None, toleration_s: int = 300) -> AsyncIterator[World]:
    """A store and an API, and nothing that acts by itself."""
    clock = clock or RealClock()
    async with AsyncExitStack() as stack:
        store = await SqliteStore.open(path / "store", clock=clock, durability="test")
        stack.push_async_callback(store.close)
        authority = Authority.load_or_create(path / "pki", clock)
        api = Api(store, clock=clock, authority=authority, settings=ApiSettings(toleration_s=toleration_s))
        await api.start()
        stack.push_async_callback(api.close)
        yield World(api, clock)


@asynccontextmanager
async def whole_world(
    path: Path,
    *,
    clock: Clock | None = None,
    settings: Settings | None = None,
    toleration_s: int = 300,
    nodes: int = 2,
    renew_s: float = 10.0,
) -> AsyncIterator[tuple[World, Player]]:
    """A cluster with controllers, scheduler and played nodes `node-1`, ..."""
    async with AsyncExitStack() as stack:
        world = await stack.enter_async_context(api_world(path, clock=clock, toleration_s=toleration_s))
        for number in range(1, nodes + 1):
            await world.add_node(f"node-{number}")
        world.controllers = await stack.enter_async_context(
            Controllers(world.as_user, clock=world.clock, settings=settings or Settings(root_ca="PEM"))
        )
        world.scheduler = await stack.enter_async_context(Scheduler(world.as_user(SCHEDULER), clock=world.clock))
        player = Player(world, renew_s)
        for work in (player.run(), player.heartbeats()):
            stack.push_async_callback(_end, asyncio.create_task(work))
        await world.controllers.wait_synced()
        await world.scheduler.wait_synced()
        yield world, player


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def deployment(name: str, replicas: int = 3, image: str = "web:1", **spec: Any) -> Json:
    labels = {"app": name}
    template = {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "web", "image": image}]}}
    return {
        "metadata": {"name": name},
        "spec": {"replicas": replicas, "selector": {"matchLabels": labels}, "template": template, **spec},
    }


def image(name: str) -> Json:
    """A patch that changes the image of `deployment`."""
    return {"spec": {"template": {"spec": {"containers": [{"name": "web", "image": name}]}}}}


__all__ = ["NAMESPACES", "Player", "WherryError", "World", "api_world", "deployment", "image", "whole_world"]
