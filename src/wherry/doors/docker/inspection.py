"""`GET /containers/NAME/json`: a container with every field that was asked for, as Docker shows it."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from wherry.doors.docker.answers import Json, moment, state_of
from wherry.doors.docker.endpoints import bindings_map, exposed_map, network_mode, networks_map, ports_map
from wherry.doors.docker.limits import show_limits
from wherry.doors.docker.mounts import show_mounts
from wherry.doors.docker.options import show_health
from wherry.engine.spec import masked_paths, read_only_paths
from wherry.engine.types import Container, Health, Image

DEFAULTS: Mapping[str, Any] = {
    "Binds": None, "ContainerIDFile": "", "VolumeDriver": "", "VolumesFrom": None, "ConsoleSize": [0, 0], "CapAdd": None,
    "CapDrop": None, "CgroupnsMode": "", "Dns": [], "DnsOptions": [], "DnsSearch": [], "ExtraHosts": None, "GroupAdd": None,
    "IpcMode": "private", "Cgroup": "", "PidMode": "", "SecurityOpt": None, "UTSMode": "", "UsernsMode": "",
    "Isolation": "", "CgroupParent": "", "DeviceRequests": None, "CpuCount": 0, "CpuPercent": 0, "IOMaximumIOps": 0,
    "IOMaximumBandwidth": 0,
}  # fmt: skip
"""What Docker shows of a HostConfig's fields that nobody asked for."""


def container_inspect(container: Container, image: Image | None, *, cgroup_version: int = 2) -> Json:
    """The whole answer."""
    spec = container.spec
    argv = list(container.argv)
    networks = networks_map(container)
    default = networks.get("bridge", {}) if network_mode(container) == "bridge" else {}
    return {
        "Id": container.id,
        "Created": moment(container.created),
        "Path": argv[0] if argv else "",
        "Args": argv[1:],
        "State": state_of(container),
        "Image": container.image_id,
        "Name": f"/{container.name}",
        "RestartCount": container.restarts,
        "Driver": "overlay2",
        "Platform": "linux",
        "ResolvConfPath": container.files.get("/etc/resolv.conf", ""),
        "HostnamePath": container.files.get("/etc/hostname", ""),
        "HostsPath": container.files.get("/etc/hosts", ""),
        "LogPath": spec.log_path,
        "MountLabel": "",
        "ProcessLabel": "",
        "AppArmorProfile": spec.apparmor,
        "ExecIDs": None,
        "HostConfig": _host_config(container, cgroup_version),
        "GraphDriver": {"Name": "overlay2", "Data": None},
        "Mounts": show_mounts(container),
        "Config": _config(container, image),
        "NetworkSettings": {
            "Bridge": "",
            "SandboxID": container.sandbox,
            "SandboxKey": container.netns if container.pid else "",
            "HairpinMode": False,
            "LinkLocalIPv6Address": "",
            "LinkLocalIPv6PrefixLen": 0,
            "SecondaryIPAddresses": None,
            "SecondaryIPv6Addresses": None,
            "EndpointID": default.get("EndpointID", ""),
            "GlobalIPv6Address": default.get("GlobalIPv6Address", ""),
            "GlobalIPv6PrefixLen": default.get("GlobalIPv6PrefixLen", 0),
            "IPv6Gateway": default.get("IPv6Gateway", ""),
            "Ports": ports_map(container),
            "IPAddress": container.address if network_mode(container) == "bridge" else "",
            "IPPrefixLen": 32 if container.address and network_mode(container) == "bridge" else 0,
            "Gateway": container.gateway,
            "MacAddress": networks.get("bridge", {}).get("MacAddress", ""),
            "Networks": networks,
        },
    }


