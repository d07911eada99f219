"""Control groups: limits, usage and the end of whole groups of processes, alike on cgroup v2 and v1.

Paths are relative to a `Cgroups`' base (`wherry/ID/NODE`), such as `pods/UID/CONTAINER`; "" is the base itself, and one
that begins with / is of the whole machine. The OCI runtime makes the groups of containers; we make their parents, read
usage, and remove what is left.
"""

import errno
import math
import os
import signal
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Protocol

from wherry.clock import machine
from wherry.errors import Broken, NotFound, WherryError
from wherry.host import cgroup_files as files
from wherry.host import kernel, mounts
from wherry.host.limits import Limits, plan_v1, plan_v2

V2_CONTROLLERS = ("cpu", "cpuset", "memory", "pids", "io")
V1_CONTROLLERS = (
    "cpu", "cpuacct", "cpuset", "memory", "pids", "freezer", "devices", "blkio",
    "net_cls", "net_prio", "perf_event", "hugetlb", "rdma", "misc", "name=systemd",
)  # fmt: skip
"""The v1 hierarchies that we make groups in, where they are mounted: the OCI runtimes use them all."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What a group uses now. Working set: memory without the file pages that can be dropped at once."""

    cpu_usage_ns: int = 0
    memory_usage_bytes: int = 0
    memory_working_set_bytes: int = 0
    pids: int = 0
    oom_kills: int = 0


class Cgroups(Protocol):
    """The groups of one node of an instance. What is not there uses nothing, has no processes, and removes well.

    Raises Broken with the kernel's words.
    """

    @property
    def version(self) -> int:
        """2 or 1."""
        ...

    def runtime_path(self, path: str) -> str:
        """Return `linux.cgroupsPath` for the OCI runtime's cgroupfs manager."""
        ...

    def create(self, path: str, limits: Limits | None = None) -> None:
        """Make a group, and its parents, in every hierarchy; repeatable."""
        ...

    def limit(self, path: str, limits: Limits) -> None:
        """Set the limits of an existing group; None lifts them."""
        ...

    def usage(self, path: str) -> Usage:
        """Read what the group and those below it use."""
        ...

    def processes(self, path: str) -> list[int]:
        """List the pids in the group and below it."""
        ...

    def enter(self, path: str, pid: int) -> None:
        """Move a process into the group."""
        ...

    def signal_all(self, path: str, number: int) -> int:
        """Send a signal to all processes in the group and below; return how many got it."""
        ...

    def kill(self, path: str, *, timeout_s: float = 5.0) -> None:
        """SIGKILL everything in the group and below, also what forks meanwhile; returns when it is empty. Blocks."""
        ...

    def freeze(self, path: str, *, frozen: bool, timeout_s: float = 5.0) -> None:
        """Stop, or let go on, everything in the group; returns when it is so. Blocks.

        Where the group is gone with its last process, also meanwhile, there is nothing to let go on; to stop it then
        raises NotFound.
        """
        ...

    def remove(self, path: str) -> None:
        """Remove an empty group with those below it; Broken (EBUSY) when processes are in it.

        With the base itself ("") go its parents too, as far as nobody else has groups in them.
        """
        ...

    def children(self, path: str) -> list[str]:
        """Name the groups directly below."""
        ...

    def allow_realtime(self, path: str, runtime_us: int, period_us: int) -> None:
        """Let the groups above one that is not there yet have its time for real-time threads. v1 only."""
        ...

    @property
    def lays_weights(self) -> bool:
        """Whether the OCI runtimes lay I/O weights here."""
        ...

    def weigh(self, path: str, limits: Limits) -> None:
        """Give a group the I/O weights that the OCI runtimes do not lay themselves: those of the BFQ scheduler on v1."""
        ...

    def first_missing(self, path: str) -> str:
        """Name the topmost group above `path`, from the machine's root, that is not there; "" when all are."""
        ...

    def remove_empty_above(self, path: str, top: str) -> None:
        """Remove the groups above `path` up to `top` (from the machine's root), as far as nobody has groups in them."""
        ...

    def directory(self, controller: str, path: str) -> str:
        """Say where a group's files of a controller are."""
        ...


