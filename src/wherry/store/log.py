"""A log on disk: rows that are only ever added, many to a commit.

Layout: an SQLite file with 16 KiB pages. Table `log`: `id` = revision * 65536 + place in its transaction, so that the
table is filled in order and never searched; `value` NULL is a deletion; `crc` covers revision, `created`, key, value.
Table `meta`: what must be known about the store as of its head (`floor`: older revisions are forgotten).
"""

import sqlite3
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from wherry.errors import Damaged
from wherry.store.files import Directory, sync_directory, sync_file
from wherry.store.protocol import Note
from wherry.store.settings import Durability

PAGE_BYTES = 16384
PLACES = 65536  # in one transaction
FORMAT = 1
_CHECKPOINT_PAGES = 256  # 4 MiB of write-ahead log, then its pages go to their places

_INSERT = "INSERT INTO log VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
_SELECT = "SELECT id, key, value, created, time, actor, operation, crc FROM log WHERE id >= ? AND id < ? ORDER BY id"


@dataclass(frozen=True, slots=True)
class Row:
    """One write as it lies on disk: `value` None is a deletion; Secrets lie sealed."""

    revision: int
    place: int
    key: str
    value: bytes | None
    created: int
    note: Note


def checksum(revision: int, created: int, key: str, value: bytes | None) -> int:
    """CRC-32 of what must not change by itself; None and b"" differ."""
    head = f"{revision} {created} {value is None} {key}".encode()
    return zlib.crc32(value, zlib.crc32(head)) if value is not None else zlib.crc32(head)


def is_sealed(path: Path) -> bool:
    """Say whether a log was sealed: SQLite's header says 2 (write-ahead log) in its bytes 18 and 19 until it is."""
    with path.open("rb") as file:
        return file.read(20)[18:20] == b"\x01\x01"


def open_sealed(path: Path) -> sqlite3.Connection:
    """Open a file that never changes: no locks, no side files. Raises Damaged when it is none of ours."""
    try:
        connection = sqlite3.connect(f"file:{_quoted(path)}?mode=ro&immutable=1", uri=True, isolation_level=None)
        (version,) = connection.execute("PRAGMA user_version").fetchone()
    except sqlite3.Error as error:
        raise Damaged(f"{path}: not readable as a store file: {error}") from error
    if version != FORMAT:
        connection.close()
        raise Damaged(f"{path}: format {version}, and we read {FORMAT}: another version of wherry wrote it")
    return connection


def read_rows(connection: sqlite3.Connection, path: Path, *, first: int, stop: int) -> Iterator[Row]:
    """Walk the rows of revisions `first` up to before `stop`. Raises Damaged at the first that is not as written."""
    try:
        for id_, key, value, created, time, actor, operation, crc in connection.execute(
            _SELECT, (first * PLACES, stop * PLACES)
        ):
            revision, place = divmod(id_, PLACES)
            if checksum(revision, created, key, value) != crc:
                raise Damaged(f"{path}: revision {revision} ({key}) does not match its checksum")
            yield Row(revision, place, key, value, created, Note(time, actor, operation))
    except sqlite3.DatabaseError as error:
        raise Damaged(f"{path}: not readable after all its checks: {error}") from error


