"""Images from a registry into this machine's content. What is there already is not sent again.

Blobs come beside each other; a layer is verified, inflated and unpacked while its bytes still come. What a cut connection
or a killed process leaves of a blob is gone on with. Pulls that want the same blob share the work (`Arrivals`).
"""

import asyncio
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from wherry.clock import machine
from wherry.content.answers import Answer
from wherry.content.arrivals import Arrivals
from wherry.content.digests import digest_of, parse_digest
from wherry.content.names import ImageName
from wherry.content.oci import (
    CONFIG_TYPES,
    Descriptor,
    Document,
    Manifest,
    Platform,
    choose,
    fits,
    parse_config,
    parse_document,
    this_platform,
)
from wherry.content.protocol import Content, Digest, Writer
from wherry.content.remote import ATTEMPTS, READ_S, Remote, back_off_s
from wherry.content.steps import PARALLEL, Progress, Step, silent, step_of, together
from wherry.errors import Broken, Conflict, Damaged, Invalid, NotFound, Unavailable, Unsupported

STREAM_BYTES = 1024 * 1024
"""A smaller layer is unpacked when it is whole: a child would only wait for it."""
DEPTH_MAX = 4
"""Indexes in indexes."""


class Sink(Protocol):
    """A layer that is unpacked while its blob still comes."""

    def grown(self, size_bytes: int, *, whole: bool = False) -> None:
        """Tell how many bytes its file has now, and whether these are all."""
        ...

    async def finish(self) -> None:
        """Wait for the end; then the layer is there. The blob has been verified. Raises Damaged, Invalid, Broken."""
        ...

    async def drop(self) -> None:
        """Stop, and leave nothing."""
        ...


class Unpacker(Protocol):
    """Who unpacks the layers of what is pulled (engine/snapshots.py)."""

    def keeping(self, diff_ids: Collection[str]) -> AbstractContextManager[None]:
        """Have these layers kept, though no image has them yet."""
        ...

    def has(self, diff_id: str) -> bool:
        """Say whether this layer is unpacked already."""
        ...

    async def begin(self, file: Path, blob: Digest, diff_id: str, what: str) -> Sink | None:
        """Begin with the layer in `file`, which grows; None when it has no hands free, or has it already."""
        ...

    async def ensure(self, layers: Sequence[tuple[Digest, str]], what: str, progress: Progress | None = None) -> None:
        """Unpack what is not unpacked of (blob, diff id)."""
        ...


@dataclass(frozen=True, slots=True)
class Pulled:
    """What a pull brought: `root` is what the name means (index or manifest), `manifest` one platform's image."""

    root: Digest
    manifest: Digest
    bytes_moved: int


async def pull(
    content: Content,
    remote: Remote,
    repository: str,
    reference: str,
    *,
    lease: str,
    platform: Platform | None = None,
    progress: Progress | None = None,
    unpacker: Unpacker | None = None,
    arrivals: Arrivals[Step] | None = None,
) -> Pulled:
    """Get an image; all its blobs are covered by `lease` on return, so that the caller can hold it.

    With an `unpacker` its layers are unpacked, too. Raises NotFound (the name, or the platform in it), Unauthorized,
    Forbidden, Unavailable, Damaged when the registry sends other bytes than the digests say.
    """
    job = _Pull(content, remote, repository, lease, progress or silent, unpacker, arrivals or Arrivals())
    root, document = await job.document(reference)
    chosen = root
    for _ in range(DEPTH_MAX):
        if isinstance(document, Manifest):
            break
        child = choose(document, platform or this_platform())
        chosen, document = await job.document(child.digest)
    if not isinstance(document, Manifest):
        raise Unsupported(f"{repository}:{reference}: indexes in indexes, deeper than {DEPTH_MAX}")
    await job.image(document, platform if chosen == root else None, reference)
    return Pulled(root, chosen, job.moved)


def reference_of(name: ImageName) -> str:
    """What to ask a registry for."""
    return name.digest or name.tag


