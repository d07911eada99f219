"""Blobs in a bucket (S3 and what speaks like it), for several registries that share it and their records.

Layout: `blobs/ALGORITHM/HEX`, `uploads/ID/START-RANDOM`, `quarantine/ALGORITHM-HEX`. The records say what is there and
who holds it: a blob is known when its row says `present`, which is written after its object is whole. An object is
deleted only inside a write transaction that has just seen it unreachable; records have one writer at a time, over all
registries, so a blob that was there when it was held is there afterwards.

obstore is imported by who opens a bucket.
"""

import asyncio
import secrets
from collections import OrderedDict
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wherry.clock import Clock
from wherry.content.digests import Hasher, algorithm_of, digest_of, hasher
from wherry.content.protocol import Blob, Digest
from wherry.errors import Broken, Conflict, Damaged, Expired, Invalid, NotFound, TooLarge
from wherry.registry.incoming import Incoming
from wherry.registry.records import Records, Tx

if TYPE_CHECKING:
    from obstore.store import S3Store

UPLOAD_LIFE_S = 24 * 3600.0
CHUNK_BYTES = 512 * 1024
SWEEP_BLOBS = 256
"""Objects deleted in one transaction: other writers wait for it."""
PARKED_MAX = 256
_LIVE = """
WITH RECURSIVE live(digest) AS (
  SELECT digest FROM pile_holds UNION SELECT digest FROM pile_covers
  UNION SELECT r.child FROM pile_refs r JOIN live l ON r.parent = l.digest
) SELECT digest FROM live
"""


