"""The life of containers: created, started, ended, restarted, removed; every arrow written down first.

README.md has the stages and what a kill of ours at each arrow leaves. An end is noticed by conmon's exit file (inotify)
or, when conmon itself was killed, by its pidfd. What is slow and nobody waits for (clearing a run, deleting files) is done
behind.
"""

import asyncio
import logging
import os
import secrets
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace

from wherry.clock import Clock, machine
from wherry.content.protocol import Content, Digest
from wherry.engine import restarts
from wherry.engine.events import Events
from wherry.engine.images import Images
from wherry.engine.intents import intend, own_sandbox
from wherry.engine.joins import joined
from wherry.engine.lives import Life, Lives, Run, view
from wherry.engine.paths import Paths
from wherry.engine.records import ContainerRecord, Records, SandboxRecord, Stage
from wherry.engine.runs import Runs
from wherry.engine.runtime import CommandFailed
from wherry.engine.sandboxes import Sandboxes
from wherry.engine.settings import EngineSettings
from wherry.engine.signals import signal_number
from wherry.engine.snapshots import Snapshots
from wherry.engine.tasks import Tasks
from wherry.engine.trash import Trash
from wherry.engine.types import Container, ContainerSpec, Exit
from wherry.engine.volumes import Volumes
from wherry.errors import Broken, Conflict, NotFound, WherryError
from wherry.host import processes

log = logging.getLogger(__name__)

KILL_S = 10.0
CLEAR_ATTEMPTS = 4
CREATE_FAILED = 128


