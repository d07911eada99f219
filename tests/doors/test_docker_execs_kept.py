"""What the door keeps of an exec that has ended: its answer, and nothing that is large."""

import asyncio
from types import SimpleNamespace
from typing import Any

import msgspec

from wherry.clock import machine
from wherry.doors.docker.execs import Execs
from wherry.engine.types import State
from wherry.wire.http import Request


class Session:
    """A process that ends when it is told to."""

    pid = 42
    has_output_ended = False

    def __init__(self) -> None:
        self.over = asyncio.Event()

    async def wait(self) -> int:
        await self.over.wait()
        return 7


class Engine:
    """One container that runs, and whatever is executed in it."""

    def __init__(self) -> None:
        self.sessions: list[Session] = []

    async def container(self, ref: str) -> Any:
        return SimpleNamespace(id=ref, state=State.RUNNING, restarting=False)

    async def exec(self, ref: str, spec: object) -> Session:
        self.sessions.append(Session())
        return self.sessions[-1]

    def tell_of(self, *_: object) -> None:
        return


async def test_an_exec_that_has_ended_lets_go_of_its_session() -> None:
    engine = Engine()
    execs = Execs(engine)  # type: ignore[arg-type]
    handlers = {(route.method, route.pattern): route.handler for route in execs.routes()}

    async def call(method: str, path: str, body: bytes = b"", **params: str) -> Any:
        request = Request.local(method, path, body=body)
        request.params.update(params)
        answer = await handlers[method, path](request)
        return msgspec.json.decode(answer.body) if answer.body else None

    made = await call("POST", "/containers/{name}/exec", b'{"Cmd": ["true"]}', name="web")
    await call("POST", "/exec/{id}/start", b'{"Detach": true}', id=made["Id"])
    assert (await call("GET", "/exec/{id}/json", id=made["Id"]))["Pid"] == 42
    engine.sessions[0].over.set()
    async with machine.timeout(5.0):
        while (shown := await call("GET", "/exec/{id}/json", id=made["Id"]))["Running"]:
            await machine.sleep(0.001)
    assert (shown["ExitCode"], shown["Pid"]) == (7, 0)
    assert execs._execs[made["Id"]].session is None  # pyright: ignore[reportPrivateUsage]
