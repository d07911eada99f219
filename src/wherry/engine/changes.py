"""What is done to a container between its making and its end: paused, renamed, given other limits, looked into."""

import asyncio
import posixpath
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from wherry.engine import diffs, restarts
from wherry.engine import spec as specs
from wherry.engine.containers import Containers
from wherry.engine.intents import check_container_name, name_volumes
from wherry.engine.lives import Life
from wherry.engine.paths import Paths
from wherry.engine.records import Stage
from wherry.engine.runs import Runs
from wherry.engine.sandboxes import Sandboxes
from wherry.engine.snapshots import Snapshots
from wherry.engine.types import Limits, Mount
from wherry.engine.volumes import Volumes
from wherry.errors import AlreadyExists, Conflict, Invalid, NotFound, Unsupported
from wherry.host import spawn
from wherry.network.types import PortBinding

PS_S = 10.0


class Changes:
    """Changes to the containers of one engine."""

    def __init__(
        self,
        paths: Paths,
        containers: Containers,
        runs: Runs,
        snapshots: Snapshots,
        sandboxes: Sandboxes,
        volumes: Volumes,
    ) -> None:
        self._sandboxes = sandboxes
        self._volumes = volumes
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

    async def update(
        self, life: Life, limits: Limits | None, restart: str | None, asked: Mapping[str, Any] | None = None
    ) -> None:
        """Give it other limits, at once where it runs, or another restart policy. Raises Invalid, Broken."""
        async with life.lock:
            spec = life.record.spec
            if restart is not None:
                if spec.auto_remove and restarts.parse(restart).name != "no":
                    raise Invalid("Restart policy cannot be updated because AutoRemove is enabled for the container")
                spec = replace(spec, restart=restart)
            if limits is not None:
                specs.resources(limits)
                sandbox = self._containers.sandbox_of(life.record)
                if life.run is not None and not life.run.ended.is_set() and sandbox is not None:
                    await self._runs.limit(life.record, sandbox, limits)
                spec = replace(spec, limits=limits)
            if asked is not None:
                spec = replace(spec, asked=asked)
            self._containers.put(life, replace(life.record, spec=spec))
        self._containers.tell(life, "update")

    async def reshape(
        self,
        life: Life,
        *,
        ports: Sequence[PortBinding] | None,
        mounts: Sequence[Mount] | None,
        env: Sequence[str] | None,
        asked: Mapping[str, Any],
    ) -> None:
        """Give a container that does not run other ports, mounts or variables; None leaves them. Its layer stays.

        Anonymous volumes stay where nothing else is mounted now. Raises Conflict while it runs, Invalid, Unsupported.
        """
        async with life.lock:
            record = life.record
            if life.is_running:
                raise Conflict(
                    f"container {record.name}: its ports, mounts and variables change only while it is stopped"
                )
            spec = replace(record.spec, asked=asked)
            if env is not None:
                spec = replace(spec, env=list(env))
            if mounts is not None:
                if any(mount.kind == "image" for mount in mounts):
                    raise Unsupported(f"container {record.name}: images are mounted only by a new container")
                taken = {posixpath.normpath(mount.target) for mount in mounts}
                stay = [
                    mount
                    for mount in spec.mounts
                    if (mount.source in record.anonymous or mount.kind == "image")
                    and posixpath.normpath(mount.target) not in taken
                ]
                named, anonymous = name_volumes(replace(spec, mounts=mounts, image_volumes=False), {})
                spec = replace(spec, mounts=[*named, *stay])
                record = replace(record, anonymous=[*record.anonymous, *anonymous], fills=True)
            if ports is not None:
                if spec.sandbox_spec is None or not record.owns_sandbox:
                    raise Unsupported(f"container {record.name}: its ports are those of its pod")
                spec = replace(spec, sandbox_spec=replace(spec.sandbox_spec, ports=list(ports)))
            await self._containers.drop_waiting(life)
            if ports is not None and self._containers.sandbox_of(record) is not None:
                self._sandboxes.respec(record.sandbox, ports)
            merged = replace(
                life.record, spec=spec, anonymous=record.anonymous, fills=life.record.fills or record.fills
            )
            self._containers.put(life, merged)
            self._volumes.make_for(merged)
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
            done = await spawn.plain.run(["ps", *options, f"-q{','.join(pids)}"], timeout_s=PS_S)
            if done.code != 0:  # some options (f) do not go with a choice of processes
                done = await spawn.plain.run(["ps", *options], timeout_s=PS_S)
        except OSError as error:
            raise NotFound(f"ps is not on this machine ({error.strerror}): install the package procps") from None
        if done.code != 0:
            said = done.err.decode(errors="replace").strip().partition("\n")[0]
            raise Invalid(f"ps: {said or done.code}")
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
