"""Images between this machine's content and a registry: pull and push. What is there already is not sent again."""

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Iterable
from dataclasses import dataclass

from wherry.clock import machine
from wherry.content.digests import digest_of, parse_digest
from wherry.content.names import ImageName
from wherry.content.oci import (
    Descriptor,
    Document,
    Index,
    Manifest,
    Platform,
    choose,
    parse_document,
    this_platform,
)
from wherry.content.protocol import Content, Digest, Writer
from wherry.content.remote import ATTEMPTS, READ_S, Answer, Remote, back_off_s
from wherry.errors import Conflict, Damaged, Invalid, NotFound, Unavailable, Unsupported

PARALLEL = 4
"""Blobs on their way at once."""
CONFIG_MAX_BYTES = 8 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Step:
    """Progress of one blob. `action`: exists, download, upload, mounted, done, extract, unpacked; bytes so far and in all.

    `layer`: it is one, and not a configuration.
    """

    digest: Digest
    action: str
    current: int
    total: int
    layer: bool = True


Progress = Callable[[Step], None]


@dataclass(frozen=True, slots=True)
class Pulled:
    """What a pull brought: `root` is what the name means (index or manifest), `manifest` our platform's image."""

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
) -> Pulled:
    """Get an image; all its blobs are covered by `lease` on return, so that the caller can hold it.

    Raises NotFound (the name, or our platform in it), Unauthorized, Forbidden, Unavailable, Damaged when the registry
    sends other bytes than the digests say.
    """
    job = _Pull(content, remote, repository, lease, progress or _silent)
    root, document = await job.document(reference)
    chosen = root
    if isinstance(document, Index):
        child = choose(document, platform or this_platform())
        chosen, document = await job.document(child.digest)
        if isinstance(document, Index):
            raise Unsupported(f"{repository}:{reference}: its index points to another index")
    await job.children(document)
    return Pulled(root, chosen, job.moved)


async def push(
    content: Content,
    remote: Remote,
    repository: str,
    reference: str,
    digest: Digest,
    *,
    mount_from: Collection[str] = (),
    progress: Progress | None = None,
) -> int:
    """Send an image (a manifest, or an index with all its images) and name it `reference`; return the bytes sent.

    `mount_from` are repositories of the same registry that may have its blobs. Raises NotFound when a part is not here.
    """
    job = _Push(content, remote, repository, list(mount_from), progress or _silent)
    await job.document(digest, reference)
    return job.moved


def reference_of(name: ImageName) -> str:
    """What to ask a registry for."""
    return name.digest or name.tag


class _Pull:
    def __init__(self, content: Content, remote: Remote, repository: str, lease: str, progress: Progress) -> None:
        self._content = content
        self._remote = remote
        self._repository = repository
        self._lease = lease
        self._progress = progress
        self._slots = asyncio.Semaphore(PARALLEL)
        self.moved = 0

    async def document(self, reference: str) -> tuple[Digest, Document]:
        """Get a manifest or index by tag or digest; it is in the store afterwards."""
        if ":" in reference:
            digest = parse_digest(reference)
            if await self._content.cover(digest, self._lease) is not None:
                return digest, parse_document(await self._content.read(digest))
        data, media_type = await self._remote.manifest(self._repository, reference)
        found = digest_of(data, reference.partition(":")[0] if ":" in reference else "sha256")
        if ":" in reference and found != reference:
            raise Damaged(f"{self._repository}@{reference}: the registry sent a manifest with the digest {found}")
        document = parse_document(data, media_type if media_type.startswith("application/vnd.") else "")
        await self._content.put(data, lease=self._lease, digest=found)
        self.moved += len(data)
        return found, document

    async def children(self, document: Document) -> None:
        wanted = {child.digest: child for child in document.children}
        if any(child.urls for child in wanted.values()):
            raise Unsupported(f"{self._repository}: it has layers kept elsewhere (urls), which are not fetched")
        await _together(self._blob(child) for child in wanted.values())

    async def _blob(self, child: Descriptor) -> None:
        parse_digest(child.digest)
        async with self._slots:
            if await self._content.cover(child.digest, self._lease) is not None:
                self._progress(_step(child, "exists", child.size, child.size))
                return
            writer = await self._content.ingest(lease=self._lease)
            try:
                for attempt in range(1, ATTEMPTS + 1):
                    writer, failure = await self._receive(child, writer)
                    if not failure:
                        break
                    if attempt == ATTEMPTS:
                        raise Unavailable(f"blob {child.digest}: {failure}; {writer.offset} of {child.size} bytes came")
                    await machine.sleep(back_off_s(attempt))
                try:
                    await writer.commit(child.digest)
                except Invalid as error:
                    raise Damaged(f"{self._repository}: the registry sent other bytes: {error.message}") from None
            finally:
                await writer.abort()
            self.moved += child.size
            self._progress(_step(child, "done", child.size, child.size))

    async def _receive(self, child: Descriptor, writer: Writer) -> tuple[Writer, str]:
        """Read what is missing of a blob; say what broke the connection, if anything. The bytes so far stay."""
        answer = await self._remote.blob(self._repository, child.digest, start=writer.offset)
        try:
            if writer.offset and answer.status != 206:  # it begins anew, so do we
                await writer.abort()
                writer = await self._content.ingest(lease=self._lease)
            async for part in _paced(answer):
                if writer.offset + len(part) > child.size:
                    raise Damaged(f"blob {child.digest}: more bytes come than the {child.size} that the manifest says")
                await writer.write(part)
                self._progress(_step(child, "download", writer.offset, child.size))
        except (OSError, TimeoutError, Unavailable) as error:
            return writer, str(error) or "no bytes in time"
        finally:
            await answer.close()
        return writer, "the answer ended early" if writer.offset < child.size else ""


