"""People, robots, tokens and policies, as clients meet them."""

import base64
from typing import Any

import msgspec
import pytest
from tests.registry.conftest import TOKEN, Served
from tests.registry.test_protocol import error_of, push_blob

from wherry.errors import AlreadyExists, Invalid, NotFound
from wherry.registry.access import Caller
from wherry.registry.people import ROBOT, Scope
from wherry.registry.rules import RepositorySettings


def basic(name: str, password: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()}


async def status(served: Served, method: str, path: str, headers: dict[str, str], query: Any = ()) -> int:
    answer = await served.tcp.request(method, path, query, headers)
    await answer.read()
    return answer.status


async def policy(served: Served, target: str, *statements: dict[str, Any]) -> None:
    document = msgspec.json.encode({"Statement": statements})
    await served.registry.database.execute("INSERT INTO policies VALUES (?, 'p', ?)", target, document)


async def test_a_person_may_what_policies_say_and_at_once(served: Served) -> None:
    people = served.registry.people
    await people.create("ann", by="test", password="correct horse")
    await people.join("web", "ann", by="test")
    ann = basic("ann", "correct horse")
    start = "/v2/web/app/blobs/uploads/"
    assert await status(served, "GET", "/v2/", ann) == 200
    assert await status(served, "POST", start, ann) == 403
    await policy(served, "team/web", {"Effect": "Allow", "Action": ["push", "pull"], "Resource": "web/*"})
    assert await status(served, "POST", start, ann) == 202
    assert await status(served, "POST", "/v2/other/blobs/uploads/", ann) == 403
    await policy(served, "repository/web/app", {"Effect": "Deny", "Action": "push", "Principal": "user/ann"})
    assert await status(served, "POST", start, ann) == 403
    await people.change("ann", by="test", disabled=True)
    assert await status(served, "GET", "/v2/", ann) == 401
    assert await people.teams() == {"web": ["ann"]}
    await people.delete("ann", by="test")
    with pytest.raises(NotFound):
        await people.delete("ann", by="test")


async def test_a_bearer_token_is_for_what_was_asked_and_allowed(served: Served) -> None:
    await served.registry.people.create("ann", by="test", password="correct horse")
    await policy(served, "user/ann", {"Effect": "Allow", "Action": "*", "Resource": "a"})
    ask = [("service", "wherry"), ("scope", "repository:a:pull,push"), ("scope", "repository:b:push")]
    given = await served.tcp.request("GET", "/v2/token", ask, basic("ann", "correct horse"))
    body = msgspec.json.decode(await given.read())
    bearer = {"Authorization": f"Bearer {body['token']}"}
    assert body["expires_in"] == 300
    assert await status(served, "POST", "/v2/a/blobs/uploads/", bearer) == 202
    digest = await push_blob(served.local, "a", b"x")
    asked = await served.tcp.request("DELETE", f"/v2/a/blobs/{digest}", headers=bearer)
    await asked.read()
    assert (asked.status, 'scope="repository:a:delete"' in asked.headers["www-authenticate"]) == (401, True)
    assert await status(served, "POST", "/v2/b/blobs/uploads/", bearer) == 403
    form = b"grant_type=password&username=ann&password=correct+horse&scope=repository:a:pull&service=wherry&access_type=offline"
    posted = await served.tcp.request("POST", "/v2/token", body=form)
    body = msgspec.json.decode(await posted.read())
    again = await served.tcp.request(
        "POST", "/v2/token", body=b"grant_type=refresh_token&refresh_token=" + body["refresh_token"].encode()
    )
    await again.read()
    assert (posted.status, again.status) == (200, 200)
    assert (
        await status(served, "POST", "/v2/a/blobs/uploads/", {"Authorization": f"Bearer {body['refresh_token']}"})
        == 401
    )
    stolen = await served.tcp.request(
        "POST", "/v2/token", body=b"grant_type=refresh_token&refresh_token=" + body["token"].encode()
    )
    assert await error_of(stolen) == (401, "UNAUTHORIZED")


