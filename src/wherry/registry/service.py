"""The registry as one request handler: routes, names, access, errors."""

import logging
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

from wherry.clock import Clock
from wherry.content.names import parse_repository
from wherry.content.protocol import Content
from wherry.errors import Cause, Invalid, MethodNotAllowed, NotFound, Unauthorized, WherryError
from wherry.registry.access import DELETE, LIST, PING, PULL, PUSH, Access, Authorize, trust_local
from wherry.registry.blobs import Blobs
from wherry.registry.manifests import Manifests
from wherry.registry.metadata import Metadata
from wherry.registry.refusals import NAME_INVALID, UNSUPPORTED, answer
from wherry.registry.sqlite import SqliteMetadata
from wherry.wire.http import Peer, Request, Response
from wherry.wire.router import Route, Router

log = logging.getLogger(__name__)


class Registry:
    """OCI distribution over a content store. `handle` never raises a WherryError: it answers OCI's envelope.

    `authorize` None means access.Access: open reads; writes for trusted local peers, or with `token_file`'s content.
    `trusted` says which peers are this machine's own: they may name blobs that are in the content store already.
    """

    def __init__(
        self,
        content: Content,
        metadata_root: Path,
        *,
        clock: Clock,
        authorize: Authorize | None = None,
        token_file: Path | None = None,
        trusted: Callable[[Peer], bool] | None = None,
        metadata: Metadata | None = None,
    ) -> None:
        self._trusted = trusted or trust_local(os.geteuid())
        self._metadata: Metadata = metadata or SqliteMetadata(metadata_root / "registry.db")
        self._access = Access(clock, token_file=token_file, trusted=self._trusted)
        self._authorize: Authorize = authorize or self._access
        self._blobs = Blobs(content, self._metadata, clock)
        self._manifests = Manifests(content, self._metadata, clock)
        self._router = Router(self._routes())

    async def start(self) -> None:
        """Put right what a kill left: holds without a record."""
        stray = await self._manifests.reconcile()
        if stray:
            log.info("registry: released %d holds of pushes that were cut off", stray)

    async def close(self) -> None:
        """Close the records."""
        await self._metadata.close()

    async def handle(self, request: Request) -> Response:
        """Answer one request."""
        try:
            try:
                handler, request.params = self._router.match(request.method, request.path)
            except (NotFound, MethodNotAllowed) as error:
                raise type(error)(error.message, causes=[Cause("", UNSUPPORTED, error.message)]) from None
            response = await handler(request)
        except WherryError as error:
            response = answer(error)
            if isinstance(error, Unauthorized):
                name = request.params.get("name", "")
                scope = f"repository:{name}:pull,push" if name else ""
                response.headers.set("WWW-Authenticate", self._access.challenge(request, scope))
            elif response.status >= 500:
                log.error("registry: %s %s: %s", request.method, request.path, error.message)
        response.headers.set("Docker-Distribution-API-Version", "registry/2.0")
        return response

    def _routes(self) -> tuple[Route, ...]:
        blobs, manifests = self._blobs, self._manifests
        upload = "/v2/{name:path}/blobs/uploads/{upload}"
        manifest = "/v2/{name:path}/manifests/{reference}"

        async def ping(request: Request) -> Response:
            await self._authorize(request, PING, "")
            return Response.json({})

        async def catalog(request: Request) -> Response:
            await self._authorize(request, LIST, "")
            return await manifests.catalog(request)

        def on(action: str, work: Callable[[Request, str, dict[str, str]], Awaitable[Response]]) -> "_Guarded":
            return _Guarded(self._authorize, action, work)

        async def mount_or_begin(request: Request, name: str, params: dict[str, str]) -> Response:
            source = request.first("from")
            if source is not None:  # who mounts must be allowed to read there
                await self._authorize(request, PULL, _repository(source, "from"))
            return await blobs.begin(request, name, trusted=self._trusted(request.peer))

        begin = on(PUSH, mount_or_begin)
        return (
            Route("GET", "/v2/", ping),
            Route("GET", "/v2", ping),
            Route("GET", "/v2/token", self._access.token),
            Route("GET", "/v2/_catalog", catalog),
            Route("POST", "/v2/{name:path}/blobs/uploads/", begin),
            Route("POST", "/v2/{name:path}/blobs/uploads", begin),
            Route("PATCH", upload, on(PUSH, lambda r, n, p: blobs.append(r, n, p["upload"]))),
            Route("PUT", upload, on(PUSH, lambda r, n, p: blobs.finish(r, n, p["upload"]))),
            Route("GET", upload, on(PUSH, lambda r, n, p: blobs.status(n, p["upload"]))),
            Route("DELETE", upload, on(PUSH, lambda r, n, p: blobs.cancel(n, p["upload"]))),
            Route("GET", "/v2/{name:path}/blobs/{digest}", on(PULL, lambda r, n, p: blobs.pull(r, n, p["digest"]))),
            Route("DELETE", "/v2/{name:path}/blobs/{digest}", on(DELETE, lambda r, n, p: blobs.delete(n, p["digest"]))),
            Route("GET", manifest, on(PULL, lambda r, n, p: manifests.pull(r, n, p["reference"]))),
            Route(
                "PUT",
                manifest,
                on(PUSH, lambda r, n, p: manifests.push(r, n, p["reference"], trusted=self._trusted(r.peer))),
            ),
            Route("DELETE", manifest, on(DELETE, lambda r, n, p: manifests.delete(n, p["reference"]))),
            Route("GET", "/v2/{name:path}/tags/list", on(PULL, lambda r, n, p: manifests.tags(r, n))),
            Route(
                "GET",
                "/v2/{name:path}/referrers/{digest}",
                on(PULL, lambda r, n, p: manifests.referrers(r, n, p["digest"])),
            ),
        )


class _Guarded:
    """A handler behind a checked repository name and the access rule."""

    def __init__(
        self, authorize: Authorize, action: str, work: Callable[[Request, str, dict[str, str]], Awaitable[Response]]
    ) -> None:
        self._authorize = authorize
        self._action = action
        self._work = work

    async def __call__(self, request: Request) -> Response:
        name = _repository(request.params["name"], "name")
        await self._authorize(request, self._action, name)
        return await self._work(request, name, request.params)


def _repository(text: str, field: str) -> str:
    try:
        return parse_repository(text, field)
    except Invalid as error:
        raise Invalid(error.message, causes=[Cause(field, NAME_INVALID, error.message)]) from None
