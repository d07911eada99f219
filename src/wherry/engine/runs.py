"""One run of a container on the machine: its root mounted, its bundle written, conmon and the runtime called; undone.

Nothing here knows of stages or policies (containers.py does); everything that undoes may be repeated after a kill.
"""

import asyncio
import base64
import logging
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from wherry.clock import machine
from wherry.engine import capabilities, devices, monitor, seccomp, ulimits, users
from wherry.engine import spec as specs
from wherry.engine.joins import Joined
from wherry.engine.paths import Paths
from wherry.engine.records import ContainerRecord, SandboxRecord
from wherry.engine.runtime import Runtime
from wherry.engine.sandboxes import Sandboxes, host_limits
from wherry.engine.settings import EngineSettings
from wherry.engine.snapshots import Snapshots
from wherry.engine.types import Exit, Limits, Mount
from wherry.engine.volumes import Volumes
from wherry.errors import Broken, Invalid, NotFound
from wherry.host import cgroups, engine_calls, engine_filters, engine_usage, mounts, processes
from wherry.host.processes import Identity
from wherry.host.spawn import Child

log = logging.getLogger(__name__)

MONITOR_END_S = 5.0
LOST_CODE = 255
"""The exit code of a container whose end nobody has seen."""
STAGED = "source-"
LOG_BYTES_WITHOUT_US = 1 << 30
"""conmon empties a log of this size by itself: only for the time when no engine is there to rotate it."""


@dataclass(frozen=True, slots=True)
class Made:
    """A created container: its conmon (a child of ours) and its process, which waits."""

    child: Child
    monitor: Identity
    process: Identity


