"""Manifests and tags of a repository.

Source: OCI distribution-spec 1.1, "Pulling manifests", "Pushing Manifests", "Deleting tags", "Listing Referrers".
"""

import re
from urllib.parse import urlencode

import msgspec

from wherry.clock import Clock
from wherry.content.digests import algorithm_of, digest_of
from wherry.content.names import parse_tag
from wherry.content.oci import DOCUMENT_MAX_BYTES, DOCUMENT_TYPES, OCI_INDEX, Document, Index, Manifest, parse_document
from wherry.content.protocol import Content, Digest
from wherry.errors import Cause, Conflict, Invalid, NotAcceptable
from wherry.registry.blobs import UNTAGGED_S, read_digest
from wherry.registry.metadata import ManifestRow, Metadata
from wherry.registry.refusals import (
    DENIED,
    DIGEST_INVALID,
    MANIFEST_BLOB_UNKNOWN,
    MANIFEST_INVALID,
    MANIFEST_UNKNOWN,
    NAME_UNKNOWN,
    invalid,
    unknown,
)
from wherry.wire.http import Request, Response

PAGE_MAX = 10_000


class Manifests:
    """The manifest half of the protocol. `name` is a checked repository name, and access is decided already."""

    def __init__(self, content: Content, metadata: Metadata, clock: Clock) -> None:
        self._content = content
        self._metadata = metadata
        self._clock = clock

    async def pull(self, request: Request, name: str, reference: str) -> Response:
        """Send a manifest by tag or digest (200), as its pusher wrote it; 404 MANIFEST_UNKNOWN. HEAD too."""
        row = await self._find(name, reference)
        headers = {"Docker-Content-Digest": row.digest, "ETag": f'"{row.digest}"', "Vary": "Accept"}
        if f'"{row.digest}"' in (request.headers.get("if-none-match") or ""):
            return Response(304, headers)
        accepted = [part.strip() for value in request.headers.all("accept") for part in value.split(",")]
        accepted = [part.partition(";")[0].strip().lower() for part in accepted if part]
        if accepted and not {row.media_type, "*/*", "application/*"} & set(accepted):
            raise NotAcceptable(f"{name}:{reference} is {row.media_type}, and Accept names only {', '.join(accepted)}")
        headers["Content-Type"] = row.media_type
        return Response(200, headers, await self._content.read(row.digest))

    async def push(self, request: Request, name: str, reference: str, *, trusted: bool) -> Response:
        """Keep a manifest and point the tag at it (201).

        400 MANIFEST_INVALID or DIGEST_INVALID, 404 MANIFEST_BLOB_UNKNOWN when a blob of an image is not in the repository.
        A trusted peer may name blobs that are anywhere in this machine's content. An index may have missing images.
        """
        by_digest = read_digest(reference) if ":" in reference else None
        if by_digest is None:
            parse_tag(reference, "reference")
        data = await request.body(DOCUMENT_MAX_BYTES)
        digest = digest_of(data, algorithm_of(by_digest) if by_digest else "sha256")
        if by_digest is not None and digest != by_digest:
            raise invalid(DIGEST_INVALID, f"manifest: its bytes have the digest {digest}, not {by_digest}")
        kind = (request.headers.get("content-type") or "").partition(";")[0].strip()
        try:
            document = parse_document(
                data, kind if kind in DOCUMENT_TYPES or kind.startswith("application/vnd.") else ""
            )
        except Invalid as error:
            fields = [f"{cause.field}" for cause in error.causes]
            raise Invalid(error.message, causes=[Cause(",".join(fields), MANIFEST_INVALID, error.message)]) from None
        lease = await self._content.lease(seconds=UNTAGGED_S)
        try:
            await self._check_children(name, document, lease, trusted)
            await self._content.put(data, lease=lease, digest=digest)
            await self._content.hold(holder(name), digest)
            row = _row_of(digest, data, document, self._clock.now())
            await self._metadata.put(name, row, "" if by_digest else reference)
        finally:
            await self._content.end_lease(lease)
        headers = {"Location": f"/v2/{name}/manifests/{digest}", "Docker-Content-Digest": digest}
        if row.subject:
            headers["OCI-Subject"] = row.subject
        return Response(201, headers)

    async def delete(self, name: str, reference: str) -> Response:
        """Delete a tag (its manifest and other tags stay), or a manifest by digest with its tags (202).

        409 DENIED for a manifest that an index of the repository refers to.
        """
        if ":" not in reference:
            if not await self._metadata.delete_tag(name, reference):
                raise unknown(MANIFEST_UNKNOWN, f"{name}:{reference}: there is no such tag")
            return Response(202)
        digest = read_digest(reference)
        parents = await self._metadata.parents(name, digest)
        if parents:
            message = f"{name}@{digest}: the index {parents[0]} refers to it; delete that first"
            raise Conflict(message, causes=[Cause("", DENIED, message)])
        if not await self._metadata.delete_manifest(name, digest):
            raise unknown(MANIFEST_UNKNOWN, f"{name}@{digest}: there is no such manifest")
        await self._content.release(holder(name), digest)
        return Response(202)

    async def tags(self, request: Request, name: str) -> Response:
        """List tags in order, a page at a time (`n`, `last`, Link); 404 NAME_UNKNOWN."""
        if not await self._metadata.has(name):
            raise unknown(NAME_UNKNOWN, f"repository {name}: there is none of this name")
        limit, last = page_of(request)
        tags = list(await self._metadata.tags(name, after=last, limit=limit + 1)) if limit else []
        more, tags = len(tags) > limit, tags[:limit]
        headers = next_page(f"/v2/{name}/tags/list", limit, tags[-1]) if more else {}
        return Response.json({"name": name, "tags": tags}, headers=headers)

    async def catalog(self, request: Request) -> Response:
        """List repositories in order, a page at a time."""
        limit, last = page_of(request)
        names = list(await self._metadata.repositories(after=last, limit=limit + 1)) if limit else []
        more, names = len(names) > limit, names[:limit]
        headers = next_page("/v2/_catalog", limit, names[-1]) if more else {}
        return Response.json({"repositories": names}, headers=headers)

    async def referrers(self, request: Request, name: str, digest_text: str) -> Response:
        """List what is attached to a manifest, as an index (200, also when there is nothing); `artifactType` filters."""
        rows = await self._metadata.referrers(name, read_digest(digest_text))
        kind = request.first("artifactType")
        chosen = [msgspec.Raw(row.descriptor) for row in rows if kind is None or row.artifact_type == kind]
        headers = {"OCI-Filters-Applied": "artifactType"} if kind is not None else {}
        body = msgspec.json.encode({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": chosen})
        return Response(200, {**headers, "Content-Type": OCI_INDEX}, body)

    async def reconcile(self) -> int:
        """Release holds whose record was never written (we were killed between the two); return how many."""
        known = {(holder(name), digest) for name, digest in await self._metadata.held()}
        stray = [hold for hold in await self._content.holders("repo/") if hold not in known]
        for who, digest in stray:
            await self._content.release(who, digest)
        return len(stray)

    async def _find(self, name: str, reference: str) -> ManifestRow:
        digest = read_digest(reference) if ":" in reference else await self._metadata.resolve(name, reference)
        row = await self._metadata.manifest(name, digest) if digest else None
        if row is None:
            if not await self._metadata.has(name):
                raise unknown(NAME_UNKNOWN, f"repository {name}: there is none of this name")
            raise unknown(MANIFEST_UNKNOWN, f"{name}: there is no manifest {reference}")
        return row

    async def _check_children(self, name: str, document: Document, lease: str, trusted: bool) -> None:
        if isinstance(document, Index):
            return
        for child in document.children:
            if child.urls:
                continue  # kept elsewhere by its maker's wish
            mine = trusted or await self._metadata.linked(name, child.digest)
            blob = await self._content.cover(child.digest, lease) if mine else None
            if blob is None:
                raise unknown(
                    MANIFEST_BLOB_UNKNOWN, f"manifest: its blob {child.digest} is not in {name}; push it first"
                )
            if blob.size_bytes != child.size:
                message = f"manifest: it says {child.size} bytes for {child.digest}, which has {blob.size_bytes}"
                raise invalid(MANIFEST_INVALID, message)


def holder(name: str) -> str:
    """The holder's name of a repository in the content store."""
    return f"repo/{name}"


def page_of(request: Request) -> tuple[int, str]:
    """Read `n` and `last`. Raises Invalid."""
    text = request.first("n")
    if text is None:
        return PAGE_MAX, request.first("last") or ""
    if re.fullmatch(r"[0-9]{1,9}", text) is None:
        raise invalid("UNSUPPORTED", f"n={text!r}: a count of entries is a number from 0")
    return min(int(text), PAGE_MAX), request.first("last") or ""


def next_page(path: str, limit: int, last: str) -> dict[str, str]:
    """The Link header to the page after `last`."""
    return {"Link": f'<{path}?{urlencode({"n": limit, "last": last})}>; rel="next"'}


def _row_of(digest: Digest, data: bytes, document: Document, now: float) -> ManifestRow:
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
    )
