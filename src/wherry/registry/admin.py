"""The registry's administration as a table of operations below `/api/registry/v1`; each calls one function.

OpenAPI is written from the same table (openapi.py), so nothing is served that it does not tell of.
"""

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from wherry.content.names import parse_repository
from wherry.errors import BadRequest, Cause, Invalid, NotFound, WherryError
from wherry.registry.access import ADMIN, PULL, Caller
from wherry.registry.events import record
from wherry.registry.hooks import HookBody
from wherry.registry.people import USER, Scope
from wherry.registry.policy import parse_policy
from wherry.registry.records import Tx
from wherry.registry.refusals import answer
from wherry.registry.replication import RuleBody
from wherry.registry.rules import RepositorySettings, read_settings
from wherry.registry.scrub import scrub
from wherry.registry.service import Registry
from wherry.registry.upstreams import UpstreamBody
from wherry.registry.upstreams import check as check_upstream
from wherry.registry.usage import usage_csv, usage_rows
from wherry.wire.http import Request, Response
from wherry.wire.router import Route

PREFIX = "/api/registry/v1"
BODY_BYTES = 256 * 1024
PAGE = 100
NUMBER_MOST = 2.0**53


class RepositoryBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a repository says of itself."""

    settings: RepositorySettings = RepositorySettings()
    description: str = ""


class PersonBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A new account."""

    name: str
    kind: str = USER
    password: str = ""
    admin: bool = False
    email: str = ""


