"""Layers that were built before, by key, held in the content store within a budget of bytes."""

import asyncio
import sqlite3
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from wherry.clock import Clock
from wherry.content.protocol import Content, Digest
from wherry.errors import Broken

HOLDER = "cache/"
BUDGET_BYTES = 10 * 1024**3
_SCHEMA = """
CREATE TABLE IF NOT EXISTS layers (key TEXT PRIMARY KEY, digest TEXT NOT NULL, diff_id TEXT NOT NULL,
  size INTEGER NOT NULL, created REAL NOT NULL, used REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS contents (coarse TEXT PRIMARY KEY, digest TEXT NOT NULL, used REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS files (name TEXT PRIMARY KEY, size INTEGER NOT NULL, mtime INTEGER NOT NULL, ctime INTEGER NOT NULL,
  digest TEXT NOT NULL) WITHOUT ROWID;
"""
FILES_MAX = 400_000
"""Digests of files that are remembered; past it all are forgotten."""
T = TypeVar("T")
Seen = tuple[int, int, int, str]
"""A file's size, mtime and ctime in nanoseconds, and its digest while those are the same."""


@dataclass(frozen=True, slots=True)
class Built:
    """What a step made: a layer, or nothing (`digest` is ""). `created` is when, in unix seconds."""

    digest: str
    diff_id: str
    size_bytes: int
    created: float


@dataclass(frozen=True, slots=True)
class Layer:
    """A row of the cache; `digest` is "" where the step changed nothing. Times are unix seconds."""

    key: str
    digest: str
    diff_id: str
    size_bytes: int
    created: float
    used: float


class Cache:
    """The cache's own file; layers are held as `cache/KEY`."""

    def __init__(self, path: Path, content: Content, clock: Clock, *, budget_bytes: int = BUDGET_BYTES) -> None:
        """Open or make it. Raises Broken."""
        self._content = content
        self._clock = clock
        self._budget_bytes = budget_bytes
        self._lock = threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, timeout=30.0, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._db.executescript(_SCHEMA)
        except (sqlite3.Error, OSError) as error:
            raise Broken(f"{path}: the build cache cannot be opened: {error}") from error

    async def find(self, key: str, lease: str) -> Built | None:
        """Find what a key made; its layer is covered by `lease` then. None when it is not known, or its blob is gone."""
        row = await self._do(
            lambda db: db.execute("SELECT digest, diff_id, size, created FROM layers WHERE key = ?", (key,)).fetchone()
        )
        if row is None:
            return None
        built = Built(*row)
        if built.digest and await self._content.cover(Digest(built.digest), lease) is None:
            await self._drop(key)
            return None
        now = self._clock.now()
        await self._do(lambda db: db.execute("UPDATE layers SET used = ? WHERE key = ?", (now, key)))
        return built

    async def put(self, key: str, built: Built) -> None:
        """Remember it, and let go of the least used beyond the budget."""
        if built.digest:
            await self._content.release(f"{HOLDER}{key}")
            await self._content.hold(f"{HOLDER}{key}", Digest(built.digest))
        values = (key, built.digest, built.diff_id, built.size_bytes, built.created, self._clock.now())
        await self._do(lambda db: db.execute("INSERT OR REPLACE INTO layers VALUES (?, ?, ?, ?, ?, ?)", values))
        await self.trim(self._budget_bytes, keep=key)

    async def content(self, coarse: str) -> str | None:
        """The content digest that a coarse key (a stage's key and the sources' names) stood for, if known."""
        row = await self._do(
            lambda db: db.execute("SELECT digest FROM contents WHERE coarse = ?", (coarse,)).fetchone()
        )
        return None if row is None else row[0]

    async def put_content(self, coarse: str, digest: str) -> None:
        """Remember it; the last ten thousand are kept."""
        now = self._clock.now()

        def work(db: sqlite3.Connection) -> None:
            db.execute("INSERT OR REPLACE INTO contents VALUES (?, ?, ?)", (coarse, digest, now))
            db.execute(
                "DELETE FROM contents WHERE coarse NOT IN (SELECT coarse FROM contents ORDER BY used DESC LIMIT 10000)"
            )

        await self._do(work)

    async def seen(self) -> Mapping[str, Seen]:
        """What earlier builds know of files that they read, by device and inode."""
        rows = await self._do(lambda db: db.execute("SELECT name, size, mtime, ctime, digest FROM files").fetchall())
        return {row[0]: row[1:] for row in rows}

    async def put_seen(self, fresh: Mapping[str, Seen]) -> None:
        """Remember files' digests."""
        if not fresh:
            return
        rows = [(name, *seen) for name, seen in fresh.items()]

        def work(db: sqlite3.Connection) -> None:
            db.execute("BEGIN")
            if db.execute("SELECT count(*) FROM files").fetchone()[0] > FILES_MAX:
                db.execute("DELETE FROM files")
            db.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?)", rows)
            db.execute("COMMIT")

        await self._do(work)

    async def layers(self) -> Sequence[Layer]:
        """List what is remembered, the least used last."""
        query = "SELECT key, digest, diff_id, size, created, used FROM layers ORDER BY used DESC, key"
        return [Layer(*row) for row in await self._do(lambda db: db.execute(query).fetchall())]

    async def forget(self, keys: Sequence[str]) -> None:
        """Let go of some of it."""
        for key in keys:
            await self._drop(key)

    async def trim(self, budget_bytes: int, *, keep: str = "") -> int:
        """Let go of the least used layers until the rest fits; return the bytes that went. 0 empties the cache."""
        rows = await self._do(lambda db: db.execute("SELECT key, size FROM layers ORDER BY used DESC, key").fetchall())
        room, gone = budget_bytes, 0
        for key, size in rows:
            room -= size
            if (room < 0 or budget_bytes == 0) and key != keep:
                await self._drop(key)
                gone += size
        return gone

    async def reconcile(self) -> int:
        """Release holds without a row (we were killed between the two); return how many."""
        known = {row[0] for row in await self._do(lambda db: db.execute("SELECT key FROM layers").fetchall())}
        stray = [who for who, _ in await self._content.holders(HOLDER) if who.removeprefix(HOLDER) not in known]
        for who in stray:
            await self._content.release(who)
        return len(stray)

    async def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

    async def _drop(self, key: str) -> None:
        await self._do(lambda db: db.execute("DELETE FROM layers WHERE key = ?", (key,)))
        await self._content.release(f"{HOLDER}{key}")

    async def _do(self, work: Callable[[sqlite3.Connection], T]) -> T:
        def run() -> T:
            with self._lock:
                return work(self._db)

        return await asyncio.to_thread(run)
