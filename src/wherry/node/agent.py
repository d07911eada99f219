"""The agent of one node: registers it, and gives each pod bound to it a worker."""

import asyncio
import logging
import shutil
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from wherry.client.backoff import Backoff
from wherry.client.events import About, Recorder
from wherry.client.informer import Informer
from wherry.client.protocol import Client
from wherry.clock import Clock, machine
from wherry.engine.types import Dns
from wherry.errors import Conflict, NotFound, WherryError
from wherry.model.kinds import PODS
from wherry.node import plans, volumes
from wherry.node.pods import ContainerDef, Pod, PodBytes, unsupported
from wherry.node.registration import NodeFacts, Registration
from wherry.node.runtime import ContainerState, PodRuntime, PodState
from wherry.node.sources import Sources
from wherry.node.worker import Worker

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class AgentSettings:
    """How an agent works. `lease_s`/`renew_s` are cluster seconds; `log_root` is where the logs of pods go.

    `services` gives the variables of a namespace's services; `tmpfs(path)` mounts memory for an emptyDir and is absent
    where the agent may not mount; `drained(address)` returns when no service leads there; `with_files` is off for
    simulated nodes, whose pods see no files.
    """

    facts: NodeFacts
    root: Path
    dns_address: str = ""
    cluster_domain: str = "cluster.local"
    host_dns: Dns = field(default_factory=Dns)
    lease_s: int = 40
    renew_s: float = 10.0
    with_files: bool = True
    services: Callable[[str], Sequence[tuple[str, str]]] = lambda namespace: ()
    tmpfs: Callable[[str, str], None] | None = None
    untmpfs: Callable[[str], None] | None = None
    renewed: Callable[[], None] = lambda: None
    drained: Callable[[str], Awaitable[None]] | None = None