class _Pull:
    def __init__(
        self,
        content: Content,
        remote: Remote,
        repository: str,
        lease: str,
        progress: Progress,
        unpacker: Unpacker | None,
        arrivals: Arrivals[Step],
    ) -> None:
        self.content = content
        self.remote = remote
        self.repository = repository
        self.lease = lease
        self.unpacker = unpacker
        self.moved = 0
        self._progress = progress
        self._arrivals = arrivals
        self._slots = asyncio.Semaphore(PARALLEL)
        self._heard: dict[Digest, str] = {}

    async def document(self, reference: str) -> tuple[Digest, Document]:
        """Get a manifest or index by tag or digest; it is in the store afterwards."""
        if ":" in reference:
            digest = parse_digest(reference)
            if await self.content.cover(digest, self.lease) is not None:
                return digest, parse_document(await self.content.read(digest))
        data, media_type = await self.remote.manifest(self.repository, reference)
        found = digest_of(data, reference.partition(":")[0] if ":" in reference else "sha256")
        if ":" in reference and found != reference:
            raise Damaged(f"{self.repository}@{reference}: the registry sent a manifest with the digest {found}")
        document = parse_document(data, media_type if media_type.startswith("application/vnd.") else "")
        if not self.content.verified(found) or await self.content.cover(found, self.lease) is None:
            await self.content.put(data, lease=self.lease, digest=found)
        self.moved += len(data)
        return found, document

    async def image(self, manifest: Manifest, platform: Platform | None, reference: str) -> None:
        """Get all that a manifest refers to: its configuration first, since that says what the layers are."""
        if any(child.urls for child in manifest.children):
            raise Unsupported(f"{self.repository}: it has layers kept elsewhere (urls), which are not fetched")
        await self._blob(manifest.config, "")
        diff_ids: Sequence[str] = [""] * len(manifest.layers)
        if manifest.config.media_type in CONFIG_TYPES:
            config = parse_config(await self.content.read(manifest.config.digest))
            own = config.platform
            if platform is not None and not fits(own, platform):
                raise NotFound(
                    f"image with reference {self.repository}:{reference} was found but does not match the specified "
                    f"platform: wanted {platform}, actual: {own}"
                )
            if self.unpacker is not None:
                diff_ids = config.rootfs.diff_ids
                if len(diff_ids) != len(manifest.layers):
                    raise Damaged(
                        f"{self.repository}: {len(manifest.layers)} layers, but its config has {len(diff_ids)} diff ids"
                    )
        wanted = {layer.digest: (layer, diff) for layer, diff in zip(manifest.layers, diff_ids, strict=True)}
        for layer, _ in wanted.values():
            self._progress(step_of(layer, "queued", 0))
        with self.unpacker.keeping(diff_ids) if self.unpacker is not None else nullcontext():
            await together(self._blob(layer, diff_id) for layer, diff_id in wanted.values())

    async def _blob(self, child: Descriptor, diff_id: str) -> None:
        parse_digest(child.digest)
        if self._slots.locked():
            self._progress(step_of(child, "wait", 0))
        async with self._slots, self._arrivals.turn(child.digest, self._hear) as tell:
            if await self.content.cover(child.digest, self.lease) is None:
                await _Fetch(self, child, diff_id, tell).run()
            elif not diff_id or self.unpacker is None or self.unpacker.has(diff_id):
                if self._heard.get(child.digest) not in ("done", "unpacked"):
                    self._progress(step_of(child, "exists", child.size))
                return
            else:
                tell(step_of(child, "done", child.size))
            if self.unpacker is not None and diff_id:
                await self.unpacker.ensure([(child.digest, diff_id)], self.repository, tell)

    def _hear(self, step: Step) -> None:
        self._heard[step.digest] = step.action
        self._progress(step)


