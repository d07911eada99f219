"""Docker's endpoints about containers and exec."""

import asyncio
import re
import secrets
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

import msgspec

from wherry.clock import Clock, machine, parse_rfc3339
from wherry.doors.docker import answers, filters, requests
from wherry.doors.docker.endpoints import read_exposed
from wherry.doors.docker.engine import DockerEngine
from wherry.doors.docker.keys import DetachKeys
from wherry.doors.docker.late import LateSession
from wherry.doors.docker.mounts import borrowed
from wherry.doors.docker.options import read_health
from wherry.doors.docker.streams import join, log_pieces
from wherry.engine import capabilities, ulimits
from wherry.engine.types import Container, ContainerSpec, EngineEvent, ExecSpec, Image, Join, Session, State
from wherry.errors import AlreadyExists, BadRequest, Conflict, Invalid, NotFound, WherryError
from wherry.wire.http import Request, Response
from wherry.wire.router import Route
from wherry.wire.streams import Stream

RAW = "application/vnd.docker.raw-stream"
MULTIPLEXED = "application/vnd.docker.multiplexed-stream"
EXECS_KEPT = 1000
KILL_S = 10.0
FOREVER_S = 1e6
ATTACH_LINES = 10_000
"""Lines of the past that `attach?logs=1` gets at most."""


class Exec:
    """One exec: made by one request, run by the next, asked about later."""

    def __init__(self, container: str, spec: ExecSpec) -> None:
        self.id = secrets.token_hex(32)
        self.container = container
        self.spec = spec
        self.session: Session | None = None
        self.keys: DetachKeys | None = None
        self.code: int | None = None
        self.running = False


def flag(request: Request, name: str, *, default: bool = False) -> bool:
    """Read a boolean parameter."""
    value = request.first(name)
    return default if value is None or value == "" else value.lower() in ("1", "true")


