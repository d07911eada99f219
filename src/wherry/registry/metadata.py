"""Which repository has what: the protocol of the registry's own records, and the values it speaks in."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from wherry.content.protocol import Digest
from wherry.registry.events import Event
from wherry.registry.rules import Image, RepositorySettings
from wherry.registry.space import Room


@dataclass(frozen=True, slots=True)
class ManifestRow:
    """A manifest or index in a repository. `subject` is the digest it is attached to, or ""; `pushed` unix seconds.

    `children` are all blobs and manifests it refers to; `blobs` those that are here, with sizes, which the repository
    then has. `descriptor` is its entry in a referrers listing (JSON). `hold` is who holds it in the content store: each
    record has a holder of its own, so that who deletes one never ends the hold of another that came in its place.
    """

    digest: Digest
    media_type: str
    size_bytes: int
    pushed: float
    children: Sequence[Digest] = ()
    subject: str = ""
    artifact_type: str = ""
    descriptor: bytes = b""
    blobs: Sequence[tuple[Digest, int]] = ()
    hold: str = ""


Held = tuple[str, Digest]
"""A holder in the content store, and the digest it holds."""


@dataclass(frozen=True, slots=True)
class RepositoryRow:
    """A repository. `visibility` is "public", "private", or "" for the registry's default."""

    name: str
    created: float
    visibility: str
    description: str
    settings: RepositorySettings
    used_bytes: int


class Metadata(Protocol):
    """Repositories, manifests, tags, links from repositories to blobs, open uploads.

    Each write is one transaction, durable on return, and carries the event that tells of it. Names sort by bytes.
    """

    async def repositories(self, *, after: str = "", limit: int = 0) -> Sequence[str]:
        """List repositories later than `after`, at most `limit` (0: all)."""
        ...

    async def repository(self, name: str) -> RepositoryRow | None:
        """Find a repository."""
        ...

    async def configure(self, name: str, settings: RepositorySettings, description: str, event: Event) -> None:
        """Make a repository or change what it says."""
        ...

    async def delete_repository(self, name: str, event: Event) -> Sequence[Held] | None:
        """Drop it with all it has; return what may be released, None when it is not there. Conflict for a protected tag."""
        ...

    async def has(self, repository: str) -> bool:
        """Say whether the repository is known."""
        ...

    async def tags(self, repository: str, *, after: str = "", limit: int = 0) -> Sequence[str]:
        """List tags later than `after`."""
        ...

    async def find(self, repository: str, reference: str) -> ManifestRow | None:
        """Find a manifest by tag or digest (`children` and `blobs` are left empty)."""
        ...

    async def images(self, repository: str) -> Sequence[Image]:
        """List every manifest as the rules of its life see it."""
        ...

    async def put(self, repository: str, row: ManifestRow, tags: Sequence[str], event: Event) -> bool:
        """Add a manifest with links to its blobs, and point tags at it; makes the repository, by its template.

        Return whether `row.hold` is the record's holder now; a record that is there already keeps its own.
        Raises Conflict for an immutable tag that means another image, Forbidden over quota.
        """
        ...

    async def delete_tag(self, repository: str, tag: str, event: Event) -> bool:
        """Drop a tag; say whether it was there. Raises Conflict when it is protected."""
        ...

    async def delete_manifests(
        self,
        repository: str,
        digests: Sequence[Digest],
        event: Event,
        *,
        still: Callable[[Sequence[Image]], set[str]] | None = None,
    ) -> Sequence[Held]:
        """Drop manifests with their tags, and the links that no other manifest needs; return what may be released.

        `still` is asked within the transaction which of the repository's images may go. Without it, raises Conflict
        when one has a protected tag or when an index that stays refers to one.
        """
        ...

    async def parents(self, repository: str, digest: Digest) -> Sequence[Digest]:
        """List the manifests of the repository that refer to a blob or manifest."""
        ...

    async def link(self, repository: str, digest: Digest, size_bytes: int, now: float, *, upload: str = "") -> None:
        """Note that the repository has a blob, and that its upload has ended; makes the repository.

        Raises Forbidden over quota.
        """
        ...

    async def linked(self, repository: str, digest: Digest) -> bool:
        """Say whether it has."""
        ...

    async def homes(self, digest: Digest, *, limit: int = 20) -> Sequence[str]:
        """List repositories that have a blob."""
        ...

    async def unlink(self, repository: str, digest: Digest, event: Event) -> None:
        """Drop a link."""
        ...

    async def unlink_loose(self, before: float, *, dry_run: bool = False) -> Sequence[tuple[str, Digest, int]]:
        """Drop links that are older than `before` and that no manifest of their repository needs; say which."""
        ...

    async def referrers(
        self, repository: str, subject: Digest, *, kind: str = "", after: str = "", limit: int = 0
    ) -> Sequence[ManifestRow]:
        """List manifests attached to `subject` later than `after`, in order of digest; of one artifact type if given."""
        ...

    async def begin_upload(self, upload: str, repository: str, now: float) -> None:
        """Note an upload."""
        ...

    async def upload(self, upload: str) -> str | None:
        """Say which repository an upload is for."""
        ...

    async def end_upload(self, upload: str) -> None:
        """Forget it."""
        ...

    async def uploads(self, before: float) -> Sequence[str]:
        """List uploads begun before a time."""
        ...

    async def held(self) -> Sequence[Held]:
        """List every holder with its manifest."""
        ...

    async def room(self, repository: str) -> Room | None:
        """Say which quota leaves the least room; None without one."""
        ...
