"""The Docker Engine API on this machine's engine: versions, routes, errors. It keeps nothing of its own."""

import logging
import os
import re

from wherry import __version__
from wherry.clock import Clock, rfc3339_nano
from wherry.doors.docker.archive import Archive
from wherry.doors.docker.changes import Changes
from wherry.doors.docker.containers import Containers
from wherry.doors.docker.engine import DockerEngine
from wherry.doors.docker.events import Events
from wherry.doors.docker.images import Build, Images
from wherry.doors.docker.networks import Networks
from wherry.doors.docker.prune import Prune
from wherry.doors.docker.stats import Stats
from wherry.doors.docker.volumes import Volumes
from wherry.errors import BadRequest, Broken, Invalid, MethodNotAllowed, NotFound, Unsupported, WherryError
from wherry.wire.envelopes import docker_error, status_of
from wherry.wire.http import Request, Response
from wherry.wire.router import Route, Router

log = logging.getLogger(__name__)

API_VERSION = (1, 47)
LEAST_VERSION = (1, 24)

_PREFIX = re.compile(r"/v(\d+)\.(\d+)(/.*)")

STATUS: dict[type[WherryError], int] = {Invalid: 400, BadRequest: 400, Unsupported: 501, Broken: 400}
"""Where Docker's status differs from the table of all wires. Broken: a container that cannot be started is 400 there."""

SWARM = ("/swarm", "/nodes", "/services", "/tasks", "/secrets", "/configs")
LATER = re.compile(
    r"/(plugins|session|grpc|distribution|auth|system|build)(/.*)?|/containers/[^/]+/(copy|attach/ws)|/images/search"
)
"""What Docker has and we have not, yet: refused by name."""


