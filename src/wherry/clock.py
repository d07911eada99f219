"""Two times: cluster time, which is handed in and may be virtual, and machine time, which is always real.

Cluster time is a `Clock`: TTLs, leases, back-offs, token life. Machine time is the module's `machine`: deadlines of
I/O, kill grace, probes of real containers. No other module of wherry asks the operating system for the time.
"""

import asyncio
import heapq
import itertools
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """Cluster time, in seconds since 1970 (UTC)."""

    def now(self) -> float:
        """Say what time it is in the cluster."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Return when `seconds` of cluster time have passed; at once (after one turn of the loop) for 0 or less."""
        ...


class RealClock:
    """Cluster time that is the machine's."""

    def now(self) -> float:
        """Say the machine's time."""
        return time.time()

    async def sleep(self, seconds: float) -> None:
        """Sleep in real time."""
        await asyncio.sleep(max(0.0, seconds))


class VirtualClock:
    """Cluster time that moves only when `advance` is called: the sleepers wake in the order of their times."""

    def __init__(self, start: float = 1_767_225_600.0) -> None:
        self._now = start
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._order = itertools.count()

    def now(self) -> float:
        """Say the virtual time."""
        return self._now

    async def sleep(self, seconds: float) -> None:
        """Wait until `advance` has moved the time far enough."""
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        future = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._now + seconds, next(self._order), future))
        await future

    async def advance(self, seconds: float, *, settle: Callable[[], Awaitable[None]] | None = None) -> None:
        """Move on by `seconds`, timer by timer; after each timer let the loop (or `settle`) do what it woke."""
        end = self._now + seconds
        while self._sleepers and self._sleepers[0][0] <= end:
            due, _, future = heapq.heappop(self._sleepers)
            self._now = max(self._now, due)
            if future.done():
                continue
            future.set_result(None)
            if settle is None:
                for _ in range(20):
                    await asyncio.sleep(0)
            else:
                await settle()
        self._now = end


class Machine:
    """Machine time: always real, whatever the cluster's clock says."""

    def now(self) -> float:
        """Seconds since 1970, UTC."""
        return time.time()

    def monotonic(self) -> float:
        """Seconds that only grow, from an arbitrary start."""
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        """Sleep in real time."""
        await asyncio.sleep(seconds)

    def pause(self, seconds: float) -> None:
        """Sleep in real time in a thread or a program without a loop."""
        time.sleep(seconds)

    def timeout(self, seconds: float | None) -> AbstractAsyncContextManager[object]:
        """Cancel what runs inside after `seconds` and raise TimeoutError; None never does."""
        return asyncio.timeout(seconds)


machine = Machine()


def rfc3339(seconds: float) -> str:
    """Write a time as Kubernetes' `Time`: `2026-01-31T23:59:59Z`."""
    return datetime.fromtimestamp(int(seconds), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def rfc3339_micro(seconds: float) -> str:
    """Write a time as Kubernetes' `MicroTime`: `2026-01-31T23:59:59.000001Z`."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def rfc3339_nano(seconds: float) -> str:
    """Write a time with nine digits, as container logs and Docker's API have it."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f") + "000Z"


def parse_rfc3339(text: str) -> float:
    """Read an RFC 3339 time with any number of fractional digits; raises ValueError for other text."""
    head, dot, rest = text.partition(".")
    if dot:
        digits = 0
        while digits < len(rest) and rest[digits].isdigit():
            digits += 1
        text = f"{head}.{(rest[:digits] + '000000')[:6]}{rest[digits:]}"
    return datetime.fromisoformat(text.replace("Z", "+00:00").replace("z", "+00:00")).timestamp()
