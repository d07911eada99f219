"""The files and directories of control groups: read, written, walked, made and removed, with patience for a busy kernel."""

import errno
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

from wherry.clock import machine
from wherry.errors import Broken
from wherry.host import kernel, processes
from wherry.host.limits import EITHER


def limit_memory_v1(directory: str, settings: Mapping[str, str]) -> dict[str, str]:
    """Memory must stay at or below memory+swap at every step: so raise the second first, lower it last.

    Returns the settings that are left to write.
    """
    plain, both = f"{directory}/memory.limit_in_bytes", f"{directory}/memory.memsw.limit_in_bytes"
    order = [(plain, settings["memory.limit_in_bytes"])]
    if "memory.memsw.limit_in_bytes" in settings and os.path.exists(both):
        order.append((both, settings["memory.memsw.limit_in_bytes"]))
    try:
        for name, value in order:
            write_limit(name, value)
    except Broken:
        for name, value in reversed(order):
            write_limit(name, value)
    return {name: value for name, value in settings.items() if not name.endswith("limit_in_bytes") or "soft" in name}


def join(base: str, path: str) -> str:
    """Make one path of a base and a path below it; one that begins with / stands for itself. Raises Broken for `..`."""
    parts = [part for part in (path if path.startswith("/") else f"{base}/{path}").split("/") if part]
    if ".." in parts or "." in parts:
        raise Broken(f"cgroup path {path!r} leaves its base")
    return "/".join(parts)


def make_tree(
    root: str,
    path: str,
    *,
    prepare: Callable[[str], None] | None = None,
    finish: Callable[[str, str], None] | None = None,
) -> None:
    """Make a group and its parents: `prepare(parent)` before each, `finish(parent, new)` after each new one.

    Another instance may just be removing an empty parent that we share: then we begin again.
    """
    if prepare is None and finish is None:  # where the parent is there, as mostly, one call does it
        with suppress(OSError):
            os.mkdir(f"{root}/{path}", 0o755)
            return
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


def inherit_cpuset(parent: str, directory: str) -> None:
    """Give a new v1 group its parent's processors and memory nodes: an empty set takes no process."""
    for setting in ("cpuset.cpus", "cpuset.mems"):
        write(f"{directory}/{setting}", read(f"{parent}/{setting}").strip())


def write(path: str, value: str) -> None:
    """Write a file. Raises Broken with the kernel's words."""
    try:
        with open(path, "w", encoding="ascii") as file:
            file.write(value)
    except OSError as error:
        raise kernel.refused(f"write {value!r} to {path}", error.errno or 0) from error


def write_limits(directory: str, settings: Mapping[str, str]) -> None:
    """Write limits; of two files that say the same, the one that the kernel has."""
    first = {second: one for one, second in EITHER}
    second = dict(EITHER)
    for name, value in settings.items():
        if name in second and not os.path.exists(f"{directory}/{name}"):
            continue
        if name in first and os.path.exists(f"{directory}/{first[name]}"):
            continue
        write_limit(f"{directory}/{name}", value)


def write_limit(path: str, value: str) -> None:
    """Write a limit; one that lifts nothing may be missing with its controller."""
    if (value in ("max", "-1") or value.startswith("max ")) and not os.path.exists(path):
        return
    write(path, value)


def read(path: str) -> str:
    """Read a file; "" when it is not there."""
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read()
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except OSError as error:
        if error.errno == errno.ENODEV:  # the group went while we read
            return ""
        raise kernel.refused(f"read {path}", error.errno or 0) from error


def read_int(path: str) -> int:
    """Read a number; 0 when there is none."""
    text = read(path).strip()
    return int(text) if text.lstrip("-").isdigit() else 0


def realtime(group: str) -> float:
    """Say which part of the time a group may give to real-time threads."""
    return read_int(f"{group}/cpu.rt_runtime_us") / (read_int(f"{group}/cpu.rt_period_us") or 1_000_000)


def read_pairs(path: str) -> dict[str, int]:
    """Read lines of a name and a number."""
    pairs = (line.split() for line in read(path).splitlines())
    return {words[0]: int(words[1]) for words in pairs if len(words) == 2 and words[1].isdigit()}


def oom_kills_v1(directory: str) -> int:
    """Sum over the tree: v1 counts a kill in the group of the victim alone."""
    return sum(read_pairs(f"{group}/memory.oom_control").get("oom_kill", 0) for group in [directory, *walk(directory)])


def directories(path: str) -> list[str]:
    """Name the groups directly below; none when there is no such group."""
    try:
        with os.scandir(path) as entries:
            return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    except (FileNotFoundError, NotADirectoryError):
        return []


def walk(path: str) -> list[str]:
    """List the groups below, the deepest first."""
    found: list[str] = []
    for name in directories(path):
        found += walk(f"{path}/{name}")
        found.append(f"{path}/{name}")
    return found


def pids_in(groups: Sequence[str]) -> list[int]:
    """List the pids in groups and below them."""
    found: set[int] = set()
    for directory in groups:
        for group in [directory, *walk(directory)]:
            try:
                found.update(int(word) for word in read(f"{group}/cgroup.procs").split())
            except Broken as error:
                if kernel.errno_of(error) != errno.EOPNOTSUPP:  # a threaded group: its processes show in its parent
                    raise
    found.discard(0)  # a process of another pid namespace
    return sorted(found)


def signal_all(pids: Sequence[int], number: int) -> int:
    """Send a signal to processes; return how many got it."""
    count = 0
    for pid in pids:
        identity = processes.identify(pid)
        count += identity is not None and processes.send_signal(identity, number)
    return count


def kill_until_empty(list_pids: Callable[[], list[int]], what: str, timeout_s: float) -> None:
    """SIGKILL what `list_pids` lists until it lists nothing. Raises Broken after `timeout_s`."""
    deadline = machine.monotonic() + timeout_s
    pause_s = 0.001
    while pids := list_pids():
        signal_all(pids, signal.SIGKILL)
        if machine.monotonic() > deadline:
            raise Broken(f"{what}: still has {len(pids)} processes ({pids[:5]}) {timeout_s:g} s after SIGKILL")
        machine.pause(pause_s)
        pause_s = min(0.05, pause_s * 2)


def until(is_so: Callable[[], bool], what: str, timeout_s: float) -> None:
    """Ask until it is so. Raises Broken after `timeout_s`."""
    deadline = machine.monotonic() + timeout_s
    pause_s = 0.001
    while not is_so():
        if machine.monotonic() > deadline:
            raise Broken(f"{what}: not done after {timeout_s:g} s")
        machine.pause(pause_s)
        pause_s = min(0.05, pause_s * 2)


def first_missing(root: str, path: str) -> str:
    """Name the topmost directory above `path` that is not below `root`; "" when all are."""
    parts = path.split("/")[:-1]
    above = ("/".join(parts[: depth + 1]) for depth in range(len(parts)))
    return next((f"/{each}" for each in above if not os.path.isdir(f"{root}/{each}")), "")


def remove_empty_parents(root: str, base: str, top: str = "") -> None:
    """Remove the groups above `base` that are empty, no further up than `top`."""
    parent = os.path.dirname(base)
    while parent and parent.startswith(top):
        try:
            os.rmdir(f"{root}/{parent}")
        except FileNotFoundError:
            pass
        except OSError:
            return  # another node or instance is in it
        parent = os.path.dirname(parent)


def remove_tree(directory: str) -> None:
    """Remove groups from the leaves up; just after the last process's end the kernel may still call them busy."""
    for group in [*walk(directory), directory]:
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
