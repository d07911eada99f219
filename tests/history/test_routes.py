"""The history as its callers reach it: paths, times as people write them, errors that help."""

from collections.abc import Mapping
from typing import Any

import orjson
import pytest
from tests.history.conftest import World

from wherry.clock import rfc3339
from wherry.errors import BadRequest, Expired, Forbidden, Invalid, NotFound, Unsupported, WherryError
from wherry.history.moments import Moment, parse_moment
from wherry.history.routes import routes
from wherry.model.kinds import CONFIGMAPS, DEPLOYMENTS, NODES, PODS, Kind
from wherry.wire.http import Request, Response
from wherry.wire.router import Router


async def ask(world: World, target: str, method: str = "GET", body: bytes = b"", **named: Any) -> Response:
    path, _, query = target.partition("?")
    fields = [tuple(field.split("=", 1)) for field in query.split("&")] if query else []
    request = Request.local(method, path, fields, body=body)  # type: ignore[arg-type]
    handler, request.params = Router(routes(world.archive, **named)).match(method, path)
    return await handler(request)


async def read(world: World, target: str, **named: Any) -> Any:
    response = await ask(world, target, **named)
    assert response.status in (200, 201)
    assert isinstance(response.body, bytes)
    return orjson.loads(response.body)


async def test_get_and_list_as_of_a_time(world: World) -> None:
    await world.write(DEPLOYMENTS, "web", 1)
    await world.clock.advance(600)
    await world.write(DEPLOYMENTS, "web", 2)
    await world.write(DEPLOYMENTS, "api", 1)
    await world.clock.advance(60)
    base = "/wherry/history/apps/v1/deployments"
    then = rfc3339(world.clock.now() - 120)
    for at in ("-5m", "-1m30s", then, "1"):
        found = await read(world, f"{base}/namespaces/default/web?at={at}")
        assert (found["data"], found["metadata"]["resourceVersion"]) == (1, "1")
        listing = await read(world, f"{base}?at={at}")
        assert (listing["kind"], listing["apiVersion"]) == ("DeploymentList", "apps/v1")
        assert listing["metadata"]["resourceVersion"] == "1"
        assert [item["metadata"]["name"] for item in listing["items"]] == ["web"]
    listing = await read(world, f"{base}/namespaces/default")
    assert [(item["metadata"]["name"], item["metadata"]["resourceVersion"]) for item in listing["items"]] == [
        ("api", "3"),
        ("web", "2"),
    ]
    listing = await read(world, f"{base}?labelSelector=app=2")
    assert [item["metadata"]["name"] for item in listing["items"]] == ["web"]
    with pytest.raises(NotFound, match=r'deployments.apps "api" not found at revision 1'):
        await read(world, f"{base}/namespaces/default/api?at=-5m")


async def test_cluster_scoped_kinds_and_the_core_group(world: World) -> None:
    await world.write(NODES, "n", 1)
    await world.write(CONFIGMAPS, "a", 1)
    assert (await read(world, "/wherry/history/core/v1/nodes/n"))["data"] == 1
    assert len((await read(world, "/wherry/history/core/v1/nodes"))["items"]) == 1
    assert len((await read(world, "/wherry/history/core/v1/configmaps/namespaces/default"))["items"]) == 1
    revisions = await read(world, "/wherry/history/core/v1/nodes/n/revisions")
    assert [(each["revision"], each["actor"], each["operation"]) for each in revisions["items"]] == [
        ("1", "ann", "PUT")
    ]


async def test_revisions_tell_the_life_of_an_object(world: World) -> None:
    await world.write(PODS, "a", 1)
    await world.write(PODS, "a", None)
    found = await read(world, "/wherry/history/core/v1/pods/namespaces/default/a/revisions")
    assert [(each["deleted"], each["readable"]) for each in found["items"]] == [(False, True), (True, False)]
    assert found["items"][0]["time"].endswith("Z")
    about = await read(world, "/wherry/history")
    assert (about["position"], about["began"], about["gaps"]) == (2, 0, [])


