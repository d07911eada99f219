"""The engine of this machine: engine/types.Engine over crun, conmon, overlayfs and the content store.

This module only puts the parts together and hands calls on; README.md says where things happen.
"""

import asyncio
import fcntl
import logging
import os
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from wherry.clock import Clock, machine
from wherry.content import layout
from wherry.content.pack import pack_upper
from wherry.content.protocol import Content, Digest
from wherry.engine import execs, logs, monitor, rotation
from wherry.engine.archive import PathStat
from wherry.engine.changes import Changes
from wherry.engine.containers import Containers
from wherry.engine.diffs import Change
from wherry.engine.events import Events
from wherry.engine.health import HealthChecks
from wherry.engine.images import LEASE_S, Images
from wherry.engine.insides import Insides
from wherry.engine.lives import Life, Lives, running_names
from wherry.engine.networks import Networking, Networks
from wherry.engine.paths import Paths
from wherry.engine.records import Records
from wherry.engine.recovery import Recovery
from wherry.engine.runs import Runs
from wherry.engine.runtime import Runtime, find, find_runtime
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
    Sandbox,
    SandboxSpec,
)
from wherry.engine.volumes import Volumes
from wherry.errors import Broken, Conflict, Unavailable, Unsupported
from wherry.host import cgroups, mounts, spawn
from wherry.host.engine_calls import Inotify
from wherry.host.engine_usage import Detail, system_cpu_ns, traffic
from wherry.network.types import PodNetwork

log = logging.getLogger(__name__)

LOCK_S = 2.0