class Head:
    """The newest log, open for adding. All calls come from one thread at a time."""

    def __init__(self, directory: Directory, first: int, durability: Durability) -> None:
        self.directory = directory
        self.first = first
        self.path = directory.log(first)
        self.durability: Durability = durability
        self._connection = _open(self.path, durability)
        (self.last,) = self._connection.execute("SELECT COALESCE(MAX(id) / 65536, ?) FROM log", (first - 1,)).fetchone()
        (pages,) = self._connection.execute("PRAGMA page_count").fetchone()
        self.size_bytes: int = pages * PAGE_BYTES if self.last >= first else 0

    @property
    def connection(self) -> sqlite3.Connection:
        """For reading at start."""
        return self._connection

    @classmethod
    def create(cls, directory: Directory, first: int, floor: int, durability: Durability) -> "Head":
        """Make the log that begins with `first`; when this returns its name is durable."""
        create_log(directory, first, floor)
        return cls(directory, first, durability)

    @property
    def floor(self) -> int:
        """Revisions before this one are forgotten."""
        (value,) = self._connection.execute("SELECT value FROM meta WHERE name = 'floor'").fetchone()
        return int(value)

    def append(self, rows: Sequence[Row], *, floor: int | None = None) -> None:
        """Add rows, all or none, durable when this returns (at durability `full`). Raises sqlite3.Error.

        Without rows it is a probe: does the disk take writes?
        """
        values = [
            (
                row.revision * PLACES + row.place,
                row.key,
                row.value,
                row.created,
                row.note.time,
                row.note.actor,
                row.note.operation,
                checksum(row.revision, row.created, row.key, row.value),
            )
            for row in rows
        ]
        connection = self._connection
        connection.execute("BEGIN IMMEDIATE")
        try:
            connection.executemany(_INSERT, values)
            if floor is not None or not values:
                connection.execute("UPDATE meta SET value = COALESCE(?, value) WHERE name = 'floor'", (floor,))
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
        if values:
            self.last = rows[-1].revision
            self.size_bytes += sum(len(row.key) + len(row.value or b"") + 64 for row in rows)

    def close(self) -> None:
        """Bring all into the main file, and close."""
        self._connection.close()

    def seal(self) -> None:
        """Close for ever: everything into the one file, which never changes again and so may be linked."""
        seal(self._connection)


def create_log(directory: Directory, first: int, floor: int) -> None:
    """Make an empty log, durable in content and name, or leave nothing."""
    path, made = directory.log(first), directory.root / f"log-{first}.tmp"
    directory.remove(made)
    connection = sqlite3.connect(made, isolation_level=None)
    try:
        connection.executescript(
            f"""
            PRAGMA page_size = {PAGE_BYTES};
            PRAGMA synchronous = OFF;
            PRAGMA journal_mode = OFF;
            PRAGMA user_version = {FORMAT};
            BEGIN;
            CREATE TABLE log (id INTEGER PRIMARY KEY, key TEXT NOT NULL, value BLOB, created INTEGER NOT NULL,
                time REAL NOT NULL, actor TEXT NOT NULL, operation TEXT NOT NULL, crc INTEGER NOT NULL);
            CREATE TABLE meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL);
            INSERT INTO meta VALUES ('floor', {floor});
            COMMIT;
            """
        )
    finally:
        connection.close()
    sync_file(made)
    made.chmod(0o600)
    made.rename(path)
    try:
        sync_directory(directory.root)
    except OSError:
        path.unlink()  # else rows that go on into the log before it would count as cut off
        raise


def seal_leftover(path: Path) -> None:
    """Seal a log whose process died before it could."""
    try:
        seal(_open(path, "full"))
    except sqlite3.Error as error:
        raise Damaged(f"{path}: not readable as a log: {error}") from error


def seal(connection: sqlite3.Connection) -> None:
    """Write everything into the main file and leave write-ahead mode; the connection is closed."""
    try:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        (mode,) = connection.execute("PRAGMA journal_mode=DELETE").fetchone()
        if mode != "delete":
            raise sqlite3.OperationalError(f"journal mode stayed {mode}")
    finally:
        connection.close()


def _open(path: Path, durability: Durability) -> sqlite3.Connection:
    # The lock file keeps others out, so SQLite's own locks and its shared memory file are not needed.
    # check_same_thread: one thread at a time uses it, but not always the same one.
    connection = sqlite3.connect(
        f"file:{_quoted(path)}?mode=rw", uri=True, isolation_level=None, check_same_thread=False
    )
    try:
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        connection.execute("PRAGMA journal_mode = WAL").fetchone()
        connection.execute(f"PRAGMA synchronous = {'FULL' if durability == 'full' else 'OFF'}")
        connection.execute(f"PRAGMA wal_autocheckpoint = {_CHECKPOINT_PAGES}")
        connection.execute("PRAGMA cache_size = -2048")
        (version,) = connection.execute("PRAGMA user_version").fetchone()
    except BaseException:
        connection.close()
        raise
    if version != FORMAT:
        connection.close()
        raise Damaged(f"{path}: format {version}, and we read {FORMAT}: another version of wherry wrote it")
    return connection


def _quoted(path: Path) -> str:
    return str(path.absolute()).replace("%", "%25").replace("?", "%3f").replace("#", "%23")