class Agent:
    """Runs the pods that the API binds to this node. Enter it to start; leaving it leaves the pods running."""

    def __init__(self, client: Client, runtime: PodRuntime, *, clock: Clock, settings: AgentSettings) -> None:
        self.runtime = runtime
        self.clock = clock
        self.address = settings.facts.address
        self.name = settings.facts.name
        self._client = client
        self._settings = settings
        self._sources = Sources(client, clock)
        self._registration = Registration(
            client, settings.facts, clock=clock, lease_s=settings.lease_s, renew_s=settings.renew_s,
            renewed=settings.renewed,
        )  # fmt: skip
        self._events = Recorder(client, clock, "kubelet", settings.facts.name)
        self._workers: dict[str, tuple[Worker, asyncio.Task[None]]] = {}
        self._told: dict[str, Mapping[str, object]] = {}
        self._informer: Informer[PodBytes] = Informer(
            client, PODS, PodBytes, fields=f"spec.nodeName={settings.facts.name}"
        )
        self._stack = AsyncExitStack()
        self.registered = asyncio.Event()

    async def __aenter__(self) -> "Agent":
        (self._settings.root / "pods").mkdir(parents=True, exist_ok=True)
        await self._stack.__aenter__()
        await self._stack.enter_async_context(self._events)
        await self._adopt()
        self._informer.on_change(self._changed)
        for name, run in (
            ("register", self._keep_registered()), ("pods", self._run_pods()), ("changes", self._run_changes()),
        ):  # fmt: skip
            task = asyncio.create_task(run, name=f"agent:{self.name}:{name}")
            self._stack.push_async_callback(_end, task)
        return self

    async def __aexit__(self, *error: object) -> None:
        for _, task in list(self._workers.values()):
            task.cancel()
        await asyncio.gather(*(task for _, task in self._workers.values()), return_exceptions=True)
        self._workers.clear()
        await self._stack.aclose()

    def find(self, namespace: str, name: str) -> tuple[Pod, PodState | None] | None:
        """Find a pod of this node by name, with what the runtime has of it."""
        for worker, _ in self._workers.values():
            if worker.pod.key == (namespace, name):
                return worker.pod, worker.state
        return None

    # the loops --------------------------------------------------------------------------------------------------------

    async def _keep_registered(self) -> None:
        backoff = Backoff(0.02, 5.0)
        while True:
            try:
                await self._registration.register()
                await self._registration.renew()
                self._settings.renewed()
                break
            except WherryError as error:
                log.debug("node %s: not registered yet: %s", self.name, error.message)
                await machine.sleep(backoff.next_s())
        self.registered.set()
        await self._registration.run()

    async def _run_pods(self) -> None:
        async with self._informer:
            await self._informer.wait_synced(timeout_s=10**9)
            for worker, _ in list(self._workers.values()):
                if self._informer.get(worker.pod.metadata.name, worker.pod.metadata.namespace) is None:
                    worker.lost()
            await asyncio.Event().wait()

    async def _run_changes(self) -> None:
        while True:
            try:
                async for uid in self.runtime.changes():
                    if uid in self._workers:
                        self._workers[uid][0].poke()
            except WherryError as error:  # we read too slowly: everybody looks
                log.debug("node %s: changes of containers: %s", self.name, error.message)
                for worker, _ in list(self._workers.values()):
                    worker.poke()

    async def _adopt(self) -> None:
        """Go on with the pods that an agent before us had, by their last bytes, before the API is there."""
        here = {each.uid: each for each in await self.runtime.pods()}
        for place in (self._settings.root / "pods").glob("*/pod.json"):
            with suppress(OSError, msgspec.MsgspecError):
                kept = msgspec.json.decode(place.read_bytes(), type=PodBytes)
                self._give(kept, here.pop(kept.metadata.uid, None))
        for uid in here:  # a sandbox whose pod we no longer know
            await self.runtime.remove(uid)

    def _changed(self, before: PodBytes | None, now: PodBytes | None) -> None:
        if now is None:
            if before is not None and before.metadata.uid in self._workers:
                self._workers[before.metadata.uid][0].lost()
            return
        if before is not None and before.metadata.uid != now.metadata.uid and before.metadata.uid in self._workers:
            self._workers[before.metadata.uid][0].lost()
        if now.metadata.uid in self._workers:
            if any(each.get("reason") == "NodeNotReady" for each in now.status.conditions):
                self._told.pop(now.metadata.uid, None)  # we were given up, and are here: say again how it is
            self._workers[now.metadata.uid][0].update(now.read())
        elif now.status.phase not in ("Succeeded", "Failed") or now.metadata.deletion_timestamp is not None:
            self._give(now, None)

    def _give(self, pod: PodBytes, state: PodState | None) -> None:
        """Start a worker for a pod."""
        uid = pod.metadata.uid
        refused = "; ".join(unsupported(pod.spec))
        worker = Worker(self, pod.read(), refused, state)
        self._keep(pod)
        task = asyncio.create_task(worker.run(), name=f"pod:{pod.metadata.namespace}/{pod.metadata.name}")
        self._workers[uid] = (worker, task)
        task.add_done_callback(lambda done: self._finished(uid, done))

    def _finished(self, uid: str, task: asyncio.Task[None]) -> None:
        self._told.pop(uid, None)
        self._sources.forget(uid)
        worker, _ = self._workers.pop(uid, (None, None))
        if not task.cancelled() and task.exception() is not None and worker is not None:
            log.error("pod %s/%s: its worker broke", *worker.pod.key, exc_info=task.exception())
            key = worker.pod.key
            asyncio.get_running_loop().call_later(1.0, self._again, key)

    def _again(self, key: tuple[str, str]) -> None:
        pod = self._informer.get(key[1], key[0])
        if pod is not None and pod.metadata.uid not in self._workers:
            self._give(pod, None)

    def _place(self, uid: str) -> Path:
        return self._settings.root / "pods" / uid

    def _keep(self, pod: PodBytes) -> None:
        """Write the pod's bytes, so that it can be run and ended while the API is away."""
        if not self._settings.with_files:
            return
        place = self._place(pod.metadata.uid)
        place.mkdir(parents=True, exist_ok=True, mode=0o750)
        temporary = place / "pod.new"
        temporary.write_bytes(msgspec.json.encode(pod))
        temporary.rename(place / "pod.json")

    # what workers ask for ---------------------------------------------------------------------------------------------

    async def prepare(self, pod: Pod) -> PodState:
        """Make the pod's volumes and sandbox. The sandbox comes first: volumes may show its address."""
        settings = self._settings
        spec = plans.sandbox_spec(
            pod, dns_address=settings.dns_address, cluster_domain=settings.cluster_domain, host_dns=settings.host_dns
        )
        state = await self.runtime.ensure_sandbox(pod.uid, pod.metadata.namespace, pod.metadata.name, spec)
        await self._fill(pod, state)
        return state

    async def drained(self, pod: Pod, state: PodState) -> None:
        """Return when new connections no longer come to the pod, or after a bounded time."""
        if self._settings.drained is not None and state.address:
            await self._settings.drained(state.address)

    async def refresh(self, pod: Pod, state: PodState) -> None:
        """Bring the volumes made from objects up to date."""
        await self._fill(pod, state)

    async def _fill(self, pod: Pod, state: PodState) -> None:
        if not self._settings.with_files:
            return
        namespace = pod.metadata.namespace
        sources = volumes.Sources(
            keys=lambda kind, name: self._sources.keys(namespace, kind, name),
            token=lambda audience, seconds: self._sources.token(pod, audience, seconds),
            address=state.address,
            host_address=self.address,
            capacity=self._settings.facts.capacity,
        )
        context = pod.spec.security_context
        for volume in pod.spec.volumes:
            place = self._place(pod.uid) / "volumes" / volume.name
            if volume.empty_dir is not None:
                fresh = not place.exists()
                if fresh and volume.empty_dir.medium == "Memory" and self._settings.tmpfs is not None:
                    place.mkdir(parents=True)
                    self._settings.tmpfs(str(place), volume.empty_dir.size_limit or "")
                if fresh:
                    volumes.prepare_directory(place, context.fs_group)
            elif volume.host_path is not None:
                volumes.check_host_path(volume.host_path)
            else:
                files = await volumes.render(pod, volume, sources)
                volumes.write_files(place, files, uid=context.run_as_user, gid=context.fs_group)

    async def start(self, pod: Pod, definition: ContainerDef, attempt: int, state: PodState) -> ContainerState:
        """Pull, plan and start one attempt."""
        image = await self.runtime.ensure_image(definition.image, definition.image_pull_policy)
        plans.check_user(pod, definition, image.user)
        namespace = pod.metadata.namespace
        wanted = _references(definition)
        held = {place: await self._sources.keys(namespace, *place) for place in wanted}

        def lookup(kind: str, name: str) -> Mapping[str, str] | None:
            keys = held.get((kind, name))
            return None if keys is None else {key: value.decode(errors="replace") for key, value in keys.items()}

        services = self._settings.services(namespace) if pod.spec.enable_service_links else ()
        env = plans.environment(
            pod, definition, services=services, lookup=lookup, address=state.address, host_address=self.address,
            capacity=self._settings.facts.capacity,
        )  # fmt: skip
        places = {
            each.name: each.host_path.path if each.host_path else str(self._place(pod.uid) / "volumes" / each.name)
            for each in pod.spec.volumes
        }
        mounts = volumes.mounts_of(pod, definition, places, dict(env)) if self._settings.with_files else ()
        log_path = self._place(pod.uid) / "logs" / definition.name / f"{attempt}.log"
        if self._settings.with_files:
            log_path.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
        spec = plans.container_spec(
            pod, definition, attempt=attempt, env=env, mounts=mounts, image=image.id, log_path=str(log_path)
        )
        return await self.runtime.start(pod.uid, definition.name, attempt, spec)

    async def report(self, pod: Pod, status: Mapping[str, object]) -> None:
        """Tell the API the status, where it differs from what was told."""
        if self._told.get(pod.uid) == status:
            return
        told = {
            field: [{"$patch": "replace"}, *value]
            if field in ("podIPs", "hostIPs") and isinstance(value, list)
            else value
            for field, value in status.items()
        }
        body: dict[str, Any] = {"metadata": {"uid": pod.uid}, "status": told}
        meta = pod.metadata
        try:  # strategic: the conditions of others stay
            await self._client.patch(PODS, meta.name, meta.namespace, body, subresource="status", type="strategic")
        except (NotFound, Conflict):
            return  # it is gone, or another of its name is there: the informer will say so
        self._told[pod.uid] = status

    async def gone(self, pod: Pod, *, known: bool) -> None:
        """Nothing of the pod is left here: remove its files, and tell the API where it is still known there."""
        place = self._place(pod.uid)
        if self._settings.untmpfs is not None:
            for volume in pod.spec.volumes:
                if volume.empty_dir is not None and volume.empty_dir.medium == "Memory":
                    self._settings.untmpfs(str(place / "volumes" / volume.name))
        await asyncio.to_thread(shutil.rmtree, place, True)
        if known:
            with suppress(NotFound, Conflict):
                await self._client.delete(PODS, pod.metadata.name, pod.metadata.namespace, uid=pod.uid, grace_s=0)

    def event(self, pod: Pod, type: str, reason: str, message: str, container: str = "") -> None:
        """Tell people."""
        field = f"spec.containers{{{container}}}" if container else ""
        meta = pod.metadata
        about = About(PODS, meta.namespace, meta.name, meta.uid, meta.resource_version, field)
        self._events.event(about, reason, message, warning=type == "Warning")


def _references(definition: ContainerDef) -> set[tuple[str, str]]:
    """The ConfigMaps and Secrets that a container's environment reads."""
    result: set[tuple[str, str]] = set()
    for source in definition.env_from:
        if source.config_map_ref is not None:
            result.add(("ConfigMap", source.config_map_ref.name))
        if source.secret_ref is not None:
            result.add(("Secret", source.secret_ref.name))
    for env in definition.env:
        if env.value_from is not None and env.value_from.config_map_key_ref is not None:
            result.add(("ConfigMap", env.value_from.config_map_key_ref.name))
        if env.value_from is not None and env.value_from.secret_key_ref is not None:
            result.add(("Secret", env.value_from.secret_key_ref.name))
    return result


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
