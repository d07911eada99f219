"""Control groups: limits, usage and the end of whole groups of processes, alike on cgroup v2 and v1.

Paths are relative to a `Cgroups`' base (`wherry/ID/NODE`), such as `pods/UID/CONTAINER`; "" is the base itself. The OCI
runtime makes the groups of containers; we make their parents, read usage, and remove what is left.
"""

import errno
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from wherry.clock import machine
from wherry.errors import Broken
from wherry.host import kernel, mounts, processes

V2_CONTROLLERS = ("cpu", "cpuset", "memory", "pids", "io")
V1_CONTROLLERS = (
    "cpu", "cpuacct", "cpuset", "memory", "pids", "freezer", "devices", "blkio",
    "net_cls", "net_prio", "perf_event", "hugetlb", "rdma", "misc", "name=systemd",
)  # fmt: skip
"""The v1 hierarchies that we make groups in, where they are mounted: the OCI runtimes use them all."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a group may use; None is unlimited, 0 pids too. Shares are v1's CPU weight (2..262144, 1024 is usual)."""

    cpu_quota_us: int | None = None
    cpu_period_us: int = 100_000
    cpu_shares: int | None = None
    memory_bytes: int | None = None
    memory_swap_bytes: int | None = None
    pids: int | None = None
    cpuset_cpus: str = ""


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
        """Stop, or let go on, everything in the group; returns when it is so. Blocks."""
        ...

    def remove(self, path: str) -> None:
        """Remove an empty group with those below it; Broken (EBUSY) when processes are in it.

        With the base itself ("") go its parents too, as far as nobody else has groups in them.
        """
        ...

    def children(self, path: str) -> list[str]:
        """Name the groups directly below."""
        ...

    def directory(self, controller: str, path: str) -> str:
        """Say where a group's files of a controller are."""
        ...


