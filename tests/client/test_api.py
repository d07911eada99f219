"""The client against the real API: errors come back as what they were, in process and by HTTP alike."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import orjson
import pytest

from tests.client.world import World, api_world
from wherry.client.api import ApiClient
from wherry.client.status import CODES, REASONS, error_of
from wherry.client.transports import HttpTransport
from wherry.clock import machine
from wherry.errors import (
    AlreadyExists,
    BadRequest,
    Broken,
    Conflict,
    Expired,
    Forbidden,
    Invalid,
    NotFound,
    TooManyRequests,
    Unavailable,
    WherryError,
)
from wherry.model import users
from wherry.model.kinds import CONFIGMAPS, NODES, PODS
from wherry.model.users import User
from wherry.wire.client import Endpoint, HttpClient
from wherry.wire.server import Server


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with api_world(tmp_path) as world:
        yield world


@pytest.fixture(params=["local", "http"])
async def client(request: pytest.FixtureRequest, world: World, tmp_path: Path) -> AsyncIterator[ApiClient]:
    """The same calls, without a socket and with one."""
    if request.param == "local":
        yield world.client
        return
    server = Server(world.api.handle)
    path = tmp_path / "api.sock"
    await server.start_unix(path)
    async with ApiClient(HttpTransport(HttpClient(Endpoint.parse(f"unix:{path}")))) as client:
        yield client
    await server.close(1.0)


def config(name: str, **data: str) -> dict[str, object]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}


async def test_objects_are_made_read_changed_and_deleted(client: ApiClient) -> None:
    made = orjson.loads(await client.create(CONFIGMAPS, config("a", x="1"), "default"))
    assert orjson.loads(await client.get(CONFIGMAPS, "a", "default")) == made
    patched = orjson.loads(await client.patch(CONFIGMAPS, "a", "default", {"data": {"y": "2"}}))
    assert patched["data"] == {"x": "1", "y": "2"}
    operations = [{"op": "remove", "path": "/data/x"}]
    assert orjson.loads(await client.patch(CONFIGMAPS, "a", "default", operations, type="json"))["data"] == {"y": "2"}
    with pytest.raises(Conflict, match="a"):
        await client.update(CONFIGMAPS, made)
    listing = await client.list(CONFIGMAPS, "default", fields="metadata.name=a")
    assert [orjson.loads(item)["metadata"]["name"] for item in listing.items] == ["a"]
    assert listing.version.isdigit()
    with pytest.raises(Conflict):
        await client.delete(CONFIGMAPS, "a", "default", uid="another")
    await client.delete(CONFIGMAPS, "a", "default", uid=made["metadata"]["uid"])
    with pytest.raises(NotFound, match="a"):
        await client.get(CONFIGMAPS, "a", "default")


async def test_errors_are_what_the_server_meant(client: ApiClient) -> None:
    await client.create(CONFIGMAPS, config("a"), "default")
    with pytest.raises(AlreadyExists):
        await client.create(CONFIGMAPS, config("a"), "default")
    with pytest.raises(Invalid) as invalid:
        await client.create(CONFIGMAPS, config("No Such Name"), "default")
    assert invalid.value.causes[0].field == "metadata.name"
    with pytest.raises(WherryError) as other:
        await client.request("GET", "/apis/nothing.example.com/v1/things")
    assert isinstance(other.value, NotFound)


async def test_a_watch_yields_what_happens_until_it_is_closed(client: ApiClient) -> None:
    listing = await client.list(CONFIGMAPS, "default")
    async with aclosing(client.watch(CONFIGMAPS, "default", version=listing.version)) as changes:  # type: ignore[type-var]
        await client.create(CONFIGMAPS, config("a"), "default")
        await client.delete(CONFIGMAPS, "a", "default")
        seen = [(await anext(changes)).type for _ in range(2)]
    assert seen == ["ADDED", "DELETED"]


async def test_a_watch_with_initial_events_marks_their_end(client: ApiClient) -> None:
    await client.create(CONFIGMAPS, config("a"), "default")
    seen: list[str] = []
    async for change in client.watch(CONFIGMAPS, "default", version="", initial=True):
        seen.append(change.type)
        if change.type == "BOOKMARK":
            assert b"initial-events-end" in change.object
            break
    assert seen == ["ADDED", "BOOKMARK"]


async def test_long_lists_come_in_pages_of_one_revision(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wherry.client.api.PAGE", 3)
    for number in range(8):
        await world.client.create(CONFIGMAPS, config(f"c{number}"), "default")
    found = await world.client.list(CONFIGMAPS, "default")
    assert len({orjson.loads(item)["metadata"]["name"] for item in found.items}) == 8


async def test_a_transport_acts_as_the_user_it_is_given(world: World, tmp_path: Path) -> None:
    nobody = world.as_user(User("nobody", ("system:authenticated",)))
    with pytest.raises(Forbidden, match="nobody"):
        await nobody.list(PODS)
    server = Server(world.api.handle)
    path = tmp_path / "api.sock"
    await server.start_unix(path)
    http = HttpClient(Endpoint.parse(f"unix:{path}"))
    async with ApiClient(HttpTransport(http, users.node("a"))) as node:
        with pytest.raises(Forbidden, match="system:node:a"):
            await node.delete(NODES, "b")
    async with ApiClient(HttpTransport(HttpClient(Endpoint.parse(f"unix:{path}")), User("nobody"))) as client:
        with pytest.raises(Forbidden, match="nobody"):
            await client.list(PODS)
    await server.close(1.0)


async def test_a_server_that_is_away_is_unavailable(tmp_path: Path) -> None:
    async with ApiClient(HttpTransport(HttpClient(Endpoint.parse(f"unix:{tmp_path}/none.sock")))) as client:
        with pytest.raises(Unavailable):
            await client.list(PODS)


async def test_a_server_that_never_answers_is_given_up(world: World) -> None:
    from wherry.client.transports import LocalTransport
    from wherry.errors import DeadlineExceeded
    from wherry.wire.http import Request, Response

    async def never(request: Request, user: User) -> Response:
        await asyncio.Event().wait()
        raise AssertionError

    client = ApiClient(LocalTransport(never, User("a")), timeout_s=0.05)
    with pytest.raises(DeadlineExceeded, match="GET"):
        await client.get(PODS, "a", "default")
    began = machine.monotonic()
    with pytest.raises(DeadlineExceeded):
        await anext(client.watch(PODS, version="1"))
    assert machine.monotonic() - began < 5


@pytest.mark.parametrize(
    ("code", "body", "error"),
    [
        (409, b'{"reason":"AlreadyExists","message":"there"}', AlreadyExists),
        (409, b'{"reason":"Conflict"}', Conflict),
        (410, b'{"reason":"Expired"}', Expired),
        (410, b'{"reason":"Gone"}', Expired),
        (429, b'{"reason":"TooManyRequests","details":{"retryAfterSeconds":7}}', TooManyRequests),
        (502, b"<html>bad gateway</html>", Unavailable),
        (500, b"", Broken),
        (400, b'{"reason":5}', BadRequest),
    ],
)
def test_a_status_becomes_its_error(code: int, body: bytes, error: type[WherryError]) -> None:
    made = error_of(code, body)
    assert type(made) is error
    assert made.message
    if isinstance(made, TooManyRequests):
        assert made.retry_after_s == 7


def test_every_reason_that_our_server_gives_has_its_class() -> None:
    from wherry.api.errors import STATUS

    for error, (code, reason) in STATUS.items():
        if reason != "ServiceUnavailable":
            assert REASONS[reason] is error
        assert code in CODES
