"""Administration: the REST API, what OpenAPI tells of it, audit log, webhooks, metering."""

import asyncio
from typing import Any

import msgspec
import pytest
from tests.registry.conftest import Served
from tests.registry.test_access import basic
from tests.registry.test_protocol import push_image

from wherry.clock import machine
from wherry.registry.admin import OPERATIONS, PREFIX
from wherry.registry.hooks import sign
from wherry.registry.keeping import keep
from wherry.wire.http import Request, Response
from wherry.wire.server import Server


async def ask(
    served: Served, method: str, path: str, body: Any = None, query: Any = (), headers: Any = None, code: int = 200
) -> Any:
    data = b"" if body is None else body if isinstance(body, bytes) else msgspec.json.encode(body)
    client = served.local if headers is None else served.tcp
    answer = await client.request(method, PREFIX + path, query, headers or {}, data)
    said = await answer.read()
    assert answer.status == code, said
    return said if answer.headers["content-type"].startswith("text/") else msgspec.json.decode(said)


async def test_a_team_is_set_up_by_the_api(served: Served) -> None:
    await ask(served, "POST", "/people", {"name": "ann", "password": "correct horse"}, code=201)
    await ask(served, "POST", "/people", {"name": "ci", "kind": "robot"}, code=201)
    await ask(served, "PUT", "/teams/web/members/ann")
    made = await ask(served, "POST", "/people/ci/tokens", {"name": "build", "seconds": 60}, code=201)
    assert made["secret"].startswith("wht_")
    rule = {"Statement": [{"Effect": "Allow", "Action": "*", "Resource": "web/*"}]}
    await ask(served, "PUT", "/policies/all/of/team/web", rule)
    await ask(served, "PUT", "/templates/web/", {"immutable": {"match": ["v*"]}})
    await ask(served, "PUT", "/quotas/web/", {"bytes": 1_000_000})
    await push_image(served.local, "web/app", "v1", b"layer")
    ann = basic("ann", "correct horse")
    shown = await ask(served, "GET", "/repositories/web/app", headers=ann)
    assert shown["settings"]["immutable"]["match"] == ["v*"]
    await ask(
        served,
        "PUT",
        "/repositories/web/app",
        {"settings": {"visibility": "private"}, "description": "our app"},
        headers=ann,
    )
    listed = await ask(served, "GET", "/repositories", headers=ann)
    assert [(one["name"], one["visibility"]) for one in listed["repositories"]] == [("web/app", "private")]
    assert (await ask(served, "GET", "/quotas"))["quotas"][0]["used"] == shown["used_bytes"] > 0
    own = await ask(
        served,
        "POST",
        "/people/ann/tokens",
        {"name": "mine", "scope": {"repositories": ["web/app"]}},
        headers=ann,
        code=201,
    )
    scoped = basic("ann", own["secret"])
    assert "token/" in "".join((await ask(served, "GET", "/whoami", headers=scoped))["principals"])
    await ask(served, "POST", "/people/ann/tokens", {"name": "more"}, headers=scoped, code=403)
    for method, path in (("GET", "/people"), ("POST", "/collection"), ("GET", "/events"), ("PUT", "/quotas/web/")):
        await ask(served, method, path, {}, headers=ann, code=403)
        await ask(served, method, path, {}, headers={"X": "anonymous"}, code=401)
    events = (await ask(served, "GET", "/events", query=[("action", "change"), ("n", "50")]))["events"]
    assert "account ann created (user)" in [event["detail"] for event in events]
    assert {event["actor"] for event in events} == {"administrator", "user/ann"}
    deleted = await ask(served, "DELETE", "/repositories/web/app", headers=ann)
    assert deleted == {"deleted": 1}
    await ask(served, "GET", "/repositories/web/app", code=404)
    await served.clock.advance(7200)
    assert (await ask(served, "POST", "/collection", query=[("dryRun", "true")]))["blobs"] == 3
    assert (await ask(served, "POST", "/collection"))["blobs"] == 3
    for method, path in (
        ("DELETE", "/policies/all/of/team/web"), ("DELETE", "/templates/web/"), ("DELETE", "/quotas/web/"),
        ("DELETE", "/teams/web/members/ann"), ("DELETE", f"/people/ci/tokens/{made['token']['id']}"), ("DELETE", "/people/ci"),
    ):  # fmt: skip
        await ask(served, method, path)


@pytest.mark.parametrize(
    ("method", "path", "body", "code"),
    [
        ("POST", "/people", b"{", 400),
        ("POST", "/people", {"name": "x", "extra": 1}, 400),
        ("POST", "/people", {"name": "X"}, 400),
        ("PUT", "/policies/p/of/nobody/x", {"Statement": []}, 400),
        ("PUT", "/policies/p/of/team/x", {"Statement": [{"Effect": "Maybe"}]}, 400),
        ("PUT", "/quotas/Bad", {"bytes": 1}, 400),
        ("PUT", "/quotas/a", {"bytes": -1}, 400),
        ("PUT", "/templates/a", {"lifecycle": [{"name": "x"}]}, 400),
        ("PUT", "/repositories/Bad", {}, 400),
        ("POST", "/webhooks", {"url": "file:///etc/passwd"}, 400),
        ("POST", "/webhooks", {"url": "http://x", "shape": "x"}, 400),
        ("DELETE", "/webhooks/none", None, 404),
        ("POST", "/deliveries/9/resend", None, 404),
        ("POST", "/deliveries/x/resend", None, 404),
        ("POST", "/deliveries/\u00b9/resend", None, 404),
        ("POST", f"/deliveries/{9**30}/resend", None, 404),
        ("GET", "/images/none", None, 200),
        ("GET", "/lifecycle/none", None, 404),
        ("DELETE", "/people/none", None, 404),
        ("GET", "/nothing", None, 404),
        ("PATCH", "/repositories/a", {}, 405),
        ("POST", "/scrub", None, 200),
    ],
)
async def test_a_wrong_request_is_told_why(served: Served, method: str, path: str, body: Any, code: int) -> None:
    said = await ask(served, method, path, body, code=code)
    assert code == 200 or said["errors"][0]["message"]


