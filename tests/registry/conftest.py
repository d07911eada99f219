"""A registry on a unix socket and on a loopback port, as `wherry registry` serves it."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from wherry.clock import VirtualClock
from wherry.content.local import LocalContent
from wherry.registry.service import Registry
from wherry.wire.client import Endpoint, HttpClient
from wherry.wire.server import Server

TOKEN = "a-secret-of-this-registry"


@dataclass
class Served:
    """The registry, where it answers, and a client for each door."""

    registry: Registry
    content: LocalContent
    clock: VirtualClock
    socket: str
    address: str
    local: HttpClient
    tcp: HttpClient


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
async def content(tmp_path: Path, clock: VirtualClock) -> AsyncIterator[LocalContent]:
    store = LocalContent.open(tmp_path / "content", clock=clock)
    yield store
    await store.close()


@pytest.fixture
async def served(tmp_path: Path, clock: VirtualClock, content: LocalContent) -> AsyncIterator[Served]:
    token_file = tmp_path / "token"
    token_file.write_text(TOKEN + "\n")
    registry = Registry(content, tmp_path / "registry", clock=clock, token_file=token_file)
    await registry.start()
    async with Server(registry.handle) as server:
        socket = str(tmp_path / "r.sock")
        await server.start_unix(socket)
        _, port = await server.start_tcp("127.0.0.1", 0)
        async with (
            HttpClient(Endpoint.parse(f"unix:{socket}")) as local,
            HttpClient(Endpoint.parse(f"http://127.0.0.1:{port}")) as tcp,
        ):
            yield Served(registry, content, clock, socket, f"127.0.0.1:{port}", local, tcp)
    await registry.close()
