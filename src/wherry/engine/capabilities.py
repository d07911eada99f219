"""Linux capabilities of a container: Docker's default set, and what a spec adds to it or takes away."""

from collections.abc import Collection, Sequence
from pathlib import Path

from wherry.errors import Broken, Invalid

ALL = (
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
)
"""Every capability; its place is its number in the kernel. Source: linux/capability.h."""

DEFAULT = frozenset(
    (
        "CAP_CHOWN",
        "CAP_DAC_OVERRIDE",
        "CAP_FSETID",
        "CAP_FOWNER",
        "CAP_MKNOD",
        "CAP_NET_RAW",
        "CAP_SETGID",
        "CAP_SETUID",
        "CAP_SETFCAP",
        "CAP_SETPCAP",
        "CAP_NET_BIND_SERVICE",
        "CAP_SYS_CHROOT",
        "CAP_KILL",
        "CAP_AUDIT_WRITE",
    )
)
"""What a container has when nobody says anything. Source: Docker, "Runtime privilege and Linux capabilities"."""


def decode(mask: int) -> frozenset[str]:
    """Turn a mask of /proc/PID/status (CapBnd) into names; bits without a name are dropped."""
    return frozenset(name for bit, name in enumerate(ALL) if mask >> bit & 1)


def own() -> frozenset[str]:
    """Say what this process could give at most: its bounding set."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapBnd:"):
            return decode(int(line.split()[1], 16))
    raise Broken("/proc/self/status has no CapBnd")


def choose(add: Sequence[str], drop: Sequence[str], *, privileged: bool, available: Collection[str]) -> tuple[str, ...]:
    """Say which capabilities a container gets, in the kernel's order.

    Names with or without `CAP_`, in any case, and `ALL`; what is named singly wins over `ALL` on the other list. Nothing
    that the engine itself lacks (`available`) can be given; one asked for by name is then refused. Pure. Raises Invalid.
    """
    if privileged:
        return tuple(name for name in ALL if name in available)
    added, dropped = _names(add, "cap_add"), _names(drop, "cap_drop")
    chosen = set(ALL) if "ALL" in added else set(DEFAULT)
    if "ALL" in dropped:
        chosen = set()
    chosen = (chosen | added - {"ALL"}) - (dropped - {"ALL"})
    for name in added & chosen - set(available):
        raise Invalid(f"cap_add {name}: the engine does not have it itself, so it cannot give it")
    return tuple(name for name in ALL if name in chosen and name in available)


def _names(words: Sequence[str], field: str) -> set[str]:
    names: set[str] = set()
    for word in words:
        name = word.upper()
        if name != "ALL" and not name.startswith("CAP_"):
            name = f"CAP_{name}"
        if name != "ALL" and name not in ALL:
            raise Invalid(f"{field} {word!r}: no such capability; see capabilities(7), for example NET_ADMIN")
        names.add(name)
    return names
