"""The archive: follows the store, files what it sees by budget, and answers what was."""

import asyncio
import logging
import random
import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self, TypeVar

from wherry.clock import Clock, machine
from wherry.errors import Broken, Expired, Invalid, Unavailable
from wherry.history.filing import Coding, File, Filed, Filing, Gap
from wherry.history.moments import Moment
from wherry.model.kinds import KINDS, Kind
from wherry.store.protocol import Entry, Event, Note, Store

log = logging.getLogger(__name__)
T = TypeVar("T")

SECRETS = "/core/secrets/"
_OTHER_BUDGET = 100  # revisions of an object of a kind that is not in the table (custom resources)
_IDLE_POSITION_S = 20.0  # cluster time after which the position is written though nothing was filed
_CATCH_UP_S = 5.0
_SLICE = 500


class SealingStore(Store, Protocol):
    """A store that keeps Secrets sealed and shares the sealed form, so that the archive never has another."""

    def sealed(self, revision: int, key: str) -> bytes | None:
        """The value that `key` got at `revision`, sealed; None when it cannot be had."""
        ...

    def unseal(self, key: str, sealed: bytes) -> bytes | None:
        """Read a sealed value; None when its data key is gone."""
        ...


@dataclass(frozen=True, slots=True)
class Budget:
    """What the archive may take in all, besides each kind's revisions of one object; collected every `every_s`."""

    age_s: float = 7 * 86400.0
    value_bytes: int = 256 * 1024 * 1024
    every_s: float = 300.0


@dataclass(frozen=True, slots=True)
class Past:
    """One object as it was at some time: its JSON without resourceVersion, which was `revision`; who had written it."""

    key: str
    value: bytes
    revision: int
    note: Note


@dataclass(frozen=True, slots=True)
class Listing:
    """Objects as they were at `revision`. `unknown`: keys of which the budget has kept only later revisions."""

    items: Sequence[Past]
    revision: int
    unknown: Sequence[str]


@dataclass(frozen=True, slots=True)
class Revision:
    """One write of an object. `readable` is False for a deletion, and for a Secret that was deleted since."""

    revision: int
    note: Note
    deleted: bool
    readable: bool


