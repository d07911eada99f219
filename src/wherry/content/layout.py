"""Images as one tar: written so that OCI tools (an image layout) and `docker load` (manifest.json) both read it.

Sources: OCI image-spec 1.1, "Image Layout"; Docker, "Image Tarball" (manifest.json of `docker save`).
"""

import asyncio
import posixpath
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from wherry.content.digests import HEX_DIGITS, parse_digest
from wherry.content.inflate import HEAD_BYTES, compression_of, pieces
from wherry.content.names import familiar_repository, parse_name
from wherry.content.oci import (
    DOCUMENT_MAX_BYTES,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER,
    OCI_LAYER_GZIP,
    OCI_LAYER_ZSTD,
    Descriptor,
    Index,
    Manifest,
    Platform,
    choose,
    fits,
    manifest_of,
    parse_config,
    parse_document,
)
from wherry.content.protocol import Content, Digest
from wherry.content.tars import Member, Tar
from wherry.content.tarwrite import END, Entry, header, padding
from wherry.errors import Broken, Damaged, Invalid, NotFound

REF_NAME = "org.opencontainers.image.ref.name"
FULL_NAME = "io.containerd.image.name"
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Loaded:
    """An image out of an archive: `digest` is its manifest's or index's; names are whole (`docker.io/library/web:1`)."""

    digest: Digest
    names: Sequence[str]


async def save(content: Content, images: Sequence[tuple[str, Digest]]) -> AsyncIterator[bytes]:
    """Yield a tar of images, (whole name or "", manifest or index digest) each. Parts of an index that are not here stay out.

    Raises NotFound before the first byte when a manifest or a blob of one is missing.
    """
    blobs: dict[Digest, int] = {}
    heads: list[dict[str, Any]] = []
    docker: dict[Digest, dict[str, Any]] = {}
    for name, digest in images:
        data = await content.read(digest)
        document = parse_document(data)
        manifests = await _gather(content, digest, data, blobs)
        head: dict[str, Any] = {"mediaType": document.media_type, "digest": digest, "size": len(data)}
        if name:
            head["annotations"] = {FULL_NAME: name, REF_NAME: parse_name(name).tag or name}
        heads.append(head)
        for manifest in manifests:
            if manifest.config.media_type != OCI_CONFIG and "docker" not in manifest.config.media_type:
                continue
            row = docker.setdefault(manifest.config.digest, _docker_row(manifest))
            if name and "@" not in name:
                parsed = parse_name(name)
                row["RepoTags"].append(f"{familiar_repository(parsed.repository)}:{parsed.tag}")
    index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": heads}
    files = {
        "index.json": msgspec.json.encode(index),
        "manifest.json": msgspec.json.encode(list(docker.values())),
        "oci-layout": b'{"imageLayoutVersion":"1.0.0"}',
    }
    for folder in ("blobs", *(f"blobs/{algorithm}" for algorithm in HEX_DIGITS)):
        yield header(Entry(folder, "dir", 0o755))
    for digest in sorted(blobs):
        yield header(Entry(_blob_path(digest), "file", size=blobs[digest]))
        async for part in content.stream(digest):
            yield part
        yield padding(blobs[digest])
    for path, data in files.items():
        yield header(Entry(path, "file", size=len(data))) + data + padding(len(data))
    yield END


async def load_stream(
    content: Content, stream: AsyncIterator[bytes], *, lease: str, scratch: Path, platform: Platform | None = None
) -> Sequence[Loaded]:
    """Take an archive that comes in pieces; it is kept in a file below `scratch` meanwhile. Raises as `load`, and Broken."""
    try:
        with tempfile.TemporaryFile(dir=scratch) as file:
            async for part in stream:
                await asyncio.to_thread(file.write, part)
            await asyncio.to_thread(file.flush)
            return await _Load(content, lease, platform).run(file.fileno())
    except OSError as error:
        raise Broken(f"archive: it cannot be kept in {scratch}: {error.strerror or error}") from error