class Bucket:
    """registry/pile.Pile on a bucket."""

    def __init__(self, store: "S3Store", records: Records, clock: Clock) -> None:
        self.store = store
        self.records = records
        self._clock = clock
        self._verified: set[Digest] = set()
        self._parked: OrderedDict[str, tuple[int, Hasher]] = OrderedDict()

    @classmethod
    async def open(cls, url: str, records: Records, *, clock: Clock) -> "Bucket":
        """Open `s3://BUCKET/PREFIX`; credentials and endpoint are taken from the environment as the AWS tools do.

        Raises Invalid for a URL that cannot be read or without the package it takes, Broken when the bucket refuses.
        """
        bucket = cls(_store(url), records, clock)
        try:
            async for _ in bucket.store.list(chunk_size=1):
                break
        except Exception as error:
            raise Broken(f"{url}: the bucket cannot be read: {_words(error)}") from error
        return bucket

    def now(self) -> float:
        """The cluster's time."""
        return self._clock.now()

    def path(self, digest: Digest) -> Path:
        """There is none: blobs of a bucket are streamed."""
        raise Conflict(f"blob {digest}: it is in a bucket and has no file")

    def file(self, digest: Digest) -> Path | None:
        """There is none."""
        del digest
        return None

    def verified(self, digest: Digest) -> bool:
        """Say whether this process saw the whole blob match its digest."""
        return digest in self._verified

    async def stat(self, digest: Digest) -> Blob | None:
        """Find a blob."""
        row = await self.records.row("SELECT size FROM pile_blobs WHERE digest = ? AND present = 1", digest)
        return Blob(digest, row[0]) if row else None

    async def read(self, digest: Digest, *, limit: int = 8 * 1024 * 1024) -> bytes:
        """Read a small blob whole. Raises NotFound, TooLarge over `limit`, Damaged when it does not match."""
        blob = await self._find(digest)
        if blob.size_bytes > limit:
            raise TooLarge(f"blob {digest}: {blob.size_bytes} bytes, more than the {limit} that are read at once")
        data = b"".join([part async for part in self.objects(key_of(digest))])
        found = digest_of(data, algorithm_of(digest))
        if found != digest:
            raise Damaged(f"blob {digest}: its object now has the digest {found}; scrub, and push it again")
        return data

    async def stream(self, digest: Digest, *, start: int = 0, stop: int | None = None) -> AsyncIterator[bytes]:
        """Yield its bytes from `start` to before `stop`. Raises NotFound; Damaged before the last piece of a whole one."""
        size = (await self._find(digest)).size_bytes
        end = size if stop is None else min(stop, size)
        whole = start == 0 and end == size and digest not in self._verified
        state = hasher(algorithm_of(digest)) if whole else None
        kept = b""
        if start < end:
            async for data in self.objects(key_of(digest), start, end):
                if state is not None:
                    await asyncio.to_thread(state.update, data)
                if kept:
                    yield kept
                kept = data
        if state is not None:
            if f"{algorithm_of(digest)}:{state.hexdigest()}" != digest:
                raise Damaged(f"blob {digest}: its object has other bytes; scrub, and push it again")
            self._verified.add(digest)
        if kept:
            yield kept

    async def ingest(self, *, lease: str) -> Incoming:
        """Begin an upload."""
        return Incoming(self, secrets.token_hex(16), [], hasher(), lease)

    async def resume(self, upload: str) -> Incoming:
        """Go on with an upload, also one of another registry. Raises NotFound."""
        known = await self.records.row("SELECT 1 FROM pile_uploads WHERE id = ?", upload)
        if known is None:
            raise NotFound(f"upload {upload}: no such upload; it was finished, aborted or left for a day")
        query = "SELECT start, size, object FROM pile_segments WHERE upload = ? ORDER BY start"
        segments = [(start, size, key) for start, size, key in await self.records.rows(query, upload)]
        offset = sum(size for _, size, _ in segments)
        parked = self._parked.pop(upload, None)
        if parked is not None and parked[0] == offset:
            return Incoming(self, upload, segments, parked[1], "")
        state = hasher()
        for _, _, key in segments:
            async for data in self.objects(key):
                await asyncio.to_thread(state.update, data)
        return Incoming(self, upload, segments, state, "")

    def park(self, upload: str, offset: int, state: Hasher) -> None:
        """Keep a hash state for the next request of an upload: without it the bytes are read again."""
        self._parked[upload] = (offset, state)
        while len(self._parked) > PARKED_MAX:
            self._parked.popitem(last=False)

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

    # holds and leases ---------------------------------------------------------------------------------------------------
    async def announce(self, digest: Digest, size_bytes: int, children: Sequence[Digest], lease: str) -> bool:
        """Note a blob that is about to appear; say whether it is there already. Raises Expired when the lease is over."""
        now = self._clock.now()

        def work(db: Tx) -> bool:
            if lease:
                _cover(db, digest, lease, now)
            row = db.execute("SELECT present FROM pile_blobs WHERE digest = ?", (digest,)).fetchone()
            if row is None:
                db.execute("INSERT INTO pile_blobs VALUES (?, ?, 0)", (digest, size_bytes))
            refs = [(digest, child) for child in children]
            db.executemany("INSERT INTO pile_refs VALUES (?, ?) ON CONFLICT DO NOTHING", refs)
            return row is not None and row[0] == 1

        return await self.records.write(work)

    async def arrived(self, digest: Digest, size_bytes: int) -> None:
        """Note that its object is whole. Nobody swept it meanwhile, or its lease is over: Expired."""
        query = "UPDATE pile_blobs SET present = 1, size = ? WHERE digest = ?"
        if not await self.records.execute(query, size_bytes, digest):
            raise Expired(f"blob {digest}: it took longer than its lease; push it again")
        self._verified.add(digest)

    async def cover(self, digest: Digest, lease: str) -> Blob | None:
        """Let a lease cover a blob that is here already; None when it is not. Raises Expired."""
        now = self._clock.now()

        def work(db: Tx) -> Blob | None:
            row = db.execute("SELECT size FROM pile_blobs WHERE digest = ? AND present = 1", (digest,)).fetchone()
            if row is None:
                return None
            _cover(db, digest, lease, now)
            return Blob(digest, row[0])

        return await self.records.write(work)

    async def hold(self, holder: str, digest: Digest) -> None:
        """Keep the blob, and all it refers to, for `holder`. Raises NotFound when it is not there."""

        def work(db: Tx) -> None:
            if db.execute("SELECT 1 FROM pile_blobs WHERE digest = ? AND present = 1", (digest,)).fetchone() is None:
                raise NotFound(f"blob {digest}: not here, so {holder!r} cannot hold it")
            db.execute("INSERT INTO pile_holds VALUES (?, ?) ON CONFLICT DO NOTHING", (holder, digest))

        await self.records.write(work)

    async def release(self, holder: str, digest: Digest | None = None) -> None:
        """End a hold, or all of a holder's; nothing if there is none."""
        if digest is None:
            await self.records.execute("DELETE FROM pile_holds WHERE holder = ?", holder)
        else:
            await self.records.execute("DELETE FROM pile_holds WHERE holder = ? AND digest = ?", holder, digest)

    async def holders(self, prefix: str) -> Sequence[tuple[str, Digest]]:
        """List holds whose holder starts with `prefix`, in order."""
        query = "SELECT holder, digest FROM pile_holds WHERE holder >= ? AND holder < ? ORDER BY holder, digest"
        rows = await self.records.rows(query, prefix, prefix + "\U0010ffff")
        return [(holder, Digest(digest)) for holder, digest in rows]

    async def lease(self, *, seconds: float) -> str:
        """Begin a lease; return its id."""
        id = secrets.token_hex(16)
        await self.records.execute("INSERT INTO pile_leases VALUES (?, ?)", id, self._clock.now() + seconds)
        return id

    async def end_lease(self, lease: str) -> None:
        """End it; nothing if it is over."""

        def work(db: Tx) -> None:
            db.execute("DELETE FROM pile_covers WHERE lease = ?", (lease,))
            db.execute("DELETE FROM pile_leases WHERE id = ?", (lease,))

        await self.records.write(work)

    # what nobody needs --------------------------------------------------------------------------------------------------
    async def collect(self, *, dry_run: bool = False) -> Sequence[Blob]:
        """Remove (or, dry, list) every blob that nobody holds and no lease covers; and uploads left for a day."""
        now = self._clock.now()

        def dead(db: Tx) -> list[Blob]:
            live = _live(db, now)
            rows = db.execute("SELECT digest, size FROM pile_blobs ORDER BY digest").fetchall()
            return [Blob(Digest(digest), size) for digest, size in rows if digest not in live]

        found = await self.records.write(dead)
        if dry_run:
            return found
        gone: list[Blob] = []
        for begin in range(0, len(found), SWEEP_BLOBS):
            part = found[begin : begin + SWEEP_BLOBS]
            gone += await self.records.write(lambda db, part=part: self._sweep(db, part, now))
        await self._drop_uploads(now - UPLOAD_LIFE_S)
        return gone

    def _sweep(self, db: Tx, dead: Sequence[Blob], now: float) -> list[Blob]:
        """Of some blobs seen dead, delete those that still are. The objects go first: a row without one is not harmful."""
        live = _live(db, now)
        gone = [blob for blob in dead if blob.digest not in live]
        for blob in gone:
            self.store.delete(key_of(blob.digest))
            db.execute("DELETE FROM pile_blobs WHERE digest = ?", (blob.digest,))
            db.execute("DELETE FROM pile_refs WHERE parent = ?", (blob.digest,))
            self._verified.discard(blob.digest)
        return gone

    async def _drop_uploads(self, before: float) -> None:
        for (upload,) in await self.records.rows("SELECT id FROM pile_uploads WHERE touched < ?", before):
            await self.drop_upload(upload)
        known = {key for (key,) in await self.records.rows("SELECT object FROM pile_segments")}
        async for page in self.store.list("uploads/"):
            for each in page:
                if each["path"] not in known and each["last_modified"].timestamp() < before:
                    await self.store.delete_async(each["path"])

    async def drop_upload(self, upload: str) -> None:
        """Forget an upload with its objects."""

        def work(db: Tx) -> list[str]:
            rows = db.execute("SELECT object FROM pile_segments WHERE upload = ?", (upload,)).fetchall()
            db.execute("DELETE FROM pile_segments WHERE upload = ?", (upload,))
            db.execute("DELETE FROM pile_uploads WHERE id = ?", (upload,))
            return [row[0] for row in rows]

        for key in await self.records.write(work):
            await self.store.delete_async(key)
        self._parked.pop(upload, None)

    async def inspect(self, digest: Digest) -> tuple[int, bool]:
        """Read a blob again; say how many bytes there are (-1: it is missing) and whether they have its digest."""
        state, size = hasher(algorithm_of(digest)), 0
        try:
            async for data in self.objects(key_of(digest)):
                await asyncio.to_thread(state.update, data)
                size += len(data)
        except NotFound:
            return -1, False
        return size, f"{algorithm_of(digest)}:{state.hexdigest()}" == digest

    async def put_aside(self, digest: Digest) -> str:
        """Move a damaged blob away, so that a push brings it back; say where it is."""
        target = f"quarantine/{digest.replace(':', '-')}"
        await self.store.copy_async(key_of(digest), target)
        self._verified.discard(digest)
        await self.records.execute("UPDATE pile_blobs SET present = 0 WHERE digest = ?", digest)
        await self.store.delete_async(key_of(digest))
        return target

    async def objects(self, key: str, start: int = 0, stop: int | None = None) -> AsyncIterator[bytes]:
        """Yield the bytes of an object. Raises NotFound, Broken."""
        try:
            options: Any = {} if stop is None else {"range": (start, stop)}
            answer = await self.store.get_async(key, options=options)
            async for part in answer.stream(min_chunk_size=CHUNK_BYTES):
                yield bytes(part)
        except FileNotFoundError:
            raise NotFound(f"{key}: not in the bucket") from None
        except OSError as error:
            raise Broken(f"{key}: the bucket failed: {_words(error)}") from error

    async def _find(self, digest: Digest) -> Blob:
        blob = await self.stat(digest)
        if blob is None:
            raise NotFound(f"blob {digest}: not in the bucket")
        return blob


