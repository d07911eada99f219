"""The Docker Engine API on this machine's engine: versions, routes, errors. It keeps nothing of its own."""

import logging
import re

from wherry import __version__
from wherry.clock import Clock
from wherry.doors.docker import versions
from wherry.doors.docker.archive import Archive
from wherry.doors.docker.attach import Attach
from wherry.doors.docker.cache import Cache
from wherry.doors.docker.changes import Changes
from wherry.doors.docker.containers import Containers
from wherry.doors.docker.creation import Creation
from wherry.doors.docker.engine import DockerEngine
from wherry.doors.docker.events import Events
from wherry.doors.docker.execs import Execs
from wherry.doors.docker.images import Build, Images
from wherry.doors.docker.listing import Listing
from wherry.doors.docker.logs import Logs
from wherry.doors.docker.networks import Networks
from wherry.doors.docker.prune import Prune
from wherry.doors.docker.registries import Registries
from wherry.doors.docker.stats import Stats
from wherry.doors.docker.system import System
from wherry.doors.docker.volumes import Volumes
from wherry.errors import BadRequest, Broken, Invalid, MethodNotAllowed, NotFound, Unsupported, WherryError
from wherry.wire.envelopes import docker_error, status_of
from wherry.wire.http import Request, Response
from wherry.wire.router import Router

log = logging.getLogger(__name__)

STATUS: dict[type[WherryError], int] = {Invalid: 400, BadRequest: 400, Unsupported: 501, Broken: 400}
"""Where Docker's status differs from the table of all wires. Broken: a container that cannot be started is 400 there."""

SWARM = ("/swarm", "/nodes", "/services", "/tasks", "/secrets", "/configs")
LATER = re.compile(
    r"/(plugins|session|grpc|distribution|auth|system|build)(/.*)?|/containers/[^/]+/copy|/images/search"
)
"""What Docker has and we have not, yet: refused by name."""

HINTS = {
    "/session": "BuildKit's session: build with DOCKER_BUILDKIT=0 (which `wherry env` sets), or with `wherry build`",
    "/grpc": "BuildKit's gRPC: build with DOCKER_BUILDKIT=0 (which `wherry env` sets), or with `wherry build`",
    "/plugins": "plugins: volumes are local, networks are bridges, logs go to json-file, local or journald",
}
"""What helps whoever meets a refusal."""


class DockerDoor:
    """Answers Docker's clients. `build` builds from a tar stream; `node` and `root` are what `docker info` shows."""

    def __init__(self, engine: DockerEngine, build: Build, *, clock: Clock, node: str, root: str = "/") -> None:
        execs, cache = Execs(engine), Cache(engine, build)
        routes = (
            *System(engine, clock, node, root).routes(),
            *Registries(engine).routes(),
            *Networks(engine, clock).routes(),
            *Creation(engine).routes(),
            *Containers(engine, clock, execs.ids_of).routes(),
            *Listing(engine, clock).routes(),
            *execs.routes(),
            *Attach(engine).routes(),
            *Logs(engine).routes(),
            *Images(engine, build).routes(),
            *Volumes(engine).routes(),
            *Changes(engine).routes(),
            *Stats(engine).routes(),
            *Events(engine, clock).routes(),
            *Prune(engine, cache).routes(),
            *cache.routes(),
            *Archive(engine).routes(),
        )
        self._router = Router(routes)

    async def handle(self, request: Request) -> Response:
        """Answer one request; errors in Docker's shape."""
        try:
            version, path = versions.split(request.path)
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
                    hint = HINTS.get("/" + path.split("/")[1], "see SCOPE.md")
                    raise Unsupported(f"{request.method} {path} is not supported by wherry yet ({hint})") from None
                if isinstance(error, MethodNotAllowed):
                    raise
                raise NotFound("page not found") from None
            response = await handler(request)
            versions.as_of(version, request.method, path, response)
        except WherryError as error:
            response = self.fail(request, error)
        except Exception as error:  # ours to mend: the client hears of it in Docker's form, the operator in full
            log.exception("docker: %s %s", request.method, request.path)
            response = self.fail(request, error)
        response.headers.set("Api-Version", versions.text(versions.NEWEST))
        response.headers.set("Server", f"wherry/{__version__} (linux)")
        response.headers.set("Ostype", "linux")
        return response

    def fail(self, request: Request, error: Exception) -> Response:
        """Docker's error: `{"message": ...}`."""
        del request
        if isinstance(error, WherryError):
            return Response.json(docker_error(error.message), status=STATUS.get(type(error), status_of(error)[0]))
        return Response.json(docker_error("an unexpected condition; the engine's log says more"), status=500)