class CgroupsV2:
    """One tree for everything. `root` is where it is mounted, or a directory delegated to us below."""

    version = 2
    lays_weights = True

    def __init__(self, base: str, root: str = "/sys/fs/cgroup") -> None:
        self._root, self._base = root, base.strip("/")

    def runtime_path(self, path: str) -> str:
        """See Cgroups."""
        return "/" + files.join(self._base, path)

    def create(self, path: str, limits: Limits | None = None) -> None:
        """See Cgroups. Each parent hands the controllers it has to its children."""
        files.make_tree(self._root, files.join(self._base, path), prepare=self._delegate)
        if limits is not None:
            self.limit(path, limits)

    def limit(self, path: str, limits: Limits) -> None:
        """See Cgroups."""
        directory = self._directory(path)
        files.write_limits(directory, plan_v2(limits))

    def usage(self, path: str) -> Usage:
        """See Cgroups."""
        directory = self._directory(path)
        used = files.read_int(f"{directory}/memory.current")
        inactive = files.read_pairs(f"{directory}/memory.stat").get("inactive_file", 0)
        return Usage(
            cpu_usage_ns=files.read_pairs(f"{directory}/cpu.stat").get("usage_usec", 0) * 1000,
            memory_usage_bytes=used,
            memory_working_set_bytes=max(0, used - inactive),
            pids=files.read_int(f"{directory}/pids.current"),
            oom_kills=files.read_pairs(f"{directory}/memory.events").get("oom_kill", 0),
        )

    def processes(self, path: str) -> list[int]:
        """See Cgroups."""
        return files.pids_in([self._directory(path)])

    def enter(self, path: str, pid: int) -> None:
        """See Cgroups. Only groups without controllers for their children take processes."""
        files.write(f"{self._directory(path)}/cgroup.procs", str(pid))

    def signal_all(self, path: str, number: int) -> int:
        """See Cgroups."""
        return files.signal_all(self.processes(path), number)

    def kill(self, path: str, *, timeout_s: float = 5.0) -> None:
        """See Cgroups. The kernel does it in one step where it can (Linux 5.14)."""
        directory = self._directory(path)
        with suppress(FileNotFoundError), open(f"{directory}/cgroup.kill", "w", encoding="ascii") as file:
            file.write("1")
        files.kill_until_empty(lambda: self.processes(path), directory, timeout_s)

    def freeze(self, path: str, *, frozen: bool, timeout_s: float = 5.0) -> None:
        """See Cgroups."""
        directory = self._directory(path)
        with _may_be_gone(directory, frozen):
            files.write(f"{directory}/cgroup.freeze", "1" if frozen else "0")
            files.until(
                lambda: files.read_pairs(f"{directory}/cgroup.events").get("frozen", int(frozen)) == int(frozen),
                f"{directory}: {'freeze' if frozen else 'thaw'}",
                timeout_s,
            )

    def remove(self, path: str) -> None:
        """See Cgroups."""
        files.remove_tree(self._directory(path))
        if not files.join("", path):
            files.remove_empty_parents(self._root, self._base)

    def children(self, path: str) -> list[str]:
        """See Cgroups."""
        return sorted(files.directories(self._directory(path)))

    def allow_realtime(self, path: str, runtime_us: int, period_us: int) -> None:
        """See Cgroups."""
        raise Broken(f"{path}: {runtime_us} of {period_us} us for real-time threads: cgroup v2 has no such limit")

    def directory(self, controller: str, path: str) -> str:
        """See Cgroups."""
        del controller
        return self._directory(path)

    def weigh(self, path: str, limits: Limits) -> None:
        """See Cgroups. The runtimes lay all of them here."""

    def first_missing(self, path: str) -> str:
        """See Cgroups."""
        return files.first_missing(self._root, files.join(self._base, path))

    def remove_empty_above(self, path: str, top: str) -> None:
        """See Cgroups."""
        files.remove_empty_parents(self._root, files.join(self._base, path), files.join("", top))

    def missing_controllers(self) -> list[str]:
        """Name the controllers we need (cpu, memory, pids) that the root does not offer: not delegated, or off."""
        offered = files.read(f"{self._root}/cgroup.controllers").split()
        return [name for name in ("cpu", "memory", "pids") if name not in offered]

    def _directory(self, path: str) -> str:
        return f"{self._root}/{files.join(self._base, path)}"

    def _delegate(self, directory: str) -> None:
        offered = files.read(f"{directory}/cgroup.controllers").split()
        given = files.read(f"{directory}/cgroup.subtree_control").split()
        for name in V2_CONTROLLERS:
            if name in offered and name not in given:
                try:
                    files.write(f"{directory}/cgroup.subtree_control", f"+{name}")
                except Broken as error:
                    if name in ("cpu", "memory", "pids"):
                        raise Broken(
                            f"{error.message}: the cgroup does not let us limit {name} below it; run in a cgroup that "
                            "is delegated to us (systemd: Delegate=yes) and has no processes of its own"
                        ) from error