@pytest.mark.parametrize(
    ("target", "error", "words"),
    [
        ("/core/v1/pods/namespaces/default/a?at=soon", BadRequest, r"at=soon.*-5m"),
        ("/core/v1/pods?at=2999-01-01T00:00:00Z", BadRequest, "yet to come"),
        ("/core/v1/pods?at=-5", BadRequest, "at=-5"),
        ("/core/v1/pods?at=99999", Invalid, "not there yet"),
        ("/core/v1/pods?at=" + "9" * 30, BadRequest, "no store"),
        ("/core/v1/pods?labelSelector=a==b==c", WherryError, "unable to parse"),
        ("/apps/v1/pods", NotFound, "no kind pods in apps/v1"),
        ("/core/v1/pods/a", NotFound, "namespaces/NAMESPACE/NAME"),
        ("/core/v1/nodes/namespaces/default", NotFound, "not in namespaces"),
        ("/core/v1/nodes/namespaces/default/n", NotFound, "not in namespaces"),
        ("/coordination.k8s.io/v1/leases", Invalid, "budget is 0"),
        ("/authorization.k8s.io/v1/subjectaccessreviews", Invalid, "never kept"),
        ("/core/v1/pods/namespaces/default/a", NotFound, "not found at revision"),
        ("/core/v1/pods/namespaces/default/a/revisions", NotFound, "has nothing of it"),
    ],
)
async def test_a_wrong_request_is_told_what_helps(
    world: World, target: str, error: type[WherryError], words: str
) -> None:
    await world.write(CONFIGMAPS, "x", 1)
    with pytest.raises(error, match=words):
        await ask(world, f"/wherry/history{target}")


async def test_what_a_list_cannot_show_is_in_a_warning(world: World) -> None:
    for i in range(PODS.history_budget + 5):
        await world.write(PODS, "busy", i)
    response = await ask(world, "/wherry/history/core/v1/pods?at=3")
    assert response.headers.get("warning") == (
        '299 - "1 objects are left out, the history has only later revisions of them: busy"'
    )
    with pytest.raises(Expired, match="oldest is 6"):
        await ask(world, "/wherry/history/core/v1/pods/namespaces/default/busy?at=3")


async def test_a_permit_is_asked_for_each_object(world: World) -> None:
    asked: list[tuple[str, str, str, str]] = []

    async def permit(verb: str, kind: Kind, namespace: str, name: str) -> None:
        asked.append((verb, kind.plural, namespace, name))
        if kind is PODS:
            raise Forbidden("no pods for you")

    await world.write(NODES, "n", 1)
    await read(world, "/wherry/history/core/v1/nodes", permit=permit)
    await read(world, "/wherry/history/core/v1/nodes/n", permit=permit)
    await read(world, "/wherry/history/core/v1/nodes/n/revisions", permit=permit)
    with pytest.raises(Forbidden):
        await ask(world, "/wherry/history/core/v1/pods/namespaces/default/a", permit=permit)
    assert asked == [
        ("list", "nodes", "", ""),
        ("get", "nodes", "", "n"),
        ("get", "nodes", "", "n"),
        ("get", "pods", "default", "a"),
    ]


async def test_a_fork_is_handed_to_who_can_start_one(world: World) -> None:
    started: list[tuple[int, Mapping[str, Any]]] = []

    async def fork(revision: int, options: Mapping[str, Any]) -> Mapping[str, Any]:
        started.append((revision, options))
        return {"root": "/tmp/fork", "revision": revision}

    await world.write(CONFIGMAPS, "a", 1)
    await world.clock.advance(600)
    await world.write(CONFIGMAPS, "a", 2)
    response = await ask(world, "/wherry/fork?at=-5m", "POST", b'{"simulated": 2}', fork=fork)
    assert response.status == 201
    assert started == [(1, {"simulated": 2})]
    await ask(world, "/wherry/fork", "POST", fork=fork)
    assert started[1] == (2, {})
    for body in (b"[]", b"{"):
        with pytest.raises(BadRequest, match="JSON"):
            await ask(world, "/wherry/fork", "POST", body, fork=fork)
    with pytest.raises(Unsupported, match="fork"):
        await ask(world, "/wherry/fork", "POST")


def test_moments_as_people_write_them() -> None:
    now = 1_767_225_600.0  # 2026-01-01T00:00:00Z
    assert parse_moment("", now) == Moment()
    assert parse_moment("42", now) == Moment(revision=42)
    for text, ago_s in (("-5m", 300), ("-1h30m", 5400), ("-2d", 172_800), ("-1.5s", 1.5), ("-500ms", 0.5)):
        assert parse_moment(text, now) == Moment(time=now - ago_s)
    for text in ("2025-12-31T23:00:00Z", "2026-01-01T00:00:00+01:00", "2026-01-01T00:00:00 01:00"):
        assert parse_moment(text, now) == Moment(time=now - 3600)
    for text in ("5m", "-", "-5x", "--5m", "-m", "yesterday", "1e3", "-5m3"):
        with pytest.raises(BadRequest, match="at="):
            parse_moment(text, now)