def key_of(digest: Digest) -> str:
    """Where a blob's object is."""
    return f"blobs/{digest.replace(':', '/')}"


def _live(db: Tx, now: float) -> set[str]:
    db.execute("DELETE FROM pile_leases WHERE until <= ?", (now,))
    db.execute("DELETE FROM pile_covers WHERE lease NOT IN (SELECT id FROM pile_leases)")
    return {row[0] for row in db.execute(_LIVE).fetchall()}


def _cover(db: Tx, digest: Digest, lease: str, now: float) -> None:
    if db.execute("SELECT 1 FROM pile_leases WHERE id = ? AND until > ?", (lease, now)).fetchone() is None:
        raise Expired(f"lease {lease}: it is over, so it cannot keep {digest}; begin a new one")
    db.execute("INSERT INTO pile_covers VALUES (?, ?) ON CONFLICT DO NOTHING", (lease, digest))


def _store(url: str) -> "S3Store":
    try:
        from obstore.store import S3Store
    except ImportError:
        raise Invalid("a bucket needs one more package: install wherry[outgrow]") from None
    import os

    if not url.startswith("s3://") or len(url) < 6:
        raise Invalid(f"{url!r}: write s3://BUCKET or s3://BUCKET/PREFIX")
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    options: Any = {"endpoint": endpoint, "virtual_hosted_style_request": False} if endpoint else {}
    try:
        return S3Store.from_url(url, client_options={"allow_http": endpoint.startswith("http://")}, **options)
    except Exception as error:
        raise Invalid(f"{url}: {_words(error)}") from error


def _words(error: Exception) -> str:
    """The first line of the library's message: the rest is its debugging output."""
    return str(error).strip().partition("\n")[0][:300]
