"""How much of the past a store keeps: a policy, and the task that carries it out."""

import logging
from collections.abc import Callable
from dataclasses import dataclass

from wherry.errors import Broken, Unavailable
from wherry.store.sqlite import SqliteStore

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Keep:
    """Keep what is younger than `age_s` of cluster time, yet no more than `most` writes; look every `every_s`."""

    age_s: float = 300.0
    most: int = 100_000
    every_s: float = 60.0


def horizon(store: SqliteStore, keep: Keep, read_until: int | None = None) -> int:
    """Say before which revision the policy lets everything go.

    `read_until` is the last revision that a reader who must miss nothing (the archive) has filed: what it has not
    read is kept even when it is old, but not when there are more than `most`.
    """
    by_age = store.first_since(store.clock.now() - keep.age_s)
    if read_until is not None:
        by_age = min(by_age, read_until + 1)
    return max(by_age, store.revision_from_end(keep.most) + 1)


async def keep_compacted(
    store: SqliteStore, keep: Keep | None = None, *, read_until: Callable[[], int] | None = None
) -> None:
    """Compact by the policy, again and again, until cancelled or until the store is closed."""
    keep = keep or Keep()
    while True:
        await store.clock.sleep(keep.every_s)
        try:
            await store.compact(horizon(store, keep, read_until() if read_until else None))
        except Broken as error:  # a full disk, say: the next time may go well
            log.warning("%s", error)
        except Unavailable:
            return  # it was closed