class Archive:
    """Enter it to let it follow the store; ask it before, meanwhile and after. One thread of its own uses the file."""

    def __init__(self, file: File, store: SealingStore, clock: Clock, budget: Budget) -> None:
        self._file, self._store, self._clock, self._budget = file, store, clock, budget
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="history")
        self._tasks: list[asyncio.Task[None]] = []
        self._position = file.position
        self._moved = asyncio.Event()
        self._position_filed_at = clock.now()
        self._closed = False

    @classmethod
    async def open(cls, root: Path, store: SealingStore, *, clock: Clock, budget: Budget | None = None) -> Self:
        """Open the archive in the directory `root`, made if absent. Raises Damaged, Broken."""

        def begin() -> File:
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
            return File(root / "archive.db")

        try:
            file = await asyncio.to_thread(begin)
        except (OSError, sqlite3.Error) as error:
            raise Broken(f"history {root}: cannot be opened: {error}") from error
        return cls(file, store, clock, budget or Budget())

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._tasks = [
            loop.create_task(self._follow(), name="history: follow"),
            loop.create_task(self._collect_regularly(), name="history: collect"),
        ]
        return self

    async def __aexit__(self, *_: object) -> None:
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def close(self) -> None:
        """Stop following, remember how far it came, and close the file. Doing it again is harmless."""
        if self._closed:
            return
        await self.__aexit__()
        self._closed = True
        try:
            await self._in_thread(self._file.file, (), (), self._position)
        except Broken as error:
            log.warning("%s", error)
        finally:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._file.close)
            self._thread.shutdown(wait=False)

    # ---- asking

    @property
    def position(self) -> int:
        """The last revision that was read. The owner of the store's compaction lets it not fall behind."""
        return self._position

    def now(self) -> float:
        """The cluster's time."""
        return self._clock.now()

    async def gaps(self) -> Sequence[Gap]:
        """Where the past is not known."""
        return await self._in_thread(self._file.gaps)

    @property
    def began(self) -> int:
        """The oldest revision that can be asked for."""
        return self._file.began

    @property
    def value_bytes(self) -> int:
        """What all filed values take on disk."""
        return self._file.value_bytes

    async def reached(self, revision: int, timeout_s: float = _CATCH_UP_S) -> None:
        """Return when all up to `revision` has been read. Raises Unavailable when that takes too long."""
        try:
            async with machine.timeout(timeout_s):
                while self._position < revision:
                    self._moved.clear()
                    await self._moved.wait()
        except TimeoutError:
            raise Unavailable(
                f"the history has read up to revision {self._position}, and {revision} was asked for; try again"
            ) from None

    async def revision_at(self, time: float) -> int:
        """The last revision written up to cluster time `time`. Raises Expired when the history does not go back so far."""
        await self.reached(await self._store.revision())
        revision = await self._in_thread(self._file.revision_at, time)
        await self._in_thread(self._file.known, revision)
        return revision

    async def resolve(self, moment: Moment) -> int:
        """Turn a moment into a revision. Raises Expired, and Invalid for a revision that is not there yet."""
        last = await self._store.revision()
        if moment.time is not None:
            return await self.revision_at(moment.time)
        revision = last if moment.revision is None else moment.revision
        if revision > last:
            raise Invalid(f"revision {revision} is not there yet: the last is {last}")
        await self.reached(revision)
        await self._in_thread(self._file.known, revision)
        return revision

    async def at(self, kind: Kind, namespace: str, name: str, time: float) -> bytes | None:
        """What an object was at cluster time `time`, as JSON without resourceVersion; None when it was not.

        Raises Expired when that is not known: before the history began, in a gap, or beyond the kind's budget; and for
        a Secret that was deleted since.
        """
        found = await self.at_revision(kind, namespace, name, await self.revision_at(time))
        return found.value if found else None

    async def at_revision(self, kind: Kind, namespace: str, name: str, revision: int) -> Past | None:
        """What an object was at a revision; see `at`."""
        self._is_filed(kind)
        key = kind.key(namespace, name)

        def ask() -> Filed | None:
            self._file.known(revision)
            found = self._file.find(key, revision)
            if found is None:
                first = self._file.first(key)
                if first is not None and not first.created:
                    raise Expired(
                        f"{key} at revision {revision}: the history keeps {kind.history_budget} revisions of it, and the "
                        f"oldest is {first.revision}"
                    )
            return found

        filed = await self._in_thread(ask)
        if filed is None or filed.coding is Coding.DELETED:
            return None
        past = self._past(filed)
        if past is None:
            raise Expired(f"{key} at revision {revision}: it was deleted since, and its data key with it")
        return past

    async def list_at(self, kind: Kind, namespace: str, time: float) -> Listing:
        """All objects of a kind (in one namespace, or "" for all) at cluster time `time`. Raises Expired."""
        return await self.list_at_revision(kind, namespace, await self.revision_at(time))

    async def list_at_revision(self, kind: Kind, namespace: str, revision: int) -> Listing:
        """All objects of a kind at a revision. Secrets that were deleted since are among the unknown."""
        self._is_filed(kind)
        prefix = kind.prefix(namespace)

        def ask() -> tuple[list[Filed], list[str]]:
            self._file.known(revision)
            return self._file.listing(prefix, prefix[:-1] + "0", revision)  # "0" follows "/"

        found, unknown = await self._in_thread(ask)
        items: list[Past] = []
        for filed in found:
            past = self._past(filed)
            if past is None:
                unknown.append(filed.key)
            else:
                items.append(past)
        return Listing(items, revision, unknown)

    async def revisions(self, kind: Kind, namespace: str, name: str) -> Sequence[Revision]:
        """All writes of an object that are filed, oldest first; none when it never was."""
        self._is_filed(kind)
        await self.reached(await self._store.revision())
        return [
            Revision(
                filed.revision,
                filed.note,
                filed.coding is Coding.DELETED,
                filed.coding is not Coding.DELETED and self._past(filed) is not None,
            )
            for filed in await self._in_thread(self._file.all, kind.key(namespace, name))
        ]

    def _is_filed(self, kind: Kind) -> None:
        if kind.storage.history_budget <= 0:
            raise Invalid(f"{kind.qualified}: the history files none of these (its budget is 0)")

    def _past(self, filed: Filed) -> Past | None:
        match filed.coding:
            case Coding.ZLIB:
                value: bytes | None = filed.plain
            case Coding.SEALED:
                value = self._store.unseal(filed.key, filed.value or b"")
            case _:
                value = None
        return None if value is None else Past(filed.key, value, filed.revision, filed.note)

    # ---- following

    async def _follow(self) -> None:
        """Read the store from where we were; after trouble with our own disk try again, later each time."""
        backoff_s = 0.1
        while True:
            try:
                async for batch in self._store.watch("", after=self._position):
                    await self._file_batch(batch)
                    backoff_s = 0.1
            except Expired:
                try:
                    await self._bridge()
                except Broken as error:
                    log.warning("%s; trying again in %.1f s", error, backoff_s)
                    await machine.sleep(backoff_s * random.uniform(0.8, 1.2))
            except Unavailable as error:
                log.debug("history: %s", error)
                return  # the store was closed
            except Broken as error:
                log.warning("%s; trying again in %.1f s", error, backoff_s)
                await machine.sleep(backoff_s * random.uniform(0.8, 1.2))
            backoff_s = min(30.0, backoff_s * 2)

    async def _file_batch(self, batch: Sequence[Event]) -> None:
        filings = [filing for event in batch for filing in self._filing(event)]
        revision, now = batch[-1].revision, batch[-1].note.time
        if filings or abs(now - self._position_filed_at) >= _IDLE_POSITION_S:
            times = {int(event.note.time * 10): (event.note.time, event.revision) for event in batch}
            await self._in_thread(self._file.file, filings, list(times.values()), revision)
            self._position_filed_at = now
        self._advance(revision)

    def _filing(self, event: Event) -> Sequence[Filing]:
        budget = budget_of(event.key)
        if budget <= 0:
            return ()
        secret = event.key.startswith(SECRETS)
        sealed = self._store.sealed(event.revision, event.key) if secret and event.value is not None else None
        return (Filing(event, sealed, secret, budget),)

    async def _bridge(self) -> None:
        """The store has forgotten what we had not read: file the present, and say that there is a gap."""
        page = await self._store.list("")
        now = self._clock.now()
        present = [
            (filing, entry.version, entry.created)
            for entry in page.entries
            for filing in self._filing(_seen(entry, now))
        ]
        gap = Gap(self._position, page.revision, now)
        await self._in_thread(self._file.bridge, present, gap)
        log.warning("history: nothing is known of what was between revisions %d and %d", gap.after, gap.until)
        self._advance(page.revision)

    def _advance(self, revision: int) -> None:
        self._position = revision
        self._moved.set()

    # ---- collecting

    async def collect(self) -> None:
        """Forget what is beyond the budget, in slices between which queries and filing go on."""
        horizon = await self._in_thread(
            self._file.horizon, self._clock.now() - self._budget.age_s, self._budget.value_bytes
        )
        after = 0
        while True:
            after = await self._in_thread(self._file.collect, horizon, after, _SLICE)
            if after == 0:
                return

    async def _collect_regularly(self) -> None:
        while True:
            await self._clock.sleep(self._budget.every_s)
            try:
                await self.collect()
            except Broken as error:
                log.warning("%s", error)

    async def _in_thread(self, function: Callable[..., T], *args: object) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, lambda: function(*args))
        except (OSError, sqlite3.Error) as error:
            raise Broken(f"history: its file: {error}") from error


_BUDGETS = {kind.root: kind.history_budget for kind in KINDS if kind.stored and not kind.stored_as}


def budget_of(key: str) -> int:
    """How many revisions of the object with this store key are filed; 0 for keys that are no object's."""
    parts = key.split("/", 3)
    return _BUDGETS.get(f"/{parts[1]}/{parts[2]}/", _OTHER_BUDGET) if len(parts) == 4 else 0


def _seen(entry: Entry, now: float) -> Event:
    note = Note(now, "system:history", "resync")
    return Event(entry.version, entry.key, entry.value, None, note)
