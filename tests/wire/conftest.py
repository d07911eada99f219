"""A served handler, a client bound to it, and raw conversations."""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from wherry.clock import machine
from wherry.wire.client import Endpoint, HttpClient
from wherry.wire.http import Handler, OnError
from wherry.wire.server import Limits, Server

PATIENCE_S = 10.0


class Talk:
    """A raw connection: what is sent and what comes back are bytes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        """Send, in one piece."""
        self.writer.write(data)
        with contextlib.suppress(ConnectionError):
            await self.writer.drain()

    def eof(self) -> None:
        """End our side."""
        self.writer.write_eof()

    async def until(self, mark: bytes) -> bytes:
        """Read up to and including `mark`."""
        async with machine.timeout(PATIENCE_S):
            return await self.reader.readuntil(mark)

    async def exactly(self, count: int) -> bytes:
        """Read that many bytes."""
        async with machine.timeout(PATIENCE_S):
            return await self.reader.readexactly(count)

    async def answer(self, method: str = "GET") -> tuple[int, dict[str, str], bytes]:
        """Read one answer that has a Content-Length: status, fields by lower-case name, body."""
        status, fields = await self.head()
        size = int(fields.get("content-length", "0")) if method != "HEAD" and status not in (204, 304) else 0
        return status, fields, await self.exactly(size)

    async def head(self) -> tuple[int, dict[str, str]]:
        """Read the head of one answer."""
        lines = (await self.until(b"\r\n\r\n")).decode().split("\r\n")
        found = re.fullmatch(r"HTTP/1\.1 (\d{3}) .+", lines[0])
        assert found, lines[0]
        return int(found[1]), {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:-2])}

    async def rest(self) -> bytes:
        """Read to the end; a reset is an end too."""
        pieces: list[bytes] = []
        async with machine.timeout(PATIENCE_S):
            with contextlib.suppress(ConnectionError):
                while piece := await self.reader.read(65536):
                    pieces.append(piece)
        return b"".join(pieces)

    async def closed(self) -> bool:
        """Whether the server closes without a word."""
        return await self.rest() == b""

    def close(self) -> None:
        """Close."""
        self.writer.close()


@dataclass
class House:
    """A running server on a unix socket."""

    server: Server
    path: str
    client: HttpClient
    talks: list[Talk] = field(default_factory=list)

    async def talk(self) -> Talk:
        """Open a raw connection."""
        talk = Talk(*await asyncio.open_unix_connection(self.path))
        self.talks.append(talk)
        return talk

    async def ask(self, data: bytes) -> bytes:
        """Send on a new connection, end our side, return everything that comes."""
        talk = await self.talk()
        await talk.send(data)
        talk.eof()
        return await talk.rest()


Serve = Callable[..., Awaitable[House]]


@pytest.fixture
async def serve(tmp_path: Path) -> AsyncIterator[Serve]:
    """Start servers; everything is closed at the end of the test."""
    houses: list[House] = []

    async def start(handler: Handler, *, limits: Limits | None = None, on_error: OnError | None = None) -> House:
        server = Server(handler, limits=limits, on_error=on_error)
        path = str(tmp_path / f"{len(houses)}.sock")
        await server.start_unix(path)
        house = House(server, path, HttpClient(Endpoint.parse(f"unix:{path}")))
        houses.append(house)
        return house

    yield start
    for house in houses:
        for talk in house.talks:
            talk.close()
        await house.client.close()
        await house.server.close(0)


async def _eventually(check: Callable[[], Any], what: str = "") -> Any:
    async with machine.timeout(PATIENCE_S):
        while not (found := check()):
            await machine.sleep(0.005)
    return found


@pytest.fixture
def eventually() -> Callable[..., Awaitable[Any]]:
    """Wait until a function returns something true."""
    return _eventually
