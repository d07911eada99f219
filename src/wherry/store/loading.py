"""From files to memory: the newest snapshot, then the logs after it."""

import logging
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise

from wherry.errors import Damaged
from wherry.store.files import Directory, Numbered
from wherry.store.log import Head, Row, is_sealed, open_sealed, read_rows, seal_leftover
from wherry.store.protocol import Entry, Event
from wherry.store.seals import SECRETS, Sealer
from wherry.store.settings import Durability, Settings
from wherry.store.snapshot import read_entries
from wherry.store.window import Change, Window

log = logging.getLogger(__name__)


@dataclass(slots=True)
class State:
    """The present and the window, brought forward row by row.

    A Secret whose data key is gone is absent. A reader of the window could not be told of it truthfully, so the window
    then begins only after the last write that cannot be read (`blind`).
    """

    present: dict[str, Entry]
    window: Window
    revision: int
    blind: int = 0
    unreadable: set[str] = field(default_factory=set[str])

    def add(self, entry: Entry, sealer: Sealer) -> None:
        """Take an entry of a snapshot."""
        value = _unsealed(entry.key, entry.value, sealer)
        if value is None:
            self.unreadable.add(entry.key)
        else:
            self.present[entry.key] = Entry(entry.key, value, entry.version, entry.created)

    def apply(self, row: Row, sealer: Sealer) -> Change | None:
        """Take a row of a log; return the change, or None when it cannot be read."""
        self.revision = row.revision
        sealed = row.value if row.key.startswith(SECRETS) else None
        value = row.value if row.value is None else _unsealed(row.key, row.value, sealer)
        if value is None and (row.value is not None or row.key in self.unreadable):
            self.blind = row.revision
            self.present.pop(row.key, None)
            if row.value is None:
                self.unreadable.discard(row.key)
            else:
                self.unreadable.add(row.key)
            return None
        self.unreadable.discard(row.key)
        before = self.present.pop(row.key, None)
        if value is not None:
            self.present[row.key] = Entry(row.key, value, row.revision, row.created)
        event = Event(row.revision, row.key, value, before.value if before else None, row.note)
        change = Change(event, before, sealed)
        if row.revision > self.window.floor:
            self.window.append(change)
        return change


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a store begins with."""

    state: State
    head: Head
    floor: int


def load(directory: Directory, sealer: Sealer, settings: Settings, durability: Durability) -> Loaded:
    """Read a store's directory, finishing or undoing what a death left half-done.

    A commit that was cut short by a death is not there at all (SQLite's write-ahead log has checksums and commit
    marks). Raises Damaged when anything that was durable is missing or changed.
    """
    directory.sweep()
    logs, snapshots = directory.logs(), directory.snapshots()
    if not logs:
        if snapshots:
            raise Damaged(f"store {directory.root}: {snapshots[-1].path.name} is there, and no log: files were removed")
        head = Head.create(directory, 1, 0, durability)
        logs = directory.logs()
    else:
        try:
            head = Head(directory, logs[-1].revision, durability)
        except sqlite3.Error as error:
            raise Damaged(f"{logs[-1].path}: not readable as a log: {error}") from error
    try:
        return _load(directory, head, logs, snapshots, sealer, settings)
    except BaseException:
        head.close()
        raise


def _load(
    directory: Directory,
    head: Head,
    logs: list[Numbered],
    snapshots: list[Numbered],
    sealer: Sealer,
    settings: Settings,
) -> Loaded:
    base = snapshots[-1].revision if snapshots else 0
    for old in snapshots[:-1]:
        directory.remove(old.path)
    ends = [log.revision for log in logs[1:]]
    for passed, end in zip(logs, ends, strict=False):
        if end - 1 <= base:
            directory.remove(passed.path)  # merged into the snapshot just before a death
    logs = [log for log, end in zip(logs, [*ends, 0], strict=True) if not 0 < end <= base + 1]
    if logs[0].revision > base + 1:
        raise Damaged(f"store {directory.root}: revisions {base + 1} to {logs[0].revision - 1} are missing")

    floor = head.floor
    window = Window(floor=max(base, floor - 1), max_events=settings.window_events, max_bytes=settings.window_bytes)
    state = State({}, window, base)
    if snapshots:
        for entry in read_entries(snapshots[-1].path):
            state.add(entry, sealer)
    for row in _rows(logs, head, base):
        if row.place == 0 and row.revision != state.revision + 1:
            raise Damaged(
                f"store {directory.root}: revision {row.revision} follows {state.revision}; what is between is missing"
            )
        if row.place == 0:
            window.bound()
        state.apply(row, sealer)
    if state.revision < head.first - 1:
        raise Damaged(f"store {directory.root}: revisions {state.revision + 1} to {head.first - 1} are missing")
    window.bound()
    if state.unreadable:
        log.warning(
            "store %s: %d secrets have no key here and are left out (a fork without keys?)",
            directory.root,
            len(state.unreadable),
        )
        state.blind = state.revision
    while state.blind > window.floor and window.trim(state.blind, 10_000):
        pass
    sealer.keep((entry.key, entry.created) for entry in state.present.values() if entry.key.startswith(SECRETS))
    return Loaded(state, head, floor)


def _rows(logs: list[Numbered], head: Head, base: int) -> Iterator[Row]:
    for log_, after in pairwise(logs):
        if not is_sealed(log_.path):
            seal_leftover(log_.path)
        connection = open_sealed(log_.path)
        try:
            yield from read_rows(connection, log_.path, first=max(log_.revision, base + 1), stop=after.revision)
        finally:
            connection.close()
    yield from read_rows(head.connection, head.path, first=max(head.first, base + 1), stop=1 << 46)


def _unsealed(key: str, value: bytes, sealer: Sealer) -> bytes | None:
    return sealer.unseal(key, value) if key.startswith(SECRETS) else value
