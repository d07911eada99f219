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
from wherry.host import kernel

FLUSH_BYTES = 1024 * 1024
"""What is gathered before it is hashed and written, by a thread each."""
APART_BYTES = 256 * 1024
"""Less is hashed and written by one thread: to wake a second would cost more."""
WRITEBACK_BYTES = 8 * 1024 * 1024
"""After so many the disk is told to begin; the fsync at the end waits for the rest only."""
IOV_MAX = 1024
"""Pieces that one writev takes. Source: writev(2)."""
PARKED_MAX = 256
"""Hash states of uploads between two requests; one that fell out is rebuilt by reading its file."""

NAMED = "fetch"
"""How the files of uploads that have a name begin."""

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
        if not id or not id.isalnum() or id.startswith(NAMED):
            raise NotFound(f"upload {id!r}: no such upload")
        try:
            fd = _open_locked(self.root / id, os.O_RDWR)
        except FileNotFoundError:
            raise NotFound(f"upload {id}: no such upload; it was finished, aborted or left for a day") from None
        return await self._go_on(id, fd, "")

    async def take_up(self, name: str, lease: str) -> "LocalWriter":
        """Open the upload of a name, made if absent. Raises Conflict while another writes it, Broken."""
        id = f"{NAMED}{name}"
        while True:
            fd = _open_locked(self.root / id, os.O_RDWR | os.O_CREAT)
            try:
                if os.stat(self.root / id).st_ino == os.fstat(fd).st_ino:
                    return await self._go_on(id, fd, lease)
            except FileNotFoundError:
                pass  # finished or swept between our opening it and our having its lock
            os.close(fd)

    async def _go_on(self, id: str, fd: int, lease: str) -> "LocalWriter":
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
        return LocalWriter(self, self._finish, id, fd, size, state, lease)

    def park(self, id: str, offset: int, state: Hasher) -> None:
        """Keep a hash state for the next request of an upload."""
        self._parked[id] = (offset, state)
        while len(self._parked) > PARKED_MAX:
            self._parked.popitem(last=False)

    def stale(self, before: float) -> list[Path]:
        """List uploads that nobody has touched since `before` (machine time) and nobody writes."""
        return self._idle(lambda entry: entry.stat().st_mtime < before)

    def named(self) -> list[Path]:
        """List uploads that have a name and that nobody writes."""
        return self._idle(lambda entry: entry.name.startswith(NAMED))

    def _idle(self, wanted: Callable[["os.DirEntry[str]"], bool]) -> list[Path]:
        found: list[Path] = []
        for entry in os.scandir(self.root):
            try:
                if wanted(entry):
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
        self._begun = offset
        self._spoilt = False

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

    @property
    def written(self) -> int:
        """How many bytes its file has."""
        return self._written

    async def write(self, data: bytes | memoryview) -> None:
        """Append; threads hash and write one part while the next one gathers."""
        if self._fd < 0:
            raise Conflict(f"upload {self._id}: it is closed")
        self._buffer.append(bytes(data))
        self._buffered += len(data)
        self._offset += len(data)
        if self._buffered >= FLUSH_BYTES:
            await self._settle()
            self._begin()

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
        if not self._spoilt:
            self._uploads.park(self._id, self._written, self._state)
        self._shut()

    async def restart(self) -> None:
        """Throw its bytes away, and begin again in a new file: who reads the old one is not led astray."""
        await self._flush()
        self.path.unlink(missing_ok=True)
        fresh = _open_locked(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        self._shut()
        self._fd, self._state = fresh, hasher()
        self._offset = self._written = self._begun = 0

    async def flush(self) -> None:
        """Have all that was written reach the file."""
        await self._flush()

    async def _flush(self) -> None:
        if self._fd < 0:
            raise Conflict(f"upload {self._id}: it is closed")
        await self._settle()
        if self._buffer:
            self._begin()
            await self._settle()

    def _begin(self) -> None:
        """Hash and write what has gathered, at the same time."""
        loop = asyncio.get_running_loop()
        parts, size, self._buffer, self._buffered = self._buffer, self._buffered, [], 0
        if len(parts) > IOV_MAX:
            parts = [b"".join(parts)]
        if size < APART_BYTES:
            self._flushing = loop.run_in_executor(None, self._hash_and_put, parts)
        else:
            hashing = loop.run_in_executor(None, self._hash, parts)
            writing = loop.run_in_executor(None, self._put, parts)
            self._flushing = asyncio.ensure_future(_both(hashing, writing))

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

    def _hash(self, parts: list[bytes]) -> None:
        for part in parts:
            self._state.update(part)

    def _hash_and_put(self, parts: list[bytes]) -> None:
        self._hash(parts)
        self._put(parts)

    def _put(self, parts: list[bytes]) -> None:
        views = [memoryview(part) for part in parts]
        try:
            while views:
                done = os.writev(self._fd, views)
                self._written += done
                while views and done >= len(views[0]):
                    done -= len(views.pop(0))
                if done:
                    views[0] = views[0][done:]
        except OSError as error:
            self._spoilt = True
            raise Broken(f"upload {self._id}: {self.path} cannot be written: {error.strerror}") from error
        if self._written - self._begun >= WRITEBACK_BYTES:
            kernel.begin_writeback(self._fd, self._begun, self._written - self._begun)
            self._begun = self._written

    def _shut(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


async def _both(one: Awaitable[None], other: Awaitable[None]) -> None:
    """Wait for two threads; raise what either raised when both have ended."""
    for outcome in await asyncio.gather(one, other, return_exceptions=True):
        if outcome is not None:
            raise outcome


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
    try:
        fd = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise Broken(f"upload {path.name}: {path.parent} cannot be written: {error.strerror}") from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise Conflict(f"upload {path.name}: another request is writing it") from None
    return fd
