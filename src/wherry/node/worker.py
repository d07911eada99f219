"""One pod on this node, from its first step to its last: it does what `steps.next_step` says and reports what is."""

import asyncio
import logging
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Protocol

from wherry.clock import Clock, machine
from wherry.engine.types import Exit
from wherry.errors import Broken, Invalid, NotFound, Unavailable, WherryError
from wherry.node import probes
from wherry.node.pods import ContainerDef, Pod
from wherry.node.runtime import ContainerState, Phase, PodRuntime, PodState
from wherry.node.status import Health, Waiting, pod_status
from wherry.node.steps import BACKOFF_RESET_S, Do, Step, latest, next_step, stop_order

log = logging.getLogger(__name__)

REFRESH_S = 60.0
"""Cluster seconds between two looks at a pod that nothing happened to: its volumes are refreshed then."""

RETRY_FIRST_S = 0.5
RETRY_MOST_S = 60.0


@dataclass(slots=True)
class _Attempts:
    """What is remembered of failures between steps."""

    failures: dict[str, int] = field(default_factory=dict[str, int])
    unhealthy: dict[str, str] = field(default_factory=dict[str, str])
    counted: set[str] = field(default_factory=set[str])
    hooked: set[str] = field(default_factory=set[str])
    last: dict[str, ContainerState] = field(default_factory=dict[str, ContainerState])


class Host(Protocol):
    """What a worker needs of its node; the agent is one."""

    @property
    def runtime(self) -> PodRuntime:
        """What does things with pods."""
        ...

    @property
    def clock(self) -> Clock:
        """Cluster time."""
        ...

    @property
    def address(self) -> str:
        """The node's own address."""
        ...

    async def prepare(self, pod: Pod) -> PodState:
        """Make the pod's volumes and sandbox."""
        ...

    async def start(self, pod: Pod, definition: ContainerDef, attempt: int, state: PodState) -> ContainerState:
        """Pull, plan and start one attempt."""
        ...

    async def drained(self, pod: Pod, state: PodState) -> None:
        """Return when new connections no longer come to the pod, or after a bounded time."""
        ...

    async def refresh(self, pod: Pod, state: PodState) -> None:
        """Bring the volumes made from objects up to date."""
        ...

    async def report(self, pod: Pod, status: Mapping[str, object]) -> None:
        """Tell the API the status, where it differs from what was told."""
        ...

    async def gone(self, pod: Pod, *, known: bool) -> None:
        """Nothing of the pod is left here: remove its files, and tell the API where it is still `known` there."""
        ...

    def event(self, pod: Pod, type: str, reason: str, message: str, container: str = "") -> None:
        """Tell people."""
        ...


