"""A registry on a unix socket and on a loopback port, as `wherry registry` serves it."""

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.registry.far import Far
from tests.registry.servers import Postgres, Seaweed

from wherry.clock import VirtualClock
from wherry.content.local import LocalContent
from wherry.registry.postgres import PostgresRecords
from wherry.registry.records import Records
from wherry.registry.service import Registry
from wherry.registry.sqlite import SqliteRecords
from wherry.wire.client import Endpoint, HttpClient
from wherry.wire.server import Server

BOTH = (
    "test_access",
    "test_admin",
    "test_collection",
    "test_protocol",
    "test_replication",
    "test_spec",
    "test_upstreams",
)
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


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL server of the tests' own."""
    with Postgres() as server:
        yield server


@pytest.fixture(scope="session", autouse=True)
def begun(request: pytest.FixtureRequest) -> Iterator[Seaweed | None]:
    """An S3 server of the tests' own, begun before the first test when one of them will want it."""
    if any("seaweed" in getattr(item, "fixturenames", ()) for item in request.session.items):
        with Seaweed() as server:
            yield server
    else:
        yield None


@pytest.fixture(scope="session")
def seaweed(begun: Seaweed | None) -> Seaweed:
    """The S3 server, when it serves."""
    assert begun is not None
    return begun.ready()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """What depends on the records is tested on each place they can be kept in; lists of wrong requests only once."""
    if "records" in metafunc.fixturenames:
        module = metafunc.module.__name__.rpartition(".")[2]
        wide = module in BOTH and not list(metafunc.definition.iter_markers("parametrize"))
        metafunc.parametrize("records", ["sqlite", "postgres"] if wide else ["sqlite"], indirect=True)


@pytest.fixture
def records(request: pytest.FixtureRequest, tmp_path: Path) -> Records:
    """Each place that records can be kept in, empty."""
    if request.param == "sqlite":
        return SqliteRecords(tmp_path / "registry" / "registry.db")
    server: Postgres = request.getfixturevalue("postgres")
    return PostgresRecords(server.fresh())


@pytest.fixture
async def served(tmp_path: Path, clock: VirtualClock, content: LocalContent, records: Records) -> AsyncIterator[Served]:
    token_file = tmp_path / "token"
    token_file.write_text(TOKEN + "\n")
    registry = Registry(content, tmp_path / "registry", clock=clock, token_file=token_file, records=records)
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


@pytest.fixture
async def far(tmp_path: Path, clock: VirtualClock) -> AsyncIterator[Far]:
    content = LocalContent.open(tmp_path / "far", clock=clock)
    token = tmp_path / "far-token"
    token.write_text("far away\n")
    registry = Registry(content, tmp_path / "far-registry", clock=clock, token_file=token, public=False)
    await registry.start()
    upstream = Far(registry)
    async with Server(upstream.handle) as server, Server(registry.handle) as own:
        _, port = await server.start_tcp("127.0.0.1", 0)
        await own.start_unix(tmp_path / "far.sock")
        async with HttpClient(Endpoint.parse(f"unix:{tmp_path}/far.sock")) as client:
            upstream.client, upstream.address = client, f"http://127.0.0.1:{port}"
            yield upstream
    await registry.close()
    await content.close()
