"""A blob on its way from an upstream: fetched once, read by all who wait while it grows.

It is written to a nameless file beside the upload, so that readers of any speed read from disk and hold up nobody. The
last bytes are given out only when the whole has its digest: nobody gets a damaged blob whole.
"""

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

from wherry.clock import machine
from wherry.content.protocol import Digest
from wherry.content.remote import ATTEMPTS, Remote, back_off_s
from wherry.errors import Broken, Damaged, Unavailable, WherryError
from wherry.registry.pile import Upload

CHUNK_BYTES = 512 * 1024
HELD_BYTES = 1
"""Kept back of a blob until it is verified; a client without its last byte knows that it is not whole."""


class Flight:
    """One blob, of `size` bytes as its manifest says."""

    def __init__(self, spool: Path, digest: Digest, size: int) -> None:
        self.digest = digest
        self._size = size
        try:
            spool.mkdir(parents=True, exist_ok=True)
            self._file = tempfile.TemporaryFile(dir=spool)  # noqa: SIM115  # closed when nobody reads it any more
        except OSError as error:
            raise Broken(f"{spool}: there is no room for blobs on their way: {error.strerror}") from error
        self._written = 0
        self._landed = False
        self._error: WherryError | None = None
        self._moved = asyncio.Event()

    async def fill(self, remote: Remote, repository: str, writer: Upload) -> None:
        """Read it from a registry into `writer` and our file. Raises Unavailable when that ends early too often, Damaged."""
        attempt, before = 0, -1
        while self._written < self._size:
            answer = await remote.blob(repository, self.digest, start=self._written)  # it tries again by itself
            try:
                skip = self._written if answer.status != 206 else 0
                async for part in answer.chunks():
                    data, skip = part[skip:], max(0, skip - len(part))
                    if data:
                        await self._take(data, writer)
                if self._written < self._size:
                    raise Unavailable(
                        f"{repository}@{self.digest}: it ended after {self._written} of {self._size} bytes"
                    )
            except (Unavailable, OSError, TimeoutError) as error:
                attempt = 1 if self._written > before >= 0 else attempt + 1
                before = self._written
                if attempt >= ATTEMPTS:
                    raise Unavailable(f"{repository}@{self.digest}: {error}") from None
                await machine.sleep(back_off_s(attempt))
            finally:
                await answer.close()

    async def _take(self, data: bytes, writer: Upload) -> None:
        if self._written + len(data) > self._size:
            raise Damaged(f"{self.digest}: its manifest says {self._size} bytes, and there are more")
        await asyncio.to_thread(self._file.write, data)
        await asyncio.to_thread(self._file.flush)
        await writer.write(data)
        self._written += len(data)
        self._wake()

    def land(self) -> None:
        """It is here, and verified."""
        self._landed = True
        self._wake()

    def fail(self, error: WherryError) -> None:
        """It will not come."""
        self._error = error
        self._wake()

    async def begun(self) -> None:
        """Wait for its first bytes. Raises what went wrong, while an answer can still say it."""
        while not self._written and not self._landed and self._error is None:
            await self._moved.wait()
        if self._error is not None:
            raise self._error

    async def landed(self) -> None:
        """Wait until it is here. Raises what went wrong."""
        while not self._landed and self._error is None:
            await self._moved.wait()
        if self._error is not None:
            raise self._error

    async def read(self) -> AsyncIterator[bytes]:
        """Yield its bytes as they come. Raises what went wrong: the connection is cut then."""
        position = 0
        fd = os.dup(self._file.fileno())
        try:
            while position < self._size:
                if self._error is not None:
                    raise self._error
                ready = self._size if self._landed else min(self._written, self._size - HELD_BYTES)
                if position >= ready:
                    await self._moved.wait()
                    continue
                data = await asyncio.to_thread(os.pread, fd, min(CHUNK_BYTES, ready - position), position)
                position += len(data)
                yield data
        finally:
            os.close(fd)

    def _wake(self) -> None:
        """Wake all who wait; each looks for itself what has changed."""
        self._moved.set()
        self._moved = asyncio.Event()