async def test_unknown_parameters_are_refused(served: Served) -> None:
    said = await ask(served, "POST", "/collection", query=[("dryrun", "true")], code=400)
    assert "dryRun" in said["errors"][0]["message"]


async def test_openapi_tells_of_every_operation(served: Served) -> None:
    told = await ask(served, "GET", "/openapi.json")
    assert told["openapi"] == "3.1.0"
    assert sum(len(methods) for methods in told["paths"].values()) == len(OPERATIONS)
    assert {"PersonBody", "Scope", "HookBody"} <= set(told["components"]["schemas"])
    ids = [one["operationId"] for methods in told["paths"].values() for one in methods.values()]
    assert len(set(ids)) == len(ids)


async def test_webhooks_are_signed_tried_again_and_kept(served: Served) -> None:
    got: list[tuple[str, bytes]] = []
    answers = [500, 204, 204]

    async def receive(request: Request) -> Response:
        got.append((request.headers.get("x-wherry-signature") or "", await request.body()))
        return Response(answers.pop(0))

    async with Server(receive) as server:
        _, port = await server.start_tcp("127.0.0.1", 0)
        url = f"http://127.0.0.1:{port}/in?a=b"
        made = await ask(served, "POST", "/webhooks", {"url": url, "repositories": "web*"}, code=201)
        digest, _ = await push_image(served.local, "web", "1", b"x")
        await push_image(served.local, "other", "1", b"x")
        async with machine.timeout(20):
            while not any(one.attempts for one in await served.registry.hooks.deliveries(made["id"])):
                await asyncio.wait([asyncio.create_task(machine.sleep(0.02))])
        await served.registry.hooks.close()
        await served.clock.advance(10)
        await served.registry.hooks.work()
        assert [signature for signature, _ in got] == [sign(body, made["secret"]) for _, body in got]
        said = msgspec.json.decode(got[1][1])
        assert (said["type"], said["data"]["digest"], said["subject"]) == ("wherry.registry.push", digest, "1")
        kept = (await ask(served, "GET", f"/webhooks/{made['id']}/deliveries"))["deliveries"]
        assert [(one["state"], one["attempts"], one["status"]) for one in kept] == [("done", 2, 204)]
        await ask(served, "POST", f"/deliveries/{kept[0]['id']}/resend")
        await served.registry.hooks.work()
        assert (len(got), got[2]) == (3, got[1])
        await ask(served, "DELETE", f"/webhooks/{made['id']}")
        docker = await ask(
            served, "POST", "/webhooks", {"url": url, "shape": "docker", "actions": ["delete"]}, code=201
        )
        answers.append(204)
        await (await served.local.request("DELETE", "/v2/web/manifests/1")).read()
        await served.registry.hooks.work()
        assert msgspec.json.decode(got[3][1])["repository"]["repo_name"] == "web"
        assert docker["hook"]["shape"] == "docker"


async def test_what_was_pulled_and_moved_is_metered(served: Served) -> None:
    await push_image(served.local, "web", "1", b"12345")
    for _ in range(3):
        await (await served.tcp.request("GET", "/v2/web/manifests/1")).read()
    await (await served.tcp.request("HEAD", "/v2/web/manifests/1")).read()
    assert "wherry_registry_pulls_total 3" in (await (await served.local.request("GET", "/metrics")).read()).decode()
    refused = await served.tcp.request("GET", "/metrics")
    await refused.read()
    assert refused.status == 404
    rows = (await ask(served, "GET", "/usage"))["usage"]
    assert [(row["repository"], row["pulls"], row["pushes"]) for row in rows] == [("web", 3, 1)]
    assert rows[0]["bytes_stored"] > 5
    text = (await ask(served, "GET", "/usage", query=[("format", "csv")])).decode()
    assert text.startswith("repository,day,pulls")
    pulls = (await ask(served, "GET", "/events", query=[("action", "pull"), ("repository", "web")]))["events"]
    assert [(event["actor"], event["reference"]) for event in pulls] == [("anonymous", "1")] * 3
    assert (await ask(served, "GET", "/images/web"))["images"][0]["pulled"] == served.clock.now()


async def test_the_registry_keeps_itself(served: Served) -> None:
    keeping = asyncio.create_task(keep(served.registry, served.clock, collect_s=3600), name="keep")
    await push_image(served.local, "web", "1", b"12345")
    await (await served.tcp.request("GET", "/v2/web/manifests/1")).read()
    await (await served.local.request("DELETE", "/v2/web/manifests/1")).read()
    left = await served.local.request("POST", "/v2/web/blobs/uploads/")
    await left.read()
    assert len(await served.registry.journal.search()) == 3
    async with machine.timeout(20):
        while {"pull"} & {e.action for e in await served.registry.journal.search()}:
            await served.clock.advance(10 * 86400.0)
            await machine.sleep(0.02)
    assert {event.action for event in await served.registry.journal.search()} == {"push", "delete"}
    async with machine.timeout(20):
        while await served.registry.metadata.uploads(served.clock.now()):
            await machine.sleep(0.02)
    keeping.cancel()
    await asyncio.gather(keeping, return_exceptions=True)
