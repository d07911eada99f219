"""What is done to a container between its making and its end: paused, renamed, given other limits, looked into."""

import asyncio
import shlex
from collections.abc import Sequence
from dataclasses import replace

from wherry.engine import diffs, restarts
from wherry.engine import spec as specs
from wherry.engine.containers import Containers
from wherry.engine.intents import check_container_name
from wherry.engine.lives import Life
from wherry.engine.paths import Paths
from wherry.engine.records import Stage
from wherry.engine.runs import Runs
from wherry.engine.snapshots import Snapshots
from wherry.engine.types import Limits
from wherry.errors import AlreadyExists, Conflict, Invalid, NotFound
from wherry.host import spawn

PS_S = 10.0


class Changes:
    """Changes to the containers of one engine."""

    def __init__(self, paths: Paths, containers: Containers, runs: Runs, snapshots: Snapshots) -> None:
        self._paths = paths
        self._containers = containers
        self._runs = runs
        self._snapshots = snapshots

    async def pause(self, life: Life) -> None:
        """Stop all its processes where they are. Raises Conflict when it does not run, or is paused."""
        async with life.lock:
            _, _, sandbox = self._containers.running(life.record.id)
            if life.record.paused:
                raise Conflict(f"container {life.record.name}: it is already paused")
            self._containers.put(life, replace(life.record, paused=True))  # first: a kill of ours must not hide it
            try:
                await self._runs.freeze(life.record, sandbox, frozen=True)
            except BaseException:
                self._containers.put(life, replace(life.record, paused=False))
                raise
        self._containers.tell(life, "pause")

    async def unpause(self, life: Life) -> None:
        """Let them go on. Raises Conflict when it is not paused."""
        async with life.lock:
            if not life.is_running or not life.record.paused:
                raise Conflict(f"container {life.record.name}: it is not paused")
            await self._containers.thaw(life)
        self._containers.tell(life, "unpause")

    async def rename(self, life: Life, name: str) -> None:
        """Give it another name. Raises Invalid, AlreadyExists."""
        name = name.removeprefix("/")
        check_container_name(name)
        async with life.lock:
            old = life.record.name
            if life.record.stage is Stage.REMOVING:
                raise NotFound(f"container {old}: it is being removed")
            if name == old:
                raise Invalid(f"container {old}: that is its name already")
            if self._containers.lives.has(name):
                raise AlreadyExists(f"container name {name!r} is taken: remove that container, or use another name")
            record = replace(life.record, name=name, spec=replace(life.record.spec, name=name))
            self._containers.put(life, record)
            self._containers.lives.rename(life, old)
        self._containers.tell(life, "rename", oldName=f"/{old}")

    async def update(self, life: Life, limits: Limits | None, restart: str | None) -> None:
        """Give it other limits, at once where it runs, or another restart policy. Raises Invalid, Broken."""
        async with life.lock:
            spec = life.record.spec
            if restart is not None:
                if spec.auto_remove and restarts.parse(restart).name != "no":
                    raise Invalid(f"container {life.record.name}: it is removed at its end, so it cannot restart")
                spec = replace(spec, restart=restart)
            if limits is not None:
                specs.resources(limits)
                sandbox = self._containers.sandbox_of(life.record)
                if life.run is not None and not life.run.ended.is_set() and sandbox is not None:
                    await self._runs.limit(life.record, sandbox, limits)
                spec = replace(spec, limits=limits)
            self._containers.put(life, replace(life.record, spec=spec))
        self._containers.tell(life, "update")

    async def top(self, life: Life, words: str) -> tuple[Sequence[str], Sequence[Sequence[str]]]:
        """List its processes by the machine's ps with options `words`: (titles, rows). Raises Invalid, Conflict, Broken."""
        _, _, sandbox = self._containers.running(life.record.id)
        pids = {str(pid) for pid in self._runs.processes(life.record, sandbox)}
        try:
            options = shlex.split(words)
        except ValueError as error:
            raise Invalid(f"ps options {words!r}: {error}") from None
        try:
            done = await spawn.plain.run(["ps", *options], timeout_s=PS_S)
        except OSError as error:
            raise NotFound(f"ps is not on this machine ({error.strerror}): install the package procps") from None
        if done.code != 0:
            raise Invalid(f"ps {words}: {done.err.decode(errors='replace').strip() or done.code}")
        lines = done.out.decode(errors="replace").splitlines()
        titles = lines[0].split() if lines else []
        if "PID" not in titles:
            raise Invalid(f"ps {words}: its output has no column PID")
        at = titles.index("PID")
        rows = [line.split(maxsplit=len(titles) - 1) for line in lines[1:]]
        return titles, [row for row in rows if len(row) > at and row[at] in pids]

    async def diff(self, life: Life) -> Sequence[diffs.Change]:
        """List what it has changed against its image."""
        record = life.record
        upper = self._paths.container(record.id) / "upper"
        if not upper.is_dir():
            return []
        lower = self._snapshots.lower(record.layers)
        return await asyncio.to_thread(lambda: list(diffs.changes(str(upper), lower, record.mount_points)))
