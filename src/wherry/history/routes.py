"""The history over HTTP: what was, who changed it, and the way to a fork.

`/wherry/history/GROUP/VERSION/PLURAL[/namespaces/NAMESPACE][/NAME]?at=...` answers like the API itself; the core group is
written `core`. `.../NAME/revisions` lists the writes. `POST /wherry/fork?at=...` starts a copy of the cluster.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import orjson

from wherry.clock import rfc3339_micro
from wherry.errors import BadRequest, Invalid, NotFound, Unsupported
from wherry.history.archive import Archive, Past
from wherry.history.moments import Moment, parse_moment
from wherry.model.kinds import Kind, by_resource
from wherry.model.selectors import LabelSelector
from wherry.wire.http import Handler, Headers, Request, Response
from wherry.wire.router import Route

Fork = Callable[[int, Mapping[str, Any]], Awaitable[Mapping[str, Any]]]
"""Start a copy of the cluster as of a revision; the mapping is the request's JSON body, the answer what was started."""

Permit = Callable[[str, Kind, str, str], Awaitable[None]]
"""Raise Forbidden unless the caller may do a verb (`get`, `list`) on a kind, namespace and name."""

_FORK_BYTES = 64 * 1024


def routes(
    archive: Archive,
    *,
    now: Callable[[], float] | None = None,
    fork: Fork | None = None,
    permit: Permit | None = None,
) -> tuple[Route, ...]:
    """The routes of one archive. `now` says the cluster's time (by default the archive's clock).

    Without `permit` whoever may reach these paths may read every kind, so then only administrators should.
    """
    handlers = _Handlers(archive, now or archive.now, fork, permit)
    kind = "/wherry/history/{group}/{version}/{plural}"
    paths: Sequence[tuple[str, str, Handler]] = (
        ("GET", "/wherry/history", handlers.about),
        ("GET", kind, handlers.list),
        ("GET", f"{kind}/namespaces/{{namespace}}", handlers.list_or_get_namespace),
        ("GET", f"{kind}/namespaces/{{namespace}}/{{name}}/revisions", handlers.revisions),
        ("GET", f"{kind}/namespaces/{{namespace}}/{{name}}", handlers.get),
        ("GET", f"{kind}/{{name}}/revisions", handlers.revisions),
        ("GET", f"{kind}/{{name}}", handlers.get),
        ("POST", "/wherry/fork", handlers.fork),
    )
    return tuple(Route(method, path, handler) for method, path, handler in paths)


