"""Docker's endpoints about the engine itself: ping, version, info, plugins."""

import asyncio
import os
import platform
from collections.abc import Mapping
from hashlib import sha256
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from wherry import __version__
from wherry.clock import Clock, rfc3339_nano
from wherry.doors.docker import versions
from wherry.doors.docker.engine import DockerEngine
from wherry.host import facts
from wherry.wire.http import Request, Response
from wherry.wire.router import Route

ARCHITECTURE = {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine)
HUB = "https://index.docker.io/v1/"


class System:
    """The handlers. `node` is the name that `docker info` shows, `root` where the engine keeps its state."""

    def __init__(self, engine: DockerEngine, clock: Clock, node: str, root: str) -> None:
        self._engine, self._clock, self._node, self._root = engine, clock, node, root

    def routes(self) -> tuple[Route, ...]:
        """All endpoints of this module."""
        return (
            Route("GET", "/_ping", self._ping),
            Route("HEAD", "/_ping", self._ping),
            Route("GET", "/version", self._version),
            Route("GET", "/info", self._info),
            Route("GET", "/plugins", self._plugins),
        )

    async def _ping(self, request: Request) -> Response:
        headers = {
            "Builder-Version": "1",
            "Cache-Control": "no-cache, no-store, must-revalidate",
            "Pragma": "no-cache",
            "Docker-Experimental": "false",
            "Swarm": "inactive",
        }
        return Response.text("OK", headers=headers)

    async def _version(self, request: Request) -> Response:
        release = os.uname().release
        newest, oldest = versions.text(versions.NEWEST), versions.text(versions.OLDEST)
        python = platform.python_version()
        details = {
            "ApiVersion": newest, "MinAPIVersion": oldest, "Os": "linux", "Arch": ARCHITECTURE, "BuildTime": "",
            "Experimental": "false", "GitCommit": "", "GoVersion": "", "KernelVersion": release, "PythonVersion": python,
        }  # fmt: skip
        runtime = self._engine.runtimes.default
        tools = [
            {"Name": each.name, "Version": each.version, "Details": {"Path": each.path}}
            for each in (runtime.tool, runtime.monitor)
        ]
        return Response.json(
            {
                "Platform": {"Name": "wherry"},
                "Components": [{"Name": "Engine", "Version": __version__, "Details": details}, *tools],
                "Version": __version__,
                "ApiVersion": newest,
                "MinAPIVersion": oldest,
                "GitCommit": "",
                "GoVersion": "",
                "Os": "linux",
                "Arch": ARCHITECTURE,
                "KernelVersion": release,
                "BuildTime": "",
            }
        )

    async def _plugins(self, request: Request) -> Response:
        """None can be installed, so there are none."""
        return Response.json([])

    async def _info(self, request: Request) -> Response:
        states = [each.state.value for each in await self._engine.containers()]
        found = await asyncio.to_thread(machine_of, self._root)
        able = self._engine.abilities
        runtimes = self._engine.runtimes
        security = security_options(able.version, is_remapped=bool(self._engine.settings.userns_remap))
        return Response.json(
            {
                "ID": found["ID"],
                "Containers": len(states),
                "ContainersRunning": states.count("running"),
                "ContainersPaused": states.count("paused"),
                "ContainersStopped": states.count("exited") + states.count("created"),
                "Images": len(await self._engine.images()),
                "Driver": "overlay2",
                "DriverStatus": [
                    ["Backing Filesystem", found["Filesystem"]],
                    ["Supports d_type", "true"],
                    ["Native Overlay Diff", "true"],
                    ["userxattr", "false"],
                ],
                "Plugins": {
                    "Volume": ["local"],
                    "Network": ["bridge", "host", "null"],
                    "Authorization": None,
                    "Log": ["journald", "json-file", "local", "none"],
                },
                "MemoryLimit": able.memory,
                "SwapLimit": able.swap,
                "CpuCfsPeriod": able.cpu_quota,
                "CpuCfsQuota": able.cpu_quota,
                "CPUShares": able.cpu_shares,
                "CPUSet": able.cpuset,
                "PidsLimit": able.pids,
                "IPv4Forwarding": found["Forwarding"],
                "OomKillDisable": able.oom_kill_disable,
                "Debug": False,
                "NFd": len(os.listdir("/proc/self/fd")),
                "NGoroutines": len(asyncio.all_tasks()),
                "NEventsListener": 0,
                "SystemTime": rfc3339_nano(self._clock.now()),
                "LoggingDriver": "json-file",
                "CgroupDriver": "cgroupfs",
                "CgroupVersion": str(able.version),
                "KernelVersion": os.uname().release,
                "OperatingSystem": found["System"],
                "OSVersion": found["SystemVersion"],
                "OSType": "linux",
                "Architecture": os.uname().machine,
                "IndexServerAddress": HUB,
                "RegistryConfig": registry_config(sorted(self._engine.settings.insecure)),
                "NCPU": os.cpu_count() or 1,
                "MemTotal": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
                "GenericResources": None,
                "DockerRootDir": self._root,
                "HttpProxy": proxy("HTTP_PROXY"),
                "HttpsProxy": proxy("HTTPS_PROXY"),
                "NoProxy": proxy("NO_PROXY"),
                "Name": self._node,
                "Labels": [],
                "ExperimentalBuild": False,
                "ServerVersion": __version__,
                "Runtimes": {name: {"path": each.tool.path, "status": {}} for name, each in runtimes.all.items()},
                "DefaultRuntime": runtimes.default.tool.name,
                "Swarm": {
                    "NodeID": "",
                    "NodeAddr": "",
                    "LocalNodeState": "inactive",
                    "ControlAvailable": False,
                    "Error": "",
                    "RemoteManagers": None,
                },
                "LiveRestoreEnabled": True,
                "Isolation": "",
                "InitBinary": "catatonit",
                "ContainerdCommit": {"ID": "", "Expected": ""},
                "RuncCommit": {"ID": "", "Expected": ""},
                "InitCommit": {"ID": "", "Expected": ""},
                "SecurityOptions": security,
                "DefaultAddressPools": [{"Base": "10.64.0.0/10", "Size": 24}],
                "FirewallBackend": {"Driver": "nftables"},
                "CDISpecDirs": [],
                "DiscoveredDevices": [],
                "Warnings": [] if found["Forwarding"] else ["WARNING: IPv4 forwarding is disabled"],
            }
        )


