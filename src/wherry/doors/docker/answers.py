"""The engine's values in the shapes of Docker's API."""

from collections.abc import Mapping, Sequence
from typing import Any

from wherry.clock import rfc3339_nano
from wherry.doors.docker.endpoints import (
    bindings_map,
    exposed_map,
    network_mode,
    networks_map,
    ports_list,
    ports_map,
)
from wherry.doors.docker.mounts import show_mounts
from wherry.doors.docker.options import show_health
from wherry.engine.types import Container, EngineEvent, HealthState, Image, State

Json = dict[str, Any]
ZERO_TIME = "0001-01-01T00:00:00Z"


def moment(seconds: float) -> str:
    """A time, or Docker's zero."""
    return rfc3339_nano(seconds) if seconds else ZERO_TIME


def state_word(container: Container) -> str:
    """The state in Docker's words."""
    return "restarting" if container.restarting else container.state.value


def state_of(container: Container) -> Json:
    """The State object."""
    end = container.exit if container.state is State.EXITED else None
    return {
        "Status": state_word(container),
        "Running": container.state in (State.RUNNING, State.PAUSED) or container.restarting,
        "Paused": container.state is State.PAUSED,
        "Restarting": container.restarting,
        "OOMKilled": bool(end and end.oom),
        "Dead": False,
        "Pid": container.pid,
        "ExitCode": end.code if end else 0,
        "Error": end.error if end else "",
        "StartedAt": moment(container.started),
        "FinishedAt": moment(end.time) if end else ZERO_TIME,
        **({"Health": _health(container.health)} if container.health else {}),
    }


def _health(state: HealthState) -> Json:
    return {
        "Status": state.status,
        "FailingStreak": state.streak,
        "Log": [
            {"Start": moment(each.began), "End": moment(each.ended), "ExitCode": each.code, "Output": each.output}
            for each in state.log
        ],
    }


def ago(seconds: float) -> str:
    """A duration as Docker says it: `5 seconds`, `About a minute`, `3 hours`."""
    steps = (
        (1, "Less than a second"), (2, "1 second"), (60, "{:.0f} seconds"), (120, "About a minute"),
        (3600, "{:.0f} minutes"), (7200, "About an hour"), (172800, "{:.0f} hours"), (1209600, "{:.0f} days"),
        (5184000, "{:.0f} weeks"), (63072000, "{:.0f} months"),
    )  # fmt: skip
    units = (1, 1, 1, 60, 60, 3600, 3600, 86400, 604800, 2592000)
    for (bound, words), unit in zip(steps, units, strict=True):
        if seconds < bound:
            return words.format(seconds // unit)
    return f"{seconds // 31536000:.0f} years"


def status_words(container: Container, now: float) -> str:
    """The STATUS column."""
    match container.state:
        case State.CREATED:
            return "Created"
        case State.RUNNING:
            health = container.health.status if container.health else ""
            words = "health: starting" if health == "starting" else health
            return f"Up {ago(now - container.started)}" + (f" ({words})" if words else "")
        case State.PAUSED:
            return f"Up {ago(now - container.started)} (Paused)"
        case State.EXITED:
            end = container.exit
            word = "Restarting" if container.restarting else "Exited"
            return f"{word} ({end.code}) {ago(now - end.time)} ago" if end else word


def container_summary(container: Container, now: float) -> Json:
    """One entry of `GET /containers/json`."""
    return {
        "Id": container.id,
        "Names": [f"/{container.name}"],
        "Image": container.spec.labels.get("io.kubernetes.container.image", container.spec.image),
        "ImageID": container.image_id,
        "Command": " ".join(container.argv),
        "Created": int(container.created),
        "Ports": ports_list(container),
        "Labels": dict(container.spec.labels),
        "State": state_word(container),
        "Status": status_words(container, now),
        "HostConfig": {"NetworkMode": network_mode(container)},
        "NetworkSettings": {"Networks": networks_map(container)},
        "Mounts": show_mounts(container),
    }


def container_inspect(container: Container, image: Image | None) -> Json:
    """`GET /containers/NAME/json`."""
    spec = container.spec
    config: Mapping[str, Any] = (image.config.get("config") or {}) if image else {}
    argv = list(container.argv)
    policy, _, count = spec.restart.partition(":")
    limits = spec.limits
    sandbox = spec.sandbox_spec
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
        "LogPath": spec.log_path,
        "MountLabel": "",
        "ProcessLabel": "",
        "AppArmorProfile": "",
        "ExecIDs": None,
        "HostConfig": {
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
            "CpusetMems": limits.cpuset_mems,
            "MemoryReservation": limits.memory_reservation_bytes or 0,
            "BlkioWeight": limits.blkio_weight or 0,
            "IpcMode": "host" if sandbox and sandbox.host_ipc else "private",
            "PidMode": "host" if sandbox and sandbox.host_pid else _joined(container, "pid"),
            "Memory": limits.memory_bytes or 0,
            "MemorySwap": limits.memory_swap_bytes or 0,
            "CpuQuota": limits.cpu_quota_us or 0,
            "CpuPeriod": limits.cpu_period_us if limits.cpu_quota_us else 0,
            "CpuShares": limits.cpu_shares or 0,
            "CpusetCpus": limits.cpuset_cpus,
            "PidsLimit": limits.pids,
            "Privileged": spec.privileged,
            "ReadonlyRootfs": spec.read_only_root,
            "CapAdd": list(spec.cap_add) or None,
            "CapDrop": list(spec.cap_drop) or None,
            "Binds": [
                f"{each.source}:{each.target}{':ro' if each.read_only else ''}"
                for each in spec.mounts
                if each.kind == "bind"
            ],
            "PortBindings": bindings_map(container),
            "PublishAllPorts": bool(sandbox and sandbox.publish_all),
            "ShmSize": (sandbox.shm_bytes if sandbox else 0) or 67108864,
        },
        "GraphDriver": {"Name": "overlay2", "Data": None},
        "Mounts": show_mounts(container),
        "Config": {
            "Hostname": sandbox.hostname if sandbox and sandbox.hostname else container.id[:12],
            "Domainname": "",
            "User": spec.user or config.get("User") or "",
            "AttachStdin": spec.stdin,
            "AttachStdout": True,
            "AttachStderr": True,
            "Tty": spec.tty,
            "OpenStdin": spec.stdin,
            "StdinOnce": spec.stdin_once,
            "Env": [*(config.get("Env") or ()), *spec.env],
            "Cmd": list(spec.command) if spec.command is not None else config.get("Cmd"),
            "Entrypoint": list(spec.entrypoint) if spec.entrypoint is not None else config.get("Entrypoint"),
            "Image": spec.image,
            "ExposedPorts": exposed_map(container),
            "Volumes": None,
            "WorkingDir": spec.workdir or config.get("WorkingDir") or "",
            "Labels": dict(spec.labels),
            **({"Healthcheck": show_health(spec.health)} if spec.health else {}),
            **({"StopSignal": spec.stop_signal} if spec.stop_signal else {}),
        },
        "NetworkSettings": {
            "Bridge": "",
            "SandboxID": container.sandbox,
            "SandboxKey": "",
            "Ports": ports_map(container),
            "IPAddress": container.address if network_mode(container) == "bridge" else "",
            "IPPrefixLen": 32 if container.address and network_mode(container) == "bridge" else 0,
            "Gateway": container.gateway,
            "MacAddress": "",
            "Networks": networks_map(container),
        },
    }


