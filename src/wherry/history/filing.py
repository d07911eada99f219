"""The archive's file: an SQLite database, used by one thread.

Tables. `objects`: each key that was ever filed, with how many rows it has. `revisions`: `id` = revision * 65536 + place,
as in the store's log; `created` says that there was nothing before; `coding` how `value` is kept. `times`: the last
revision of each tenth of a second of cluster time. `gaps`: where the store had forgotten what we had not read.
`meta`: `position` (the last revision read), `began` (older ones are unknown or collected), `bytes` (of all values).
"""

import sqlite3
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from wherry.errors import Damaged, Expired
from wherry.store.protocol import Event, Note

PLACES = 65536
FORMAT = 1
_ROW = "r.id, o.key, r.time, r.actor, r.operation, r.created, r.coding, r.value"
_SCHEMA = f"""
    PRAGMA user_version = {FORMAT};
    CREATE TABLE objects (id INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, filed INTEGER NOT NULL);
    CREATE TABLE revisions (id INTEGER PRIMARY KEY, object INTEGER NOT NULL, time REAL NOT NULL, actor TEXT NOT NULL,
        operation TEXT NOT NULL, created INTEGER NOT NULL, coding INTEGER NOT NULL, value BLOB);
    CREATE INDEX revisions_of_object ON revisions (object, id);
    CREATE INDEX revisions_by_time ON revisions (time, id);
    CREATE TABLE times (tenth INTEGER PRIMARY KEY, revision INTEGER NOT NULL);
    CREATE TABLE gaps (after INTEGER PRIMARY KEY, until INTEGER NOT NULL, time REAL NOT NULL);
    CREATE TABLE meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL);
    INSERT INTO meta VALUES ('position', 0), ('began', 0), ('bytes', 0);
"""


class Coding(IntEnum):
    """How a value is kept. WITHHELD: it was a Secret's, and could not be had sealed."""

    DELETED = 0
    ZLIB = 1
    SEALED = 2
    WITHHELD = 3


@dataclass(frozen=True, slots=True)
class Filing:
    """What is to be filed of one write: `value` is plain, or sealed already (a Secret's; None: withheld)."""

    event: Event
    sealed: bytes | None
    secret: bool
    budget: int

    def coded(self) -> tuple[Coding, bytes | None]:
        """The value as it is kept."""
        if self.event.value is None:
            return Coding.DELETED, None
        if self.secret:
            return (Coding.SEALED, self.sealed) if self.sealed is not None else (Coding.WITHHELD, None)
        return Coding.ZLIB, zlib.compress(self.event.value, 1)


@dataclass(frozen=True, slots=True)
class Filed:
    """One write as it was filed. `value`: see `coding`; use `plain` or the store's `unseal`."""

    revision: int
    key: str
    note: Note
    created: bool
    coding: Coding
    value: bytes | None

    @property
    def plain(self) -> bytes:
        """The object's JSON, of a value that is not sealed. Raises Damaged."""
        try:
            return zlib.decompress(self.value or b"")
        except zlib.error as error:
            raise Damaged(f"history: revision {self.revision} of {self.key} cannot be read: {error}") from error


@dataclass(frozen=True, slots=True)
class Gap:
    """Between revisions `after` and `until` nothing is known; at both it is. `time` is when that was noticed."""

    after: int
    until: int
    time: float


