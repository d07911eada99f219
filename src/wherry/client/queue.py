"""Keys that need work: each at most once in line, each by one worker at a time, each later after every failure."""

import asyncio
import heapq
import itertools
import logging
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

from wherry.client.backoff import delay
from wherry.clock import Clock, machine

log = logging.getLogger(__name__)

K = TypeVar("K", bound=Hashable)

RACE_S = 1.0
"""Delays after failures shorter than this settle races between machines and pass in machine time; longer ones are
policy and pass in cluster time, so that moving a virtual clock brings them on."""


class WorkQueue(Generic[K]):
    """Keys waiting for work, bounded by the number of different keys.

    A key added while it waits is there once; added while it is worked on, it comes again afterwards. The line is in
    order of `rank` (smallest first; as it is when the key is added), then first come, first served. Enter it as a
    context manager: its timers end with it.
    """

    def __init__(
        self, clock: Clock, *, base_s: float = 0.005, cap_s: float = 300.0, rank: Callable[[K], int] | None = None
    ) -> None:
        self._clock = clock
        self._base_s, self._cap_s = base_s, cap_s
        self._rank = rank
        self._line: list[tuple[int, int, K]] = []
        self._waiting: set[K] = set()
        self._working: set[K] = set()
        self._failures: dict[K, int] = {}
        self._due: dict[K, float] = {}
        self._heap: list[tuple[float, int, K]] = []
        self._order = itertools.count()
        self._timer: asyncio.Task[None] | None = None
        self._races: dict[K, asyncio.TimerHandle] = {}
        self._wake = asyncio.Semaphore(0)
        self._closed = False

    def __len__(self) -> int:
        """How many keys wait in line (delayed ones not counted)."""
        return len(self._line)

    @property
    def is_idle(self) -> bool:
        """Whether no key waits in line, is worked on, or is about to be tried again at once."""
        return not (self._waiting or self._working or self._races)

    def add(self, key: K) -> None:
        """Put a key in line, unless it is there."""
        if key in self._waiting or self._closed:
            return
        self._waiting.add(key)
        if key not in self._working:
            self._enqueue(key)

    def add_after(self, key: K, seconds: float) -> None:
        """Put a key in line after `seconds` of cluster time; the earliest of several such times holds."""
        if seconds <= 0:
            self.add(key)
            return
        due = self._clock.now() + seconds
        if self._closed or self._due.get(key, due + 1) <= due:
            return
        self._due[key] = due
        heapq.heappush(self._heap, (due, next(self._order), key))
        if self._heap[0][2] == key:
            self._set_timer()

    def retry(self, key: K) -> float:
        """Count a failure of `key` and put it in line later: twice as late as last time. Returns the seconds."""
        failures = self._failures.get(key, 0)
        self._failures[key] = failures + 1
        seconds = delay(failures, self._base_s, self._cap_s)
        if seconds >= RACE_S:
            self.add_after(key, seconds)
        elif not self._closed and key not in self._races:
            self._races[key] = asyncio.get_running_loop().call_later(seconds, self._race_over, key)
        return seconds

    def failures(self, key: K) -> int:
        """How often `key` has failed since it last worked."""
        return self._failures.get(key, 0)

    def forget(self, key: K) -> None:
        """The key worked: its next failure waits the shortest time again."""
        self._failures.pop(key, None)

    async def get(self) -> K:
        """Take the next key; say `done` when finished with it."""
        await self._wake.acquire()
        key = heapq.heappop(self._line)[2]
        self._waiting.discard(key)
        self._working.add(key)
        return key

    def done(self, key: K) -> None:
        """The work on a key has ended, well or not."""
        self._working.discard(key)
        if key in self._waiting:
            self._enqueue(key)

    async def work(self, handle: Callable[[K], Awaitable[None]], *, name: str, workers: int = 1) -> None:
        """Work on keys with so many tasks until cancelled; a key whose `handle` raises is tried again later.

        `handle` logs what went wrong if anybody should know; here it is a line for debugging.
        """
        async with asyncio.TaskGroup() as group:
            for number in range(workers):
                group.create_task(self._worker(handle, name), name=f"{name}:{number}")

    async def __aenter__(self) -> "WorkQueue[K]":
        return self

    async def __aexit__(self, *error: object) -> None:
        self._closed = True
        for handle in self._races.values():
            handle.cancel()
        self._races.clear()
        if self._timer is not None:
            self._timer.cancel()
            await asyncio.gather(self._timer, return_exceptions=True)

    async def _worker(self, handle: Callable[[K], Awaitable[None]], name: str) -> None:
        while True:
            key = await self.get()
            try:
                await handle(key)
            except Exception as error:
                seconds = self.retry(key)
                log.debug("%s: %s failed (%s); again in %.3f s", name, key, error, seconds)
            else:
                self.forget(key)
            finally:
                self.done(key)
            await machine.sleep(0)  # a long line must not starve the rest of the process

    def _enqueue(self, key: K) -> None:
        heapq.heappush(self._line, (self._rank(key) if self._rank else 0, next(self._order), key))
        self._wake.release()

    def _race_over(self, key: K) -> None:
        del self._races[key]
        self.add(key)

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.create_task(self._run_timer(), name="workqueue:timer")

    async def _run_timer(self) -> None:
        """Put delayed keys in line as their times come, in their order."""
        while self._heap:
            due, _, key = self._heap[0]
            wait_s = due - self._clock.now()
            if wait_s > 0:
                await self._clock.sleep(wait_s)
                continue
            heapq.heappop(self._heap)
            if self._due.get(key) == due:
                del self._due[key]
                self.add(key)
