"""Containers in memory: the row, and the present run with those who wait for its end."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from wherry.engine.records import ContainerRecord, Stage
from wherry.engine.types import Container, Exit, HealthState, State
from wherry.errors import Invalid, NotFound
from wherry.host.processes import Identity
from wherry.host.spawn import Child


@dataclass(slots=True, eq=False)
class Run:
    """A run that conmon watches. `monitor_fd` is a pidfd, closed when the run has been cleared; `clearing`: it is being."""

    monitor: Identity
    process: Identity
    monitor_fd: int
    child: Child | None = None
    clearing: bool = False
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    cleared: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(slots=True, eq=False)
class Life:
    """A container. `lock` is held by whoever changes it; the end of its run needs no lock and may come at any time."""

    record: ContainerRecord
    run: Run | None = None
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    waiters: list["asyncio.Future[Exit]"] = field(default_factory=list["asyncio.Future[Exit]"])
    listeners: list[Callable[[], None]] = field(default_factory=list[Callable[[], None]])
    restart: "asyncio.Task[None] | None" = None
    removal: "asyncio.Task[None] | None" = None
    delay_s: float = 0.0
    health: HealthState | None = None

    @property
    def is_running(self) -> bool:
        """Its process has been let go and has not ended."""
        return self.record.stage is Stage.STARTED and self.run is not None and not self.run.ended.is_set()

    @property
    def may_write(self) -> bool:
        """There may come more of its log."""
        return self.run is not None and not self.run.ended.is_set()

    def wake(self) -> None:
        """Tell those who follow it that its run has ended."""
        for listener in tuple(self.listeners):
            listener()

    def tell_waiters(self, exit: Exit) -> None:
        """Give the exit to those who wait for it."""
        waiters, self.waiters = self.waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(exit)

    def fail_waiters(self, error: Exception) -> None:
        """Tell those who wait that there will be no exit."""
        waiters, self.waiters = self.waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_exception(error)


class Lives:
    """All containers of an engine, by id, name or unique id prefix."""

    def __init__(self) -> None:
        self._by_id: dict[str, Life] = {}
        self._by_name: dict[str, str] = {}

    def add(self, life: Life) -> None:
        """Take one in."""
        self._by_id[life.record.id] = life
        if life.record.name:
            self._by_name[life.record.name] = life.record.id

    def drop(self, id: str) -> None:
        """Forget one."""
        life = self._by_id.pop(id, None)
        if life is not None and self._by_name.get(life.record.name) == id:
            del self._by_name[life.record.name]

    def rename(self, life: Life, old: str) -> None:
        """Know a container by the name that its row has now."""
        if self._by_name.get(old) == life.record.id:
            del self._by_name[old]
        self._by_name[life.record.name] = life.record.id

    def free_name(self, life: Life) -> None:
        """Let another container have its name."""
        if self._by_name.get(life.record.name) == life.record.id:
            del self._by_name[life.record.name]

    def has(self, ref: str) -> bool:
        """Say whether an id or name is taken."""
        return ref in self._by_id or ref in self._by_name

    def get(self, id: str) -> Life | None:
        """Find one by its full id."""
        return self._by_id.get(id)

    def find(self, ref: str) -> Life:
        """Find one. Raises NotFound, Invalid for a prefix that several ids have."""
        ref = ref.removeprefix("/")
        life = self._by_id.get(ref) or self._by_id.get(self._by_name.get(ref, ""))
        if life is None and ref:
            found = [each for id, each in self._by_id.items() if id.startswith(ref)]
            if len(found) > 1:
                raise Invalid(f"container {ref}: {len(found)} ids begin so; write more digits")
            life = found[0] if found else None
        if life is None or life.record.stage is Stage.REMOVING or not life.record.acknowledged:
            raise NotFound(f"container {ref}: there is none")
        return life

    def all(self) -> Sequence[Life]:
        """List all, also those being made or removed, oldest first."""
        return list(self._by_id.values())


def running_names(lives: Lives, sandbox: str) -> Sequence[str]:
    """Name the container that has a sandbox of its own, while it runs or is about to; else none."""
    life = lives.get(sandbox)
    if life is None or life.record.stage not in (Stage.STARTING, Stage.STARTED):
        return ()
    return (life.record.name, life.record.id[:12])


def view(life: Life, address: str, volumes: Mapping[str, str]) -> Container:
    """Show a container as callers see it."""
    record = life.record
    running = life.is_running
    if running:
        state = State.PAUSED if record.paused else State.RUNNING
    elif record.stage is Stage.EXITED or record.has_run:
        state = State.EXITED
    else:
        state = State.CREATED
    return Container(
        id=record.id,
        name=record.name,
        spec=record.spec,
        image_id=record.image_id,
        state=state,
        created=record.created,
        started=record.started,
        exit=None if running or state is State.CREATED else record.exit,
        pid=life.run.process.pid if running and life.run is not None else 0,
        restarts=record.restarts,
        sandbox=record.sandbox,
        address=address,
        argv=record.argv,
        volumes=volumes,
        restarting=life.restart is not None and not running,
        health=life.health or record.health,
    )
