"""What happens in the engine, told to whoever listens."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Mapping

from wherry.clock import machine
from wherry.engine.types import EngineEvent
from wherry.errors import Expired

QUEUE_EVENTS = 4096
"""How far a reader may lag behind before it is cut off."""
KEPT_EVENTS = 1024
"""How many past events are remembered, in memory."""


class Events:
    """One stream of events to any number of readers."""

    def __init__(self) -> None:
        self._readers: set[_Reader] = set()
        self._past: deque[EngineEvent] = deque(maxlen=KEPT_EVENTS)

    def tell(self, kind: str, action: str, id: str, attributes: Mapping[str, str] | None = None) -> None:
        """Send an event to every reader. A reader whose queue is full is cut off."""
        event = EngineEvent(machine.now(), kind, action, id, dict(attributes or {}))
        self._past.append(event)
        for reader in tuple(self._readers):
            reader.put(event)

    def read(self, since: float = 0.0) -> AsyncIterator[EngineEvent]:
        """Yield what happens from this call on (not only from the first `anext`). Raises Expired when too slow.

        With `since`, a time, first what is remembered from then on.
        """
        reader = _Reader()
        for event in self._past if since else ():
            if event.time >= since:
                reader.put(event)
        self._readers.add(reader)
        return self._drain(reader)

    async def _drain(self, reader: "_Reader") -> AsyncIterator[EngineEvent]:
        try:
            while True:
                yield await reader.get()
        finally:
            self._readers.discard(reader)


class _Reader:
    def __init__(self) -> None:
        self._queue: asyncio.Queue[EngineEvent] = asyncio.Queue(QUEUE_EVENTS)
        self._lost = False

    def put(self, event: EngineEvent) -> None:
        try:
            self._queue.put_nowait(event)
        except asyncio.QueueFull:
            self._lost = True

    async def get(self) -> EngineEvent:
        if self._lost:
            raise Expired(
                f"events: this reader is more than {QUEUE_EVENTS} events behind; list, then read events again"
            )
        return await self._queue.get()
