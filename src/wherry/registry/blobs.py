"""Blobs of a repository: pull, and push in one go or in chunks.

Source: OCI distribution-spec 1.1, "Pulling blobs", "Pushing Blobs", "Deleting Blobs"; RFC 9110, section 14.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable
from contextlib import suppress

from wherry.clock import Clock
from wherry.content.digests import parse_digest
from wherry.content.protocol import Blob, Digest
from wherry.errors import Cause, Conflict, Forbidden, Invalid, MethodNotAllowed, NotFound
from wherry.registry.access import Caller
from wherry.registry.call import Call
from wherry.registry.events import DELETE, Journal
from wherry.registry.metadata import Metadata
from wherry.registry.pile import Pile, Upload
from wherry.registry.refusals import (
    BLOB_UNKNOWN,
    BLOB_UPLOAD_INVALID,
    BLOB_UPLOAD_UNKNOWN,
    DIGEST_INVALID,
    SIZE_INVALID,
    RangeRefused,
    invalid,
    unknown,
)
from wherry.registry.space import Room
from wherry.wire.http import Request, Response

UNTAGGED_S = 3600.0
"""How long a pushed blob waits for the manifest that will hold it (cluster time)."""
LEASED_S = 60.0
VOUCH_S = 600.0
VOUCHED_MAX = 100_000
_RANGE = re.compile(r"bytes=(\d*)-(\d*)")
_CHUNK = re.compile(r"(\d+)-(\d+)")


class Blobs:
    """The blob half of the protocol."""

    def __init__(
        self,
        content: Pile,
        metadata: Metadata,
        journal: Journal,
        clock: Clock,
        *,
        may: Callable[[Caller, str, str], Awaitable[bool]],
    ) -> None:
        self._content = content
        self._metadata = metadata
        self._journal = journal
        self._clock = clock
        self._may = may
        self._vouched = Vouched(content, clock)
        self._verifying: dict[Digest, asyncio.Lock] = {}
        self._leased = ""
        self._leased_at = 0.0

    async def pull(self, call: Call, digest_text: str) -> Response:
        """Send a blob (200), or the part that Range asks for (206); 404 BLOB_UNKNOWN, 416. HEAD too."""
        request, name = call.request, call.name
        digest = read_digest(digest_text)
        blob = await self._find(name, digest)
        headers = {
            "Docker-Content-Digest": digest,
            "Content-Type": "application/octet-stream",
            "Accept-Ranges": "bytes",
            "ETag": f'"{digest}"',
            "Cache-Control": "max-age=31536000",
        }
        if f'"{digest}"' in (request.headers.get("if-none-match") or ""):
            return Response(304, headers)
        if request.method == "HEAD":
            known = self._vouched.holds(name, digest)
            if not known and not call.caller.anonymous and await self._may(call.caller, "push", name):
                await self._vouched.vouch(name, digest)
            headers["Content-Length"] = str(blob.size_bytes)
            return Response(200, headers)
        wanted = request.headers.get("range")
        if wanted is not None and (request.headers.get("if-range") or f'"{digest}"') != f'"{digest}"':
            wanted = None
        part = parse_range(wanted, blob.size_bytes)
        start, stop = part or (0, blob.size_bytes)
        self._journal.moved(name, call.now, bytes_out=stop - start)
        if part is not None:
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{blob.size_bytes}"
        if part is not None and not self._content.verified(digest):
            await self._verify(digest)  # a part cannot be kept back until the whole is right: look first
        status = 206 if part else 200
        path = self._content.file(digest)
        if path is not None and self._content.verified(digest):
            return Response.file(path, start, stop, headers, status=status)
        headers["Content-Length"] = str(stop - start)  # of a whole one the last piece waits until the digest is right
        return Response.stream(self._content.stream(digest, start=start, stop=stop), headers, status=status)

    async def begin(self, call: Call) -> Response:
        """Begin an upload (202); with `digest`, take the whole blob (201); with `mount`, take it from elsewhere (201).

        A mount is granted from a repository that has the blob and that the caller may pull from (`from`, or any), and
        to a trusted peer from the machine's content: then no byte moves. Another becomes an upload, as the protocol says.
        """
        request, name = call.request, call.name
        mount = request.first("mount")
        if mount is not None:
            digest = read_digest(mount)
            if call.caller.trusted or await self._may_mount(call, digest, request.first("from")):
                lease = await self._content.lease(seconds=UNTAGGED_S)
                blob = await self._content.cover(digest, lease)
                if blob is not None:
                    await self._metadata.link(name, digest, blob.size_bytes, call.now)
                    return _created(f"/v2/{name}/blobs/{digest}", digest)
                await self._content.end_lease(lease)
        wanted = request.first("digest")
        digest = read_digest(wanted) if wanted is not None else None
        room = await self._metadata.room(name)
        writer = await self._content.ingest(lease="")
        try:
            if digest is not None:
                await self._receive(call, writer, room)
                return await self._commit(call, writer, digest)
            await self._metadata.begin_upload(writer.id, name, call.now)
            await writer.close()
            return _accepted(name, writer)
        except BaseException:
            await writer.abort()
            raise

    async def append(self, call: Call, upload: str) -> Response:
        """Take one more chunk (202); 416 when it does not begin where the upload stands; 404 BLOB_UPLOAD_UNKNOWN."""
        writer = await self._resume(call.name, upload)
        try:
            _check_chunk(call.request, writer)
            await self._receive(call, writer, await self._metadata.room(call.name))
        finally:
            await writer.close()
        return _accepted(call.name, writer)

    async def status(self, call: Call, upload: str) -> Response:
        """Say how much has come (204)."""
        writer = await self._resume(call.name, upload)
        await writer.close()
        return _accepted(call.name, writer, status=204)

    async def finish(self, call: Call, upload: str) -> Response:
        """Take the last chunk, if any, verify and keep the blob (201); 400 DIGEST_INVALID."""
        wanted = call.request.first("digest")
        if wanted is None:
            raise invalid(DIGEST_INVALID, f"upload {upload}: the query needs digest=sha256:HEX to end it")
        digest = read_digest(wanted)
        writer = await self._resume(call.name, upload)
        try:
            _check_chunk(call.request, writer)
            await self._receive(call, writer, await self._metadata.room(call.name))
            return await self._commit(call, writer, digest, upload=upload)
        except (Invalid, Forbidden):
            await self._metadata.end_upload(upload)
            raise
        finally:
            await writer.close()

    async def cancel(self, call: Call, upload: str) -> Response:
        """Drop an upload (204)."""
        writer = await self._resume(call.name, upload)
        await writer.abort()
        await self._metadata.end_upload(upload)
        return Response(204)

    async def delete(self, call: Call, digest_text: str) -> Response:
        """Take a blob out of the repository (202); 405 while a manifest there needs it."""
        digest = read_digest(digest_text)
        name = call.name
        await self._find(name, digest)
        parents = await self._metadata.parents(name, digest)
        if parents:
            raise MethodNotAllowed(f"blob {digest}: the manifest {parents[0]} of {name} needs it; delete that first")
        await self._metadata.unlink(name, digest, call.event(DELETE, digest=digest, detail="blob"))
        return Response(202)

    async def has(self, name: str, digest: Digest) -> bool:
        """Say whether a manifest of the repository may name a blob: it is there, or its pusher was told so just now."""
        return await self._metadata.linked(name, digest) or self._vouched.holds(name, digest)

    async def drop_old_uploads(self, before: float) -> int:
        """Drop uploads begun before a time that nobody writes; return how many."""
        count = 0
        for upload in await self._metadata.uploads(before):
            try:
                writer = await self._content.resume(upload)
                await writer.abort()
            except NotFound:
                pass  # its file went already
            except Conflict:
                continue
            await self._metadata.end_upload(upload)
            count += 1
        return count

    async def _verify(self, digest: Digest) -> None:
        """Hash a blob that this process has not seen whole yet; once for all who wait. Raises Damaged."""
        lock = self._verifying.setdefault(digest, asyncio.Lock())
        try:
            async with lock:
                if not self._content.verified(digest):
                    async for _ in self._content.stream(digest):
                        pass
        finally:
            self._verifying.pop(digest, None)

    async def _may_mount(self, call: Call, digest: Digest, source: str | None) -> bool:
        sources = [source] if source else await self._metadata.homes(digest)
        for one in sources:
            if await self._metadata.linked(one, digest) and await self._may(call.caller, "pull", one):
                return True
        return False

    async def _find(self, name: str, digest: Digest) -> Blob:
        blob = await self._content.stat(digest) if await self._metadata.linked(name, digest) else None
        if blob is None:
            raise unknown(BLOB_UNKNOWN, f"blob {digest}: not in the repository {name}")
        return blob

    async def _resume(self, name: str, upload: str) -> Upload:
        if await self._metadata.upload(upload) == name:
            with suppress(NotFound):
                return await self._content.resume(upload)
        raise unknown(BLOB_UPLOAD_UNKNOWN, f"upload {upload}: there is none in {name}; it was ended, or left for a day")

    async def _receive(self, call: Call, writer: Upload, room: Room | None) -> None:
        """Take the body; stop when it passes a whole quota. What is here already costs nothing: commit counts exactly."""
        if call.request.has_body:
            begun = writer.offset
            async for part in call.request.stream():
                if room is not None and writer.offset + len(part) > room.limit:
                    raise room.refusal(writer.offset + len(part))
                await writer.write(part)
            self._journal.moved(call.name, call.now, bytes_in=writer.offset - begun)

    async def _lease(self) -> str:
        """The lease of what is pushed now; one serves a minute's pushes."""
        now = self._clock.now()
        if not self._leased or not 0 <= now - self._leased_at < LEASED_S:
            fresh = await self._content.lease(seconds=UNTAGGED_S + LEASED_S)
            self._leased, self._leased_at = fresh, now
        return self._leased

    async def _commit(self, call: Call, writer: Upload, digest: Digest, *, upload: str = "") -> Response:
        lease = await self._lease()
        try:
            blob = await writer.commit(digest, lease=lease)
        except Invalid as error:
            raise invalid(DIGEST_INVALID, error.message) from None
        await self._metadata.link(call.name, digest, blob.size_bytes, call.now, upload=upload)
        return _created(f"/v2/{call.name}/blobs/{digest}", digest)


