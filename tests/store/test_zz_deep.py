"""Whatever is done to a store, in whatever order, it is as a dict with a list of writes would be."""

import asyncio
import shutil
import tempfile
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from tests.store.contract import NOTE, collect

from wherry.clock import VirtualClock
from wherry.errors import Conflict, Expired
from wherry.store.protocol import Write
from wherry.store.settings import Settings
from wherry.store.sqlite import SqliteStore

T = TypeVar("T")
KEYS = st.sampled_from(["/a/x", "/a/y", "/a/y/z", "/ab/x", "/b/x", "/core/secrets/ns/s"])
VALUES = st.binary(max_size=40)
TINY = Settings(roll_bytes=400, merge_ratio=0.3, slice_rows=3, batch_writes=3)

State = dict[str, tuple[bytes, int, int]]  # value, version, created


class StoreMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.directory = Path(tempfile.mkdtemp(prefix="store-model-"))
        self.forks = 0
        self.store = self.run(self.open(self.directory / "main"))
        self.states: list[State] = [{}]  # by revision
        self.floor = 0
        self.blind = 0  # the last revision that a reopened store cannot show: a secret that was deleted since

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(work)

    async def open(self, root: Path) -> SqliteStore:
        return await SqliteStore.open(root, clock=VirtualClock(), durability="test", settings=TINY)

    def teardown(self) -> None:
        self.run(self.store.close())
        self.run(self.loop.shutdown_default_executor())
        self.loop.close()
        shutil.rmtree(self.directory)

    def wrote(self, changes: dict[str, bytes | None]) -> int:
        revision, state = len(self.states), dict(self.states[-1])
        for key, value in changes.items():
            before = state.pop(key, None)
            if value is not None:
                state[key] = (value, revision, before[2] if before else revision)
        self.states.append(state)
        return revision

    def version(self, key: str) -> int:
        return self.states[-1].get(key, (b"", 0, 0))[1]

    @rule(key=KEYS, value=VALUES)
    def put(self, key: str, value: bytes) -> None:
        found = self.run(self.store.put(key, value, expect=self.version(key), note=NOTE))
        assert found == self.wrote({key: value})

    @rule(key=KEYS, value=VALUES, off=st.integers(1, 3))
    def put_from_the_wrong_version(self, key: str, value: bytes, off: int) -> None:
        with pytest.raises(Conflict):
            self.run(self.store.put(key, value, expect=self.version(key) + off, note=NOTE))

    @rule(key=KEYS)
    def delete(self, key: str) -> None:
        if self.version(key):
            found = self.run(self.store.delete(key, expect=self.version(key), note=NOTE))
            assert found == self.wrote({key: None})

    @rule(changes=st.dictionaries(KEYS, st.none() | VALUES, min_size=1, max_size=4))
    def transaction(self, changes: dict[str, bytes | None]) -> None:
        changes = {key: value for key, value in changes.items() if value is not None or self.version(key)}
        if changes:
            writes = [Write(key, value, self.version(key)) for key, value in changes.items()]
            assert self.run(self.store.txn(writes, note=NOTE)) == self.wrote(changes)

    @rule(changes=st.lists(st.tuples(KEYS, VALUES), min_size=2, max_size=12))
    def many_at_once(self, changes: list[tuple[str, bytes]]) -> None:
        async def write() -> list[int]:
            tasks: list[asyncio.Future[int]] = []
            for key, value in changes:
                put = self.store.put(key, value, expect=self.version(key), note=NOTE)
                self.wrote({key: value})
                tasks.append(asyncio.ensure_future(put))
            return await asyncio.gather(*tasks)

        first = len(self.states)
        assert self.run(write()) == list(range(first, first + len(changes)))

    @rule(back=st.integers(0, 10))
    def compact(self, back: int) -> None:
        before = max(0, len(self.states) - 1 - back)
        self.run(self.store.compact(before))
        self.floor = max(self.floor, before)
        assert len(list((self.directory / "main").glob("snapshot-*.db"))) <= 1

    @rule()
    def reopen(self) -> None:
        self.run(self.store.close())
        self.store = self.run(self.open(self.directory / "main"))
        self.note_blindness()

    def note_blindness(self) -> None:
        """The keys of deleted secrets are dropped: a reopened store begins its window after the deletion."""
        for revision in range(1, len(self.states)):
            name = "/core/secrets/ns/s"
            if name in self.states[revision - 1] and name not in self.states[revision]:
                self.blind = revision

    @rule(back=st.integers(0, 10), keys=st.booleans())
    def fork_and_go_on_there_sometimes(self, back: int, keys: bool) -> None:
        at = min(max(self.floor, 1, len(self.states) - 1 - back), len(self.states) - 1)
        self.forks += 1
        root = self.directory / f"fork-{self.forks}"
        self.run(self.store.fork(at, root, keys=keys))
        other = self.run(self.open(root))
        try:
            wanted = {key: entry for key, entry in self.states[at].items() if keys or "/secrets/" not in key}
            lost = "/core/secrets/ns/s"  # its key may have been dropped since
            found = {e.key: (e.value, e.version, e.created) for e in self.run(other.list("")).entries}
            if lost in wanted and (lost not in self.states[-1] or self.states[-1][lost][2] != wanted[lost][2]):
                del wanted[lost]
            assert found == wanted
            assert self.run(other.revision()) == at
            if "/a/x" in wanted or self.forks % 2:
                version = wanted.get("/a/x", (b"", 0, 0))[1]
                assert self.run(other.put("/a/x", b"fork", expect=version, note=NOTE)) == at + 1
        finally:
            self.run(other.close())

    @invariant()
    def the_present_is_right(self) -> None:
        page = self.run(self.store.list(""))
        assert {e.key: (e.value, e.version, e.created) for e in page.entries} == self.states[-1]
        assert [entry.key for entry in page.entries] == sorted(self.states[-1])
        assert page.revision == len(self.states) - 1

    @rule(back=st.integers(0, 12), prefix=st.sampled_from(["", "/a/", "/a", "/b/", "/core/"]), limit=st.integers(0, 3))
    def read_the_past(self, back: int, prefix: str, limit: int) -> None:
        at = max(1, len(self.states) - 1 - back)
        if at >= len(self.states):
            return
        wanted = sorted((key, *entry) for key, entry in self.states[at].items() if key.startswith(prefix))
        try:
            page = self.run(self.store.list(prefix, at=at, limit=limit))
        except Expired:
            assert at < max(self.floor, self.blind, self.store.floor)
            assert self.store.floor <= max(self.floor, self.blind)
            return
        assert [(e.key, e.value, e.version, e.created) for e in page.entries] == wanted[: limit or None]
        assert page.remaining == len(wanted) - len(page.entries)

    @rule(back=st.integers(0, 12), prefix=st.sampled_from(["", "/a/", "/b/"]))
    def watch_the_past(self, back: int, prefix: str) -> None:
        after = max(0, len(self.states) - 1 - back)
        wanted = [
            (revision, key, new.get(key, (None,))[0], old.get(key, (None,))[0])
            for revision in range(after + 1, len(self.states))
            for new, old in [(self.states[revision], self.states[revision - 1])]
            for key in sorted(new.keys() | old.keys())
            if new.get(key) != old.get(key) and key.startswith(prefix)
        ]
        if not wanted:
            return
        try:
            events = self.run(collect(self.store, prefix, after, len(wanted)))
        except Expired:
            assert after < max(self.floor, self.blind)
            return
        assert sorted((e.revision, e.key, e.value, e.previous) for e in events) == sorted(wanted)
        assert [e.revision for e in events] == sorted(e.revision for e in events)


StoreMachine.TestCase.settings = settings(
    max_examples=400, stateful_step_count=50, deadline=None, suppress_health_check=list(HealthCheck)
)
TestStore = StoreMachine.TestCase
