"""The registry's database: one SQLite file, read inline, written by groups.

Reads go by a connection of their own, so that they never wait for a writer's disk. Writes that arrive while one is on
its way to the disk share the next transaction, each in a savepoint: sixteen pushers cost one sync, not sixteen.
"""

import asyncio
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from wherry.errors import Broken, Unavailable
from wherry.registry.records import Records, Tx
from wherry.registry.schema import MIGRATIONS

BUSY_S = 30.0
GROUP = 256
"""The most writes in one transaction."""
WAITING = 10_000
"""Writes that may wait; more are refused."""

T = TypeVar("T")
_Job = tuple[Callable[[Tx], Any], asyncio.Future[Any]]


class Database(Records):
    """One file, WAL, durable on the answer to each write. It belongs to the event loop that first writes."""

    def __init__(self, path: Path) -> None:
        """Open or make the file and bring its tables up to date. Raises Broken."""
        self.path = path
        self._jobs: list[_Job] = []
        self._writer: asyncio.Task[None] | None = None
        self._closed = False
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = _connect(path)
            self._migrate()
            self._reader = _connect(path)
            self._reader.execute("PRAGMA query_only=1")
        except (sqlite3.Error, OSError) as error:
            raise Broken(f"{path}: the registry's records cannot be opened: {error}") from error

    async def rows(self, query: str, *values: object) -> list[Any]:
        """Read. It is from memory most of the time, so it is done inline and not in a thread."""
        try:
            return self._reader.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise Broken(f"{self.path}: the registry's records cannot be read: {error}") from error

    async def row(self, query: str, *values: object) -> Any:
        """Read the first row, or None."""
        found = await self.rows(query, *values)
        return found[0] if found else None

    async def read(self, work: Callable[[Tx], T]) -> T:
        """Do several reads that see one and the same state."""
        try:
            self._reader.execute("BEGIN")
            try:
                return work(self._reader)
            finally:
                self._reader.execute("COMMIT")
        except sqlite3.Error as error:
            raise Broken(f"{self.path}: the registry's records cannot be read: {error}") from error

    async def write(self, work: Callable[[Tx], T]) -> T:
        """Do `work` in a transaction; it is on disk when this returns. What `work` raises undoes it alone.

        Raises Unavailable when too many writes wait, Broken for the disk.
        """
        if self._closed or len(self._jobs) >= WAITING:
            raise Unavailable(f"{self.path}: the registry's records take no more writes now")
        loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()
        self._jobs.append((work, done))
        if self._writer is None or self._writer.done():
            self._writer = loop.create_task(self._drain(), name="registry-writes")
        return await done

    async def execute(self, query: str, *values: object) -> int:
        """Do one statement in a transaction; return how many rows it changed."""
        return await self.write(lambda db: db.execute(query, values).rowcount)

    async def close(self) -> None:
        """Finish the writes that wait and close the file."""
        self._closed = True
        if self._writer is not None:
            await asyncio.gather(self._writer, return_exceptions=True)
        self._reader.close()
        self._db.close()

    async def _drain(self) -> None:
        while self._jobs:
            group, self._jobs = self._jobs[:GROUP], self._jobs[GROUP:]
            outcomes = await asyncio.to_thread(self._run, [work for work, _ in group])
            for (_, done), (value, error) in zip(group, outcomes, strict=True):
                if done.done():  # its caller went away; the write is kept all the same
                    continue
                if error is not None:
                    done.set_exception(error)
                else:
                    done.set_result(value)

    def _run(self, works: list[Callable[[Tx], Any]]) -> list[tuple[Any, Exception | None]]:
        outcomes: list[tuple[Any, Exception | None]] = []
        db = self._db
        try:
            db.execute("BEGIN IMMEDIATE")
            for work in works:
                db.execute("SAVEPOINT one")
                try:
                    outcomes.append((work(db), None))
                except Exception as error:  # told to the one who asked; the others go on
                    db.execute("ROLLBACK TO one")
                    outcomes.append((None, error))
                db.execute("RELEASE one")
            db.execute("COMMIT")
        except sqlite3.Error as error:
            if db.in_transaction:
                db.execute("ROLLBACK")
            broken = Broken(f"{self.path}: the registry's records cannot be written: {error}")
            return [(None, broken)] * len(works)
        return outcomes

    def _migrate(self) -> None:
        self._db.execute("BEGIN IMMEDIATE")
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        for number, script in enumerate(MIGRATIONS[version:], version + 1):
            for statement in script.split(";\n"):
                if statement.strip():
                    self._db.execute(statement)
            self._db.execute(f"PRAGMA user_version={number}")
        self._db.execute("COMMIT")
        if version > len(MIGRATIONS):
            raise Broken(f"{self.path}: written by a newer wherry (format {version}; we know {len(MIGRATIONS)})")


def _connect(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("PRAGMA synchronous=FULL")
    return db