class CgroupsV2:
    """One tree for everything. `root` is where it is mounted, or a directory delegated to us below."""

    version = 2

    def __init__(self, base: str, root: str = "/sys/fs/cgroup") -> None:
        self._root, self._base = root, base.strip("/")

    def runtime_path(self, path: str) -> str:
        """See Cgroups."""
        return "/" + _join(self._base, path)

    def create(self, path: str, limits: Limits | None = None) -> None:
        """See Cgroups. Each parent hands the controllers it has to its children."""
        _make_tree(self._root, _join(self._base, path), prepare=self._delegate)
        if limits is not None:
            self.limit(path, limits)

    def limit(self, path: str, limits: Limits) -> None:
        """See Cgroups."""
        directory = self._directory(path)
        for name, value in plan_v2(limits).items():
            _write_limit(f"{directory}/{name}", value)

    def usage(self, path: str) -> Usage:
        """See Cgroups."""
        directory = self._directory(path)
        used = _read_int(f"{directory}/memory.current")
        inactive = _read_pairs(f"{directory}/memory.stat").get("inactive_file", 0)
        return Usage(
            cpu_usage_ns=_read_pairs(f"{directory}/cpu.stat").get("usage_usec", 0) * 1000,
            memory_usage_bytes=used,
            memory_working_set_bytes=max(0, used - inactive),
            pids=_read_int(f"{directory}/pids.current"),
            oom_kills=_read_pairs(f"{directory}/memory.events").get("oom_kill", 0),
        )

    def processes(self, path: str) -> list[int]:
        """See Cgroups."""
        return _processes([self._directory(path)])

    def enter(self, path: str, pid: int) -> None:
        """See Cgroups. Only groups without controllers for their children take processes."""
        _write(f"{self._directory(path)}/cgroup.procs", str(pid))

    def signal_all(self, path: str, number: int) -> int:
        """See Cgroups."""
        return _signal_all(self.processes(path), number)

    def kill(self, path: str, *, timeout_s: float = 5.0) -> None:
        """See Cgroups. The kernel does it in one step where it can (Linux 5.14)."""
        directory = self._directory(path)
        with suppress(FileNotFoundError), open(f"{directory}/cgroup.kill", "w", encoding="ascii") as file:
            file.write("1")
        _kill_until_empty(lambda: self.processes(path), directory, timeout_s)

    def freeze(self, path: str, *, frozen: bool, timeout_s: float = 5.0) -> None:
        """See Cgroups."""
        directory = self._directory(path)
        _write(f"{directory}/cgroup.freeze", "1" if frozen else "0")
        _until(
            lambda: _read_pairs(f"{directory}/cgroup.events").get("frozen", int(frozen)) == int(frozen),
            f"{directory}: {'freeze' if frozen else 'thaw'}",
            timeout_s,
        )

    def remove(self, path: str) -> None:
        """See Cgroups."""
        _remove_tree(self._directory(path))
        if not _join("", path):
            _remove_empty_parents(self._root, self._base)

    def children(self, path: str) -> list[str]:
        """See Cgroups."""
        return sorted(_directories(self._directory(path)))

    def directory(self, controller: str, path: str) -> str:
        """See Cgroups."""
        del controller
        return self._directory(path)

    def missing_controllers(self) -> list[str]:
        """Name the controllers we need (cpu, memory, pids) that the root does not offer: not delegated, or off."""
        offered = _read(f"{self._root}/cgroup.controllers").split()
        return [name for name in ("cpu", "memory", "pids") if name not in offered]

    def _directory(self, path: str) -> str:
        return f"{self._root}/{_join(self._base, path)}"

    def _delegate(self, directory: str) -> None:
        offered = _read(f"{directory}/cgroup.controllers").split()
        given = _read(f"{directory}/cgroup.subtree_control").split()
        for name in V2_CONTROLLERS:
            if name in offered and name not in given:
                try:
                    _write(f"{directory}/cgroup.subtree_control", f"+{name}")
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

    def runtime_path(self, path: str) -> str:
        """See Cgroups."""
        return "/" + _join(self._base, path)

    def create(self, path: str, limits: Limits | None = None) -> None:
        """See Cgroups. A new group's cpuset is its parent's: an empty one takes no process."""
        for controller, root in self._each_root():
            _make_tree(root, _join(self._base, path), finish=_inherit_cpuset if controller == "cpuset" else None)
        if limits is not None:
            self.limit(path, limits)

    def limit(self, path: str, limits: Limits) -> None:
        """See Cgroups. Swap limits are skipped where the kernel does not count swap."""
        for controller, settings in plan_v1(limits).items():
            if controller not in self._roots:
                continue
            directory = self._directory(controller, path)
            if controller == "memory":
                _limit_memory_v1(directory, settings)
                continue
            for name, value in settings.items():
                _write_limit(f"{directory}/{name}", value)

    def usage(self, path: str) -> Usage:
        """See Cgroups."""
        memory = self._directory("memory", path)
        used = _read_int(f"{memory}/memory.usage_in_bytes")
        inactive = _read_pairs(f"{memory}/memory.stat").get("total_inactive_file", 0)
        return Usage(
            cpu_usage_ns=_read_int(f"{self._directory('cpuacct', path)}/cpuacct.usage"),
            memory_usage_bytes=used,
            memory_working_set_bytes=max(0, used - inactive),
            pids=_read_int(f"{self._directory('pids', path)}/pids.current"),
            oom_kills=_oom_kills_v1(memory),
        )

    def processes(self, path: str) -> list[int]:
        """See Cgroups. Whoever is in any of the trees counts."""
        return _processes([self._directory(controller, path) for controller, _ in self._each_root()])

    def enter(self, path: str, pid: int) -> None:
        """See Cgroups."""
        for controller, _ in self._each_root():
            _write(f"{self._directory(controller, path)}/cgroup.procs", str(pid))

    def signal_all(self, path: str, number: int) -> int:
        """See Cgroups."""
        return _signal_all(self.processes(path), number)

    def kill(self, path: str, *, timeout_s: float = 5.0) -> None:
        """See Cgroups. Frozen while we kill, so that nothing can fork away."""
        freezer = self._directory("freezer", path)
        state = f"{freezer}/freezer.state"
        has_freezer = "freezer" in self._roots and os.path.exists(state)
        if has_freezer:
            with suppress(Broken):
                _write(state, "FROZEN")
        try:
            self.signal_all(path, signal.SIGKILL)
        finally:
            if has_freezer:
                for directory in [*_walk(freezer), freezer]:  # a paused container below stays frozen otherwise
                    with suppress(Broken):
                        _write(f"{directory}/freezer.state", "THAWED")
        _kill_until_empty(lambda: self.processes(path), self._directory("pids", path), timeout_s)

    def freeze(self, path: str, *, frozen: bool, timeout_s: float = 5.0) -> None:
        """See Cgroups."""
        state, wanted = f"{self._directory('freezer', path)}/freezer.state", "FROZEN" if frozen else "THAWED"

        def is_so() -> bool:
            if _read(state).strip() == wanted:
                return True
            _write(state, wanted)  # the kernel wants to be asked again while tasks are between two states
            return False

        _until(is_so, f"{state}: {wanted}", timeout_s)

    def remove(self, path: str) -> None:
        """See Cgroups."""
        for controller, _ in self._each_root():
            _remove_tree(self._directory(controller, path))
            if not _join("", path):
                _remove_empty_parents(self._roots[controller], self._base)

    def children(self, path: str) -> list[str]:
        """See Cgroups."""
        names: set[str] = set()
        for controller, _ in self._each_root():
            names.update(_directories(self._directory(controller, path)))
        return sorted(names)

    def directory(self, controller: str, path: str) -> str:
        """See Cgroups."""
        return self._directory(controller, path)

    def missing_controllers(self) -> list[str]:
        """Name the controllers we need (cpu, memory, pids) that are not mounted."""
        return [name for name in ("cpu", "memory", "pids") if name not in self._roots]

    def _each_root(self) -> Iterator[tuple[str, str]]:
        """Yield each tree once: cpu and cpuacct are often one."""
        seen: set[str] = set()
        for controller, root in self._roots.items():
            if os.path.realpath(root) not in seen:
                seen.add(os.path.realpath(root))
                yield controller, root

    def _directory(self, controller: str, path: str) -> str:
        return f"{self._roots.get(controller, '/nonexistent')}/{_join(self._base, path)}"


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


