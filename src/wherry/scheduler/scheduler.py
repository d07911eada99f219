"""The loop: takes pods that have no node, by priority, decides, and binds; keeps why it could not."""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Iterable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import msgspec

from wherry.client.backoff import Backoff
from wherry.client.events import About, Recorder
from wherry.client.informer import Informer
from wherry.client.objects import Key, Object, Partial
from wherry.client.protocol import Client, Json
from wherry.client.queue import WorkQueue
from wherry.clock import Clock, machine, rfc3339
from wherry.errors import Conflict, NotFound, WherryError
from wherry.model.kinds import NAMESPACES, NODES, PODS, SERVICES
from wherry.scheduler.decide import decide
from wherry.scheduler.decision import Code, Decision, compact
from wherry.scheduler.filters import fits
from wherry.scheduler.objects import Condition, Node, Pod, Service
from wherry.scheduler.state import PodInfo, State
from wherry.scheduler.topology import topology_of

log = logging.getLogger(__name__)

NAME = "default-scheduler"

PLACEMENT = "wherry.dev/placement"
"""The type of a pod's condition whose message is `decision.compact`: why it has no node, for other programs."""

SCHEDULED = "PodScheduled"
GATED = "Scheduling is blocked due to non-empty scheduling gates"

ANYWHERE = frozenset((Code.SPREAD, Code.AFFINITY, Code.ANTI_AFFINITY, Code.REFUSED_BY_PODS))
"""Reasons that a change on one node may lift on another."""