def _host_config(container: Container, cgroup_version: int) -> Json:
    spec, sandbox = container.spec, container.spec.sandbox_spec
    asked: Mapping[str, Any] = spec.asked.get("HostConfig") or {}
    policy, _, count = spec.restart.partition(":")
    usual_namespace = "private" if cgroup_version == 2 else "host"
    shown = {
        **DEFAULTS,
        "CgroupnsMode": spec.cgroup_namespace or usual_namespace,
        "UsernsMode": "host" if sandbox and sandbox.userns == "host" else "",
        "IpcMode": "host" if sandbox and sandbox.host_ipc else "private",
        "PidMode": "host" if sandbox and sandbox.host_pid else "",
        **show_limits(spec.limits),
        **asked,
        **{f"{kind.title()}Mode": f"container:{id}" for kind, id in spec.join.items()},
        "NetworkMode": network_mode(container),
        "AutoRemove": spec.auto_remove,
        "RestartPolicy": {"Name": policy, "MaximumRetryCount": int(count or 0)},
        "LogConfig": {
            "Type": spec.log_type or ("none" if spec.log_driver == "none" else "json-file"),
            "Config": dict(spec.log_options),
        },
        "Init": spec.init or None,
        "Ulimits": [{"Name": each.name, "Soft": each.soft, "Hard": each.hard} for each in spec.ulimits],
        "Devices": [
            {"PathOnHost": each.source, "PathInContainer": each.target, "CgroupPermissions": each.rights}
            for each in spec.devices
        ],
        "DeviceCgroupRules": list(spec.device_rules) or None,
        "OomScoreAdj": spec.oom_score_adj,
        "Privileged": spec.privileged,
        "ReadonlyRootfs": spec.read_only_root,
        "CapAdd": list(spec.cap_add) or None,
        "CapDrop": list(spec.cap_drop) or None,
        "Links": [f"/{id}:/{container.name}/{alias}" for alias, id in spec.links.items()] or None,
        "PortBindings": bindings_map(container),
        "PublishAllPorts": bool(sandbox and sandbox.publish_all),
        "Runtime": spec.runtime,
        "ShmSize": (sandbox.shm_bytes if sandbox else 0) or 67108864,
        "MaskedPaths": list(masked_paths(spec)) or ([] if spec.masked_paths is not None else None),
        "ReadonlyPaths": list(read_only_paths(spec)) or ([] if spec.read_only_paths is not None else None),
    }
    if asked.get("NanoCpus"):
        shown |= {"CpuQuota": 0, "CpuPeriod": 0}
    if not spec.asked:  # no client of ours made it
        shown["Binds"] = [
            f"{each.source}:{each.target}{':ro' if each.read_only else ''}"
            for each in spec.mounts
            if each.kind == "bind"
        ]
    return shown


def _config(container: Container, image: Image | None) -> Json:
    spec, sandbox = container.spec, container.spec.sandbox_spec
    own: Mapping[str, Any] = (image.config.get("config") or {}) if image else {}
    asked: Mapping[str, Any] = spec.asked.get("Config") or {}
    shares = sandbox is not None and (sandbox.network == "host" or sandbox.host_uts)
    volumes = {**(own.get("Volumes") or {}), **(asked.get("Volumes") or {})}
    shown: Json = {
        "Hostname": (sandbox.hostname if sandbox else "") or (os.uname().nodename if shares else container.id[:12]),
        "Domainname": sandbox.domain if sandbox else "",
        "User": spec.user or own.get("User") or "",
        "AttachStdin": bool(asked.get("AttachStdin")),
        "AttachStdout": bool(asked.get("AttachStdout", not spec.asked)),
        "AttachStderr": bool(asked.get("AttachStderr", not spec.asked)),
        "ExposedPorts": exposed_map(container),
        "Tty": spec.tty,
        "OpenStdin": spec.stdin,
        "StdinOnce": spec.stdin_once,
        "Env": _environment(spec.env, own.get("Env") or ()),
        "Cmd": list(spec.command) if spec.command is not None else own.get("Cmd"),
        "Image": spec.image,
        "Volumes": volumes or None,
        "WorkingDir": spec.workdir or own.get("WorkingDir") or "",
        "Entrypoint": list(spec.entrypoint) if spec.entrypoint is not None else own.get("Entrypoint"),
        "OnBuild": None,
        "Labels": dict(spec.labels),
    }
    signal = spec.stop_signal or own.get("StopSignal")
    return (
        shown
        | ({"Healthcheck": _health(spec.health, asked if spec.asked else None, own)} if spec.health else {})
        | ({"StopSignal": signal} if signal else {})
        | {name: asked[name] for name in ("MacAddress", "NetworkDisabled", "StopTimeout") if name in asked}
    )


def _health(health: Health, asked: Mapping[str, Any] | None, image: Mapping[str, Any]) -> Json:
    """What was asked for, by the container or its image, and not what holds for the rest; all where no client asked."""
    if asked is None:
        return show_health(health)
    wanted = [each.get("Healthcheck") or {} for each in (asked, image)]
    return {name: value for name, value in show_health(health).items() if any(each.get(name) for each in wanted)}


def _environment(own: Sequence[str], image: Sequence[str]) -> list[str]:
    """The container's variables, then those of the image that it does not set."""
    names = {entry.partition("=")[0] for entry in own}
    return [*own, *(entry for entry in image if entry.partition("=")[0] not in names)]
