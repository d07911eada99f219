"""Uploads: bytes on their way in, hashed as they come, in files that nobody reads before they are verified."""

import asyncio
import fcntl
import os
import secrets
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

from wherry.content.digests import Hasher, algorithm_of, hasher
from wherry.content.protocol import Blob, Digest
from wherry.errors import Broken, Conflict, Invalid, NotFound

FLUSH_BYTES = 1024 * 1024
"""What is gathered before a thread hashes and writes it."""
PARKED_MAX = 256
"""Hash states of uploads between two requests; one that fell out is rebuilt by reading its file."""

T = TypeVar("T")
Finish = Callable[[Path, int, Digest, int, str], Awaitable[Blob]]
"""(upload file, its open descriptor, digest, size, lease) -> the committed blob."""


class Uploads:
    """The directory of uploads."""

    def __init__(self, root: Path, finish: Finish) -> None:
        self.root = root
        self._finish = finish
        self._parked: OrderedDict[str, tuple[int, Hasher]] = OrderedDict()

    async def begin(self, lease: str) -> "LocalWriter":
        """Make a new upload."""
        id = secrets.token_hex(16)
        fd = _open_locked(self.root / id, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        return LocalWriter(self, self._finish, id, fd, 0, hasher(), lease)

    async def resume(self, id: str) -> "LocalWriter":
        """Open one again. Raises NotFound, Conflict while another writes it."""
        if not id or not id.isalnum():
            raise NotFound(f"upload {id!r}: no such upload")
        try:
            fd = _open_locked(self.root / id, os.O_RDWR)
        except FileNotFoundError:
            raise NotFound(f"upload {id}: no such upload; it was finished, aborted or left for a day") from None
        size = os.fstat(fd).st_size
        parked = self._parked.pop(id, None)
        if parked is not None and parked[0] == size:
            state = parked[1]
        else:
            state = hasher()
            try:
                await to_the_end(lambda: hash_file(fd, state))
            except BaseException:
                os.close(fd)
                raise
        os.lseek(fd, 0, os.SEEK_END)
        return LocalWriter(self, self._finish, id, fd, size, state, "")

    def park(self, id: str, offset: int, state: Hasher) -> None:
        """Keep a hash state for the next request of an upload."""
        self._parked[id] = (offset, state)
        while len(self._parked) > PARKED_MAX:
            self._parked.popitem(last=False)

    def stale(self, before: float) -> list[Path]:
        """List uploads that nobody has touched since `before` (machine time) and nobody writes."""
        found: list[Path] = []
        for entry in os.scandir(self.root):
            try:
                if entry.stat().st_mtime < before:
                    fd = _open_locked(Path(entry.path), os.O_RDWR)
                    os.close(fd)
                    found.append(Path(entry.path))
            except (FileNotFoundError, Conflict):
                continue
        return found


class LocalWriter:
    """One upload, as content/protocol.Writer has it. One task uses it at a time."""

    def __init__(
        self, uploads: Uploads, finish: Finish, id: str, fd: int, offset: int, state: Hasher, lease: str
    ) -> None:
        self._uploads = uploads
        self._finish = finish
        self._id = id
        self._fd = fd
        self._offset = offset
        self._written = offset
        self._state = state
        self._lease = lease
        self._buffer: list[bytes] = []
        self._buffered = 0
        self._flushing: asyncio.Future[None] | None = None

    @property
    def id(self) -> str:
        """The upload's id."""
        return self._id

    @property
    def offset(self) -> int:
        """How many bytes it has taken."""
        return self._offset

    @property
    def path(self) -> Path:
        """Its file."""
        return self._uploads.root / self._id

    async def write(self, data: bytes | memoryview) -> None:
        """Append; a thread hashes and writes one part while the next one gathers."""
        if self._fd < 0:
            raise Conflict(f"upload {self._id}: it is closed")
        self._buffer.append(bytes(data))
        self._buffered += len(data)
        self._offset += len(data)
        if self._buffered >= FLUSH_BYTES:
            await self._settle()
            parts, self._buffer, self._buffered = self._buffer, [], 0
            self._flushing = asyncio.get_running_loop().run_in_executor(None, self._put, parts)

    async def commit(self, digest: Digest | None = None, *, lease: str = "") -> Blob:
        """Verify, flush, rename, sync. Raises Invalid when the bytes are not `digest` (and drops them)."""
        await self._flush()
        state = self._state
        if digest is not None and algorithm_of(digest) != "sha256":
            state = hasher(algorithm_of(digest))
            await to_the_end(lambda: hash_file(self._fd, state))
        found = Digest(f"{algorithm_of(digest) if digest else 'sha256'}:{state.hexdigest()}")
        if digest is not None and found != digest:
            size = self._offset
            await self.abort()
            raise Invalid(f"blob: {size} bytes have the digest {found}, not {digest} as promised; send them again")
        try:
            return await self._finish(self.path, self._fd, found, self._offset, lease or self._lease)
        except asyncio.CancelledError:
            self.path.unlink(missing_ok=True)
            raise
        finally:
            self._shut()

    async def abort(self) -> None:
        """Drop it; nothing after commit."""
        if self._fd < 0:
            return
        await self._quiet()
        self.path.unlink(missing_ok=True)
        self._shut()

    async def close(self) -> None:
        """Let go of the file; the bytes stay for `resume`."""
        if self._fd < 0:
            return
        await self._flush()
        self._uploads.park(self._id, self._written, self._state)
        self._shut()

    async def _flush(self) -> None:
        if self._fd < 0:
            raise Conflict(f"upload {self._id}: it is closed")
        await self._settle()
        parts, self._buffer, self._buffered = self._buffer, [], 0
        if parts:
            self._flushing = asyncio.get_running_loop().run_in_executor(None, self._put, parts)
            await self._settle()

    async def _settle(self) -> None:
        """Wait for the thread that writes; when we are cancelled it is still known, so that `abort` waits for it."""
        if self._flushing is not None:
            await asyncio.shield(self._flushing)
            self._flushing = None

    async def _quiet(self) -> None:
        try:
            await self._settle()
        except Broken:
            self._flushing = None

    def _put(self, parts: list[bytes]) -> None:
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        self._state.update(data)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(self._fd, view) :]
        except OSError as error:
            raise Broken(
                f"upload {self._id}: cannot write {len(data)} bytes to {self.path}: {error.strerror}"
            ) from error
        self._written += len(data)

    def _shut(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


async def to_the_end(work: Callable[[], T]) -> T:
    """Run in a thread and wait for its end even when we are cancelled: it uses a descriptor that its caller closes."""
    running = asyncio.get_running_loop().run_in_executor(None, work)
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait((running,))
        raise


def hash_file(fd: int, state: Hasher) -> None:
    """Feed a whole open file to a digest."""
    position = 0
    while data := os.pread(fd, FLUSH_BYTES, position):
        state.update(data)
        position += len(data)


def _open_locked(path: Path, flags: int) -> int:
    fd = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise Conflict(f"upload {path.name}: another request is writing it") from None
    return fd
