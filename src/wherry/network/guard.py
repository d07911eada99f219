"""Keeps our rules in place when others change theirs: a firewall reload that flushes everything, a dockerd restart.

nftables counts every change. Asking for the count costs microseconds; only when somebody else moved it on are the parts
asked to look after what is theirs.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Self

from wherry.clock import machine
from wherry.errors import WherryError
from wherry.host.nftables import Nft

log = logging.getLogger(__name__)

Check = Callable[[], Awaitable[bool]]
"""Look whether the kernel has what it should; repair what it has not; True when there was something to repair."""


class Guard:
    """Calls the checks of one machine's nftables within `period_s` of a foreign change. A context manager."""

    def __init__(self, nft: Nft, *, period_s: float = 1.0) -> None:
        self.repairs = 0
        self._nft, self._period_s = nft, period_s
        self._checks: dict[str, Check] = {}
        self._regular: dict[str, tuple[Check, float, float]] = {}
        self._seen: int | None = None
        self._task: asyncio.Task[None] | None = None

    def add(self, name: str, check: Check) -> None:
        """Look after one more part."""
        self._checks[name] = check

    def add_regular(self, name: str, check: Check, *, every_s: float = 10.0) -> None:
        """Look after one more part at intervals too: for changes that nftables does not count."""
        self._regular[name] = (check, every_s, machine.monotonic() + every_s)

    def drop(self, name: str) -> None:
        """Look after it no longer."""
        self._checks.pop(name, None)
        self._regular.pop(name, None)

    @asynccontextmanager
    async def own_change(self) -> AsyncGenerator[None]:
        """Tell the guard that a single transaction of ours is inside, so that it need not look."""
        before = await self._nft.generation()
        yield
        after = await self._nft.generation()
        if self._seen == before and after == before + 1:
            self._seen = after

    async def look(self) -> Sequence[str]:
        """Check all parts now if anything changed since the last look; name those that were repaired."""
        generation = await self._nft.generation()
        if generation == self._seen:
            return ()
        self._seen = generation
        repaired: list[str] = []
        for name, check in list(self._checks.items()):
            if await check():
                repaired.append(name)
        if repaired:
            self.repairs += 1
            log.warning("nftables was changed by somebody else: put back %s", ", ".join(repaired))
        return repaired

    async def look_at_all(self, *, now: bool = True) -> Sequence[str]:
        """Check those parts that are looked after at intervals (`now`: also before their time); name the repaired."""
        repaired: list[str] = []
        for name, (check, every_s, due) in list(self._regular.items()):
            if not now and machine.monotonic() < due:
                continue
            self._regular[name] = (check, every_s, machine.monotonic() + every_s)
            if await check():
                repaired.append(name)
        if repaired:
            self.repairs += 1
            log.warning("somebody else changed the network: put back %s", ", ".join(repaired))
        return repaired

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run(), name="nftables guard")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    async def _run(self) -> None:
        """Look again and again; rarer when looking is dear (many services), so that it takes 5 % of a core at most."""
        failures = 0
        while True:
            began = machine.monotonic()
            try:
                await self.look()
                await self.look_at_all(now=False)
                failures = 0
            except WherryError as error:
                self._seen = None
                failures += 1
                if failures == 1:
                    log.warning("nftables cannot be looked after: %s", error)
            took = machine.monotonic() - began
            await machine.sleep(max(self._period_s * min(30, 2**failures), took * 20))