class Runs:
    """Makes and unmakes runs."""

    def __init__(
        self,
        paths: Paths,
        runtime: Runtime,
        groups: cgroups.Cgroups,
        snapshots: Snapshots,
        sandboxes: Sandboxes,
        volumes: Volumes,
        settings: EngineSettings,
    ) -> None:
        self._paths = paths
        self.runtime = runtime
        self._groups = groups
        self._snapshots = snapshots
        self._sandboxes = sandboxes
        self._volumes = volumes
        self._settings = settings
        self._filters: dict[tuple[str, tuple[str, ...]], tuple[Mapping[str, Any], str]] = {}
        self._available = capabilities.own()

    def open(self) -> None:
        """Make the group that all conmons are in."""
        self._groups.create("conmon")

    def group(self, record: ContainerRecord, sandbox: SandboxRecord) -> str:
        """Name a container's cgroup, relative to the engine's."""
        return f"{self._sandboxes.cgroup(sandbox)}/{record.id}"

    async def make(
        self,
        record: ContainerRecord,
        sandbox: SandboxRecord,
        image: Mapping[str, Any],
        spawned: Callable[[Identity, Sequence[str]], None],
        others: Joined,
    ) -> Made:
        """Create a container, its process waiting for `runtime.start`; `spawned` is told of conmon before it goes on,
        and of the mount points that the image does not have.

        Raises CommandFailed, Invalid or Broken; what is left then is for `clear`.
        """
        bundle = self._paths.bundle(record.id)
        bundle.mkdir(mode=0o700, exist_ok=True)
        (self._paths.exits / record.id).unlink(missing_ok=True)
        self._check_mounts(record)
        self._snapshots.mount(record.id, record.layers)
        if not record.acknowledged and any(mount.kind == "volume" and mount.copy for mount in record.spec.mounts):
            root = os.open(bundle / "rootfs", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                await self._volumes.fill(record, root)
            finally:
                os.close(root)
        sources = self._stage(record, bundle)
        document, made_points = self._document(record, sandbox, image, sources, others)
        for name, path in record.spec.env_files.items():
            document["process"]["env"].append(f"{name}={Path(path).read_text(errors='surrogateescape')}")
        (bundle / "config.json").write_bytes(msgspec.json.encode(document))
        argv = self._monitor_argv(record, bundle)
        waiting = await monitor.spawn(self.runtime, argv, bundle, lambda pid: self._groups.enter("conmon", pid))
        try:
            spawned(waiting.identity, made_points)
            pid = await waiting.go(f"container {record.name} ({record.argv[0]})", self._settings.create_timeout_s)
            process = processes.identify(pid)
            if process is None:
                raise Broken(f"container {record.name}: its process ended before it was started")
        except BaseException:
            waiting.close()
            with suppress(Broken):
                await asyncio.shield(waiting.child.end())
            waiting.child.close()
            raise
        return Made(waiting.child, waiting.identity, process)

    async def clear(self, record: ContainerRecord, sandbox: SandboxRecord | None) -> None:
        """Take away a run: conmon (its exit file is there, or it is not wanted), runtime state, cgroup, mount, bundle."""
        if record.monitor is not None and not await processes.wait_exit(
            record.monitor, timeout_s=MONITOR_END_S if self.has_exit(record.id) else 0.0
        ):
            await processes.end(record.monitor, grace_s=0.0)
        group = self.group(record, sandbox) if sandbox is not None else ""
        try:
            await self.runtime.delete(record.id)
        except Broken:
            if group:
                await asyncio.to_thread(self._groups.kill, group)
            with suppress(FileNotFoundError):
                shutil.rmtree(self.runtime.state / record.id)
        if group:
            await asyncio.to_thread(self._remove_group, group)
        await self.clear_bundle(record.id)

    async def clear_bundle(self, id: str) -> None:
        """Take away a run's mount, bundle and exit file; nothing if they are not there."""
        bundle = self._paths.bundle(id)
        mounts.unmount(str(bundle / "rootfs"))
        for staged in sorted(bundle.glob(f"{STAGED}*")):  # somebody's files: never delete what is still mounted
            while mounts.unmount(str(staged)):
                pass
            try:
                staged.rmdir() if staged.is_dir() else staged.unlink()
            except OSError as error:
                raise Broken(f"{staged}: it is to be an empty mount point: {error.strerror}") from error
        with suppress(FileNotFoundError):
            await asyncio.to_thread(shutil.rmtree, bundle)
        (self._paths.exits / id).unlink(missing_ok=True)

    def has_exit(self, id: str) -> bool:
        """Say whether conmon has written down how the container ended."""
        return (self._paths.exits / id).exists()

    def read_exit(self, record: ContainerRecord, sandbox: SandboxRecord | None) -> Exit | None:
        """Read how it ended, from conmon's exit file and the OOM killer's counter; None when there is no file."""
        path = self._paths.exits / record.id
        try:
            text = path.read_text(encoding="ascii", errors="replace").strip()
            when = path.stat().st_mtime
        except FileNotFoundError:
            return None
        code = int(text) if text.lstrip("-").isdigit() else LOST_CODE
        code = code if 0 <= code <= LOST_CODE else LOST_CODE
        return Exit(code, when, oom=code != 0 and self._was_oom(record, sandbox))

    def lost_exit(self, record: ContainerRecord, sandbox: SandboxRecord | None, why: str) -> Exit:
        """Say how it ended when nobody saw it."""
        return Exit(LOST_CODE, machine.now(), oom=self._was_oom(record, sandbox), error=why)

    async def kill_all(self, record: ContainerRecord, sandbox: SandboxRecord) -> None:
        """SIGKILL everything in the container's cgroup."""
        await asyncio.to_thread(self._groups.kill, self.group(record, sandbox))

    async def freeze(self, record: ContainerRecord, sandbox: SandboxRecord, *, frozen: bool) -> None:
        """Stop, or let go on, everything in the container's cgroup."""
        group = self.group(record, sandbox)
        await asyncio.to_thread(lambda: self._groups.freeze(group, frozen=frozen))

    async def limit(self, record: ContainerRecord, sandbox: SandboxRecord, limits: Limits) -> None:
        """Set the limits of a made container."""
        await asyncio.to_thread(self._groups.limit, self.group(record, sandbox), host_limits(limits))

    def processes(self, record: ContainerRecord, sandbox: SandboxRecord) -> Sequence[int]:
        """List the pids in its cgroup."""
        return self._groups.processes(self.group(record, sandbox))

    def usage(self, record: ContainerRecord, sandbox: SandboxRecord) -> cgroups.Usage:
        """Read what it uses."""
        return self._groups.usage(self.group(record, sandbox))

    def detail(self, record: ContainerRecord, sandbox: SandboxRecord) -> engine_usage.Detail:
        """Read all its counters. Blocks for a few file reads."""
        return engine_usage.detail(self._groups, self.group(record, sandbox))

    def process_document(self, id: str) -> Mapping[str, Any]:
        """Read `process` of the running container's runtime-spec."""
        return msgspec.json.decode((self._paths.bundle(id) / "config.json").read_bytes())["process"]

    def _stage(self, record: ContainerRecord, bundle: Path) -> dict[str, str]:
        """Bind those sources once more that the runtime could not see where it runs.

        Its mount namespace was copied when the engine started (see host/spawn.py): what was mounted later it sees only on
        shared mounts, as the run directory is.
        """
        binds = {mount.source: mount for mount in record.spec.mounts if mount.kind == "bind"}
        for mount in record.spec.mounts:
            if mount.kind == "volume":
                binds[str(self._volumes.place(mount.source))] = mount
        if not binds or not self.runtime.spawner.is_masked:
            return {}
        points = mounts.table()
        staged: dict[str, str] = {}
        for source, mount in binds.items():
            if mounts.containing(os.path.realpath(source), points).shared:
                continue
            target = bundle / f"{STAGED}{len(staged)}"
            if os.path.isdir(source):
                target.mkdir()
            else:
                target.touch()
            mounts.bind(source, str(target), recursive=mount.recursive)
            if spread_of(mount).lstrip("r") == "slave":
                mounts.propagate(str(target), "slave", recursive=True)
            staged[source] = str(target)
        return staged

    def _check_mounts(self, record: ContainerRecord) -> None:
        """Make the sources that are to be made; refuse those that are not there, and what cannot spread."""
        for mount in record.spec.mounts:
            if mount.kind == "volume" and not (place := self._volumes.place(mount.source)).is_dir():
                raise Invalid(f"container {record.name}: volume {mount.source}: its directory {place} is not there")
            if mount.kind != "bind":
                continue
            if mount.create and not os.path.lexists(mount.source):
                os.makedirs(mount.source, exist_ok=True)
            if not os.path.exists(mount.source):
                raise Invalid(
                    f"container {record.name}: invalid mount: bind source path does not exist: {mount.source}"
                )
            spread = spread_of(mount).lstrip("r")
            if spread in ("shared", "slave"):
                real = os.path.realpath(mount.source)
                around = mounts.containing(real, mounts.table())
                if not around.shared:
                    raise Invalid(
                        f"container {record.name}: path {mount.source} is mounted on {around.target} but it is not a "
                        "shared mount"
                    )

    def _was_oom(self, record: ContainerRecord, sandbox: SandboxRecord | None) -> bool:
        if (self._paths.bundle(record.id) / "oom").exists():
            return True
        return sandbox is not None and self.usage(record, sandbox).oom_kills > 0

    def _remove_group(self, group: str) -> None:
        try:
            self._groups.remove(group)
        except Broken:
            self._groups.kill(group)
            self._groups.remove(group)

    def _monitor_argv(self, record: ContainerRecord, bundle: Path) -> list[str]:
        log = "none"
        spec = record.spec
        if spec.log_driver == "cri":
            Path(record.log_path).parent.mkdir(parents=True, exist_ok=True)
            log = f"k8s-file:{record.log_path}"
        budget = spec.log_max_bytes * max(1, spec.log_max_files)
        argv = self.runtime.monitor_argv(
            record.id,
            bundle,
            self._paths.exits,
            log=log,
            log_max_bytes=max(LOG_BYTES_WITHOUT_US, 4 * budget) if budget > 0 else 0,
        )
        if spec.tty:
            argv.append("--terminal")
        if spec.stdin:
            argv.append("--stdin")
            if not spec.stdin_once:
                argv.append("--leave-stdin-open")
        return argv

    def _document(
        self,
        record: ContainerRecord,
        sandbox: SandboxRecord,
        image: Mapping[str, Any],
        sources: Mapping[str, str],
        others: Joined,
    ) -> tuple[dict[str, Any], Sequence[str]]:
        spec = record.spec
        root = self._paths.bundle(record.id) / "rootfs"
        fd = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            points = [mount.target for mount in spec.mounts if not _is_there(fd, mount.target)]
            user = users.look_up(fd, specs.user_of(spec, image), spec.groups)
            try:
                engine_calls.make_directories(fd, specs.working_directory(spec, image))
            except OSError as error:
                where = specs.working_directory(spec, image)
                raise Invalid(f"container {record.name}: working directory {where!r}: {error.strerror}") from error
        finally:
            os.close(fd)
        held = capabilities.choose(spec.cap_add, spec.cap_drop, privileged=spec.privileged, available=self._available)
        rules, filter_text = self._seccomp(record, held)
        fresh = ["pid", "mount"] if not sandbox.spec.host_pid else ["mount"]
        if self._groups.version == 2:
            fresh.append("cgroup")
        place = specs.Place(
            root=str(root),
            user=user,
            cgroup=self._groups.runtime_path(self.group(record, sandbox)),
            hostname=others.hostname or sandbox.spec.hostname,
            namespaces={**self._sandboxes.namespaces(sandbox), **others.namespaces},
            fresh=fresh,
            files=others.files or self._sandboxes.files(sandbox),
            shm=self._sandboxes.shm(sandbox) or "/dev/shm",
            volumes={
                mount.source: sources.get(place := str(self._volumes.place(mount.source)), place)
                for mount in spec.mounts
                if mount.kind == "volume"
            },
            sources=sources,
            capabilities=held,
            seccomp=rules,
            seccomp_filter=filter_text,
            devices=devices.host_devices() if spec.privileged else devices.chosen_devices(spec.devices),
            device_rules=devices.device_rules(spec.device_rules),
            rlimits=self._rlimits(record),
            block_io=devices.block_io(spec.limits),
            init=find_init() if spec.init else "",
        )
        return specs.make(spec, image, place), points

    def _rlimits(self, record: ContainerRecord) -> Sequence[Mapping[str, Any]]:
        made, warnings = ulimits.plan(record.spec.ulimits, self._available)
        for warning in warnings:
            log.warning("container %s: %s", record.name, warning)
        return made

    def _seccomp(self, record: ContainerRecord, held: tuple[str, ...]) -> tuple[Mapping[str, Any] | None, str]:
        """Return the rules and, for crun, the compiled filter; both are made once for each set of capabilities."""
        text = record.spec.seccomp or "default"
        if record.spec.privileged or text == "unconfined":
            return None, ""
        key = (text, held)
        found = self._filters.get(key)
        if found is None:
            is_default = text == "default"
            profile = seccomp.load() if is_default else seccomp.parse(text)
            rules = seccomp.rules(profile, capabilities=held, machine=os.uname().machine, narrow=is_default)
            program = engine_filters.compile_filter(rules) if self.runtime.tool.name == "crun" else None
            found = (rules, base64.b64encode(program).decode() if program else "")
            if len(self._filters) >= 64:
                self._filters.clear()
            self._filters[key] = found
        return found


def find_init() -> str:
    """Find the program that `init` makes the first process. Raises NotFound, naming the package."""
    path = shutil.which("catatonit", path=os.environ.get("PATH", "") + os.pathsep + "/usr/libexec/podman:/usr/bin:/bin")
    if path is None:
        raise NotFound("catatonit is not on this machine, and --init needs it: install the package catatonit")
    return os.path.realpath(path)


def spread_of(mount: Mount) -> str:
    """Say how mounts spread through a bind: "rprivate", unless it says otherwise."""
    return next((word for word in mount.options if word.lstrip("r") in ("private", "shared", "slave")), "rprivate")


def _is_there(root: int, path: str) -> bool:
    try:
        os.close(engine_calls.open_beneath(root, path, os.O_PATH))
    except OSError:
        return False
    return True