def plan_v2(limits: Limits) -> dict[str, str]:
    """Say which files get which values on cgroup v2.

    Shares become weights as crun and runc turn them: 2..262144 onto 1..10000. Swap: `memory_swap_bytes` counts memory
    and swap together, as Docker's does; -1 is unlimited.
    """
    quota = "max" if limits.cpu_quota_us is None else str(limits.cpu_quota_us)
    plan = {"cpu.max": f"{quota} {limits.cpu_period_us}"}
    plan["memory.max"] = "max" if limits.memory_bytes is None else str(limits.memory_bytes)
    if limits.memory_bytes is not None and limits.memory_swap_bytes is not None:
        swap = limits.memory_swap_bytes
        plan["memory.swap.max"] = "max" if swap < 0 else str(max(0, swap - limits.memory_bytes))
    plan["pids.max"] = str(limits.pids) if limits.pids else "max"
    if limits.cpu_shares is not None:
        shares = min(262_144, max(2, limits.cpu_shares))
        plan["cpu.weight"] = str(1 + (shares - 2) * 9999 // 262_142)
    if limits.cpuset_cpus:
        plan["cpuset.cpus"] = limits.cpuset_cpus
    return plan


def plan_v1(limits: Limits) -> dict[str, dict[str, str]]:
    """Say which files of which controllers get which values on cgroup v1."""
    memory = {"memory.limit_in_bytes": "-1" if limits.memory_bytes is None else str(limits.memory_bytes)}
    if limits.memory_bytes is None or limits.memory_swap_bytes is not None:
        memory["memory.memsw.limit_in_bytes"] = str(-1 if limits.memory_bytes is None else limits.memory_swap_bytes)
    cpu = {"cpu.cfs_period_us": str(limits.cpu_period_us)}
    cpu["cpu.cfs_quota_us"] = "-1" if limits.cpu_quota_us is None else str(limits.cpu_quota_us)
    if limits.cpu_shares is not None:
        cpu["cpu.shares"] = str(max(2, limits.cpu_shares))
    plan = {"cpu": cpu, "memory": memory, "pids": {"pids.max": str(limits.pids) if limits.pids else "max"}}
    if limits.cpuset_cpus:
        plan["cpuset"] = {"cpuset.cpus": limits.cpuset_cpus}
    return plan


def _limit_memory_v1(directory: str, settings: Mapping[str, str]) -> None:
    """Memory must stay at or below memory+swap at every step: so raise the second first, lower it last."""
    plain, both = f"{directory}/memory.limit_in_bytes", f"{directory}/memory.memsw.limit_in_bytes"
    order = [(plain, settings["memory.limit_in_bytes"])]
    if "memory.memsw.limit_in_bytes" in settings and os.path.exists(both):
        order.append((both, settings["memory.memsw.limit_in_bytes"]))
    try:
        for name, value in order:
            _write_limit(name, value)
    except Broken:
        for name, value in reversed(order):
            _write_limit(name, value)


def _join(base: str, path: str) -> str:
    parts = [part for part in f"{base}/{path}".split("/") if part]
    if ".." in parts or "." in parts:
        raise Broken(f"cgroup path {path!r} leaves its base")
    return "/".join(parts)


def _make_tree(
    root: str,
    path: str,
    *,
    prepare: Callable[[str], None] | None = None,
    finish: Callable[[str, str], None] | None = None,
) -> None:
    """Make a group and its parents: `prepare(parent)` before each, `finish(parent, new)` after each new one.

    Another instance may just be removing an empty parent that we share: then we begin again.
    """
    for attempt in range(10):
        directory = root
        try:
            for name in path.split("/"):
                parent, directory = directory, f"{directory}/{name}"
                if prepare is not None:
                    prepare(parent)
                with suppress(FileExistsError):
                    os.mkdir(directory, 0o755)
                    if finish is not None:
                        finish(parent, directory)
        except OSError as error:
            if error.errno != errno.ENOENT or attempt == 9 or not os.path.isdir(root):
                raise kernel.refused(f"make cgroup {directory}", error.errno or 0) from error
        except Broken as error:
            if kernel.errno_of(error) != errno.ENOENT or attempt == 9:
                raise
        else:
            return


def _inherit_cpuset(parent: str, directory: str) -> None:
    for setting in ("cpuset.cpus", "cpuset.mems"):
        _write(f"{directory}/{setting}", _read(f"{parent}/{setting}").strip())


def _write(path: str, value: str) -> None:
    try:
        with open(path, "w", encoding="ascii") as file:
            file.write(value)
    except OSError as error:
        raise kernel.refused(f"write {value!r} to {path}", error.errno or 0) from error


def _write_limit(path: str, value: str) -> None:
    """Write a limit; one that lifts nothing may be missing with its controller."""
    if (value in ("max", "-1") or value.startswith("max ")) and not os.path.exists(path):
        return
    _write(path, value)


def _read(path: str) -> str:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read()
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except OSError as error:
        if error.errno == errno.ENODEV:  # the group went while we read
            return ""
        raise kernel.refused(f"read {path}", error.errno or 0) from error


def _read_int(path: str) -> int:
    text = _read(path).strip()
    return int(text) if text.lstrip("-").isdigit() else 0


def _read_pairs(path: str) -> dict[str, int]:
    """Read lines of a name and a number."""
    pairs = (line.split() for line in _read(path).splitlines())
    return {words[0]: int(words[1]) for words in pairs if len(words) == 2 and words[1].isdigit()}


def _oom_kills_v1(directory: str) -> int:
    """Sum over the tree: v1 counts a kill in the group of the victim alone."""
    return sum(
        _read_pairs(f"{group}/memory.oom_control").get("oom_kill", 0) for group in [directory, *_walk(directory)]
    )


def _directories(path: str) -> list[str]:
    try:
        with os.scandir(path) as entries:
            return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    except (FileNotFoundError, NotADirectoryError):
        return []


def _walk(path: str) -> list[str]:
    """List the groups below, the deepest first."""
    found: list[str] = []
    for name in _directories(path):
        found += _walk(f"{path}/{name}")
        found.append(f"{path}/{name}")
    return found


def _processes(directories: Sequence[str]) -> list[int]:
    found: set[int] = set()
    for directory in directories:
        for group in [directory, *_walk(directory)]:
            try:
                found.update(int(word) for word in _read(f"{group}/cgroup.procs").split())
            except Broken as error:
                if kernel.errno_of(error) != errno.EOPNOTSUPP:  # a threaded group: its processes show in its parent
                    raise
    found.discard(0)  # a process of another pid namespace
    return sorted(found)


def _signal_all(pids: Sequence[int], number: int) -> int:
    count = 0
    for pid in pids:
        identity = processes.identify(pid)
        count += identity is not None and processes.send_signal(identity, number)
    return count


def _kill_until_empty(list_pids: Callable[[], list[int]], what: str, timeout_s: float) -> None:
    deadline = machine.monotonic() + timeout_s
    pause_s = 0.001
    while pids := list_pids():
        _signal_all(pids, signal.SIGKILL)
        if machine.monotonic() > deadline:
            raise Broken(f"{what}: still has {len(pids)} processes ({pids[:5]}) {timeout_s:g} s after SIGKILL")
        machine.pause(pause_s)
        pause_s = min(0.05, pause_s * 2)


def _until(is_so: Callable[[], bool], what: str, timeout_s: float) -> None:
    deadline = machine.monotonic() + timeout_s
    pause_s = 0.001
    while not is_so():
        if machine.monotonic() > deadline:
            raise Broken(f"{what}: not done after {timeout_s:g} s")
        machine.pause(pause_s)
        pause_s = min(0.05, pause_s * 2)


def _remove_empty_parents(root: str, base: str) -> None:
    parent = os.path.dirname(base)
    while parent:
        try:
            os.rmdir(f"{root}/{parent}")
        except FileNotFoundError:
            pass
        except OSError:
            return  # another node or instance is in it
        parent = os.path.dirname(parent)


def _remove_tree(directory: str) -> None:
    """Remove groups from the leaves up; just after the last process's end the kernel may still call them busy."""
    for group in [*_walk(directory), directory]:
        for pause_s in (0.001, 0.004, 0.016, 0.064, 0.25, 0.0):
            try:
                os.rmdir(group)
                break
            except (FileNotFoundError, NotADirectoryError):
                break
            except OSError as error:
                if error.errno != errno.EBUSY or pause_s == 0.0:
                    raise kernel.refused(f"remove cgroup {group}", error.errno or 0) from error
                machine.pause(pause_s)
