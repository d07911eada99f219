"""Pull-through: repositories below a prefix that stand for those of another registry.

What the upstream has is fetched when it is asked for, and kept. A tag is looked up there again after a while (HEAD);
while the upstream refuses or is away, what is here is served. One fetch serves all who wait for a blob, while it runs.
"""

import asyncio
import contextlib
import logging
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import msgspec

from wherry.clock import Clock, machine
from wherry.content.oci import DOCUMENT_MAX_BYTES, DOCUMENT_TYPES, Descriptor, parse_document
from wherry.content.protocol import Digest
from wherry.content.remote import Remote
from wherry.errors import Cause, Damaged, Forbidden, Invalid, NotFound, TooLarge, Unavailable, WherryError
from wherry.registry import elsewhere
from wherry.registry.blobs import Blobs, read_digest
from wherry.registry.call import Call
from wherry.registry.flights import Flight
from wherry.registry.manifests import Manifests
from wherry.registry.metadata import Metadata
from wherry.registry.pile import Pile
from wherry.registry.records import Records, Tx
from wherry.registry.refusals import BLOB_UNKNOWN, DENIED, unknown
from wherry.wire.http import Response

FLIGHTS_MAX = 64
"""Blobs fetched at once; more wait their turn."""
REFUSED_S = 10.0
"""How long an upstream that was away is not asked again for what is here (cluster time)."""
LOCKS_MAX = 10_000
KNOWN_S = 1.0
"""How long the list of upstreams is believed (machine time); what this process changes it knows at once."""
log = logging.getLogger(__name__)


