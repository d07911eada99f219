"""Manifests and tags of a repository.

Source: OCI distribution-spec 1.1, "Pulling manifests", "Pushing Manifests", "Deleting tags", "Listing Referrers".
"""

import re
import secrets
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from urllib.parse import urlencode

import msgspec

from wherry.clock import machine
from wherry.content.digests import algorithm_of, digest_of
from wherry.content.names import parse_tag
from wherry.content.oci import DOCUMENT_MAX_BYTES, DOCUMENT_TYPES, OCI_INDEX, Document, Index, Manifest, parse_document
from wherry.content.protocol import Digest
from wherry.errors import Cause, Invalid, NotAcceptable, NotFound
from wherry.registry.blobs import UNTAGGED_S, Blobs, read_digest
from wherry.registry.call import Call
from wherry.registry.events import DELETE, FETCH, PULL, PUSH, Journal
from wherry.registry.metadata import Held, ManifestRow, Metadata
from wherry.registry.pile import Pile
from wherry.registry.refusals import (
    DIGEST_INVALID,
    MANIFEST_BLOB_UNKNOWN,
    MANIFEST_INVALID,
    MANIFEST_UNKNOWN,
    NAME_UNKNOWN,
    invalid,
    unknown,
)
from wherry.registry.repositories import holder
from wherry.wire.http import Headers, Request, Response

PAGE_MAX = 10_000
REFERRERS_MAX = 1000
TAGS_MAX = 100
CACHED_BYTES = 16 * 1024 * 1024
CACHED_ONE_BYTES = 256 * 1024


