"""Blobs of a repository: pull, and push in one go or in chunks.

Source: OCI distribution-spec 1.1, "Pulling blobs", "Pushing Blobs", "Deleting Blobs"; RFC 9110, section 14.
"""

import re
from contextlib import suppress

from wherry.clock import Clock
from wherry.content.digests import parse_digest
from wherry.content.protocol import Blob, Content, Digest, Writer
from wherry.errors import Cause, Invalid, MethodNotAllowed, NotFound
from wherry.registry.metadata import Metadata
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
from wherry.wire.http import Request, Response

UNTAGGED_S = 3600.0
"""How long a pushed blob waits for the manifest that will hold it (cluster time)."""
_RANGE = re.compile(r"bytes=(\d*)-(\d*)")
_CHUNK = re.compile(r"(\d+)-(\d+)")


class Blobs:
    """The blob half of the protocol. `name` is a checked repository name, and access is decided already."""

    def __init__(self, content: Content, metadata: Metadata, clock: Clock) -> None:
        self._content = content
        self._metadata = metadata
        self._clock = clock

    async def pull(self, request: Request, name: str, digest_text: str) -> Response:
        """Send a blob (200), or the part that Range asks for (206); 404 BLOB_UNKNOWN, 416. HEAD too."""
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
        part = parse_range(request.headers.get("range"), blob.size_bytes)
        path = self._content.path(digest)
        if part is not None:
            start, stop = part
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{blob.size_bytes}"
            return Response.file(path, start, stop, headers, status=206)
        if request.method == "HEAD" or self._content.verified(digest):
            return Response.file(path, 0, blob.size_bytes, headers)
        headers["Content-Length"] = str(blob.size_bytes)  # the last piece is kept back until the digest is right
        return Response.stream(self._content.stream(digest), headers)

    async def begin(self, request: Request, name: str, *, trusted: bool) -> Response:
        """Begin an upload (202); with `digest`, take the whole blob (201); with `mount`, take it from elsewhere (201).

        A mount is granted from a repository that has the blob, and to a trusted peer from the machine's content: then
        no byte moves. A mount that cannot be granted becomes an upload, as the protocol says.
        """
        mount = request.first("mount")
        if mount is not None:
            digest = read_digest(mount)
            source = request.first("from")
            if trusted or (source and await self._metadata.linked(source, digest)):
                lease = await self._content.lease(seconds=UNTAGGED_S)
                if await self._content.cover(digest, lease) is not None:
                    await self._metadata.link(name, digest, self._clock.now())
                    return _created(f"/v2/{name}/blobs/{digest}", digest)
                await self._content.end_lease(lease)
        wanted = request.first("digest")
        digest = read_digest(wanted) if wanted is not None else None
        writer = await self._content.ingest(lease="")
        try:
            if digest is not None:
                await _receive(request, writer)
                return await self._commit(name, writer, digest)
            await self._metadata.begin_upload(writer.id, name, self._clock.now())
            await writer.close()
            return _accepted(name, writer)
        except BaseException:
            await writer.abort()
            raise

    async def append(self, request: Request, name: str, upload: str) -> Response:
        """Take one more chunk (202); 416 when it does not begin where the upload stands; 404 BLOB_UPLOAD_UNKNOWN."""
        writer = await self._resume(name, upload)
        try:
            _check_chunk(request, writer)
            await _receive(request, writer)
        finally:
            await writer.close()
        return _accepted(name, writer)

    async def status(self, name: str, upload: str) -> Response:
        """Say how much has come (204)."""
        writer = await self._resume(name, upload)
        await writer.close()
        return _accepted(name, writer, status=204)

    async def finish(self, request: Request, name: str, upload: str) -> Response:
        """Take the last chunk, if any, verify and keep the blob (201); 400 DIGEST_INVALID."""
        wanted = request.first("digest")
        if wanted is None:
            raise invalid(DIGEST_INVALID, f"upload {upload}: the query needs digest=sha256:HEX to end it")
        digest = read_digest(wanted)
        writer = await self._resume(name, upload)
        try:
            _check_chunk(request, writer)
            await _receive(request, writer)
            answer = await self._commit(name, writer, digest)
        except Invalid:
            await self._metadata.end_upload(upload)
            raise
        finally:
            await writer.close()
        await self._metadata.end_upload(upload)
        return answer

    async def cancel(self, name: str, upload: str) -> Response:
        """Drop an upload (204)."""
        writer = await self._resume(name, upload)
        await writer.abort()
        await self._metadata.end_upload(upload)
        return Response(204)

    async def delete(self, name: str, digest_text: str) -> Response:
        """Take a blob out of the repository (202); 405 while a manifest there needs it."""
        digest = read_digest(digest_text)
        await self._find(name, digest)
        parents = await self._metadata.parents(name, digest)
        if parents:
            raise MethodNotAllowed(f"blob {digest}: the manifest {parents[0]} of {name} needs it; delete that first")
        await self._metadata.unlink(name, digest)
        return Response(202)

    async def _find(self, name: str, digest: Digest) -> Blob:
        blob = await self._content.stat(digest) if await self._metadata.linked(name, digest) else None
        if blob is None:
            raise unknown(BLOB_UNKNOWN, f"blob {digest}: not in the repository {name}")
        return blob

    async def _resume(self, name: str, upload: str) -> Writer:
        if await self._metadata.upload(upload) == name:
            with suppress(NotFound):
                return await self._content.resume(upload)
        raise unknown(BLOB_UPLOAD_UNKNOWN, f"upload {upload}: there is none in {name}; it was ended, or left for a day")

    async def _commit(self, name: str, writer: Writer, digest: Digest) -> Response:
        lease = await self._content.lease(seconds=UNTAGGED_S)
        try:
            await writer.commit(digest, lease=lease)
        except Invalid as error:
            raise invalid(DIGEST_INVALID, error.message) from None
        await self._metadata.link(name, digest, self._clock.now())
        return _created(f"/v2/{name}/blobs/{digest}", digest)


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


def _check_chunk(request: Request, writer: Writer) -> None:
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


async def _receive(request: Request, writer: Writer) -> None:
    async for part in request.stream():
        await writer.write(part)


def _accepted(name: str, writer: Writer, *, status: int = 202) -> Response:
    headers = {
        "Location": f"/v2/{name}/blobs/uploads/{writer.id}",
        "Range": f"0-{max(0, writer.offset - 1)}",
        "Docker-Upload-UUID": writer.id,
    }
    return Response(status, headers)


def _created(location: str, digest: Digest) -> Response:
    return Response(201, {"Location": location, "Docker-Content-Digest": digest})