async def test_a_robots_token_has_a_scope_an_end_and_a_last_use(served: Served) -> None:
    people = served.registry.people
    await people.create("ci", by="test", kind=ROBOT)
    await policy(served, "robot/ci", {"Effect": "Allow", "Action": "*", "Resource": "*"})
    scope = Scope(("push", "pull"), ("app/*",))
    token, secret = await people.issue("ci", "build", by="test", scope=scope, expires=served.clock.now() + 100)
    robot = basic("ci", secret)
    assert await status(served, "POST", "/v2/app/x/blobs/uploads/", robot) == 202
    assert await status(served, "POST", "/v2/other/blobs/uploads/", robot) == 403
    assert (await people.tokens("ci"))[0].used == served.clock.now()
    assert await status(served, "GET", "/v2/", basic("ci", secret[:-1] + ("x" if secret[-1] != "x" else "y"))) == 401
    assert await status(served, "GET", "/v2/", basic("other", secret)) == 401
    given = await served.tcp.request("GET", "/v2/token", [("scope", "repository:app/x:push")], robot)
    bearer = {"Authorization": f"Bearer {msgspec.json.decode(await given.read())['token']}"}
    assert await status(served, "POST", "/v2/app/x/blobs/uploads/", bearer) == 202
    await served.clock.advance(101)
    assert await status(served, "POST", "/v2/app/x/blobs/uploads/", bearer) == 401
    assert await status(served, "GET", "/v2/", robot) == 401
    await people.revoke("ci", token.id, by="test")
    assert await people.tokens("ci") == []


async def test_who_guesses_has_to_wait(served: Served) -> None:
    await served.registry.people.create("ann", by="test", password="correct horse")
    seen = [await status(served, "GET", "/v2/", basic("ann", f"guess number {n}")) for n in range(7)]
    assert seen[:4] == [401] * 4
    assert seen[-1] == 429
    right = await served.tcp.request("GET", "/v2/", headers=basic("ann", "correct horse"))
    assert await error_of(right) == (429, "TOOMANYREQUESTS")
    assert int(right.headers["retry-after"]) >= 1
    await served.clock.advance(60)
    assert await status(served, "GET", "/v2/", basic("ann", "correct horse")) == 200
    refused = await served.registry.journal.search(action="sign-in")
    assert {event.outcome for event in refused} == {"refused"}


async def test_private_repositories_are_not_seen(served: Served) -> None:
    for name, visibility in (("open", "public"), ("closed", "private")):
        digest = await push_blob(served.local, name, b"x")
        event = Caller("test")
        await served.registry.metadata.configure(
            name, RepositorySettings(visibility=visibility), "", served.registry.event(event, f"repository {name}")
        )
    assert await status(served, "HEAD", f"/v2/open/blobs/{digest}", {}) == 200
    assert await status(served, "HEAD", f"/v2/closed/blobs/{digest}", {}) == 401
    anonymous = await served.tcp.request("GET", "/v2/token", [("scope", "repository:closed:pull")])
    bearer = {"Authorization": f"Bearer {msgspec.json.decode(await anonymous.read())['token']}"}
    assert await status(served, "HEAD", f"/v2/closed/blobs/{digest}", bearer) == 403
    for headers, names in (({}, ["open"]), (basic("x", TOKEN), ["closed", "open"])):
        listed = await served.tcp.request("GET", "/v2/_catalog", [("n", "5")], headers)
        assert msgspec.json.decode(await listed.read())["repositories"] == names


async def test_accounts_are_checked(served: Served) -> None:
    people = served.registry.people
    await people.create("ann", by="test", password="correct horse")
    with pytest.raises(AlreadyExists, match="ann"):
        await people.create("ann", by="test")
    for wrong in ({"name": "Ann"}, {"name": "a/b"}, {"name": "b", "password": "short"}, {"name": "b", "kind": "x"}):
        with pytest.raises(Invalid):
            await people.create(by="test", **wrong)  # type: ignore[arg-type]
    with pytest.raises(NotFound):
        await people.issue("bob", "t", by="test", scope=Scope())
    with pytest.raises(Invalid):
        await people.issue("ann", "t", by="test", scope=Scope(), expires=1.0)
    assert [person.principal for person in await people.every()] == ["user/ann"]
