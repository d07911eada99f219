"""One maker of a thing at a time: builds that need the same step wait for the one that makes it."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field


@dataclass(slots=True)
class _Flight:
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    users: int = 0


class Flights:
    """Locks by name, kept only while somebody uses them."""

    def __init__(self) -> None:
        self._flights: dict[str, _Flight] = {}

    @asynccontextmanager
    async def only(self, name: str) -> AsyncGenerator[None]:
        """Be the only one under this name until the end."""
        flight = self._flights.setdefault(name, _Flight())
        flight.users += 1
        try:
            async with flight.lock:
                yield
        finally:
            flight.users -= 1
            if not flight.users:
                self._flights.pop(name, None)

    def taken(self, name: str) -> bool:
        """Say whether somebody has it, or waits for it."""
        return name in self._flights