class Worker:
    """Brings one pod nearer to its spec, one step after the other, until it is gone."""

    def __init__(self, host: Host, pod: Pod, refused: str = "", state: PodState | None = None) -> None:
        self.pod = pod
        self._host = host
        self._refused = refused
        self._state = state
        self._wake = asyncio.Event()
        self._wake.set()
        self._known = _Attempts()
        self._health = Health()
        self._waiting: dict[str, Waiting] = {}
        self._retries = 0
        self._probes: dict[tuple[str, str, str], asyncio.Task[None]] = {}
        self._stopping: dict[str, asyncio.Task[None]] = {}
        self._lost = False

    @property
    def state(self) -> PodState | None:
        """What the runtime was last seen to have of the pod."""
        return self._state

    def update(self, pod: Pod) -> None:
        """The API has a newer version of the pod."""
        self.pod = pod
        self._wake.set()

    def lost(self) -> None:
        """The API no longer has the pod: end it here."""
        self._lost = True
        self._wake.set()

    def poke(self) -> None:
        """Something happened to its containers."""
        self._wake.set()

    async def run(self) -> None:
        """Work until the pod is gone from this machine."""
        clock = self._host.clock
        try:
            while True:
                self._wake.clear()
                until = 0.0
                try:
                    done, until = await self._turn(clock.now())
                    if done:
                        return
                except WherryError as error:
                    self._retries += 1
                    until = clock.now() + min(RETRY_MOST_S, RETRY_FIRST_S * 2.0 ** min(self._retries, 8))
                    log.warning("pod %s/%s: %s; trying again", *self.pod.key, error.message)
                await self._sleep(clock, until)
        finally:
            for task in (*self._probes.values(), *self._stopping.values()):
                task.cancel()

    async def _sleep(self, clock: Clock, until: float) -> None:
        """Wait for news, or for `until` (0: the refresh)."""
        pause_s = max(0.0, until - clock.now()) if until else REFRESH_S
        timer = asyncio.ensure_future(clock.sleep(pause_s))
        news = asyncio.ensure_future(self._wake.wait())
        try:
            await asyncio.wait((timer, news), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (timer, news):
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task

    async def _turn(self, now: float) -> tuple[bool, float]:
        """Take steps until there is nothing to do; return (pod is gone, when to look again)."""
        host = self._host
        if self._refused and not self.pod.is_deleting and not self._lost:
            await self._report(failed=Waiting("UnsupportedFeature", self._refused))
            return False, 0.0
        while True:
            await self._look()
            if self._lost:
                await self._end()
                return True, 0.0
            step = next_step(
                self.pod,
                self._state,
                now=host.clock.now(),
                failures=self._known.failures,
                unhealthy=self._known.unhealthy,
            )
            if step.do is Do.END:
                expired = not self.pod.is_deleting
                await self._end(keep_records=expired)
                if not expired:
                    return True, 0.0
                await self._report(
                    failed=Waiting("DeadlineExceeded", "Pod was active on the node longer than the specified deadline")
                )
                return False, 0.0
            if step.do is Do.WAIT:
                self._tend_probes()
                await self._report()
                if self._state is not None and not self.pod.is_finished and not step.until:
                    await host.refresh(self.pod, self._state)
                self._retries = 0
                return False, step.until
            retry_at = await self._take(step)
            await self._report()
            if retry_at:
                return False, retry_at

    async def _take(self, step: Step) -> float:
        """Do one step; return when to try again if it could not be done now, else 0."""
        host = self._host
        name = step.container
        try:
            if step.do is Do.PREPARE:
                self._state = await host.prepare(self.pod)
                self._waiting.pop("", None)
            elif step.do is Do.START:
                definition = self.pod.container(name)
                assert definition is not None, "steps name containers of the spec"
                assert self._state is not None, "a container starts in a sandbox"
                started = await host.start(self.pod, definition, step.attempt, self._state)
                self._waiting.pop(name, None)
                self._merge(started)
                await self._after_start(definition, started)
            elif step.do is Do.STOP:
                await self._stop_one(name, step.reason)
            self._retries = 0
            return 0.0
        except (Invalid, NotFound) as error:
            reason = "CreateContainerConfigError" if step.do is Do.START else "FailedMount"
            if isinstance(error, NotFound):
                reason = "ErrImageNeverPull" if "never" in error.message.lower() else "ErrImagePull"
            return self._wait(name, reason, error.message)
        except Unavailable as error:
            return self._wait(name, "ErrImagePull" if step.do is Do.START else "FailedCreatePodSandBox", error.message)
        except Broken as error:
            if step.do is Do.START:
                return self._could_not_start(name, step.attempt, error)
            return self._wait(name, "FailedCreatePodSandBox", error.message)

    def _wait(self, name: str, reason: str, message: str) -> float:
        self._retries += 1
        if reason == "ErrImagePull" and self._retries > 1:
            reason = "ImagePullBackOff"
        if self._waiting.get(name) != Waiting(reason, message):
            self._host.event(self.pod, "Warning", "Failed" if name else reason, f"{reason}: {message}", name)
        self._waiting[name] = Waiting(reason, message)
        pause_s = min(RETRY_MOST_S, RETRY_FIRST_S * 2.0 ** min(self._retries - 1, 8))
        return self._host.clock.now() + pause_s

    def _could_not_start(self, name: str, attempt: int, error: Broken) -> float:
        """The runtime refused: that attempt is over, with an exit of its own."""
        now = self._host.clock.now()
        code = 127 if "not found" in error.message or "no such file" in error.message.lower() else 128
        exit = Exit(code, now, error=error.message)
        definition = self.pod.container(name)
        image = definition.image if definition else ""
        self._merge(ContainerState("", name, attempt, Phase.TERMINATED, exit=exit, image=image))
        self._host.event(self.pod, "Warning", "Failed", f"Error: {error.message}", name)
        return 0.0

    async def _after_start(self, definition: ContainerDef, started: ContainerState) -> None:
        self._host.event(self.pod, "Normal", "Started", f"Container started: {definition.name}", definition.name)
        hook = definition.lifecycle.post_start if definition.lifecycle else None
        if hook is not None and started.id not in self._known.hooked:
            self._known.hooked.add(started.id)
            target = probes.Target(self.pod, definition, started.id)
            answer = await probes.perform(self._host.runtime, target, hook, self.pod.grace_s())
            if not answer.good:
                self._host.event(self.pod, "Warning", "FailedPostStartHook", answer.words, definition.name)
                self._known.unhealthy[definition.name] = "FailedPostStartHook"

    async def _look(self) -> None:
        """Read the runtime's records, and count exits."""
        fresh = await self._host.runtime.pod(self.pod.uid)
        if fresh is not None:
            newest = latest(fresh)
            failed_starts = [each for each in (self._state.containers if self._state else ()) if not each.id]
            kept = [each for each in failed_starts if _is_newer(each, newest.get(each.name))]
            fresh = replace(fresh, containers=(*fresh.containers, *kept))
        self._state = fresh
        for container in self._state.containers if self._state else ():
            token = f"{container.name}/{container.attempt}"
            if container.exit is None or token in self._known.counted:
                continue
            self._known.counted.add(token)
            name = container.name
            ran_s = container.exit.time - container.started if container.started else 0.0
            self._known.failures[name] = 1 if ran_s >= BACKOFF_RESET_S else self._known.failures.get(name, 0) + 1
            self._known.unhealthy.pop(name, None)
            self._health.ready.pop(name, None)
            self._health.started.pop(name, None)
            if self._known.failures[name] > 1 and self.pod.spec.restart_policy != "Never":
                message = f"Back-off restarting failed container {name} in pod {self.pod.metadata.name}"
                self._host.event(self.pod, "Warning", "BackOff", message, name)
        await self._forget_old()

    async def _forget_old(self) -> None:
        """Keep the newest attempt and the one before (for `logs --previous`); remove what is older."""
        if self._state is None:
            return
        newest = latest(self._state)
        for each in self._state.containers:
            if each.id and each.exit is not None and each.attempt < newest[each.name].attempt - 1:
                await self._host.runtime.remove_container(self.pod.uid, each.id)

    def _merge(self, container: ContainerState) -> None:
        assert self._state is not None, "containers are merged into a sandbox"
        others = [
            each for each in self._state.containers if (each.name, each.attempt) != (container.name, container.attempt)
        ]
        self._state = replace(self._state, containers=(*others, container))

    # probes -----------------------------------------------------------------------------------------------------------

    def _tend_probes(self) -> None:
        """Have one task for each probe of each running container, and none else."""
        wanted: dict[tuple[str, str, str], ContainerState] = {}
        for name, container in latest(self._state).items():
            definition = self.pod.container(name)
            if definition is None or container.phase is not Phase.RUNNING or self.pod.is_deleting:
                continue
            if definition.startup_probe is not None and not self._health.started.get(name, False):
                wanted[("startup", name, container.id)] = container
                continue
            if definition.liveness_probe is not None:
                wanted[("liveness", name, container.id)] = container
            if definition.readiness_probe is not None:
                wanted[("readiness", name, container.id)] = container
        for key in [key for key in self._probes if key not in wanted]:
            self._probes.pop(key).cancel()
        for key, container in wanted.items():
            if key not in self._probes:
                self._probes[key] = asyncio.create_task(self._probe(key[0], container), name=f"probe:{'/'.join(key)}")

    async def _probe(self, kind: str, container: ContainerState) -> None:
        definition = self.pod.container(container.name)
        assert definition is not None, "probes belong to containers of the spec"
        name = container.name
        probe = {
            "startup": definition.startup_probe,
            "liveness": definition.liveness_probe,
            "readiness": definition.readiness_probe,
        }[kind]
        assert probe is not None, "only probes that there are get a task"

        async def changed(good: bool, words: str) -> None:
            if kind == "readiness":
                self._health.ready[name] = good
            elif kind == "startup" and good:
                self._health.started[name] = True
            elif not good:
                message = f"Container {name} failed {kind} probe, will be restarted"
                self._host.event(self.pod, "Normal", "Killing", message, name)
                self._known.unhealthy[name] = f"{kind} probe failed: {words}"
            self.poke()

        def failed(words: str) -> None:
            self._host.event(self.pod, "Warning", "Unhealthy", f"{kind.capitalize()} probe failed: {words}", name)

        await probes.watch(
            self._host.runtime,
            probes.Target(self.pod, definition, container.id),
            probe,
            self._host.clock,
            good=kind == "liveness",
            eager=kind == "readiness",
            changed=changed,
            failed=failed,
        )

    # ends -------------------------------------------------------------------------------------------------------------

    async def _stop_one(self, name: str, reason: str) -> None:
        container = latest(self._state).get(name)
        if container is None or container.phase is not Phase.RUNNING:
            return
        definition = self.pod.container(name)
        probe = definition.liveness_probe if definition else None
        grace_s = float(self.pod.spec.termination_grace_period_seconds)
        if probe is not None and probe.termination_grace_period_seconds is not None:
            grace_s = float(probe.termination_grace_period_seconds)
        await self._finish(container, grace_s, reason)

    async def _finish(self, container: ContainerState, grace_s: float, reason: str) -> None:
        """End one container: its preStop hook and then its stop signal share the grace."""
        definition = self.pod.container(container.name)
        hook = definition.lifecycle.pre_stop if definition and definition.lifecycle else None
        start = machine.monotonic()
        if hook is not None and definition is not None and grace_s > 0:
            target = probes.Target(self.pod, definition, container.id)
            with suppress(TimeoutError):
                async with machine.timeout(grace_s):
                    answer = await probes.perform(self._host.runtime, target, hook, grace_s)
                    if not answer.good:
                        self._host.event(self.pod, "Warning", "FailedPreStopHook", answer.words, container.name)
        left_s = max(2.0 if hook is not None else 0.0, grace_s - (machine.monotonic() - start))
        self._host.event(
            self.pod, "Normal", "Killing", f"Stopping container {container.name} ({reason})", container.name
        )
        await self._host.runtime.stop(self.pod.uid, container.id, left_s if grace_s > 0 else 0.0)

    async def _end(self, *, keep_records: bool = False) -> None:
        """End all containers together, report how they ended, and remove what is left."""
        self._tend_probes()
        for task in self._probes.values():
            task.cancel()
        self._probes.clear()
        await self._look()
        running = stop_order(self.pod, self._state)
        if running:
            grace_s = self.pod.grace_s()
            if grace_s > 0 and self._state is not None and not self._lost:
                await self._report()
                await self._host.drained(self.pod, self._state)
            pending = {
                asyncio.create_task(self._finish(each, grace_s, "the pod is deleted"), name=f"stop:{each.name}")
                for each in running
            }
            await self._wait_for_end(pending, grace_s)
        await self._look()
        if keep_records:
            return
        if not self._lost:
            with suppress(NotFound):
                await self._report()
        await self._host.runtime.remove(self.pod.uid)
        await self._host.gone(self.pod, known=not self._lost)

    async def _wait_for_end(self, pending: set[asyncio.Task[None]], grace_s: float) -> None:
        """Wait for the stops; a shorter grace that arrives meanwhile (`delete --force`) cuts them short."""
        try:
            while pending:
                self._wake.clear()
                news = asyncio.ensure_future(self._wake.wait())
                done, _ = await asyncio.wait((*pending, news), return_when=asyncio.FIRST_COMPLETED)
                news.cancel()
                for task in done - {news}:
                    pending.discard(task)  # type: ignore[arg-type] # `news` has been taken out
                    task.result()
                if pending and self.pod.grace_s() < grace_s:
                    grace_s = self.pod.grace_s()
                    for each in stop_order(self.pod, self._state):
                        with suppress(WherryError):
                            await self._host.runtime.stop(self.pod.uid, each.id, grace_s)
        finally:
            for task in pending:
                task.cancel()

    async def _report(self, failed: Waiting | None = None) -> None:
        now = self._host.clock.now()
        status = pod_status(
            self.pod,
            self._state,
            now=now,
            host_address=self._host.address,
            health=self._health,
            waiting=self._waiting,
            failures=self._known.failures,
            last=self._known.last,
            failed=failed,
        )
        await self._host.report(self.pod, status)


def _is_newer(one: ContainerState, other: ContainerState | None) -> bool:
    return other is None or one.attempt > other.attempt
