"""Docker's endpoints that join a client to a container: attach, attach by WebSocket, resize."""

from collections.abc import AsyncIterator

from wherry.clock import machine
from wherry.doors.docker.changes import find
from wherry.doors.docker.containers import flag
from wherry.doors.docker.engine import DockerEngine
from wherry.doors.docker.keys import DetachKeys
from wherry.doors.docker.late import LateSession
from wherry.doors.docker.logs import log_pieces
from wherry.doors.docker.streams import Pipe, hijacked, join, read_size
from wherry.engine.types import Container, Session, State
from wherry.errors import Conflict, Unsupported
from wherry.wire.http import Request, Response
from wherry.wire.router import Route
from wherry.wire.streams import Stream
from wherry.wire.websocket import WebSocket, accept


class Attach:
    """The handlers."""

    def __init__(self, engine: DockerEngine) -> None:
        self._engine = engine

    def routes(self) -> tuple[Route, ...]:
        """The endpoints."""
        return (
            Route("POST", "/containers/{name}/attach", self._attach),
            Route("GET", "/containers/{name}/attach/ws", self._websocket),
            Route("POST", "/containers/{name}/resize", self._resize),
        )

    async def _attach(self, request: Request) -> Response:
        wish = await self._wish(request)

        async def talk(stream: Stream) -> None:
            await wish.talk(stream, raw=False)

        return hijacked(request, talk, tty=wish.container.spec.tty)

    async def _websocket(self, request: Request) -> Response:
        """Attach over a WebSocket: binary messages of raw output, without frames; messages of the client are input."""

        async def talk(websocket: WebSocket) -> None:
            wish = await self._wish(request)
            await wish.talk(_Messages(websocket), raw=True)

        await find(self._engine, request)
        DetachKeys(request.first("detachKeys") or "")
        return accept(request, (), talk)

    async def _wish(self, request: Request) -> "_Wish":
        keys = DetachKeys(request.first("detachKeys") or "")
        container = await find(self._engine, request)
        if container.state is State.PAUSED:
            raise Conflict(f"container {container.id} is paused, unpause the container before attach")
        if container.restarting:
            raise Conflict(f"container {container.id} is restarting, wait until the container is running")
        began = machine.now()
        session: Session
        try:
            session = await self._engine.attach(container.id)
        except Conflict:  # nothing runs yet, as before `docker start -a`, or when its command cannot be run
            session = LateSession(self._engine, container, began)
        self._engine.tell_of(container.id, "attach", {})
        return _Wish(self._engine, container, session, request, keys)

    async def _resize(self, request: Request) -> Response:
        container = await find(self._engine, request)
        rows, columns = read_size(request)
        if container.state not in (State.RUNNING, State.PAUSED):
            raise Conflict(f"Container {container.id} is not running")
        await self._engine.resize(container.id, rows, columns)
        self._engine.tell_of(container.id, "resize", {"height": str(rows), "width": str(columns)})
        return Response(200)


class _Wish:
    """What a client that attaches has asked for."""

    def __init__(
        self, engine: DockerEngine, container: Container, session: Session, request: Request, keys: DetachKeys
    ) -> None:
        self._engine = engine
        self.container = container
        self._session = session
        self._stdin, self._stdout, self._stderr = (flag(request, name) for name in ("stdin", "stdout", "stderr"))
        self._live, self._past = flag(request, "stream"), flag(request, "logs")
        self._keys = keys

    async def talk(self, stream: Pipe, *, raw: bool) -> None:
        """Send what there was, then carry what comes."""
        spec = self.container.spec
        try:
            if self._past:
                async for piece in self._written(raw=raw):
                    await stream.write(piece)
        except BaseException:
            await self._session.close()
            raise
        if not self._live:
            await self._session.close()
            return
        await join(
            stream, self._session, tty=spec.tty, stdin=self._stdin and spec.stdin, stdout=self._stdout,
            stderr=self._stderr, keys=self._keys if spec.tty else None, raw=raw,
            on_detach=lambda: self._engine.tell_of(self.container.id, "detach", {}),
        )  # fmt: skip

    async def _written(self, *, raw: bool) -> AsyncIterator[bytes]:
        """Yield what it has written so far, in blocks."""
        try:
            blocks = self._engine.log_blocks(self.container.id)
        except Unsupported:  # it keeps no log, so there is no past
            return
        tty = raw or self.container.spec.tty
        async for piece in log_pieces(blocks, tty=tty, stdout=self._stdout, stderr=self._stderr, timestamps=False):
            yield piece


class _Messages:
    """A WebSocket as a pipe."""

    def __init__(self, websocket: WebSocket) -> None:
        self._websocket = websocket
        self._closed = False

    async def read(self, n: int = 0) -> bytes:
        """Return the client's next message; b"" when it has gone."""
        del n
        message: bytes | str | None = b""
        while message in (b"", ""):
            message = await self._websocket.recv()
        return message.encode() if isinstance(message, str) else message or b""

    async def write(self, data: bytes) -> None:
        """Send a message."""
        if self._closed:
            raise ConnectionResetError("the client has let go")
        if data:
            await self._websocket.send(data)

    async def finish(self, linger_s: float) -> None:
        """Nothing: the connection is closed politely when we return."""
        del linger_s

    def close(self) -> None:
        """Send no more."""
        self._closed = True
