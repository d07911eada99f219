"""What people ask of Docker's API, as values of the engine. What is not supported is refused by its own name."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from wherry.doors.docker.endpoints import read_bindings, read_exposed, read_networks
from wherry.doors.docker.mounts import read_mounts
from wherry.doors.docker.options import read_devices, read_health, read_io_rates, read_log, read_ulimits
from wherry.engine.types import ContainerSpec, Dns, ExecSpec, Limits, SandboxSpec
from wherry.errors import BadRequest, Unsupported

Json = Mapping[str, Any]

_Words = str | list[str] | None
_Number = int | float | None
_Rates = list[dict[str, Any]] | None

BODY: Mapping[str, Any] = {
    "Image": str | None, "Cmd": _Words, "Entrypoint": _Words, "Env": list[str] | None, "WorkingDir": str | None,
    "User": str | None, "Hostname": str | None, "Labels": dict[str, str] | None, "Tty": bool | None,
    "OpenStdin": bool | None, "StdinOnce": bool | None, "StopSignal": str | None, "StopTimeout": int | None,
    "Volumes": dict[str, Any] | None, "HostConfig": dict[str, Any] | None, "NetworkingConfig": dict[str, Any] | None,
    "AttachStdin": bool | None, "AttachStdout": bool | None, "AttachStderr": bool | None,
    "ExposedPorts": dict[str, Any] | None, "ArgsEscaped": bool | None, "Healthcheck": dict[str, Any] | None,
}  # fmt: skip
"""Fields of the body that we know, with their types. The last five change nothing for the engine: the client's own choice
of streams, ports that an image merely names."""

HOST: Mapping[str, Any] = {
    "Binds": list[str] | None, "Mounts": list[dict[str, Any]] | None, "Tmpfs": dict[str, str] | None,
    "NetworkMode": str | None, "AutoRemove": bool | None, "RestartPolicy": dict[str, Any] | None, "Memory": _Number,
    "MemorySwap": _Number, "NanoCpus": _Number, "NanoCPUs": _Number, "CpuShares": _Number, "CpuQuota": _Number,
    "CpuPeriod": _Number, "CpusetCpus": str | None, "PidsLimit": _Number, "CapAdd": list[str] | None,
    "CapDrop": list[str] | None, "Privileged": bool | None, "ReadonlyRootfs": bool | None,
    "SecurityOpt": list[str] | None, "Dns": list[str] | None, "DnsSearch": list[str] | None,
    "DnsOptions": list[str] | None, "ExtraHosts": list[str] | None, "PidMode": str | None, "IpcMode": str | None,
    "LogConfig": dict[str, Any] | None, "GroupAdd": list[str | int] | None, "Sysctls": dict[str, str] | None,
    "PortBindings": dict[str, Any] | None, "PublishAllPorts": bool | None,
    "VolumesFrom": list[str] | None, "VolumeDriver": str | None, "Init": bool | None, "CpusetMems": str | None,
    "Ulimits": list[dict[str, Any]] | None, "Devices": list[dict[str, Any]] | None, "BlkioWeight": _Number,
    "DeviceCgroupRules": list[str] | None, "OomScoreAdj": _Number, "ShmSize": _Number, "MemoryReservation": _Number,
    "BlkioDeviceReadBps": _Rates, "BlkioDeviceWriteBps": _Rates, "BlkioDeviceReadIOps": _Rates,
    "BlkioDeviceWriteIOps": _Rates,
}  # fmt: skip
"""Fields of HostConfig that are carried out."""

EXEC: Mapping[str, Any] = {
    "AttachStdin": bool | None, "AttachStdout": bool | None, "AttachStderr": bool | None, "Tty": bool | None,
    "Cmd": _Words, "Env": list[str] | None, "WorkingDir": str | None, "User": str | None, "Privileged": bool | None,
    "DetachKeys": str | None, "Detach": bool | None, "ConsoleSize": list[int] | None, "Container": str | None,
}  # fmt: skip
"""Fields of an exec that are carried out, or that only repeat what is known."""

OPTIONS: Mapping[str, str] = {
    "Links": "--link", "DeviceRequests": "--gpus", "UsernsMode": "--userns", "ContainerIDFile": "--cidfile",
    "OomKillDisable": "--oom-kill-disable", "CgroupParent": "--cgroup-parent", "Runtime": "--runtime",
    "StorageOpt": "--storage-opt", "Domainname": "--domainname",
    "MacAddress": "--mac-address", "UTSMode": "--uts", "CgroupnsMode": "--cgroupns", "Isolation": "--isolation",
    "MemorySwappiness": "--memory-swappiness",
}  # fmt: skip
"""What people call the fields that are refused."""

HARMLESS: Mapping[str, Sequence[Any]] = {
    "ConsoleSize": (),
    "MemorySwappiness": (-1,),
    "Isolation": ("default",),
    "CgroupnsMode": ("private", "host"),
}
"""Fields of HostConfig that clients send by default, with the values that ask for nothing (besides the empty ones)."""


def _is_empty(value: Any) -> bool:
    return value is None or value == "" or value == 0 or value == [] or value == {} or value == [0, 0]


def _check(body: Json, known: Mapping[str, Any], where: str) -> None:
    """Refuse what we do not have by its name (Unsupported), and what has another type than Docker's (BadRequest)."""
    for name, value in body.items():
        if name in known:
            try:
                msgspec.convert(value, known[name])
            except msgspec.ValidationError as error:
                raise BadRequest(f"{where}{name}: {error}") from None
        elif not _is_empty(value) and name != "ConsoleSize" and value not in HARMLESS.get(name, ()):
            called = f" ({OPTIONS[name]})" if name in OPTIONS else ""
            raise Unsupported(f"{where}{name}{called} is not supported by wherry: {value!r}; see SCOPE.md")


