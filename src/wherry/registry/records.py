"""Where the registry's records are kept, whatever keeps them: reads, and writes that are one transaction each.

Statements are SQL that SQLite and PostgreSQL both know, with `?` for values. What differs between the two (types of
columns, how a table numbers its rows) is theirs to hide.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, TypeVar

T = TypeVar("T")


class Cursor(Protocol):
    """The outcome of a statement."""

    @property
    def rowcount(self) -> int:
        """How many rows it changed."""
        ...

    def fetchone(self) -> Any:
        """Return the next row, or None."""
        ...

    def fetchall(self) -> list[Any]:
        """Return the rows that are left."""
        ...


class Tx(Protocol):
    """An open transaction. It is used within the function it was given to, and not after."""

    def execute(self, sql: str, parameters: Sequence[Any] = (), /) -> Cursor:
        """Do one statement."""
        ...

    def executemany(self, sql: str, parameters: Iterable[Sequence[Any]], /) -> object:
        """Do one statement for each of many values."""
        ...


class Records(Protocol):
    """A database of the registry."""

    async def rows(self, query: str, *values: object) -> list[Any]:
        """Read. Raises Broken."""
        ...

    async def row(self, query: str, *values: object) -> Any:
        """Read the first row, or None. Raises Broken."""
        ...

    async def read(self, work: Callable[[Tx], T]) -> T:
        """Do several reads that see one and the same state. Raises Broken."""
        ...

    async def write(self, work: Callable[[Tx], T]) -> T:
        """Do `work` in a transaction, durable on return. What `work` raises undoes it alone; it may be run again.

        Raises Unavailable when too many writes wait, Broken when the records cannot be written.
        """
        ...

    async def execute(self, query: str, *values: object) -> int:
        """Do one statement in a transaction; return how many rows it changed."""
        ...

    async def close(self) -> None:
        """Finish the writes that wait and let go."""
        ...
