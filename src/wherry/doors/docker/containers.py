"""Docker's endpoints about containers: made, listed, started, ended, waited for, removed."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from typing import Any

import msgspec

from wherry.clock import Clock, machine
from wherry.doors.docker.engine import DockerEngine
from wherry.doors.docker.inspection import container_inspect
from wherry.engine.signals import signal_number
from wherry.engine.types import Container, EngineEvent, Image, State
from wherry.errors import BadRequest, Conflict, Invalid, NotFound, WherryError
from wherry.wire.http import Request, Response
from wherry.wire.router import Route

KILL_S = 10.0
FOREVER_S = 1e6
_CREATE_FAILED = "failed to create task for container: OCI runtime create failed: unable to start container process"
"""How Docker's message begins when a command cannot be run; clients and scripts look for its parts."""


def flag(request: Request, name: str, *, default: bool = False) -> bool:
    """Read a boolean parameter."""
    value = request.first(name)
    return default if value is None or value == "" else value.lower() in ("1", "true")


async def json_body(request: Request) -> dict[str, Any]:
    """Read a JSON object; none, and the `null` of `docker commit`, is empty. Raises BadRequest."""
    data = await request.body()
    if not data.strip():
        return {}
    try:
        return msgspec.json.decode(data, type=dict[str, Any] | None) or {}
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BadRequest(f"invalid JSON: {error}") from None


