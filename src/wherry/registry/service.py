"""The registry as one request handler: routes, names, access, errors."""

import logging
import os
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

from wherry.clock import Clock
from wherry.content.names import parse_repository
from wherry.errors import Cause, Invalid, MethodNotAllowed, NotFound, TooManyRequests, Unauthorized, WherryError
from wherry.registry import space
from wherry.registry.access import DELETE, LIST, PULL, PUSH, Access, Caller, trust_local
from wherry.registry.blobs import UNTAGGED_S, Blobs
from wherry.registry.call import Call
from wherry.registry.collection import Collector
from wherry.registry.events import CHANGE, Event, Journal
from wherry.registry.hooks import Hooks
from wherry.registry.manifests import Manifests
from wherry.registry.metadata import Metadata
from wherry.registry.people import People
from wherry.registry.pile import Pile
from wherry.registry.records import Records, Tx
from wherry.registry.refusals import NAME_INVALID, UNSUPPORTED, answer
from wherry.registry.replication import Replication
from wherry.registry.repositories import SqlMetadata
from wherry.registry.sqlite import SqliteRecords
from wherry.registry.upstreams import Upstreams
from wherry.registry.usage import metrics, note_stored
from wherry.wire.http import Peer, Request, Response
from wherry.wire.router import Route, Router

log = logging.getLogger(__name__)

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")

Work = Callable[[Call, dict[str, str]], Awaitable[Response]]