def words(value: Any) -> Sequence[str] | None:
    """A command: a list, a single string, or none."""
    if value is None:
        return None
    if isinstance(value, str):
        return [value]
    return [str(each) for each in value]


def container_spec(body: Json, name: str) -> ContainerSpec:
    """Read `POST /containers/create`. Raises BadRequest for what cannot be read, Unsupported for what we do not have."""
    _check(body, BODY, "")
    host: Json = body.get("HostConfig") or {}
    _check(host, HOST, "HostConfig.")
    image = body.get("Image")
    if not image:
        raise BadRequest("Image: no image is named")
    stop = body.get("StopTimeout")
    entrypoint = words(body.get("Entrypoint"))
    security = _security(host.get("SecurityOpt") or ())
    return ContainerSpec(
        name=name,
        image=str(image),
        entrypoint=entrypoint or None,
        command=words(body.get("Cmd")),
        env=[str(each) for each in body.get("Env") or ()],
        workdir=str(body.get("WorkingDir") or ""),
        user=str(body.get("User") or ""),
        groups=[_number("GroupAdd", each) for each in host.get("GroupAdd") or ()],
        sandbox_spec=_sandbox(body, host),
        mounts=read_mounts(body, host),
        image_volumes=True,
        limits=read_limits(host),
        labels={str(key): str(value) for key, value in (body.get("Labels") or {}).items()},
        cap_add=[_capability(each) for each in host.get("CapAdd") or ()],
        cap_drop=[_capability(each) for each in host.get("CapDrop") or ()],
        privileged=bool(host.get("Privileged")),
        read_only_root=bool(host.get("ReadonlyRootfs")),
        no_new_privileges=security["no-new-privileges"] == "true",
        seccomp="unconfined" if host.get("Privileged") or security["seccomp"] == "unconfined" else "default",
        tty=bool(body.get("Tty")),
        stdin=bool(body.get("OpenStdin")),
        stdin_once=bool(body.get("StdinOnce")),
        stop_signal=str(body.get("StopSignal") or ""),
        stop_grace_s=10.0 if stop is None else float(stop),
        restart=read_restart(host.get("RestartPolicy") or {}),
        auto_remove=bool(host.get("AutoRemove")),
        init=bool(host.get("Init")),
        ulimits=read_ulimits(host),
        devices=read_devices(host),
        device_rules=[str(each) for each in host.get("DeviceCgroupRules") or ()],
        oom_score_adj=int(host.get("OomScoreAdj") or 0),
        health=read_health(body.get("Healthcheck"), None),
        **read_log(host.get("LogConfig") or {}),
    )


def _number(field: str, value: Any) -> int:
    text = str(value)
    if not text.isdigit():
        raise Unsupported(f"HostConfig.{field}: {text!r} is not a number; groups by name are not supported here")
    return int(text)


def _capability(name: str) -> str:
    upper = str(name).upper()
    return upper if upper == "ALL" or upper.startswith("CAP_") else f"CAP_{upper}"


