"""What this machine is and can do: for a node's capacity and for `wherry doctor`. Facts only; judging is for others."""

import os
import platform
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from wherry.errors import WherryError
from wherry.host import cgroups, namespaces, nftables, spawn

CAPABILITIES: Mapping[str, int] = {
    "CAP_DAC_OVERRIDE": 1,
    "CAP_KILL": 5,
    "CAP_NET_ADMIN": 12,
    "CAP_NET_RAW": 13,
    "CAP_SYS_CHROOT": 18,
    "CAP_SYS_PTRACE": 19,
    "CAP_SYS_ADMIN": 21,
    "CAP_SYS_RESOURCE": 24,
    "CAP_MKNOD": 27,
}
"""The rights that some part of wherry uses, by their numbers in capability.h."""

PROGRAMS = ("crun", "runc", "conmon", "catatonit", "nft", "busybox", "dockerd")


@dataclass(frozen=True, slots=True)
class Facts:
    """A machine, as seen from our namespaces and cgroup. `cgroup`: "v2", "v1", "hybrid" or "none"."""

    kernel: str
    architecture: str
    os_image: str
    machine_id: str
    boot_id: str
    cpus: int
    memory_bytes: int
    swap_bytes: int
    pid_max: int
    cgroup: str
    missing_controllers: Sequence[str]
    filesystems: frozenset[str]
    has_nftables: bool
    has_netfilter: bool
    is_root: bool
    missing_capabilities: Sequence[str]
    programs: Mapping[str, str] = field(default_factory=dict[str, str])


def read() -> Facts:
    """Look at the machine; some milliseconds, no other program is run."""
    mode, missing = cgroup_mode()
    return Facts(
        kernel=platform.release(),
        architecture=platform.machine(),
        os_image=os_image(),
        machine_id=_first_line("/etc/machine-id"),
        boot_id=_first_line("/proc/sys/kernel/random/boot_id"),
        cpus=cpus(),
        memory_bytes=memory().get("MemTotal", 0),
        swap_bytes=memory().get("SwapTotal", 0),
        pid_max=int(namespaces.read_sysctl("kernel.pid_max") or 32768),
        cgroup=mode,
        missing_controllers=missing,
        filesystems=filesystems(),
        has_nftables=nftables.is_there(),
        has_netfilter=os.path.isdir("/proc/sys/net/netfilter"),
        is_root=os.geteuid() == 0,
        missing_capabilities=missing_capabilities(),
        programs={name: path for name in PROGRAMS if (path := find_program(name))},
    )


def cpus() -> int:
    """Count the processors that we may run on, at least one."""
    return max(1, len(os.sched_getaffinity(0)))


def memory() -> dict[str, int]:
    """Read /proc/meminfo in bytes: MemTotal, MemAvailable, SwapTotal, ..."""
    found: dict[str, int] = {}
    with open("/proc/meminfo", encoding="ascii") as lines:
        for line in lines:
            name, _, rest = line.partition(":")
            words = rest.split()
            found[name] = int(words[0]) * (1024 if len(words) > 1 else 1)
    return found


def filesystems() -> frozenset[str]:
    """Name the file systems that the kernel has now (a module may bring more)."""
    with open("/proc/filesystems", encoding="ascii") as lines:
        return frozenset(line.split()[-1] for line in lines)


def cgroup_mode() -> tuple[str, list[str]]:
    """Say how cgroups are mounted, and which of cpu, memory and pids are missing."""
    try:
        found = cgroups.find("")
    except WherryError:
        return "none", ["cpu", "memory", "pids"]
    mode = "v2" if found.version == 2 else ("hybrid" if os.path.exists(spawn.HYBRID_CONTROLLERS) else "v1")
    return mode, found.missing_controllers()


def missing_capabilities() -> list[str]:
    """Name the capabilities of `CAPABILITIES` that we do not have."""
    effective = 0
    with open("/proc/self/status", encoding="ascii", errors="replace") as lines:
        for line in lines:
            if line.startswith("CapEff:"):
                effective = int(line.split()[1], 16)
    return [name for name, bit in CAPABILITIES.items() if not effective >> bit & 1]


def find_program(name: str) -> str:
    """Find a program on the path, and where administrators' programs are, which a plain user's path leaves out."""
    path = os.environ.get("PATH", os.defpath) + ":/usr/local/sbin:/usr/sbin:/sbin:/usr/libexec/podman"
    return shutil.which(name, path=path) or ""


def os_image() -> str:
    """Return the distribution's name, such as "Debian GNU/Linux 12 (bookworm)"."""
    with suppress(OSError), open("/etc/os-release", encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if line.startswith("PRETTY_NAME="):
                return line.partition("=")[2].strip().strip('"')
    return "Linux"


def _first_line(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.readline().strip()
    except OSError:
        return ""
