"""The system calls that a container may make: containers-common's profile, narrowed to Docker's default. Pure.

The profile file says what holds on which processor and with which capabilities; an OCI runtime wants plain rules. That
profile lets every container call mount, unshare, keyctl and their kin and leaves it to capabilities to say no; Docker's
default refuses them, and so do we, unless the container has the capability that goes with them.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from wherry.errors import Broken, Invalid

PROFILES = (Path("/usr/share/containers/seccomp.json"), Path("/etc/containers/seccomp.json"))

FOR_ADMINS = frozenset(
    (
        "bpf",
        "clone3",
        "fanotify_init",
        "fsconfig",
        "fsmount",
        "fsopen",
        "fspick",
        "lookup_dcookie",
        "mount",
        "mount_setattr",
        "move_mount",
        "open_tree",
        "perf_event_open",
        "pivot_root",
        "quotactl",
        "quotactl_fd",
        "setdomainname",
        "sethostname",
        "setns",
        "syslog",
        "umount",
        "umount2",
        "unshare",
    )
)
"""Calls that need CAP_SYS_ADMIN here. Source: Docker, "Seccomp security profiles for Docker"."""

WITH_CAPABILITY = {
    "keyctl": "",  # the kernel's key rings know no namespaces
    "get_mempolicy": "CAP_SYS_NICE",
    "mbind": "CAP_SYS_NICE",
    "pidfd_getfd": "CAP_SYS_PTRACE",
    "set_mempolicy": "CAP_SYS_NICE",
    "set_mempolicy_home_node": "CAP_SYS_NICE",
}
"""Calls that the profile file lets everybody make and Docker's only those who have a capability; "": nobody."""

_CLONE_NAMESPACES = 0x7E020000
_AF_VSOCK = 40
_EPERM, _ENOSYS = 1, 38
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
_SCMP = {"amd64": "SCMP_ARCH_X86_64", "arm64": "SCMP_ARCH_AARCH64"}


def load(paths: Sequence[Path] = PROFILES) -> Mapping[str, Any]:
    """Read the profile of this machine. Raises Broken when there is none, naming the package that has it."""
    for path in paths:
        try:
            return json.loads(path.read_bytes())
        except FileNotFoundError:
            continue
        except ValueError as error:
            raise Broken(f"{path}: not JSON: {error}") from error
    raise Broken(f"no seccomp profile at {' or '.join(map(str, paths))}: install the package containers-common")


def parse(text: str) -> Mapping[str, Any]:
    """Read a profile that a request brings (Docker's `--security-opt seccomp=FILE`). Raises Invalid."""
    try:
        profile = json.loads(text)
    except ValueError as error:
        raise Invalid(f"seccomp: neither default, unconfined nor a profile in JSON: {error}") from None
    if not isinstance(profile, dict) or "defaultAction" not in profile:
        raise Invalid("seccomp: the profile has no defaultAction")
    made = cast(dict[str, Any], profile)
    groups: list[dict[str, Any]] = []
    for group in made.get("syscalls") or ():
        names = group.get("names") or ([group["name"]] if group.get("name") else [])
        if not names or "action" not in group:
            raise Invalid("seccomp: each of the profile's syscalls needs names and an action")
        groups.append({**group, "names": names})
    return made | {"syscalls": groups}


def rules(
    profile: Mapping[str, Any], *, capabilities: Collection[str], machine: str, narrow: bool = True
) -> dict[str, Any]:
    """Turn a profile into an OCI `linux.seccomp` for a container with `capabilities` on processor `machine` (uname -m).

    `narrow`: refuse what only administrators may call, whatever the profile says.
    """
    arch = _ARCHITECTURES.get(machine, machine)
    is_admin = "CAP_SYS_ADMIN" in capabilities or not narrow
    syscalls: list[dict[str, Any]] = []
    for group in profile["syscalls"]:
        if not _applies(group, capabilities, arch):
            continue
        names: list[str] = group["names"]
        is_allowed = group["action"] == "SCMP_ACT_ALLOW"
        if is_allowed and not is_admin:
            names = [name for name in names if name not in FOR_ADMINS and name != "clone"]
        if is_allowed and narrow:
            names = [name for name in names if WITH_CAPABILITY.get(name) in (None, *capabilities) and name != "socket"]
        if not names:
            continue
        rule: dict[str, Any] = {"names": names, "action": group["action"]}
        if not is_allowed and group.get("errnoRet") is not None:
            rule["errnoRet"] = group["errnoRet"]
        if group.get("args"):
            rule["args"] = group["args"]
        syscalls.append(rule)
    if not is_admin:
        syscalls += _for_others(arch, syscalls)
    if narrow:
        kept = sorted(name for name, needed in WITH_CAPABILITY.items() if needed not in capabilities)
        syscalls += [{"names": kept, "action": "SCMP_ACT_ERRNO", "errnoRet": _EPERM}, *_sockets()]
    return {
        "defaultAction": profile["defaultAction"],
        "defaultErrnoRet": profile.get("defaultErrnoRet", _EPERM),
        "architectures": _architectures(profile, arch),
        "syscalls": syscalls,
    }


def _for_others(arch: str, syscalls: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rules for a container without CAP_SYS_ADMIN: no new namespaces, and EPERM for what administrators call.

    clone3 has its flags in memory, where a filter cannot look: it does not exist, and libc falls back to clone.
    """
    refused = {name for rule in syscalls for name in rule["names"] if rule["action"] != "SCMP_ACT_ALLOW"}
    flags = 1 if arch in ("s390", "s390x") else 0
    mask = {"index": flags, "value": _CLONE_NAMESPACES, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}
    return [
        {"names": ["clone"], "action": "SCMP_ACT_ALLOW", "args": [mask]},
        {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": _ENOSYS},
        {
            "names": sorted(FOR_ADMINS - refused - {"clone3"}),
            "action": "SCMP_ACT_ERRNO",
            "errnoRet": _EPERM,
        },
    ]


def _sockets() -> list[dict[str, Any]]:
    """Every family of sockets but the one that leads to the hypervisor, past all network namespaces."""
    family = {"index": 0, "value": _AF_VSOCK, "valueTwo": 0}
    return [
        {"names": ["socket"], "action": "SCMP_ACT_ALLOW", "args": [family | {"op": "SCMP_CMP_NE"}]},
        {"names": ["socket"], "action": "SCMP_ACT_ERRNO", "errnoRet": _EPERM, "args": [family | {"op": "SCMP_CMP_EQ"}]},
    ]


def _applies(group: Mapping[str, Any], capabilities: Collection[str], arch: str) -> bool:
    includes, excludes = group.get("includes") or {}, group.get("excludes") or {}
    if includes.get("arches") and arch not in includes["arches"]:
        return False
    if excludes.get("arches") and arch in excludes["arches"]:
        return False
    if any(name not in capabilities for name in includes.get("caps") or ()):
        return False
    return not any(name in capabilities for name in excludes.get("caps") or ())


def _architectures(profile: Mapping[str, Any], arch: str) -> list[str]:
    native = _SCMP.get(arch)
    for entry in profile.get("archMap") or ():
        if entry["architecture"] == native:
            return [str(native), *entry["subArchitectures"]]
    return [native] if native else []