REMEMBERED = 1000  # decisions about pods that have a node by now


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of a scheduler. `attempts` are under way at a time (deciding takes turns; binding waits for the API).

    A pod that went nowhere is looked at again when something could help it, and every `again_s` cluster seconds.
    """

    name: str = NAME
    attempts: int = 32
    again_s: float = 300.0


class Scheduler:
    """Schedules the pods that name it, through `client`. Enter it to start."""

    def __init__(self, client: Client, *, clock: Clock, settings: Settings | None = None) -> None:
        self._client, self._clock = client, clock
        self._settings = settings or Settings()
        self._pods = Informer(client, PODS, Pod)
        self._nodes = Informer(client, NODES, Node)
        self._services = Informer(client, SERVICES, Service)
        self._namespaces = Informer(client, NAMESPACES, Partial)
        self._recorder = Recorder(client, clock, self._settings.name)
        self._queue: WorkQueue[Key] = WorkQueue(clock, base_s=0.1, cap_s=10.0, rank=self._rank)
        self._state = State()
        self._parked: dict[Key, Decision] = {}
        self._decided: OrderedDict[Key, Decision] = OrderedDict()
        self._changed: set[str] = set()
        self._recheck = asyncio.Event()
        self._turn = 0
        self._stack = AsyncExitStack()
        self._running = False

    @property
    def is_synced(self) -> bool:
        """Whether it knows the cluster and schedules."""
        return self._running

    @property
    def is_idle(self) -> bool:
        """Whether no pod waits for a decision; pods that went nowhere do not count."""
        return self._running and self._queue.is_idle and not self._recheck.is_set()

    def why(self, namespace: str, name: str) -> Decision | None:
        """The last decision about a pod: its node, or every node's reasons; None if it was never looked at."""
        key = (namespace, name)
        return self._parked.get(key) or self._decided.get(key)

    async def wait_synced(self, timeout_s: float = 60.0) -> None:
        """Wait until it schedules. Raises DeadlineExceeded."""
        for view in self._views():
            await view.wait_synced(timeout_s)
        while not self._running:
            await machine.sleep(0)

    async def __aenter__(self) -> "Scheduler":
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self._recorder)
            await stack.enter_async_context(self._queue)
            for view in self._views():
                await stack.enter_async_context(view)
            task = asyncio.create_task(self._run(), name="scheduler")
            stack.push_async_callback(_end, task)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._stack.aclose()

    def _views(self) -> Iterable[Informer[Any]]:
        return (self._namespaces, self._services, self._nodes, self._pods)

    async def _run(self) -> None:
        """Learn the cluster, then decide for ever; a crash of the workers starts them anew, later each time."""
        for view in self._views():
            while not view.is_synced:
                try:
                    await view.wait_synced()
                except WherryError as error:
                    log.warning("scheduler waits: %s", error.message)
        self._namespaces.on_change(self._namespace_changed)
        self._services.on_change(self._service_changed)
        self._nodes.on_change(self._node_changed)
        self._pods.on_change(self._pod_changed)
        self._running = True
        backoff = Backoff(cap_s=60.0)
        while True:
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._watch_changes(), name="scheduler:changes")
                    group.create_task(
                        self._queue.work(self._attempt, name="scheduler", workers=self._settings.attempts)
                    )
            except Exception:
                log.exception("the scheduler failed and is started again")
            await machine.sleep(backoff.next_s())

    # What changes ----------------------------------------------------------------------------------------------------

    def _namespace_changed(self, before: Object | None, now: Object | None) -> None:
        found = now or before
        if found is not None:
            self._state.namespaces[found.metadata.name] = found.metadata.labels
        if now is None and before is not None:
            self._state.namespaces.pop(before.metadata.name, None)

    def _service_changed(self, before: Service | None, now: Service | None) -> None:
        found = now or before
        if found is None:
            return
        there = self._state.services.setdefault(found.metadata.namespace, {})
        if now is not None:
            there[now.metadata.name] = now
        else:
            there.pop(found.metadata.name, None)
            if not there:
                del self._state.services[found.metadata.namespace]

    def _node_changed(self, before: Node | None, now: Node | None) -> None:
        if now is None:
            if before is not None:
                self._state.remove_node(before.metadata.name)
                self._something_changed("")
            return
        if before is not None and _same_place(before, now):
            return  # a heartbeat
        self._state.set_node(now)
        self._something_changed(now.metadata.name)

    def _pod_changed(self, before: Pod | None, now: Pod | None) -> None:
        node_before = before.spec.node_name if before is not None else ""
        if now is None:
            if before is not None:
                self._forget(before)
                self._something_changed(node_before)
            return
        if before is not None and before.metadata.uid != now.metadata.uid:
            self._forget(before)
        self._state.set_pod(now)
        if now.spec.node_name or now.is_finished:
            self._parked.pop(now.key, None)
            if before is None or node_before != now.spec.node_name or before.is_finished != now.is_finished:
                self._something_changed(now.spec.node_name)
        elif self._is_ours(now) and (before is None or not _same_wish(before, now)):
            self._parked.pop(now.key, None)
            self._queue.add(now.key)

    def _forget(self, pod: Pod) -> None:
        self._state.remove_pod(pod.metadata.uid)
        self._parked.pop(pod.key, None)
        self._decided.pop(pod.key, None)

    def _is_ours(self, pod: Pod) -> bool:
        return (
            pod.spec.scheduler_name == self._settings.name
            and not pod.spec.node_name
            and not pod.is_finished
            and not pod.metadata.is_deleting
        )

    def _something_changed(self, node: str) -> None:
        """A node, or the pods on it, are others than before: some parked pod may fit now."""
        if self._parked:
            self._changed.add(node)
            self._recheck.set()

    async def _watch_changes(self) -> None:
        """Put back in line the parked pods that fit now: each is tried on what changed, and no other wakes."""
        while True:
            await self._recheck.wait()
            await machine.sleep(0)  # let what comes together come together
            changed, self._changed = self._changed, set()
            self._recheck.clear()
            for count, (key, decision) in enumerate(sorted(self._parked.items(), key=lambda item: self._rank(item[0]))):
                if count % 20 == 19:
                    await machine.sleep(0)
                pod = self._pods.get(key[1], key[0])
                if pod is None or self._parked.get(key) is not decision:
                    continue
                info = PodInfo(pod)
                topology = topology_of(info, self._state)
                everywhere = bool(decision.codes & ANYWHERE)
                names = self._state.nodes if everywhere else changed
                if any(fits(info, node, topology) for name in names if (node := self._state.nodes.get(name))):
                    self._queue.add(key)

    # One pod ---------------------------------------------------------------------------------------------------------

    def _rank(self, key: Key) -> int:
        pod = self._pods.get(key[1], key[0])
        return -pod.spec.priority if pod is not None else 0

    async def _attempt(self, key: Key) -> None:
        """Decide about one pod and act on it. Deciding has no await in it: what it counts cannot change meanwhile."""
        pod = self._pods.get(key[1], key[0])
        if pod is None or not self._is_ours(pod) or self._state.is_placed(pod.metadata.uid):
            return
        if pod.spec.scheduling_gates:
            await self._say(pod, _condition(SCHEDULED, "SchedulingGated", GATED))
            return
        info = PodInfo(pod)
        decision = decide(info, self._state, self._clock.now(), start=self._turn)
        if decision.node:
            self._turn += 1
            self._state.assume(info, decision.node)
            self._parked.pop(key, None)
            await self._bind(info, decision)
        else:
            self._parked[key] = decision
            self._queue.add_after(key, self._settings.again_s)
            await self._refuse(pod, decision)

    async def _bind(self, info: PodInfo, decision: Decision) -> None:
        """Bind; if that fails, the place is free again. Raises what the API said, unless the pod is not ours any more."""
        pod, bound = info.pod, False
        body: Json = {
            "apiVersion": "v1",
            "kind": "Binding",
            "metadata": {"name": pod.metadata.name, "namespace": pod.metadata.namespace, "uid": pod.metadata.uid},
            "target": {"apiVersion": "v1", "kind": "Node", "name": decision.node},
        }
        try:
            await self._client.post(PODS, pod.metadata.name, pod.metadata.namespace, "binding", body)
            bound = True
        except (NotFound, Conflict) as error:
            log.debug("pod %s/%s is not bound to %s: %s", *pod.key, decision.node, error.message)
            if not isinstance(error, NotFound) and await self._is_waiting(pod):
                raise
            return
        except WherryError:
            bound = not await self._is_waiting(pod)  # the answer may be all that was lost
            if not bound:
                raise
        finally:
            if not bound:
                self._state.forget(pod.metadata.uid)
                self._something_changed(decision.node)
        self._remember(pod.key, decision)
        self._recorder.event(About.of(PODS, pod.metadata), "Scheduled", decision.message)
        if any(condition.type == PLACEMENT for condition in pod.status.conditions):
            await self._patch_conditions(pod, [{"$patch": "delete", "type": PLACEMENT}])

    async def _is_waiting(self, pod: Pod) -> bool:
        """Ask the server whether the pod still has no node; True if it does not answer either."""
        try:
            data = await self._client.get(PODS, pod.metadata.name, pod.metadata.namespace)
        except NotFound:
            return False
        except WherryError:
            return True
        fresh = msgspec.json.decode(data, type=Pod)
        return fresh.metadata.uid == pod.metadata.uid and not fresh.spec.node_name

    async def _refuse(self, pod: Pod, decision: Decision) -> None:
        """Tell people, in the pod's status and by an event, why it has no node."""
        self._recorder.event(About.of(PODS, pod.metadata), "FailedScheduling", decision.message, warning=True)
        await self._say(
            pod,
            _condition(SCHEDULED, "Unschedulable", decision.message),
            _condition(PLACEMENT, _main_code(decision).value, compact(decision)),
        )

    async def _say(self, pod: Pod, *conditions: Condition) -> None:
        """Write conditions that the pod does not show yet."""
        have = {(one.type, one.status, one.reason, one.message) for one in pod.status.conditions}
        told = conditions[0]
        if (told.type, told.status, told.reason, told.message) in have:
            return
        before = next((one for one in pod.status.conditions if one.type == told.type), None)
        time = rfc3339(self._clock.now())
        new: list[Json] = [msgspec.to_builtins(one) for one in conditions]
        for one in new:
            if before is None or before.status != one["status"]:
                one["lastTransitionTime"] = time
        await self._patch_conditions(pod, new)

    async def _patch_conditions(self, pod: Pod, conditions: list[Json]) -> None:
        patch: Json = {"metadata": {"uid": pod.metadata.uid}, "status": {"conditions": conditions}}
        name, namespace = pod.key[1], pod.key[0]
        try:
            await self._client.patch(PODS, name, namespace, patch, subresource="status", type="strategic")
        except (NotFound, Conflict):
            return  # gone, or another of the same name

    def _remember(self, key: Key, decision: Decision) -> None:
        self._decided[key] = decision
        self._decided.move_to_end(key)
        while len(self._decided) > REMEMBERED:
            self._decided.popitem(last=False)


def _same_place(before: Node, now: Node) -> bool:
    """Whether two versions of a node are the same to every filter and score."""
    return (
        before.spec == now.spec
        and before.metadata.labels == now.metadata.labels
        and before.status.allocatable == now.status.allocatable
        and before.status.capacity == now.status.capacity
    )


def _same_wish(before: Pod, now: Pod) -> bool:
    """Whether two versions of a pod ask for the same place."""
    return before.spec == now.spec and before.metadata.labels == now.metadata.labels


def _main_code(decision: Decision) -> Code:
    """The first reason of the nearest node."""
    refusals = decision.refusals.get(decision.nearest, ())
    return refusals[0].code if refusals else Code.NO_NODES


def _condition(type: str, reason: str, message: str) -> Condition:
    return Condition(type, "False", reason, message)


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