class UpstreamBody(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """Another registry. `url` is http(s)://HOST[:PORT][/PREFIX]; what follows our prefix is appended to its PREFIX.

    `revalidate_s`: how long a tag is believed before it is looked up again.
    """

    url: str
    username: str = ""
    password: str = ""
    revalidate_s: float = 60.0


class Upstreams:
    """The upstreams of a registry and what is fetched from them."""

    def __init__(
        self,
        pile: Pile,
        metadata: Metadata,
        database: Records,
        blobs: Blobs,
        manifests: Manifests,
        clock: Clock,
        spool: Path,
    ) -> None:
        """`spool` is a directory for blobs on their way."""
        self._pile = pile
        self._metadata = metadata
        self._database = database
        self._blobs = blobs
        self._manifests = manifests
        self._clock = clock
        self._spool = spool
        self._gate = asyncio.Semaphore(FLIGHTS_MAX)
        self._flights: dict[tuple[str, Digest], Flight] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._locks: OrderedDict[tuple[str, str], asyncio.Lock] = OrderedDict()
        self._away: dict[str, float] = {}
        self._remotes: dict[tuple[str, str, str], Remote] = {}
        self._known: dict[str, UpstreamBody] | None = None
        self._stale_at = 0.0
        self._changes = 0

    async def close(self) -> None:
        """End what is being fetched; it is begun again when it is asked for again."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for remote in self._remotes.values():
            await remote.__aexit__(None, None, None)

    # what there is ------------------------------------------------------------------------------------------------------
    async def every(self) -> Sequence[dict[str, object]]:
        """List upstreams, without passwords."""
        rows = await self._database.rows("SELECT prefix, body FROM upstreams ORDER BY prefix")
        shown: list[dict[str, object]] = []
        for prefix, data in rows:
            body = msgspec.json.decode(data, type=UpstreamBody)
            shown.append(
                {"prefix": prefix, "url": body.url, "username": body.username, "revalidate_s": body.revalidate_s}
            )
        return shown

    async def find(self, repository: str) -> tuple[UpstreamBody, str] | None:
        """Say which upstream a repository stands for, and its name there; None for one of our own."""
        known = self._known
        if known is None or machine.monotonic() >= self._stale_at:
            known = await self._learn()
        end = len(repository) if known else 0
        while (end := repository.rfind("/", 0, end)) > 0:
            found = known.get(repository[: end + 1])
            if found is not None:
                return found, elsewhere.name_there(found, repository[end + 1 :])
        return None

    def changed(self) -> None:
        """Look again: this process has changed them."""
        self._known = None
        self._changes += 1

    async def _learn(self) -> dict[str, UpstreamBody]:
        """Read them all: they are few, and every pull and push asks. Another process may have changed them."""
        while True:
            changes = self._changes
            self._stale_at = machine.monotonic() + KNOWN_S  # who asks meanwhile takes what was known
            rows = await self._database.rows("SELECT prefix, body FROM upstreams")
            known = {prefix: msgspec.json.decode(data, type=UpstreamBody) for prefix, data in rows}
            if changes == self._changes:
                self._known = known
                return known

    async def refuse_push(self, call: Call) -> None:
        """Raise Forbidden for a repository that stands for another registry's."""
        found = await self.find(call.name)
        if found is not None:
            message = f"{call.name}: it stands for {found[0].url}; push there, or to a repository of another prefix"
            raise Forbidden(message, causes=[Cause("", DENIED, message)])

    def _remote(self, upstream: UpstreamBody) -> Remote:
        """A client that is kept: its connections and bearer tokens serve the next pull."""
        key = (upstream.url, upstream.username, upstream.password)
        if key not in self._remotes:
            self._remotes[key] = elsewhere.client(upstream)
        return self._remotes[key]

    # manifests ----------------------------------------------------------------------------------------------------------
    async def bring_manifest(self, call: Call, reference: str) -> None:
        """Have the manifest that a pull asks for, as the upstream has it now, or as it is here when that is away.

        Raises what the upstream said when there is nothing here.
        """
        found = await self.find(call.name)
        if found is None:
            return
        upstream, name = found
        key = (call.name, reference)
        lock = self._locks.setdefault(key, asyncio.Lock())
        self._locks.move_to_end(key)
        async with lock:
            row = await self._metadata.find(call.name, reference)
            if row is not None and (":" in reference or await self._is_fresh(call, reference, upstream)):
                return
            if row is not None and self._away.get(upstream.url, 0.0) > self._clock.now():
                return
            try:
                await self._look_up(call, reference, upstream, name, row.digest if row else "")
            except WherryError as error:
                if not isinstance(error, NotFound):
                    self._away[upstream.url] = self._clock.now() + REFUSED_S
                if row is None:
                    raise
                log.warning("registry: %s:%s is served as it is here: %s", call.name, reference, error.message)
        while len(self._locks) > LOCKS_MAX and not next(iter(self._locks.values())).locked():
            self._locks.popitem(last=False)

    async def _look_up(self, call: Call, reference: str, upstream: UpstreamBody, name: str, have: str) -> None:
        remote = self._remote(upstream)
        path = f"/v2/{name}/manifests/{reference}"
        scope = f"repository:{name}:pull"
        headers = {"Accept": ", ".join(DOCUMENT_TYPES)}
        attempts = 1 if have else 3
        if have:
            answer = await remote.send("HEAD", path, scope=scope, headers=headers, attempts=attempts)
            await answer.close()
            if answer.headers.get("docker-content-digest") == have:
                await self._note(call, reference)
                return
        answer = await remote.send("GET", path, scope=scope, headers=headers, attempts=attempts)
        data = b""
        try:
            async for part in answer.chunks():
                data += part
                if len(data) > DOCUMENT_MAX_BYTES:
                    raise TooLarge(f"{upstream.url}: {name}:{reference} has more than {DOCUMENT_MAX_BYTES} bytes")
        finally:
            await answer.close()
        kind = answer.headers.get("content-type", "").partition(";")[0].strip()
        try:
            await self._manifests.keep(call, reference, data, kind)
        except Invalid as error:
            raise Damaged(f"{upstream.url}: {name}:{reference}: {error.message}") from None
        await self._note(call, reference)

    async def _is_fresh(self, call: Call, reference: str, upstream: UpstreamBody) -> bool:
        query = "SELECT checked FROM upstream_tags WHERE repository = ? AND tag = ?"
        row = await self._database.row(query, call.name, reference)
        return row is not None and 0 <= self._clock.now() - row[0] < upstream.revalidate_s

    async def _note(self, call: Call, reference: str) -> None:
        if ":" in reference:
            return
        now = self._clock.now()

        def work(db: Tx) -> None:
            db.execute(
                "INSERT INTO upstream_tags VALUES (?, ?, ?)"
                " ON CONFLICT (repository, tag) DO UPDATE SET checked = excluded.checked",
                (call.name, reference, now),
            )

        await self._database.write(work)

    # blobs --------------------------------------------------------------------------------------------------------------
    async def blob(self, call: Call, digest_text: str) -> Response | None:
        """Answer a pull of a blob that is not here yet, while it is fetched; None when the registry itself can answer."""
        found = await self.find(call.name)
        if found is None:
            return None
        digest = read_digest(digest_text)
        if await self._is_here(call.name, digest):
            return None
        child = await self._descriptor(call.name, digest)
        if call.request.method == "HEAD":
            headers = {"Docker-Content-Digest": digest, "Content-Length": str(child.size)}
            return Response(200, {**headers, "Content-Type": "application/octet-stream", "ETag": f'"{digest}"'})
        flight = self._flights.get((call.name, digest))
        if flight is None:
            room = await self._metadata.room(call.name)
            if room is not None and child.size > room.left:
                raise room.refusal(child.size)
            if await self._is_here(call.name, digest):
                return None  # one that was on its way has landed while we asked
            flight = self._flights.get((call.name, digest))
        if flight is None:
            flight = Flight(self._spool, digest, child.size)
            self._flights[call.name, digest] = flight
            task = asyncio.create_task(self._fetch(flight, call, *found), name=f"fetch-{digest[7:19]}")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        if call.request.headers.get("range") is not None:
            await flight.landed()
            return None
        headers = {
            "Docker-Content-Digest": digest,
            "Content-Type": "application/octet-stream",
            "Content-Length": str(child.size),
            "ETag": f'"{digest}"',
        }
        await flight.begun()
        return Response.stream(flight.read(), headers)

    async def _is_here(self, name: str, digest: Digest) -> bool:
        return await self._blobs.has(name, digest) and await self._pile.stat(digest) is not None

    async def _fetch(self, flight: Flight, call: Call, upstream: UpstreamBody, name: str) -> None:
        """Bring a blob, going on where a connection was cut; it is ours, and linked, before its last bytes are given out."""
        try:
            async with self._gate, contextlib.AsyncExitStack() as stack:
                writer = await self._pile.ingest(lease="")
                stack.push_async_callback(writer.abort)
                lease = await self._pile.lease(seconds=3600.0)
                stack.push_async_callback(self._pile.end_lease, lease)
                await flight.fill(self._remote(upstream), name, writer)
                try:
                    blob = await writer.commit(flight.digest, lease=lease)
                except Invalid as error:
                    raise Damaged(f"{upstream.url}: {name}: {error.message}") from None
                await self._metadata.link(call.name, flight.digest, blob.size_bytes, self._clock.now())
            flight.land()
        except WherryError as error:
            log.warning("registry: %s@%s: %s", call.name, flight.digest, error.message)
            flight.fail(error)
        except asyncio.CancelledError:
            flight.fail(Unavailable("the registry stops"))
            raise
        except Exception as error:
            log.exception("registry: %s@%s", call.name, flight.digest)
            flight.fail(Unavailable(f"{call.name}@{flight.digest}: {error}"))
        finally:
            self._flights.pop((call.name, flight.digest), None)

    async def _descriptor(self, repository: str, digest: Digest) -> Descriptor:
        """What a manifest of the repository says of a blob; nothing is fetched that none names."""
        for parent in await self._metadata.parents(repository, digest):
            for child in parse_document(await self._pile.read(parent)).children:
                if child.digest == digest:
                    return child
        raise unknown(BLOB_UNKNOWN, f"blob {digest}: no image of {repository} that was pulled here has it")


def check(body: UpstreamBody) -> None:
    """Raise Invalid when it cannot be one."""
    elsewhere.check(body)
    if not 0 <= body.revalidate_s <= 365 * 86400:
        raise elsewhere.invalid("revalidate_s", f"revalidate_s {body.revalidate_s:g}: seconds, from 0 to a year")