class Manifests:
    """The manifest half of the protocol."""

    def __init__(self, content: Pile, metadata: Metadata, journal: Journal, blobs: Blobs) -> None:
        self._content = content
        self._metadata = metadata
        self._journal = journal
        self._blobs = blobs
        self._documents: OrderedDict[Digest, bytes] = OrderedDict()
        self._cached = 0

    async def pull(self, call: Call, reference: str) -> Response:
        """Send a manifest by tag or digest (200), as its pusher wrote it; 404 MANIFEST_UNKNOWN. HEAD too."""
        request = call.request
        row = await self._find(call.name, reference)
        headers = {"Docker-Content-Digest": row.digest, "ETag": f'"{row.digest}"', "Vary": "Accept"}
        if f'"{row.digest}"' in (request.headers.get("if-none-match") or ""):
            return Response(304, headers)
        accepted = [part.strip() for value in request.headers.all("accept") for part in value.split(",")]
        accepted = [part.partition(";")[0].strip().lower() for part in accepted if part]
        if accepted and not {row.media_type, "*/*", "application/*"} & set(accepted):
            raise NotAcceptable(
                f"{call.name}:{reference} is {row.media_type}, and Accept names only {', '.join(accepted)}"
            )
        headers["Content-Type"] = row.media_type
        data = await self._read(row.digest)
        if request.method == "GET":  # HEAD is no pull: clients look whether there is something new
            event = call.event(PULL, reference=reference, digest=row.digest, media_type=row.media_type, size=len(data))
            self._journal.note(event)
        return Response(200, headers, data)

    async def push(self, call: Call, reference: str) -> Response:
        """Keep a manifest and point the tag at it (201); with a digest, at all `tag`s of the query.

        400 MANIFEST_INVALID or DIGEST_INVALID, 404 MANIFEST_BLOB_UNKNOWN when a blob of an image is not in the repository
        (unless its settings take sparse images). A trusted peer may name blobs that are anywhere in this machine's
        content. An index may have missing images. 409 DENIED for an immutable tag.
        """
        request, name = call.request, call.name
        by_digest = read_digest(reference) if ":" in reference else None
        tags = list(dict.fromkeys(request.all("tag"))) if by_digest is not None else [reference]
        if len(tags) > TAGS_MAX:
            raise invalid(MANIFEST_INVALID, f"manifest: {len(tags)} tags at once; at most {TAGS_MAX}")
        for tag in tags:
            parse_tag(tag, "reference")
        data = await request.body(DOCUMENT_MAX_BYTES)
        digest = digest_of(data, algorithm_of(by_digest) if by_digest else "sha256")
        if by_digest is not None and digest != by_digest:
            raise invalid(DIGEST_INVALID, f"manifest: its bytes have the digest {digest}, not {by_digest}")
        kind = (request.headers.get("content-type") or "").partition(";")[0].strip()
        row = await self._keep(call, reference, digest, data, kind, tags)
        headers = Headers({"Location": f"/v2/{name}/manifests/{digest}", "Docker-Content-Digest": digest})
        if row.subject:
            headers.add("OCI-Subject", row.subject)
        for tag in tags if by_digest else ():
            headers.add("OCI-Tag", tag)
        return Response(201, headers)

    async def keep(self, call: Call, reference: str, data: bytes, kind: str) -> None:
        """Keep a manifest that was fetched from another registry; its blobs need not be here. Raises Invalid."""
        by_digest = read_digest(reference) if ":" in reference else None
        digest = digest_of(data, algorithm_of(by_digest) if by_digest else "sha256")
        if by_digest is not None and digest != by_digest:
            raise invalid(DIGEST_INVALID, f"manifest: its bytes have the digest {digest}, not {by_digest}")
        tags = () if by_digest is not None else (reference,)
        await self._keep(call, reference, digest, data, kind, tags, action=FETCH)

    async def _keep(
        self,
        call: Call,
        reference: str,
        digest: Digest,
        data: bytes,
        kind: str,
        tags: Sequence[str],
        action: str = PUSH,
    ) -> ManifestRow:
        """Store a manifest, and point tags at it, in one transaction of the records."""
        name = call.name
        document = _parse(data, kind)
        lease = await self._content.lease(seconds=UNTAGGED_S)
        hold = f"{holder(name)}#{int(call.now):x}.{secrets.token_hex(8)}"
        try:
            blobs = await self._check_children(call, document, lease, fetched=action == FETCH)
            await self._content.put(data, lease=lease, digest=digest)
            await self._content.hold(hold, digest)
            row = _row_of(digest, data, document, call.now, blobs, hold)
            detail = ",".join(tags) if ":" in reference else ""
            event = call.event(
                action, reference=reference, digest=digest, media_type=row.media_type, size=len(data), detail=detail
            )
            kept = False
            try:
                kept = await self._metadata.put(name, row, tags, event)
            finally:
                if not kept:  # it was there already, with a holder of its own; or it was refused
                    await self._content.release(hold)
        finally:
            await self._content.end_lease(lease)
        self._journal.moved(name, call.now, bytes_in=len(data))
        return row

    async def delete(self, call: Call, reference: str) -> Response:
        """Delete a tag (its manifest and other tags stay), or a manifest by digest with its tags (202).

        409 DENIED for a protected tag, and for a manifest that an index of the repository refers to.
        """
        name = call.name
        if ":" not in reference:
            if not await self._metadata.delete_tag(name, reference, call.event(DELETE, reference=reference)):
                raise unknown(MANIFEST_UNKNOWN, f"{name}:{reference}: there is no such tag")
            return Response(202)
        digest = read_digest(reference)
        gone = await self._metadata.delete_manifests(name, [digest], call.event(DELETE, reference=reference))
        if not gone:
            raise unknown(MANIFEST_UNKNOWN, f"{name}@{digest}: there is no such manifest")
        await self.release(gone)
        return Response(202)

    async def release(self, gone: Sequence[Held]) -> None:
        """End the holds of records that are gone."""
        for who, digest in gone:
            await self._content.release(who, digest)

    async def tags(self, call: Call) -> Response:
        """List tags in order, a page at a time (`n`, `last`, Link); 404 NAME_UNKNOWN."""
        name = call.name
        if not await self._metadata.has(name):
            raise unknown(NAME_UNKNOWN, f"repository {name}: there is none of this name")
        limit, last = page_of(call.request)
        tags = list(await self._metadata.tags(name, after=last, limit=limit + 1)) if limit else []
        more, tags = len(tags) > limit, tags[:limit]
        headers = next_page(f"/v2/{name}/tags/list", limit, tags[-1]) if more else {}
        return Response.json({"name": name, "tags": tags}, headers=headers)

    async def catalog(
        self, request: Request, readable: Callable[[Sequence[str]], Awaitable[Sequence[str]]]
    ) -> Response:
        """List repositories that the caller may read, in order, a page at a time."""
        limit, last = page_of(request)
        names: list[str] = []
        after = last
        while len(names) <= limit and limit:
            page = await self._metadata.repositories(after=after, limit=limit + 1)
            names += await readable(page)
            if len(page) <= limit:
                break
            after = page[-1]
            await machine.sleep(0)  # a long walk over what they may not read lets others in
        more, names = len(names) > limit, names[:limit]
        headers = next_page("/v2/_catalog", limit, names[-1]) if more and names else {}
        return Response.json({"repositories": names}, headers=headers)

    async def referrers(self, call: Call, digest_text: str) -> Response:
        """List what is attached to a manifest, as an index (200, also when there is nothing); `artifactType` filters."""
        subject, kind = read_digest(digest_text), call.request.first("artifactType")
        limit, after = page_of(call.request, most=REFERRERS_MAX)
        if ":" in after:
            read_digest(after)
        rows = await self._metadata.referrers(call.name, subject, kind=kind or "", after=after, limit=limit + 1)
        chosen, size = list[bytes](), 0
        for row in rows[:limit]:
            size += len(row.descriptor) + 1
            if size > DOCUMENT_MAX_BYTES - 1024 and chosen:
                break
            chosen.append(row.descriptor)
        headers = {"OCI-Filters-Applied": "artifactType"} if kind is not None else {}
        if len(chosen) < len(rows) and chosen:
            more = {"artifactType": kind} if kind is not None else {}
            headers |= next_page(f"/v2/{call.name}/referrers/{subject}", limit, rows[len(chosen) - 1].digest, **more)
        head = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [msgspec.Raw(one) for one in chosen]}
        return Response(200, {**headers, "Content-Type": OCI_INDEX}, msgspec.json.encode(head))

    async def reconcile(self, before: float) -> int:
        """Release holds made before a time whose record was never written: somebody was killed between the two.

        Return how many. Holds are read first: the record of one that is kept is written by then, or its push still runs.
        """
        holds = await self._content.holders("repo/")
        known = set(await self._metadata.held())
        stray = [hold for hold in holds if hold not in known and _begun(hold[0]) <= before]
        for who, digest in stray:
            await self._content.release(who, digest)
        return len(stray)

    async def _read(self, digest: Digest) -> bytes:
        """The bytes of a manifest: the latest ones are kept in memory, where their digest cannot lie."""
        data = self._documents.get(digest)
        if data is not None:
            self._documents.move_to_end(digest)
            return data
        try:
            data = await self._content.read(digest)
        except NotFound:
            raise unknown(
                MANIFEST_UNKNOWN, f"manifest {digest}: its bytes are gone or put aside; push it again"
            ) from None
        if len(data) <= CACHED_ONE_BYTES:
            self._documents[digest] = data
            self._cached += len(data)
            while self._cached > CACHED_BYTES:
                _, old = self._documents.popitem(last=False)
                self._cached -= len(old)
        return data

    async def _find(self, name: str, reference: str) -> ManifestRow:
        if ":" in reference:
            read_digest(reference)
        row = await self._metadata.find(name, reference)
        if row is None:
            if not await self._metadata.has(name):
                raise unknown(NAME_UNKNOWN, f"repository {name}: there is none of this name")
            raise unknown(MANIFEST_UNKNOWN, f"{name}: there is no manifest {reference}")
        return row

    async def _check_children(
        self, call: Call, document: Document, lease: str, *, fetched: bool
    ) -> Sequence[tuple[Digest, int]]:
        """See that an image's blobs are here and cover them; return them with their sizes."""
        if isinstance(document, Index):
            for child in document.children:
                await self._content.cover(child.digest, lease)
            return ()
        found: dict[Digest, int] = {}
        for child in document.children:
            if child.urls:
                continue  # kept elsewhere by its maker's wish
            mine = (call.caller.trusted and not fetched) or await self._blobs.has(call.name, child.digest)
            blob = await self._content.cover(child.digest, lease) if mine else None
            if blob is None:
                if fetched or await self._takes_sparse(call.name):
                    continue
                raise unknown(
                    MANIFEST_BLOB_UNKNOWN, f"manifest: its blob {child.digest} is not in {call.name}; push it first"
                )
            if blob.size_bytes != child.size:
                message = f"manifest: it says {child.size} bytes for {child.digest}, which has {blob.size_bytes}"
                raise invalid(MANIFEST_INVALID, message)
            found[child.digest] = blob.size_bytes
        return list(found.items())

    async def _takes_sparse(self, name: str) -> bool:
        row = await self._metadata.repository(name)
        return row is not None and row.settings.sparse


