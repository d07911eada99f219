"""The way to the disk: writes line up, one thread commits them in groups, and a disk that refuses is asked again later."""

import asyncio
import logging
import random
import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

from wherry.clock import machine
from wherry.errors import Broken, Damaged, TooManyRequests, Unavailable
from wherry.store.log import Head, Row, read_rows
from wherry.store.protocol import Entry, Note
from wherry.store.seals import SECRETS, Life, Sealer
from wherry.store.settings import Settings

log = logging.getLogger(__name__)
T = TypeVar("T")

_FIRST_BACKOFF_S, _LAST_BACKOFF_S = 0.2, 5.0
_FINAL_CODES = {sqlite3.SQLITE_IOERR_FSYNC, sqlite3.SQLITE_IOERR_DIR_FSYNC, sqlite3.SQLITE_CORRUPT}
"""After a failed fsync the kernel may count lost pages as clean, so only a fresh start can tell what is on the disk."""


@dataclass(slots=True)
class Transaction:
    """Writes of one revision, on their way. `entries`: each key, what it was and what it becomes (None: absent)."""

    revision: int
    entries: Sequence[tuple[str, Entry | None, Entry | None]]
    note: Note
    size_bytes: int
    done: asyncio.Future[int]
    sealed: dict[str, bytes] = field(default_factory=dict[str, bytes])
    """The values that went to the disk sealed: filled in on the way."""


@dataclass(frozen=True, slots=True)
class Fault:
    """Why no writes are taken: `retry_at` (machine time) is when the disk is asked again, None never."""

    message: str
    retry_at: float | None
    backoff_s: float


