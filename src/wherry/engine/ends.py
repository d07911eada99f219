"""How containers end: noticed, written down, told of; what a run left is cleared, and removed containers are unmade.

An end is noticed by conmon's exit file (inotify) or, when conmon itself was killed, by its pidfd. What is slow and nobody
waits for (clearing a run, deleting files) is done behind.
"""

import asyncio
import logging
import os
import secrets
import signal
from abc import ABC, abstractmethod
from contextlib import suppress
from dataclasses import dataclass, replace

from wherry.clock import Clock, machine
from wherry.content.protocol import Content
from wherry.engine import restarts, rotation
from wherry.engine.events import Events
from wherry.engine.lives import Life, Lives, Run
from wherry.engine.paths import Paths
from wherry.engine.records import ContainerRecord, Records, Stage
from wherry.engine.register import Register
from wherry.engine.runs import Runs
from wherry.engine.sandboxes import Sandboxes
from wherry.engine.settings import EngineSettings
from wherry.engine.tasks import Tasks
from wherry.engine.trash import Trash
from wherry.engine.types import Exit
from wherry.engine.volumes import Volumes
from wherry.errors import Broken, NotFound
from wherry.host import processes

log = logging.getLogger(__name__)

KILL_S = 10.0
CLEAR_ATTEMPTS = 4


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What containers have of their engine."""

    paths: Paths
    records: Records
    runs: Runs
    sandboxes: Sandboxes
    content: Content
    events: Events
    clock: Clock
    settings: EngineSettings
    tasks: Tasks
    trash: Trash
    volumes: Volumes


class Ends(Register, ABC):
    """The ends of the containers of one engine."""

    def __init__(self, around: Surroundings, lives: Lives) -> None:
        super().__init__(around.records, lives, around.sandboxes, around.volumes, around.events)
        self._paths = around.paths
        self._runs = around.runs
        self._content = around.content
        self._clock = around.clock
        self._settings = around.settings
        self._tasks = around.tasks
        self._trash = around.trash
        self._left = False

    @abstractmethod
    def plan_restart(self, life: Life) -> None:
        """Start it again after the next back-off."""

    @abstractmethod
    async def remove(self, life: Life, *, force: bool, volumes: bool = False) -> None:
        """Take a container away."""

    def watch(self, life: Life, run: Run) -> None:
        """Notice the end of conmon, in case it leaves no exit file."""
        life.run = run
        loop = asyncio.get_running_loop()

        def monitor_ended() -> None:
            loop.remove_reader(run.monitor_fd)
            self.note_exit(life.record.id, monitor_ended=True)

        loop.add_reader(run.monitor_fd, monitor_ended)

    def note_exit(self, id: str, *, monitor_ended: bool = False) -> None:
        """Look whether a container has ended: there is an exit file, or its conmon is gone. Repeatable."""
        life = self.lives.get(id)
        if self._left or life is None or life.run is None or life.run.ended.is_set():
            return
        sandbox = self.sandbox_of(life.record)
        exit = self._runs.read_exit(life.record, sandbox)
        if exit is None and not monitor_ended:
            return
        run = life.run
        if exit is None:
            exit = self._runs.lost_exit(life.record, sandbox, "its monitor was killed, and it with it")
            processes.send_signal(run.process, signal.SIGKILL)
        self.end(life, exit)

    def leave(self) -> None:
        """Notice nothing any more: the engine is left, and its rows are about to be closed. The next start looks."""
        self._left = True
        for life in self.lives.all():
            if life.run is not None:
                self._close(life.run)

    def end(self, life: Life, exit: Exit) -> None:
        """Write down an end, tell everybody, clear up behind."""
        run = life.run
        has_started = life.record.stage in (Stage.STARTED, Stage.STARTING)
        if life.record.owns_sandbox:
            self._sandboxes.has_ended(life.record.sandbox)
        if run is not None:
            run.ended.set()
        life.wake()
        if not has_started:
            if run is not None:
                self._tasks.start(self._clear_unstarted(life, run), f"clear {life.record.id[:12]}", settling=True)
            return
        self.put(life, replace(life.record, stage=Stage.EXITED, exit=exit, has_run=True, paused=False))
        self._settings.arrow("exited")
        if exit.oom:
            self.tell(life, "oom")
        self.tell(life, "die", exitCode=str(exit.code))
        policy = restarts.parse(life.record.spec.restart)
        again = restarts.should_restart(policy, exit, restarts=life.record.restarts, stopped=life.record.stopped)
        life.tell_waiters(exit)
        goes = life.record.spec.auto_remove and not again
        work = self._leave(life) if goes else self._after(life, run)
        self._tasks.start(work, f"clear {life.record.id[:12]}", settling=True)
        if again:
            self.plan_restart(life)

    async def clear_run(self, life: Life) -> None:
        """Take away what a run left, with some patience for a busy kernel. Raises Broken at last."""
        pause_s = 0.05
        for attempt in range(1, CLEAR_ATTEMPTS + 1):
            try:
                await self._runs.clear(life.record, self.sandbox_of(life.record))
                return
            except Broken as error:
                if attempt == CLEAR_ATTEMPTS:
                    raise
                log.debug("container %s: %s; trying again", life.record.id[:12], error.message)
                await machine.sleep(pause_s * (1 + secrets.randbelow(100) / 100))
                pause_s *= 4

    # removal ----------------------------------------------------------------------------------------------------------
    def begin_removal(self, life: Life) -> None:
        """Have everything of it taken away behind."""
        work = self.finish_removal(life)
        life.removal = self._tasks.start(work, f"remove container {life.record.id[:12]}", settling=True)

    async def gone(self, life: Life) -> None:
        """Wait until nothing of a removed container is left. Raises Broken when something stays."""
        if life.removal is not None:
            await asyncio.wait((life.removal,))
        if self.lives.get(life.record.id) is life:
            raise Broken(
                f"container {life.record.id[:12]}: it is dead, but not all of it could be taken away; see the log"
            )

    async def finish_removal(self, life: Life) -> None:
        """Take away everything of a container whose row says so, and the row last. Repeatable."""
        record = life.record
        if life.run is not None:
            if not life.run.ended.is_set():
                life.run.ended.set()
                life.wake()
                await self._end_process(life, life.run)
            elif life.run.clearing:
                await life.run.cleared.wait()
        await self.clear_run(life)
        if life.run is not None:
            self._close(life.run)
        if record.owns_sandbox:
            await self._sandboxes.remove(record.sandbox)
        self._trash.put(self._paths.container(record.id))
        self._drop_volumes(record)
        if record.spec.log_path:
            _remove_logs(record)
        await self._content.release(holder(record.id))
        self._records.drop_container(record.id)
        self.lives.drop(record.id)
        life.fail_waiters(NotFound(f"container {record.id[:12]}: it was removed"))
        if life.run is not None:
            life.run.cleared.set()
        await self._trash.empty()

    def _drop_volumes(self, record: ContainerRecord) -> None:
        if record.drop_volumes or not record.acknowledged:
            for name in record.anonymous:
                if not self.volume_users(name):
                    self._volumes.drop(name)

    # killing ----------------------------------------------------------------------------------------------------------
    async def thaw(self, life: Life) -> None:
        """Let a paused container go on; nothing when it is not paused."""
        sandbox = self.sandbox_of(life.record)
        if life.record.paused and sandbox is not None:
            await self._runs.freeze(life.record, sandbox, frozen=False)
            self.put(life, replace(life.record, paused=False))

    async def drop_waiting(self, life: Life) -> None:
        """Under its lock: end a process that waits to be let go; the next start makes another. Raises Broken."""
        run = life.run
        if run is None or run.ended.is_set():
            return
        processes.send_signal(run.process, signal.SIGKILL)
        try:
            async with machine.timeout(KILL_S):
                await run.ended.wait()
        except TimeoutError:
            raise Broken(f"container {life.record.name}: its waiting process does not end") from None

    async def _kill_hard(self, life: Life, run: Run) -> None:
        self.tell(life, "kill", signal="9")
        await self._send_kill(life, run)
        try:
            async with machine.timeout(KILL_S):
                await run.ended.wait()
        except TimeoutError:
            raise Broken(
                f"container {life.record.name}: still there {KILL_S:g} s after SIGKILL: it waits inside the kernel"
            ) from None

    async def _send_kill(self, life: Life, run: Run) -> None:
        sandbox = self.sandbox_of(life.record)
        shares = "pid" in life.record.spec.join
        if sandbox is not None and (
            sandbox.spec.host_pid or shares
        ):  # without a PID namespace its children would live on
            await self._runs.kill_all(life.record, sandbox)
        else:
            processes.send_signal(run.process, signal.SIGKILL)
            await self.thaw(life)

    async def _end_process(self, life: Life, run: Run) -> None:
        await self._send_kill(life, run)
        await processes.wait_exit(run.monitor_fd, timeout_s=2.0)

    # behind -----------------------------------------------------------------------------------------------------------
    async def _after(self, life: Life, run: Run | None) -> None:
        """Clear a run that has ended."""
        if run is not None:
            run.clearing = True
        try:
            await self.clear_run(life)
        finally:
            if run is not None:
                self._close(run)
                run.cleared.set()
        await self._trash.empty()

    async def _leave(self, life: Life) -> None:
        """Remove a container that was to go with its run. Who waits for that is told at once; its run is cleared behind."""
        if life.record.stage is Stage.EXITED:
            await self.remove(life, force=True, volumes=True)

    async def _clear_unstarted(self, life: Life, run: Run) -> None:
        async with life.lock:
            if life.record.stage is Stage.CREATED and life.run is run:
                await self._drop_unstarted(life, run)

    async def _drop_unstarted(self, life: Life, run: Run) -> None:
        """Clear a run whose process was killed before it was let go: `start` makes another."""
        await self.clear_run(life)
        self.put(life, replace(life.record, monitor=None, process=None))
        self._close(run)
        run.cleared.set()
        life.run = None

    def _close(self, run: Run) -> None:
        if run.monitor_fd >= 0:
            asyncio.get_running_loop().remove_reader(run.monitor_fd)
            os.close(run.monitor_fd)
            run.monitor_fd = -1
        if run.child is not None:
            _ = run.child.code  # reaps it
            run.child.close()


def holder(id: str) -> str:
    """Name who holds the blobs of a container's image, and of those that it has mounted."""
    return f"container/{id}"


def _remove_logs(record: ContainerRecord) -> None:
    """Remove a log and its rotated predecessors."""
    for path in rotation.files_of(record):
        with suppress(OSError):
            os.unlink(path)