class CgroupsV1:
    """A tree for each controller. `roots`: mount points by controller; "unified" is a v2 without controllers."""

    version = 1

    def __init__(self, base: str, roots: Mapping[str, str]) -> None:
        self._roots, self._base = dict(roots), base.strip("/")
        trees = {os.path.realpath(root): (controller, root) for controller, root in reversed(self._roots.items())}
        self._trees = tuple(trees.values())[::-1]  # each once: cpu and cpuacct are often one

    def runtime_path(self, path: str) -> str:
        """See Cgroups."""
        return "/" + files.join(self._base, path)

    def create(self, path: str, limits: Limits | None = None) -> None:
        """See Cgroups. A new group's cpuset is its parent's: an empty one takes no process."""
        for controller, root in self._trees:
            files.make_tree(
                root, files.join(self._base, path), finish=files.inherit_cpuset if controller == "cpuset" else None
            )
        if limits is not None:
            self.limit(path, limits)

    def limit(self, path: str, limits: Limits) -> None:
        """See Cgroups. Swap limits are skipped where the kernel does not count swap."""
        for controller, settings in plan_v1(limits).items():
            if controller not in self._roots:
                continue
            directory = self._directory(controller, path)
            if controller == "memory":
                settings = files.limit_memory_v1(directory, settings)
            files.write_limits(directory, settings)

    def usage(self, path: str) -> Usage:
        """See Cgroups."""
        memory = self._directory("memory", path)
        used = files.read_int(f"{memory}/memory.usage_in_bytes")
        inactive = files.read_pairs(f"{memory}/memory.stat").get("total_inactive_file", 0)
        return Usage(
            cpu_usage_ns=files.read_int(f"{self._directory('cpuacct', path)}/cpuacct.usage"),
            memory_usage_bytes=used,
            memory_working_set_bytes=max(0, used - inactive),
            pids=files.read_int(f"{self._directory('pids', path)}/pids.current"),
            oom_kills=files.oom_kills_v1(memory),
        )

    def processes(self, path: str) -> list[int]:
        """See Cgroups. Whoever is in any of the trees counts."""
        return files.pids_in([self._directory(controller, path) for controller, _ in self._trees])

    def enter(self, path: str, pid: int) -> None:
        """See Cgroups."""
        for controller, _ in self._trees:
            files.write(f"{self._directory(controller, path)}/cgroup.procs", str(pid))

    def signal_all(self, path: str, number: int) -> int:
        """See Cgroups."""
        return files.signal_all(self.processes(path), number)

    def kill(self, path: str, *, timeout_s: float = 5.0) -> None:
        """See Cgroups. Frozen while we kill, so that nothing can fork away."""
        freezer = self._directory("freezer", path)
        state = f"{freezer}/freezer.state"
        has_freezer = "freezer" in self._roots and os.path.exists(state)
        if has_freezer:
            with suppress(Broken):
                files.write(state, "FROZEN")
        try:
            self.signal_all(path, signal.SIGKILL)
        finally:
            if has_freezer:
                for directory in [*files.walk(freezer), freezer]:  # a paused container below stays frozen otherwise
                    with suppress(Broken):
                        files.write(f"{directory}/freezer.state", "THAWED")
        files.kill_until_empty(lambda: self.processes(path), self._directory("pids", path), timeout_s)

    def freeze(self, path: str, *, frozen: bool, timeout_s: float = 5.0) -> None:
        """See Cgroups."""
        directory = self._directory("freezer", path)
        state, wanted = f"{directory}/freezer.state", "FROZEN" if frozen else "THAWED"

        def is_so() -> bool:
            if files.read(state).strip() == wanted:
                return True
            files.write(state, wanted)  # the kernel wants to be asked again while tasks are between two states
            return False

        with _may_be_gone(directory, frozen):
            files.until(is_so, f"{state}: {wanted}", timeout_s)

    def remove(self, path: str) -> None:
        """See Cgroups."""
        for controller, _ in self._trees:
            files.remove_tree(self._directory(controller, path))
            if not files.join("", path):
                files.remove_empty_parents(self._roots[controller], self._base)

    def children(self, path: str) -> list[str]:
        """See Cgroups."""
        names: set[str] = set()
        for controller, _ in self._trees:
            names.update(files.directories(self._directory(controller, path)))
        return sorted(names)

    def allow_realtime(self, path: str, runtime_us: int, period_us: int) -> None:
        """See Cgroups. A group may have no more than is left of its parent's: each parent gets what its children need.

        A group that is gone counts until the kernel has forgotten it, some milliseconds later; hence the patience.
        """
        for pause_s in (0.002, 0.01, 0.05, 0.2, 0.5, 0.0):
            try:
                self._share_realtime(path, runtime_us, period_us)
                return
            except Broken as error:
                if kernel.errno_of(error) != errno.EINVAL or pause_s == 0.0:
                    raise
                machine.pause(pause_s)

    def _share_realtime(self, path: str, runtime_us: int, period_us: int) -> None:
        root, parts = self._roots.get("cpu", "/nonexistent"), files.join(self._base, path).split("/")
        needs = runtime_us / period_us
        wanted: list[tuple[str, int]] = []
        for depth in range(len(parts) - 1, 0, -1):
            group = "/".join([root, *parts[:depth]])
            others = sum(files.realtime(f"{group}/{name}") for name in files.directories(group) if name != parts[depth])
            needs = max(needs + others, files.realtime(group))
            wanted.append((group, math.ceil(needs * (files.read_int(f"{group}/cpu.rt_period_us") or 1_000_000))))
        for group, share_us in reversed(wanted):
            if share_us > files.read_int(f"{group}/cpu.rt_runtime_us"):
                files.write(f"{group}/cpu.rt_runtime_us", str(share_us))

    def directory(self, controller: str, path: str) -> str:
        """See Cgroups."""
        return self._directory(controller, path)

    @property
    def lays_weights(self) -> bool:
        """See Cgroups. Not where the kernel has BFQ's files only."""
        return os.path.exists(f"{self._directory('blkio', '')}/blkio.weight")

    def weigh(self, path: str, limits: Limits) -> None:
        """See Cgroups."""
        directory = self._directory("blkio", path)
        if self.lays_weights:
            return
        files.write_limits(directory, plan_v1(limits).get("blkio", {}))
        for device, weight in limits.io_weights:
            number = os.stat(device).st_rdev
            place = f"{directory}/blkio.bfq.weight_device"
            files.write(place, f"{os.major(number)}:{os.minor(number)} {weight}")

    def first_missing(self, path: str) -> str:
        """See Cgroups."""
        return files.first_missing(next(iter(self._roots.values())), files.join(self._base, path))

    def remove_empty_above(self, path: str, top: str) -> None:
        """See Cgroups."""
        for _, root in self._trees:
            files.remove_empty_parents(root, files.join(self._base, path), files.join("", top))

    def missing_controllers(self) -> list[str]:
        """Name the controllers we need (cpu, memory, pids) that are not mounted."""
        return [name for name in ("cpu", "memory", "pids") if name not in self._roots]

    def _directory(self, controller: str, path: str) -> str:
        return f"{self._roots.get(controller, '/nonexistent')}/{files.join(self._base, path)}"


def find(base: str, points: Sequence[mounts.MountPoint] | None = None) -> CgroupsV2 | CgroupsV1:
    """Return the groups of this machine below `base`. Raises Broken when no cgroup file system is mounted."""
    v1: dict[str, str] = {}
    v2 = ""
    for point in mounts.table() if points is None else points:
        if point.kind == "cgroup2":
            v2 = v2 or point.target
        elif point.kind == "cgroup":
            for name in V1_CONTROLLERS:
                if name in point.super_options:
                    v1.setdefault(name, point.target)
    if "memory" in v1 or "pids" in v1 or "cpu" in v1:
        return CgroupsV1(base, v1 | ({"unified": v2} if v2 else {}))
    if v2:
        return CgroupsV2(base, v2)
    raise Broken("no cgroup file system is mounted: mount -t cgroup2 none /sys/fs/cgroup")


@contextmanager
def _may_be_gone(directory: str, frozen: bool) -> Generator[None]:
    """Take an error of a group that has gone with its last process as what it is."""
    try:
        yield
    except WherryError:
        if os.path.exists(directory):
            raise
        if frozen:
            raise NotFound(f"{directory}: the group is gone: its last process has ended") from None
