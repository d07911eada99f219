"""Docker's endpoints about exec: made by one request, run by the next, asked about later."""

import asyncio
import base64
import secrets
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from wherry.clock import machine
from wherry.doors.docker import requests
from wherry.doors.docker.containers import json_body
from wherry.doors.docker.engine import DockerEngine, ExecSession
from wherry.doors.docker.keys import DetachKeys
from wherry.doors.docker.streams import LINGER_S, frame, hijacked, join, read_size
from wherry.engine.types import ExecSpec, State
from wherry.errors import BadRequest, Conflict, NotFound, WherryError
from wherry.wire.http import Request, Response
from wherry.wire.router import Route
from wherry.wire.streams import Stream

EXECS_KEPT = 1000
NOT_STARTED = 126
"""The exit code of an exec that never ran. Source: Docker, "docker exec"; 127 is for a command that is not there."""


class Exec:
    """One exec. `stdout`, `stderr`: which of its streams its maker wanted."""

    def __init__(self, container: str, spec: ExecSpec, *, stdout: bool, stderr: bool) -> None:
        self.id = secrets.token_hex(32)
        self.container = container
        self.spec = spec
        self.stdout = stdout
        self.stderr = stderr
        self.session: ExecSession | None = None
        self.keys = ""
        self.code: int | None = None
        self.running = False
        self.begun = False


