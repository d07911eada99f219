"""A real API server on loopback TLS over a real store, and the stock kubectl that walks through it."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from wherry.api import kubeconfig
from wherry.api.pki import Authority
from wherry.api.server import Api
from wherry.api.settings import Audit, Settings
from wherry.clock import RealClock, machine
from wherry.model.users import User
from wherry.store.sqlite import SqliteStore
from wherry.wire.http import Request, Response
from wherry.wire.server import Server

Json = dict[str, Any]
KUBECTL = Path(sys.executable).with_name("kubectl")
ADMIN = User("admin", ("system:masters", "system:authenticated"))


@dataclass
class Answer:
    """What the API answered in process."""

    status: int
    headers: dict[str, str]
    data: bytes

    @property
    def json(self) -> Json:
        return json.loads(self.data)


@dataclass
class Running:
    """An API server that listens, and ways to ask it."""

    api: Api
    store: SqliteStore
    authority: Authority
    url: str
    directory: Path
    socket: Path
    seen: list[Audit] = field(default_factory=list)

    async def ask(
        self, method: str, path: str, body: Any = None, *, user: User = ADMIN, headers: dict[str, str] | None = None
    ) -> Answer:
        """One request in process, after authentication."""
        path, _, text = path.partition("?")
        query = [tuple(pair.partition("=")[::2]) for pair in text.split("&")] if text else []
        data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        sent = {"Content-Type": "application/json", **(headers or {})}
        response = await self.api.serve(Request.local(method, path, query, sent, data), user)
        assert isinstance(response.body, bytes), "a stream: use watch"
        return Answer(response.status, response.headers.lower(), response.body)

    async def make(self, path: str, body: Json, *, user: User = ADMIN) -> Json:
        """Create an object; it must work."""
        answer = await self.ask("POST", path, body, user=user)
        assert answer.status == 201, answer.data
        return answer.json

    async def watch(self, path: str, *, user: User = ADMIN) -> AsyncIterator[Json]:
        """The events of a watch."""
        path, _, text = path.partition("?")
        query = [("watch", "1"), *(tuple(pair.partition("=")[::2]) for pair in text.split("&") if text)]
        response = await self.api.serve(Request.local("GET", path, query), user)
        assert not isinstance(response.body, bytes), response.body
        async for piece in response.body.pieces:
            for line in piece.splitlines():
                yield json.loads(line)

    def config(self, name: str, groups: tuple[str, ...] = ()) -> Path:
        """A kubeconfig for a user, by client certificate."""
        path = self.directory / f"{name.replace(':', '_')}.kubeconfig"
        if not path.exists():
            credentials = self.authority.issue_client(name, groups)
            path.write_text(kubeconfig.text(self.url, self.authority.ca_pem, credentials=credentials))
        return path

    async def kubectl(self, *words: str, stdin: str = "", fails: bool = False, user: str = "admin") -> str:
        """Run the stock kubectl; its output (with stderr when it must fail)."""
        groups = ("system:masters",) if user == "admin" else ()
        process = await asyncio.create_subprocess_exec(
            str(KUBECTL),
            *words,
            env={
                **os.environ,
                "KUBECONFIG": str(self.config(user, groups)),
                "HOME": str(self.directory),
                "KUBECACHEDIR": str(self.directory / "cache"),
            },
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            async with machine.timeout(30):
                out, err = await process.communicate(stdin.encode())
        except TimeoutError:
            process.kill()
            out, err = await process.communicate()
            raise AssertionError(f"kubectl {' '.join(words)} hangs: {out.decode()}{err.decode()}") from None
        if fails:
            assert process.returncode != 0, f"kubectl {' '.join(words)} worked: {out.decode()}"
            return out.decode() + err.decode()
        assert process.returncode == 0, f"kubectl {' '.join(words)}: {out.decode()}{err.decode()}"
        return out.decode()


Start = Callable[..., Awaitable[Running]]


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Start]:
    """Starts API servers; they end with the test."""
    running: list[tuple[Api, Server, SqliteStore]] = []

    async def begin(directory: Path | None = None, *, settings: Settings | None = None, **options: Any) -> Running:
        root = directory or tmp_path / f"api{len(running)}"
        clock = options.pop("clock", None) or RealClock()
        store = await SqliteStore.open(root / "store", clock=clock, durability="test")
        authority = Authority.load_or_create(root / "pki", clock)
        seen: list[Audit] = []
        options.setdefault("audit", seen.append)
        api = Api(store, clock=clock, authority=authority, settings=settings, **options)
        await api.start()
        server = Server(api.handle, on_error=api.fail)
        paths = authority.issue_server("wherry-api", ["127.0.0.1", "localhost"]).save(root, "server")
        host, port = await server.start_tcp("127.0.0.1", 0, authority.server_context(*paths))
        socket = root / "api.sock"
        await server.start_unix(socket)
        await api.advertise([(host, port)])
        running.append((api, server, store))
        return Running(api, store, authority, f"https://{host}:{port}", root, socket, seen)

    yield begin
    for api, server, store in reversed(running):
        await server.close(0)
        await api.close()
        await store.close()


@pytest.fixture
async def api(start: Start) -> Running:
    """One API server."""
    return await start()


__all__ = ["Answer", "Response", "Running", "Start"]
