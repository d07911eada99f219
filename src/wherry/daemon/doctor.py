"""What the machine must have: each check says what it saw, why it matters and the exact fix."""

import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from wherry.daemon import doctor_network
from wherry.daemon.findings import Check, Finding, Grade
from wherry.daemon.instance import Instance, reachable_by, unprivileged_uid


def _read(path: str) -> str:
    with suppress(OSError):
        return Path(path).read_text().strip()
    return ""


def _version(argv: Sequence[str]) -> str:
    with suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(argv, capture_output=True, text=True, timeout=10, check=False)
        found = re.search(r"\d+\.\d+(\.\d+)?", done.stdout + done.stderr)
        return found[0] if found else "unknown"
    return ""


def python_version(instance: Instance) -> Finding:
    """Python 3.11 or newer."""
    seen = ".".join(str(part) for part in sys.version_info[:3])
    return Finding("python", Grade.PASS, f"Python {seen}")


def is_root(instance: Instance) -> Finding:
    """Real containers need root."""
    if os.geteuid() == 0:
        return Finding("root", Grade.PASS, "running as root")
    return Finding(
        "root", Grade.WARN, f"running as user {os.geteuid()}",
        "namespaces, mounts and nftables need root; without it only simulated nodes run",
        "sudo wherry up   (or, simulated: wherry server --simulated 2)",
    )  # fmt: skip


def _program(name: str, package: str, least: tuple[int, ...], why: str) -> Check:
    def check(instance: Instance) -> Finding:
        path = shutil.which(name)
        fix = f"apt-get install {package}"
        if path is None:
            return Finding(name, Grade.FAIL, f"{name} is not in PATH", why, fix)
        version = _version([path, "--version"])
        numbers = tuple(int(part) for part in re.findall(r"\d+", version))
        if numbers and numbers < least:
            wanted = ".".join(str(part) for part in least)
            return Finding(name, Grade.WARN, f"{name} {version} is older than {wanted}", why, fix)
        return Finding(name, Grade.PASS, f"{name} {version} ({path})")

    return check


def runtime(instance: Instance) -> Finding:
    """An OCI runtime."""
    for name in ("crun", "runc"):
        if path := shutil.which(name):
            return Finding("oci-runtime", Grade.PASS, f"{name} {_version([path, '--version'])} ({path})")
    why = "the OCI runtime makes the containers"
    return Finding("oci-runtime", Grade.FAIL, "neither crun nor runc is in PATH", why, "apt-get install crun")


def library(instance: Instance) -> Finding:
    """libnftables."""
    import ctypes

    try:
        ctypes.CDLL("libnftables.so.1")
    except OSError:
        why = "services, masquerade and published ports are nftables rules"
        return Finding("nftables", Grade.FAIL, "libnftables.so.1 cannot be loaded", why, "apt-get install libnftables1")
    return Finding("nftables", Grade.PASS, "libnftables.so.1")


def seccomp(instance: Instance) -> Finding:
    """The default seccomp profile."""
    if Path("/usr/share/containers/seccomp.json").exists():
        return Finding("seccomp", Grade.PASS, "/usr/share/containers/seccomp.json")
    why = "containers get a filter of system calls by default; without the profile they are not started"
    fix = "apt-get install golang-github-containers-common"
    return Finding("seccomp", Grade.FAIL, "no /usr/share/containers/seccomp.json", why, fix)


def overlay(instance: Instance) -> Finding:
    """overlayfs."""
    if "overlay" in _read("/proc/filesystems"):
        return Finding("overlayfs", Grade.PASS, "the kernel has overlayfs")
    why = "images are layers that overlayfs puts together"
    return Finding("overlayfs", Grade.FAIL, "the kernel has no overlayfs", why, "modprobe overlay")