class Registry:
    """OCI distribution over a content store. `handle` never raises a WherryError: it answers OCI's envelope.

    `trusted` says which peers are this machine's own: they may do all, and name blobs that are in the content store
    already. Others sign in, or hold `token_file`'s content; `public` says whether everybody may pull from a repository
    that says nothing itself. `open` is for closed networks: everybody may do all.
    """

    def __init__(
        self,
        content: Pile,
        metadata_root: Path,
        *,
        clock: Clock,
        token_file: Path | None = None,
        trusted: Callable[[Peer], bool] | None = None,
        public: bool = True,
        open: bool = False,
        records: Records | None = None,
        shared: bool = False,
    ) -> None:
        """Bind to what it keeps its blobs and records in; `records` None for SQLite below `metadata_root`.

        `shared`: other registries serve the same records and blobs.
        """
        self.shared = shared
        self.clock = clock
        self.content = content
        self.database: Records = records or SqliteRecords(metadata_root / "registry.db")
        self.metadata: Metadata = SqlMetadata(self.database)
        self.journal = Journal(self.database)
        self.people = People(self.database, clock)
        self._trusted = trusted or trust_local(os.geteuid())
        self.access = Access(
            self.database,
            self.people,
            self.journal,
            clock,
            token_file=token_file,
            trusted=self._trusted,
            public=public,
            open=open,
        )
        self.blobs = Blobs(content, self.metadata, self.journal, clock, may=self.may)
        self.manifests = Manifests(content, self.metadata, self.journal, self.blobs)
        self.collector = Collector(content, self.metadata, self.blobs, self.manifests, self.journal, clock)
        self.upstreams = Upstreams(
            content, self.metadata, self.database, self.blobs, self.manifests, clock, metadata_root / "spool"
        )
        self.replication = Replication(content, self.metadata, self.database, self.journal, clock)
        self.hooks = Hooks(self.database, self.journal, clock)
        self._counts: Counter[tuple[str, int]] = Counter()
        self._router = Router(self._routes())
        self._later: Router | None = None

    async def start(self) -> None:
        """Put right what a kill left: holds without a record; and what an older format did not note."""
        await self.access.start()
        self.hooks.start()
        self.replication.start()
        await self._fill_sizes()
        await self.reconcile()

    async def reconcile(self) -> None:
        """Release what pushes that were cut off held: at once when nobody else can be pushing, else after their time."""
        stray = await self.manifests.reconcile(self.clock.now() - (UNTAGGED_S if self.shared else 0.0))
        if stray:
            log.info("registry: released %d holds of pushes that were cut off", stray)

    async def close(self) -> None:
        """Write what waits and close the records."""
        await self.upstreams.close()
        await self.replication.close()
        await self.hooks.close()
        await self.journal.close()
        await self.database.close()

    async def may(self, caller: Caller, action: str, repository: str) -> bool:
        """Say whether somebody may do something."""
        return caller.trusted or (await self.access.decide(caller, action, repository, asked=False)).allowed

    def event(self, caller: Caller, detail: str, *, repository: str = "") -> Event:
        """The entry of the audit log for a change that a caller makes."""
        return Event(self.clock.now(), caller.name, CHANGE, repository, address=caller.address, detail=detail)

    async def handle(self, request: Request) -> Response:
        """Answer one request."""
        try:
            try:
                if request.path == "/metrics" and self._trusted(request.peer):
                    return await self.metrics(request)
                router = self._router if not request.path.startswith("/api/") else self._administration()
                handler, request.params = router.match(request.method, request.path)
            except (NotFound, MethodNotAllowed) as error:
                raise type(error)(error.message, causes=[Cause("", UNSUPPORTED, error.message)]) from None
            response = await handler(request)
        except WherryError as error:
            response = answer(error)
            self._note(request, error, response)
        self._counts[request.method if request.method in METHODS else "other", response.status] += 1
        response.headers.set("Docker-Distribution-API-Version", "registry/2.0")
        return response

    async def metrics(self, request: Request) -> Response:
        """Answer `/metrics` in Prometheus' text form: for a listener that only administrators reach."""
        await self.journal.flush()
        await note_stored(self.database, self.clock.now())
        counts = [(method, str(status), float(n)) for (method, status), n in sorted(self._counts.items())]
        text = await metrics(self.database, counts, self.collector.freed_bytes)
        return Response(200, {"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}, text)

    async def handle_local(self, request: Request) -> Response:
        """Answer a request on a listener that only administrators reach: `/metrics`, and all the rest."""
        return await (self.metrics(request) if request.path == "/metrics" else self.handle(request))

    def _administration(self) -> Router:
        if self._later is None:
            from wherry.registry.admin import routes  # most processes are never asked

            self._later = Router(routes(self))
        return self._later

    def _note(self, request: Request, error: WherryError, response: Response) -> None:
        name = request.params.get("name", "")
        if isinstance(error, Unauthorized):
            words = {PULL: "pull", PUSH: "pull,push", DELETE: "delete"}.get(request.params.get("action", ""), "")
            scope = f"repository:{name}:{words}" if words else ""
            response.headers.set("WWW-Authenticate", self.access.challenge(request, scope))
        elif response.status in (403, 409) or isinstance(error, TooManyRequests):
            event = Event(
                self.clock.now(), "", request.method, name[:255], request.params.get("reference", "")[:128],
                outcome=str(response.status), address=request.peer.address, detail=error.message[:500],
            )  # fmt: skip
            self.journal.note(event)
        elif response.status >= 500:
            log.error("registry: %s %s: %s", request.method, request.path, error.message)

    def _routes(self) -> tuple[Route, ...]:
        blobs, manifests = self.blobs, self.manifests
        upload = "/v2/{name:path}/blobs/uploads/{upload}"
        manifest = "/v2/{name:path}/manifests/{reference}"
        blob = "/v2/{name:path}/blobs/{digest}"

        async def ping(request: Request) -> Response:
            self.access.check_signed_in(await self.access.identify(request))
            return Response.json({})

        async def catalog(request: Request) -> Response:
            caller = await self.access.identify(request)
            return await manifests.catalog(request, lambda names: self.access.readable(caller, names))

        def on(action: str, work: Work) -> "_Guarded":
            return _Guarded(self, action, work)

        begin = on(PUSH, self._begin_upload)
        return (
            Route("GET", "/v2/", ping),
            Route("GET", "/v2", ping),
            Route("GET", "/v2/token", self.access.token),
            Route("POST", "/v2/token", self.access.token),
            Route("GET", "/v2/_catalog", catalog),
            Route("POST", "/v2/{name:path}/blobs/uploads/", begin),
            Route("POST", "/v2/{name:path}/blobs/uploads", begin),
            Route("PATCH", upload, on(PUSH, lambda call, params: blobs.append(call, params["upload"]))),
            Route("PUT", upload, on(PUSH, lambda call, params: blobs.finish(call, params["upload"]))),
            Route("GET", upload, on(PUSH, lambda call, params: blobs.status(call, params["upload"]))),
            Route("DELETE", upload, on(PUSH, lambda call, params: blobs.cancel(call, params["upload"]))),
            Route("GET", blob, on(PULL, self._pull_blob)),
            Route("DELETE", blob, on(DELETE, lambda call, params: blobs.delete(call, params["digest"]))),
            Route("GET", manifest, on(PULL, self._pull_manifest)),
            Route("PUT", manifest, on(PUSH, self._push_manifest)),
            Route("DELETE", manifest, on(DELETE, lambda call, params: manifests.delete(call, params["reference"]))),
            Route("GET", "/v2/{name:path}/tags/list", on(LIST, lambda call, _: manifests.tags(call))),
            Route(
                "GET",
                "/v2/{name:path}/referrers/{digest}",
                on(PULL, lambda call, params: manifests.referrers(call, params["digest"])),
            ),
        )

    async def _pull_blob(self, call: Call, params: Mapping[str, str]) -> Response:
        return await self.upstreams.blob(call, params["digest"]) or await self.blobs.pull(call, params["digest"])

    async def _pull_manifest(self, call: Call, params: Mapping[str, str]) -> Response:
        await self.upstreams.bring_manifest(call, params["reference"])
        return await self.manifests.pull(call, params["reference"])

    async def _push_manifest(self, call: Call, params: Mapping[str, str]) -> Response:
        await self.upstreams.refuse_push(call)
        return await self.manifests.push(call, params["reference"])

    async def _begin_upload(self, call: Call, params: Mapping[str, str]) -> Response:
        await self.upstreams.refuse_push(call)
        return await self.blobs.begin(call)

    async def _fill_sizes(self) -> None:
        """Sizes of links that an older format did not note."""
        unknown = await self.database.rows("SELECT DISTINCT digest FROM links WHERE size < 0")
        held = await self.database.row("SELECT 1 FROM manifests LIMIT 1")
        counted = await self.database.row("SELECT 1 FROM space LIMIT 1")
        if not unknown and (held is None or counted is not None):
            return
        sizes = [(blob.size_bytes if (blob := await self.content.stat(row[0])) else 0, row[0]) for row in unknown]

        def work(db: Tx) -> None:
            db.executemany("UPDATE links SET size = ? WHERE digest = ?", sizes)
            space.recount(db)

        await self.database.write(work)


class _Guarded:
    """A handler behind a checked repository name and the access rule."""

    def __init__(self, registry: Registry, action: str, work: Work) -> None:
        self._registry = registry
        self._action = PULL if action == LIST else action  # who may pull may see the tags
        self._work = work

    async def __call__(self, request: Request) -> Response:
        name = _repository(request.params["name"], "name")
        registry = self._registry
        request.params["action"] = self._action
        caller = await registry.access.identify(request)
        await registry.access.check(caller, self._action, name)
        return await self._work(Call(request, name, caller, registry.clock.now()), request.params)


def _repository(text: str, field: str) -> str:
    try:
        return parse_repository(text, field)
    except Invalid as error:
        raise Invalid(error.message, causes=[Cause(field, NAME_INVALID, error.message)]) from None
