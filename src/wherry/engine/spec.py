"""From a container's spec, its image's config and what the machine has given it to an OCI runtime-spec. Pure.

Source: OCI runtime-spec 1.0.2; the defaults are Docker's ("docker run" reference; moby's oci/defaults).
"""

import posixpath
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from wherry.engine.types import ContainerSpec, ExecSpec, Limits, Mount
from wherry.engine.users import Identity
from wherry.errors import Cause, Invalid
from wherry.host.idmaps import IdRange

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
DEFAULT_SHM_BYTES = 64 * 1024 * 1024
INIT = "/dev/docker-init"
"""Where the first process of a container with `init` lies: in /dev, so nothing is written to its root."""

MASKED_PATHS = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
)
READ_ONLY_PATHS = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")

_DEVICES = (  # type, major, minor (None: any), access
    ("c", None, None, "m"),
    ("b", None, None, "m"),
    ("c", 1, 3, "rwm"),  # null
    ("c", 1, 5, "rwm"),  # zero
    ("c", 1, 7, "rwm"),  # full
    ("c", 1, 8, "rwm"),  # random
    ("c", 1, 9, "rwm"),  # urandom
    ("c", 5, 0, "rwm"),  # tty
    ("c", 5, 1, "rwm"),  # console
    ("c", 5, 2, "rwm"),  # ptmx
    ("c", 136, None, "rwm"),  # pts
)
_VARIABLE = re.compile(r"[^=\0]+")
_TMPFS_OPTIONS = ("noexec", "nosuid", "nodev")


@dataclass(frozen=True, slots=True)
class Device:
    """A device node of the machine that a container sees as `path`; `rights` are some of r, w, m."""

    path: str
    kind: str
    major: int
    minor: int
    mode: int
    rights: str = "rwm"
    uid: int = 0
    gid: int = 0


@dataclass(frozen=True, slots=True)
class Place:
    """What the machine gives a container: its root, namespaces, cgroup, files and rights.

    `namespaces` are paths by kind (network, ipc, uts, pid); a kind that is not there is new if it is in `fresh`, else
    the machine's. `files` are paths on the machine by their target (/etc/hosts ...). `shm` is the sandbox's shared
    memory, "" for one of its own, None for none at all. `sources` are the paths on the machine of mounts, by their
    target; a bind that is not among them has the path that it names. `seccomp_filter` is the compiled filter (base64)
    for a runtime that takes one; then `seccomp` is not written out. `init`: the machine's program that is to be the
    first process, or "". `ids`: those of the user namespace that is among `namespaces`.
    """

    root: str
    user: Identity
    cgroup: str
    hostname: str = ""
    namespaces: Mapping[str, str] = field(default_factory=dict[str, str])
    fresh: Sequence[str] = ("pid", "mount")
    files: Mapping[str, str] = field(default_factory=dict[str, str])
    shm: str | None = ""
    sources: Mapping[str, str] = field(default_factory=dict[str, str])
    capabilities: Sequence[str] = ()
    seccomp: Mapping[str, Any] | None = None
    seccomp_filter: str = ""
    devices: Sequence[Device] = ()
    device_rules: Sequence[Mapping[str, Any]] = ()
    rlimits: Sequence[Mapping[str, Any]] = ()
    block_io: Mapping[str, Any] = field(default_factory=dict[str, Any])
    oom_score_adj: int = 0
    init: str = ""
    ids: IdRange | None = None


def command_line(spec: ContainerSpec, image: Mapping[str, Any]) -> list[str]:
    """Merge entrypoint and command as Docker does: a new entrypoint drops the image's command. Raises Invalid if empty."""
    config = _config(image)
    entrypoint: list[str] = list(spec.entrypoint if spec.entrypoint is not None else config.get("Entrypoint") or ())
    if entrypoint == [""]:  # `--entrypoint ""` takes the image's away
        entrypoint = []
    command = list(spec.command or ())
    if not command and spec.entrypoint is None:
        command = list(config.get("Cmd") or ())
    argv = entrypoint + command
    if not argv or not argv[0]:
        raise Invalid(
            f"container {spec.name}: no command: neither the image nor the request has an entrypoint or a command",
            causes=[Cause("command", "Required", "no command specified")],
        )
    if any("\0" in word for word in argv):
        raise Invalid(f"container {spec.name}: the command has a NUL character")
    return argv


def environment(spec: ContainerSpec, image: Mapping[str, Any], *, hostname: str, home: str) -> list[str]:
    """Merge the environment: defaults, the image's, the spec's; a spec's entry without `=` takes a variable away."""
    merged = {"PATH": DEFAULT_PATH}
    if hostname:
        merged["HOSTNAME"] = hostname
    if spec.tty:
        merged["TERM"] = "xterm"
    _merge(merged, _config(image).get("Env") or ())
    _merge(merged, spec.env)
    merged.setdefault("HOME", home)
    return [f"{name}={value}" for name, value in merged.items()]