class Vouched:
    """Blobs that a pusher was told are here: they stay, for the manifest that comes next, whatever is deleted meanwhile.

    One lease serves a few minutes' answers, so that most of them cost nothing.
    """

    def __init__(self, content: Pile, clock: Clock) -> None:
        self._content = content
        self._clock = clock
        self._lease = ""
        self._begun = 0.0
        self._until: dict[tuple[str, Digest], float] = {}
        self._covered: set[Digest] = set()

    async def vouch(self, name: str, digest: Digest) -> None:
        """Keep a blob for a while."""
        now = self._clock.now()
        if not self._lease or now - self._begun > VOUCH_S:
            self._begun, self._covered = now, set()
            self._until = {key: until for key, until in self._until.items() if until > now}
            self._lease = await self._content.lease(seconds=2 * VOUCH_S)
        if digest not in self._covered and await self._content.cover(digest, self._lease) is not None:
            self._covered.add(digest)
        if len(self._until) < VOUCHED_MAX:
            self._until[name, digest] = now + VOUCH_S

    def holds(self, name: str, digest: Digest) -> bool:
        """Say whether it was vouched for not long ago."""
        return self._until.get((name, digest), 0.0) > self._clock.now()


def read_digest(text: str) -> Digest:
    """Read a digest of the request; 400 DIGEST_INVALID."""
    try:
        return parse_digest(text)
    except Invalid as error:
        raise Invalid(error.message, causes=[Cause("digest", DIGEST_INVALID, error.message)]) from None


