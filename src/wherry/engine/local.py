"""The engine of this machine: engine/types.Engine over crun, conmon, overlayfs and the content store.

This module only puts the parts together and hands calls on; README.md says where things happen.
"""

import asyncio
import logging
import os
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, AsyncExitStack, suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from wherry.clock import Clock
from wherry.content.pack import pack_upper
from wherry.content.protocol import Content, Digest
from wherry.engine import execs, logs, monitor, rotation
from wherry.engine.archive import PathStat
from wherry.engine.calls import ImageCalls
from wherry.engine.changes import Changes
from wherry.engine.containers import Containers
from wherry.engine.diffs import Change
from wherry.engine.ends import Surroundings
from wherry.engine.events import Events
from wherry.engine.health import HealthChecks
from wherry.engine.images import LEASE_S, Images
from wherry.engine.imports import Archives
from wherry.engine.insides import Insides
from wherry.engine.lives import Life, Lives, running_names
from wherry.engine.networks import Networking, Networks
from wherry.engine.paths import Paths, lock
from wherry.engine.records import Records
from wherry.engine.recovery import Recovery
from wherry.engine.runs import Runs
from wherry.engine.runtime import find_runtimes
from wherry.engine.sandboxes import Sandboxes
from wherry.engine.sessions import Attached
from wherry.engine.settings import EngineSettings
from wherry.engine.snapshots import Snapshots
from wherry.engine.tasks import Tasks
from wherry.engine.trash import Trash, disk_usage
from wherry.engine.types import (
    Container,
    ContainerSpec,
    EngineEvent,
    ExecSpec,
    Exit,
    Image,
    Join,
    Limits,
    LogLine,
    Mount,
    Sandbox,
    SandboxSpec,
)
from wherry.engine.uses import uses
from wherry.engine.volumes import Volumes
from wherry.errors import Broken, Conflict, NotFound
from wherry.host import abilities, cgroups, mounts
from wherry.host.engine_calls import Inotify
from wherry.host.engine_usage import Detail, system_cpu_ns, traffic
from wherry.network.types import PodNetwork, PortBinding

log = logging.getLogger(__name__)