def cgroups(instance: Instance) -> Finding:
    """cgroup v2, or v1 with the controllers that limits need."""
    if Path("/sys/fs/cgroup/cgroup.controllers").exists():
        controllers = _read("/sys/fs/cgroup/cgroup.controllers").split()
        missing = [name for name in ("cpu", "memory", "pids") if name not in controllers]
        if missing:
            return Finding(
                "cgroups", Grade.WARN, f"cgroup v2 without {', '.join(missing)}", "their limits cannot be kept",
                "boot with cgroup_enable=memory (or the controller's own switch)",
            )  # fmt: skip
        return Finding("cgroups", Grade.PASS, "cgroup v2")
    missing = [name for name in ("cpu", "memory", "pids") if not Path(f"/sys/fs/cgroup/{name}").exists()]
    if missing:
        return Finding(
            "cgroups", Grade.FAIL, f"cgroup v1 without {', '.join(missing)}", "limits cannot be kept",
            "boot with systemd.unified_cgroup_hierarchy=1",
        )  # fmt: skip
    kind = "cgroup v1 (hybrid)" if Path("/sys/fs/cgroup/unified").exists() else "cgroup v1"
    return Finding("cgroups", Grade.PASS, kind)


def _limit(name: str, path: str, least: int, why: str) -> Check:
    def check(instance: Instance) -> Finding:
        text = _read(path)
        if text.isdigit() and int(text) < least:
            key = path.removeprefix("/proc/sys/").replace("/", ".")
            return Finding(name, Grade.WARN, f"{key} = {text}, less than {least}", why, f"sysctl -w {key}={least}")
        return Finding(name, Grade.PASS, text or "not limited")

    return check


def disk(instance: Instance) -> Finding:
    """Free space."""
    place = instance.root
    while not place.exists():
        place = place.parent
    free_gib = shutil.disk_usage(place).free / 2**30
    if free_gib < 2:
        why = "images and logs need room; a full disk stops writes"
        return Finding("disk", Grade.WARN, f"{free_gib:.1f} GiB free at {place}", why, "wherry rmi, or another --root")
    return Finding("disk", Grade.PASS, f"{free_gib:.0f} GiB free at {place}")


def run_directory(instance: Instance) -> Finding:
    """Socket paths have 108 bytes."""
    longest = len(str(instance.run / "nodes" / ("n" * 40) / "docker.sock"))
    if longest > 107:
        why = "a unix socket's path has at most 107 bytes"
        return Finding(
            "sockets", Grade.FAIL, f"paths of {longest} bytes below {instance.run}", why, "unset XDG_RUNTIME_DIR"
        )
    return Finding("sockets", Grade.PASS, f"below {instance.run}")


def privileges(instance: Instance) -> Finding:
    """Whether the server can drop root."""
    import wherry

    if os.geteuid() != 0:
        return Finding("privileges", Grade.PASS, "no root to drop")
    uid = unprivileged_uid(instance.id)
    for path in (sys.executable, sys.base_prefix, Path(wherry.__file__)):
        if not reachable_by(uid, path):
            return Finding(
                "privileges", Grade.WARN, f"{path} cannot be read by other users",
                "the API server and the registry then keep running as root instead of a user of their own",
                "install wherry, and a Python, where every user may read (a directory of mode 755, not below /root)",
            )  # fmt: skip
    return Finding("privileges", Grade.PASS, f"server and registry run as user {uid}")


def loopback(instance: Instance) -> Finding:
    """Loopback works."""
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", 0))
        except OSError as error:
            return Finding("loopback", Grade.FAIL, str(error), "the API listens on it", "ip link set lo up")
    return Finding("loopback", Grade.PASS, "127.0.0.1")


CHECKS: Sequence[Check] = (
    python_version,
    is_root,
    privileges,
    runtime,
    _program("conmon", "conmon", (2, 1), "it keeps a container's output and exit status while wherry restarts"),
    library,
    seccomp,
    overlay,
    cgroups,
    doctor_network.forwarding,
    doctor_network.firewalls,
    doctor_network.own_rules,
    doctor_network.resolvers,
    loopback,
    run_directory,
    doctor_network.group,
    disk,
    _limit("inotify", "/proc/sys/fs/inotify/max_user_instances", 128, "each engine watches directories"),
    _limit("keys", "/proc/sys/kernel/keys/maxkeys", 200, "each container takes a session keyring"),
)
"""In the order in which they are shown."""


def examine(instance: Instance) -> Sequence[Finding]:
    """Run all checks; none changes anything."""
    return [check(instance) for check in CHECKS]