class _Handlers:
    def __init__(self, archive: Archive, now: Callable[[], float], fork: Fork | None, permit: Permit | None) -> None:
        self._archive, self._now, self._fork, self._permit = archive, now, fork, permit

    async def about(self, request: Request) -> Response:
        """How far the history goes: the last revision read, the oldest known, gaps, bytes."""
        gaps = [{"after": gap.after, "until": gap.until} for gap in await self._archive.gaps()]
        archive = self._archive
        return Response.json(
            {"position": archive.position, "began": archive.began, "valueBytes": archive.value_bytes, "gaps": gaps}
        )

    async def list(self, request: Request) -> Response:
        """All objects of a kind as of `at` (default: now), by `labelSelector`."""
        kind, namespace = _kind(request), request.params.get("namespace", "")
        await self._check("list", kind, namespace, "")
        selector = LabelSelector.parse(request.first("labelSelector") or "")
        revision = await self._archive.resolve(self._moment(request))
        found = await self._archive.list_at_revision(kind, namespace, revision)
        objects = [_object(past) for past in found.items]
        if not selector.is_everything:
            objects = [each for each in objects if selector.matches(each.get("metadata", {}).get("labels"))]
        body = orjson.dumps(
            {
                "kind": kind.list_kind,
                "apiVersion": kind.api_version,
                "metadata": {"resourceVersion": str(found.revision)},
                "items": objects,
            }
        )
        return Response.json(body, headers=_warning(found.unknown), compress=True)

    async def list_or_get_namespace(self, request: Request) -> Response:
        """`namespaces/NAME` after a namespaced kind is its list there."""
        if not _kind(request).namespaced:
            raise NotFound(f"{request.path}: {request.params['plural']} are not in namespaces")
        return await self.list(request)

    async def get(self, request: Request) -> Response:
        """One object as of `at`. 404 when it was not, 410 when that is not known any more."""
        kind, namespace, name = _named(request)
        await self._check("get", kind, namespace, name)
        revision = await self._archive.resolve(self._moment(request))
        past = await self._archive.at_revision(kind, namespace, name, revision)
        if past is None:
            raise NotFound(f'{kind.qualified} "{name}" not found at revision {revision}')
        return Response.json(orjson.dumps(_object(past)))

    async def revisions(self, request: Request) -> Response:
        """Every filed write of one object, oldest first."""
        kind, namespace, name = _named(request)
        await self._check("get", kind, namespace, name)
        found = await self._archive.revisions(kind, namespace, name)
        if not found:
            raise NotFound(f'{kind.qualified} "{name}": the history has nothing of it')
        items = [
            {
                "revision": str(each.revision),
                "time": rfc3339_micro(each.note.time),
                "actor": each.note.actor,
                "operation": each.note.operation,
                "deleted": each.deleted,
                "readable": each.readable,
            }
            for each in found
        ]
        return Response.json({"kind": "RevisionList", "apiVersion": "history.wherry/v1", "items": items})

    async def fork(self, request: Request) -> Response:
        """Start a copy of the cluster as of `at`; 201 with what was started."""
        if self._fork is None:
            raise Unsupported("fork: this server starts no other instances; run `wherry fork` on its machine")
        text = await request.body(limit=_FORK_BYTES)
        try:
            options = orjson.loads(text) if text else {}
        except orjson.JSONDecodeError as error:
            raise BadRequest(f"the body of a fork is JSON: {error}") from None
        if not isinstance(options, dict):
            raise BadRequest("the body of a fork is a JSON object of options")
        revision = await self._archive.resolve(self._moment(request))
        return Response.json(await self._fork(revision, options), status=201)

    def _moment(self, request: Request) -> Moment:
        return parse_moment(request.first("at") or "", self._now())

    async def _check(self, verb: str, kind: Kind, namespace: str, name: str) -> None:
        if self._permit is not None:
            await self._permit(verb, kind, namespace, name)


def _kind(request: Request) -> Kind:
    group, version, plural = (request.params[name] for name in ("group", "version", "plural"))
    kind = by_resource("" if group == "core" else group, version, plural)
    if kind is None:
        raise NotFound(f"{request.path}: no kind {plural} in {group}/{version} (the core group is written core)")
    if not kind.stored:
        raise Invalid(f"{kind.qualified}: these are answered and never kept")
    return kind


def _named(request: Request) -> tuple[Kind, str, str]:
    kind, namespace, name = _kind(request), request.params.get("namespace", ""), request.params["name"]
    if kind.namespaced != bool(namespace):
        where = "write namespaces/NAMESPACE/NAME" if kind.namespaced else "they are not in namespaces"
        raise NotFound(f"{request.path}: {kind.qualified}: {where}")
    return kind, namespace, name


def _object(past: Past) -> dict[str, Any]:
    found: dict[str, Any] = orjson.loads(past.value)
    found.setdefault("metadata", {})["resourceVersion"] = str(past.revision)
    return found


def _warning(unknown: Sequence[str]) -> Headers | None:
    """Say in the header that kubectl prints what the list cannot show."""
    if not unknown:
        return None
    names = ", ".join(key.rpartition("/")[2] for key in unknown[:5]) + (", ..." if len(unknown) > 5 else "")
    text = f"{len(unknown)} objects are left out, the history has only later revisions of them: {names}"
    return Headers([("Warning", f'299 - "{text}"')])