def parse_range(text: str | None, size_bytes: int) -> tuple[int, int] | None:
    """Read a Range header as (start, stop) of one part; None for no range, or one we need not honour.

    Raises RangeRefused when it asks for nothing that is there. Source: RFC 9110, section 14.2.
    """
    if text is None:
        return None
    found = _RANGE.fullmatch(text.strip())
    if found is None or found[1] == found[2] == "":
        return None  # several ranges, or another unit: a server may send it all
    first, last = found[1], found[2]
    if first == "":
        start, stop = max(0, size_bytes - int(last)), size_bytes
    else:
        start, stop = int(first), min(size_bytes, int(last) + 1) if last else size_bytes
        if last and int(last) < start:
            return None
    if start >= size_bytes or start >= stop:
        raise RangeRefused(f"range {text!r}: the blob has {size_bytes} bytes", size_bytes=size_bytes, upload=False)
    return start, stop


def _check_chunk(request: Request, writer: Upload) -> None:
    text = request.headers.get("content-range")
    if text is None:
        return
    found = _CHUNK.fullmatch(text.removeprefix("bytes ").partition("/")[0])
    if found is None or int(found[2]) < int(found[1]):
        raise invalid(BLOB_UPLOAD_INVALID, f"Content-Range {text!r}: write START-END, both included")
    if int(found[1]) != writer.offset:
        message = f"the chunk begins at {found[1]}, the upload stands at {writer.offset}"
        raise RangeRefused(message, size_bytes=writer.offset, upload=True)
    length = request.content_length
    if length is not None and length != int(found[2]) - int(found[1]) + 1:
        raise invalid(SIZE_INVALID, f"Content-Range {text!r} does not fit the {length} bytes of Content-Length")


def _accepted(name: str, writer: Upload, *, status: int = 202) -> Response:
    headers = {
        "Location": f"/v2/{name}/blobs/uploads/{writer.id}",
        "Range": f"0-{max(0, writer.offset - 1)}",
        "Docker-Upload-UUID": writer.id,
    }
    return Response(status, headers)


def _created(location: str, digest: Digest) -> Response:
    return Response(201, {"Location": location, "Docker-Content-Digest": digest})