class LocalEngine(ImageCalls):
    """Containers of this machine; an async context manager. Leaving it leaves the containers running.

    One engine at a time has a `root` (what outlives a reboot) and a `run` (what need not; mounts are made below it).
    """

    def __init__(
        self,
        root: Path,
        run: Path,
        *,
        instance: str,
        node: str,
        content: Content,
        network: PodNetwork,
        clock: Clock,
        settings: EngineSettings | None = None,
        networking: Networking | None = None,
    ) -> None:
        self.settings = settings or EngineSettings()
        self._paths = Paths(root.absolute(), run.absolute())
        self._base = self.settings.cgroup or f"wherry/{instance}/{node}"
        self._content = content
        self._network = network
        self._networking = networking
        self._clock = clock
        self._stack = AsyncExitStack()
        self._events = Events()
        self._collecting = asyncio.Lock()
        self._collecting_again: asyncio.Task[None] | None = None
        self._trash = Trash(self._paths.trash)

    async def __aenter__(self) -> Self:
        """Take the lock, find the tools, take up what is there. Raises Conflict when another engine has the root."""
        async with AsyncExitStack() as stack:
            paths, settings = self._paths, self.settings
            paths.make()
            await lock(paths, stack)
            mounts.share(str(paths.run))
            groups = cgroups.find(self._base)
            self._groups = groups
            stack.callback(self._leave_no_trace)
            self.runtimes = await find_runtimes(self.settings.runtime, paths.runtime, stack)
            records = Records(paths.records)
            stack.callback(records.close)
            self._inotify = Inotify()
            stack.callback(self._inotify.close)
            lives = Lives()
            self.networks = Networks(
                records, self._events, self._networking, lambda sandbox: running_names(lives, sandbox)
            )
            stack.push_async_callback(self.networks.close)
            tasks = await stack.enter_async_context(Tasks())  # last in, first out: they use all of the above
            self._images = Images(
                self._content,
                settings,
                self._events,
                lambda id: self._containers.users_of(id),
                lambda id: lives.find(id).is_running,
                lambda diff_ids: self._snapshots.sizes(diff_ids),
            )
            self._snapshots = Snapshots(paths, self._content, self._trash)
            self._archives = Archives(self._content, self._images, self._snapshots, paths.trash)
            self._sandboxes = Sandboxes(paths, records, groups, self._network, self._events, settings, self.networks)
            self.volumes = Volumes(paths, self._events, self._trash, lambda name: self._containers.volume_users(name))
            runs = Runs(paths, self.runtimes, groups, self._snapshots, self._sandboxes, self.volumes, settings)
            self._runs = runs
            around = Surroundings(
                paths,
                records,
                runs,
                self._sandboxes,
                self._content,
                self._events,
                self._clock,
                settings,
                tasks,
                self._trash,
                self.volumes,
            )
            self._containers = Containers(around, lives, self._snapshots, self._images)
            tasks.on_leaving = self._containers.leave
            self._containers.uses_of = lambda life: tuple(
                uses(life, self._containers.sandbox_of(life.record), self.networks)
            )
            self._containers.on_started = HealthChecks(paths, runs.runtime_of, self._containers, tasks).begin
            self._changes = Changes(paths, self._containers, runs, self._snapshots, self._sandboxes, self.volumes)
            self._insides = Insides(
                paths, self._containers, runs, self._snapshots, self._images, self.volumes, self._content
            )
            await self._snapshots.open()
            self._sandboxes.open()
            await self.networks.open(self._sandboxes.states())
            self.volumes.open()
            runs.open()
            self.abilities = abilities.look(groups, "conmon")
            self._inotify.watch(str(paths.exits), self._on_exit_file)
            await Recovery(paths, records, runs, self._sandboxes, self._containers, tasks).run()
            running = [life.record.sandbox for life in lives.all() if life.is_running]
            owned = {life.record.sandbox for life in lives.all() if life.record.owns_sandbox}
            shared = [each.id for each in self._sandboxes.all() if each.ready and each.id not in owned]
            await self.networks.take_up_ports([*running, *shared])
            tasks.start(rotation.Rotation(self._written_logs, self.settings.rotate_every_s).run(), "rotate logs")
            tasks.start(self._settle(), "settle snapshots", settling=True)
            self._tasks = tasks
            self._stack = stack.pop_all()
        default = self.runtimes.default
        log.info("engine: %s %s, conmon %s", default.tool.name, default.tool.version, default.monitor.version)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    # images: see also calls.py --------------------------------------------------------------------------------------------
    async def collect(self) -> int:
        """Remove the snapshots that no image and no container needs; return how many went.

        Where containers are just being cleared away it is done once more behind them.
        """
        async with self._collecting:
            used = self._containers.layers_in_use() | await self._images.layers()
            gone = await self._snapshots.collect(used | self._containers.layers_in_use())
        if gone:
            await self._trash.empty()
        leaving = [life.removal for life in self._containers.lives.all() if life.removal and not life.removal.done()]
        if leaving and (self._collecting_again is None or self._collecting_again.done()):
            self._collecting_again = self._tasks.start(self._collect_after(leaving), "collect layers", settling=True)
        return gone

    async def _collect_after(self, removals: Sequence["asyncio.Task[None]"]) -> None:
        await asyncio.wait(removals)
        self._collecting_again = None
        await self.collect()

    async def diff_layer(self, ref: str, *, lease: str = "") -> tuple[Digest, str, int]:
        """Pack what a container has changed as a layer blob: (digest, diff id, size in bytes).

        Nobody holds it yet: `lease`, or one of an hour, covers it. Mount points that only the runtime made are left out.
        """
        record = self._containers.lives.find(ref).record
        lease = lease or await self._content.lease(seconds=LEASE_S)
        upper = self._paths.container(record.id) / "upper"
        layer = await pack_upper(self._content, upper, lease=lease, exclude=record.mount_points)
        return layer.digest, layer.diff_id, layer.size_bytes

    async def adopt_layer(self, ref: str, diff_id: str) -> bool:
        """Keep what a dead container wrote as the layer that `diff_layer` packed, unpacked: False where it cannot be.

        The container can only be removed after that. Until an image has the layer, `keeping` keeps it.
        """
        life = self._containers.lives.find(ref)
        if life.is_running:
            raise Conflict(f"container {life.record.name}: it runs, so its files are its own")
        upper = self._paths.container(life.record.id) / "upper"
        await asyncio.to_thread(mounts.unmount, str(self._paths.bundle(life.record.id) / "rootfs"))
        return await self._snapshots.adopt(upper, diff_id, life.record.mount_points)

    def keeping(self, diff_ids: Collection[str]) -> AbstractContextManager[None]:
        """Keep unpacked layers that no image has yet."""
        return self._snapshots.keeping(diff_ids)

    # sandboxes --------------------------------------------------------------------------------------------------------
    async def create_sandbox(self, spec: SandboxSpec) -> Sandbox:
        """See Engine."""
        made = await self._sandboxes.ensure(spec)
        await self._sandboxes.publish(spec.id)
        return made

    async def sandbox(self, id: str) -> Sandbox:
        """See Engine."""
        return self._sandboxes.find(id)

    async def sandboxes(self) -> Sequence[Sandbox]:
        """See Engine."""
        return self._sandboxes.all()

    async def remove_sandbox(self, id: str) -> None:
        """See Engine. Returns when all of it is gone."""
        inside = [life for life in self._containers.in_sandbox(id) if not life.record.owns_sandbox]
        async with asyncio.TaskGroup() as group:
            for life in inside:
                group.create_task(self._remove_wholly(life))
        await self._sandboxes.remove(id)

    # containers -------------------------------------------------------------------------------------------------------
    async def create(self, spec: ContainerSpec) -> Container:
        """See Engine."""
        return await self._containers.create(spec)

    async def start(self, ref: str) -> None:
        """See Engine."""
        await self._containers.start(self._find(ref))

    async def container(self, ref: str) -> Container:
        """See Engine."""
        return self._with_networks(self._containers.show(self._find(ref)))

    async def containers(self) -> Sequence[Container]:
        """See Engine."""
        return [self._with_networks(each) for each in self._containers.all()]

    async def connect(self, ref: str, join: Join) -> None:
        """Put a container on one more network, while it runs or not. Raises Forbidden, NotFound, Invalid, Broken."""
        record = self._find(ref).record
        await self._sandboxes.connect(record.sandbox, join)

    async def disconnect(self, ref: str, network: str) -> None:
        """Take a container off a network, while it runs or not. Raises Forbidden, NotFound, Broken."""
        record = self._find(ref).record
        await self._sandboxes.disconnect(record.sandbox, network)

    async def stop(self, ref: str, *, grace_s: float | None = None, signal: str = "") -> None:
        """See Engine. `signal`: another than its own stop signal."""
        await self._containers.stop(self._find(ref), grace_s, signal)

    async def kill(self, ref: str, signal: str = "SIGKILL") -> None:
        """See Engine."""
        await self._containers.kill(self._find(ref), signal)

    async def wait(self, ref: str) -> Exit:
        """See Engine."""
        return await self._containers.wait(self._find(ref))

    async def remove(self, ref: str, *, force: bool = False, volumes: bool = False) -> None:
        """See Engine. What takes long (namespaces, links, files) goes behind; the name is free on return."""
        await self._containers.remove(self._find(ref), force=force, volumes=volumes)

    async def exec(self, ref: str, spec: ExecSpec) -> execs.Executed:
        """See Engine."""
        life, run, _ = self._containers.running(ref)
        if life.record.paused:
            raise Conflict(f"container {life.record.name}: it is paused; unpause it before exec")
        runtime = self._runs.runtime_of(life.record)
        return await execs.execute(self._paths, runtime, self._tasks, life.record.id, run.process, spec)

    async def attach(self, ref: str) -> Attached:
        """See Engine. Also before `start`: then nothing that it writes is missed."""
        life = self._find(ref)
        record = life.record
        if life.run is None or life.run.ended.is_set():
            raise Conflict(f"container {record.name}: it does not run, so there is nothing to attach to")
        bundle = self._paths.bundle(record.id)
        connection = await monitor.connect(bundle)

        async def code() -> int:
            return (await self._containers.wait(life)).code

        return Attached(connection, bundle, stdin=record.spec.stdin, tty=record.spec.tty, code=code)

    async def pause(self, ref: str) -> None:
        """Stop all processes of a container where they are. Raises Conflict when it does not run, or is paused."""
        await self._changes.pause(self._find(ref))

    async def unpause(self, ref: str) -> None:
        """Let them go on. Raises Conflict when it is not paused."""
        await self._changes.unpause(self._find(ref))

    async def rename(self, ref: str, name: str) -> None:
        """Give a container another name. Raises Invalid, AlreadyExists."""
        await self._changes.rename(self._find(ref), name)

    async def update(
        self,
        ref: str,
        *,
        limits: Limits | None = None,
        restart: str | None = None,
        asked: Mapping[str, Any] | None = None,
    ) -> None:
        """Give a container other limits, at once where it runs, or another restart policy. Raises Invalid, Broken.

        `asked` replaces what its spec shows as the client wrote it.
        """
        await self._changes.update(self._find(ref), limits, restart, asked)

    async def reshape(
        self,
        ref: str,
        *,
        ports: Sequence[PortBinding] | None,
        mounts: Sequence[Mount] | None,
        env: Sequence[str] | None,
        asked: Mapping[str, Any],
    ) -> None:
        """Give a stopped container other ports, mounts or variables; None leaves them. Raises Conflict, Invalid."""
        await self._changes.reshape(self._find(ref), ports=ports, mounts=mounts, env=env, asked=asked)

    async def top(self, ref: str, words: str) -> tuple[Sequence[str], Sequence[Sequence[str]]]:
        """List the processes of a container by ps with options `words`: (titles, rows). Raises Invalid, Conflict."""
        return await self._changes.top(self._find(ref), words)

    async def diff(self, ref: str) -> Sequence[Change]:
        """List what a container has changed against its image."""
        return await self._changes.diff(self._find(ref))

    async def look(self, ref: str, path: str) -> PathStat:
        """Look at a path in a container, running or not. Raises NotFound."""
        return await self._insides.look(self._find(ref), path)

    def read_files(self, ref: str, path: str) -> AsyncIterator[bytes]:
        """Yield a tar of what is at a path in a container."""
        return self._insides.read(self._find(ref), path)

    async def write_files(
        self, ref: str, path: str, body: AsyncIterator[bytes], *, own: bool = False, keep_kinds: bool = False
    ) -> None:
        """Unpack a tar into a directory of a container; `own`: it all belongs to the container's user. Raises NotFound,
        Invalid, Damaged, Broken. With `keep_kinds` no directory becomes a file or the other way round.
        """
        await self._insides.write(self._find(ref), path, body, own=own, keep_kinds=keep_kinds)

    def export(self, ref: str) -> AsyncIterator[bytes]:
        """Yield a tar of a container's whole root, without what is mounted in it."""
        return self._insides.export(self._find(ref))

    async def commit(
        self, ref: str, names: Sequence[str], config: Mapping[str, Any], *, author: str, message: str, pause: bool
    ) -> Image:
        """Make an image of a container as it is now, with the settings `config`."""
        return await self._insides.commit(self._find(ref), names, config, author=author, message=message, pause=pause)

    async def import_image(
        self,
        body: AsyncIterator[bytes],
        names: Sequence[str],
        config: Mapping[str, Any],
        *,
        message: str,
        platform: str,
    ) -> Image:
        """Make an image of one layer out of a tar of a file system. Raises Damaged, Invalid."""
        return await self._insides.take(body, names, config, message=message, platform=platform)

    async def resize(self, ref: str, rows: int, columns: int) -> None:
        """Set the size of a container's terminal. Raises Conflict when it does not run."""
        life, _, _ = self._containers.running(ref)
        monitor.resize(self._paths.bundle(life.record.id), rows, columns)

    def logs(
        self, ref: str, *, follow: bool = False, tail: int | None = None, since: float = 0.0
    ) -> AsyncIterator[LogLine]:
        """See Engine. Raises Unsupported for a container that keeps no log."""
        return logs.each(self.log_blocks(ref, follow=follow, tail=tail, since=since))

    def log_blocks(
        self, ref: str, *, follow: bool = False, tail: int | None = None, since: float = 0.0
    ) -> AsyncGenerator[Sequence[LogLine]]:
        """The same, many lines at once, as they were read."""
        return logs.read_life(self._find(ref), self._inotify, follow=follow, tail=tail, since=since)

    async def stats(self, ref: str) -> Mapping[str, int]:
        """See Engine."""
        life, _, sandbox = self._containers.running(ref)
        usage = self._runs.usage(life.record, sandbox)
        return {
            "cpu_usage_ns": usage.cpu_usage_ns,
            "memory_usage_bytes": usage.memory_usage_bytes,
            "memory_working_set_bytes": usage.memory_working_set_bytes,
            "pids": usage.pids,
        }

    def log_path(self, ref: str) -> str:
        """Say where a container's log is."""
        return self._find(ref).record.log_path

    async def size_of(self, directory: str) -> int:
        """Count the bytes on disk below a directory; files that vanish meanwhile do not count."""
        return await asyncio.to_thread(disk_usage, directory)

    async def empty_trash(self) -> None:
        """Have what was removed leave the disk now."""
        await self._trash.empty()

    async def usage(self, ref: str) -> tuple[Detail, Mapping[str, Sequence[int]], int]:
        """Read all counters of a running container, its traffic, and the machine's CPU time. Raises Conflict, NotFound."""
        life, run, sandbox = self._containers.running(ref)
        used = await asyncio.to_thread(self._runs.detail, life.record, sandbox)
        own_network = sandbox.spec.network != "host"
        return used, traffic(run.process.pid) if own_network else {}, system_cpu_ns()

    def log_size(self, ref: str) -> int:
        """Count the bytes on disk of a container's log, with its rotated files."""
        return rotation.size_of(self._find(ref).record)

    async def written(self, ref: str) -> int:
        """Count the bytes on disk that a container has written to its own layer."""
        return await self.size_of(str(self._paths.container(self._find(ref).record.id) / "upper"))

    async def layers_size(self) -> int:
        """Count the bytes on disk of all unpacked layers."""
        return await self.size_of(str(self._paths.snapshots))

    def events(self, *, since: float = 0.0) -> AsyncIterator[EngineEvent]:
        """See Engine. With `since`, a time, first what is remembered from then on."""
        return self._events.read(since)

    def tell(self, kind: str, action: str, id: str, attributes: Mapping[str, str]) -> None:
        """Send an event."""
        self._events.tell(kind, action, id, attributes)

    def tell_of(self, ref: str, action: str, attributes: Mapping[str, str]) -> None:
        """Send an event of a container, with its name, image and labels; nothing when it is not there any more."""
        with suppress(NotFound):
            self._containers.tell(self._find(ref), action, **attributes)

    async def settled(self, *, timeout_s: float = 20.0) -> None:
        """Wait until what goes on behind (clearing, deleting) is done."""
        await self._tasks.settle(timeout_s)

    def _with_networks(self, container: Container) -> Container:
        ports, endpoints = self.networks.ports_of(container.sandbox), self.networks.endpoints_of(container.sandbox)
        is_on_pods = container.address and all(each.address != container.address for each in endpoints)
        gateway = self._network.gateway if is_on_pods else ""
        return replace(container, ports=ports, endpoints=endpoints, gateway=gateway)

    # inside -----------------------------------------------------------------------------------------------------------
    def _find(self, ref: str) -> Life:
        return self._containers.lives.find(ref)

    async def _remove_wholly(self, life: Life) -> None:
        await self._containers.remove(life, force=True)
        await self._containers.gone(life)

    def _on_exit_file(self, name: str) -> None:
        if name:
            self._containers.note_exit(name)
            return
        for life in self._containers.lives.all():  # events were lost
            self._containers.note_exit(life.record.id)

    def _written_logs(self) -> rotation.Running:
        lives = self._containers.lives.all()
        return [(life.record, self._paths.bundle(life.record.id)) for life in lives if life.is_running]

    async def _settle(self) -> None:
        """What can wait until the engine serves: old deletions, and what was unpacked shortly before."""
        await self._trash.empty()
        await self._snapshots.settle()

    def _leave_no_trace(self) -> None:
        """With no container and no sandbox left, leave no mount and no cgroup either."""
        run = self._paths.run
        if any(os.scandir(self._paths.bundles)) or any(os.scandir(run / "sandboxes")):
            return
        try:
            self._groups.remove("")
        except Broken as error:  # somebody else's processes: theirs to end
            log.debug("cgroup %s stays: %s", self._base, error.message)
            return
        if mounts.is_mounted(str(run)):
            mounts.unmount(str(run))
