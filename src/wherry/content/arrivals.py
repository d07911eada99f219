"""Blobs on their way in: those who want the same one at once share the work, and all see how far it is.

One of them fetches, the others wait their turn. When it gives up (its client has gone) the next one goes on with the
bytes that are there; when it is done the others find the blob in the store.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Word = TypeVar("Word")
"""What is told of the progress."""


@dataclass(slots=True)
class _Place(Generic[Word]):
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    listeners: list[Callable[[Word], None]] = field(default_factory=list[Callable[[Word], None]])
    last: Word | None = None


class Arrivals(Generic[Word]):
    """What is on its way, by name (a digest)."""

    def __init__(self) -> None:
        self._places: dict[str, _Place[Word]] = {}

    @asynccontextmanager
    async def turn(self, name: str, listener: Callable[[Word], None]) -> AsyncGenerator[Callable[[Word], None]]:
        """Wait until nobody else works on `name`; yields what to tell progress by. Meanwhile `listener` hears of theirs."""
        place = self._places.setdefault(name, _Place())
        place.listeners.append(listener)

        def tell(word: Word) -> None:
            place.last = word
            for each in tuple(place.listeners):
                each(word)

        if place.last is not None:
            listener(place.last)
        try:
            async with place.lock:
                yield tell
        finally:
            place.listeners.remove(listener)
            if not place.listeners:
                self._places.pop(name, None)