class Containers:
    """The handlers. `execs_of` names the execs of a container that have not ended."""

    def __init__(
        self, engine: DockerEngine, clock: Clock, execs_of: Callable[[str], Sequence[str] | None] = lambda _: None
    ) -> None:
        self._engine = engine
        self._clock = clock
        self._execs_of = execs_of

    def routes(self) -> tuple[Route, ...]:
        """All endpoints about containers."""
        return (
            Route("GET", "/containers/{name}/json", self._inspect),
            Route("POST", "/containers/{name}/start", self._start),
            Route("POST", "/containers/{name}/stop", self._stop),
            Route("POST", "/containers/{name}/restart", self._restart),
            Route("POST", "/containers/{name}/kill", self._kill),
            Route("POST", "/containers/{name}/wait", self._wait),
            Route("DELETE", "/containers/{name}", self._remove),
        )

    async def _image_of(self, container: Container) -> Image | None:
        with suppress(NotFound):
            return await self._engine.image(container.image_id)
        return None

    async def _find(self, request: Request) -> Container:
        return await self._get(request.params["name"])

    async def _get(self, name: str) -> Container:
        try:
            return await self._engine.container(name.removeprefix("/"))
        except NotFound:
            raise NotFound(f"No such container: {name}") from None

    async def _inspect(self, request: Request) -> Response:
        container = await self._find(request)
        shown = container_inspect(
            container, await self._image_of(container), cgroup_version=self._engine.abilities.version
        )
        shown |= {"ExecIDs": self._execs_of(container.id)}
        if flag(request, "size"):
            written = await self._engine.written(container.id)
            image = await self._image_of(container)
            shown |= {"SizeRw": written, "SizeRootFs": written + (image.size_bytes if image else 0)}
        if container.spec.log_driver != "none":
            shown["LogPath"] = self._engine.log_path(container.id)
        return Response.json(shown)

    async def _start(self, request: Request) -> Response:
        container = await self._find(request)
        if container.state in (State.RUNNING, State.PAUSED):
            return Response(304)
        await self._begin(container)
        return Response(204)

    async def _begin(self, container: Container) -> None:
        """Start it; a command that cannot be run is told in the words by which clients know 126 from 127."""
        try:
            await self._engine.start(container.id)
        except WherryError as error:
            end = None
            with suppress(NotFound):
                end = (await self._engine.container(container.id)).exit
                if container.spec.auto_remove:  # a start that failed is an end, too; clients wait for the removal
                    await self._engine.remove(container.id, force=True)
            command = container.argv[0] if container.argv else ""
            if end is not None and end.code in (126, 127) and end.error:
                why = "permission denied"
                if end.code == 127:
                    is_path = "/" in command
                    why = (
                        f"stat {command}: no such file or directory"
                        if is_path
                        else "executable file not found in $PATH"
                    )
                raise BadRequest(f'{_CREATE_FAILED}: exec: "{command}": {why}: {error.message}') from error
            raise

    async def _stop(self, request: Request) -> Response:
        container = await self._find(request)
        if container.state not in (State.RUNNING, State.PAUSED) and not container.restarting:
            return Response(304)
        with suppress(Conflict):
            await self._engine.stop(container.id, grace_s=_grace(request), signal=_signal(request))
        return Response(204)

    async def _restart(self, request: Request) -> Response:
        container = await self._find(request)
        if container.state in (State.RUNNING, State.PAUSED):
            with suppress(Conflict):
                await self._engine.stop(container.id, grace_s=_grace(request), signal=_signal(request))
        await self._begin(container)
        self._engine.tell_of(container.id, "restart", {})
        return Response(204)

    async def _kill(self, request: Request) -> Response:
        container = await self._find(request)
        signal = _signal(request) or "SIGKILL"
        if container.state not in (State.RUNNING, State.PAUSED):
            raise Conflict(f"Cannot kill container: {request.params['name']}: Container {container.id} is not running")
        happened = self._engine.events()
        await self._engine.kill(container.id, signal)
        if signal.upper().removeprefix("SIG") in ("KILL", "9"):  # Docker answers when it is dead
            with suppress(TimeoutError):
                async with machine.timeout(KILL_S):
                    await _first(happened, container.id, ("die", "destroy"))
        return Response(204)

    async def _wait(self, request: Request) -> Response:
        condition = request.first("condition") or "not-running"
        if condition not in ("not-running", "next-exit", "removed"):
            raise BadRequest(f"invalid condition: {condition!r}")
        happened = self._engine.events()  # from here on: the client starts the container when it has our head
        container = await self._find(request)

        async def pieces() -> AsyncIterator[bytes]:
            code = container.exit.code if container.exit else 0
            runs = container.state in (State.RUNNING, State.PAUSED) or container.restarting
            if condition != "not-running" or runs:
                last = "destroy" if condition == "removed" else "die"
                async for event in happened:
                    if event.id != container.id:
                        continue
                    if event.action == "die":
                        code = int(event.attributes.get("exitCode") or 0)
                    if event.action in (last, "destroy"):
                        break
            answer: dict[str, Any] = {"StatusCode": code}
            yield msgspec.json.encode(answer) + b"\n"

        return Response.stream(pieces(), headers={"Content-Type": "application/json"}, live=True)

    async def _remove(self, request: Request) -> Response:
        container = await self._find(request)
        if flag(request, "link"):
            raise BadRequest("links are not supported by wherry")
        force = flag(request, "force")
        if (container.state in (State.RUNNING, State.PAUSED) or container.restarting) and not force:
            word = "restarting" if container.restarting else "running"
            raise Conflict(
                f'cannot remove container "{container.name}": container is {word}: stop the container before removing '
                "or force remove"
            )
        await self._engine.remove(container.id, force=force, volumes=flag(request, "v"))
        return Response(204)


async def _first(happened: AsyncIterator[EngineEvent], id: str, actions: tuple[str, ...]) -> EngineEvent | None:
    """Wait for the first event of a container with one of the actions."""
    async for event in happened:
        if event.id == id and event.action in actions:
            return event
    return None


def _signal(request: Request) -> str:
    """Read `signal`; "" for none. Raises BadRequest in Docker's words."""
    text = request.first("signal") or ""
    try:
        if text:
            signal_number(text)
    except Invalid:
        raise BadRequest(f"Invalid signal: {text}") from None
    return text


def _grace(request: Request) -> float | None:
    text = request.first("t")
    if text is None or text == "":
        return None
    try:
        seconds = int(text)
    except ValueError:
        raise BadRequest(f"t {text!r}: not a number of seconds") from None
    return FOREVER_S if seconds < 0 else min(FOREVER_S, float(seconds))
