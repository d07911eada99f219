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
from wherry.engine import capabilities, devices, monitor, seccomp, tags, ulimits, users
from wherry.engine import spec as specs
from wherry.engine.joins import Joined
from wherry.engine.paths import Paths
from wherry.engine.records import ContainerRecord, SandboxRecord
from wherry.engine.runtime import CommandFailed, Runtime, Runtimes
from wherry.engine.sandboxes import Sandboxes
from wherry.engine.settings import EngineSettings
from wherry.engine.snapshots import Snapshots
from wherry.engine.sources import Sources
from wherry.engine.types import Exit, Limits
from wherry.engine.volumes import Volumes
from wherry.errors import Broken, Invalid, NotFound
from wherry.host import cgroups, engine_calls, engine_filters, engine_usage, mounts, processes
from wherry.host.processes import Identity
from wherry.host.spawn import Child

log = logging.getLogger(__name__)

MONITOR_END_S = 5.0
CREATE_FAILED = 128
LOST_CODE = 255
"""The exit code of a container whose end nobody has seen."""
LOG_BYTES_WITHOUT_US = 128 << 20
"""conmon empties a log of this size by itself: while no engine is there to rotate it, or it is written at over 100 MB/s."""
JOURNAL = "/run/systemd/journal/socket"


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
        runtimes: Runtimes,
        groups: cgroups.Cgroups,
        snapshots: Snapshots,
        sandboxes: Sandboxes,
        volumes: Volumes,
        settings: EngineSettings,
    ) -> None:
        self._paths = paths
        self.runtimes = runtimes
        self._groups = groups
        self._snapshots = snapshots
        self._sandboxes = sandboxes
        self._volumes = volumes
        self._settings = settings
        self._filters: dict[tuple[str, tuple[str, ...], bool], tuple[Mapping[str, Any], str]] = {}
        self._available = capabilities.own()
        self._sources = Sources(paths, volumes, snapshots)

    def open(self) -> None:
        """Make the group that all conmons are in."""
        self._groups.create("conmon")

    def runtime_of(self, record: ContainerRecord) -> Runtime:
        """Say which runtime a container lives in."""
        return self.runtimes.named(record.spec.runtime)

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
        self._sources.check(record)
        self._snapshots.mount(record.id, record.layers)
        has_volumes = any(mount.kind == "volume" and mount.copy for mount in record.spec.mounts)
        if has_volumes and (record.fills or not record.acknowledged):
            root = os.open(bundle / "rootfs", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                await self._volumes.fill(record, root)
            finally:
                os.close(root)
        user_namespace = {**self._sandboxes.namespaces(sandbox), **others.namespaces}.get("user", "")
        if sandbox.ids is not None:
            os.chown(bundle, 0, sandbox.ids.base)
            bundle.chmod(0o710)
        runtime = self.runtime_of(record)
        sources = self._sources.stage(record, bundle, user_namespace, is_masked=runtime.spawner.is_masked)
        document, made_points = self._document(record, sandbox, image, sources, others)
        document["process"]["env"][:0] = others.env
        if sandbox.ids is not None:
            self._snapshots.remount(record.id, record.layers, sandbox.ids, user_namespace)
        for name, path in record.spec.env_files.items():
            document["process"]["env"].append(f"{name}={Path(path).read_text(errors='surrogateescape')}")
        (bundle / "config.json").write_bytes(msgspec.json.encode(document))
        await self._allow_realtime(record, sandbox, record.spec.limits)
        argv = self._monitor_argv(record, bundle)
        waiting = await monitor.spawn(runtime, argv, bundle)
        # A tree of cgroup v1 takes a millisecond to move into, and there are ten: meanwhile conmon may begin.
        entering = asyncio.create_task(asyncio.to_thread(self._groups.enter, "conmon", waiting.identity.pid))
        try:
            spawned(waiting.identity, made_points)
            pid = await waiting.go(f"container {record.name} ({record.argv[0]})", self._settings.create_timeout_s)
            await asyncio.shield(entering)
            process = processes.identify(pid)
            if process is None:
                raise Broken(f"container {record.name}: its process ended before it was started")
            if record.spec.limits.blkio_weight is not None or record.spec.limits.io_weights:
                await asyncio.to_thread(self._groups.weigh, self.group(record, sandbox), record.spec.limits)
        except BaseException:
            waiting.close()
            with suppress(Broken):
                await asyncio.shield(waiting.child.end())
            waiting.child.close()
            await asyncio.wait((entering,))
            if not entering.cancelled():
                entering.exception()  # it is no news that one which has ended cannot be moved
            raise
        return Made(waiting.child, waiting.identity, process)

    async def clear(self, record: ContainerRecord, sandbox: SandboxRecord | None) -> None:
        """Take away a run: conmon (its exit file is there, or it is not wanted), runtime state, cgroup, mount, bundle."""
        if record.monitor is not None and not await processes.wait_exit(
            record.monitor, timeout_s=MONITOR_END_S if self.has_exit(record.id) else 0.0
        ):
            await processes.end(record.monitor, grace_s=0.0)
        group = self.group(record, sandbox) if sandbox is not None else ""
        runtime = self.runtime_of(record)
        try:
            await runtime.delete(record.id)
        except Broken:
            if group:
                await asyncio.to_thread(self._groups.kill, group)
            with suppress(FileNotFoundError):
                shutil.rmtree(runtime.state / record.id)
        if group:
            await asyncio.to_thread(self._remove_group, group)
        await self.clear_bundle(record.id)

    async def clear_bundle(self, id: str) -> None:
        """Take away a run's mount, bundle and exit file; nothing if they are not there."""
        bundle = self._paths.bundle(id)
        await asyncio.to_thread(mounts.unmount, str(bundle / "rootfs"))  # the kernel takes its time
        self._snapshots.unmount_parts(id)
        self._sources.clear(bundle)
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
        await self._allow_realtime(record, sandbox, limits)
        await asyncio.to_thread(self._groups.limit, self.group(record, sandbox), limits)

    def processes(self, record: ContainerRecord, sandbox: SandboxRecord) -> Sequence[int]:
        """List the pids in its cgroup."""
        return self._groups.processes(self.group(record, sandbox))

    def usage(self, record: ContainerRecord, sandbox: SandboxRecord) -> cgroups.Usage:
        """Read what it uses."""
        return self._groups.usage(self.group(record, sandbox))

    def detail(self, record: ContainerRecord, sandbox: SandboxRecord) -> engine_usage.Detail:
        """Read all its counters. Blocks for a few file reads."""
        return engine_usage.detail(self._groups, self.group(record, sandbox))

    def environment(self, id: str) -> Sequence[str]:
        """Read the variables that a running container was started with."""
        return list(self.process_document(id)["env"])

    def process_document(self, id: str) -> Mapping[str, Any]:
        """Read `process` of the running container's runtime-spec."""
        return msgspec.json.decode((self._paths.bundle(id) / "config.json").read_bytes())["process"]

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
        argv = self.runtime_of(record).monitor_argv(
            record.id,
            bundle,
            self._paths.exits,
            log=log,
            log_max_bytes=max(LOG_BYTES_WITHOUT_US, 4 * budget) if budget > 0 else 0,
        )
        if spec.log_journal:
            if not os.path.exists(JOURNAL):
                raise Broken("failed to initialize logging driver: journald is not enabled on this host")
            tag = tags.write(
                spec.log_options.get("tag") or tags.DEFAULT, id=record.id, name=record.name, image_id=record.image_id,
                image=spec.image, argv=record.argv,
            )  # fmt: skip
            argv += ["--log-path", "journald:", "--log-tag", tag, "--name", record.name]
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
            try:
                user = users.look_up(fd, specs.user_of(spec, image), spec.groups)
            except Invalid as error:  # as with a command that is not there: clients look for it at the start
                raise CommandFailed(error.message, CREATE_FAILED) from error
            try:
                engine_calls.make_directories(fd, specs.working_directory(spec, image))
            except OSError as error:
                where = specs.working_directory(spec, image)
                words = f"{where} is not a directory" if isinstance(error, NotADirectoryError) else error.strerror
                raise Invalid(f"Cannot mkdir: {words} (working directory of container {record.name})") from error
        finally:
            os.close(fd)
        held = capabilities.choose(spec.cap_add, spec.cap_drop, privileged=spec.privileged, available=self._available)
        is_crun = self.runtime_of(record).tool.name == "crun"
        rules, filter_text = self._seccomp(record, held, is_crun=is_crun)
        fresh = ["pid", "mount"] if not sandbox.spec.host_pid else ["mount"]
        if (spec.cgroup_namespace or ("private" if self._groups.version == 2 else "host")) == "private":
            fresh.append("cgroup")
        place = specs.Place(
            root=str(root),
            user=user,
            cgroup=self._groups.runtime_path(self.group(record, sandbox)),
            hostname=others.hostname or sandbox.spec.hostname or os.uname().nodename,
            namespaces={**self._sandboxes.namespaces(sandbox), **others.namespaces},
            fresh=fresh,
            files=others.files or self._sandboxes.files(sandbox),
            shm=None if sandbox.spec.no_shm else others.shm or self._sandboxes.shm(sandbox) or "/dev/shm",
            sources=sources,
            capabilities=held,
            seccomp=rules,
            seccomp_filter=filter_text,
            devices=devices.host_devices() if spec.privileged else devices.chosen_devices(spec.devices),
            device_rules=devices.device_rules(spec.device_rules),
            rlimits=self._rlimits(record),
            block_io=devices.block_io(spec.limits, with_weights=self._groups.lays_weights),
            oom_score_adj=self._oom_score(record),
            init=find_init() if spec.init else "",
            ids=sandbox.ids,
        )
        return specs.make(spec, image, place), points

    async def _allow_realtime(self, record: ContainerRecord, sandbox: SandboxRecord, limits: Limits) -> None:
        if limits.realtime_runtime_us is not None:
            group, period_us = self.group(record, sandbox), limits.realtime_period_us or 1_000_000
            await asyncio.to_thread(self._groups.allow_realtime, group, limits.realtime_runtime_us, period_us)

    def _oom_score(self, record: ContainerRecord) -> int:
        wanted, warning = ulimits.oom_score(record.spec.oom_score_adj, self._available)
        if warning:
            log.warning("container %s: %s", record.name, warning)
        return wanted

    def _rlimits(self, record: ContainerRecord) -> Sequence[Mapping[str, Any]]:
        made, warnings = ulimits.plan(record.spec.ulimits, self._available)
        for warning in warnings:
            log.warning("container %s: %s", record.name, warning)
        return made

    def _seccomp(
        self, record: ContainerRecord, held: tuple[str, ...], *, is_crun: bool
    ) -> tuple[Mapping[str, Any] | None, str]:
        """Return the rules and, for crun, the compiled filter; both are made once for each set of capabilities."""
        text = record.spec.seccomp or "default"
        if record.spec.privileged or text == "unconfined":
            return None, ""
        key = (text, held, is_crun)
        found = self._filters.get(key)
        if found is None:
            is_default = text == "default"
            profile = seccomp.load() if is_default else seccomp.parse(text)
            rules = seccomp.rules(profile, capabilities=held, machine=os.uname().machine, narrow=is_default)
            program = engine_filters.compile_filter(rules) if is_crun else None
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


def _is_there(root: int, path: str) -> bool:
    try:
        os.close(engine_calls.open_beneath(root, path, os.O_PATH))
    except OSError:
        return False
    return True