class Execs:
    """The handlers, and the execs of this process: they are forgotten with it."""

    def __init__(self, engine: DockerEngine) -> None:
        self._engine = engine
        self._execs: dict[str, Exec] = {}

    def routes(self) -> tuple[Route, ...]:
        """All endpoints about exec."""
        return (
            Route("POST", "/containers/{name}/exec", self._create),
            Route("POST", "/exec/{id}/start", self._start),
            Route("POST", "/exec/{id}/resize", self._resize),
            Route("GET", "/exec/{id}/json", self._inspect),
        )

    def ids_of(self, container: str) -> Sequence[str] | None:
        """Name the execs of a container that have not ended; None for none, as `inspect` shows it."""
        return [each.id for each in self._execs.values() if each.container == container and each.code is None] or None

    async def _create(self, request: Request) -> Response:
        name = request.params["name"]
        try:
            container = await self._engine.container(name.removeprefix("/"))
        except NotFound:
            raise NotFound(f"No such container: {name}") from None
        body = requests.named_as(await json_body(request), requests.EXEC)
        spec = requests.exec_spec(body)
        if container.state is State.PAUSED:
            raise Conflict(f"Container {name} is paused, unpause the container before exec")
        if container.restarting:
            raise Conflict(f"Container {name} is restarting, wait until the container is running")
        if container.state is not State.RUNNING:
            raise Conflict(f"container {container.id} is not running")
        keys = str(body.get("DetachKeys") or "")
        DetachKeys(keys)  # refused here, not when it is typed
        spec = replace(spec, size=_console(body))
        made = Exec(
            container.id, spec, stdout=bool(body.get("AttachStdout")), stderr=bool(body.get("AttachStderr"))
        )  # fmt: skip
        made.keys = keys
        self._execs[made.id] = made
        self._forget()
        self._tell(made, f"exec_create: {' '.join(spec.argv)}")
        return Response.json({"Id": made.id}, status=201)

    def _forget(self) -> None:
        """Drop the oldest that have ended, then the oldest that were never started."""
        for has_gone in (lambda each: each.code is not None, lambda each: not each.begun):
            if len(self._execs) > EXECS_KEPT:
                for id in [each.id for each in self._execs.values() if has_gone(each)][: len(self._execs) - EXECS_KEPT]:
                    del self._execs[id]

    def _get(self, request: Request) -> Exec:
        found = self._execs.get(request.params["id"])
        if found is None:
            raise NotFound(f"No such exec instance: {request.params['id']}")
        return found

    async def _start(self, request: Request) -> Response:
        made = self._get(request)
        body = await json_body(request)
        if made.code is not None:
            raise Conflict(f"Error: Exec command {made.id} has already run")
        if made.begun:
            raise Conflict(f"Error: Exec command {made.id} is already running")
        detached = bool(body.get("Detach"))
        tty = bool(body.get("Tty"))  # whether output is framed is for the start to say, whatever the process has
        size = _console(body) or made.spec.size
        made.begun = True
        self._tell(made, f"exec_start: {' '.join(made.spec.argv)}")
        try:
            session = await self._engine.exec(made.container, replace(made.spec, size=size, detached=detached))
        except WherryError as error:
            made.code = NOT_STARTED
            self._tell(made, "exec_die", exitCode=str(NOT_STARTED))
            if detached:
                raise
            return _failed(request, error.message, tty=tty)
        except BaseException:
            made.code = NOT_STARTED
            raise
        made.session = session
        made.running = True
        follower = asyncio.create_task(self._note_end(made, session), name=f"exec:{made.id[:12]}")
        follower.add_done_callback(lambda done: done.cancelled() or done.exception())
        if detached:
            return Response(200)

        async def talk(stream: Stream) -> None:
            await join(
                stream, session, tty=tty, stdin=made.spec.stdin, stdout=made.stdout, stderr=made.stderr,
                keys=DetachKeys(made.keys) if made.spec.tty else None,
                on_detach=lambda: self._tell(made, "exec_detach"),
            )  # fmt: skip

        return hijacked(request, talk, tty=tty)

    async def _note_end(self, made: Exec, session: ExecSession) -> None:
        code = NOT_STARTED
        with suppress(WherryError):
            code = await session.wait()
        made.code, made.running = code, False
        made.session = None  # six kilobytes, and there may be a thousand that have ended
        self._tell(made, "exec_die", exitCode=str(code))

    async def _resize(self, request: Request) -> Response:
        made = self._get(request)
        rows, columns = read_size(request)
        if made.session is None or not made.running:
            raise Conflict(f"exec {made.id} is not running: start it before resizing")
        await made.session.resize(rows, columns)
        return Response(200)

    async def _inspect(self, request: Request) -> Response:
        made = self._get(request)
        if made.session is not None and made.running and made.session.has_output_ended:
            with suppress(TimeoutError, WherryError):
                async with machine.timeout(1.0):  # its streams have ended: its status is about to be known
                    made.code = await made.session.wait()
                    made.running = False
        if made.session is not None:
            with suppress(TimeoutError):
                async with machine.timeout(1.0):  # it has just been spawned: its pid is about to be known
                    while made.running and not made.session.pid:
                        await machine.sleep(0.005)
        argv = list(made.spec.argv)
        config = {
            "tty": made.spec.tty,
            "entrypoint": argv[0],
            "arguments": argv[1:],
            "privileged": made.spec.privileged,
        }
        if made.spec.user:
            config["user"] = made.spec.user
        return Response.json(
            {
                "ID": made.id,
                "Running": made.running,
                "ExitCode": made.code,
                "ProcessConfig": config,
                "OpenStdin": made.spec.stdin,
                "OpenStdout": made.stdout,
                "OpenStderr": made.stderr,
                "CanRemove": False,
                "ContainerID": made.container,
                "DetachKeys": base64.b64encode(DetachKeys(made.keys).keys if made.keys else b"").decode(),
                "Pid": made.session.pid if made.session is not None and made.running else 0,
            }
        )

    def _tell(self, made: Exec, action: str, **attributes: str) -> None:
        self._engine.tell_of(made.container, action, {"execID": made.id, **attributes})


def _failed(request: Request, words: str, *, tty: bool) -> Response:
    """Say over the stream why it did not start: clients read no other answer of ours here."""

    async def talk(stream: Stream) -> None:
        line = f"{words}\r\n".encode()
        await stream.write(line if tty else frame("stdout", line))
        await stream.finish(LINGER_S)

    return hijacked(request, talk, tty=tty)


def _console(body: Mapping[str, Any]) -> tuple[int, int] | None:
    """Read `ConsoleSize`: rows, columns. Raises BadRequest."""
    size = body.get("ConsoleSize")
    if not size or size == [0, 0]:
        return None
    if not isinstance(size, list) or len(size) != 2 or not all(isinstance(n, int) and 0 < n < 65536 for n in size):
        raise BadRequest("ConsoleSize: two numbers are wanted, rows and columns")
    return size[0], size[1]