def security_options(cgroup_version: int, *, is_remapped: bool) -> list[str]:
    """What keeps containers apart unless they ask otherwise, as `docker info` names it."""
    further = {"name=userns": is_remapped, "name=cgroupns": cgroup_version == 2}
    return ["name=seccomp,profile=default", *(name for name, is_so in further.items() if is_so)]


def machine_of(root: str) -> Mapping[str, Any]:
    """What is read of this machine's files; some milliseconds."""
    release = dict(_release())
    with open("/proc/sys/net/ipv4/ip_forward", encoding="ascii") as file:
        forwarding = file.read().strip() == "1"
    here = facts.read()
    return {
        "ID": _identity(here.machine_id, root),
        "System": release.get("PRETTY_NAME") or here.os_image,
        "SystemVersion": release.get("VERSION_ID", ""),
        "Forwarding": forwarding,
        "Filesystem": _filesystem(root),
    }


def _identity(machine_id: str, root: str) -> str:
    """A stable name of this engine on this machine, in the form of a UUID."""
    digits = sha256(f"{machine_id}/{root}".encode()).hexdigest()[:32]
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


def _release() -> list[tuple[str, str]]:
    """The fields of os-release(5)."""
    for path in ("/etc/os-release", "/usr/lib/os-release"):
        try:
            with open(path, encoding="utf-8", errors="replace") as file:
                pairs = [line.strip().partition("=") for line in file if "=" in line]
        except OSError:
            continue
        return [(name, value.strip("\"'")) for name, _, value in pairs]
    return []


def _filesystem(root: str) -> str:
    """The type of the file system that a directory is on, as mountinfo names it."""
    best, kind = "", "unknown"
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as file:
            for line in file:
                words = line.split()
                target = words[4]
                inside = root == target or root.startswith(target.rstrip("/") + "/")
                if inside and len(target) >= len(best):
                    best, kind = target, words[words.index("-") + 1]
    except OSError:
        return kind
    return {"ext4": "extfs", "ext3": "extfs", "ext2": "extfs", "overlay": "overlayfs"}.get(kind, kind)


def registry_config(insecure: list[str]) -> Mapping[str, Any]:
    """What is known of registries; those on loopback are spoken to by plain HTTP."""
    hub = {"Name": "docker.io", "Mirrors": [], "Secure": True, "Official": True}
    plain = {name: {"Name": name, "Mirrors": [], "Secure": False, "Official": False} for name in insecure}
    return {
        "AllowNondistributableArtifactsCIDRs": None,
        "AllowNondistributableArtifactsHostnames": None,
        "InsecureRegistryCIDRs": ["::1/128", "127.0.0.0/8"],
        "IndexConfigs": {"docker.io": hub, **plain},
        "Mirrors": None,
    }


def proxy(name: str) -> str:
    """A proxy that is set for us, without the password that may stand in it."""
    value = os.environ.get(name) or os.environ.get(name.lower()) or ""
    parts = urlsplit(value)
    if "@" not in parts.netloc:
        return value
    return urlunsplit(parts._replace(netloc=f"xxxxx:xxxxx@{parts.netloc.rpartition('@')[2]}"))