class PersonChange(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What changes of an account."""

    password: str | None = None
    admin: bool | None = None
    disabled: bool | None = None


class TokenBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A new token. `seconds` 0: it never ends."""

    name: str
    scope: Scope = Scope()
    seconds: float = 0.0


class QuotaBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How much a scope may hold: a repository, or `NAMESPACE/`."""

    bytes: int


@dataclass(frozen=True, slots=True)
class Ask:
    """What an operation gets."""

    registry: Registry
    caller: Caller
    params: Mapping[str, str]
    query: Mapping[str, str]
    body: Any

    def event(self, detail: str, repository: str = "") -> Any:
        """The audit log's entry for this change."""
        return self.registry.event(self.caller, detail, repository=repository)

    def number(self, name: str, default: float) -> float:
        """Read a number of the query. Raises BadRequest."""
        text = self.query.get(name, "")
        try:
            value = float(text) if text else default
        except ValueError:
            value = -1.0
        if not 0 <= value <= NUMBER_MOST:
            raise BadRequest(f"{name}={text!r}: not a number from 0")
        return value


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation. `needs` is `admin`, `repository` (admin of that repository), `self` (or admin), or `anybody`."""

    method: str
    path: str
    summary: str
    work: Callable[[Ask], Awaitable[Any]]
    needs: str = "admin"
    body: Any = None
    query: tuple[str, ...] = field(default=())
    status: int = 200


async def _repositories(ask: Ask) -> Any:
    found: list[str] = []
    limit, after = min(1000, int(ask.number("n", PAGE))), ask.query.get("last", "")
    while len(found) < limit:
        page = await ask.registry.metadata.repositories(after=after, limit=limit)
        found += [name for name in page if await ask.registry.may(ask.caller, PULL, name)]
        if len(page) < limit:
            break
        after = page[-1]
    rows = [await ask.registry.metadata.repository(name) for name in found[:limit]]
    return {"repositories": [row for row in rows if row is not None]}


async def _repository(ask: Ask) -> Any:
    row = await ask.registry.metadata.repository(ask.params["name"])
    if row is None:
        raise NotFound(f"repository {ask.params['name']}: there is none of this name")
    return row


async def _configure(ask: Ask) -> Any:
    name, body = ask.params["name"], ask.body
    settings = read_settings(msgspec.json.encode(body.settings))
    await ask.registry.metadata.configure(name, settings, body.description, ask.event("settings changed", name))
    return await _repository(ask)


async def _delete_repository(ask: Ask) -> Any:
    name = ask.params["name"]
    gone = await ask.registry.metadata.delete_repository(name, ask.event("repository deleted", name))
    if gone is None:
        raise NotFound(f"repository {name}: there is none of this name")
    await ask.registry.manifests.release(gone)
    return {"deleted": len(gone)}


async def _images(ask: Ask) -> Any:
    await ask.registry.journal.flush()
    return {"images": await ask.registry.metadata.images(ask.params["name"])}


async def _preview(ask: Ask) -> Any:
    return {"expiring": await ask.registry.collector.preview(ask.params["name"])}


async def _expire(ask: Ask) -> Any:
    return {"expired": await ask.registry.collector.expire(ask.params["name"], by=ask.caller.name)}


async def _collect(ask: Ask) -> Any:
    flags = {name: ask.query.get(name, "") in ("1", "true") for name in ("untagged", "lifecycle")}
    dry_run = ask.query.get("dryRun", "") in ("1", "true")
    return await ask.registry.collector.collect(by=ask.caller.name, dry_run=dry_run, **flags)


async def _progress(ask: Ask) -> Any:
    return ask.registry.collector.progress


async def _scrub(ask: Ask) -> Any:
    keep = ask.query.get("report", "") in ("1", "true")
    rate = ask.number("bytesPerSecond", 0.0)
    return await scrub(ask.registry.content, ask.registry.database, quarantine=not keep, bytes_per_s=rate)


async def _people(ask: Ask) -> Any:
    return {"people": await ask.registry.people.every()}


async def _create_person(ask: Ask) -> Any:
    body = ask.body
    return await ask.registry.people.create(
        body.name, by=ask.caller.name, kind=body.kind, password=body.password, admin=body.admin, email=body.email
    )


async def _change_person(ask: Ask) -> Any:
    body: PersonChange = ask.body
    if not ask.caller.admin and (body.admin is not None or body.disabled is not None):
        raise BadRequest("admin and disabled are for administrators to change")
    return await ask.registry.people.change(
        ask.params["person"], by=ask.caller.name, password=body.password, admin=body.admin, disabled=body.disabled
    )


async def _delete_person(ask: Ask) -> Any:
    await ask.registry.people.delete(ask.params["person"], by=ask.caller.name)
    return {}


async def _tokens(ask: Ask) -> Any:
    return {"tokens": await ask.registry.people.tokens(ask.params["person"])}


async def _issue(ask: Ask) -> Any:
    body: TokenBody = ask.body
    expires = ask.registry.clock.now() + body.seconds if body.seconds else 0.0
    token, secret = await ask.registry.people.issue(
        ask.params["person"], body.name, by=ask.caller.name, scope=body.scope, expires=expires
    )
    return {"token": token, "secret": secret}


async def _revoke(ask: Ask) -> Any:
    await ask.registry.people.revoke(ask.params["person"], ask.params["id"], by=ask.caller.name)
    return {}


async def _teams(ask: Ask) -> Any:
    return {"teams": await ask.registry.people.teams()}


async def _join(ask: Ask) -> Any:
    await ask.registry.people.join(ask.params["team"], ask.params["person"], by=ask.caller.name)
    return {}


async def _leave(ask: Ask) -> Any:
    await ask.registry.people.join(ask.params["team"], ask.params["person"], by=ask.caller.name, leave=True)
    return {}


async def _policies(ask: Ask) -> Any:
    rows = await ask.registry.database.rows("SELECT target, name, document FROM policies ORDER BY target, name")
    return {"policies": [{"target": row[0], "name": row[1], "document": msgspec.Raw(row[2])} for row in rows]}


async def _put_policy(ask: Ask) -> Any:
    target, name = ask.params["target"], ask.params["policy"]
    kind, _, rest = target.partition("/")
    if target != "registry" and (kind not in ("repository", "user", "robot", "team") or not rest):
        raise _invalid("target", f"target {target!r}: registry, repository/NAME, user/NAME, robot/NAME or team/NAME")
    document = msgspec.json.encode(ask.body)
    parse_policy(document, name=name, identity=kind in ("user", "robot", "team"))
    event = ask.event(f"policy {name} of {target} set")

    def work(db: Tx) -> None:
        db.execute(
            "INSERT INTO policies VALUES (?, ?, ?) ON CONFLICT (target, name) DO UPDATE SET document = excluded.document",
            (target, name, document),
        )
        record(db, event)

    await ask.registry.database.write(work)
    return {"target": target, "name": name, "document": ask.body}


async def _delete_policy(ask: Ask) -> Any:
    target, name = ask.params["target"], ask.params["policy"]
    return await _drop(ask, "policies", {"target": target, "name": name}, f"policy {name} of {target}")


async def _quotas(ask: Ask) -> Any:
    rows = await ask.registry.database.rows(
        "SELECT q.scope, q.bytes, coalesce(u.bytes, 0) FROM quotas q LEFT JOIN usage u ON u.scope = q.scope ORDER BY 1"
    )
    return {"quotas": [{"scope": row[0], "bytes": row[1], "used": row[2]} for row in rows]}


async def _put_quota(ask: Ask) -> Any:
    scope = ask.params["scope"]
    parse_repository(scope.rstrip("/"), "scope")
    if not 0 <= ask.body.bytes <= NUMBER_MOST or (scope.count("/") > 0 and scope.endswith("/") and "/" in scope[:-1]):
        raise _invalid("scope", f"quota of {scope!r}: bytes from 0, for a repository or a first component with a slash")
    return await _put(ask, "quotas", "scope", scope, "bytes", ask.body.bytes)


async def _delete_quota(ask: Ask) -> Any:
    return await _drop(ask, "quotas", {"scope": ask.params["scope"]}, f"quota of {ask.params['scope']}")


async def _templates(ask: Ask) -> Any:
    rows = await ask.registry.database.rows("SELECT prefix, settings FROM templates ORDER BY prefix")
    return {"templates": [{"prefix": row[0], "settings": msgspec.Raw(row[1])} for row in rows]}


async def _put_template(ask: Ask) -> Any:
    settings = read_settings(msgspec.json.encode(ask.body))
    return await _put(ask, "templates", "prefix", ask.params["prefix"], "settings", msgspec.json.encode(settings))


async def _delete_template(ask: Ask) -> Any:
    return await _drop(ask, "templates", {"prefix": ask.params["prefix"]}, f"template {ask.params['prefix']}")


async def _upstreams(ask: Ask) -> Any:
    return {"upstreams": await ask.registry.upstreams.every()}


async def _put_upstream(ask: Ask) -> Any:
    prefix = ask.params["prefix"]
    parse_repository(prefix.rstrip("/"), "prefix")
    if not prefix.endswith("/"):
        raise _invalid("prefix", f"prefix {prefix!r}: end it with a slash: what follows is the name there")
    check_upstream(ask.body)
    await _put(ask, "upstreams", "prefix", prefix, "body", msgspec.json.encode(ask.body))
    ask.registry.upstreams.changed()
    return next(one for one in await ask.registry.upstreams.every() if one["prefix"] == prefix)


async def _delete_upstream(ask: Ask) -> Any:
    done = await _drop(ask, "upstreams", {"prefix": ask.params["prefix"]}, f"upstream {ask.params['prefix']}")
    ask.registry.upstreams.changed()
    return done


async def _replications(ask: Ask) -> Any:
    return {"replications": await ask.registry.replication.every()}


async def _create_replication(ask: Ask) -> Any:
    id = await ask.registry.replication.create(ask.body, ask.event(f"replication to {ask.body.url} made"))
    return next(one for one in await ask.registry.replication.every() if one["id"] == id)


async def _delete_replication(ask: Ask) -> Any:
    id = ask.params["rule"]
    await ask.registry.replication.delete(id, ask.event(f"replication {id} deleted"))
    return {}


async def _copies(ask: Ask) -> Any:
    return {"copies": await ask.registry.replication.tasks(ask.params["rule"], limit=int(ask.number("n", PAGE)))}


async def _copy_all(ask: Ask) -> Any:
    return {"copies": await ask.registry.replication.copy_all(ask.params["rule"])}


async def _events(ask: Ask) -> Any:
    found = await ask.registry.journal.search(
        actor=ask.query.get("actor", ""),
        repository=ask.query.get("repository", ""),
        action=ask.query.get("action", ""),
        since=ask.number("since", 0.0),
        until=ask.number("until", 0.0),
        before=int(ask.number("before", 0)),
        limit=max(1, int(ask.number("n", PAGE))),
    )
    return {"events": found}


async def _hooks(ask: Ask) -> Any:
    return {"webhooks": await ask.registry.hooks.every()}


async def _create_hook(ask: Ask) -> Any:
    hook, secret = await ask.registry.hooks.create(ask.body, ask.event(f"webhook to {ask.body.url} made"))
    return {"id": hook.id, "hook": hook.hook, "secret": secret}


async def _delete_hook(ask: Ask) -> Any:
    await ask.registry.hooks.delete(ask.params["hook"], ask.event(f"webhook {ask.params['hook']} deleted"))
    return {}


async def _deliveries(ask: Ask) -> Any:
    return {"deliveries": await ask.registry.hooks.deliveries(ask.params["hook"], limit=int(ask.number("n", PAGE)))}


async def _resend(ask: Ask) -> Any:
    if re.fullmatch("[0-9]{1,18}", ask.params["id"]) is None:
        raise NotFound(f"delivery {ask.params['id']}: there is none")
    await ask.registry.hooks.resend(int(ask.params["id"]))
    return {}


async def _usage(ask: Ask) -> Any:
    await ask.registry.journal.flush()
    rows = await usage_rows(ask.registry.database, since=ask.query.get("since", ""), until=ask.query.get("until", ""))
    return usage_csv(rows) if ask.query.get("format") == "csv" else {"usage": rows}


async def _whoami(ask: Ask) -> Any:
    caller = ask.caller
    return {"name": caller.name, "admin": caller.admin, "principals": sorted(caller.principals)}


async def _openapi(ask: Ask) -> Any:
    from wherry.registry.openapi import document

    return document(OPERATIONS, PREFIX)


async def _put(ask: Ask, table: str, key: str, name: str, column: str, value: object) -> Any:
    event = ask.event(f"{table}: {name} set")

    def work(db: Tx) -> None:
        db.execute(
            f"INSERT INTO {table} ({key}, {column}) VALUES (?, ?)"
            f" ON CONFLICT ({key}) DO UPDATE SET {column} = excluded.{column}",
            (name, value),
        )
        record(db, event)

    await ask.registry.database.write(work)
    return {key: name, column: msgspec.Raw(value) if isinstance(value, bytes) else value}


async def _drop(ask: Ask, table: str, keys: Mapping[str, str], what: str) -> Any:
    event = ask.event(f"{what} deleted")

    def work(db: Tx) -> None:
        where = " AND ".join(f"{key} = ?" for key in keys)
        if not db.execute(f"DELETE FROM {table} WHERE {where}", tuple(keys.values())).rowcount:
            raise NotFound(f"{what}: there is none")
        record(db, event)

    await ask.registry.database.write(work)
    return {}


OPERATIONS: tuple[Operation, ...] = (
    Operation("GET", "/openapi.json", "this document", _openapi, "anybody"),
    Operation("GET", "/whoami", "who the caller is", _whoami, "anybody"),
    Operation("GET", "/repositories", "repositories that the caller may read", _repositories, "anybody", query=("n", "last")),
    Operation("GET", "/repositories/{name:path}", "show a repository", _repository, "repository"),
    Operation("PUT", "/repositories/{name:path}", "make or configure one", _configure, "repository", RepositoryBody),
    Operation("DELETE", "/repositories/{name:path}", "delete it with all images", _delete_repository, "repository"),
    Operation("GET", "/images/{name:path}", "list its images with tags and times", _images, "repository"),
    Operation("GET", "/lifecycle/{name:path}", "what its rules would take now", _preview, "repository"),
    Operation("POST", "/lifecycle/{name:path}", "take it", _expire, "repository"),
    Operation("GET", "/people", "list accounts", _people),
    Operation("POST", "/people", "make an account", _create_person, body=PersonBody, status=201),
    Operation("PATCH", "/people/{person}", "change an account", _change_person, "self", PersonChange),
    Operation("DELETE", "/people/{person}", "delete an account", _delete_person),
    Operation("GET", "/people/{person}/tokens", "list its tokens", _tokens, "self"),
    Operation("POST", "/people/{person}/tokens", "make a token (told once)", _issue, "self", TokenBody, status=201),
    Operation("DELETE", "/people/{person}/tokens/{id}", "end a token", _revoke, "self"),
    Operation("GET", "/teams", "list teams with members", _teams),
    Operation("PUT", "/teams/{team}/members/{person}", "put an account into a team", _join),
    Operation("DELETE", "/teams/{team}/members/{person}", "take it out", _leave),
    Operation("GET", "/policies", "list policies", _policies),
    Operation("PUT", "/policies/{policy}/of/{target:path}", "set a policy", _put_policy, body=dict[str, Any]),
    Operation("DELETE", "/policies/{policy}/of/{target:path}", "delete a policy", _delete_policy),
    Operation("GET", "/quotas", "list quotas with what is used", _quotas),
    Operation("PUT", "/quotas/{scope:path}", "set a quota", _put_quota, body=QuotaBody),
    Operation("DELETE", "/quotas/{scope:path}", "delete a quota", _delete_quota),
    Operation("GET", "/templates", "list templates of new repositories", _templates),
    Operation("PUT", "/templates/{prefix:path}", "set a template", _put_template, body=RepositorySettings),
    Operation("DELETE", "/templates/{prefix:path}", "delete a template", _delete_template),
    Operation("GET", "/upstreams", "list registries that prefixes stand for", _upstreams),
    Operation("PUT", "/upstreams/{prefix:path}", "let a prefix stand for another registry", _put_upstream, body=UpstreamBody),
    Operation("DELETE", "/upstreams/{prefix:path}", "end it; what was fetched stays", _delete_upstream),
    Operation("GET", "/replications", "list rules of replication", _replications),
    Operation("POST", "/replications", "copy to another registry from now on", _create_replication, body=RuleBody, status=201),
    Operation("DELETE", "/replications/{rule}", "delete a rule", _delete_replication),
    Operation("GET", "/replications/{rule}/copies", "what was copied, and what waits", _copies, query=("n",)),
    Operation("POST", "/replications/{rule}/copies", "copy all that is here too", _copy_all),
    Operation("GET", "/events", "search the audit log", _events,
              query=("actor", "repository", "action", "since", "until", "before", "n")),
    Operation("GET", "/usage", "bytes and pulls per repository and day", _usage, query=("since", "until", "format")),
    Operation("GET", "/webhooks", "list webhooks", _hooks),
    Operation("POST", "/webhooks", "make a webhook; its secret is told once", _create_hook, body=HookBody, status=201),
    Operation("DELETE", "/webhooks/{hook}", "delete a webhook", _delete_hook),
    Operation("GET", "/webhooks/{hook}/deliveries", "what was sent and answered", _deliveries, query=("n",)),
    Operation("POST", "/deliveries/{id}/resend", "send one again", _resend),
    Operation("GET", "/collection", "where a collection is", _progress),
    Operation("POST", "/collection", "collect what nobody needs", _collect, query=("dryRun", "untagged", "lifecycle")),
    Operation("POST", "/scrub", "read every blob and put damage aside", _scrub, query=("report", "bytesPerSecond")),
)  # fmt: skip


def routes(registry: Registry) -> tuple[Route, ...]:
    """The operations as routes of a registry."""
    return tuple(Route(one.method, PREFIX + one.path, _Handler(registry, one)) for one in OPERATIONS)


class _Handler:
    def __init__(self, registry: Registry, operation: Operation) -> None:
        self._registry = registry
        self._operation = operation

    async def __call__(self, request: Request) -> Response:
        try:
            return await self._answer(request)
        except WherryError as error:
            if error.causes and error.causes[0].reason == "Invalid":
                response = answer(error)
                body = {
                    "errors": [
                        {"code": "INVALID", "message": c.message, "detail": {"field": c.field}} for c in error.causes
                    ]
                }
                return Response.json(body, response.status)
            raise

    async def _answer(self, request: Request) -> Response:
        registry, operation, params = self._registry, self._operation, request.params
        caller = await registry.access.identify(request)
        if "name" in params:
            parse_repository(params["name"], "name")
        match operation.needs:
            case "repository":
                await registry.access.check(
                    caller, PULL if request.method in ("GET", "HEAD") else ADMIN, params["name"]
                )
            case "self":
                if caller.name.partition("/")[2] != params["person"] or caller.scope is not None:
                    registry.access.check_admin(caller)
            case "admin":
                registry.access.check_admin(caller)
            case _:
                pass
        query = dict(request.query)
        for name in query:
            if name not in operation.query:
                raise BadRequest(
                    f"{request.path}: {name!r} is no parameter; there are {', '.join(operation.query) or 'none'}"
                )
        body = _read(await request.body(BODY_BYTES), operation.body) if operation.body is not None else None
        done = await operation.work(Ask(registry, caller, params, query, body))
        if isinstance(done, Response):
            return done
        return Response.json(msgspec.json.encode(done), operation.status)


def _read(data: bytes, kind: Any) -> Any:
    try:
        return msgspec.json.decode(data or b"{}", type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _invalid("", f"the body cannot be read: {error}") from None


def _invalid(name: str, message: str) -> Invalid:
    return Invalid(message, causes=[Cause(name, "Invalid", message)])
