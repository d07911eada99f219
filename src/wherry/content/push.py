"""Images from this machine's content to a registry. What is there is not sent again; sisters give what they have."""

import asyncio
from collections.abc import AsyncIterator, Callable, Collection

from wherry.clock import machine
from wherry.content.oci import Descriptor, Index, Manifest, parse_document
from wherry.content.protocol import Digest, Readable
from wherry.content.remote import ATTEMPTS, Remote, back_off_s
from wherry.content.steps import PARALLEL, Progress, silent, step_of, together
from wherry.errors import BadRequest, Conflict, NotFound, Unavailable

WHOLE_BYTES = 1024 * 1024
"""A smaller blob goes in one request; a larger one so that a cut connection loses only what was on its way."""
MOUNTS_MAX = 3
"""Sister repositories that are tried for a blob."""


async def push(
    content: Readable,
    remote: Remote,
    repository: str,
    reference: str,
    digest: Digest,
    *,
    mount_from: Callable[[Digest], Collection[str]] | None = None,
    progress: Progress | None = None,
) -> int:
    """Send an image (a manifest, or an index with all its images) and name it `reference`; return the bytes sent.

    `mount_from` names repositories of the same registry that may have a blob. Raises NotFound when a part is not here.
    """
    job = _Push(content, remote, repository, mount_from or _nowhere, progress or silent)
    await job.document(digest, reference)
    return job.moved


async def lacks(content: Readable, remote: Remote, repository: str, digest: Digest) -> bool:
    """Say whether an index cannot be pushed whole: one of its images is neither here nor in the repository."""
    document = parse_document(await content.read(digest))
    if isinstance(document, Index):
        for child in document.manifests:
            if await content.stat(child.digest) is None:
                if not await remote.exists(repository, "manifests", child.digest):
                    return True
            elif await lacks(content, remote, repository, child.digest):
                return True
    return False


def _nowhere(digest: Digest) -> Collection[str]:
    del digest
    return ()


class _Push:
    def __init__(
        self,
        content: Readable,
        remote: Remote,
        repository: str,
        mount_from: Callable[[Digest], Collection[str]],
        progress: Progress,
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
                            f"here nor there; pull it for that platform, or push one platform's image with --platform"
                        )
            case Manifest():
                wanted = {child.digest: child for child in document.children}
                for child in wanted.values():
                    self._progress(step_of(child, "queued", 0))
                await together(self._blob(child) for child in wanted.values())
        await self._remote.put_manifest(self._repository, reference, document.media_type, data)
        self.moved += len(data)

    async def _blob(self, child: Descriptor) -> None:
        async with self._slots:
            if await self._remote.exists(self._repository, "blobs", child.digest):
                self._progress(step_of(child, "exists", child.size))
                return
            location = ""
            sisters = [name for name in self._mount_from(child.digest) if name != self._repository][:MOUNTS_MAX]
            for sister in sisters or [""]:
                location = await self._remote.begin_upload(self._repository, child.digest, sister)
                if not location:
                    self._progress(step_of(child, "mounted", child.size, sister))
                    return
            if await self._content.stat(child.digest) is None:
                raise NotFound(f"blob {child.digest}: it is part of {self._repository}, but not on this machine")
            await self._send(child, location)
            self._progress(step_of(child, "done", child.size))

    async def _send(self, child: Descriptor, location: str) -> None:
        """Send a blob over as many connections as it takes, each going on where the registry says the last one ended."""
        start, attempt, before = 0, 0, -1
        while True:
            try:
                if child.size <= WHOLE_BYTES:
                    await self._remote.upload(
                        self._repository, location, child.digest, child.size, self._body(child, 0)
                    )
                    return
                if start < child.size:
                    location = await self._remote.append(
                        self._repository, location, start, child.size, self._body(child, start)
                    )
                    start = child.size
                await self._remote.finish(self._repository, location, child.digest)
                return
            except (Unavailable, Conflict):
                attempt = 1 if start > before >= 0 else attempt + 1
                before = start
                if attempt >= ATTEMPTS:
                    raise
                await machine.sleep(back_off_s(attempt))
            if await self._remote.exists(self._repository, "blobs", child.digest):
                return  # only the answer was lost
            try:
                location, start = await self._remote.upload_state(self._repository, location)
            except (NotFound, BadRequest, Conflict):
                location, start = await self._remote.begin_upload(self._repository, child.digest), 0
                if not location:
                    return

    def _body(self, child: Descriptor, start: int) -> Callable[[], AsyncIterator[bytes]]:
        async def body() -> AsyncIterator[bytes]:
            sent = start
            async for part in self._content.stream(child.digest, start=start):
                yield part
                sent += len(part)
                self.moved += len(part)
                self._progress(step_of(child, "upload", sent))

        return body
