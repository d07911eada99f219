"""The life of containers: created, started, stopped, restarted, removed; every arrow written down first.

README.md has the stages and what a kill of ours at each arrow leaves. How they end is in ends.py.
"""

import asyncio
import logging
import os
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace

from wherry.clock import machine
from wherry.content.protocol import Digest
from wherry.engine import restarts
from wherry.engine.ends import Ends, Surroundings, holder
from wherry.engine.images import Images
from wherry.engine.intents import intend, own_sandbox
from wherry.engine.joins import joined
from wherry.engine.lives import Life, Lives, Run
from wherry.engine.records import Stage
from wherry.engine.runs import CREATE_FAILED
from wherry.engine.runtime import CommandFailed
from wherry.engine.signals import signal_number
from wherry.engine.snapshots import Snapshots
from wherry.engine.types import Container, ContainerSpec, Exit
from wherry.errors import Broken, Conflict, NotFound, WherryError
from wherry.host import processes

log = logging.getLogger(__name__)


class Containers(Ends):
    """The containers of one engine."""

    def __init__(self, around: Surroundings, lives: Lives, snapshots: Snapshots, images: Images) -> None:
        super().__init__(around, lives)
        self._snapshots = snapshots
        self._images = images
        self._slots = asyncio.Semaphore(around.settings.at_once)
        self.on_started: Callable[[Life], None] = _ignore

    async def create(self, spec: ContainerSpec) -> Container:
        """Make a container whose process waits. Raises NotFound, AlreadyExists, Invalid, Broken.

        A command that cannot be run, or a user who is not there, is no error here, but one of `start`: that is where
        Docker's users look for it.
        """
        spec = replace(spec, runtime=self._runs.runtimes.named(spec.runtime).tool.name)
        record = await intend(spec, self._images, self._sandboxes, self.lives, self._paths)
        life = Life(record)
        self.lives.add(life)
        async with life.lock:
            try:
                self.put(life, record)
                self._settings.arrow("intent")
                for digest in (record.image_digest, *(mounted.digest for mounted in record.image_mounts)):
                    await self._content.hold(holder(record.id), Digest(digest))
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
            life.delay_s = 0.0
            if life.record.restarts:
                self.put(
                    life, replace(life.record, restarts=0)
                )  # they are counted from the last time a person started it
            await self._start(life)

    async def stop(self, life: Life, grace_s: float | None, signal: str = "") -> None:
        """Stop signal (or `signal`), grace, kill."""
        async with life.lock:
            await self._stop(life, grace_s, signal)

    async def _stop(self, life: Life, grace_s: float | None, signal: str = "") -> None:
        """Stop it under its lock."""
        self._forget_restart(life)
        self.put(life, replace(life.record, stopped=True))
        run = life.run
        if run is None or not life.is_running:
            return
        number = signal_number(signal or life.record.stop_signal)
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

    async def heal(self, life: Life, run: Run) -> None:
        """Do with a run that has become unhealthy what its spec says: stop it, or start the container anew.

        Nothing when that run has ended meanwhile. Raises CommandFailed, Broken.
        """
        async with life.lock:
            if life.run is not run or not life.is_running:
                return
            await self._stop(life, None)
            if life.record.spec.on_unhealthy == "restart":
                self.put(life, replace(life.record, restarts=life.record.restarts + 1))
                await self._start(life)

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

    # making -----------------------------------------------------------------------------------------------------------
    async def _make_run(self, life: Life) -> None:
        """Bring a row from INTENT to CREATED. Raises CommandFailed, Invalid, Broken; then a run may be half made."""
        record = life.record
        image = await self._images.known(Digest(record.image_digest))
        await self._snapshots.ensure(image.layers, f"container {record.name}")
        for mounted in record.image_mounts:
            known = await self._images.known(Digest(mounted.digest))
            await self._snapshots.ensure(known.layers, f"image {mounted.digest} for container {record.name}")
        async with self._slots:
            if record.owns_sandbox:
                await self._sandboxes.ensure(own_sandbox(record.spec, record.id))
            others = await joined(record, self.lives, self._sandboxes, self._runs.environment)
            self._settings.arrow("sandbox")

            def spawned(monitor: processes.Identity, mount_points: Sequence[str]) -> None:
                points = [*dict.fromkeys((*life.record.mount_points, *mount_points))]
                self.put(life, replace(life.record, stage=Stage.SPAWNED, monitor=monitor, mount_points=points))
                self._settings.arrow("spawned")

            try:
                made = await self._runs.make(record, self._sandboxes.row(record.sandbox), image.config, spawned, others)
            except OSError as error:
                raise Broken(f"container {record.name}: {error.strerror or error} ({error.filename})") from error
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
            self.put(
                life, replace(life.record, stage=Stage.STARTING, stopped=False, health=None, started=machine.now())
            )
            self._settings.arrow("starting")
            if record.owns_sandbox:
                await self._sandboxes.about_to_run(record.sandbox)
            async with self._slots:
                await self._runs.runtime_of(record).start(record.id)
            self._settings.arrow("started")
            if not run.ended.is_set():
                self.put(life, replace(life.record, stage=Stage.STARTED, fills=False))
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

    # starting again ---------------------------------------------------------------------------------------------------
    def plan_restart(self, life: Life) -> None:
        """Start it again after the next back-off."""
        exit = life.record.exit
        life.delay_s = restarts.next_delay_s(life.delay_s, exit.time - life.record.started if exit else 0.0)
        life.restart = self._tasks.start(self._restart(life, life.delay_s), f"restart {life.record.id[:12]}")

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


def _ignore(life: Life) -> None:
    """Nobody watches what has been started."""