class DockerDoor:
    """Answers Docker's clients. `build` builds from a tar stream; `node` is the name that `docker info` shows."""

    def __init__(self, engine: DockerEngine, build: Build, *, clock: Clock, node: str) -> None:
        self._engine = engine
        self._clock = clock
        self._node = node
        routes = (
            Route("GET", "/_ping", self._ping),
            Route("HEAD", "/_ping", self._ping),
            Route("GET", "/version", self._version),
            Route("GET", "/info", self._info),
            *Networks(engine, clock).routes(),
            *Containers(engine, clock).routes(),
            *Images(engine, build).routes(),
            *Volumes(engine).routes(),
            *Changes(engine).routes(),
            *Stats(engine).routes(),
            *Events(engine, clock).routes(),
            *Prune(engine).routes(),
            *Archive(engine).routes(),
        )
        self._router = Router(routes)

    async def handle(self, request: Request) -> Response:
        """Answer one request; errors in Docker's shape."""
        try:
            path = self._unversioned(request.path)
            for prefix in SWARM:
                if path == prefix or path.startswith(prefix + "/"):
                    if path in ("/swarm/init", "/swarm/join"):
                        raise Unsupported(f"{path}: Docker Swarm is not supported by wherry yet (see SCOPE.md)")
                    message = (
                        'This node is not a swarm manager. Use "docker swarm init" or "docker swarm join" to connect'
                    )
                    return Response.json(docker_error(message), status=503)
            try:
                handler, request.params = self._router.match(request.method, path)
            except (NotFound, MethodNotAllowed) as error:
                if LATER.fullmatch(path):
                    raise Unsupported(
                        f"{request.method} {path} is not supported by wherry yet (see SCOPE.md)"
                    ) from None
                if isinstance(error, MethodNotAllowed):
                    raise
                raise NotFound("page not found") from None
            response = await handler(request)
        except WherryError as error:
            response = self.fail(request, error)
        except Exception as error:  # ours to mend: the client hears of it in Docker's form, the operator in full
            log.exception("docker: %s %s", request.method, request.path)
            response = self.fail(request, error)
        response.headers.set("Api-Version", f"{API_VERSION[0]}.{API_VERSION[1]}")
        response.headers.set("Server", f"wherry/{__version__} (linux)")
        response.headers.set("Ostype", "linux")
        return response

    def fail(self, request: Request, error: Exception) -> Response:
        """Docker's error: `{"message": ...}`."""
        del request
        if isinstance(error, WherryError):
            return Response.json(docker_error(error.message), status=STATUS.get(type(error), status_of(error)[0]))
        return Response.json(docker_error("an unexpected condition; the engine's log says more"), status=500)

    def _unversioned(self, path: str) -> str:
        match = _PREFIX.fullmatch(path)
        if match is None:
            return path
        asked = (int(match[1]), int(match[2]))
        if asked < LEAST_VERSION:
            raise BadRequest(
                f"client version {asked[0]}.{asked[1]} is too old. Minimum supported API version is "
                f"{LEAST_VERSION[0]}.{LEAST_VERSION[1]}, please upgrade your client to a newer version"
            )
        if asked > API_VERSION:
            raise BadRequest(
                f"client version {asked[0]}.{asked[1]} is too new. Maximum supported API version is "
                f"{API_VERSION[0]}.{API_VERSION[1]}"
            )
        return match[3]

    async def _ping(self, request: Request) -> Response:
        headers = {
            "Builder-Version": "1",
            "Cache-Control": "no-cache",
            "Docker-Experimental": "false",
            "Swarm": "inactive",
        }
        return Response.text("OK", headers=headers)

    async def _version(self, request: Request) -> Response:
        uname = os.uname()
        version = f"{API_VERSION[0]}.{API_VERSION[1]}"
        least = f"{LEAST_VERSION[0]}.{LEAST_VERSION[1]}"
        architecture = {"x86_64": "amd64", "aarch64": "arm64"}.get(uname.machine, uname.machine)
        details = {
            "ApiVersion": version, "MinAPIVersion": least, "Os": "linux", "Arch": architecture, "BuildTime": "",
            "Experimental": "false", "GitCommit": "", "GoVersion": "", "KernelVersion": uname.release,
        }  # fmt: skip
        return Response.json(
            {
                "Platform": {"Name": "wherry"},
                "Components": [{"Name": "Engine", "Version": __version__, "Details": details}],
                "Version": __version__,
                "ApiVersion": version,
                "MinAPIVersion": least,
                "GitCommit": "",
                "GoVersion": "",
                "Os": "linux",
                "Arch": architecture,
                "KernelVersion": uname.release,
                "BuildTime": "",
            }
        )

    async def _info(self, request: Request) -> Response:
        containers = await self._engine.containers()
        states = [each.state.value for each in containers]
        uname = os.uname()
        return Response.json(
            {
                "ID": self._node,
                "Name": self._node,
                "ServerVersion": __version__,
                "Containers": len(states),
                "ContainersRunning": states.count("running"),
                "ContainersPaused": states.count("paused"),
                "ContainersStopped": states.count("exited") + states.count("created"),
                "Images": len(await self._engine.images()),
                "Driver": "overlay2",
                "DriverStatus": [["Backing Filesystem", "overlayfs"]],
                "LoggingDriver": "json-file",
                "CgroupDriver": "cgroupfs",
                "CgroupVersion": "2" if os.path.exists("/sys/fs/cgroup/cgroup.controllers") else "1",
                "OSType": "linux",
                "OperatingSystem": "Linux",
                "Architecture": uname.machine,
                "KernelVersion": uname.release,
                "NCPU": os.cpu_count() or 1,
                "MemTotal": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
                "DefaultRuntime": "crun",
                "Runtimes": {"crun": {"path": "crun"}},
                "Swarm": {
                    "LocalNodeState": "inactive",
                    "NodeID": "",
                    "ControlAvailable": False,
                    "RemoteManagers": None,
                },
                "SecurityOptions": ["name=seccomp,profile=default"],
                "Plugins": {"Volume": ["local"], "Network": ["bridge", "host", "null"], "Log": ["json-file", "none"]},
                "RegistryConfig": {"IndexConfigs": {}, "InsecureRegistryCIDRs": ["127.0.0.0/8"], "Mirrors": []},
                "SystemTime": rfc3339_nano(self._clock.now()),
                "LiveRestoreEnabled": True,
                "MemoryLimit": True,
                "SwapLimit": True,
                "CpuCfsPeriod": True,
                "CpuCfsQuota": True,
                "CPUShares": True,
                "CPUSet": True,
                "PidsLimit": True,
                "IPv4Forwarding": True,
                "Warnings": [],
            }
        )
