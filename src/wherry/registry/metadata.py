"""Which repository has what: the protocol of the registry's own records, and the values it speaks in."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from wherry.content.protocol import Digest


@dataclass(frozen=True, slots=True)
class ManifestRow:
    """A manifest or index in a repository. `subject` is the digest it is attached to, or ""; `pushed` unix seconds.

    `children` are all blobs and manifests it refers to. `descriptor` is its entry in a referrers listing (JSON).
    """

    digest: Digest
    media_type: str
    size_bytes: int
    pushed: float
    children: Sequence[Digest] = ()
    subject: str = ""
    artifact_type: str = ""
    descriptor: bytes = b""


class Metadata(Protocol):
    """Repositories, manifests, tags, links from repositories to blobs, open uploads.

    Each write is one transaction and durable on return. Names sort by bytes.
    """

    async def repositories(self, *, after: str = "", limit: int = 0) -> Sequence[str]:
        """List repositories later than `after`, at most `limit` (0: all)."""
        ...

    async def has(self, repository: str) -> bool:
        """Say whether the repository is known."""
        ...

    async def tags(self, repository: str, *, after: str = "", limit: int = 0) -> Sequence[str]:
        """List tags later than `after`."""
        ...

    async def resolve(self, repository: str, tag: str) -> Digest | None:
        """Say what a tag means."""
        ...

    async def manifest(self, repository: str, digest: Digest) -> ManifestRow | None:
        """Find a manifest (`children` are left empty)."""
        ...

    async def put(self, repository: str, row: ManifestRow, tag: str) -> None:
        """Add a manifest with links to its children, and point `tag` at it unless that is ""; makes the repository."""
        ...

    async def delete_tag(self, repository: str, tag: str) -> bool:
        """Drop a tag; say whether it was there."""
        ...

    async def delete_manifest(self, repository: str, digest: Digest) -> bool:
        """Drop a manifest with its tags, and the links that no other manifest needs; say whether it was there."""
        ...

    async def parents(self, repository: str, digest: Digest) -> Sequence[Digest]:
        """List the manifests of the repository that refer to a blob or manifest."""
        ...

    async def link(self, repository: str, digest: Digest, now: float) -> None:
        """Note that the repository has a blob; makes the repository."""
        ...

    async def linked(self, repository: str, digest: Digest) -> bool:
        """Say whether it has."""
        ...

    async def unlink(self, repository: str, digest: Digest) -> None:
        """Drop a link."""
        ...

    async def referrers(self, repository: str, subject: Digest) -> Sequence[ManifestRow]:
        """List manifests attached to `subject`, in order of digest."""
        ...

    async def begin_upload(self, upload: str, repository: str, now: float) -> None:
        """Note an upload; those older than two days are forgotten."""
        ...

    async def upload(self, upload: str) -> str | None:
        """Say which repository an upload is for."""
        ...

    async def end_upload(self, upload: str) -> None:
        """Forget it."""
        ...

    async def held(self) -> Sequence[tuple[str, Digest]]:
        """List every (repository, manifest digest)."""
        ...

    async def close(self) -> None:
        """Let go."""
        ...
