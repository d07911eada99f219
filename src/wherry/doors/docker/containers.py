"""Docker's endpoints about containers and exec."""

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import msgspec

from wherry.clock import Clock, machine, parse_rfc3339
from wherry.doors.docker import answers, filters, requests
from wherry.doors.docker.streams import join, log_pieces
from wherry.engine.types import Container, Engine, ExecSpec, Image, Session, State
from wherry.errors import BadRequest, Conflict, Invalid, NotFound, WherryError
from wherry.wire.http import Request, Response
from wherry.wire.router import Route
from wherry.wire.streams import Stream

RAW = "application/vnd.docker.raw-stream"
MULTIPLEXED = "application/vnd.docker.multiplexed-stream"
EXECS_KEPT = 1000


class Exec:
    """One exec: made by one request, run by the next, asked about later."""

    def __init__(self, container: str, spec: ExecSpec) -> None:
        self.id = secrets.token_hex(32)
        self.container = container
        self.spec = spec
        self.session: Session | None = None
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
    except msgspec.MsgspecError as error:
        raise BadRequest(f"invalid JSON: {error}") from None


class Containers:
    """The handlers. They keep nothing but the execs of this process."""

    def __init__(self, engine: Engine, clock: Clock) -> None:
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
        everything = flag(request, "all") or "status" in wanted or "exited" in wanted
        names = {image.id: [answers.familiar(name) for name in image.names] for image in await self._engine.images()}
        found = [
            each
            for each in await self._engine.containers()
            if (everything or each.state in (State.RUNNING, State.PAUSED))
            and filters.matches_container(each, wanted, names.get(each.image_id, ()))
        ]
        found.sort(key=lambda each: -each.created)
        limit = request.first("limit") or ""
        if limit.lstrip("-").isdigit() and int(limit) > 0:
            found = found[: int(limit)]
        return Response.json([answers.container_summary(each, self._clock.now()) for each in found])

    async def _create(self, request: Request) -> Response:
        body = await json_body(request)
        name = request.first("name") or ""
        if request.first("platform"):
            await self._engine.image(str(body.get("Image") or ""))
        spec = requests.container_spec(body, name)
        try:
            made = await self._engine.create(spec)
        except NotFound as error:
            if "image" in error.message.lower() and "No such image" not in error.message:
                raise NotFound(f"No such image: {spec.image}") from None
            raise
        return Response.json({"Id": made.id, "Warnings": []}, status=201)

    async def _find(self, request: Request) -> Container:
        name = request.params["name"]
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
        await self._engine.start(container.id)
        return Response(204)

    async def _stop(self, request: Request) -> Response:
        container = await self._find(request)
        if container.state not in (State.RUNNING, State.PAUSED):
            return Response(304)
        with suppress(Conflict):
            await self._engine.stop(container.id, grace_s=_grace(request))
        return Response(204)

    async def _restart(self, request: Request) -> Response:
        container = await self._find(request)
        if container.state in (State.RUNNING, State.PAUSED):
            with suppress(Conflict):
                await self._engine.stop(container.id, grace_s=_grace(request))
        await self._engine.start(container.id)
        return Response(204)

    async def _kill(self, request: Request) -> Response:
        container = await self._find(request)
        if container.state not in (State.RUNNING, State.PAUSED):
            raise Conflict(f"cannot kill container: {container.name}: container {container.id} is not running")
        signal = request.first("signal") or "SIGKILL"
        await self._engine.kill(
            container.id, signal if signal.isdigit() or signal.startswith("SIG") else f"SIG{signal}"
        )
        return Response(204)

    async def _wait(self, request: Request) -> Response:
        container = await self._find(request)
        condition = request.first("condition") or "not-running"
        if condition not in ("not-running", "next-exit", "removed"):
            raise BadRequest(f"invalid condition: {condition!r}")
        at_once = condition == "not-running" and container.state in (State.CREATED, State.EXITED)

        async def pieces() -> AsyncIterator[bytes]:
            if at_once:
                code = container.exit.code if container.exit else 0
            else:
                code = await self._next_exit(container, condition)
            yield msgspec.json.encode({"StatusCode": code}) + b"\n"

        # The head goes out at once: clients start the container only when they have it.
        return Response.stream(pieces(), headers={"Content-Type": "application/json"})

    async def _next_exit(self, container: Container, condition: str) -> int:
        code = 0
        try:
            code = (await self._engine.wait(container.id)).code
        except NotFound:
            return code  # removed while we waited
        pause_s = 0.005
        while condition == "removed":
            try:
                await self._engine.container(container.id)
            except NotFound:
                break
            await machine.sleep(pause_s)
            pause_s = min(0.25, pause_s * 2)
        return code

    async def _attach(self, request: Request) -> Response:
        container = await self._find(request)
        tty = container.spec.tty
        stdin, stdout, stderr = (flag(request, name) for name in ("stdin", "stdout", "stderr"))
        if not flag(request, "stream"):
            stdin = False
        if container.state is State.EXITED:
            raise Conflict(f"container {container.id} is not running")
        session = await self._engine.attach(container.id)

        async def talk(stream: Stream) -> None:
            await join(
                stream, session, tty=tty, stdin=stdin and container.spec.stdin, stdout=stdout, stderr=stderr
            )  # fmt: skip

        return _hijacked(request, talk, tty=tty)

    async def _resize(self, request: Request) -> Response:
        container = await self._find(request)
        rows, columns = _size(request)
        session = await self._engine.attach(container.id)
        try:
            await session.resize(rows, columns)
        finally:
            await session.close()
        return Response(200)

    async def _logs(self, request: Request) -> Response:
        container = await self._find(request)
        stdout, stderr = flag(request, "stdout"), flag(request, "stderr")
        if not stdout and not stderr:
            raise BadRequest("Bad parameters: you must choose at least one stream")
        tail = request.first("tail") or "all"
        if tail != "all" and not tail.isdigit():
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
        return Response.stream(pieces, headers={"Content-Type": RAW if container.spec.tty else MULTIPLEXED})

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
        await self._engine.remove(container.id, force=force)
        return Response(204)

    # exec -------------------------------------------------------------------------------------------------------------

    async def _exec_create(self, request: Request) -> Response:
        container = await self._find(request)
        spec = requests.exec_spec(await json_body(request))
        if container.state is not State.RUNNING:
            raise Conflict(f"container {container.id} is not running")
        made = Exec(container.id, spec)
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
                await join(stream, session, tty=made.spec.tty, stdin=made.spec.stdin, stdout=True, stderr=True)
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


def _size(request: Request) -> tuple[int, int]:
    rows, columns = request.first("h") or "", request.first("w") or ""
    if not rows.isdigit() or not columns.isdigit():
        raise BadRequest("resize: h and w are numbers of rows and columns")
    return int(rows), int(columns)


def _grace(request: Request) -> float | None:
    text = request.first("t")
    if text is None or text == "":
        return None
    if not text.lstrip("-").isdigit():
        raise BadRequest(f"t {text!r}: not a number of seconds")
    return 1e9 if int(text) < 0 else float(text)


def _time(text: str | None) -> float:
    """A Unix time, with a fraction, or RFC 3339."""
    if not text or text == "0":
        return 0.0
    try:
        return float(text)
    except ValueError:
        pass
    try:
        return parse_rfc3339(text)
    except ValueError:
        raise Invalid(f"time {text!r}: neither seconds nor RFC 3339") from None