def working_directory(spec: ContainerSpec, image: Mapping[str, Any]) -> str:
    """Say where it starts. Raises Invalid for a path that is not absolute."""
    path = spec.workdir or _config(image).get("WorkingDir") or "/"
    if not path.startswith("/"):
        raise Invalid(f"container {spec.name}: working directory {path!r} is not absolute: begin it with /")
    return posixpath.normpath(path)


def user_of(spec: ContainerSpec, image: Mapping[str, Any]) -> str:
    """Say whom it runs as, still by name."""
    return spec.user or _config(image).get("User") or ""


def stop_signal_of(spec: ContainerSpec, image: Mapping[str, Any]) -> str:
    """Say which signal asks it to end."""
    return spec.stop_signal or _config(image).get("StopSignal") or "SIGTERM"


def make(spec: ContainerSpec, image: Mapping[str, Any], place: Place) -> dict[str, Any]:
    """Make the runtime-spec of a container. Raises Invalid with the field that cannot be."""
    mounts = _mounts(spec, place)
    linux: dict[str, Any] = {
        "cgroupsPath": place.cgroup,
        "namespaces": _namespaces(place),
        "resources": resources(spec.limits)
        | {"devices": _device_rules(spec.privileged, place)}
        | ({"blockIO": dict(place.block_io)} if place.block_io else {}),
    }
    masked, sealed = masked_paths(spec), read_only_paths(spec)
    linux |= {"maskedPaths": list(masked)} if masked else {}
    linux |= {"readonlyPaths": list(sealed)} if sealed else {}
    if place.seccomp is not None and not place.seccomp_filter:
        linux["seccomp"] = place.seccomp
    if place.devices:
        linux["devices"] = [
            {
                "path": d.path, "type": d.kind, "major": d.major, "minor": d.minor, "fileMode": d.mode & 0o777,
                "uid": d.uid, "gid": d.gid,
            }
            for d in place.devices
        ]  # fmt: skip
    if place.ids is not None:
        maps = [{"containerID": 0, "hostID": place.ids.base, "size": place.ids.size}]
        linux |= {"uidMappings": maps, "gidMappings": maps}
    argv = command_line(spec, image)
    if place.init:
        argv = [INIT, "--", *argv]
    spreads = {word.lstrip("r") for mount in spec.mounts for word in mount.options}
    if "shared" in spreads or "slave" in spreads:
        linux["rootfsPropagation"] = "rshared" if "shared" in spreads else "rslave"
    return {
        "ociVersion": "1.0.2",
        "annotations": dict(spec.annotations)
        | ({"run.oci.seccomp_bpf_data": place.seccomp_filter} if place.seccomp_filter else {}),
        "root": {"path": place.root, "readonly": spec.read_only_root},
        "process": _process(
            argv,
            environment(spec, image, hostname=place.hostname, home=place.user.home),
            working_directory(spec, image),
            place.user,
            spec,
            place,
        ),
        "mounts": mounts,
        "linux": linux,
    }


def masked_paths(spec: ContainerSpec) -> Sequence[str]:
    """Say which paths of the system are hidden: those it names, none for a privileged one, else the usual ones."""
    return spec.masked_paths if spec.masked_paths is not None else () if spec.privileged else MASKED_PATHS


def read_only_paths(spec: ContainerSpec) -> Sequence[str]:
    """Say which paths of the system it may not write."""
    return spec.read_only_paths if spec.read_only_paths is not None else () if spec.privileged else READ_ONLY_PATHS


def exec_process(container: Mapping[str, Any], spec: ExecSpec, user: Identity | None) -> dict[str, Any]:
    """Make the process of an exec from the container's own (`process` of its runtime-spec). Raises Invalid.

    `user` None means the container's. A privileged exec has all capabilities of the bounding set it may have.
    """
    if not spec.argv or not spec.argv[0]:
        raise Invalid("exec: no command", causes=[Cause("command", "Required", "no command specified")])
    if spec.workdir and not spec.workdir.startswith("/"):
        raise Invalid(f"exec: working directory {spec.workdir!r} is not absolute: begin it with /")
    process = dict(container)
    merged: dict[str, str] = {}
    _merge(merged, container["env"])
    if spec.tty:
        merged.setdefault("TERM", "xterm")
    if user is not None:
        process["user"] = _user(user)
        merged["HOME"] = user.home
        process["capabilities"] = _capability_sets(container["capabilities"]["bounding"], user.uid)
    _merge(merged, spec.env)
    process |= {
        "args": list(spec.argv),
        "env": [f"{name}={value}" for name, value in merged.items()],
        "cwd": posixpath.normpath(spec.workdir) if spec.workdir else container["cwd"],
        "terminal": spec.tty,
    }
    return process