class Containers:
    """The containers of one engine."""

    def __init__(
        self,
        paths: Paths,
        records: Records,
        runs: Runs,
        sandboxes: Sandboxes,
        snapshots: Snapshots,
        images: Images,
        content: Content,
        events: Events,
        clock: Clock,
        settings: EngineSettings,
        tasks: Tasks,
        lives: Lives,
        trash: Trash,
        volumes: Volumes,
    ) -> None:
        self._paths = paths
        self._records = records
        self._runs = runs
        self._sandboxes = sandboxes
        self._snapshots = snapshots
        self._images = images
        self._content = content
        self._events = events
        self._clock = clock
        self._settings = settings
        self._tasks = tasks
        self._slots = asyncio.Semaphore(settings.at_once)
        self.lives = lives
        self._trash = trash
        self._volumes = volumes
        self.on_started: Callable[[Life], None] = _ignore

    # walks ------------------------------------------------------------------------------------------------------------
    async def create(self, spec: ContainerSpec) -> Container:
        """Make a container whose process waits. Raises NotFound, AlreadyExists, Invalid, Broken.

        A command that cannot be run is no error here, but one of `start`: that is where Docker's users look for it.
        """
        record = await intend(spec, self._images, self._sandboxes, self.lives, self._paths)
        life = Life(record)
        self.lives.add(life)
        async with life.lock:
            try:
                self.put(life, record)
                self._settings.arrow("intent")
                await self._content.hold(_holder(record.id), Digest(record.image_digest))
                self._volumes.make_for(record)
                try:
                    await self._make_run(life)
                except CommandFailed as error:
                    log.info("container %s: %s", record.name, error.message)
                    await self._runs.clear(life.record, self.sandbox_of(life.record))
                    self.put(life, replace(life.record, stage=Stage.CREATED, monitor=None, process=None))
                self.put(life, replace(life.record, acknowledged=True))
            except BaseException as error:
                await asyncio.shield(self._discard(life, error))
                raise
        self.tell(life, "create")
        return self.show(life)

    async def start(self, life: Life) -> None:
        """Let it run; nothing when it runs. Raises CommandFailed, Broken: then it is EXITED, with the code in `exit`."""
        async with life.lock:
            if life.is_running:
                return
            if life.record.stage is Stage.REMOVING:
                raise NotFound(f"container {life.record.name}: it is being removed")
            self._forget_restart(life)
            await self._start(life)

    async def stop(self, life: Life, grace_s: float | None) -> None:
        """Stop signal, grace, kill."""
        async with life.lock:
            self._forget_restart(life)
            self.put(life, replace(life.record, stopped=True))
            run = life.run
            if run is None or not life.is_running:
                return
            number = signal_number(life.record.stop_signal)
            grace_s = life.record.spec.stop_grace_s if grace_s is None else grace_s
            sent = grace_s > 0 and processes.send_signal(run.process, number)
            await self.thaw(life)
            if sent:
                self.tell(life, "kill", signal=str(number))
                with suppress(TimeoutError):
                    async with machine.timeout(grace_s):
                        await run.ended.wait()
            if not run.ended.is_set():
                await self._kill_hard(life, run)
            self.tell(life, "stop")

    async def kill(self, life: Life, name: str) -> None:
        """Send a signal. Raises Conflict when it does not run."""
        number = signal_number(name)
        run = life.run
        if run is None or not life.is_running:
            raise Conflict(f"container {life.record.name}: it does not run")
        if number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal_number(life.record.stop_signal)):
            self.put(life, replace(life.record, stopped=True))
        if number == signal.SIGKILL:
            await self._send_kill(life, run)
        elif not processes.send_signal(run.process, number):
            raise Conflict(f"container {life.record.name}: it has just ended")
        elif number == signal_number(life.record.stop_signal):
            await self.thaw(life)
        self.tell(life, "kill", signal=str(number))

    async def wait(self, life: Life) -> Exit:
        """Wait for its end; at once when it has ended and nothing will start it again."""
        if life.record.stage is Stage.EXITED and life.record.exit is not None and life.restart is None:
            return life.record.exit
        waiter: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        life.waiters.append(waiter)
        return await waiter

    async def remove(self, life: Life, *, force: bool, volumes: bool = False) -> None:
        """Take it away: dead and without a name on return; its files go behind. Raises Conflict."""
        if life.is_running and not force:
            raise Conflict(f"container {life.record.name}: it runs; stop it first, or use force")
        self._forget_restart(life)
        if life.is_running and life.run is not None:
            self.put(life, replace(life.record, stopped=True))
            await self._kill_hard(life, life.run)
        async with life.lock:
            if life.record.stage is Stage.REMOVING:
                if life.removal is not None and life.removal.done():  # it failed the last time
                    self.begin_removal(life)
                return
            if life.is_running and life.run is not None:  # started again just before
                await self._kill_hard(life, life.run)
            name = life.record.name
            self.lives.free_name(life)
            # Which volumes go is settled now: one that another container has at this moment stays for good.
            going = [each for each in life.record.anonymous if not set(self.volume_users(each)) - {life.record.id}]
            self.put(life, replace(life.record, stage=Stage.REMOVING, name="", drop_volumes=volumes, anonymous=going))
            self._settings.arrow("removing")
            self._drop_volumes(life.record)
        self.tell(life, "destroy", name=name)
        self.begin_removal(life)

    async def thaw(self, life: Life) -> None:
        """Let a paused container go on; nothing when it is not paused."""
        sandbox = self.sandbox_of(life.record)
        if life.record.paused and sandbox is not None:
            await self._runs.freeze(life.record, sandbox, frozen=False)
            self.put(life, replace(life.record, paused=False))

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

    # views ------------------------------------------------------------------------------------------------------------
    def show(self, life: Life) -> Container:
        """Show a container."""
        sandbox = self.sandbox_of(life.record)
        volumes = [mount.source for mount in life.record.spec.mounts if mount.kind == "volume"]
        places = {name: str(self._volumes.place(name)) for name in volumes}
        return view(life, sandbox.address if sandbox is not None else "", places)

    def all(self) -> Sequence[Container]:
        """Show all that callers know of."""
        return [
            self.show(life)
            for life in self.lives.all()
            if life.record.acknowledged and life.record.stage is not Stage.REMOVING
        ]

    def running(self, ref: str) -> tuple[Life, Run, SandboxRecord]:
        """Find a running container with its run and sandbox. Raises NotFound, Conflict."""
        life = self.lives.find(ref)
        sandbox = self.sandbox_of(life.record)
        if life.run is None or not life.is_running or sandbox is None:
            raise Conflict(f"container {life.record.name}: it does not run")
        return life, life.run, sandbox

    def sandbox_of(self, record: ContainerRecord) -> SandboxRecord | None:
        """Find a container's sandbox; None when it is gone."""
        try:
            return self._sandboxes.row(record.sandbox)
        except NotFound:
            return None

    def users_of(self, image_id: str) -> Sequence[str]:
        """Name the containers that were made from an image; one that is only being cleared away is none any more."""
        return [
            life.record.id
            for life in self.lives.all()
            if life.record.image_id == image_id and life.record.stage is not Stage.REMOVING
        ]

    def volume_users(self, name: str) -> Sequence[str]:
        """Name the containers that have a volume."""
        return [
            life.record.id
            for life in self.lives.all()
            if life.record.stage is not Stage.REMOVING
            and any(mount.kind == "volume" and mount.source == name for mount in life.record.spec.mounts)
        ]

    def layers_in_use(self) -> set[str]:
        """Name the diff ids under all containers."""
        return {diff_id for life in self.lives.all() for diff_id in life.record.layers}

    def in_sandbox(self, id: str) -> Sequence[Life]:
        """List the containers in a sandbox."""
        return [life for life in self.lives.all() if life.record.sandbox == id]

    # ends -------------------------------------------------------------------------------------------------------------
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
        if life is None or life.run is None or life.run.ended.is_set():
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
        self._tasks.start(self._after(life, run, again=again), f"clear {life.record.id[:12]}", settling=True)
        if again:
            self.plan_restart(life)

    def plan_restart(self, life: Life) -> None:
        """Start it again after the next back-off."""
        exit = life.record.exit
        life.delay_s = restarts.next_delay_s(life.delay_s, exit.time - life.record.started if exit else 0.0)
        life.restart = self._tasks.start(self._restart(life, life.delay_s), f"restart {life.record.id[:12]}")

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

    async def finish_removal(self, life: Life) -> None:
        """Take away everything of a container whose row says so, and the row last. Repeatable."""
        record = life.record
        if life.run is not None:
            if not life.run.ended.is_set():
                life.run.ended.set()
                life.wake()
                await self._end_process(life, life.run)
            self._close(life.run)
        await self.clear_run(life)
        if record.owns_sandbox:
            await self._sandboxes.remove(record.sandbox)
        self._trash.put(self._paths.container(record.id))
        self._drop_volumes(record)
        if record.spec.log_path:
            _remove_logs(record)
        await self._content.release(_holder(record.id))
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

    # making -----------------------------------------------------------------------------------------------------------
    async def _make_run(self, life: Life) -> None:
        """Bring a row from INTENT to CREATED. Raises CommandFailed, Invalid, Broken; then a run may be half made."""
        record = life.record
        image = await self._images.known(Digest(record.image_digest))
        await self._snapshots.ensure(image.layers, f"container {record.name}")
        async with self._slots:
            if record.owns_sandbox:
                await self._sandboxes.ensure(own_sandbox(record.spec, record.id))
            others = await joined(record, self.lives, self._sandboxes)
            self._settings.arrow("sandbox")

            def spawned(monitor: processes.Identity, mount_points: Sequence[str]) -> None:
                points = [*dict.fromkeys((*life.record.mount_points, *mount_points))]
                self.put(life, replace(life.record, stage=Stage.SPAWNED, monitor=monitor, mount_points=points))
                self._settings.arrow("spawned")

            made = await self._runs.make(record, self._sandboxes.row(record.sandbox), image.config, spawned, others)
        self._settings.arrow("made")
        self.put(life, replace(life.record, stage=Stage.CREATED, process=made.process))
        self._settings.arrow("created")
        run = Run(made.monitor, made.process, os.dup(made.child.pidfd), made.child)
        self.watch(life, run)
        self.note_exit(record.id)

    async def _start(self, life: Life) -> None:
        """Start it under its lock."""
        if life.run is not None and life.run.ended.is_set():
            if life.record.stage is Stage.CREATED:
                await self._drop_unstarted(life, life.run)
            else:
                await life.run.cleared.wait()
            life.run = None
        record = life.record
        try:
            if record.stage is not Stage.CREATED or life.run is None:
                cleared = replace(record, stage=Stage.INTENT, monitor=None, process=None, stopped=False)
                self.put(life, cleared)
                self._settings.arrow("intent")
                await self._make_run(life)
            run = life.run
            if run is None:
                raise Broken(f"container {record.name}: it has no run to start")
            self.put(life, replace(life.record, stage=Stage.STARTING, stopped=False, started=machine.now()))
            self._settings.arrow("starting")
            if record.owns_sandbox:
                await self._sandboxes.about_to_run(record.sandbox)
            async with self._slots:
                await self._runs.runtime.start(record.id)
            self._settings.arrow("started")
            if not run.ended.is_set():
                self.put(life, replace(life.record, stage=Stage.STARTED))
                self.on_started(life)
            self.tell(life, "start")
        except WherryError as error:
            code = error.code if isinstance(error, CommandFailed) else CREATE_FAILED
            exit = Exit(code, machine.now(), error=error.message)
            await asyncio.shield(self._fail_start(life, exit))
            raise
        except BaseException:
            await asyncio.shield(
                self._fail_start(life, Exit(CREATE_FAILED, machine.now(), error="start was cut short"))
            )
            raise

    async def _fail_start(self, life: Life, exit: Exit) -> None:
        """A start that failed is an end, too: restart policies leave it alone."""
        if life.record.owns_sandbox:
            self._sandboxes.has_ended(life.record.sandbox)
        run = life.run
        if run is not None:
            run.ended.set()
            life.wake()
            self._close(run)
        await self.clear_run(life)
        if run is not None:
            run.cleared.set()
            life.run = None
        self.put(
            life,
            replace(life.record, stage=Stage.EXITED, exit=exit, has_run=True, monitor=None, process=None, stopped=True),
        )
        life.tell_waiters(exit)
        self.tell(life, "die", exitCode=str(exit.code))

    async def _discard(self, life: Life, error: BaseException) -> None:
        """Take away a container whose making failed before anybody was told of it."""
        self.lives.free_name(life)
        if life.record.stage is not Stage.REMOVING:
            with suppress(WherryError):
                self.put(life, replace(life.record, stage=Stage.REMOVING, name=""))
        try:
            await self.finish_removal(life)
        except WherryError as second:
            log.warning("container %s: %s; and then %s", life.record.id[:12], error, second.message)

    # ending -----------------------------------------------------------------------------------------------------------
    async def _kill_hard(self, life: Life, run: Run) -> None:
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

    async def _after(self, life: Life, run: Run | None, *, again: bool) -> None:
        """Clear a run that has ended; then remove the container if it was to go with it."""
        try:
            await self.clear_run(life)
        finally:
            if run is not None:
                self._close(run)
                run.cleared.set()
        if life.record.spec.auto_remove and not again and life.record.stage is Stage.EXITED:
            await self.remove(life, force=True, volumes=True)
        await self._trash.empty()

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

    async def _restart(self, life: Life, delay_s: float) -> None:
        await self._clock.sleep(delay_s)
        try:
            async with life.lock:
                if life.record.stage is Stage.EXITED and not life.record.stopped:
                    self.put(life, replace(life.record, restarts=life.record.restarts + 1))
                    await self._start(life)
        finally:
            if life.restart is asyncio.current_task():  # else it has ended already, and the next is planned
                life.restart = None

    def _forget_restart(self, life: Life) -> None:
        if life.restart is not None and life.restart is not asyncio.current_task():
            life.restart.cancel()
            life.restart = None
            if life.record.exit is not None:
                life.tell_waiters(life.record.exit)

    def _close(self, run: Run) -> None:
        if run.monitor_fd >= 0:
            asyncio.get_running_loop().remove_reader(run.monitor_fd)
            os.close(run.monitor_fd)
            run.monitor_fd = -1
        if run.child is not None:
            _ = run.child.code  # reaps it
            run.child.close()

    # rows -------------------------------------------------------------------------------------------------------------
    def put(self, life: Life, record: ContainerRecord) -> None:
        """Write a row."""
        self._records.put_container(record)
        life.record = record

    def tell(self, life: Life, action: str, **attributes: str) -> None:
        """Send an event."""
        record = life.record
        self._events.tell(
            "container",
            action,
            record.id,
            {**record.spec.labels, "name": record.name, "image": record.spec.image, **attributes},
        )


def _ignore(life: Life) -> None:
    """Nobody watches what has been started."""


def _holder(id: str) -> str:
    return f"container/{id}"


def _remove_logs(record: ContainerRecord) -> None:
    """Remove a log and its rotated predecessors."""
    for path in (record.log_path, *(f"{record.log_path}.{i}" for i in range(1, record.spec.log_max_files + 1))):
        with suppress(OSError):
            os.unlink(path)