async def json_body(request: Request) -> dict[str, Any]:
    """Read a JSON object; none is empty. Raises BadRequest."""
    data = await request.body()
    if not data.strip():
        return {}
    try:
        return msgspec.json.decode(data, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BadRequest(f"invalid JSON: {error}") from None


class Containers:
    """The handlers. They keep nothing but the execs of this process."""

    def __init__(self, engine: DockerEngine, clock: Clock) -> None:
        self._engine = engine
        self._clock = clock
        self._execs: dict[str, Exec] = {}

    def routes(self) -> tuple[Route, ...]:
        """All endpoints about containers."""
        return (
            Route("GET", "/containers/json", self._list),
            Route("POST", "/containers/create", self._create),
            Route("GET", "/containers/{name}/json", self._inspect),
            Route("POST", "/containers/{name}/start", self._start),
            Route("POST", "/containers/{name}/stop", self._stop),
            Route("POST", "/containers/{name}/restart", self._restart),
            Route("POST", "/containers/{name}/kill", self._kill),
            Route("POST", "/containers/{name}/wait", self._wait),
            Route("POST", "/containers/{name}/attach", self._attach),
            Route("POST", "/containers/{name}/resize", self._resize),
            Route("GET", "/containers/{name}/logs", self._logs),
            Route("DELETE", "/containers/{name}", self._remove),
            Route("POST", "/containers/{name}/exec", self._exec_create),
            Route("POST", "/exec/{id}/start", self._exec_start),
            Route("POST", "/exec/{id}/resize", self._exec_resize),
            Route("GET", "/exec/{id}/json", self._exec_inspect),
        )

    async def _image_of(self, container: Container) -> Image | None:
        with suppress(NotFound):
            return await self._engine.image(container.image_id)
        return None

    async def _list(self, request: Request) -> Response:
        wanted = filters.parse(request.first("filters"), filters.CONTAINER)
        filters.check_statuses(wanted)
        limit = request.first("limit") or ""
        most = int(limit) if limit.isascii() and limit.isdigit() else 0
        everything = flag(request, "all") or most > 0 or "status" in wanted or "exited" in wanted
        names = {image.id: [answers.familiar(name) for name in image.names] for image in await self._engine.images()}
        found = [
            each
            for each in await self._engine.containers()
            if (everything or each.state in (State.RUNNING, State.PAUSED))
            and filters.matches_container(each, wanted, names.get(each.image_id, ()))
        ]
        found.sort(key=lambda each: -each.created)
        if most:
            found = found[:most]
        return Response.json([answers.container_summary(each, self._clock.now()) for each in found])

    async def _create(self, request: Request) -> Response:
        body = await json_body(request)
        name = request.first("name") or ""
        spec = requests.container_spec(body, name)
        lenders = (body.get("HostConfig") or {}).get("VolumesFrom") or ()
        if lenders:
            names = [str(each).partition(":")[0] for each in lenders]
            known = {each: await self._get(each) for each in names}
            spec = replace(spec, mounts=[*spec.mounts, *borrowed(lenders, known, spec.mounts)])
        try:
            image = await self._engine.image(spec.image)
        except NotFound:
            raise NotFound(f"No such image: {spec.image}") from None
        _check_platform(image, request.first("platform") or "")
        own = body.get("Healthcheck")
        spec = replace(spec, health=read_health(own, (image.config.get("config") or {}).get("Healthcheck")))
        _, warnings = ulimits.plan(spec.ulimits, capabilities.own())
        spec = self._on_networks(spec, image)
        host = body.get("HostConfig") or {}
        modes = {"network": str(host.get("NetworkMode") or ""), "pid": str(host.get("PidMode") or "")}
        join: dict[str, str] = {}
        for kind, mode in modes.items():
            if mode.startswith("container:"):
                try:
                    join[kind] = (await self._get(mode.removeprefix("container:"))).id
                except NotFound as error:  # not 404: clients take that for an image that is to be pulled
                    raise BadRequest(f"joining {kind} namespace of container: {error.message}") from None
        spec = replace(spec, join=join)
        try:
            made = await self._engine.create(spec)
        except AlreadyExists:
            raise AlreadyExists(
                f'Conflict. The container name "/{spec.name}" is already in use. You have to remove (or rename) that '
                "container to be able to reuse that name."
            ) from None
        return Response.json({"Id": made.id, "Warnings": warnings}, status=201)

    def _on_networks(self, spec: ContainerSpec, image: Image) -> ContainerSpec:
        """Name what the image exposes, and look for the networks: to clients, 404 would say that the image is not here."""
        sandbox = spec.sandbox_spec
        if sandbox is None:
            return spec
        joins: dict[str, Join] = {}
        for wish in sandbox.networks:
            try:
                id = self._engine.networks.find(wish.network).id
            except NotFound as error:
                raise BadRequest(error.message) from None
            known = joins.get(id, wish)
            aliases = list(dict.fromkeys([*known.aliases, *wish.aliases]))
            joins[id] = Join(known.network, aliases, known.address or wish.address)
        exposed = read_exposed(dict.fromkeys(sandbox.exposed), (image.config.get("config") or {}).get("ExposedPorts"))
        return replace(spec, sandbox_spec=replace(sandbox, networks=list(joins.values()), exposed=exposed))

    async def _find(self, request: Request) -> Container:
        return await self._get(request.params["name"])

    async def _get(self, name: str) -> Container:
        try:
            return await self._engine.container(name.removeprefix("/"))
        except NotFound:
            raise NotFound(f"No such container: {name}") from None

    async def _inspect(self, request: Request) -> Response:
        container = await self._find(request)
        return Response.json(answers.container_inspect(container, await self._image_of(container)))

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
            if end is not None and end.code == 127 and end.error:
                raise BadRequest(f'exec: "{command}": executable file not found in $PATH: {error.message}') from error
            if end is not None and end.code == 126 and end.error:
                raise BadRequest(f'exec: "{command}": permission denied: {error.message}') from error
            raise

    async def _stop(self, request: Request) -> Response:
        container = await self._find(request)
        if container.state not in (State.RUNNING, State.PAUSED) and not container.restarting:
            return Response(304)
        with suppress(Conflict):
            await self._engine.stop(container.id, grace_s=_grace(request))
        return Response(204)

    async def _restart(self, request: Request) -> Response:
        container = await self._find(request)
        if container.state in (State.RUNNING, State.PAUSED):
            with suppress(Conflict):
                await self._engine.stop(container.id, grace_s=_grace(request))
        await self._begin(container)
        return Response(204)

    async def _kill(self, request: Request) -> Response:
        container = await self._find(request)
        if container.state not in (State.RUNNING, State.PAUSED):
            raise Conflict(f"cannot kill container: {container.name}: container {container.id} is not running")
        signal = request.first("signal") or "SIGKILL"
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

    async def _attach(self, request: Request) -> Response:
        container = await self._find(request)
        tty = container.spec.tty
        stdin, stdout, stderr = (flag(request, name) for name in ("stdin", "stdout", "stderr"))
        if not flag(request, "stream"):
            stdin = False
        live = flag(request, "stream")
        began = machine.now()
        session: Session
        try:
            session = await self._engine.attach(container.id)
        except Conflict:  # nothing runs yet, as before `docker start -a`, or when its command cannot be run
            session = LateSession(self._engine, container, began)
        keys = DetachKeys(request.first("detachKeys") or "") if tty else None
        before = await self._written(container, stdout=stdout, stderr=stderr) if flag(request, "logs") else b""

        async def talk(stream: Stream) -> None:
            if not live:
                await session.close()
                await stream.write(before)
                return
            await join(
                stream, session, tty=tty, stdin=stdin and container.spec.stdin, stdout=stdout, stderr=stderr,
                first=before, keys=keys,
            )  # fmt: skip

        return _hijacked(request, talk, tty=tty)

    async def _written(self, container: Container, *, stdout: bool, stderr: bool) -> bytes:
        """What it has written so far, at most its last lines."""
        lines = self._engine.logs(container.id, tail=ATTACH_LINES)
        pieces = log_pieces(
            lines, tty=container.spec.tty, stdout=stdout, stderr=stderr, timestamps=False, until=0.0
        )  # fmt: skip
        return b"".join([piece async for piece in pieces])

    async def _resize(self, request: Request) -> Response:
        container = await self._find(request)
        rows, columns = _size(request)
        await self._engine.resize(container.id, rows, columns)
        return Response(200)

    async def _logs(self, request: Request) -> Response:
        container = await self._find(request)
        stdout, stderr = flag(request, "stdout"), flag(request, "stderr")
        if not stdout and not stderr:
            raise BadRequest("Bad parameters: you must choose at least one stream")
        tail = request.first("tail") or "all"
        if not (tail.isascii() and tail.isdigit()):
            tail = "all"
        lines = self._engine.logs(
            container.id,
            follow=flag(request, "follow"),
            tail=None if tail == "all" else int(tail),
            since=_time(request.first("since")),
        )
        pieces = log_pieces(
            lines, tty=container.spec.tty, stdout=stdout, stderr=stderr, timestamps=flag(request, "timestamps"),
            until=_time(request.first("until")),
        )  # fmt: skip
        kind = RAW if container.spec.tty else MULTIPLEXED
        return Response.stream(pieces, headers={"Content-Type": kind}, live=flag(request, "follow"))

    async def _remove(self, request: Request) -> Response:
        container = await self._find(request)
        if flag(request, "link"):
            raise BadRequest("links are not supported by wherry")
        force = flag(request, "force")
        if container.state in (State.RUNNING, State.PAUSED) and not force:
            raise Conflict(
                f"cannot remove container {container.name!r}: container is running: stop the container before removing "
                "or force remove"
            )
        await self._engine.remove(container.id, force=force, volumes=flag(request, "v"))
        return Response(204)

    # exec -------------------------------------------------------------------------------------------------------------

    async def _exec_create(self, request: Request) -> Response:
        container = await self._find(request)
        body = await json_body(request)
        spec = requests.exec_spec(body)
        if container.state is State.PAUSED:
            raise Conflict(f"Container {container.id} is paused, unpause the container before exec")
        if container.state is not State.RUNNING:
            raise Conflict(f"container {container.id} is not running")
        made = Exec(container.id, spec)
        made.keys = DetachKeys(str(body.get("DetachKeys") or "")) if spec.tty else None
        self._execs[made.id] = made
        while len(self._execs) > EXECS_KEPT:
            del self._execs[next(iter(self._execs))]
        return Response.json({"Id": made.id}, status=201)

    def _get_exec(self, request: Request) -> Exec:
        found = self._execs.get(request.params["id"])
        if found is None:
            raise NotFound(f"No such exec instance: {request.params['id']}")
        return found

    async def _exec_start(self, request: Request) -> Response:
        made = self._get_exec(request)
        body = await json_body(request)
        if made.session is not None:
            raise Conflict(f"exec {made.id} has already run")
        session = made.session = await self._engine.exec(made.container, made.spec)
        made.running = True
        if body.get("Detach"):
            task = asyncio.create_task(self._drain(made, session), name=f"exec:{made.id[:12]}")
            task.add_done_callback(lambda done: done.exception())
            return Response(200)

        async def talk(stream: Stream) -> None:
            watcher = asyncio.create_task(self._note_end(made, session), name=f"exec:{made.id[:12]}")
            try:
                await join(
                    stream, session, tty=made.spec.tty, stdin=made.spec.stdin, stdout=True, stderr=True, keys=made.keys
                )
            finally:
                await watcher

        return _hijacked(request, talk, tty=made.spec.tty)

    async def _note_end(self, made: Exec, session: Session) -> None:
        with suppress(WherryError):
            made.code = await session.wait()
        made.running = False

    async def _drain(self, made: Exec, session: Session) -> None:
        try:
            async for _ in session.output():
                pass
            await self._note_end(made, session)
        finally:
            await session.close()

    async def _exec_resize(self, request: Request) -> Response:
        made = self._get_exec(request)
        rows, columns = _size(request)
        if made.session is not None:
            await made.session.resize(rows, columns)
        return Response(200)

    async def _exec_inspect(self, request: Request) -> Response:
        made = self._get_exec(request)
        if made.session is not None and made.running and made.code is None:
            with suppress(TimeoutError, WherryError):
                async with machine.timeout(1.0):  # its streams have ended: its status is about to be known
                    made.code = await made.session.wait()
                    made.running = False
        argv = list(made.spec.argv)
        return Response.json(
            {
                "ID": made.id,
                "Running": made.running,
                "ExitCode": made.code,
                "ProcessConfig": {
                    "tty": made.spec.tty, "entrypoint": argv[0], "arguments": argv[1:],
                    "privileged": made.spec.privileged, "user": made.spec.user,
                },
                "OpenStdin": made.spec.stdin,
                "OpenStdout": True,
                "OpenStderr": True,
                "CanRemove": not made.running,
                "ContainerID": made.container,
                "DetachKeys": "",
                "Pid": 0,
            }
        )  # fmt: skip


def _hijacked(request: Request, talk: Any, *, tty: bool) -> Response:
    """Take the connection over: 101 for a client that asks for an upgrade, 200 for one that does not."""
    headers = {"Content-Type": RAW if tty else MULTIPLEXED}
    if request.upgrade:
        return Response.upgrade({**headers, "Connection": "Upgrade", "Upgrade": "tcp"}, talk)
    return Response.upgrade(headers, talk, status=200)


async def _first(happened: AsyncIterator[EngineEvent], id: str, actions: tuple[str, ...]) -> EngineEvent | None:
    """Wait for the first event of a container with one of the actions."""
    async for event in happened:
        if event.id == id and event.action in actions:
            return event
    return None


def _check_platform(image: Image, asked: str) -> None:
    """Refuse another platform than the image's, as Docker does: `linux/amd64`, `linux`, or an architecture."""
    if not asked:
        return
    has = (str(image.config.get("os") or "linux"), str(image.config.get("architecture") or "amd64"))
    wanted = asked.lower().split("/")
    if wanted[: len(has)] != list(has[: len(wanted)]) and asked.lower() != has[1]:
        raise NotFound(
            f"the image is here, but does not match the specified platform: wanted {asked}, actual: {'/'.join(has)}"
        )


def _size(request: Request) -> tuple[int, int]:
    rows, columns = request.first("h") or "", request.first("w") or ""
    if not all(each.isascii() and each.isdigit() and int(each) < 65536 for each in (rows, columns)):
        raise BadRequest("resize: h and w are numbers of rows and columns")
    return int(rows), int(columns)


def _grace(request: Request) -> float | None:
    text = request.first("t")
    if text is None or text == "":
        return None
    try:
        seconds = int(text)
    except ValueError:
        raise BadRequest(f"t {text!r}: not a number of seconds") from None
    return FOREVER_S if seconds < 0 else min(FOREVER_S, float(seconds))


def _time(text: str | None) -> float:
    """A Unix time, with a fraction, or RFC 3339."""
    if not text or text == "0":
        return 0.0
    if re.fullmatch(r"\d+(\.\d+)?", text, re.ASCII):
        return float(text)
    try:
        return parse_rfc3339(text)
    except ValueError:
        raise Invalid(f"time {text!r}: neither seconds nor RFC 3339") from None