def resources(limits: Limits) -> dict[str, Any]:
    """Turn limits into `linux.resources`, which the runtime lays on cgroup v1 or v2. Raises Invalid."""
    _check(limits)
    made: dict[str, Any] = {}
    cpu: dict[str, Any] = {}
    if limits.cpu_quota_us is not None:
        cpu |= {"quota": limits.cpu_quota_us, "period": limits.cpu_period_us}
    if limits.cpu_shares is not None:
        cpu["shares"] = max(2, limits.cpu_shares)
    if limits.cpuset_cpus:
        cpu["cpus"] = limits.cpuset_cpus
    if limits.cpuset_mems:
        cpu["mems"] = limits.cpuset_mems
    if limits.realtime_runtime_us is not None:
        cpu["realtimeRuntime"] = limits.realtime_runtime_us
    if limits.realtime_period_us is not None:
        cpu["realtimePeriod"] = limits.realtime_period_us
    memory: dict[str, Any] = {}
    if limits.memory_bytes is not None:
        memory["limit"] = limits.memory_bytes
        if limits.memory_swap_bytes is not None:
            memory["swap"] = limits.memory_swap_bytes
    if limits.memory_reservation_bytes is not None:
        memory["reservation"] = limits.memory_reservation_bytes
    if limits.swappiness is not None:
        memory["swappiness"] = limits.swappiness
    if limits.oom_kill_disable:
        memory["disableOOMKiller"] = True
    if limits.kernel_tcp_bytes is not None:
        memory["kernelTCP"] = limits.kernel_tcp_bytes
    if cpu:
        made["cpu"] = cpu
    if memory:
        made["memory"] = memory
    if limits.pids:
        made["pids"] = {"limit": limits.pids}
    return made


def _check(limits: Limits) -> None:
    least = {"cpu_quota_us": 1000, "memory_bytes": 6 * 1024 * 1024, "pids": 0, "cpu_shares": 0}
    for name, lowest in least.items():
        value = getattr(limits, name)
        if value is not None and value < lowest:
            raise Invalid(
                f"limit {name}={value}: at least {lowest} is needed", causes=[Cause(name, "Invalid", "too low")]
            )
    if not 1000 <= limits.cpu_period_us <= 1_000_000:
        raise Invalid(f"limit cpu_period_us={limits.cpu_period_us}: from 1000 to 1000000 microseconds")
    for name in ("cpuset_cpus", "cpuset_mems"):
        text = getattr(limits, name)
        if text and re.fullmatch(r"\d+(-\d+)?(,\d+(-\d+)?)*", text) is None:
            raise Invalid(f"limit {name}={text!r}: write 0-2,4")


def _config(image: Mapping[str, Any]) -> Mapping[str, Any]:
    return image.get("config") or {}


def _merge(merged: dict[str, str], entries: Sequence[str]) -> None:
    for entry in entries:
        name, equals, value = entry.partition("=")
        if _VARIABLE.fullmatch(name) is None or "\0" in value:
            raise Invalid(f"environment {entry[:40]!r}: write NAME=value", causes=[Cause("env", "Invalid", entry[:40])])
        if equals:
            merged[name] = value
        else:
            merged.pop(name, None)


def _process(
    argv: Sequence[str], env: Sequence[str], cwd: str, user: Identity, spec: ContainerSpec, place: Place
) -> dict[str, Any]:
    further: dict[str, Any] = {}
    if place.rlimits:
        further["rlimits"] = [dict(each) for each in place.rlimits]
    if place.oom_score_adj:
        further["oomScoreAdj"] = place.oom_score_adj
    if spec.apparmor:
        further["apparmorProfile"] = spec.apparmor
    return further | {
        "terminal": spec.tty,
        "args": list(argv),
        "env": list(env),
        "cwd": cwd,
        "user": _user(user),
        "noNewPrivileges": spec.no_new_privileges,
        "capabilities": _capability_sets(place.capabilities, user.uid),
    }


def _user(user: Identity) -> dict[str, Any]:
    made: dict[str, Any] = {"uid": user.uid, "gid": user.gid, "umask": 0o022}
    if user.groups:
        made["additionalGids"] = list(user.groups)
    return made


def _capability_sets(names: Sequence[str], uid: int) -> dict[str, Any]:
    """Nothing is inheritable or ambient (CVE-2022-24769); who is not root has only what set-user-id files may give."""
    held = list(names) if uid == 0 else []
    return {"bounding": list(names), "effective": held, "permitted": held, "inheritable": [], "ambient": []}


