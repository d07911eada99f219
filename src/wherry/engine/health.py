"""Health checks: a command run in a container now and then, and what its exit codes make of it.

Source: Docker, "HEALTHCHECK" in the Dockerfile reference. The verdict is kept in memory: after a restart of the engine a
container is "starting" again.
"""

import asyncio
import logging
from contextlib import suppress
from dataclasses import replace

from wherry.clock import machine
from wherry.engine import execs
from wherry.engine.containers import Containers
from wherry.engine.lives import Life, Run
from wherry.engine.paths import Paths
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


class HealthChecks:
    """The health checks of one engine's containers."""

    def __init__(self, paths: Paths, runtime: Runtime, containers: Containers, tasks: Tasks) -> None:
        self._paths = paths
        self._runtime = runtime
        self._containers = containers
        self._tasks = tasks

    def begin(self, life: Life) -> None:
        """Watch the health of a container that has just been started; nothing where it has no health check."""
        health, run = life.record.spec.health, life.run
        if health is None or run is None:
            life.health = None
            return
        life.health = HealthState("starting")
        self._tasks.start(self._watch(life, run, health), f"health of {life.record.id[:12]}")

    async def _watch(self, life: Life, run: Run, health: Health) -> None:
        began = machine.monotonic()
        while True:
            starting = life.health is not None and life.health.status == "starting"
            young = machine.monotonic() - began < health.start_period_s
            pause_s = health.start_interval_s if starting and young else health.interval_s
            with suppress(TimeoutError):
                async with machine.timeout(pause_s):
                    await run.ended.wait()
            if run.ended.is_set() or life.run is not run or life.health is None:
                return
            if life.record.paused:
                continue
            probe = await self._probe(life, run, health)
            if run.ended.is_set():
                return
            old = life.health
            young = machine.monotonic() - began < health.start_period_s
            life.health = judge(health, old, probe, in_start_period=young)
            if life.health.status != old.status:
                self._containers.tell(life, f"health_status: {life.health.status}")

    async def _probe(self, life: Life, run: Run, health: Health) -> Probe:
        began = machine.now()
        argv = health.test[1:] if health.test[0] == "CMD" else ["/bin/sh", "-c", *health.test[1:]]
        try:
            session = await execs.execute(
                self._paths, self._runtime, self._tasks, life.record.id, run.process, ExecSpec(argv)
            )
        except WherryError as error:
            return Probe(began, machine.now(), TIMED_OUT, error.message)
        output = bytearray()

        async def read() -> int:
            async for _, data in session.output():
                output.extend(data[: max(0, OUTPUT_BYTES - len(output))])
            return await session.wait()

        try:
            async with machine.timeout(health.timeout_s):
                code = await read()
            text = output.decode(errors="replace")
        except TimeoutError:
            code, text = TIMED_OUT, f"Health check exceeded timeout ({health.timeout_s:g}s)"
            if (identity := processes.identify(session.pid)) is not None:
                processes.send_signal(identity, 9)
        finally:
            await asyncio.shield(session.close())
        return Probe(began, machine.now(), code, text)
