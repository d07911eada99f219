"""The registry's records in one SQLite file. Reads go by a connection of their own and never wait for a writer's disk."""

import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from wherry.errors import Broken
from wherry.registry.grouping import Grouped, Outcome, Work
from wherry.registry.records import Tx
from wherry.registry.schema import MIGRATIONS

BUSY_S = 30.0

T = TypeVar("T")


class SqliteRecords(Grouped):
    """One file, WAL, durable on the answer to each write. It belongs to the event loop that first writes."""

    def __init__(self, path: Path) -> None:
        """Open or make the file and bring its tables up to date. Raises Broken."""
        super().__init__(str(path))
        self.path = path
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

    async def close(self) -> None:
        """Finish the writes that wait and close the file."""
        await self.finish()
        self._reader.close()
        self._db.close()

    def run(self, works: Sequence[Work]) -> list[Outcome]:
        """Do some writes as one transaction."""
        outcomes: list[Outcome] = []
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
