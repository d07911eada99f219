"""Health checks: a command run in a container now and then, and what its exit codes make of it.

Source: Docker, "HEALTHCHECK" in the Dockerfile reference, and a dockerd 20.10. The verdict is kept with the container's row,
so an engine that comes up goes on where the last one was.
"""

import asyncio
import logging
import secrets
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

from wherry.clock import machine
from wherry.engine import execs
from wherry.engine.containers import Containers
from wherry.engine.lives import Life, Run
from wherry.engine.paths import Paths
from wherry.engine.records import ContainerRecord, Stage
from wherry.engine.runtime import Runtime
from wherry.engine.tasks import Tasks
from wherry.engine.types import ExecSpec, Health, HealthState, Probe
from wherry.errors import WherryError
from wherry.host import processes

log = logging.getLogger(__name__)

OUTPUT_BYTES = 4096
KEPT_PROBES = 5
TIMED_OUT = -1


def judge(health: Health, state: HealthState, probe: Probe, *, in_start_period: bool) -> HealthState:
    """Say what a probe makes of a container. A failure in the start period does not count. Pure."""
    logged = (*state.log, probe)[-KEPT_PROBES:]
    if probe.code == 0:
        return HealthState("healthy", 0, logged)
    if in_start_period and state.status == "starting":
        return replace(state, log=logged)
    streak = state.streak + 1
    return HealthState("unhealthy" if streak >= health.retries else state.status, streak, logged)


def duration(seconds: float) -> str:
    """Write a duration as Docker does: 500ms, 1.5s, 1m30s. Pure."""
    if seconds < 1:
        return f"{seconds * 1000:g}ms"
    minutes, rest = divmod(seconds, 60)
    hours, minutes = divmod(int(minutes), 60)
    text = f"{hours}h" if hours else ""
    return f"{text}{minutes}m{rest:g}s" if text or minutes else f"{rest:g}s"


class HealthChecks:
    """The health checks of one engine's containers."""

    def __init__(
        self, paths: Paths, runtime_of: Callable[[ContainerRecord], Runtime], containers: Containers, tasks: Tasks
    ) -> None:
        self._paths = paths
        self._runtime_of = runtime_of
        self._containers = containers
        self._tasks = tasks

    def begin(self, life: Life) -> None:
        """Watch the health of a container that has just been started; nothing where it has no health check."""
        health, run = life.record.spec.health, life.run
        if health is None or run is None:
            life.health = None
            return
        self._put(life, life.record.health or HealthState("starting"))
        self._tasks.start(self._watch(life, run, health), f"health of {life.record.id[:12]}")

    def _put(self, life: Life, state: HealthState) -> None:
        life.health = state
        if life.record.stage is not Stage.REMOVING and self._containers.lives.get(life.record.id) is life:
            self._containers.put(life, replace(life.record, health=state))  # no row comes back to life by a late probe

    async def _watch(self, life: Life, run: Run, health: Health) -> None:
        began = machine.monotonic() - max(0.0, machine.now() - life.record.started)
        while True:
            starting = life.health is not None and life.health.status == "starting"
            young = machine.monotonic() - began < health.start_period_s
            pause_s = health.start_interval_s if starting and young else health.interval_s
            with suppress(TimeoutError):
                async with machine.timeout(pause_s):
                    await run.ended.wait()
            if run.ended.is_set() or life.run is not run or life.health is None:
                if life.health is not None and life.run in (run, None):
                    self._put(life, replace(life.health, status="unhealthy"))  # as with Docker: nobody looks any more
                return
            if life.record.paused:
                continue
            probe = await self._probe(life, run, health)
            if run.ended.is_set():
                continue
            old = life.health
            young = machine.monotonic() - began < health.start_period_s
            self._put(life, judge(health, old, probe, in_start_period=young))
            if life.health.status != old.status:
                self._containers.tell(life, f"health_status: {life.health.status}")
                if life.health.status == "unhealthy" and life.record.spec.on_unhealthy:
                    await self._heal(life, run)
                    return

    async def _heal(self, life: Life, run: Run) -> None:
        log.info("container %s: unhealthy: %s", life.record.id[:12], life.record.spec.on_unhealthy)
        try:
            await self._containers.heal(life, run)
        except WherryError as error:
            log.warning("container %s: %s", life.record.id[:12], error.message)

    async def _probe(self, life: Life, run: Run, health: Health) -> Probe:
        began = machine.now()
        argv = health.test[1:] if health.test[0] == "CMD" else ["/bin/sh", "-c", *health.test[1:]]
        id = secrets.token_hex(32)
        for action in ("exec_create", "exec_start"):
            self._containers.tell(life, f"{action}: {' '.join(argv)}", execID=id)
        try:
            session = await execs.execute(
                self._paths, self._runtime_of(life.record), self._tasks, life.record.id, run.process, ExecSpec(argv)
            )
        except WherryError as error:
            return Probe(began, machine.now(), TIMED_OUT, error.message)
        output = bytearray()
        is_cut = False

        async def read() -> int:
            nonlocal is_cut
            async for _, data in session.output():
                room = OUTPUT_BYTES - len(output)
                is_cut = is_cut or len(data) > room
                output.extend(data[: max(0, room)])
            return await session.wait()

        try:
            async with machine.timeout(health.timeout_s):
                code = await read()
            text = output.decode(errors="replace") + ("..." if is_cut else "")
            self._containers.tell(life, "exec_die", execID=id, exitCode=str(code))
        except TimeoutError:
            code, text = TIMED_OUT, f"Health check exceeded timeout ({duration(health.timeout_s)})"
            if (identity := processes.identify(session.pid)) is not None:
                processes.send_signal(identity, 9)
        finally:
            await asyncio.shield(session.close())
        return Probe(began, machine.now(), code, text)
