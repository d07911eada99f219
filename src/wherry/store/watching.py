"""Readers of a store's writes: each has a bounded queue, and one that falls behind is cut off with Expired."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterable, Sequence
from weakref import WeakSet

from wherry.errors import Expired, WherryError
from wherry.store.protocol import Event

_BATCH = 1000


class Watcher(AsyncIterator[Sequence[Event]]):
    """One `watch`. It listens from the moment it is made; dropping it, or `aclose`, ends it.

    The events of one revision always come in one batch, so a reader may resume from the last revision it saw.
    """

    def __init__(self, prefix: str, *, max_events: int, max_bytes: int) -> None:
        self._prefix = prefix
        self._max_events, self._max_bytes = max_events, max_bytes
        self._backlog: deque[Event] = deque()  # what was written before the watch began: not counted against it
        self._queue: deque[tuple[Sequence[Event], int]] = deque()
        self._events = self._bytes = 0
        self._error: WherryError | None = None
        self._closed = False
        self._waiter: asyncio.Future[None] | None = None

    def begin(self, backlog: Iterable[Event]) -> None:
        """Set what comes before all that is offered."""
        self._backlog.extend(backlog)

    def offer(self, batch: Sequence[Event], size_bytes: int) -> None:
        """Queue a batch (whole revisions), or cut the reader off when it has too many waiting."""
        if self._error is not None or self._closed:
            return
        self._queue.append((batch, size_bytes))
        self._events += len(batch)
        self._bytes += size_bytes
        waiting = (
            self._waiter is not None and not self._waiter.done()
        )  # then it takes this batch at once, however large
        if not waiting and (self._events > self._max_events or self._bytes > self._max_bytes):
            self.fail(
                Expired(
                    f"the watch of {self._prefix or 'all keys'} fell {self._events} events ({self._bytes} bytes) "
                    "behind and was ended: list, then watch again"
                )
            )
        self._wake()

    def fail(self, error: WherryError) -> None:
        """End the watch with `error`; what is queued is dropped."""
        self._error = error
        self._backlog.clear()
        self._queue.clear()
        self._events = self._bytes = 0
        self._wake()

    async def __anext__(self) -> Sequence[Event]:
        while True:
            if self._error is not None:
                raise self._error
            if self._closed:
                raise StopAsyncIteration
            if self._backlog:
                return self._from_backlog()
            if self._queue:
                return self._from_queue()
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None

    async def aclose(self) -> None:
        """End the watch."""
        self._closed = True
        self._backlog.clear()
        self._queue.clear()
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _from_backlog(self) -> Sequence[Event]:
        batch = [self._backlog.popleft()]
        while self._backlog and (len(batch) < _BATCH or self._backlog[0].revision == batch[-1].revision):
            batch.append(self._backlog.popleft())
        return batch

    def _from_queue(self) -> Sequence[Event]:
        batch, size = self._queue.popleft()
        self._events -= len(batch)
        self._bytes -= size
        if not self._queue:
            return batch  # the same tuple for every watcher of the prefix
        joined = list(batch)
        while self._queue and len(joined) + len(self._queue[0][0]) <= _BATCH:
            batch, size = self._queue.popleft()
            self._events -= len(batch)
            self._bytes -= size
            joined.extend(batch)
        return joined


class Hub:
    """All watchers of a store, by prefix: a batch is filtered once for each prefix, not for each watcher."""

    def __init__(self) -> None:
        self._watchers: dict[str, WeakSet[Watcher]] = {}

    def add(self, prefix: str, watcher: Watcher) -> None:
        """Let `watcher` hear of the keys under `prefix`, for as long as somebody holds it."""
        self._watchers.setdefault(prefix, WeakSet()).add(watcher)

    def publish(self, events: Sequence[Event]) -> None:
        """Offer a batch to all whom it concerns."""
        for prefix, watchers in list(self._watchers.items()):
            if not len(watchers):
                del self._watchers[prefix]
                continue
            batch = tuple(event for event in events if event.key.startswith(prefix)) if prefix else tuple(events)
            if batch:
                size_bytes = sum(len(event.key) + len(event.value or b"") for event in batch)
                for watcher in list(watchers):
                    watcher.offer(batch, size_bytes)

    def end(self, error: WherryError) -> None:
        """End all watches with `error`."""
        for watchers in self._watchers.values():
            for watcher in list(watchers):
                watcher.fail(error)
        self._watchers.clear()
