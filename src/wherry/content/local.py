"""The pile of blobs on this machine's disk.

Layout of `root`: `blobs/ALGORITHM/HEX` (an OCI layout's own), `uploads/ID`, `index.db` (see ledger.py). Several
processes may open it, one of them without root: what root makes here belongs to the directory's owner or is readable.
"""

import asyncio
import os
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from pathlib import Path

from wherry.clock import Clock, machine
from wherry.content.digests import HEX_DIGITS, algorithm_of, digest_of, hasher
from wherry.content.ledger import Ledger
from wherry.content.oci import DOCUMENT_MAX_BYTES, references
from wherry.content.protocol import Blob, Digest
from wherry.content.uploads import LocalWriter, Uploads, to_the_end
from wherry.errors import Broken, Damaged, Invalid, NotFound, TooLarge

UPLOAD_LIFE_S = 24 * 3600.0
CHUNK_BYTES = 512 * 1024
SWEEP_BLOBS = 64
"""Blobs unlinked in one transaction: others wait for it."""


class LocalContent:
    """content/protocol.Content on a directory."""

    def __init__(self, root: Path, ledger: Ledger, clock: Clock) -> None:
        self.root = root
        self._ledger = ledger
        self._clock = clock
        self._uploads = Uploads(root / "uploads", self._finish)
        self._verified: set[tuple[Digest, int, int]] = set()

    @classmethod
    def open(cls, root: Path, *, clock: Clock) -> "LocalContent":
        """Open the store at `root`, made if absent. Raises Broken when it cannot be."""
        try:
            for folder in (root, root / "blobs", *(root / "blobs" / name for name in HEX_DIGITS), root / "uploads"):
                _make_shared(folder)
        except OSError as error:
            raise Broken(f"{root}: the content store cannot be opened: {error}") from error
        return cls(root, Ledger(root / "index.db"), clock)

    async def close(self) -> None:
        """Close the index."""
        await asyncio.to_thread(self._ledger.close)

    def path(self, digest: Digest) -> Path:
        """Where a blob's bytes are."""
        algorithm, _, value = digest.partition(":")
        return self.root / "blobs" / algorithm / value

    async def stat(self, digest: Digest) -> Blob | None:
        """Find a blob."""
        try:
            return Blob(digest, self.path(digest).stat().st_size)
        except FileNotFoundError:
            return None

    def verified(self, digest: Digest) -> bool:
        """Say whether this process has seen the blob's bytes match its digest, and the file is as it was then."""
        try:
            return self._mark(digest, self.path(digest)) in self._verified
        except FileNotFoundError:
            return False

    def file(self, digest: Digest) -> Path | None:
        """Say where a file with the bytes is."""
        return self.path(digest)

    async def inspect(self, digest: Digest) -> tuple[int, bool]:
        """Read a blob again; say how many bytes there are (-1: it is missing) and whether they have its digest."""
        return await asyncio.to_thread(_inspect, self.path(digest), digest)

    async def put_aside(self, digest: Digest) -> str:
        """Move a damaged blob to `quarantine/`, unless it has been replaced by a good one meanwhile; say where, or ""."""
        return await asyncio.to_thread(self._put_aside, digest)

    async def read(self, digest: Digest, *, limit: int = 8 * 1024 * 1024) -> bytes:
        """Read a small blob whole. Raises NotFound, TooLarge over `limit`, Damaged when it does not match."""
        try:
            with self.path(digest).open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                if size > limit:
                    raise TooLarge(f"blob {digest}: {size} bytes, more than the {limit} that are read at once")
                data = await asyncio.to_thread(file.read) if size > CHUNK_BYTES else file.read()
        except FileNotFoundError:
            raise NotFound(f"blob {digest}: not on this machine") from None
        found = digest_of(data, algorithm_of(digest))
        if found != digest:
            raise Damaged(
                f"blob {digest}: its file now has the digest {found}; remove {self.path(digest)} and get it again"
            )
        return data

    async def stream(self, digest: Digest, *, start: int = 0, stop: int | None = None) -> AsyncIterator[bytes]:
        """Yield its bytes from `start` to before `stop`. Raises NotFound.

        A whole blob that this process has not verified yet is hashed as it goes, and its last piece is kept back until
        it matches: nobody gets a damaged blob whole. Raises Damaged there.
        """
        path = self.path(digest)
        try:
            file = path.open("rb", buffering=0)
        except FileNotFoundError:
            raise NotFound(f"blob {digest}: not on this machine") from None
        with file:
            size = os.fstat(file.fileno()).st_size
            end = size if stop is None else min(stop, size)
            mark = self._mark(digest, path)
            state = hasher(algorithm_of(digest)) if start == 0 and end == size and mark not in self._verified else None
            position = start
            while True:
                data = await asyncio.to_thread(
                    os.pread, file.fileno(), max(0, min(CHUNK_BYTES, end - position)), position
                )
                position += len(data)
                if state is not None:
                    await asyncio.to_thread(state.update, data)
                    if position >= end or not data:
                        self._check(digest, state.hexdigest(), mark)
                if not data:
                    return
                yield data
                if position >= end:
                    return

    def _put_aside(self, digest: Digest) -> str:
        path = self.path(digest)
        folder = self.root / "quarantine"
        folder.mkdir(exist_ok=True)
        target = folder / digest.replace(":", "-")
        try:
            os.rename(path, target)
        except FileNotFoundError:
            return ""
        if _inspect(target, digest)[1]:  # a push had just put the right bytes there
            os.rename(target, path)
            return ""
        return str(target)

    async def ingest(self, *, lease: str) -> LocalWriter:
        """Begin an upload."""
        return await self._uploads.begin(lease)

    async def resume(self, upload: str) -> LocalWriter:
        """Go on with an upload. Raises NotFound; Conflict while another request writes it."""
        return await self._uploads.resume(upload)

    async def take_up(self, name: str, *, lease: str) -> LocalWriter:
        """Go on with the upload called `name`, or begin it. Raises Conflict while another writes it."""
        return await self._uploads.take_up(name, lease)

    async def put(self, data: bytes, *, lease: str = "", digest: Digest | None = None) -> Blob:
        """Store a small blob in one go."""
        found = digest_of(data, algorithm_of(digest) if digest else "sha256")
        if digest is not None and found != digest:
            raise Invalid(f"blob: {len(data)} bytes have the digest {found}, not {digest} as promised")
        writer = await self.ingest(lease=lease)
        try:
            await writer.write(data)
            return await writer.commit(found)
        finally:
            await writer.abort()

    async def cover(self, digest: Digest, lease: str) -> Blob | None:
        """Let a lease cover a blob that is here already; None when it is not. Raises Expired."""
        if not await asyncio.to_thread(self._ledger.cover, digest, lease, self.path(digest), self._clock.now()):
            return None
        return await self.stat(digest)

    async def hold(self, holder: str, digest: Digest) -> None:
        """Keep the blob, and all it refers to, for `holder`. Raises NotFound when it is not there."""
        await asyncio.to_thread(self._ledger.hold, holder, digest, self.path(digest))

    async def release(self, holder: str, digest: Digest | None = None) -> None:
        """End a hold, or all of a holder's; nothing if there is none."""
        await asyncio.to_thread(self._ledger.release, holder, digest)

    async def holders(self, prefix: str) -> Sequence[tuple[str, Digest]]:
        """List holds whose holder starts with `prefix`, in order."""
        return await asyncio.to_thread(self._ledger.holders, prefix)

    async def lease(self, *, seconds: float) -> str:
        """Begin a lease of cluster time; return its id."""
        id = secrets.token_hex(16)
        await asyncio.to_thread(self._ledger.lease, id, self._clock.now() + seconds)
        return id

    async def end_lease(self, lease: str) -> None:
        """End it; nothing if it is over."""
        await asyncio.to_thread(self._ledger.end_lease, lease)

    async def collect(self, *, dry_run: bool = False, fetched: bool = False) -> Sequence[Blob]:
        """Remove (or, dry, list) every blob that nobody holds and no lease covers, and uploads left for a day."""
        return await asyncio.to_thread(self._collect, dry_run, fetched)

    def _collect(self, dry_run: bool, fetched: bool) -> Sequence[Blob]:
        now = self._clock.now()
        live = self._ledger.live(now)
        dead = {blob.digest: blob for blob in self._all() if blob.digest not in live}
        if dry_run:
            return list(dead.values())
        removed: list[Blob] = []
        digests = sorted(dead)
        for start in range(0, len(digests), SWEEP_BLOBS):
            gone = self._ledger.sweep(digests[start : start + SWEEP_BLOBS], now, self._unlink)
            removed += [dead[digest] for digest in gone]
        for path in self._uploads.stale(machine.now() - UPLOAD_LIFE_S):
            path.unlink(missing_ok=True)
        for path in self._uploads.named() if fetched else ():
            path.unlink(missing_ok=True)
        return removed

    def _all(self) -> list[Blob]:
        found: list[Blob] = []
        for algorithm in HEX_DIGITS:
            for entry in os.scandir(self.root / "blobs" / algorithm):
                with suppress(FileNotFoundError):
                    found.append(Blob(Digest(f"{algorithm}:{entry.name}"), entry.stat().st_size))
        return found

    def _unlink(self, digest: Digest) -> None:
        self.path(digest).unlink(missing_ok=True)

    async def _finish(self, upload: Path, fd: int, digest: Digest, size_bytes: int, lease: str) -> Blob:
        """Make an upload that has been verified a blob, in this order: data on disk, index, name, name on disk.

        A blob that is there already is replaced by the same bytes, which also mends a damaged one.
        """

        def finish() -> None:
            try:
                os.fsync(fd)
                head = os.pread(fd, DOCUMENT_MAX_BYTES + 1, 0) if size_bytes <= DOCUMENT_MAX_BYTES else b""
                os.fchmod(fd, 0o644)
                self._ledger.add(digest, size_bytes, references(head), lease, self._clock.now())
                target = self.path(digest)
                upload.rename(target)
                _sync(target.parent)
            except OSError as error:
                raise Broken(f"blob {digest}: cannot be stored in {self.root}: {error.strerror}") from error

        await to_the_end(finish)
        self._remember(self._mark(digest, self.path(digest)))
        return Blob(digest, size_bytes)

    def _check(self, digest: Digest, found: str, mark: tuple[Digest, int, int]) -> None:
        if found != digest.partition(":")[2]:
            raise Damaged(
                f"blob {digest}: its file no longer has this digest; remove {self.path(digest)} and get it again"
            )
        self._remember(mark)

    def _remember(self, mark: tuple[Digest, int, int]) -> None:
        if len(self._verified) > 100_000:
            self._verified.clear()
        self._verified.add(mark)

    def _mark(self, digest: Digest, path: Path) -> tuple[Digest, int, int]:
        seen = path.stat()
        return (digest, seen.st_ino, seen.st_mtime_ns)


def _make_shared(folder: Path) -> None:
    """Make a directory that the group may write too, owned like the one above it when root makes it."""
    if folder.is_dir():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        folder.mkdir()
        if os.geteuid() == 0:
            above = folder.parent.stat()
            os.chown(folder, above.st_uid, above.st_gid)
        folder.chmod(0o2775)


def _sync(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _inspect(path: Path, digest: Digest) -> tuple[int, bool]:
    """Read a file; say how many bytes it has, -1 when it is missing, and whether they have the digest."""
    state = hasher(algorithm_of(digest))
    size = 0
    try:
        with path.open("rb", buffering=0) as file:
            while data := file.read(2 * CHUNK_BYTES):
                state.update(data)
                size += len(data)
    except FileNotFoundError:
        return -1, False
    except OSError:
        return size, False
    return size, state.hexdigest() == digest.partition(":")[2]
