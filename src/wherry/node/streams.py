"""The agent's HTTP face: logs, exec and attach of its pods, asked for by the API server, which has authorised the person."""

from collections.abc import AsyncIterator

import msgspec

from wherry.clock import Clock, parse_rfc3339, rfc3339_nano
from wherry.errors import BadRequest, NotFound, Unsupported, WherryError
from wherry.node.agent import Agent
from wherry.node.pods import Pod
from wherry.node.runtime import ContainerState, PodState
from wherry.node.steps import latest, previous
from wherry.wire.channels import ERROR, PROTOCOLS, failure, serve_session
from wherry.wire.envelopes import status_for, status_of
from wherry.wire.http import Request, Response
from wherry.wire.router import Route, Router
from wherry.wire.websocket import WebSocket, accept


class AgentServer:
    """Answers the API server. It listens on a unix socket that only the server's group may open, or by mutual TLS."""

    def __init__(self, agent: Agent, clock: Clock) -> None:
        self._agent = agent
        self._clock = clock
        self._router = Router(
            (
                Route("GET", "/healthz", self._healthz),
                Route("GET", "/containerLogs/{namespace}/{pod}/{container}", self._logs),
                Route("GET", "/exec/{namespace}/{pod}/{container}", self._exec),
                Route("POST", "/exec/{namespace}/{pod}/{container}", self._exec),
                Route("GET", "/attach/{namespace}/{pod}/{container}", self._attach),
                Route("POST", "/attach/{namespace}/{pod}/{container}", self._attach),
            )
        )

    async def handle(self, request: Request) -> Response:
        """Answer one request; errors become Kubernetes Status objects."""
        try:
            handler, request.params = self._router.match(request.method, request.path)
            return await handler(request)
        except WherryError as error:
            return Response.json(status_for(error), status=status_of(error)[0])

    async def _healthz(self, request: Request) -> Response:
        return Response.text("ok")

    def _find(self, request: Request) -> tuple[Pod, PodState | None, str]:
        namespace, name = request.params["namespace"], request.params["pod"]
        found = self._agent.find(namespace, name)
        if found is None:
            raise NotFound(f"pod {namespace}/{name} does not run on node {self._agent.name}")
        pod, state = found
        container = request.params["container"]
        if pod.container(container) is None:
            raise BadRequest(f"container {container} is not valid for pod {name}")
        return pod, state, container

    def _running(self, request: Request) -> tuple[Pod, ContainerState]:
        pod, state, name = self._find(request)
        current = latest(state).get(name)
        if current is None or current.exit is not None or not current.id:
            raise NotFound(f'container "{name}" in pod "{pod.metadata.name}" is not running')
        return pod, current

    async def _logs(self, request: Request) -> Response:
        pod, state, name = self._find(request)
        wants_previous = _flag(request, "previous")
        chosen = previous(state, name) if wants_previous else latest(state).get(name)
        if chosen is None or not chosen.id:
            if wants_previous:
                raise BadRequest(f'previous terminated container "{name}" in pod "{pod.metadata.name}" not found')
            raise BadRequest(f'container "{name}" in pod "{pod.metadata.name}" is waiting to start: ContainerCreating')
        since = 0.0
        if seconds := request.first("sinceSeconds"):
            since = self._clock.now() - _number("sinceSeconds", seconds)
        elif moment := request.first("sinceTime"):
            try:
                since = parse_rfc3339(moment)
            except ValueError:
                raise BadRequest(f"sinceTime {moment!r}: not an RFC 3339 time") from None
        tail = request.first("tailLines")
        limit = request.first("limitBytes")
        lines = self._lines(
            pod.uid,
            chosen.id,
            follow=_flag(request, "follow") and not wants_previous,
            tail=_number("tailLines", tail) if tail is not None else None,
            since=since,
            timestamps=_flag(request, "timestamps"),
            limit=_number("limitBytes", limit) if limit is not None else None,
        )
        return Response.stream(lines, headers={"Content-Type": "text/plain"})

    async def _lines(
        self, uid: str, container: str, *, follow: bool, tail: int | None, since: float, timestamps: bool,
        limit: int | None,
    ) -> AsyncIterator[bytes]:  # fmt: skip
        left = limit
        fresh = True
        async for line in self._agent.runtime.logs(uid, container, follow=follow, tail=tail, since=since):
            data = line.data
            if timestamps and fresh:
                data = rfc3339_nano(line.time).encode() + b" " + data
            fresh = not line.partial
            if left is not None:
                data = data[:left]
                left -= len(data)
            if data:
                yield data
            if left == 0:
                return

    async def _exec(self, request: Request) -> Response:
        pod, container = self._running(request)
        argv = request.all("command")
        if not argv:
            raise BadRequest("exec: `command` is missing")
        _websocket_only(request, "exec")
        tty, stdin = _flag(request, "tty"), _flag(request, "stdin")

        async def run(socket: WebSocket) -> None:
            try:
                session = await self._agent.runtime.exec(pod.uid, container.id, argv, tty=tty, stdin=stdin)
            except WherryError as error:
                await _tell(socket, error)
                return
            await serve_session(
                socket, session, stdin=stdin, stdout=_flag(request, "stdout"),
                stderr=_flag(request, "stderr") and not tty, tty=tty,
            )  # fmt: skip

        return accept(request, PROTOCOLS, run)

    async def _attach(self, request: Request) -> Response:
        pod, container = self._running(request)
        _websocket_only(request, "attach")
        definition = pod.container(container.name)
        tty = definition is not None and definition.tty

        async def run(socket: WebSocket) -> None:
            try:
                session = await self._agent.runtime.attach(pod.uid, container.id)
            except WherryError as error:
                await _tell(socket, error)
                return
            await serve_session(
                socket, session, stdin=_flag(request, "stdin"), stdout=_flag(request, "stdout"),
                stderr=_flag(request, "stderr") and not tty, tty=tty,
            )  # fmt: skip

        return accept(request, PROTOCOLS, run)


async def _tell(socket: WebSocket, error: WherryError) -> None:
    """Say on the error channel why there is no session."""
    await socket.send(bytes([ERROR]) + msgspec.json.encode(failure(error.message)))


def _websocket_only(request: Request, what: str) -> None:
    if request.upgrade.lower() != "websocket":
        raise Unsupported(f"{what}: SPDY is not supported; use a client that speaks WebSocket (kubectl 1.30 or newer)")


def _flag(request: Request, name: str) -> bool:
    return (request.first(name) or "").lower() in ("1", "true")


def _number(name: str, text: str) -> int:
    if not text.isdigit():
        raise BadRequest(f"{name} {text!r}: not a whole number")
    return int(text)
