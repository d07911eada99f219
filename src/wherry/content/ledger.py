"""What keeps blobs alive: holds, references and leases, in one SQLite file that all processes of the machine share.

Invariant: a blob's file is unlinked only inside a write transaction that has just seen it unreachable, and a hold, a
lease's cover or a new blob enters by a write transaction of its own. SQLite has one writer at a time, in any process,
so a blob that was there when it was held is there afterwards.
"""

import os
import sqlite3
import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

from wherry.content.oci import DOCUMENT_MAX_BYTES, references
from wherry.content.protocol import Digest
from wherry.errors import Broken, Expired, NotFound
from wherry.host.reserve import Reserve

BUSY_S = 30.0
"""How long a writer waits for another process's transaction; each lasts milliseconds."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS blobs (digest TEXT PRIMARY KEY, size INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS holds (holder TEXT, digest TEXT, PRIMARY KEY (holder, digest)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS refs (parent TEXT, child TEXT, PRIMARY KEY (parent, child)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS leases (id TEXT PRIMARY KEY, until REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS covers (lease TEXT, digest TEXT, PRIMARY KEY (lease, digest)) WITHOUT ROWID;
"""
_LIVE = """
WITH RECURSIVE live(digest) AS (
  SELECT digest FROM holds UNION SELECT digest FROM covers
  UNION SELECT refs.child FROM refs JOIN live ON refs.parent = live.digest
) SELECT digest FROM live
"""


