"""What happened: the audit log, which is also what webhooks and metering read.

An event of a change is written in the transaction of the change. Pulls and sign-ins are gathered for a moment and
written together, so that nobody waits for the disk to read.
"""

import asyncio
from collections.abc import Sequence

import msgspec

from wherry.clock import machine
from wherry.registry.records import Records, Tx

GATHER_S = 1.0
GATHERED = 500
"""Events that are written at once without waiting longer."""
PAGE_MAX = 1000
PULLS_KEPT_S = 90 * 86400.0
KEPT_S = 400 * 86400.0
"""How long the audit log keeps pulls, and everything else; then it is pruned, so that it does not fill the disk."""
PRUNED_ROWS = 5000

PUSH, PULL, DELETE, MOUNT, FETCH = "push", "pull", "delete", "mount", "fetch"
SIGN_IN, CHANGE, EXPIRE = "sign-in", "change", "expire"


class Event(msgspec.Struct, frozen=True, omit_defaults=True):
    """One entry. `at` unix seconds (cluster time), `size` the bytes of the manifest or moved, `seq` given when written."""

    at: float
    actor: str
    action: str
    repository: str = ""
    reference: str = ""
    digest: str = ""
    media_type: str = ""
    size: int = 0
    outcome: str = "ok"
    address: str = ""
    detail: str = ""
    seq: int = 0


_COLUMNS = "at, actor, address, action, repository, reference, digest, media_type, size, outcome, detail"


def record(db: Tx, event: Event) -> None:
    """Write an event in the caller's transaction, and count a push in the day's meter."""
    values = (event.at, event.actor, event.address, event.action, event.repository, event.reference, event.digest,
              event.media_type, event.size, event.outcome, event.detail)  # fmt: skip
    db.execute(f"INSERT INTO events ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", values)
    if event.outcome == "ok" and event.action == PUSH:
        count(db, event.repository, event.at, pushes=1)


def count(
    db: Tx, repository: str, at: float, *, pulls: int = 0, pushes: int = 0, bytes_out: int = 0, bytes_in: int = 0
) -> None:
    """Add to the day's meter of a repository."""
    db.execute(
        "INSERT INTO meter VALUES (?, ?, ?, ?, ?, ?, 0) ON CONFLICT (repository, day) DO UPDATE SET"
        " pulls = meter.pulls + excluded.pulls, pushes = meter.pushes + excluded.pushes,"
        " bytes_out = meter.bytes_out + excluded.bytes_out, bytes_in = meter.bytes_in + excluded.bytes_in",
        (repository, day_of(at), pulls, pushes, bytes_out, bytes_in),
    )


def day_of(at: float) -> str:
    """The UTC day, as 2026-11-22."""
    from datetime import UTC, datetime

    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d")


async def prune(database: Records, now: float) -> int:
    """Drop entries past their time, some thousands in a transaction; return how many."""
    query = (
        "DELETE FROM events WHERE seq IN"
        " (SELECT seq FROM events WHERE at < ? AND (action = ? OR at < ?) ORDER BY at LIMIT ?)"
    )
    count = 0
    while gone := await database.execute(query, now - PULLS_KEPT_S, PULL, now - KEPT_S, PRUNED_ROWS):
        count += gone
    await database.execute("DELETE FROM meter WHERE day < ?", day_of(now - 2 * KEPT_S))
    return count


class Journal:
    """Events that are not part of a change: pulls, refusals, sign-ins; and bytes that moved."""

    def __init__(self, database: Records) -> None:
        self._database = database
        self._events: list[Event] = []
        self._moved: dict[tuple[str, int], tuple[float, int, int, int]] = {}
        self._pulled: dict[tuple[str, str], float] = {}
        self._writer: asyncio.Task[None] | None = None
        self._full = asyncio.Event()

    def note(self, event: Event) -> None:
        """Take an event; it is on disk a moment later. A manifest's pull also counts as its use."""
        self._events.append(event)
        if event.action == PULL and event.outcome == "ok":
            self._pulled[event.repository, event.digest] = event.at
            self.moved(event.repository, event.at, bytes_out=event.size, pulls=1)
        self._wake()

    def moved(self, repository: str, at: float, *, bytes_out: int = 0, bytes_in: int = 0, pulls: int = 0) -> None:
        """Count bytes sent and received."""
        key = (repository, int(at // 86400))
        _, out, into, pulled = self._moved.get(key, (at, 0, 0, 0))
        self._moved[key] = (at, out + bytes_out, into + bytes_in, pulled + pulls)
        self._wake()

    async def flush(self) -> None:
        """Write what was gathered."""
        events, self._events = self._events, []
        moved, self._moved = self._moved, {}
        pulled, self._pulled = self._pulled, {}
        if not events and not moved:
            return

        def work(db: Tx) -> None:
            for event in events:
                record(db, event)
            for (repository, _), (at, out, into, pulls) in moved.items():
                count(db, repository, at, bytes_out=out, bytes_in=into, pulls=pulls)
            for (repository, digest), at in pulled.items():
                db.execute(
                    "UPDATE manifests SET pulled = ? WHERE repository = ? AND digest = ?", (at, repository, digest)
                )

        await self._database.write(work)

    async def close(self) -> None:
        """Write the rest."""
        if self._writer is not None:
            self._full.set()
            await asyncio.gather(self._writer, return_exceptions=True)
        await self.flush()

    async def search(
        self,
        *,
        actor: str = "",
        repository: str = "",
        action: str = "",
        since: float = 0.0,
        until: float = 0.0,
        before: int = 0,
        limit: int = 100,
    ) -> Sequence[Event]:
        """List events, the latest first; "" and 0 for any. `before` is the `seq` to go on from."""
        await self.flush()
        tests = {
            "actor = ?": actor,
            "repository = ?": repository,
            "action = ?": action,
            "at >= ?": since,
            "at < ?": until,
            "seq < ?": before,
        }
        chosen = {test: value for test, value in tests.items() if value}
        where = f"WHERE {' AND '.join(chosen)}" if chosen else ""
        query = f"SELECT seq, {_COLUMNS} FROM events {where} ORDER BY seq DESC LIMIT ?"
        return [event_of(row) for row in await self._database.rows(query, *chosen.values(), min(limit, PAGE_MAX))]

    def _wake(self) -> None:
        if len(self._events) >= GATHERED:
            self._full.set()
        if self._writer is None or self._writer.done():
            self._full.clear()
            self._writer = asyncio.create_task(self._later(), name="registry-journal")

    async def _later(self) -> None:
        try:
            async with machine.timeout(GATHER_S):
                await self._full.wait()
        except TimeoutError:
            pass
        await self.flush()


def event_of(row: tuple[int, float, str, str, str, str, str, str, str, int, str, str]) -> Event:
    """Read a row of `seq` and the columns."""
    seq, at, actor, address, action, repository, reference, digest, media_type, size, outcome, detail = row
    return Event(at, actor, action, repository, reference, digest, media_type, size, outcome, address, detail, seq)