class _Fetch:
    """One blob on its way, with the layer that is unpacked meanwhile."""

    def __init__(self, job: _Pull, child: Descriptor, diff_id: str, tell: Progress) -> None:
        self._job = job
        self._child = child
        self._diff_id = diff_id
        self._tell = tell
        self._sink: Sink | None = None
        self._streams = bool(diff_id) and job.unpacker is not None

    async def run(self) -> None:
        """Get it, verified, into the store; and unpacked, where that could be done meanwhile."""
        writer = await self._begin()
        old = writer.offset
        try:
            try:
                await self._receive(writer)
            except Invalid as error:
                if not old:  # else: what an earlier process left may be what is wrong
                    raise Damaged(f"{self._job.repository}: the registry sent other bytes: {error.message}") from None
                await self._anew()
                writer = await self._begin()
                try:
                    await self._receive(writer)
                except Invalid as again:
                    text = f"{self._job.repository}: the registry sent other bytes: {again.message}"
                    raise Damaged(text) from None
            if self._sink is not None:
                self._tell(step_of(self._child, "extract", self._child.size))
                await self._sink.finish()
                self._sink = None
                self._tell(step_of(self._child, "unpacked", self._child.size))
        except (Damaged, Broken):
            await writer.abort()
            raise
        finally:
            if self._sink is not None:
                await asyncio.shield(self._sink.drop())
            with suppress(Broken):
                await writer.close()  # what came stays for the next pull

    async def _begin(self) -> Writer:
        """Go on with what an earlier pull left; another process's is left to it."""
        try:
            writer = await self._job.content.take_up(self._child.digest.replace(":", ""), lease=self._job.lease)
        except Conflict:
            return await self._job.content.ingest(lease=self._job.lease)
        if writer.offset > self._child.size:
            await writer.restart()
        return writer

    async def _anew(self) -> None:
        if self._sink is not None:
            await self._sink.drop()
        self._sink, self._streams = None, False

    async def _receive(self, writer: Writer) -> None:
        """Bring it to its full size over as many connections as it takes, then commit. Raises Invalid for wrong bytes."""
        child, attempt, before = self._child, 0, -1
        await self._grown(writer)
        while writer.offset < child.size or (child.size == 0 and attempt == 0):
            failure = await self._connection(writer)
            if not failure:
                break
            attempt = 1 if writer.offset > before >= 0 else attempt + 1  # while bytes come, patience begins anew
            before = writer.offset
            if attempt >= ATTEMPTS:
                raise Unavailable(f"blob {child.digest}: {failure}; {writer.offset} of {child.size} bytes came")
            await machine.sleep(back_off_s(attempt))
        self._tell(step_of(child, "verify", child.size))
        await writer.flush()
        if self._sink is not None:
            self._sink.grown(writer.written, whole=True)
        await writer.commit(child.digest)
        self._tell(step_of(child, "done", child.size))

    async def _connection(self, writer: Writer) -> str:
        """Read what is missing; say what broke the connection, if anything. The bytes so far stay."""
        child, job = self._child, self._job
        answer = await job.remote.blob(job.repository, child.digest, start=writer.offset)
        try:
            if writer.offset and answer.status != 206:  # it begins anew, so do we
                await self._anew()
                await writer.restart()
            length = answer.headers.get("content-length", "")
            if length.isdigit() and int(length) + writer.offset != child.size:
                raise Damaged(
                    f"blob {child.digest}: {int(length) + writer.offset} bytes are offered, not the {child.size} that the "
                    "manifest says: more bytes, or fewer, come than it says"
                )
            async for part in _paced(answer):
                if writer.offset + len(part) > child.size:
                    raise Damaged(f"blob {child.digest}: more bytes come than the {child.size} that the manifest says")
                await writer.write(part)
                job.moved += len(part)
                await self._grown(writer)
                self._tell(step_of(child, "download", writer.offset))
        except (OSError, TimeoutError, Unavailable) as error:
            return str(error) or "no bytes in time"
        finally:
            await answer.close()
        return "the answer ended early" if writer.offset < child.size else ""

    async def _grown(self, writer: Writer) -> None:
        """Have what is on the disk unpacked."""
        if self._streams and self._sink is None and writer.written >= STREAM_BYTES and self._job.unpacker is not None:
            self._sink = await self._job.unpacker.begin(
                writer.path, self._child.digest, self._diff_id, self._job.repository
            )
            self._streams = self._sink is not None
        if self._sink is not None:
            self._sink.grown(writer.written)


async def _paced(answer: Answer) -> AsyncIterator[bytes]:
    """The body's pieces, each within READ_S."""
    parts = aiter(answer.chunks())
    while True:
        async with machine.timeout(READ_S):
            part = await anext(parts, None)
        if part is None:
            return
        yield part