def _parse(data: bytes, kind: str) -> Document:
    known = kind in DOCUMENT_TYPES or kind.startswith("application/vnd.")
    try:
        return parse_document(data, kind if known else "")
    except Invalid as error:
        fields = [f"{cause.field}" for cause in error.causes]
        raise Invalid(error.message, causes=[Cause(",".join(fields), MANIFEST_INVALID, error.message)]) from None


def page_of(request: Request, *, most: int = PAGE_MAX) -> tuple[int, str]:
    """Read `n` and `last`. Raises Invalid."""
    text = request.first("n")
    if text is None:
        return most, request.first("last") or ""
    if re.fullmatch(r"[0-9]{1,9}", text) is None:
        raise invalid("UNSUPPORTED", f"n={text!r}: a count of entries is a number from 0")
    return min(int(text), most), request.first("last") or ""


def next_page(path: str, limit: int, last: str, **more: str) -> dict[str, str]:
    """The Link header to the page after `last`."""
    return {"Link": f'<{path}?{urlencode({"n": limit, "last": last, **more})}>; rel="next"'}


def _row_of(
    digest: Digest, data: bytes, document: Document, now: float, blobs: Sequence[tuple[Digest, int]], hold: str
) -> ManifestRow:
    config = document.config if isinstance(document, Manifest) else None
    artifact_type = document.artifact_type or (config.media_type if config else "")
    descriptor: dict[str, object] = {"mediaType": document.media_type, "digest": digest, "size": len(data)}
    if artifact_type:
        descriptor["artifactType"] = artifact_type
    if document.annotations:
        descriptor["annotations"] = document.annotations
    return ManifestRow(
        digest,
        document.media_type,
        len(data),
        now,
        tuple(dict.fromkeys(child.digest for child in document.children if not child.urls)),
        document.subject.digest if document.subject else "",
        artifact_type,
        msgspec.json.encode(descriptor),
        blobs,
        hold,
    )


def _begun(hold: str) -> float:
    """When a hold was made; 0 for those of older formats."""
    text = hold.rpartition("#")[2].partition(".")
    try:
        return float(int(text[0], 16)) if text[1] else 0.0
    except ValueError:
        return 0.0