class Committer:
    """Commits transactions in the order in which they were submitted.

    `show` is called on the loop with what has become durable, before it is answered; `forget` when all that was
    submitted and not shown has failed; `replay` with rows that had failed and turn out to be on the disk.
    """

    def __init__(
        self,
        head: Head,
        sealer: Sealer,
        floor: int,
        settings: Settings,
        *,
        show: Callable[[Sequence[Transaction]], None],
        forget: Callable[[], None],
        replay: Callable[[Sequence[Row]], None],
    ) -> None:
        self.head = head
        self.floor = floor
        """Goes to the disk with the next commit."""
        self._sealer, self._settings = sealer, settings
        self._show, self._forget, self._replay = show, forget, replay
        self._name = f"store {head.directory.root}"
        self._loop = asyncio.get_running_loop()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="store-writer")
        self._queue: list[Transaction] = []
        self._queue_bytes = 0
        self._committing = self._scheduled = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._fault: Fault | None = None
        self._healing = asyncio.Lock()
        self._floor_written = floor
        self._last_shown = head.last
        self._undropped: list[Life] = []

    @property
    def at_fault(self) -> bool:
        """Whether writes are refused."""
        return self._fault is not None

    def room(self) -> None:
        """Raise TooManyRequests when too much waits already."""
        settings = self._settings
        if len(self._queue) >= settings.queue_writes or self._queue_bytes >= settings.queue_bytes:
            raise TooManyRequests(f"{self._name}: {len(self._queue)} writes wait for the disk; try again")

    def submit(self, transaction: Transaction) -> None:
        """Line up; `transaction.done` gets the revision when it is durable, or Broken."""
        self._queue.append(transaction)
        self._queue_bytes += transaction.size_bytes
        self._idle.clear()
        if not (self._committing or self._scheduled):
            self._scheduled = True
            self._loop.call_soon(self._commit_next)  # after all others that are ready in this turn of the loop

    async def between(self, function: Callable[[], T]) -> T:
        """Run `function` in the writer's thread, between commits."""
        return await self._loop.run_in_executor(self._thread, function)

    def switch(self) -> Head | None:
        """Begin a new head and return the old one, to be sealed; None when it is empty. Call by `between`."""
        old = self.head
        if old.last < old.first:
            return None
        floor = self.floor
        self.head = Head.create(old.directory, old.last + 1, floor, old.durability)
        self._floor_written = floor
        return old

    async def drained(self) -> None:
        """Return when nothing waits."""
        await self._idle.wait()

    async def close(self) -> None:
        """Bring all into its place, close head and keys."""
        try:
            await self.between(self._let_go)
        finally:
            self._thread.shutdown(wait=False)

    def _commit_next(self) -> None:
        self._scheduled = False
        if self._committing or not self._queue:
            return
        count = size_bytes = 0
        while count < min(len(self._queue), self._settings.batch_writes) and size_bytes < self._settings.batch_bytes:
            size_bytes += self._queue[count].size_bytes
            count += 1
        batch = self._queue[:count]
        del self._queue[:count]
        self._queue_bytes -= size_bytes
        self._committing = True
        future = self._loop.run_in_executor(self._thread, self._commit, batch, self.floor)
        future.add_done_callback(lambda done: self._committed(batch, done))

    def _commit(self, batch: Sequence[Transaction], floor: int) -> None:
        """In the thread: one transaction of the log. New data keys are durable before what needs them."""
        rows: list[Row] = []
        dead: list[Life] = []
        for item in batch:
            for place, (key, before, after) in enumerate(item.entries):
                created = after.created if after else before.created if before else 0
                value = after.value if after else None
                if key.startswith(SECRETS):
                    if value is None:
                        dead.append((key, created))
                    else:
                        value = item.sealed[key] = self._sealer.seal(key, created, value)
                rows.append(Row(item.revision, place, key, value, created, item.note))
        if any(item.sealed for item in batch):
            self._sealer.flush()
        self.head.append(rows, floor=floor if floor != self._floor_written else None)
        self._floor_written = floor
        self._undropped += dead
        if self._undropped:
            try:
                self._sealer.drop(self._undropped)
                self._undropped = []
            except (OSError, sqlite3.Error) as error:  # the deletion itself is durable: try again with the next
                log.warning("%s: the keys of deleted secrets are not dropped yet: %s", self._name, error)

    def _committed(self, batch: Sequence[Transaction], done: asyncio.Future[None]) -> None:
        """On the loop again: show what is durable now, then answer."""
        self._committing = False
        error = asyncio.CancelledError() if done.cancelled() else done.exception()
        if error is not None:
            self._fail(batch, error)
        else:
            self._last_shown = batch[-1].revision
            self._show(batch)
            for item in batch:
                if not item.done.done():
                    item.done.set_result(item.revision)
        if self._queue:
            self._commit_next()
        else:
            self._idle.set()

    def _fail(self, batch: Sequence[Transaction], error: BaseException) -> None:
        """Nothing of the batch is acknowledged, nor what was queued behind it (it may have compared with it)."""
        final = not isinstance(error, (sqlite3.Error, OSError)) or _code(error) in _FINAL_CODES
        self._fault = _fault(error, final, _FIRST_BACKOFF_S)
        log.warning("%s: the disk did not take a write: %s", self._name, error)
        for item in (*batch, *self._queue):
            if not item.done.done():
                item.done.set_exception(Broken(f"{self._name}: the disk did not take the write: {error}"))
                item.done.exception()  # its caller may have been cancelled
        self._queue.clear()
        self._queue_bytes = 0
        self._forget()

    async def heal(self) -> None:
        """Return when writes are taken; ask the disk again when it is time; raise Unavailable while it takes none."""
        if not self.at_fault:
            return
        async with self._healing:
            fault = self._fault
            if fault is None:
                return  # another writer has asked meanwhile
            words = f"{self._name}: no writes are taken since {fault.message}"
            if fault.retry_at is None:
                raise Unavailable(f"{words}; what is on the disk is known only after a restart")
            if machine.monotonic() < fault.retry_at:
                raise Unavailable(f"{words}; free the disk")
            try:
                rows = await self.between(self._reopen)
            except (sqlite3.Error, OSError, Damaged) as error:
                self._fault = _fault(error, isinstance(error, Damaged), min(_LAST_BACKOFF_S, fault.backoff_s * 2))
                raise Unavailable(f"{self._name}: no writes are taken since {error}; free the disk") from error
            if rows:
                self._last_shown = rows[-1].revision
                self._replay(rows)
            self._fault = None
            log.warning("%s: the disk takes writes again", self._name)

    def _reopen(self) -> Sequence[Row]:
        """In the thread: open the head anew, try a write, and return the rows that we thought had failed."""
        head = self.head
        head.close()
        self.head = head = Head(head.directory, head.first, head.durability)
        head.append(())
        return list(read_rows(head.connection, head.path, first=self._last_shown + 1, stop=1 << 46))

    def _let_go(self) -> None:
        try:
            if self.floor != self._floor_written and self._fault is None:
                self.head.append((), floor=self.floor)
        except sqlite3.Error as error:
            log.warning("%s: on closing: %s", self._name, error)
        finally:
            self.head.close()
            self._sealer.close()


def _fault(error: BaseException, final: bool, backoff_s: float) -> Fault:
    return Fault(str(error), None if final else machine.monotonic() + backoff_s * random.uniform(0.8, 1.2), backoff_s)


def _code(error: BaseException) -> int:
    return getattr(error, "sqlite_errorcode", 0)
