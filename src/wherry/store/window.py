"""The short past in memory: every write later than some revision, for `watch` and for reads at an older revision."""

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass

from wherry.errors import Expired
from wherry.store.protocol import Entry, Event

_OVERHEAD_BYTES = 400  # of the Python objects of one change, measured roughly


@dataclass(frozen=True, slots=True)
class Change:
    """An event with what is needed to undo it; `sealed` is the value as it lies on disk, when it lies there sealed."""

    event: Event
    before: Entry | None
    sealed: bytes | None = None

    @property
    def size_bytes(self) -> int:
        """About what it holds in memory (`previous` is shared with an earlier change or the present)."""
        return _OVERHEAD_BYTES + len(self.event.key) + len(self.event.value or b"") + len(self.sealed or b"")


class Window:
    """Changes in the order of their revisions: all that are later than `floor`, none other.

    When a bound is passed the oldest revisions go. The changes of one revision come and go together.
    """

    def __init__(self, *, floor: int, max_events: int, max_bytes: int) -> None:
        self.floor = floor
        self._max_events, self._max_bytes = max_events, max_bytes
        self._changes: list[Change | None] = []  # dropped ones are None until the front is cut off
        self._revisions: list[int] = []
        self._start = 0
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._changes) - self._start

    @property
    def size_bytes(self) -> int:
        """About what all changes hold in memory."""
        return self._bytes

    def append(self, change: Change) -> None:
        """Add a change of the newest revision (or a further one of it)."""
        self._changes.append(change)
        self._revisions.append(change.event.revision)
        self._bytes += change.size_bytes

    def bound(self) -> None:
        """Drop the oldest revisions until the bounds hold. Call after the last change of a revision."""
        while len(self) and (len(self) > self._max_events or self._bytes > self._max_bytes):
            self.floor = self._revisions[self._start]
            self._drop(self.floor, len(self))
        self._cut()

    def trim(self, floor: int, most: int) -> bool:
        """Drop changes up to revision `floor`, about `most` of them; say whether there is more to drop.

        The floor moves at once, so that no reader sees a half-dropped past.
        """
        self.floor = max(self.floor, floor)
        self._drop(self.floor, most)
        self._cut()
        return len(self) > 0 and self._revisions[self._start] <= self.floor

    def since(self, after: int) -> Iterator[Change]:
        """Walk the changes later than revision `after`. Raises Expired when some of them are gone."""
        if after < self.floor:
            raise Expired(
                f"revision {after} has been compacted away; the oldest kept is {self.floor}: list, then watch again"
            )
        # copied, so that the window may move on while the caller walks
        found = self._changes[max(self._start, bisect_right(self._revisions, after)) :]
        return (change for change in found if change is not None)

    def find(self, revision: int, key: str) -> Change | None:
        """The change that `key` saw at `revision`, if it is still here."""
        at = max(self._start, bisect_right(self._revisions, revision - 1))
        while at < len(self._changes) and self._revisions[at] == revision:
            change = self._changes[at]
            if change is not None and change.event.key == key:
                return change
            at += 1
        return None

    def first_since(self, time: float) -> int:
        """The first revision written at `time` (cluster time) or later; the one after the last when all are older."""
        for change in self._changes[self._start :]:
            if change is not None and change.event.note.time >= time:
                return change.event.revision
        return (self._revisions[-1] if len(self) else self.floor) + 1

    def revision_from_end(self, count: int) -> int:
        """The revision of the change that has `count` changes after it, or 0 when there are not as many."""
        return self._revisions[-count - 1] if len(self) > count else 0

    def _drop(self, floor: int, most: int) -> None:
        while most > 0 and self._start < len(self._changes) and self._revisions[self._start] <= floor:
            change = self._changes[self._start]
            if change is not None:
                self._bytes -= change.size_bytes
            self._changes[self._start] = None
            self._start += 1
            most -= 1

    def _cut(self) -> None:
        if self._start > 1024 and self._start * 2 > len(self._changes):
            del self._changes[: self._start], self._revisions[: self._start]
            self._start = 0
