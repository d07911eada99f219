"""The engine's background tasks: each has a name, its error is logged once, and all end with the engine."""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, Self

from wherry.clock import machine
from wherry.errors import WherryError

log = logging.getLogger(__name__)


class Tasks:
    """A context manager that owns tasks. On leaving, those that are `settling` get some seconds; the rest is cancelled.

    `on_leaving` is called between the two: what is noticed from then on is not for us to deal with.
    """

    def __init__(self, *, grace_s: float = 20.0) -> None:
        self._grace_s = grace_s
        self._tasks: set[asyncio.Task[None]] = set()
        self._settling: set[asyncio.Task[None]] = set()
        self.on_leaving: Callable[[], None] = _nothing

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        try:
            await self.settle(self._grace_s)
        finally:
            self.on_leaving()
            while tasks := [*self._tasks]:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    def start(self, work: Coroutine[Any, Any, None], name: str, *, settling: bool = False) -> asyncio.Task[None]:
        """Run `work`. `settling`: it cleans up, and the engine's end waits for it."""
        task = asyncio.create_task(self._guard(work, name), name=name)
        for group in (self._tasks, self._settling) if settling else (self._tasks,):
            group.add(task)
            task.add_done_callback(group.discard)
        return task

    async def settle(self, timeout_s: float) -> None:
        """Wait for the tasks that clean up, and those that they start, up to `timeout_s`."""
        deadline = machine.monotonic() + timeout_s
        while self._settling and (left_s := deadline - machine.monotonic()) > 0:
            await asyncio.wait(tuple(self._settling), timeout=left_s)

    async def _guard(self, work: Coroutine[Any, Any, None], name: str) -> None:
        try:
            await work
        except WherryError as error:
            log.warning("%s: %s", name, error.message)
        except asyncio.CancelledError:
            raise
        except Exception:
            log.exception("%s", name)


def _nothing() -> None:
    """Nobody wants to know."""
