"""The API server as others hold it: `Api`, and the way of a request through it."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from contextvars import ContextVar
from typing import Self

from wherry.api import authenticate, bootstrap, deletes, objects, reads, reviews, streams, subresources, watches
from wherry.api import target as targets
from wherry.api.authorize import Authorizer
from wherry.api.cache import Cache
from wherry.api.core import Core, Nodes
from wherry.api.discovery import Discovery
from wherry.api.errors import About, code_of, failure_bytes
from wherry.api.events import Sweeper
from wherry.api.health import Health, version
from wherry.api.openapi import OpenApi
from wherry.api.pki import Authority
from wherry.api.rbac import Ask
from wherry.api.selection import flag
from wherry.api.settings import Audit, AuditSink, Check, Settings
from wherry.api.target import Target
from wherry.api.tokens import Tokens
from wherry.clock import Clock, machine
from wherry.errors import (
    BadRequest,
    DeadlineExceeded,
    Forbidden,
    NotFound,
    TooManyRequests,
    Unauthorized,
    Unavailable,
    WherryError,
)
from wherry.model.kinds import NAMESPACES, PODS, SERVICES
from wherry.model.selectors import FieldSelector
from wherry.model.users import User
from wherry.store.protocol import Store
from wherry.wire.http import Request, Response
from wherry.wire.router import Route, Router

log = logging.getLogger(__name__)

Handler = Callable[[Request], Awaitable[Response]]
_METHOD_VERBS = {"GET": "get", "HEAD": "head", "POST": "post", "PUT": "put", "PATCH": "patch", "DELETE": "delete"}
_STREAMS = ("log", "exec", "attach")
_UNEXPECTED = "the server met an unexpected condition; its log says more"
_REFUSED = {
    "portforward": "port-forward",
    "proxy": "proxying",
    "ephemeralcontainers": "ephemeral containers",
    "resize": "resizing a pod in place",
}
CALLER: ContextVar[User] = ContextVar("wherry.api.caller")


def caller() -> User:
    """The user whose request the current task serves; for the handlers of `extra` routes."""
    return CALLER.get()


class Api:
    """One API server over a store. `handle` takes requests from a wire, `serve` from who is known already.

    `nodes` sends a request to a node's agent. `extra` are routes of others, reached after authentication and, as
    non-resource URLs, authorisation; their handlers ask `caller()` who asks. `audit` hears of every request.
    """

    def __init__(
        self,
        store: Store,
        *,
        clock: Clock,
        authority: Authority,
        settings: Settings | None = None,
        nodes: Nodes | None = None,
        extra: Sequence[Route] = (),
        audit: AuditSink | None = None,
        ready: Mapping[str, Check] | None = None,
    ) -> None:
        settings = settings or Settings()
        cache = Cache(store, window=settings.event_window)
        tokens = Tokens(authority, cache, settings, clock)
        self.core = Core(
            store,
            cache,
            clock,
            settings,
            authority,
            tokens,
            Authorizer(cache),
            nodes if nodes is not None else _no_nodes,
        )
        self._audit = audit
        self._started = False
        self._sweeping: asyncio.Task[None] | None = None
        self._discovery = Discovery(self._server_address)
        self._openapi = OpenApi(settings.version)
        self._health = Health(
            {"ping": lambda: "", "cache": cache.problem},
            {"poststarthook/bootstrap": lambda: "" if self._started else "not finished", **(ready or {})},
        )
        self._router = Router([*self._routes(), *extra])

    async def start(self) -> None:
        """Load the cluster, follow it, and make what every cluster has; `close` ends that."""
        await self.core.cache.start()
        await bootstrap.bootstrap(self.core)
        self._sweeping = asyncio.create_task(Sweeper(self.core).run(), name="api: old events are deleted")
        self._started = True

    async def close(self) -> None:
        """Stop following the store."""
        self._started = False
        sweeping, self._sweeping = self._sweeping, None
        if sweeping is not None:
            sweeping.cancel()
            with suppress(asyncio.CancelledError, WherryError):
                await sweeping
        await self.core.cache.close()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def advertise(self, addresses: Sequence[tuple[str, int]]) -> None:
        """Tell pods at which (address, port) the API is, when that is known only after `start`."""
        await bootstrap.advertise(self.core, addresses)

    async def handle(self, request: Request) -> Response:
        """Find out who asks, and serve them. Never raises a WherryError: it answers a Status."""
        try:
            user = authenticate.user_of(request, self.core.tokens, self.core.authorizer.allowed)
        except (Unauthorized, Forbidden, BadRequest) as error:
            if isinstance(error, Unauthorized):
                log.debug("%s %s: %s", request.method, request.path, error.message)
                error = Unauthorized("Unauthorized")
            return self._failed(error, None)
        return await self.serve(request, user)

    async def serve(self, request: Request, user: User) -> Response:
        """Serve a user who is known. Never raises a WherryError: it answers a Status."""
        began = machine.monotonic()
        target: Target | None = None
        try:
            if targets.is_resource(request.path):
                target = _target(request)
                response = await self._resource(request, user, target)
            else:
                response = await self._other(request, user)
        except WherryError as error:
            response = self._failed(error, target.about if target is not None else None)
        except Exception:
            # A fault of ours: the log has all of it, the client a Status that says so.
            log.exception("%s %s by %s failed", request.method, request.path, user.name)
            response = self._failed(Unavailable(_UNEXPECTED), target.about if target is not None else None)
        if self._audit is not None:
            self._audit(
                _audit(self.core.clock.now(), request, user, target, response.status, machine.monotonic() - began)
            )
        return response

    def fail(self, request: Request, error: Exception) -> Response:
        """Answer what went wrong outside of `handle`, for `wire.Server(on_error=...)`."""
        del request
        if isinstance(error, WherryError):
            return self._failed(error, None)
        return self._failed(Unavailable(_UNEXPECTED), None)

    # ------------------------------------------------------------------------------------------------------------------

    async def _resource(self, request: Request, user: User, target: Target) -> Response:
        """Serve a resource. Raises DeadlineExceeded when it takes too long; streams take as long as they like."""
        if target.subresource in _STREAMS:
            return await self._resource_in_time(request, user, target)
        seconds = self.core.settings.request_s
        try:
            async with machine.timeout(seconds):
                return await self._resource_in_time(request, user, target)
        except TimeoutError:
            raise DeadlineExceeded(
                f"{request.method} {target.resource} was not done within {seconds:.0f} s; a write may still have been: read it"
            ) from None

    async def _resource_in_time(self, request: Request, user: User, target: Target) -> Response:
        core = self.core
        await core.cache.present()
        core.authorizer.require(user, _ask(request, target))
        kind = target.kind
        if not kind.stored:
            return await self._not_kept(request, user, target)
        if target.subresource:
            return await self._part(request, user, target)
        match target.verb:
            case "get":
                return await reads.get(core, target, request)
            case "list":
                return await reads.list_(core, target, request)
            case "watch":
                return await watches.watch(core, target, request)
            case "create":
                return await objects.create(core, user, target, request)
            case "update":
                return await objects.update(core, user, target, request)
            case "patch":
                return await objects.patch(core, user, target, request)
            case "delete":
                return await deletes.delete(core, user, target, request)
            case _:
                return await deletes.delete_collection(core, user, target, request)

    async def _not_kept(self, request: Request, user: User, target: Target) -> Response:
        if target.kind in reviews.REVIEWS:
            return await reviews.review(self.core, user, target, request)
        if target.kind.plural == "bindings":
            return await subresources.bind(self.core, user, target, request)
        empty = {"kind": target.kind.list_kind, "apiVersion": target.kind.api_version, "metadata": {}, "items": []}
        if target.verb == "list":
            return Response.json(empty)
        raise target.missing()

    async def _part(self, request: Request, user: User, target: Target) -> Response:
        core, name = self.core, target.subresource
        if name in _REFUSED and target.kind.subresource(name) is not None:
            raise objects.refuse(target, _REFUSED[name])
        if target.kind == PODS and name == "log":
            return await streams.logs(core, target, request)
        if target.kind == PODS and name in ("exec", "attach"):
            return await streams.stream(core, target, request)
        part = subresources.PARTS.get((name, target.verb))
        if part is not None:
            return await part(core, user, target, request)
        match target.verb:
            case "get":
                return await reads.get(core, target, request)
            case "update":
                return await objects.update(core, user, target, request)
            case "patch":
                return await objects.patch(core, user, target, request)
            case _:
                raise NotFound("the server could not find the requested resource")

    async def _other(self, request: Request, user: User) -> Response:
        verb = _METHOD_VERBS.get(request.method, request.method.lower())
        self.core.authorizer.require(user, Ask(verb, path=request.path))
        path = request.path.rstrip("/") or "/"
        handler, request.params = self._router.match(request.method, path)
        token = CALLER.set(user)
        try:
            return await handler(request)
        finally:
            CALLER.reset(token)

    def _routes(self) -> Sequence[Route]:
        discovery, openapi, git_version = self._discovery, self._openapi, self.core.settings.version

        def plain(make: Callable[[Request], Response]) -> Handler:
            async def handler(request: Request) -> Response:
                return make(request)

            return handler

        return (
            Route("GET", "/api", plain(discovery.core)),
            Route("GET", "/apis", plain(discovery.groups)),
            Route("GET", "/api/v1", plain(lambda r: discovery.resources(r, "v1"))),
            Route("GET", "/apis/{group}", plain(lambda r: discovery.group(r, r.params["group"]))),
            Route(
                "GET",
                "/apis/{group}/{version}",
                plain(lambda r: discovery.resources(r, f"{r.params['group']}/{r.params['version']}")),
            ),
            Route("GET", "/version", plain(lambda _: version(git_version))),
            *(
                Route("GET", pattern, plain(self._health.answer))
                for name in ("livez", "readyz", "healthz")
                for pattern in (f"/{name}", f"/{name}/{{check:path}}")
            ),
            Route("GET", "/openapi/v2", plain(openapi.v2)),
            Route("GET", "/openapi/v3", plain(lambda _: openapi.index())),
            Route("GET", "/openapi/v3/{path:path}", plain(lambda r: openapi.document(r, r.params["path"]))),
            Route("GET", "/openid/v1/jwks", plain(lambda _: Response.json(self.core.tokens.jwks()))),
            Route("GET", "/.well-known/openid-configuration", plain(self._openid)),
            Route("GET", "/", plain(lambda _: Response.json({"paths": list(_PATHS)}))),
        )

    def _openid(self, request: Request) -> Response:
        del request
        issuer = self.core.settings.issuer
        return Response.json(
            {
                "issuer": issuer,
                "jwks_uri": f"https://{self._server_address()}/openid/v1/jwks",
                "response_types_supported": ["id_token"],
                "subject_types_supported": ["public"],
                "id_token_signing_alg_values_supported": ["ES256"],
            }
        )

    def _server_address(self) -> str:
        item = self.core.find(SERVICES, "default", "kubernetes")
        if self.core.settings.advertise:
            host, port = self.core.settings.advertise[0]
            return f"{host}:{port}"
        return "kubernetes.default.svc:443" if item is not None else ""

    def _failed(self, error: WherryError, about: About | None) -> Response:
        headers: list[tuple[str, str]] = []
        if isinstance(error, TooManyRequests):
            headers.append(("Retry-After", str(error.retry_after_s)))
        return Response.json(failure_bytes(error, about), code_of(error), headers)


_PATHS = ("/api", "/api/v1", "/apis", "/healthz", "/livez", "/openapi/v2", "/openapi/v3", "/readyz", "/version")


async def _no_nodes(name: str, request: Request) -> Response:
    raise Unavailable(
        f"node {name} cannot be reached from this server, which knows no way to its agent ({request.path})"
    )


def _target(request: Request) -> Target:
    return targets.read(request.method, request.path, watch=flag(request, "watch"))


def _ask(request: Request, target: Target) -> Ask:
    """What a request asks for, in the terms of rules."""
    name, fields = target.name, dict[str, str]()
    if target.verb in ("list", "watch", "deletecollection"):
        chosen = FieldSelector.parse(request.first("fieldSelector") or "")
        fields = {one.field: one.value for one in chosen.conditions if one.equal}
        name = name or fields.get("metadata.name", "")
    # Who may do something to a namespace may be told so in it.
    namespace = target.name if target.kind == NAMESPACES else target.namespace
    return Ask(target.verb, target.kind.group, target.resource, namespace, name, "", fields)


def _audit(now: float, request: Request, user: User, target: Target | None, code: int, seconds: float) -> Audit:
    if target is None:
        return Audit(now, user.name, request.method.lower(), "", "", "", request.path, code, seconds)
    return Audit(
        now, user.name, target.verb, target.resource, target.namespace, target.name, request.path, code, seconds
    )