def _joined(container: Container, kind: str) -> str:
    other = container.spec.join.get(kind)
    return f"container:{other}" if other else ""


def familiar(name: str) -> str:
    """An image's name as people write it: without `docker.io/library/`."""
    return name.removeprefix("docker.io/library/").removeprefix("docker.io/")


def image_summary(image: Image, containers: int) -> Json:
    """One entry of `GET /images/json`."""
    tags = [familiar(name) for name in image.names if "@" not in name]
    return {
        "Id": image.id,
        "ParentId": "",
        "RepoTags": tags or ["<none>:<none>"],
        "RepoDigests": _digests(image) if tags else ["<none>@<none>"],
        "Created": int(image.created),
        "Size": image.size_bytes,
        "VirtualSize": image.size_bytes,
        "SharedSize": -1,
        "Labels": (image.config.get("config") or {}).get("Labels") or {},
        "Containers": containers,
    }


def _digests(image: Image) -> Sequence[str]:
    found = {familiar(name).rpartition(":")[0] for name in image.names if "@" not in name}
    return [f"{name}@{image.digest}" for name in sorted(found)]


def image_inspect(image: Image) -> Json:
    """`GET /images/NAME/json`."""
    config: Mapping[str, Any] = image.config.get("config") or {}
    return {
        "Id": image.id,
        "RepoTags": [familiar(name) for name in image.names if "@" not in name],
        "RepoDigests": _digests(image),
        "Parent": "",
        "Comment": "",
        "Created": image.config.get("created") or moment(image.created),
        "DockerVersion": "",
        "Author": image.config.get("author") or "",
        "Config": dict(config),
        "Architecture": image.config.get("architecture") or "amd64",
        "Os": image.config.get("os") or "linux",
        "Size": image.size_bytes,
        "VirtualSize": image.size_bytes,
        "GraphDriver": {"Name": "overlay2", "Data": None},
        "RootFS": {"Type": "layers", "Layers": (image.config.get("rootfs") or {}).get("diff_ids") or []},
        "Metadata": {"LastTagTime": ZERO_TIME},
    }


def history_of(image: Image) -> Sequence[Json]:
    """`GET /images/NAME/history`, newest first."""
    entries = list(image.config.get("history") or ())
    return [
        {
            "Id": image.id if index == len(entries) - 1 else "<missing>",
            "Created": 0,
            "CreatedBy": entry.get("created_by") or "",
            "Tags": [familiar(name) for name in image.names] if index == len(entries) - 1 else None,
            "Size": 0,
            "Comment": entry.get("comment") or "",
        }
        for index, entry in reversed(list(enumerate(entries)))
    ]


def event(happened: EngineEvent) -> Json:
    """One line of `GET /events`."""
    nanoseconds = int(happened.time * 1e9)
    return {
        "status": happened.action,
        "id": happened.id,
        "from": happened.attributes.get("image", ""),
        "Type": happened.kind,
        "Action": happened.action,
        "Actor": {"ID": happened.id, "Attributes": dict(happened.attributes)},
        "scope": "local",
        "time": nanoseconds // 1_000_000_000,
        "timeNano": nanoseconds,
    }
