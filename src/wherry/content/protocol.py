"""Blobs of this machine by digest: the protocol between the store of bytes and all who read, write or hold them."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NewType, Protocol

Digest = NewType("Digest", str)
"""`sha256:` or `sha512:` and lower-case hex, already checked."""


@dataclass(frozen=True, slots=True)
class Blob:
    """A committed blob."""

    digest: Digest
    size_bytes: int


class Writer(Protocol):
    """One upload. Bytes are hashed as they come and are visible to nobody before `commit`."""

    @property
    def id(self) -> str:
        """The upload's id: `Content.resume` finds it again, also after a restart."""
        ...

    @property
    def offset(self) -> int:
        """How many bytes it has."""
        ...

    @property
    def path(self) -> Path:
        """Its file, whose first `written` bytes are there."""
        ...

    @property
    def written(self) -> int:
        """How many of its bytes have reached its file."""
        ...

    async def write(self, data: bytes | memoryview) -> None:
        """Append."""
        ...

    async def flush(self) -> None:
        """Have all that was written reach the file."""
        ...

    async def restart(self) -> None:
        """Throw its bytes away, and begin again in a file of its own."""
        ...

    async def commit(self, digest: Digest | None = None, *, lease: str = "") -> Blob:
        """Verify, flush, rename, sync. Raises Invalid when the bytes are not `digest` (and drops them)."""
        ...

    async def abort(self) -> None:
        """Drop it; nothing after commit."""
        ...

    async def close(self) -> None:
        """Let go of the file; the bytes stay for `resume`."""
        ...


class Readable(Protocol):
    """What can be copied from: blobs by digest."""

    async def stat(self, digest: Digest) -> Blob | None:
        """Find a blob."""
        ...

    async def read(self, digest: Digest, *, limit: int = 8 * 1024 * 1024) -> bytes:
        """Read a small blob whole. Raises NotFound, TooLarge over `limit`, Damaged when it does not match."""
        ...

    def stream(self, digest: Digest, *, start: int = 0, stop: int | None = None) -> AsyncIterator[bytes]:
        """Yield its bytes from `start` to before `stop`. Raises NotFound."""
        ...


class Content(Protocol):
    """One pile of blobs per machine. Several processes of one machine may open it at once.

    A blob lives while somebody holds it, directly or through a held blob that refers to it, or a lease covers it.
    A hold is (holder, digest), such as ("image/docker.io/library/web:1", manifest digest). Holding a manifest or an
    index holds all it refers to. A lease is (id, until): whoever writes has one, so that new blobs are left alone.
    """

    async def stat(self, digest: Digest) -> Blob | None:
        """Find a blob."""
        ...

    def path(self, digest: Digest) -> Path:
        """Where its bytes are, read-only to the caller (for sendfile and unpacking)."""
        ...

    def verified(self, digest: Digest) -> bool:
        """Say whether this process saw the bytes match since the file last changed: then `path` may be served."""
        ...

    async def read(self, digest: Digest, *, limit: int = 8 * 1024 * 1024) -> bytes:
        """Read a small blob whole. Raises NotFound, TooLarge over `limit`, Damaged when it does not match."""
        ...

    def stream(self, digest: Digest, *, start: int = 0, stop: int | None = None) -> AsyncIterator[bytes]:
        """Yield its bytes from `start` to before `stop`. Raises NotFound."""
        ...

    async def ingest(self, *, lease: str) -> Writer:
        """Begin an upload."""
        ...

    async def resume(self, upload: str) -> Writer:
        """Go on with an upload. Raises NotFound."""
        ...

    async def take_up(self, name: str, *, lease: str) -> Writer:
        """Go on with the upload called `name` (letters and digits) where it was left, also by another process; else begin it.

        Raises Conflict while another writes it.
        """
        ...

    async def put(self, data: bytes, *, lease: str = "", digest: Digest | None = None) -> Blob:
        """Store a small blob in one go."""
        ...

    async def hold(self, holder: str, digest: Digest) -> None:
        """Keep the blob, and all it refers to, for `holder`. Raises NotFound when it is not there."""
        ...

    async def release(self, holder: str, digest: Digest | None = None) -> None:
        """End a hold, or all of a holder's; nothing if there is none."""
        ...

    async def holders(self, prefix: str) -> Sequence[tuple[str, Digest]]:
        """List holds whose holder starts with `prefix`, in order."""
        ...

    async def lease(self, *, seconds: float) -> str:
        """Begin a lease; return its id."""
        ...

    async def cover(self, digest: Digest, lease: str) -> Blob | None:
        """Let a lease cover a blob that is here already; None when it is not. Raises Expired when the lease is over."""
        ...

    async def end_lease(self, lease: str) -> None:
        """End it; nothing if it is over."""
        ...

    async def collect(self, *, dry_run: bool = False, fetched: bool = False) -> Sequence[Blob]:
        """Remove (or, dry, list) every blob that nobody holds and no lease covers; and uploads left for a day.

        With `fetched` also, at once, what `take_up` began and nobody writes.
        """
        ...
