"""A layer that is unpacked while its blob still comes: content/transfer.Sink, as `Snapshots` gives it out."""

import asyncio
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from wherry.content.unpack import Unpacked
from wherry.content.unpack_child import told, unpack

DEADLINE_S = 24 * 3600.0
"""A slow registry may take long; who fetches has deadlines of its own, and drops us."""


class LayerSink:
    """One unpacking child, fed by a pipe that tells how much of the file is there."""

    def __init__(
        self, file: Path, making: Path, name: str, place: Callable[[Unpacked], None], release: Callable[[], None]
    ) -> None:
        """Begin; `place` puts the unpacked directory where it belongs, `release` is called once, at the end."""
        self._making = making
        self._place = place
        self._release = release
        self._reader, self._writer = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._writer, False)
        self._late = b""
        self._work = asyncio.create_task(
            unpack(file, making, name=name, timeout_s=DEADLINE_S, feed=self._reader), name=f"unpack {name}"
        )

    def grown(self, size_bytes: int, *, whole: bool = False) -> None:
        """Tell how many bytes its file has now, and whether these are all."""
        word = told(size_bytes, whole=whole)
        try:
            os.write(self._writer, word)
        except BlockingIOError:
            self._late = word if whole else b""  # it is thousands of words behind: only the last one counts
        except BrokenPipeError:
            pass  # the child has ended: `finish` says why

    async def finish(self) -> None:
        """Wait for the child's end, and put the layer in its place. Raises Damaged, Invalid, Broken."""
        try:
            if self._late:
                os.set_blocking(self._writer, True)
                with suppress(BrokenPipeError):
                    await asyncio.to_thread(os.write, self._writer, self._late)
            self._place(await self._work)
        finally:
            await self.drop()

    async def drop(self) -> None:
        """Stop, and leave nothing; nothing after the end."""
        if self._writer < 0:
            return
        for end in (self._writer, self._reader):
            os.close(end)
        self._writer = self._reader = -1
        self._work.cancel()
        try:
            await asyncio.wait((self._work,))
            if not self._work.cancelled():
                self._work.exception()
            with suppress(FileNotFoundError):
                await asyncio.to_thread(shutil.rmtree, self._making)
        finally:
            self._release()