class Ledger:
    """The shared database. Every method is synchronous and short; the store calls them in threads."""

    def __init__(self, path: Path) -> None:
        """Open or make the database at `path`. Raises Broken when it cannot be used."""
        self._lock = threading.Lock()
        self._path = path
        self._reserve = Reserve(path.with_suffix(".reserve"))
        self._reserve.spend_if_full()
        fresh = not path.exists()
        try:
            self._db = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
            if fresh:
                os.chmod(path, 0o664)
                _give_to_owner(path)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.executescript(_SCHEMA)
        except (sqlite3.Error, OSError) as error:
            raise Broken(f"{path}: the content index cannot be opened: {error}") from error
        self._reserve.fill()

    def close(self) -> None:
        """Close the database."""
        with self._lock:
            self._db.close()

    def add(self, digest: Digest, size_bytes: int, children: Sequence[Digest], lease: str, now: float) -> None:
        """Note a blob that is about to appear. Raises Expired when its lease is over."""
        with self._write(durable=False) as db:
            if lease:
                self._cover(db, digest, lease, now)
            self._insert(db, digest, size_bytes, children)

    def hold(self, holder: str, digest: Digest, path: Path) -> None:
        """Add a hold of the blob at `path`. Raises NotFound when its file is not there."""
        with self._write() as db:
            if not self._known(db, digest, path):
                raise NotFound(f"blob {digest}: not here, so {holder!r} cannot hold it")
            db.execute("INSERT OR IGNORE INTO holds VALUES (?, ?)", (holder, digest))

    def release(self, holder: str, digest: Digest | None) -> None:
        """Drop one hold, or all of a holder."""
        with self._write(makes_room=True) as db:
            if digest is None:
                db.execute("DELETE FROM holds WHERE holder = ?", (holder,))
            else:
                db.execute("DELETE FROM holds WHERE holder = ? AND digest = ?", (holder, digest))

    def holders(self, prefix: str) -> Sequence[tuple[str, Digest]]:
        """List holds by the beginning of their holder."""
        with self._lock:
            rows = self._db.execute(
                "SELECT holder, digest FROM holds WHERE holder >= ? AND holder < ? ORDER BY holder, digest",
                (prefix, prefix + "\U0010ffff"),
            ).fetchall()
        return [(holder, Digest(digest)) for holder, digest in rows]

    def lease(self, id: str, until: float) -> None:
        """Begin or lengthen a lease."""
        with self._write(durable=False) as db:
            db.execute("INSERT OR REPLACE INTO leases VALUES (?, ?)", (id, until))

    def cover(self, digest: Digest, lease: str, path: Path, now: float) -> bool:
        """Let a lease cover a blob, if its file is there. Raises Expired."""
        with self._write(durable=False) as db:
            if not self._known(db, digest, path):
                return False
            self._cover(db, digest, lease, now)
            return True

    def end_lease(self, id: str) -> None:
        """End a lease."""
        with self._write(durable=False, makes_room=True) as db:
            db.execute("DELETE FROM covers WHERE lease = ?", (id,))
            db.execute("DELETE FROM leases WHERE id = ?", (id,))

    def live(self, now: float) -> set[str]:
        """Say which digests are reachable from a hold or a lease."""
        with self._write(durable=False, makes_room=True) as db:
            return self._live(db, now)

    def sweep(self, dead: Sequence[Digest], now: float, unlink: Callable[[Digest], None]) -> Sequence[Digest]:
        """Of some blobs seen dead, unlink those that still are, in one transaction; say which."""
        with self._write(makes_room=True) as db:
            live = self._live(db, now)
            gone = [digest for digest in dead if digest not in live]
            for digest in gone:
                unlink(digest)
                db.execute("DELETE FROM blobs WHERE digest = ?", (digest,))
                db.execute("DELETE FROM refs WHERE parent = ?", (digest,))
            return gone

    def _live(self, db: sqlite3.Connection, now: float) -> set[str]:
        db.execute("DELETE FROM leases WHERE until <= ?", (now,))
        db.execute("DELETE FROM covers WHERE lease NOT IN (SELECT id FROM leases)")
        return {row[0] for row in db.execute(_LIVE)}

    def _known(self, db: sqlite3.Connection, digest: Digest, path: Path) -> bool:
        """Say whether the blob's file is there, with its references noted.

        A row can be missing though the file is there: swept between `add` and the rename, or lost with the power.
        """
        try:
            size = path.stat().st_size
        except FileNotFoundError:
            return False
        if db.execute("SELECT 1 FROM blobs WHERE digest = ?", (digest,)).fetchone() is None:
            children = references(path.read_bytes()) if size <= DOCUMENT_MAX_BYTES else ()
            self._insert(db, digest, size, children)
        return True

    def _insert(self, db: sqlite3.Connection, digest: Digest, size_bytes: int, children: Sequence[Digest]) -> None:
        db.execute("INSERT OR REPLACE INTO blobs VALUES (?, ?)", (digest, size_bytes))
        db.executemany("INSERT OR IGNORE INTO refs VALUES (?, ?)", [(digest, child) for child in children])

    def _cover(self, db: sqlite3.Connection, digest: Digest, lease: str, now: float) -> None:
        if db.execute("SELECT 1 FROM leases WHERE id = ? AND until > ?", (lease, now)).fetchone() is None:
            raise Expired(f"lease {lease}: it is over, so it cannot keep {digest}; begin a new one")
        db.execute("INSERT OR IGNORE INTO covers VALUES (?, ?)", (lease, digest))

    @contextmanager
    def _write(self, *, durable: bool = True, makes_room: bool = False) -> Generator[sqlite3.Connection]:
        """One write transaction. Leases need not survive a power loss (their writers do not); holds must.

        `makes_room`: it may have what is kept aside of a full disk. Raises Broken.
        """
        with self._lock:
            if makes_room:
                self._reserve.spend_if_full()
            try:
                self._db.execute(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
                self._db.execute("BEGIN IMMEDIATE")
                try:
                    yield self._db
                    self._db.execute("COMMIT")
                except BaseException:
                    if self._db.in_transaction:
                        self._db.execute("ROLLBACK")
                    raise
            except sqlite3.Error as error:
                raise Broken(f"{self._path}: the content index cannot be written: {error}") from error
            if makes_room:
                self._reserve.fill()


def _give_to_owner(path: Path) -> None:
    """Made by root in a directory of another user: let that user open it too."""
    if os.geteuid() == 0:
        owner = path.parent.stat()
        os.chown(path, owner.st_uid, owner.st_gid)