class File:
    """The open file. Every method takes the time of a disk; call them from one thread."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            path.chmod(0o600)
            self._connection.execute("PRAGMA journal_mode = WAL").fetchone()
            # NORMAL: after power loss the last moments may be missing; they are read again from the store's window.
            self._connection.execute("PRAGMA synchronous = NORMAL")
            (version,) = self._connection.execute("PRAGMA user_version").fetchone()
            if version == 0:
                self._connection.executescript(f"BEGIN; {_SCHEMA} COMMIT;")
                version = FORMAT
        except sqlite3.DatabaseError as error:
            raise Damaged(
                f"history {path}: not readable: {error}; without it the past is lost, not the present"
            ) from error
        if version != FORMAT:
            raise Damaged(f"history {path}: format {version}, and we read {FORMAT}: another version of wherry wrote it")
        meta = dict(self._connection.execute("SELECT name, value FROM meta"))
        self.position: int = meta["position"]
        self.began: int = meta["began"]
        self.value_bytes: int = meta["bytes"]

    def close(self) -> None:
        """Close."""
        self._connection.close()

    # ---- filing

    def file(self, filings: Sequence[Filing], times: Iterable[tuple[float, int]], position: int) -> None:
        """File writes and remember that all up to `position` was read, in one transaction. Doing it again is harmless."""
        with _Transaction(self):
            for place, filing in _placed(filings):
                self._add(filing, place)
            self._connection.executemany(
                "INSERT INTO times VALUES (?, ?) ON CONFLICT DO UPDATE SET revision = MAX(revision, excluded.revision)",
                [(int(time * 10), revision) for time, revision in times],
            )
            self.position = max(self.position, position)

    def bridge(self, present: Sequence[tuple[Filing, int, int]], gap: Gap) -> None:
        """After a gap: file what changed unseen. `present`: each key that is there, with its version and creation."""
        with _Transaction(self):
            alive = {filing.event.key for filing, _, _ in present}
            for filing, version, created in present:
                last = self._last(filing.event.key)
                if last is None or last.revision < version:
                    self._add(filing, self._free_place(version), created=created > gap.after)
            for key, budget_key in self._living():
                if key not in alive:
                    event = Event(gap.until, key, None, b"", Note(gap.time, "system:history", "resync"))
                    self._add(Filing(event, None, False, budget_key), self._free_place(gap.until), created=False)
            self._connection.execute("INSERT OR REPLACE INTO gaps VALUES (?, ?, ?)", (gap.after, gap.until, gap.time))
            self._connection.execute("INSERT OR REPLACE INTO times VALUES (?, ?)", (int(gap.time * 10), gap.until))
            self.position = gap.until
            if gap.after == 0:
                self.began = gap.until

    def _add(self, filing: Filing, place: int, *, created: bool | None = None) -> None:
        event, connection = filing.event, self._connection
        coding, value = filing.coded()
        row = connection.execute("SELECT id FROM objects WHERE key = ?", (event.key,)).fetchone()
        if row is None:
            cursor = connection.execute("INSERT INTO objects (key, filed) VALUES (?, 0)", (event.key,))
            object_id = cursor.lastrowid
        else:
            object_id = row[0]
        is_new = event.previous is None if created is None else created
        note = event.note
        inserted = connection.execute(
            "INSERT OR IGNORE INTO revisions VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (
                event.revision * PLACES + place,
                object_id,
                note.time,
                note.actor,
                note.operation,
                is_new and event.value is not None,
                int(coding),
                value,
            ),
        ).rowcount
        if inserted <= 0:
            return  # read twice
        self.value_bytes += len(value or b"")
        (filed,) = connection.execute(
            "UPDATE objects SET filed = filed + 1 WHERE id = ? RETURNING filed", (object_id,)
        ).fetchone()
        if filed > filing.budget:
            surplus = connection.execute(
                "SELECT id, object, LENGTH(value) FROM revisions WHERE object = ? ORDER BY id LIMIT ?",
                (object_id, filed - filing.budget),
            ).fetchall()
            self._remove(surplus)

    def _free_place(self, revision: int) -> int:
        low = revision * PLACES
        (last,) = self._connection.execute(
            "SELECT MAX(id) FROM revisions WHERE id >= ? AND id < ?", (low, low + PLACES)
        ).fetchone()
        return 0 if last is None else last - low + 1

    def _last(self, key: str) -> Filed | None:
        return self.find(key, 1 << 46)

    def _living(self) -> list[tuple[str, int]]:
        return self._connection.execute(
            "SELECT o.key, o.filed + 1 FROM objects o JOIN revisions r"
            " ON r.id = (SELECT MAX(id) FROM revisions WHERE object = o.id) WHERE r.coding != 0"
        ).fetchall()

    # ---- asking

    def find(self, key: str, revision: int) -> Filed | None:
        """What was filed last of `key` up to `revision`; None when nothing was."""
        row = self._connection.execute(
            f"SELECT {_ROW} FROM objects o JOIN revisions r ON r.object = o.id"
            " WHERE o.key = ? AND r.id < ? ORDER BY r.id DESC LIMIT 1",
            (key, (revision + 1) * PLACES),
        ).fetchone()
        return _filed(row) if row else None

    def first(self, key: str) -> Filed | None:
        """The oldest that is still filed of `key`."""
        row = self._connection.execute(
            f"SELECT {_ROW} FROM objects o JOIN revisions r ON r.object = o.id WHERE o.key = ? ORDER BY r.id LIMIT 1",
            (key,),
        ).fetchone()
        return _filed(row) if row else None

    def all(self, key: str) -> list[Filed]:
        """All that is filed of `key`, oldest first."""
        rows = self._connection.execute(
            f"SELECT {_ROW} FROM objects o JOIN revisions r ON r.object = o.id WHERE o.key = ? ORDER BY r.id", (key,)
        )
        return [_filed(row) for row in rows]

    def listing(self, low: str, high: str, revision: int) -> tuple[list[Filed], list[str]]:
        """The keys from `low` to before `high` as of a revision: those alive then, and those of which we cannot know."""
        bound = (revision + 1) * PLACES
        rows = self._connection.execute(
            f"SELECT {_ROW} FROM objects o JOIN revisions r"
            " ON r.id = (SELECT MAX(id) FROM revisions WHERE object = o.id AND id < ?)"
            " WHERE o.key >= ? AND o.key < ? AND r.coding != 0 ORDER BY o.key",
            (bound, low, high),
        )
        found = [_filed(row) for row in rows]
        unknown = self._connection.execute(
            "SELECT o.key FROM objects o JOIN revisions r ON r.id = (SELECT MIN(id) FROM revisions WHERE object = o.id)"
            " WHERE o.key >= ? AND o.key < ? AND r.id >= ? AND NOT r.created ORDER BY o.key",
            (low, high, bound),
        )
        return found, [key for (key,) in unknown]

    def revision_at(self, time: float) -> int:
        """The last revision written up to cluster time `time`: exact for what is filed, else to a tenth of a second."""
        filed = self._connection.execute(
            "SELECT id FROM revisions WHERE time <= ? ORDER BY time DESC, id DESC LIMIT 1", (time,)
        ).fetchone()
        other = self._connection.execute(
            "SELECT revision FROM times WHERE tenth < ? ORDER BY tenth DESC LIMIT 1", (int(time * 10),)
        ).fetchone()
        return max(filed[0] // PLACES if filed else 0, other[0] if other else 0)

    def gaps(self) -> list[Gap]:
        """All gaps that queries may still fall into."""
        return [Gap(*row) for row in self._connection.execute("SELECT after, until, time FROM gaps ORDER BY after")]

    def known(self, revision: int) -> None:
        """Raise Expired when the state at `revision` is not known."""
        if revision < self.began:
            raise Expired(f"revision {revision}: the history goes back to revision {self.began}")
        for gap in self.gaps():
            if gap.after < revision < gap.until:
                raise Expired(
                    f"revision {revision}: the history has a gap from {gap.after} to {gap.until} (it was not running, and "
                    "the store has forgotten these)"
                )

    # ---- collecting

    def horizon(self, oldest: float, budget_bytes: int) -> int:
        """The revision before which all may be forgotten: by age, and further while the values take too many bytes."""
        horizon = max(self.began, self.revision_at(oldest))
        if self.value_bytes > budget_bytes:
            (count,) = self._connection.execute(
                "SELECT COUNT(*) FROM revisions WHERE id > ?", (horizon * PLACES,)
            ).fetchone()
            row = self._connection.execute(
                "SELECT id FROM revisions WHERE id > ? ORDER BY id LIMIT 1 OFFSET ?", (horizon * PLACES, count // 4)
            ).fetchone()
            if row:
                horizon = row[0] // PLACES
        return min(horizon, self.position)

    def collect(self, horizon: int, after: int, most: int) -> int:
        """Remove, among the rows later than id `after`, up to `most` that no query from `horizon` on needs.

        Returns the id to go on after, or 0 when all is done. What an object was at `horizon` stays.
        """
        bound = (horizon + 1) * PLACES
        with _Transaction(self):
            if horizon > self.began:
                self.began = horizon
                self._connection.execute("DELETE FROM gaps WHERE until <= ?", (horizon,))
                self._connection.execute(
                    "DELETE FROM times WHERE revision < (SELECT MAX(revision) FROM times WHERE revision <= ?)",
                    (horizon,),
                )
            rows = self._connection.execute(
                "SELECT r.id, r.object, LENGTH(r.value) FROM revisions r WHERE r.id > ? AND r.id < ? AND (r.coding = 0 OR"
                " EXISTS (SELECT 1 FROM revisions n WHERE n.object = r.object AND n.id > r.id AND n.id < ?))"
                " ORDER BY r.id LIMIT ?",
                (after, bound, bound, most),
            ).fetchall()
            self._remove(rows)
        return rows[-1][0] if len(rows) == most else 0

    def _remove(self, rows: Sequence[tuple[int, int, int | None]]) -> None:
        connection = self._connection
        connection.executemany("DELETE FROM revisions WHERE id = ?", [(row[0],) for row in rows])
        connection.executemany("UPDATE objects SET filed = filed - 1 WHERE id = ?", [(row[1],) for row in rows])
        connection.executemany("DELETE FROM objects WHERE id = ? AND filed = 0", [(row[1],) for row in rows])
        self.value_bytes -= sum(row[2] or 0 for row in rows)

    def begin(self) -> tuple[int, int, int]:
        """Begin a transaction; returns what `end` needs to undo it."""
        self._connection.execute("BEGIN IMMEDIATE")
        return self.position, self.began, self.value_bytes

    def end(self, before: tuple[int, int, int], *, failed: bool) -> None:
        """Commit, or take all back."""
        try:
            if not failed:
                self._connection.executemany(
                    "UPDATE meta SET value = ? WHERE name = ?",
                    [(self.position, "position"), (self.began, "began"), (self.value_bytes, "bytes")],
                )
                self._connection.execute("COMMIT")
                return
        except sqlite3.Error:
            self._undo(before)
            raise
        self._undo(before)

    def _undo(self, before: tuple[int, int, int]) -> None:
        self.position, self.began, self.value_bytes = before
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")


class _Transaction:
    """All of a block, or none of it."""

    def __init__(self, file: File) -> None:
        self._file = file
        self._before = (0, 0, 0)

    def __enter__(self) -> None:
        self._before = self._file.begin()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._file.end(self._before, failed=kind is not None)


def _placed(filings: Iterable[Filing]) -> Iterable[tuple[int, Filing]]:
    """Number the writes of each revision. They come in the same batch, always in the same order."""
    revision = place = -1
    for filing in filings:
        place = place + 1 if filing.event.revision == revision else 0
        revision = filing.event.revision
        yield place, filing


def _filed(row: tuple[int, str, float, str, str, int, int, bytes | None]) -> Filed:
    id_, key, time, actor, operation, created, coding, value = row
    return Filed(id_ // PLACES, key, Note(time, actor, operation), bool(created), Coding(coding), value)
