"""Snapshots: the whole state at one revision, merged from an older snapshot and sealed logs, file to file.

Layout: an SQLite file with 16 KiB pages; table `entries` (key, value, version, created, crc), in no order, `crc` as in
the logs. Rows are copied by SQLite itself, in slices, so that neither the loop nor the writer ever waits for it.
"""

import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from wherry.errors import Damaged
from wherry.store.files import Directory, Numbered
from wherry.store.log import FORMAT, PAGE_BYTES, PLACES, checksum, open_sealed
from wherry.store.protocol import Entry


@dataclass(frozen=True, slots=True)
class Merge:
    """Make the snapshot at `revision` from `base` and the logs after it; then all of them are superfluous."""

    revision: int
    base: Numbered | None
    logs: Sequence[tuple[Numbered, int]]
    """Each log with the revision at which the next begins."""


def plan_merge(
    snapshots: Sequence[Numbered], logs: Sequence[Numbered], *, floor: int, least_bytes: int, ratio: float
) -> Merge | None:
    """Choose what to merge so that revisions before `floor` can be forgotten, or None when it is not worth it yet.

    A sealed log can go when all of it is at or before `floor` (the state at `floor` itself must stay readable).
    """
    base = snapshots[-1] if snapshots else None
    chosen = [
        (log, after.revision)
        for log, after in pairwise(logs)
        if after.revision - 1 <= floor and (base is None or after.revision - 1 > base.revision)
    ]
    if not chosen:
        return None
    merged_bytes = sum(log.size_bytes for log, _ in chosen)
    if merged_bytes < ratio * max(least_bytes, base.size_bytes if base else 0):
        return None
    return Merge(revision=chosen[-1][1] - 1, base=base, logs=chosen)


def read_entries(path: Path) -> Iterator[Entry]:
    """Walk a snapshot. Raises Damaged at the first entry that is not as written."""
    connection = open_sealed(path)
    try:
        for key, value, version, created, crc in connection.execute(
            "SELECT key, value, version, created, crc FROM entries"
        ):
            if checksum(version, created, key, value) != crc:
                raise Damaged(f"{path}: {key} at revision {version} does not match its checksum")
            yield Entry(key, value, version, created)
    except sqlite3.DatabaseError as error:
        raise Damaged(f"{path}: not readable: {error}") from error
    finally:
        connection.close()


def merge(directory: Directory, plan: Merge, *, slice_rows: int, breathe: Callable[[], None]) -> None:
    """Carry out a plan: after this the new snapshot is durable, and what it stands for is unlinked.

    `breathe` is called between slices; what it raises ends the merge, and nothing is changed.
    """
    made = directory.root / f"snapshot-{plan.revision}.tmp"
    directory.remove(made)
    connection = sqlite3.connect(f"file:{_quoted(made)}", uri=True, isolation_level=None)
    try:
        try:
            _fill(connection, made, plan, slice_rows, breathe)
        finally:
            connection.close()
        made.chmod(0o600)
        made.rename(directory.snapshot(plan.revision))
        directory.sync()
    except BaseException:
        directory.remove(made)
        raise
    if plan.base is not None:
        directory.remove(plan.base.path)
    for log, _ in plan.logs:
        directory.remove(log.path)
    directory.sync()


def _fill(
    connection: sqlite3.Connection, made: Path, plan: Merge, slice_rows: int, breathe: Callable[[], None]
) -> None:
    connection.executescript(
        f"""
        PRAGMA page_size = {PAGE_BYTES};
        PRAGMA synchronous = OFF;
        PRAGMA journal_mode = OFF;
        PRAGMA temp_store = MEMORY;
        PRAGMA user_version = {FORMAT};
        CREATE TABLE entries (key TEXT NOT NULL, value BLOB NOT NULL, version INTEGER NOT NULL,
            created INTEGER NOT NULL, crc INTEGER NOT NULL);
        CREATE TEMP TABLE newest (key TEXT PRIMARY KEY, id INTEGER NOT NULL) WITHOUT ROWID;
        """
    )
    fd = os.open(made, os.O_RDWR | os.O_CLOEXEC)
    try:
        for log, stop in plan.logs:
            with _attached(connection, log.path):
                for low, high in _slices(connection, "log", "id", log.revision * PLACES, stop * PLACES, slice_rows):
                    connection.execute(
                        "INSERT INTO newest SELECT key, MAX(id) FROM other.log WHERE id >= ? AND id < ? GROUP BY key"
                        " ON CONFLICT (key) DO UPDATE SET id = excluded.id",
                        (low, high),
                    )
                    breathe()
        if plan.base is not None:
            with _attached(connection, plan.base.path):
                for low, high in _slices(connection, "entries", "rowid", 0, 1 << 62, slice_rows):
                    connection.execute(
                        "INSERT INTO entries SELECT key, value, version, created, crc FROM other.entries AS old"
                        " WHERE old.rowid >= ? AND old.rowid < ?"
                        " AND NOT EXISTS (SELECT 1 FROM newest WHERE newest.key = old.key)",
                        (low, high),
                    )
                    os.fdatasync(fd)  # little by little: one large flush would hold up the writer's
                    breathe()
        for log, stop in plan.logs:
            with _attached(connection, log.path):
                for low, high in _slices(connection, "log", "id", log.revision * PLACES, stop * PLACES, slice_rows):
                    connection.execute(
                        f"INSERT INTO entries SELECT new.key, new.value, new.id / {PLACES}, new.created, new.crc"
                        " FROM other.log AS new JOIN newest ON newest.key = new.key AND newest.id = new.id"
                        " WHERE new.id >= ? AND new.id < ? AND new.value IS NOT NULL",
                        (low, high),
                    )
                    os.fdatasync(fd)
                    breathe()
        os.fsync(fd)
    finally:
        os.close(fd)


class _attached:
    """A sealed file, readable as `other` for the length of a block."""

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self._connection, self._path = connection, path

    def __enter__(self) -> None:
        open_sealed(self._path).close()  # says what is wrong in our words
        self._connection.execute("ATTACH ? AS other", (f"file:{_quoted(self._path)}?mode=ro&immutable=1",))

    def __exit__(self, *_: object) -> None:
        self._connection.execute("DETACH other")


def _slices(
    connection: sqlite3.Connection, table: str, column: str, low: int, stop: int, rows: int
) -> Iterator[tuple[int, int]]:
    """Cut a table's range of ids into slices of about `rows` rows."""
    while True:
        found = connection.execute(
            f"SELECT {column} FROM other.{table} WHERE {column} >= ? AND {column} < ?"
            f" ORDER BY {column} LIMIT 1 OFFSET ?",
            (low, stop, rows),
        ).fetchone()
        if found is None:
            yield low, stop
            return
        yield low, found[0]
        low = found[0]


def _quoted(path: Path) -> str:
    return str(path.absolute()).replace("%", "%25").replace("?", "%3f").replace("#", "%23")
