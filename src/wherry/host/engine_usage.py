"""What a control group uses, in all that the kernel counts, alike on cgroup v2 and v1; and a process's traffic."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from wherry.host.cgroups import Cgroups

_HERTZ = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Detail:
    """Everything counted. Times in nanoseconds, sizes in bytes, 0 for no limit; `io`: (major, minor, operation, bytes)."""

    version: int
    cpu_ns: int = 0
    kernel_ns: int = 0
    user_ns: int = 0
    per_cpu_ns: Sequence[int] = ()
    periods: int = 0
    throttled_periods: int = 0
    throttled_ns: int = 0
    memory: int = 0
    memory_peak: int = 0
    memory_limit: int = 0
    memory_stats: Mapping[str, int] = field(default_factory=dict[str, int])
    pids: int = 0
    pids_limit: int = 0
    io: Sequence[tuple[int, int, str, int]] = ()


def detail(groups: Cgroups, path: str) -> Detail:
    """Read a group's counters; one that is not there uses nothing."""
    return _v2(groups.directory("", path)) if groups.version == 2 else _v1(groups, path)


def traffic(pid: int) -> Mapping[str, Sequence[int]]:
    """Read a process's network interfaces but lo: received bytes, packets, errors, drops, and the same sent."""
    found: dict[str, Sequence[int]] = {}
    for line in _text(f"/proc/{pid}/net/dev").splitlines():
        name, colon, rest = line.partition(":")
        words = rest.split()
        if colon and name.strip() != "lo" and len(words) >= 12:
            found[name.strip()] = [int(words[at]) for at in (0, 1, 2, 3, 8, 9, 10, 11)]
    return found


def system_cpu_ns() -> int:
    """Read what all processors have spent since boot, idle too."""
    words = _text("/proc/stat").partition("\n")[0].split()[1:8]
    return sum(int(word) for word in words) * 1_000_000_000 // _HERTZ


def _v2(place: str) -> Detail:
    cpu = _pairs(f"{place}/cpu.stat")
    return Detail(
        2,
        cpu_ns=cpu.get("usage_usec", 0) * 1000,
        kernel_ns=cpu.get("system_usec", 0) * 1000,
        user_ns=cpu.get("user_usec", 0) * 1000,
        periods=cpu.get("nr_periods", 0),
        throttled_periods=cpu.get("nr_throttled", 0),
        throttled_ns=cpu.get("throttled_usec", 0) * 1000,
        memory=_number(f"{place}/memory.current"),
        memory_peak=_number(f"{place}/memory.peak"),
        memory_limit=_number(f"{place}/memory.max"),
        memory_stats=_pairs(f"{place}/memory.stat"),
        pids=_number(f"{place}/pids.current"),
        pids_limit=_number(f"{place}/pids.max"),
        io=_io_v2(_text(f"{place}/io.stat")),
    )


def _v1(groups: Cgroups, path: str) -> Detail:
    account, memory, pids = (groups.directory(name, path) for name in ("cpuacct", "memory", "pids"))
    shares = _pairs(f"{groups.directory('cpu', path)}/cpu.stat")
    spent = _pairs(f"{account}/cpuacct.stat")
    limit = _number(f"{memory}/memory.limit_in_bytes")
    return Detail(
        1,
        cpu_ns=_number(f"{account}/cpuacct.usage"),
        kernel_ns=spent.get("system", 0) * 1_000_000_000 // _HERTZ,
        user_ns=spent.get("user", 0) * 1_000_000_000 // _HERTZ,
        per_cpu_ns=[int(word) for word in _text(f"{account}/cpuacct.usage_percpu").split() if word.isdigit()],
        periods=shares.get("nr_periods", 0),
        throttled_periods=shares.get("nr_throttled", 0),
        throttled_ns=shares.get("throttled_time", 0),
        memory=_number(f"{memory}/memory.usage_in_bytes"),
        memory_peak=_number(f"{memory}/memory.max_usage_in_bytes"),
        memory_limit=limit if limit < 1 << 62 else 0,
        memory_stats=_pairs(f"{memory}/memory.stat"),
        pids=_number(f"{pids}/pids.current"),
        pids_limit=_number(f"{pids}/pids.max"),
        io=_io_v1(_text(f"{groups.directory('blkio', path)}/blkio.throttle.io_service_bytes_recursive")),
    )


def _io_v2(text: str) -> Sequence[tuple[int, int, str, int]]:
    found: list[tuple[int, int, str, int]] = []
    for line in text.splitlines():
        device, *pairs = line.split()
        major, _, minor = device.partition(":")
        for pair in pairs:
            name, _, value = pair.partition("=")
            if name in ("rbytes", "wbytes") and major.isdigit() and minor.isdigit():
                found.append((int(major), int(minor), "read" if name == "rbytes" else "write", int(value)))
    return found


def _io_v1(text: str) -> Sequence[tuple[int, int, str, int]]:
    found: list[tuple[int, int, str, int]] = []
    for line in text.splitlines():
        words = line.split()
        if len(words) == 3 and words[1] in ("Read", "Write"):
            major, _, minor = words[0].partition(":")
            found.append((int(major), int(minor), words[1].lower(), int(words[2])))
    return found


def _text(path: str) -> str:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read()
    except OSError:  # the group or process has gone
        return ""


def _number(path: str) -> int:
    text = _text(path).strip()
    return int(text) if text.isdigit() else 0


def _pairs(path: str) -> dict[str, int]:
    pairs = (line.split() for line in _text(path).splitlines())
    return {words[0]: int(words[1]) for words in pairs if len(words) == 2 and words[1].isdigit()}