def _namespaces(place: Place) -> list[dict[str, str]]:
    made: list[dict[str, str]] = [{"type": kind, "path": path} for kind, path in place.namespaces.items()]
    return made + [{"type": kind} for kind in place.fresh if kind not in place.namespaces]


def _device_rules(privileged: bool, place: Place) -> list[dict[str, Any]]:
    if privileged:
        return [{"allow": True, "access": "rwm"}]
    rules: list[dict[str, Any]] = [{"allow": False, "access": "rwm"}]
    for kind, major, minor, access in _DEVICES:
        rule: dict[str, Any] = {"allow": True, "type": kind, "access": access}
        if major is not None:
            rule["major"] = major
        if minor is not None:
            rule["minor"] = minor
        rules.append(rule)
    for device in place.devices:
        numbers = {"major": device.major, "minor": device.minor}
        rules.append({"allow": True, "type": device.kind, **numbers, "access": device.rights})
    return rules + [dict(rule) for rule in place.device_rules]


def _mounts(spec: ContainerSpec, place: Place) -> list[dict[str, Any]]:
    """The system's mounts, the sandbox's files, the spec's mounts, parents first; a spec's mount replaces one at its place."""
    own = [_own_mount(spec, mount, place) for mount in spec.mounts]
    taken: set[str] = set()
    for mount in own:
        if mount["destination"] in taken:
            raise Invalid(f"container {spec.name}: two mounts at {mount['destination']}")
        taken.add(mount["destination"])
    given = [*_system_mounts(spec, place), *_file_mounts(place)]
    every = [mount for mount in given if mount["destination"] not in taken] + own
    return sorted(every, key=lambda mount: mount["destination"].count("/"))


def _system_mounts(spec: ContainerSpec, place: Place) -> list[dict[str, Any]]:
    sealed = ["nosuid", "noexec", "nodev"]
    mode = "rw" if spec.privileged else "ro"
    shm = [_mount("/dev/shm", "tmpfs", "shm", [*sealed, "mode=1777", f"size={DEFAULT_SHM_BYTES}"])]
    if place.shm != "":
        shm = [_mount("/dev/shm", "bind", place.shm, ["rbind", "rw", *sealed])] if place.shm else []
    return [
        _mount("/proc", "proc", "proc", sealed),
        _mount("/dev", "tmpfs", "tmpfs", ["nosuid", "strictatime", "mode=755", "size=65536k"]),
        _mount(
            "/dev/pts",
            "devpts",
            "devpts",
            ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        _mount("/sys", "sysfs", "sysfs", [*sealed, mode]),
        _mount("/sys/fs/cgroup", "cgroup", "cgroup", [*sealed, "relatime", mode]),
        _mount("/dev/mqueue", "mqueue", "mqueue", sealed),
        *shm,
    ]


def _file_mounts(place: Place) -> list[dict[str, Any]]:
    files = [_mount(target, "bind", source, ["bind", "rprivate"]) for target, source in place.files.items()]
    if place.init:
        files.append(_mount(INIT, "bind", place.init, ["bind", "ro", "rprivate"]))
    return files


def _own_mount(spec: ContainerSpec, mount: Mount, place: Place) -> dict[str, Any]:
    target = mount.target
    if not target.startswith("/") or "\0" in target:
        raise Invalid(f"container {spec.name}: mount target {target!r} is not an absolute path")
    target = posixpath.normpath(target)
    if target in ("/", "//"):
        raise Invalid(f"container {spec.name}: a mount at / would hide the image")
    mode = "ro" if mount.read_only else "rw"
    match mount.kind:
        case "tmpfs":
            usual = [word for word in _TMPFS_OPTIONS if word.removeprefix("no") not in mount.options]
            return _mount(target, "tmpfs", "tmpfs", list(dict.fromkeys([*usual, mode, *mount.options])))
        case "bind":
            if not mount.source.startswith("/"):
                raise Invalid(f"container {spec.name}: mount source {mount.source!r} is not an absolute path")
            source = place.sources.get(mount.target, mount.source)
        case "volume" | "image":
            source = place.sources[mount.target]
        case _:
            raise Invalid(f"container {spec.name}: mount kind {mount.kind!r}: use bind, tmpfs, volume or image")
    spread = [] if any(word.lstrip("r") in ("private", "shared", "slave") for word in mount.options) else ["rprivate"]
    how = "rbind" if mount.recursive else "bind"
    below = ["rro"] if mount.read_only and mount.read_only_below and mount.recursive else []
    return _mount(target, "bind", source, [how, mode, *below, *spread, *mount.options])


def _mount(target: str, kind: str, source: str, options: Sequence[str]) -> dict[str, Any]:
    return {"destination": target, "type": kind, "source": source, "options": list(options)}
