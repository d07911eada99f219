"""One upload into a bucket.

What a request brings becomes one object, sent while it arrives; it counts once the records name it, and then another
registry can go on from there. A blob that comes whole in one request and is small goes straight to its place.
"""

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from wherry.content.digests import Hasher, algorithm_of, hasher
from wherry.content.oci import DOCUMENT_MAX_BYTES, references
from wherry.content.protocol import Blob, Digest
from wherry.errors import Broken, Conflict, Invalid
from wherry.registry.records import Tx

if TYPE_CHECKING:
    from wherry.registry.bucket import Bucket

PART_BYTES = 8 * 1024 * 1024
"""Up to here nothing is sent before the end; beyond, parts of this size are. S3 wants at least 5 MiB."""
WAITING = 2
"""Parts that may wait for the bucket: with those on their way they bound the memory of an upload."""

Segment = tuple[int, int, str]
"""Start, size, object."""


class Incoming:
    """content/protocol.Writer on a bucket. One task uses it at a time."""

    def __init__(self, bucket: "Bucket", id: str, segments: list[Segment], state: Hasher, lease: str) -> None:
        self._bucket = bucket
        self._id = id
        self._segments = segments
        self._begun = self._offset = sum(size for _, size, _ in segments)
        self._state = state
        self._lease = lease
        self._buffer: list[bytes] = []
        self._buffered = 0
        self._object = ""
        self._parts: asyncio.Queue[bytes | None] = asyncio.Queue(WAITING)
        self._sending: asyncio.Task[object] | None = None
        self._open = True

    @property
    def id(self) -> str:
        """The upload's id."""
        return self._id

    @property
    def offset(self) -> int:
        """How many bytes it has taken."""
        return self._offset

    async def write(self, data: bytes | memoryview) -> None:
        """Append. Raises Broken when the bucket refuses."""
        self._check_open()
        self._buffer.append(bytes(data))
        self._buffered += len(data)
        self._offset += len(data)
        if self._buffered >= PART_BYTES:
            await self._send(await self._gathered())

    async def commit(self, digest: Digest | None = None, *, lease: str = "") -> Blob:
        """Verify and make visible. Raises Invalid when the bytes are not `digest` (and drops them)."""
        self._check_open()
        rest = await self._gathered()
        if self._sending is not None:
            await self._end(rest)
            rest = b""
        found = await self._digest(algorithm_of(digest) if digest else "sha256", rest)
        if digest is not None and found != digest:
            size = self._offset
            await self.abort()
            raise Invalid(f"blob: {size} bytes have the digest {found}, not {digest} as promised; send them again")
        children = references(await self._whole(rest)) if self._offset <= DOCUMENT_MAX_BYTES else ()
        bucket = self._bucket
        if not await bucket.announce(found, self._offset, children, lease or self._lease):
            await self._place(f"blobs/{found.replace(':', '/')}", rest)
            await bucket.arrived(found, self._offset)
        await self._drop()
        return Blob(found, self._offset)

    async def abort(self) -> None:
        """Drop it; nothing after commit."""
        if self._open:
            await self._stop()
            await self._drop()

    async def close(self) -> None:
        """Let go; what came so far is noted for `resume`. Raises Conflict when another request has written there."""
        if not self._open:
            return
        rest = await self._gathered()
        if rest or self._sending is not None:
            await self._end(rest)
        segment = self._segments[-1] if self._segments and self._segments[-1][0] >= self._begun else None
        now = self._bucket.now()

        def work(db: Tx) -> None:
            known = "INSERT INTO pile_uploads VALUES (?, ?) ON CONFLICT (id) DO UPDATE SET touched = excluded.touched"
            db.execute(known, (self._id, now))
            (stands,) = db.execute(
                "SELECT CAST(coalesce(sum(size), 0) AS BIGINT) FROM pile_segments WHERE upload = ?", (self._id,)
            ).fetchone()
            if stands != self._begun:
                raise Conflict(f"upload {self._id}: another request is writing it")
            if segment is not None:
                db.execute("INSERT INTO pile_segments VALUES (?, ?, ?, ?)", (self._id, *segment))

        self._open = False
        try:
            await self._bucket.records.write(work)
        except Conflict:
            if segment is not None:
                await self._bucket.store.delete_async(segment[2])
            raise
        self._bucket.park(self._id, self._offset, self._state)

    # sending ------------------------------------------------------------------------------------------------------------
    async def _gathered(self) -> bytes:
        """Take what was gathered, hashed."""
        data = b"".join(self._buffer)
        self._buffer, self._buffered = [], 0
        if len(data) > 64 * 1024:
            await asyncio.to_thread(self._state.update, data)
        else:
            self._state.update(data)
        return data

    async def _send(self, data: bytes) -> None:
        if self._sending is None:
            self._object = f"uploads/{self._id}/{self._begun:020d}-{secrets.token_hex(4)}"
            sending = self._bucket.store.put_async(
                self._object, self._take(), use_multipart=True, chunk_size=PART_BYTES, max_concurrency=2
            )
            self._sending = asyncio.ensure_future(_await(sending))
        waiting = asyncio.ensure_future(self._parts.put(data))
        await asyncio.wait((waiting, self._sending), return_when=asyncio.FIRST_COMPLETED)
        if not waiting.done():
            waiting.cancel()
            self._sending.result()
            raise Broken(f"upload {self._id}: the bucket ended it early")

    async def _take(self) -> AsyncIterator[bytes]:
        while (part := await self._parts.get()) is not None:
            yield part

    async def _end(self, rest: bytes) -> None:
        """Send the rest and wait until the bucket has the object."""
        if rest or self._sending is None:
            await self._send(rest)
        sending = self._sending
        assert sending is not None
        waiting = asyncio.ensure_future(self._parts.put(None))
        try:
            await asyncio.wait((waiting, sending), return_when=asyncio.FIRST_COMPLETED)
            await sending
        except OSError as error:
            raise Broken(f"upload {self._id}: the bucket failed: {error}") from error
        finally:
            waiting.cancel()
        self._sending = None
        self._segments.append((self._begun, self._offset - self._begun, self._object))

    async def _stop(self) -> None:
        if self._sending is not None:
            self._sending.cancel()
            with contextlib.suppress(asyncio.CancelledError, OSError):
                await self._sending
            self._sending = None
            await self._bucket.store.delete_async(self._object)  # it may have become whole just now

    async def _drop(self) -> None:
        """Forget the upload, its rows and its objects."""
        self._open = False
        self._buffer, self._buffered = [], 0
        for start, _, key in self._segments:
            if start >= self._begun:  # not in the records yet
                await self._bucket.store.delete_async(key)
        if self._begun or await self._bucket.records.row("SELECT 1 FROM pile_uploads WHERE id = ?", self._id):
            await self._bucket.drop_upload(self._id)

    # placing ------------------------------------------------------------------------------------------------------------
    async def _place(self, key: str, rest: bytes) -> None:
        """Bring the bytes to their place: put them, copy the one object they are in, or join several."""
        store = self._bucket.store
        try:
            if not self._segments:
                await store.put_async(key, rest, use_multipart=False)
            elif len(self._segments) == 1 and not rest:
                await store.copy_async(self._segments[0][2], key)
            else:
                await store.put_async(key, self._all(rest), use_multipart=True, chunk_size=PART_BYTES)
        except OSError as error:
            raise Broken(f"{key}: the bucket failed: {error}") from error

    async def _all(self, rest: bytes) -> AsyncIterator[bytes]:
        for _, _, key in self._segments:
            async for data in self._bucket.objects(key):
                yield data
        if rest:
            yield rest

    async def _whole(self, rest: bytes) -> bytes:
        return b"".join([data async for data in self._all(rest)])

    async def _digest(self, algorithm: str, rest: bytes) -> Digest:
        state = self._state
        if algorithm != "sha256":
            state = hasher(algorithm)
            async for data in self._all(rest):
                await asyncio.to_thread(state.update, data)
        return Digest(f"{algorithm}:{state.hexdigest()}")

    def _check_open(self) -> None:
        if not self._open:
            raise Conflict(f"upload {self._id}: it is closed")


async def _await(sending: object) -> object:
    return await sending  # type: ignore[misc]
