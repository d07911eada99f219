"""What an engine does first: look at what an earlier one left, take up what lives, mend or take away the rest."""

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace

from wherry.engine import execs, restarts
from wherry.engine.adoption import Seen, Verdict, judge
from wherry.engine.containers import Containers
from wherry.engine.lives import Life, Run
from wherry.engine.paths import Paths
from wherry.engine.records import ContainerRecord, Records, Stage
from wherry.engine.runs import Runs
from wherry.engine.sandboxes import Sandboxes
from wherry.engine.tasks import Tasks
from wherry.errors import WherryError
from wherry.host import processes
from wherry.host.processes import Identity

log = logging.getLogger(__name__)


class Recovery:
    """One look over everything, at the start of an engine, before it serves anybody."""

    def __init__(
        self, paths: Paths, records: Records, runs: Runs, sandboxes: Sandboxes, containers: Containers, tasks: Tasks
    ) -> None:
        self._paths = paths
        self._records = records
        self._runs = runs
        self._sandboxes = sandboxes
        self._containers = containers
        self._tasks = tasks

    async def run(self) -> None:
        """Take up every container and sandbox. One that cannot be mended is logged, and tried at the next start."""
        rows = self._records.containers()
        for record in rows:
            self._containers.lives.add(Life(record))
        monitors = self._unknown_monitors(rows)
        for record in rows:
            life = self._containers.lives.get(record.id)
            if life is None:
                continue
            try:
                await self._take_up(life, monitors)
            except WherryError as error:
                log.warning("container %s: %s", record.id[:12], error.message)
        await self._clear_strays(monitors)

    async def _take_up(self, life: Life, monitors: Mapping[str, Identity]) -> None:
        record = life.record
        if record.monitor is None and record.id in monitors:  # spawned, and killed before it was written down
            record = replace(record, monitor=monitors[record.id])
            life.record = record
        has_monitor = record.monitor is not None and processes.is_alive(record.monitor)
        status = ""
        if record.stage is Stage.STARTING and has_monitor:
            status = await self._runs.runtime_of(record).status(record.id)
        verdict = judge(record, Seen(has_monitor, self._runs.has_exit(record.id), status))
        log.debug("container %s: was %s, is %s", record.id[:12], record.stage.value, verdict.value)
        match verdict:
            case Verdict.KEEP:
                if self._paths.bundle(record.id).exists():
                    await self._containers.clear_run(life)
                self._restart_if_due(life)
            case Verdict.RUNNING | Verdict.WAITING:
                await self._adopt(life, Stage.STARTED if verdict is Verdict.RUNNING else Stage.CREATED)
            case Verdict.ENDED | Verdict.LOST:
                sandbox = self._containers.sandbox_of(record)
                exit = self._runs.read_exit(record, sandbox)
                exit = exit or self._runs.lost_exit(record, sandbox, "it ended while no engine was there to see it")
                self._containers.end(life, exit)
            case Verdict.RESET:
                await self._containers.clear_run(life)
                stage = Stage.EXITED if record.has_run else Stage.CREATED
                self._write(life, replace(record, stage=stage, monitor=None, process=None))
                self._restart_if_due(life)
            case Verdict.DISCARD | Verdict.REMOVE:
                self._write(life, replace(record, stage=Stage.REMOVING, name=""))
                self._containers.lives.free_name(life)
                self._containers.begin_removal(life)

    async def _adopt(self, life: Life, stage: Stage) -> None:
        """Watch a run that lives on."""
        record = life.record
        fd = processes.open_pidfd(record.monitor) if record.monitor is not None else None
        if fd is None or record.monitor is None or record.process is None:
            sandbox = self._containers.sandbox_of(record)
            exit = self._runs.read_exit(record, sandbox)  # it ended between two looks
            self._containers.end(life, exit or self._runs.lost_exit(record, sandbox, "it ended as the engine came up"))
            return
        sandbox = self._containers.sandbox_of(record)
        if sandbox is not None and not record.paused:  # the engine was killed while it held it still, for a commit
            await self._runs.freeze(record, sandbox, frozen=False)
        self._write(life, replace(record, stage=stage))
        self._containers.watch(life, Run(record.monitor, record.process, fd))
        self._containers.note_exit(record.id)
        if left := execs.sweep(self._paths.bundle(record.id), record.id):
            log.info("container %s: %d exec sessions went with the engine before", record.id[:12], left)
        if stage is Stage.STARTED and life.is_running:
            self._containers.on_started(life)

    def _restart_if_due(self, life: Life) -> None:
        record = life.record
        if record.stage is not Stage.EXITED or record.exit is None:
            return
        policy = restarts.parse(record.spec.restart)
        if restarts.should_restart(
            policy, record.exit, restarts=record.restarts, stopped=record.stopped, machine_came_up=True
        ):
            self._write(life, replace(record, stopped=False))
            self._containers.plan_restart(life)
        elif record.spec.auto_remove:
            self._tasks.start(self._remove(life), f"remove container {record.id[:12]}", settling=True)

    async def _remove(self, life: Life) -> None:
        await self._containers.remove(life, force=True, volumes=True)

    def _unknown_monitors(self, rows: Sequence[ContainerRecord]) -> Mapping[str, Identity]:
        """Find conmons of ours that no row names, by their command line: of rows at INTENT, and of no row at all."""
        known = {record.id for record in rows if record.stage is not Stage.INTENT}
        bundles = {name for name in os.listdir(self._paths.bundles) if name not in known}
        found: dict[str, Identity] = {}
        if not bundles:
            return found
        places = {str(self._paths.bundle(id)): id for id in bundles}
        for pid in processes.pids():
            words = processes.command(pid)
            if len(words) > 2 and os.path.basename(words[0]) == "conmon" and "--bundle" in words:
                id = places.get(words[words.index("--bundle") + 1])
                identity = processes.identify(pid) if id else None
                if id and identity is not None:
                    found[id] = identity
        return found

    async def _clear_strays(self, monitors: Mapping[str, Identity]) -> None:
        """Take away bundles and sandboxes that have no row: a database that was lost, or files put there by hand."""
        for name in os.listdir(self._paths.bundles):
            if self._containers.lives.get(name) is not None or name in self._records.unreadable:
                continue
            log.warning("container %s has no record: taking it away", name[:12])
            try:
                if name in monitors:
                    await processes.end(monitors[name], grace_s=0.0)
                for runtime in self._runs.runtimes.all.values():
                    await runtime.delete(name)
                await self._runs.clear_bundle(name)
            except WherryError as error:
                log.warning("container %s: %s", name[:12], error.message)
        for id in self._sandboxes.unfinished():
            if not self._containers.in_sandbox(id):
                self._tasks.start(self._sandboxes.remove(id), f"remove sandbox {id}", settling=True)
        for id in self._sandboxes.strays():
            if id in self._records.unreadable:
                continue
            log.warning("sandbox %s has no record: taking it away", id)
            try:
                await self._sandboxes.clear_stray(id)
            except WherryError as error:
                log.warning("sandbox %s: %s", id, error.message)

    def _write(self, life: Life, record: ContainerRecord) -> None:
        self._records.put_container(record)
        life.record = record