class _Push:
    def __init__(
        self, content: Content, remote: Remote, repository: str, mount_from: list[str], progress: Progress
    ) -> None:
        self._content = content
        self._remote = remote
        self._repository = repository
        self._mount_from = mount_from
        self._progress = progress
        self._slots = asyncio.Semaphore(PARALLEL)
        self.moved = 0

    async def document(self, digest: Digest, reference: str) -> None:
        """Send a manifest or index after all that it refers to."""
        data = await self._content.read(digest)
        document = parse_document(data)
        match document:
            case Index():
                for child in document.manifests:
                    if await self._content.stat(child.digest) is not None:
                        await self.document(child.digest, child.digest)
                    elif not await self._remote.exists(self._repository, "manifests", child.digest):
                        raise NotFound(
                            f"{self._repository}:{reference}: its image for {child.platform or 'another platform'} is neither "
                            f"here nor there; pull it for that platform, or push one platform's image by digest"
                        )
            case Manifest():
                wanted = {child.digest: child for child in document.children}
                await _together(self._blob(child) for child in wanted.values())
        await self._remote.put_manifest(self._repository, reference, document.media_type, data)
        self.moved += len(data)

    async def _blob(self, child: Descriptor) -> None:
        async with self._slots:
            if await self._remote.exists(self._repository, "blobs", child.digest):
                self._progress(_step(child, "exists", child.size, child.size))
                return
            if await self._content.stat(child.digest) is None:
                raise NotFound(f"blob {child.digest}: it is part of {self._repository}, but not on this machine")
            for attempt in range(1, ATTEMPTS + 1):
                mount_from = self._mount_from[0] if self._mount_from and attempt == 1 else ""
                location = await self._remote.begin_upload(self._repository, child.digest, mount_from)
                if not location:
                    self._progress(_step(child, "mounted", child.size, child.size))
                    return
                try:
                    await self._remote.upload(self._repository, location, child.digest, child.size, self._body(child))
                    break
                except (Unavailable, Conflict):
                    if attempt == ATTEMPTS:
                        raise
                    await machine.sleep(back_off_s(attempt))
            self.moved += child.size
            self._progress(_step(child, "done", child.size, child.size))

    def _body(self, child: Descriptor) -> Callable[[], AsyncIterator[bytes]]:
        async def body() -> AsyncIterator[bytes]:
            sent = 0
            async for part in self._content.stream(child.digest):
                yield part
                sent += len(part)
                self._progress(_step(child, "upload", sent, child.size))

        return body


async def _paced(answer: Answer) -> AsyncIterator[bytes]:
    """The body's pieces, each within READ_S."""
    parts = aiter(answer.chunks())
    while True:
        async with machine.timeout(READ_S):
            part = await anext(parts, None)
        if part is None:
            return
        yield part


async def _together(jobs: Iterable[Coroutine[None, None, None]]) -> None:
    """Run all, and end the others when one fails; its own error is raised, not a group."""
    try:
        async with asyncio.TaskGroup() as group:
            for job in jobs:
                group.create_task(job)
    except BaseExceptionGroup as failed:
        first = failed.exceptions[0]
        raise first from None


def _step(child: Descriptor, action: str, current: int, total: int) -> Step:
    return Step(child.digest, action, current, total, "config" not in child.media_type)


def _silent(step: Step) -> None:
    del step