class LocalEngine:
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
        self._trash = Trash(self._paths.trash)

    async def __aenter__(self) -> Self:
        """Take the lock, find the tools, take up what is there. Raises Conflict when another engine has the root."""
        async with AsyncExitStack() as stack:
            paths, settings = self._paths, self.settings
            paths.make()
            await self._lock(stack)
            mounts.share(str(paths.run))
            groups = cgroups.find(self._base)
            self._groups = groups
            stack.callback(self._leave_no_trace)
            self._runtime = await self._find_runtime(stack)
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
            self._images = Images(self._content, settings, self._events, lambda id: self._containers.users_of(id))
            self._snapshots = Snapshots(paths, self._content, self._trash)
            self._sandboxes = Sandboxes(paths, records, groups, self._network, self._events, settings, self.networks)
            self.volumes = Volumes(paths, self._events, self._trash, lambda name: self._containers.volume_users(name))
            runs = Runs(paths, self._runtime, groups, self._snapshots, self._sandboxes, self.volumes, settings)
            self._runs = runs
            self._containers = Containers(
                paths,
                records,
                runs,
                self._sandboxes,
                self._snapshots,
                self._images,
                self._content,
                self._events,
                self._clock,
                settings,
                tasks,
                lives,
                self._trash,
                self.volumes,
            )
            self._containers.on_started = HealthChecks(paths, self._runtime, self._containers, tasks).begin
            self._changes = Changes(paths, self._containers, runs, self._snapshots)
            self._insides = Insides(
                paths, self._containers, runs, self._snapshots, self._images, self.volumes, self._content
            )
            await self._snapshots.open()
            self._sandboxes.open()
            await self.networks.open(self._sandboxes.states())
            self.volumes.open()
            runs.open()
            self._inotify.watch(str(paths.exits), self._on_exit_file)
            await Recovery(paths, records, runs, self._sandboxes, self._containers, tasks).run()
            await self.networks.take_up_ports([life.record.sandbox for life in lives.all() if life.is_running])
            tasks.start(self._rotate_logs(), "rotate logs")
            tasks.start(self._settle(), "settle snapshots", settling=True)
            self._tasks = tasks
            self._stack = stack.pop_all()
        log.info(
            "engine: %s %s, conmon %s",
            self._runtime.tool.name,
            self._runtime.tool.version,
            self._runtime.monitor.version,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    # images -----------------------------------------------------------------------------------------------------------
    async def image(self, ref: str) -> Image:
        """See Engine."""
        return await self._images.find(ref)

    async def images(self) -> Sequence[Image]:
        """See Engine."""
        return await self._images.all()

    async def pull(
        self, ref: str, *, auth: Mapping[str, str] | None = None, progress: Any = None, platform: str = ""
    ) -> Image:
        """See Engine. `progress` is called with each content/transfer.Step. Its layers are unpacked on return."""
        image = await self._images.pull(ref, auth, progress, platform)
        known = await self._images.known(Digest(image.digest))
        await self._snapshots.ensure(known.layers, f"image {ref}", progress)
        return image

    async def push(self, ref: str, *, auth: Mapping[str, str] | None = None, progress: Any = None) -> str:
        """See Engine."""
        return await self._images.push(ref, auth, progress)

    async def tag(self, ref: str, name: str) -> None:
        """See Engine."""
        await self._images.tag(ref, name)

    async def commit_image(
        self,
        config: Mapping[str, Any],
        layers: Sequence[str],
        names: Sequence[str],
        *,
        annotations: Mapping[str, str] | None = None,
    ) -> Image:
        """See Engine."""
        return await self._images.commit(config, layers, names, annotations=annotations)

    async def remove_image(self, ref: str, *, force: bool = False) -> Sequence[str]:
        """See Engine."""
        lines = await self._images.remove(ref, force=force)
        await self.collect()
        return lines

    async def load(self, archive: AsyncIterator[bytes]) -> Sequence[Image]:
        """Read a tar of images (`docker save`, or an OCI layout); return what is new or named anew."""
        lease = await self._content.lease(seconds=LEASE_S)
        try:
            loaded = await layout.load_stream(self._content, archive, lease=lease, scratch=self._paths.trash)
            return [await self._images.adopt(each.digest, each.names) for each in loaded]
        finally:
            await self._content.end_lease(lease)

    async def save(self, refs: Sequence[str]) -> AsyncIterator[bytes]:
        """Yield a tar of images that `load`, Docker and OCI tools read. Raises NotFound before the first byte."""
        chosen: list[tuple[str, Digest]] = []
        for ref in refs:
            known, name = await self._images.named(ref)
            chosen.append((name, known.digest))
        async for piece in layout.save(self._content, chosen):
            yield piece

    async def collect(self) -> int:
        """Remove the snapshots that no image and no container needs; return how many went."""
        async with self._collecting:
            used = self._containers.layers_in_use() | await self._images.layers()
            gone = await self._snapshots.collect(used | self._containers.layers_in_use())
        if gone:
            await self._trash.empty()
        return gone

    async def diff_layer(self, ref: str) -> tuple[Digest, str, int]:
        """Pack what a container has changed as a layer blob: (digest, diff id, size in bytes).

        Nobody holds it yet: a lease of an hour covers it. Mount points that only the runtime made are left out.
        """
        record = self._containers.lives.find(ref).record
        lease = await self._content.lease(seconds=LEASE_S)
        upper = self._paths.container(record.id) / "upper"
        layer = await pack_upper(self._content, upper, lease=lease, exclude=record.mount_points)
        return layer.digest, layer.diff_id, layer.size_bytes

    # sandboxes --------------------------------------------------------------------------------------------------------
    async def create_sandbox(self, spec: SandboxSpec) -> Sandbox:
        """See Engine."""
        return await self._sandboxes.ensure(spec)

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

    async def stop(self, ref: str, *, grace_s: float | None = None) -> None:
        """See Engine."""
        await self._containers.stop(self._find(ref), grace_s)

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
        return await execs.execute(self._paths, self._runtime, self._tasks, life.record.id, run.process, spec)

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

    async def update(self, ref: str, *, limits: Limits | None = None, restart: str | None = None) -> None:
        """Give a container other limits, at once where it runs, or another restart policy. Raises Invalid, Broken."""
        await self._changes.update(self._find(ref), limits, restart)

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
        life = self._find(ref)
        record = life.record
        if record.spec.log_driver != "cri":
            raise Unsupported(
                f"container {record.name}: its log driver is {record.spec.log_driver}, so there is no log"
            )

        def ending(wake: Callable[[], None]) -> Callable[[], None]:
            life.listeners.append(wake)
            return lambda: life.listeners.remove(wake)

        return logs.read(
            record.log_path,
            record.spec.log_max_files,
            self._inotify,
            follow=follow,
            tail=tail,
            since=since,
            has_ended=lambda: not life.may_write,
            ending=ending,
        )

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

    async def written(self, ref: str) -> int:
        """Count the bytes on disk that a container has written to its own layer."""
        return await self.size_of(str(self._paths.container(self._find(ref).record.id) / "upper"))

    async def layers_size(self) -> int:
        """Count the bytes on disk of all unpacked layers."""
        return await self.size_of(str(self._paths.snapshots))

    def events(self, *, since: float = 0.0) -> AsyncIterator[EngineEvent]:
        """See Engine. With `since`, a time, first what is remembered from then on."""
        return self._events.read(since)

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

    async def _find_runtime(self, stack: AsyncExitStack) -> Runtime:
        plain = spawn.plain
        tool, watcher = await asyncio.gather(find_runtime(self.settings.runtime, plain), find("conmon", plain))
        masked = tool.name == "crun" and spawn.needs_mask()
        spawner = await stack.enter_async_context(spawn.Spawner(mask_controllers=masked))
        return Runtime(spawner, tool, watcher, self._paths.runtime)

    def _on_exit_file(self, name: str) -> None:
        if name:
            self._containers.note_exit(name)
            return
        for life in self._containers.lives.all():  # events were lost
            self._containers.note_exit(life.record.id)

    async def _rotate_logs(self) -> None:
        while True:
            await machine.sleep(self.settings.rotate_every_s)
            running = [
                (life.record, self._paths.bundle(life.record.id))
                for life in self._containers.lives.all()
                if life.is_running
            ]
            await asyncio.to_thread(rotation.rotate_all, running)

    async def _settle(self) -> None:
        """What can wait until the engine serves: old deletions, and what was unpacked shortly before."""
        await self._trash.empty()
        await self._snapshots.settle()

    async def _lock(self, stack: AsyncExitStack) -> None:
        """Take the root's lock. A child that a killed engine was just spawning has it for a moment, so we ask again."""
        fd = os.open(self._paths.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        stack.callback(os.close, fd)
        deadline = machine.monotonic() + LOCK_S
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if machine.monotonic() > deadline:
                    raise Unavailable(
                        f"{self._paths.root}: another engine has this root; stop it first, or use another --root"
                    ) from None
                await machine.sleep(0.02)

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
