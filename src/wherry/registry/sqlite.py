"""The registry's records in an SQLite file of their own."""

import asyncio
import sqlite3
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from wherry.content.protocol import Digest
from wherry.errors import Broken
from wherry.registry.metadata import ManifestRow

BUSY_S = 30.0
UPLOAD_LIFE_S = 2 * 86400.0
_SCHEMA = """
CREATE TABLE IF NOT EXISTS repositories (name TEXT PRIMARY KEY, created REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS tags (repository TEXT, tag TEXT, digest TEXT NOT NULL, updated REAL NOT NULL,
  PRIMARY KEY (repository, tag)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS tags_by_digest ON tags (repository, digest);
CREATE TABLE IF NOT EXISTS manifests (repository TEXT, digest TEXT, media_type TEXT NOT NULL, size INTEGER NOT NULL,
  pushed REAL NOT NULL, subject TEXT NOT NULL, artifact_type TEXT NOT NULL, descriptor BLOB NOT NULL,
  PRIMARY KEY (repository, digest)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS manifests_by_subject ON manifests (repository, subject) WHERE subject != '';
CREATE TABLE IF NOT EXISTS children (repository TEXT, parent TEXT, child TEXT,
  PRIMARY KEY (repository, parent, child)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS children_by_child ON children (repository, child);
CREATE TABLE IF NOT EXISTS links (repository TEXT, digest TEXT, PRIMARY KEY (repository, digest)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS uploads (id TEXT PRIMARY KEY, repository TEXT NOT NULL, started REAL NOT NULL) WITHOUT ROWID;
"""
T = TypeVar("T")
_Db = sqlite3.Connection


