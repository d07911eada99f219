"""What a registry keeps its blobs in: the machine's content store, or a bucket."""

from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Protocol

from wherry.content.protocol import Blob, Digest


class Upload(Protocol):
    """One upload, as content/protocol.Writer has it."""

    @property
    def id(self) -> str:
        """The upload's id: `Pile.resume` finds it again, also after a restart."""
        ...

    @property
    def offset(self) -> int:
        """How many bytes it has."""
        ...

    async def write(self, data: bytes | memoryview) -> None:
        """Append."""
        ...

    async def commit(self, digest: Digest | None = None, *, lease: str = "") -> Blob:
        """Verify and make visible, durably. Raises Invalid when the bytes are not `digest` (and drops them)."""
        ...

    async def abort(self) -> None:
        """Drop it; nothing after commit."""
        ...

    async def close(self) -> None:
        """Let go; the bytes stay for `resume`."""
        ...


class Pile(Protocol):
    """Blobs by digest with who holds them: of content/protocol.Content what a registry needs, and a little more."""

    async def stat(self, digest: Digest) -> Blob | None:
        """Find a blob."""
        ...

    def verified(self, digest: Digest) -> bool:
        """Say whether this process saw the bytes match."""
        ...

    def file(self, digest: Digest) -> Path | None:
        """Say where a file with the bytes is, for sendfile; None where there is none."""
        ...

    async def read(self, digest: Digest, *, limit: int = 8 * 1024 * 1024) -> bytes:
        """Read a small blob whole. Raises NotFound, TooLarge over `limit`, Damaged when it does not match."""
        ...

    def stream(self, digest: Digest, *, start: int = 0, stop: int | None = None) -> AsyncIterator[bytes]:
        """Yield its bytes from `start` to before `stop`. Raises NotFound."""
        ...

    async def ingest(self, *, lease: str) -> Upload:
        """Begin an upload."""
        ...

    async def resume(self, upload: str) -> Upload:
        """Go on with an upload. Raises NotFound, Conflict while another request writes it."""
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

    async def collect(self, *, dry_run: bool = False) -> Sequence[Blob]:
        """Remove (or, dry, list) every blob that nobody holds and no lease covers; and uploads left for a day."""
        ...

    async def inspect(self, digest: Digest) -> tuple[int, bool]:
        """Read a blob again; say how many bytes there are (-1: it is missing) and whether they have its digest."""
        ...

    async def put_aside(self, digest: Digest) -> str:
        """Move a damaged blob to where nobody is served from, so that a push brings it back; say where, "" if it healed."""
        ...