def _sandbox(body: Json, host: Json) -> SandboxSpec:
    network, joins = read_networks(body.get("NetworkingConfig") or {}, str(host.get("NetworkMode") or ""))
    if network.startswith("container:"):
        for field, called in (
            ("PortBindings", "port publishing"),
            ("Dns", "dns"),
            ("ExtraHosts", "custom host-to-IP mapping"),
        ):
            if host.get(field):
                raise BadRequest(f"conflicting options: {called} and the container type network mode")
        if joins:
            raise BadRequest("conflicting options: networks and the container type network mode")
        network = "none"  # of its own, should the other one's not be had
    pid, ipc = str(host.get("PidMode") or ""), str(host.get("IpcMode") or "")
    if pid not in ("", "host") and not pid.startswith("container:"):
        raise BadRequest(f"invalid PID mode: {pid}")
    if ipc not in ("", "private", "host", "shareable"):
        raise Unsupported(f"HostConfig.IpcMode {ipc!r} (--ipc): private, shareable and host are supported by wherry")
    hosts: dict[str, str] = {}
    for line in host.get("ExtraHosts") or ():
        name, _, address = str(line).partition("=" if "=" in str(line) else ":")
        hosts[name] = address
    return SandboxSpec(
        id="",
        hostname=str(body.get("Hostname") or ""),
        network=network,
        networks=joins,
        ports=read_bindings(host.get("PortBindings") or {}),
        exposed=read_exposed(body.get("ExposedPorts")),
        publish_all=bool(host.get("PublishAllPorts")),
        dns=Dns(list(host.get("Dns") or ()), list(host.get("DnsSearch") or ()), list(host.get("DnsOptions") or ())),
        hosts=hosts,
        sysctls={str(key): str(value) for key, value in (host.get("Sysctls") or {}).items()},
        host_ipc=ipc == "host",
        shm_bytes=int(host.get("ShmSize") or 0),
        host_pid=pid == "host",
    )


def _security(options: Sequence[str]) -> dict[str, str]:
    found = {"no-new-privileges": "false", "seccomp": "default"}
    for option in options:
        name, _, value = str(option).partition("=" if "=" in str(option) else ":")
        if name == "no-new-privileges":
            found[name] = value or "true"
        elif name == "seccomp" and value in ("unconfined", "builtin", "default"):
            found[name] = value
        elif (name, value) not in (("label", "disable"), ("apparmor", "unconfined")):
            raise Unsupported(f"HostConfig.SecurityOpt {option!r} is not supported by wherry")
    return found


def read_limits(host: Json) -> Limits:
    """Read the limits of a HostConfig. Raises BadRequest."""
    nano = int(host.get("NanoCpus") or host.get("NanoCPUs") or 0)
    period = int(host.get("CpuPeriod") or 100_000)
    quota = int(host.get("CpuQuota") or 0) or (nano * period // 1_000_000_000)
    pids, swap = host.get("PidsLimit"), int(host.get("MemorySwap") or 0)
    memory = int(host.get("Memory") or 0)
    if memory and memory < 6 * 1024 * 1024:
        raise BadRequest("Minimum memory limit allowed is 6MB")
    if swap > 0 and not memory:
        raise BadRequest("You should always set the Memory limit when using Memoryswap limit, see usage")
    if swap > 0 and swap < memory:
        raise BadRequest("Minimum memoryswap limit should be larger than memory limit, see usage")
    return Limits(
        cpu_quota_us=quota or None,
        cpu_period_us=period,
        cpu_shares=int(host.get("CpuShares") or 0) or None,
        memory_bytes=memory or None,
        memory_swap_bytes=swap or None,
        pids=int(pids) if pids and int(pids) > 0 else None,
        cpuset_cpus=str(host.get("CpusetCpus") or ""),
        cpuset_mems=str(host.get("CpusetMems") or ""),
        memory_reservation_bytes=int(host.get("MemoryReservation") or 0) or None,
        blkio_weight=int(host.get("BlkioWeight") or 0) or None,
        io_rates=read_io_rates(host),
    )


def read_restart(policy: Json) -> str:
    """Read a RestartPolicy. Raises BadRequest."""
    name = str(policy.get("Name") or "no")
    if name == "on-failure":
        most = policy.get("MaximumRetryCount") or 0
        if not isinstance(most, int) or most < 0:
            raise BadRequest(f"HostConfig.RestartPolicy.MaximumRetryCount: {most!r} is not a number of times")
        return f"on-failure:{most}"
    if name not in ("no", "always", "unless-stopped"):
        raise BadRequest(f"invalid restart policy: {name!r}")
    return name


def exec_spec(body: Json) -> ExecSpec:
    """Read `POST /containers/NAME/exec`. Raises BadRequest, Unsupported."""
    _check(body, EXEC, "")
    argv = words(body.get("Cmd"))
    if not argv:
        raise BadRequest("No exec command specified")
    return ExecSpec(
        argv=argv,
        env=[str(each) for each in body.get("Env") or ()],
        workdir=str(body.get("WorkingDir") or ""),
        user=str(body.get("User") or ""),
        tty=bool(body.get("Tty")),
        stdin=bool(body.get("AttachStdin")),
        privileged=bool(body.get("Privileged")),
    )