class SqliteMetadata:
    """registry/metadata.Metadata on one file, WAL, a transaction for each write, in threads."""

    def __init__(self, path: Path) -> None:
        """Open or make the file. Raises Broken."""
        self._lock = threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.executescript(_SCHEMA)
        except (sqlite3.Error, OSError) as error:
            raise Broken(f"{path}: the registry's records cannot be opened: {error}") from error

    async def repositories(self, *, after: str = "", limit: int = 0) -> Sequence[str]:
        """List repositories later than `after`, at most `limit` (0: all)."""
        rows = await self._all("SELECT name FROM repositories WHERE name > ? ORDER BY name LIMIT ?", after, limit or -1)
        return [row[0] for row in rows]

    async def has(self, repository: str) -> bool:
        """Say whether the repository is known."""
        return bool(await self._all("SELECT 1 FROM repositories WHERE name = ?", repository))

    async def tags(self, repository: str, *, after: str = "", limit: int = 0) -> Sequence[str]:
        """List tags later than `after`."""
        query = "SELECT tag FROM tags WHERE repository = ? AND tag > ? ORDER BY tag LIMIT ?"
        return [row[0] for row in await self._all(query, repository, after, limit or -1)]

    async def resolve(self, repository: str, tag: str) -> Digest | None:
        """Say what a tag means."""
        rows = await self._all("SELECT digest FROM tags WHERE repository = ? AND tag = ?", repository, tag)
        return Digest(rows[0][0]) if rows else None

    async def manifest(self, repository: str, digest: Digest) -> ManifestRow | None:
        """Find a manifest (`children` are left empty)."""
        rows = await self._all(f"{_MANIFESTS} AND digest = ?", repository, digest)
        return _row(rows[0]) if rows else None

    async def put(self, repository: str, row: ManifestRow, tag: str) -> None:
        """Add a manifest with links to its children, and point `tag` at it unless that is ""; makes the repository."""

        def work(db: _Db) -> None:
            db.execute("INSERT OR IGNORE INTO repositories VALUES (?, ?)", (repository, row.pushed))
            db.execute(
                "INSERT OR REPLACE INTO manifests VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    repository,
                    row.digest,
                    row.media_type,
                    row.size_bytes,
                    row.pushed,
                    row.subject,
                    row.artifact_type,
                    row.descriptor,
                ),
            )
            for child in row.children:
                db.execute("INSERT OR IGNORE INTO children VALUES (?, ?, ?)", (repository, row.digest, child))
                db.execute("INSERT OR IGNORE INTO links VALUES (?, ?)", (repository, child))
            if tag:
                values = (repository, tag, row.digest, row.pushed)
                db.execute("INSERT OR REPLACE INTO tags VALUES (?, ?, ?, ?)", values)

        await self._write(work)

    async def delete_tag(self, repository: str, tag: str) -> bool:
        """Drop a tag; say whether it was there."""
        query = "DELETE FROM tags WHERE repository = ? AND tag = ?"
        return await self._write(lambda db: db.execute(query, (repository, tag)).rowcount > 0)

    async def delete_manifest(self, repository: str, digest: Digest) -> bool:
        """Drop a manifest with its tags, and the links that no other manifest needs; say whether it was there."""

        def work(db: _Db) -> bool:
            where = (repository, digest)
            found = db.execute("DELETE FROM manifests WHERE repository = ? AND digest = ?", where).rowcount > 0
            db.execute("DELETE FROM tags WHERE repository = ? AND digest = ?", where)
            mine = db.execute("SELECT child FROM children WHERE repository = ? AND parent = ?", where).fetchall()
            db.execute("DELETE FROM children WHERE repository = ? AND parent = ?", where)
            for (child,) in mine:
                db.execute(
                    "DELETE FROM links WHERE repository = ?1 AND digest = ?2 AND NOT EXISTS"
                    " (SELECT 1 FROM children WHERE repository = ?1 AND child = ?2)",
                    (repository, child),
                )
            return found

        return await self._write(work)

    async def parents(self, repository: str, digest: Digest) -> Sequence[Digest]:
        """List the manifests of the repository that refer to a blob or manifest."""
        query = "SELECT parent FROM children WHERE repository = ? AND child = ? ORDER BY parent"
        return [Digest(row[0]) for row in await self._all(query, repository, digest)]

    async def link(self, repository: str, digest: Digest, now: float) -> None:
        """Note that the repository has a blob; makes the repository."""

        def work(db: _Db) -> None:
            db.execute("INSERT OR IGNORE INTO repositories VALUES (?, ?)", (repository, now))
            db.execute("INSERT OR IGNORE INTO links VALUES (?, ?)", (repository, digest))

        await self._write(work)

    async def linked(self, repository: str, digest: Digest) -> bool:
        """Say whether it has."""
        return bool(await self._all("SELECT 1 FROM links WHERE repository = ? AND digest = ?", repository, digest))

    async def unlink(self, repository: str, digest: Digest) -> None:
        """Drop a link."""
        query = "DELETE FROM links WHERE repository = ? AND digest = ?"
        await self._write(lambda db: db.execute(query, (repository, digest)))

    async def referrers(self, repository: str, subject: Digest) -> Sequence[ManifestRow]:
        """List manifests attached to `subject`, in order of digest."""
        return [
            _row(row) for row in await self._all(f"{_MANIFESTS} AND subject = ? ORDER BY digest", repository, subject)
        ]

    async def begin_upload(self, upload: str, repository: str, now: float) -> None:
        """Note an upload; those older than two days are forgotten."""

        def work(db: _Db) -> None:
            db.execute("DELETE FROM uploads WHERE started < ?", (now - UPLOAD_LIFE_S,))
            db.execute("INSERT OR REPLACE INTO uploads VALUES (?, ?, ?)", (upload, repository, now))

        await self._write(work)

    async def upload(self, upload: str) -> str | None:
        """Say which repository an upload is for."""
        rows = await self._all("SELECT repository FROM uploads WHERE id = ?", upload)
        return rows[0][0] if rows else None

    async def end_upload(self, upload: str) -> None:
        """Forget it."""
        await self._write(lambda db: db.execute("DELETE FROM uploads WHERE id = ?", (upload,)))

    async def held(self) -> Sequence[tuple[str, Digest]]:
        """List every (repository, manifest digest)."""
        rows = await self._all("SELECT repository, digest FROM manifests ORDER BY repository, digest")
        return [(repository, Digest(digest)) for repository, digest in rows]

    async def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

    async def _all(self, query: str, *values: object) -> list[Any]:
        """Read: from memory most of the time, so it is done inline and not in a thread."""
        with self._lock:
            return self._db.execute(query, values).fetchall()

    async def _write(self, work: Callable[[_Db], T]) -> T:
        def run() -> T:
            with self._lock:
                self._db.execute("BEGIN IMMEDIATE")
                try:
                    done = work(self._db)
                except BaseException:
                    self._db.execute("ROLLBACK")
                    raise
                self._db.execute("COMMIT")
                return done

        return await asyncio.to_thread(run)


_MANIFESTS = (
    "SELECT digest, media_type, size, pushed, subject, artifact_type, descriptor FROM manifests WHERE repository = ?"
)


def _row(row: tuple[str, str, int, float, str, str, bytes]) -> ManifestRow:
    digest, media_type, size, pushed, subject, artifact_type, descriptor = row
    return ManifestRow(Digest(digest), media_type, size, pushed, (), subject, artifact_type, descriptor)
