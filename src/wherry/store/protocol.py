"""The present: the protocol that every store backend keeps, and the values it speaks in."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Note:
    """Who did a write, when (cluster time, unix seconds), in which operation (such as `PATCH deployments/scale`)."""

    time: float
    actor: str
    operation: str


@dataclass(frozen=True, slots=True)
class Entry:
    """A key as it stands: `version` is the revision of its last write, `created` that of its first."""

    key: str
    value: bytes
    version: int
    created: int


@dataclass(frozen=True, slots=True)
class Page:
    """A part of a listing, in key order: `revision` is what all of it is read at; `more` says that keys follow."""

    entries: Sequence[Entry]
    revision: int
    more: bool
    remaining: int = 0


@dataclass(frozen=True, slots=True)
class Event:
    """One write. `value` is None for a deletion; `previous` is the value before, None for a creation."""

    revision: int
    key: str
    value: bytes | None
    previous: bytes | None
    note: Note


@dataclass(frozen=True, slots=True)
class Write:
    """A part of a transaction: put `value` (None deletes) if `key` is at version `expect`."""

    key: str
    value: bytes | None
    expect: int


class Store(Protocol):
    """Every key of the cluster in one history.

    Each write takes the next revision: an int from 1 that only grows, over all keys. A key's version is the revision
    of its last write; 0 means that the key is absent. A write that has returned is durable (setting `full`).
    """

    async def get(self, key: str) -> Entry | None:
        """Read one key as of now, or None."""
        ...

    async def list(self, prefix: str, *, after: str = "", limit: int = 0, at: int = 0) -> Page:
        """Read the keys under `prefix` in order, those later than the key `after`; at most `limit` (0: all).

        `at` reads them as they were at that revision (0: now). Raises Expired when it is compacted away.
        """
        ...

    async def put(self, key: str, value: bytes, *, expect: int, note: Note) -> int:
        """Write if the key is at version `expect`, else raise Conflict; return the new revision."""
        ...

    async def delete(self, key: str, *, expect: int, note: Note) -> int:
        """Delete if the key is at version `expect`, else raise Conflict; return the new revision."""
        ...

    async def txn(self, writes: Sequence[Write], *, note: Note) -> int:
        """Do all the writes in one revision, or none: raises Conflict that names the first key that differs."""
        ...

    def watch(self, prefix: str, *, after: int) -> AsyncIterator[Sequence[Event]]:
        """Yield each write under `prefix` later than revision `after`, once, in order, in batches, without end.

        Raises Expired when `after` is compacted or the reader is too far behind: list, then watch again.
        """
        ...

    async def revision(self) -> int:
        """Say the last revision, linearisably; 0 for an empty store."""
        ...

    async def compact(self, before: int) -> None:
        """Forget history earlier than revision `before` (the present stays); readers behind it get Expired."""
        ...

    async def fork(self, at: int, root: Path) -> None:
        """Make a new store in the directory `root` (absent or empty) with the state as of revision `at` (0: now).

        The fork goes on counting from `at`. Writes on either side are invisible on the other.
        """
        ...

    async def close(self) -> None:
        """Flush and let go."""
        ...
