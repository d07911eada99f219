"""Writes that share a transaction: those that arrive while one is on its way to the disk go together in the next.

Each has a savepoint of its own, so that what one raises undoes it alone. Sixteen pushers cost one sync, not sixteen.
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from wherry.errors import Unavailable
from wherry.registry.records import Records, Tx

GROUP = 256
"""The most writes in one transaction."""
WAITING = 10_000
"""Writes that may wait; more are refused."""

T = TypeVar("T")
Work = Callable[[Tx], Any]
Outcome = tuple[Any, Exception | None]
"""What a write returned, or what it raised."""


class Grouped(Records, ABC):
    """The writing half of a `Records`. It belongs to the event loop that first writes."""

    def __init__(self, name: str) -> None:
        """`name` stands in messages."""
        self._name = name
        self._jobs: list[tuple[Work, asyncio.Future[Any]]] = []
        self._writer: asyncio.Task[None] | None = None
        self._closed = False

    @abstractmethod
    def run(self, works: Sequence[Work]) -> list[Outcome]:
        """Do some writes as one transaction, in a thread; an outcome for each. Raises nothing."""

    async def write(self, work: Callable[[Tx], T]) -> T:
        """Do `work` in a transaction; it is durable when this returns. What `work` raises undoes it alone.

        Raises Unavailable when too many writes wait, Broken when the records cannot be written.
        """
        if self._closed or len(self._jobs) >= WAITING:
            raise Unavailable(f"{self._name}: the registry's records take no more writes now")
        loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()
        self._jobs.append((work, done))
        if self._writer is None or self._writer.done():
            self._writer = loop.create_task(self._drain(), name="registry-writes")
        return await done

    async def execute(self, query: str, *values: object) -> int:
        """Do one statement in a transaction; return how many rows it changed."""
        return await self.write(lambda db: db.execute(query, values).rowcount)

    async def finish(self) -> None:
        """Take no more writes, and wait for those that are under way."""
        self._closed = True
        if self._writer is not None:
            await asyncio.gather(self._writer, return_exceptions=True)

    async def _drain(self) -> None:
        while self._jobs:
            group, self._jobs = self._jobs[:GROUP], self._jobs[GROUP:]
            outcomes = await asyncio.to_thread(self.run, [work for work, _ in group])
            for (_, done), (value, error) in zip(group, outcomes, strict=True):
                if done.done():  # its caller went away; the write is kept all the same
                    continue
                if error is not None:
                    done.set_exception(error)
                else:
                    done.set_result(value)