async def load(content: Content, archive: Path, *, lease: str, platform: Platform | None = None) -> Sequence[Loaded]:
    """Take an archive (a tar, plain or by gzip, zstd, bzip2, xz) of either format; every blob is covered by `lease`.

    Of an index only the image for `platform` is taken, where one is named. Raises Invalid when it is neither, Damaged when a
    blob does not match its name, NotFound when one is missing.
    """
    with archive.open("rb") as file:
        return await _Load(content, lease, platform).run(file.fileno())


class _Load:
    def __init__(self, content: Content, lease: str, platform: Platform | None) -> None:
        self._platform = platform
        self._content = content
        self._lease = lease
        self._documents: dict[str, bytes] = {}
        self._blobs: dict[str, Descriptor] = {}
        self._links: dict[str, str] = {}

    async def run(self, fd: int) -> Sequence[Loaded]:
        tar = Tar(pieces(fd, name="archive"), name="archive")
        members = iter(tar)
        while (member := await asyncio.to_thread(next, members, None)) is not None:
            path = posixpath.normpath(member.path).lstrip("/")
            if member.kind == "file":
                await self._file(path, member, tar)
            elif member.kind in ("symlink", "link"):
                above = posixpath.dirname(path) if member.kind == "symlink" else ""
                self._links[path] = posixpath.normpath(posixpath.join(above, member.link))
        if "index.json" in self._documents and "oci-layout" in self._documents:
            return await self._layout()
        if "manifest.json" in self._documents:
            return await self._docker()
        raise Invalid("invalid archive: it has neither oci-layout with index.json nor manifest.json: no image archive")

    async def _file(self, path: str, member: Member, tar: Tar) -> None:
        if path in ("index.json", "oci-layout", "manifest.json"):
            if member.size > DOCUMENT_MAX_BYTES:
                raise Invalid(f"archive: {path} has {member.size} bytes; at most {DOCUMENT_MAX_BYTES} are read")
            self._documents[path] = b"".join(bytes(part) for part in tar.data())
            return
        if path == "repositories" or posixpath.basename(path) in ("VERSION", "json"):
            return  # what Docker's first format had
        parts = path.split("/")
        wanted = parse_digest(f"{parts[1]}:{parts[2]}", path) if len(parts) == 3 and parts[0] == "blobs" else None
        writer = await self._content.ingest(lease=self._lease)
        head = b""
        try:
            data = tar.data()
            while (part := await asyncio.to_thread(next, data, None)) is not None:
                head = head if len(head) >= HEAD_BYTES else head + bytes(part[:HEAD_BYTES])
                await writer.write(part)
            blob = await writer.commit(wanted)
        finally:
            await writer.abort()
        kind = {"gzip": OCI_LAYER_GZIP, "zstd": OCI_LAYER_ZSTD}.get(compression_of(head), OCI_LAYER)
        self._blobs[path] = Descriptor(kind, blob.digest, blob.size_bytes)

    async def _layout(self) -> Sequence[Loaded]:
        tags = self._docker_tags()
        found: list[Loaded] = []
        for child in _decode(self._documents["index.json"], Index, "index.json").manifests:
            document = parse_document(await self._content.read(parse_digest(child.digest)))
            digest = child.digest
            if isinstance(document, Index) and self._platform is not None:
                digest = choose(document, self._platform).digest
                document = parse_document(await self._content.read(digest))
            notes = child.annotations or {}
            names: list[str] = []
            for text in (notes.get(FULL_NAME, ""), notes.get(REF_NAME, "")):
                if text and not names and ("/" in text or ":" in text):
                    names.append(str(parse_name(text)))
            if isinstance(document, Manifest):
                await self._complete(document, digest)
                names += [name for name in tags.get(document.config.digest, ()) if name not in names]
            else:
                await self._some_image(document, digest)
            known = {name for each in found for name in each.names}
            fresh = [name for name in names if name not in known]
            if fresh or not any(each.digest == digest for each in found):
                found.append(Loaded(digest, fresh))
        return found

    async def _some_image(self, index: Index, digest: Digest) -> None:
        """See that an index has one image at least that is here with all its blobs."""
        missing: NotFound | None = None
        for child in index.manifests:
            try:
                document = parse_document(await self._content.read(child.digest))
                if isinstance(document, Index):
                    await self._some_image(document, child.digest)
                elif "unknown" not in str(child.platform):
                    await self._complete(document, child.digest)
                else:
                    continue
                return
            except NotFound as error:
                missing = error
        raise missing or NotFound(f"archive: the index {digest} refers to no image that is in it")

    async def _docker(self) -> Sequence[Loaded]:
        found: list[Loaded] = []
        for row in self._rows():
            config = self._blob(row["Config"])
            layers = [self._blob(path) for path in row.get("Layers") or ()]
            parsed = parse_config(await self._content.read(config.digest))
            if len(parsed.rootfs.diff_ids) != len(layers):
                raise Invalid(
                    f"invalid manifest, layers length mismatch: expected {len(parsed.rootfs.diff_ids)}, got {len(layers)}"
                )
            for at, (layer, diff_id) in enumerate(zip(layers, parsed.rootfs.diff_ids, strict=True)):
                if layer.media_type == OCI_LAYER and layer.digest != diff_id and diff_id.startswith("sha256:"):
                    raise Damaged(f'invalid diffID for layer {at}: expected "{diff_id}", got "{layer.digest}"')
            if self._platform is not None and not fits(parsed.platform, self._platform):
                raise NotFound(
                    f"archive: {row['Config']} does not match the specified platform: wanted {self._platform}, "
                    f"actual: {parsed.platform}"
                )
            manifest = manifest_of(Descriptor(OCI_CONFIG, config.digest, config.size), layers)
            blob = await self._content.put(manifest, lease=self._lease)
            found.append(Loaded(blob.digest, [str(parse_name(tag)) for tag in row.get("RepoTags") or ()]))
        return found

    def _docker_tags(self) -> Mapping[Digest, Sequence[str]]:
        tags: dict[Digest, list[str]] = {}
        if "manifest.json" in self._documents:
            for row in self._rows():
                names = [str(parse_name(tag)) for tag in row.get("RepoTags") or ()]
                tags.setdefault(self._blob(row["Config"]).digest, []).extend(names)
        return tags

    def _rows(self) -> list[dict[str, Any]]:
        rows = _decode(self._documents["manifest.json"], list[dict[str, Any]], "manifest.json")
        for row in rows:
            paths = [row.get("Config"), *(row.get("Layers") or ())]
            if not all(isinstance(path, str) for path in paths):
                raise Invalid("archive: manifest.json: Config and Layers must be paths in the archive")
        return rows

    def _blob(self, path: str) -> Descriptor:
        path = posixpath.normpath(path)
        for _ in range(8):
            if path in self._blobs:
                return self._blobs[path]
            if path not in self._links:
                break
            path = self._links[path]
        raise Invalid(f"archive: manifest.json names {path!r}, which the archive does not have")

    async def _complete(self, manifest: Manifest, digest: Digest) -> None:
        for child in manifest.children:
            if await self._content.cover(child.digest, self._lease) is None:
                raise NotFound(f"archive: blob {child.digest} of the image {digest} is not in it")


async def _gather(content: Content, digest: Digest, data: bytes, blobs: dict[Digest, int]) -> list[Manifest]:
    """Add a document and what it refers to, to `blobs`; return the manifests of it."""
    blobs[digest] = len(data)
    document = parse_document(data)
    if isinstance(document, Index):
        found: list[Manifest] = []
        for child in document.manifests:
            if await content.stat(child.digest) is not None:
                found += await _gather(content, child.digest, await content.read(child.digest), blobs)
        return found
    for child in document.children:
        blob = await content.stat(child.digest)
        if blob is None:
            raise NotFound(f"image {digest}: its blob {child.digest} is not on this machine")
        blobs[child.digest] = blob.size_bytes
    return [document]


def _docker_row(manifest: Manifest) -> dict[str, Any]:
    layers = [_blob_path(layer.digest) for layer in manifest.layers]
    return {"Config": _blob_path(manifest.config.digest), "RepoTags": [], "Layers": layers}


def _blob_path(digest: Digest) -> str:
    return f"blobs/{digest.replace(':', '/')}"


def _decode(data: bytes, kind: type[T], what: str) -> T:
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise Invalid(f"archive: {what} cannot be read: {error}") from None
