"""What people ask of Docker's API, as values of the engine. What is not supported is refused by its own name."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from wherry.doors.docker.endpoints import read_bindings, read_exposed, read_networks
from wherry.doors.docker.limits import read_limits
from wherry.doors.docker.logconfig import read_log
from wherry.doors.docker.mounts import read_mounts
from wherry.doors.docker.options import read_devices, read_health, read_ulimits
from wherry.doors.docker.security import read_security
from wherry.doors.docker.versions import NEWEST
from wherry.engine.pools import check_mac
from wherry.engine.types import ContainerSpec, Dns, ExecSpec, SandboxSpec
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
    "Domainname": str | None, "NetworkDisabled": bool | None, "MacAddress": str | None,
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
    "UsernsMode": str | None,
    "LogConfig": dict[str, Any] | None, "GroupAdd": list[str | int] | None, "Sysctls": dict[str, str] | None,
    "PortBindings": dict[str, Any] | None, "PublishAllPorts": bool | None,
    "VolumesFrom": list[str] | None, "VolumeDriver": str | None, "Init": bool | None, "CpusetMems": str | None,
    "Ulimits": list[dict[str, Any]] | None, "Devices": list[dict[str, Any]] | None, "BlkioWeight": _Number,
    "DeviceCgroupRules": list[str] | None, "OomScoreAdj": _Number, "ShmSize": _Number, "MemoryReservation": _Number,
    "BlkioDeviceReadBps": _Rates, "BlkioDeviceWriteBps": _Rates, "BlkioDeviceReadIOps": _Rates,
    "BlkioDeviceWriteIOps": _Rates, "BlkioWeightDevice": _Rates, "CgroupParent": str | None, "CgroupnsMode": str | None,
    "CpuRealtimePeriod": _Number, "CpuRealtimeRuntime": _Number, "KernelMemory": _Number, "KernelMemoryTCP": _Number,
    "MemorySwappiness": _Number, "OomKillDisable": bool | None, "CpuPercent": _Number, "ContainerIDFile": str | None,
    "Annotations": dict[str, str] | None, "Links": list[str] | None, "UTSMode": str | None, "Runtime": str | None,
    "MaskedPaths": list[str] | None, "ReadonlyPaths": list[str] | None,
}  # fmt: skip
"""Fields of HostConfig that are carried out."""

ECHOED = (
    "Annotations", "Binds", "Cgroup", "CgroupParent", "CgroupnsMode", "ConsoleSize", "ContainerIDFile", "Dns", "DnsOptions",
    "DnsSearch", "ExtraHosts", "GroupAdd", "IpcMode", "Isolation", "Mounts", "NanoCpus", "PidMode", "SecurityOpt", "Sysctls",
    "Tmpfs", "UTSMode", "VolumeDriver", "VolumesFrom",
)  # fmt: skip
ECHOED_CONFIG = (
    "AttachStdin", "AttachStdout", "AttachStderr", "Domainname", "Healthcheck", "MacAddress", "NetworkDisabled",
    "StopTimeout", "Volumes",
)  # fmt: skip
"""Fields that `inspect` shows as they were written."""

ON_UNHEALTHY = "wherry.on-unhealthy"
"""A label of ours: what is done with a container whose health check fails, `stop` or `restart`."""
_VERSION = re.compile(r"/v(\d+)\.(\d+)/")

EXEC: Mapping[str, Any] = {
    "AttachStdin": bool | None, "AttachStdout": bool | None, "AttachStderr": bool | None, "Tty": bool | None,
    "Cmd": _Words, "Env": list[str] | None, "WorkingDir": str | None, "User": str | None, "Privileged": bool | None,
    "DetachKeys": str | None, "Detach": bool | None, "ConsoleSize": list[int] | None, "Container": str | None,
}  # fmt: skip
"""Fields of an exec that are carried out, or that only repeat what is known."""

OPTIONS: Mapping[str, str] = {
    "DeviceRequests": "--gpus", "UsernsMode": "--userns", "StorageOpt": "--storage-opt", "Isolation": "--isolation",
}  # fmt: skip
"""What people call the fields that are refused."""

HARMLESS: Mapping[str, Sequence[Any]] = {"ConsoleSize": (), "Isolation": ("default",)}
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


def check_types(host: Json) -> None:
    """Raise BadRequest, Unsupported for fields of a HostConfig that are not as Docker has them."""
    _check(host, HOST, "HostConfig.")


def version_of(path: str) -> tuple[int, int]:
    """Say which version of the API a client speaks; the newest where it names none."""
    found = _VERSION.match(path)
    return (int(found[1]), int(found[2])) if found else NEWEST


def words(value: Any) -> Sequence[str] | None:
    """A command: a list, a single string, or none."""
    if value is None:
        return None
    if isinstance(value, str):
        return [value]
    return [str(each) for each in value]


def container_spec(body: Json, name: str, version: tuple[int, int] = NEWEST) -> ContainerSpec:
    """Read `POST /containers/create`. Raises BadRequest for what cannot be read, Unsupported for what we do not have."""
    body = dict(body)
    runtime = body.pop("Runtime", None)  # docker-py writes it here
    _check(body, BODY, "")
    host: Json = body.get("HostConfig") or {}
    if runtime and not host.get("Runtime"):
        host = {**host, "Runtime": runtime}
    _check(host, HOST, "HostConfig.")
    image = body.get("Image")
    if not image:
        raise BadRequest("Image: no image is named")
    stop = body.get("StopTimeout")
    entrypoint = words(body.get("Entrypoint"))
    security = read_security(host.get("SecurityOpt") or ())
    namespace = str(host.get("CgroupnsMode") or ("host" if version < (1, 41) else ""))
    if namespace not in ("", "private", "host"):
        raise BadRequest(f"invalid cgroup namespace mode: {namespace}")
    workdir = str(body.get("WorkingDir") or "")
    if workdir and not workdir.startswith("/"):
        raise BadRequest(f"the working directory '{workdir}' is invalid, it needs to be an absolute path")
    labels = {str(key): str(value) for key, value in (body.get("Labels") or {}).items()}
    annotations = {str(key): str(value) for key, value in (host.get("Annotations") or {}).items()}
    if "" in annotations:
        raise BadRequest("invalid Annotations: the empty string is not permitted as an annotation key")
    return ContainerSpec(
        name=name,
        image=str(image),
        entrypoint=entrypoint or None,
        command=words(body.get("Cmd")),
        env=[str(each) for each in body.get("Env") or ()],
        workdir=workdir,
        user=str(body.get("User") or ""),
        groups=[int(each) if str(each).isdecimal() else str(each) for each in host.get("GroupAdd") or ()],
        sandbox_spec=_sandbox(body, host),
        mounts=read_mounts(body, host, version),
        image_volumes=True,
        limits=read_limits(host),
        labels=labels,
        cap_add=[_capability(each) for each in host.get("CapAdd") or ()],
        cap_drop=[_capability(each) for each in host.get("CapDrop") or ()],
        privileged=bool(host.get("Privileged")),
        read_only_root=bool(host.get("ReadonlyRootfs")),
        no_new_privileges=security.no_new_privileges,
        seccomp="unconfined" if host.get("Privileged") else security.seccomp,
        apparmor=security.apparmor,
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
        runtime=str(host.get("Runtime") or "").removeprefix("io.containerd.runc.v2"),
        cgroup_namespace=namespace,
        annotations=annotations,
        masked_paths=host.get("MaskedPaths"),
        read_only_paths=host.get("ReadonlyPaths"),
        asked=_asked(body, host),
        on_unhealthy=labels.get(ON_UNHEALTHY, ""),
        **read_log(host.get("LogConfig") or {}),
    )


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
    if ipc not in ("", "none", "private", "host", "shareable") and not ipc.startswith("container:"):
        raise BadRequest(f"invalid IPC mode: {ipc}")
    uts = str(host.get("UTSMode") or "")
    if uts not in ("", "host"):
        raise BadRequest(f"invalid UTS mode: {uts}")
    if uts == "host" and (body.get("Hostname") or body.get("Domainname")):
        raise BadRequest("conflicting options: hostname and the UTS mode")
    if body.get("NetworkDisabled"):
        if joins:
            raise BadRequest("conflicting options: networks and NetworkDisabled")
        network = "none"
    hosts: list[tuple[str, str]] = []
    for line in host.get("ExtraHosts") or ():
        name, _, address = str(line).partition("=" if "=" in str(line) else ":")
        hosts.append((name, address))
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
        no_shm=ipc == "none",
        shareable_ipc=ipc == "shareable",
        host_uts=uts == "host",
        domain=str(body.get("Domainname") or ""),
        cgroup_parent=str(host.get("CgroupParent") or ""),
        mac=_mac(body),
        shm_bytes=int(host.get("ShmSize") or 0),
        host_pid=pid == "host",
        userns=str(host.get("UsernsMode") or ""),
    )


def read_restart(policy: Json) -> str:
    """Read a RestartPolicy. Raises BadRequest."""
    name, most = str(policy.get("Name") or "no"), policy.get("MaximumRetryCount") or 0
    if name not in ("no", "always", "unless-stopped", "on-failure"):
        raise BadRequest(
            f"invalid restart policy: unknown policy '{name}'; use one of 'no', 'always', 'on-failure', or 'unless-stopped'"
        )
    if not isinstance(most, int):
        raise BadRequest(f"HostConfig.RestartPolicy.MaximumRetryCount: {most!r} is not a number of times")
    if most and name != "on-failure":
        hint = " and cannot be negative" if most < 0 else ""
        raise BadRequest(f"invalid restart policy: maximum retry count can only be used with 'on-failure'{hint}")
    if most < 0:
        raise BadRequest("invalid restart policy: maximum retry count cannot be negative")
    return f"on-failure:{most}" if name == "on-failure" else name


def _mac(body: Json) -> str:
    """Read the hardware address: the container's, or (since 1.44) that of its place on the default network."""
    endpoints = (body.get("NetworkingConfig") or {}).get("EndpointsConfig") or {}
    places = [endpoints.get(name) or {} for name in ("default", "bridge")]
    own, *others = (str(each.get("MacAddress") or "") for each in (body, *places))
    if own and any(other and other != own for other in others):
        raise BadRequest(
            "conflicting MAC address specified: the container-wide MAC address and that of the endpoint must be the same"
        )
    return check_mac(own or next((other for other in others if other), ""))


def _asked(body: Json, host: Json) -> Json:
    """Keep what is shown again as it was written, where the engine's own values say it in other words."""
    kept = {name: value for name, value in host.items() if name in ECHOED and not _is_empty(value)}
    return {"Config": {name: body[name] for name in ECHOED_CONFIG if body.get(name)}, "HostConfig": kept}


def named_as(body: Json, known: Mapping[str, Any]) -> dict[str, Any]:
    """Write fields as we know them: Docker takes them in any case, and docker-py sends `detachKeys`."""
    names = {name.lower(): name for name in known}
    return {name if name in known else names.get(name.lower(), name): value for name, value in body.items()}


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
