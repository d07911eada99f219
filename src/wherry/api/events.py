"""Events end: what happened an hour of cluster time ago is deleted, so that they never fill the store.

An Event counts from when it was last written, as upstream's do. Revisions carry no time, so the moment at which this
process first saw a version stands for it; after a restart each Event may live as long again, at most.
"""

import logging

from wherry.api.core import Core
from wherry.errors import Conflict
from wherry.model.kinds import EVENTS
from wherry.store.protocol import Note, Write

log = logging.getLogger(__name__)

_LOOKS = 12
"""How often in an Event's life we look whether it is over."""
_AT_ONCE = 500


class Sweeper:
    """Deletes Events that are over. `run` is a task of the API server."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._seen: dict[str, tuple[int, float]] = {}

    async def run(self) -> None:
        """Look, and sleep for a part of an Event's life, without end."""
        while True:
            await self.sweep()
            await self._core.clock.sleep(self._core.settings.event_life_s / _LOOKS)

    async def sweep(self) -> int:
        """Delete what is over now; return how many Events that were."""
        core, now = self._core, self._core.clock.now()
        shelf = core.shelf(EVENTS)
        seen: dict[str, tuple[int, float]] = {}
        over: list[Write] = []
        for key, item in shelf.items.items():
            version, first = self._seen.get(key, (0, now))
            if version != item.version:
                first = now
            seen[key] = item.version, first
            if now - first >= core.settings.event_life_s:
                over.append(Write(key, None, item.version))
        self._seen = seen
        for start in range(0, len(over), _AT_ONCE):
            try:
                await core.write_all(
                    over[start : start + _AT_ONCE], note=Note(now, "system:apiserver", "expire events")
                )
            except Conflict:
                continue  # one of them was written again: the others are over at the next look, too
        if over:
            log.debug("events: %d were over", len(over))
        return len(over)
