"""The embedded store: the present in memory, every write in a log of SQLite files before it is answered."""

import asyncio
import logging
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from heapq import merge as merge_sorted
from itertools import islice
from pathlib import Path
from typing import Self, TypeVar

from wherry.clock import Clock, machine
from wherry.errors import Broken, Conflict, Expired, Invalid, NotFound, TooLarge, Unavailable
from wherry.store.committing import Committer, Transaction
from wherry.store.files import Directory, Lock
from wherry.store.forks import fork
from wherry.store.index import SortedKeys, prefix_end
from wherry.store.loading import Loaded, State, load
from wherry.store.log import PLACES, Row
from wherry.store.protocol import Entry, Event, Note, Page, Write
from wherry.store.seals import SECRETS, Sealer
from wherry.store.settings import Durability, Settings
from wherry.store.snapshot import merge, plan_merge
from wherry.store.watching import Hub, Watcher
from wherry.store.window import Change

log = logging.getLogger(__name__)
T = TypeVar("T")

_TRIM_SLICE = 2000


class SqliteStore:
    """`Store` on this machine, for one process.

    Compare-and-set happens in memory, in the order in which writes arrive; `_pending` holds what is on its way to the
    disk, and only writers look at it. Readers and watchers see `_state`, to which a write is added after its commit:
    so nobody sees a write that a power loss could take back, and a write's own caller sees it when it is answered.
    """

    def __init__(
        self, directory: Directory, lock: Lock, sealer: Sealer, loaded: Loaded, clock: Clock, settings: Settings
    ) -> None:
        self.clock = clock
        self._directory, self._lock, self._sealer, self._settings = directory, lock, sealer, settings
        self._floor = loaded.floor
        self._state: State = loaded.state
        self._keys = SortedKeys(self._state.present)
        self._hub = Hub()
        self._next = self._state.revision + 1
        self._pending: dict[str, tuple[int, Entry | None]] = {}
        self._loop = asyncio.get_running_loop()
        self._committer = Committer(
            loaded.head,
            sealer,
            loaded.floor,
            settings,
            show=self._show,
            forget=self._forget_pending,
            replay=self._replay,
        )
        self._helper = ThreadPoolExecutor(1, thread_name_prefix="store-helper")
        self._files = asyncio.Lock()  # held by whoever adds or removes sealed files
        self._closed = False
        self._rolling: asyncio.Task[None] | None = None
        self._roll_at_bytes = settings.roll_bytes

    @classmethod
    async def open(
        cls,
        root: Path,
        *,
        clock: Clock,
        durability: Durability = "full",
        sealer: Sealer | None = None,
        settings: Settings | None = None,
    ) -> Self:
        """Open the store in the directory `root`, made if absent.

        Raises Unavailable when another process has it open, Damaged when what is stored is not as it was written.
        """
        settings = settings or Settings()

        def begin() -> tuple[Lock, Sealer, Loaded]:
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = Lock(root)
            keys = sealer or Sealer(root)
            try:
                return lock, keys, load(Directory(root), keys, settings, durability)
            except BaseException:
                keys.close()
                lock.release()
                raise

        try:
            lock, keys, loaded = await asyncio.to_thread(begin)
        except (OSError, sqlite3.Error) as error:
            raise Broken(f"store {root}: cannot be opened: {error}") from error
        return cls(Directory(root), lock, keys, loaded, clock, settings)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def root(self) -> Path:
        """The directory."""
        return self._directory.root

    @property
    def floor(self) -> int:
        """The oldest revision that can be read: older ones are Expired."""
        return max(self._floor, self._state.window.floor)

    @property
    def window_events(self) -> int:
        """How many writes of the past are in memory."""
        return len(self._state.window)

    # ---- reading

    async def get(self, key: str) -> Entry | None:
        """Read one key as of now, or None."""
        return self._state.present.get(key)

    async def list(self, prefix: str, *, after: str = "", limit: int = 0, at: int = 0) -> Page:
        """Read keys under `prefix`; see the protocol. Raises Expired; Invalid for a revision not there yet."""
        low, high = max(prefix, f"{after}\0" if after else ""), prefix_end(prefix)
        present = self._state.present
        if at in (0, self._state.revision):
            keys = list(islice(self._keys.range(low, high), limit or None))
            remaining = self._keys.count(low, high) - len(keys)
            return Page([present[key] for key in keys], self._state.revision, remaining > 0, remaining)
        then = self._undone(prefix, at)
        past = sorted(key for key, entry in then.items() if entry is not None and key >= low)
        keys = list(merge_sorted(past, (key for key in self._keys.range(low, high) if key not in then)))
        stop = limit or len(keys)
        entries = [then.get(key) or present[key] for key in keys[:stop]]
        remaining = len(keys) - len(entries)
        return Page(entries, at, remaining > 0, remaining)

    def watch(self, prefix: str, *, after: int) -> Watcher:
        """Yield each write under `prefix` later than `after`; see the protocol. Ends with Unavailable on `close`."""
        settings = self._settings
        watcher = Watcher(prefix, max_events=settings.watcher_events, max_bytes=settings.watcher_bytes)
        if self._closed:
            watcher.fail(self._closed_error())
            return watcher
        try:
            changes = self._state.window.since(after)
        except Expired as error:
            watcher.fail(error)
            return watcher
        watcher.begin(change.event for change in changes if change.event.key.startswith(prefix))
        self._hub.add(prefix, watcher)
        return watcher

    async def revision(self) -> int:
        """Say the last durable revision: every write that was answered is at or before it."""
        return self._state.revision

    def first_since(self, time: float) -> int:
        """The first revision written at cluster time `time` or later, as far as the window knows."""
        return self._state.window.first_since(time)

    def revision_from_end(self, count: int) -> int:
        """The revision that has `count` changes after it in the window, 0 when there are not as many."""
        return self._state.window.revision_from_end(count)

    def sealed(self, revision: int, key: str) -> bytes | None:
        """The value that the Secret `key` got at `revision`, sealed as on disk; None when that is neither in the
        window nor the present."""
        change = self._state.window.find(revision, key)
        if change is not None:
            return change.sealed
        entry = self._state.present.get(key)
        if entry is None or entry.version != revision or not key.startswith(SECRETS):
            return None
        return self._sealer.seal(key, entry.created, entry.value)

    def unseal(self, key: str, sealed: bytes) -> bytes | None:
        """Read a sealed value; None when its secret has been deleted, and the data key with it."""
        return self._sealer.unseal(key, sealed)

    def _undone(self, prefix: str, at: int) -> dict[str, Entry | None]:
        """What the keys under `prefix` that were written after revision `at` were at that revision."""
        if at > self._state.revision:
            raise Invalid(f"revision {at} is not there yet: the last is {self._state.revision}")
        if at < self._floor:
            raise Expired(f"revision {at} has been compacted away; the oldest kept is {self._floor}: list without it")
        then: dict[str, Entry | None] = {}
        for change in self._state.window.since(at):
            if change.event.key.startswith(prefix):
                then.setdefault(change.event.key, change.before)
        return then

    # ---- writing

    async def put(self, key: str, value: bytes, *, expect: int, note: Note) -> int:
        """Write if the key is at version `expect`, else raise Conflict; return the new revision."""
        return await self.txn((Write(key, value, expect),), note=note)

    async def delete(self, key: str, *, expect: int, note: Note) -> int:
        """Delete if the key is at version `expect`, else raise Conflict; NotFound when it is absent, as expected."""
        return await self.txn((Write(key, None, expect),), note=note)

    async def txn(self, writes: Sequence[Write], *, note: Note) -> int:
        """Do all the writes in one revision, or none; see the protocol.

        Raises TooManyRequests when too much waits for the disk, Broken when the disk did not take it, Unavailable while
        it takes nothing. A caller that is cancelled does not know whether the write happens.
        """
        self._check(writes)
        note = Note(note.time, _text(note.actor), _text(note.operation))
        if self._closed:
            raise self._closed_error()
        await self._committer.heal()
        return await self._enqueue(writes, note)

    def _check(self, writes: Sequence[Write]) -> None:
        if not 0 < len(writes) <= PLACES:
            raise Invalid(f"a transaction of {len(writes)} writes: from 1 to {PLACES} are possible")
        if len({write.key for write in writes}) != len(writes):
            raise Invalid("a transaction writes a key twice")
        for write in writes:
            if not write.key or "\0" in write.key or _text(write.key) != write.key:
                raise Invalid(f"key {write.key!r}: keys are text, not empty, without NUL")
            if write.value is not None and len(write.value) > self._settings.value_bytes:
                raise TooLarge(
                    f"{write.key}: {len(write.value)} bytes, and at most {self._settings.value_bytes} are taken"
                )

    def _enqueue(self, writes: Sequence[Write], note: Note) -> asyncio.Future[int]:
        """Compare, and line up for the disk. No await: the order of calls is the order of revisions."""
        if self._closed:
            raise self._closed_error()
        self._committer.room()
        revision = self._next
        entries = [self._compare(write, revision) for write in writes]
        for key, _, after in entries:
            self._pending[key] = (revision, after)
        self._next += 1
        size_bytes = sum(len(write.key) + len(write.value or b"") for write in writes)
        done: asyncio.Future[int] = self._loop.create_future()
        self._committer.submit(Transaction(revision, entries, note, size_bytes, done))
        return done

    def _compare(self, write: Write, revision: int) -> tuple[str, Entry | None, Entry | None]:
        pending = self._pending.get(write.key)
        before = pending[1] if pending is not None else self._state.present.get(write.key)
        version = before.version if before is not None else 0
        if version != write.expect:
            seen = f"at version {version}" if version else "absent"
            wanted = f"version {write.expect}" if write.expect else "it to be absent"
            raise Conflict(f"{write.key}: it is {seen}, and the write expects {wanted}: read it again")
        if write.value is None:
            if before is None:
                raise NotFound(f"{write.key}: it does not exist")
            return write.key, before, None
        return write.key, before, Entry(write.key, write.value, revision, before.created if before else revision)

    def _show(self, batch: Sequence[Transaction]) -> None:
        """Let readers see what is durable now."""
        self._publish([change for item in batch for change in self._apply(item)])
        if self._committer.head.size_bytes >= self._roll_at_bytes and self._rolling is None and not self._closed:
            self._rolling = self._loop.create_task(self._roll_in_background(), name="store: roll over")

    def _apply(self, item: Transaction) -> Iterable[Change]:
        state = self._state
        state.revision = item.revision
        for key, before, after in item.entries:
            if after is None:
                del state.present[key]
                self._keys.remove(key)
            else:
                state.present[key] = after
                if before is None:
                    self._keys.add(key)
            if self._pending[key][0] == item.revision:
                del self._pending[key]
            event = Event(
                item.revision, key, after.value if after else None, before.value if before else None, item.note
            )
            change = Change(event, before, item.sealed.get(key))
            state.window.append(change)
            yield change

    def _publish(self, changes: Sequence[Change]) -> None:
        self._state.window.bound()
        self._hub.publish([change.event for change in changes])

    def _forget_pending(self) -> None:
        self._pending.clear()
        self._next = self._state.revision + 1

    def _replay(self, rows: Sequence[Row]) -> None:
        """Take in writes that were answered with an error and are on the disk nevertheless."""
        changes: list[Change] = []
        for row in rows:
            change = self._state.apply(row, self._sealer)
            if change is None:
                continue
            changes.append(change)
            if change.event.value is None:
                self._keys.remove(row.key)
            elif change.before is None:
                self._keys.add(row.key)
        self._publish(changes)
        self._next = self._state.revision + 1

    # ---- files: roll over, compact, fork

    async def _roll_in_background(self) -> None:
        try:
            while self._committer.head.size_bytes >= self._roll_at_bytes and not self._closed:
                async with self._files:
                    await self._roll()
                self._roll_at_bytes = self._settings.roll_bytes
        except (OSError, sqlite3.Error) as error:
            self._roll_at_bytes = self._committer.head.size_bytes + self._settings.roll_bytes  # goes on in the old one
            log.warning("store %s: no new log could be begun: %s", self.root, error)
        finally:
            self._rolling = None

    async def _roll(self) -> None:
        """Begin a new head and seal the old one. The caller holds `_files`."""
        old = await self._committer.between(self._committer.switch)
        if old is not None:
            await self._help(old.seal)

    async def compact(self, before: int) -> None:
        """Forget history earlier than revision `before`; at most all but the present.

        Memory is let go in slices between other work; files are merged by a thread of its own and then unlinked.
        """
        before = min(before, self._state.revision)
        if before > self._floor:
            self._floor = self._committer.floor = (
                before  # on disk with the next write; until then a restart merely knows more
            )
            while self._state.window.trim(before - 1, _TRIM_SLICE):
                await machine.sleep(0)
        async with self._files:
            if self._closed:
                raise self._closed_error()
            settings = self._settings
            plan = plan_merge(
                self._directory.snapshots(),
                self._directory.logs(),
                floor=self._floor,
                least_bytes=settings.roll_bytes,
                ratio=settings.merge_ratio,
            )
            if plan is None:
                return
            try:
                await self._help(
                    merge,
                    self._directory,
                    plan,
                    slice_rows=settings.slice_rows,
                    breathe=self._breathe,
                )
            except (OSError, sqlite3.Error) as error:
                raise Broken(f"store {self.root}: compaction up to revision {before}: {error}") from error

    def _breathe(self) -> None:
        """In the helper thread, between two slices."""
        if self._closed:
            raise self._closed_error()
        machine.pause(0.0005)

    async def fork(self, at: int, root: Path, *, keys: bool = False) -> None:
        """Make a new store in `root` as of revision `at` (0: now); see the protocol.

        Its Secrets come along only with `keys`; without, they are absent there. Takes the time of a few links.
        Raises Expired, Invalid (a revision not there yet), AlreadyExists (`root` is not empty), Broken.
        """
        async with self._files:
            if self._closed:
                raise self._closed_error()
            at = at or self._state.revision
            if at > self._state.revision:
                raise Invalid(f"fork at revision {at}: it is not there yet; the last is {self._state.revision}")
            if at < self._floor:
                raise Expired(f"fork at revision {at}: compacted away; the oldest kept is {self._floor}")
            try:
                if at >= self._committer.head.first:
                    await self._roll()
                sealer = self._sealer if keys else None
                await self._help(fork, self._directory, at, self._floor, root, sealer)
            except (OSError, sqlite3.Error) as error:
                raise Broken(f"fork of {self.root} into {root}: {error}") from error

    async def close(self) -> None:
        """Finish what is queued, end the watches, let go of the files and the lock."""
        if self._closed:
            return
        await self._committer.drained()
        self._closed = True
        self._hub.end(self._closed_error())
        if self._rolling is not None:
            await self._rolling
        async with self._files:
            try:
                await self._committer.close()
            finally:
                self._lock.release()
                self._helper.shutdown(wait=False)

    def _closed_error(self) -> Unavailable:
        return Unavailable(f"store {self.root}: it is closed")

    async def _help(self, function: Callable[..., T], *args: object, **named: object) -> T:
        """Run in the helper thread: never the writer's."""
        return await self._loop.run_in_executor(self._helper, lambda: function(*args, **named))


def _text(text: str) -> str:
    """Text that UTF-8 can hold (a header may bring lone surrogates)."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()
