"""What holds for every store: a backend's tests inherit `StoreContract` and give it a fixture `store`.

A backend whose window is elsewhere (etcd) needs no more than the protocol; `root` is where forks may go, and `reopen`
opens a fork's directory.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import pytest

from wherry.clock import machine
from wherry.errors import Conflict, Expired, Invalid, NotFound
from wherry.store.protocol import Event, Note, Page, Store, Write

NOTE = Note(time=1_767_225_600.0, actor="system:test", operation="PUT test")
Reopen = Callable[[Path], Awaitable[Store]]


def keys(page: Page) -> list[str]:
    return [entry.key for entry in page.entries]


async def collect(store: Store, prefix: str, after: int, count: int) -> list[Event]:
    """The first `count` events of a watch."""
    seen: list[Event] = []
    async with machine.timeout(10):
        async for batch in store.watch(prefix, after=after):
            seen.extend(batch)
            if len(seen) >= count:
                break
    return seen


def told(events: Sequence[Event]) -> list[tuple[int, str, bytes | None, bytes | None]]:
    return [(event.revision, event.key, event.value, event.previous) for event in events]


class StoreContract:
    async def test_an_empty_store_is_at_revision_0(self, store: Store) -> None:
        assert await store.revision() == 0
        assert await store.get("/pods/a") is None
        assert await store.list("") == Page([], 0, False, 0)

    async def test_a_write_can_be_read_with_its_versions(self, store: Store) -> None:
        first = await store.put("/pods/a", b"1", expect=0, note=NOTE)
        second = await store.put("/pods/a", b"2", expect=first, note=NOTE)
        entry = await store.get("/pods/a")
        assert entry is not None
        assert (entry.key, entry.value, entry.version, entry.created) == ("/pods/a", b"2", second, first)
        assert (first, second) == (1, 2)
        assert await store.revision() == second

    async def test_of_two_writers_from_one_version_one_wins(self, store: Store) -> None:
        read = await store.put("/pods/a", b"1", expect=0, note=NOTE)
        outcomes = await asyncio.gather(
            store.put("/pods/a", b"2", expect=read, note=NOTE),
            store.put("/pods/a", b"3", expect=read, note=NOTE),
            return_exceptions=True,
        )
        assert {type(outcome) for outcome in outcomes} == {int, Conflict}

    async def test_a_conflict_names_the_key_and_what_was_seen(self, store: Store) -> None:
        await store.put("/pods/a", b"1", expect=0, note=NOTE)
        with pytest.raises(Conflict, match=r"/pods/a.*version 1.*absent"):
            await store.put("/pods/a", b"2", expect=0, note=NOTE)
        with pytest.raises(Conflict, match=r"/pods/b.*absent.*version 7"):
            await store.put("/pods/b", b"2", expect=7, note=NOTE)
        with pytest.raises(Conflict, match="/pods/b"):
            await store.delete("/pods/b", expect=7, note=NOTE)
        with pytest.raises(NotFound, match="/pods/b"):
            await store.delete("/pods/b", expect=0, note=NOTE)
        assert await store.revision() == 1

    async def test_a_deleted_key_is_gone_and_begins_anew(self, store: Store) -> None:
        version = await store.put("/pods/a", b"1", expect=0, note=NOTE)
        assert await store.delete("/pods/a", expect=version, note=NOTE) == 2
        assert await store.get("/pods/a") is None
        await store.put("/pods/a", b"2", expect=0, note=NOTE)
        entry = await store.get("/pods/a")
        assert entry is not None
        assert (entry.version, entry.created) == (3, 3)

    async def test_a_list_is_in_key_order_and_in_pages(self, store: Store) -> None:
        names = ["/pods/b/2", "/pods/a/1", "/pods/a/3", "/pods-x/a", "/pods/a/2", "/nodes/n", "/pods/a-b/1"]
        for name in names:
            await store.put(name, name.encode(), expect=0, note=NOTE)
        everything = await store.list("/pods/")
        assert keys(everything) == ["/pods/a-b/1", "/pods/a/1", "/pods/a/2", "/pods/a/3", "/pods/b/2"]
        assert (everything.more, everything.remaining, everything.revision) == (False, 0, 7)
        assert keys(await store.list("/pods/a/")) == ["/pods/a/1", "/pods/a/2", "/pods/a/3"]
        assert keys(await store.list("")) == sorted(names)
        page = await store.list("/pods/", limit=2)
        assert (keys(page), page.more, page.remaining) == (["/pods/a-b/1", "/pods/a/1"], True, 3)
        page = await store.list("/pods/", after="/pods/a/1", limit=3)
        assert (keys(page), page.more, page.remaining) == (["/pods/a/2", "/pods/a/3", "/pods/b/2"], False, 0)
        assert keys(await store.list("/pods/", after="/pods/zzz")) == []

    async def test_a_list_at_a_revision_is_as_it_was_page_by_page(self, store: Store) -> None:
        for name in "abcd":
            await store.put(f"/pods/{name}", b"old", expect=0, note=NOTE)
        await store.put("/pods/a", b"new", expect=1, note=NOTE)
        await store.delete("/pods/b", expect=2, note=NOTE)
        await store.put("/pods/bb", b"new", expect=0, note=NOTE)
        then = await store.list("/pods/", at=4)
        assert [(e.key, e.value, e.version) for e in then.entries] == [
            ("/pods/a", b"old", 1),
            ("/pods/b", b"old", 2),
            ("/pods/c", b"old", 3),
            ("/pods/d", b"old", 4),
        ]
        assert then.revision == 4
        page = await store.list("/pods/", after="/pods/a", limit=2, at=4)
        assert (keys(page), page.more, page.remaining) == (["/pods/b", "/pods/c"], True, 1)
        assert keys(await store.list("/pods/", at=2)) == ["/pods/a", "/pods/b"]
        with pytest.raises(Invalid, match="revision 99"):
            await store.list("/pods/", at=99)

    async def test_a_transaction_is_one_revision_or_nothing(self, store: Store) -> None:
        await store.put("/pods/a", b"1", expect=0, note=NOTE)
        writes = (Write("/pods/a", None, 1), Write("/pods/b", b"2", 0), Write("/pods/c", b"3", 0))
        assert await store.txn(writes, note=NOTE) == 2
        assert keys(await store.list("/pods/")) == ["/pods/b", "/pods/c"]
        with pytest.raises(Conflict, match="/pods/c"):
            await store.txn((Write("/pods/d", b"4", 0), Write("/pods/c", b"5", 1)), note=NOTE)
        assert await store.get("/pods/d") is None
        assert await store.revision() == 2
        with pytest.raises(Invalid, match="twice"):
            await store.txn((Write("/pods/d", b"4", 0), Write("/pods/d", b"5", 0)), note=NOTE)
        with pytest.raises(Invalid, match="0 writes"):
            await store.txn((), note=NOTE)

    async def test_writes_of_one_key_may_be_queued_behind_each_other(self, store: Store) -> None:
        revisions = await asyncio.gather(
            store.put("/pods/a", b"1", expect=0, note=NOTE),
            store.put("/pods/a", b"2", expect=1, note=NOTE),
            store.delete("/pods/a", expect=2, note=NOTE),
            store.put("/pods/a", b"3", expect=0, note=NOTE),
        )
        assert revisions == [1, 2, 3, 4]
        entry = await store.get("/pods/a")
        assert entry is not None
        assert (entry.value, entry.created) == (b"3", 4)

    async def test_a_key_must_be_text_and_a_note_may_be_any(self, store: Store) -> None:
        for key in ("", "/pods/\ud800", "/pods/a\0b"):
            with pytest.raises(Invalid, match="key"):
                await store.put(key, b"", expect=0, note=NOTE)
        await store.put("/pods/ü", b"", expect=0, note=Note(1.0, "\ud800", "ö"))
        assert keys(await store.list("/pods/")) == ["/pods/ü"]

    async def test_a_watch_tells_the_past_and_then_the_present_once_and_in_order(self, store: Store) -> None:
        await store.put("/pods/a", b"1", expect=0, note=NOTE)
        await store.put("/nodes/n", b"n", expect=0, note=NOTE)
        await store.put("/pods/a", b"2", expect=1, note=NOTE)
        watching = asyncio.create_task(collect(store, "/pods/", 1, 3))
        await machine.sleep(0)
        await store.put("/pods/b", b"3", expect=0, note=NOTE)
        await store.delete("/pods/a", expect=3, note=NOTE)
        assert told(await watching) == [
            (3, "/pods/a", b"2", b"1"),
            (4, "/pods/b", b"3", None),
            (5, "/pods/a", None, b"2"),
        ]
        assert [event.note for event in await collect(store, "/nodes/", 0, 1)] == [NOTE]

    async def test_a_revision_comes_in_one_batch(self, store: Store) -> None:
        await store.txn([Write(f"/pods/{i}", b"x", 0) for i in range(1500)], note=NOTE)
        await store.txn([Write(f"/pods/{i}", b"y", 1) for i in range(1500)], note=NOTE)
        async with machine.timeout(10):
            watch = store.watch("/pods/", after=0)
            first, second = await anext(watch), await anext(watch)
        assert {event.revision for event in first} == {1}
        assert len(first) == 1500
        assert {event.revision for event in second} == {2}

    async def test_every_watcher_hears_of_writes_under_load(self, store: Store) -> None:
        async def write(name: str) -> None:
            version = 0
            for i in range(20):
                version = await store.put(name, str(i).encode(), expect=version, note=NOTE)

        watchers = [asyncio.create_task(collect(store, prefix, 0, 100)) for prefix in ("", "/pods/", "/pods/")]
        await asyncio.gather(*(write(f"/pods/{i}") for i in range(5)))
        for watcher in watchers:
            events = await watcher
            assert [event.revision for event in events] == list(range(1, 101))
            for i in range(5):
                of_one = [event for event in events if event.key == f"/pods/{i}"]
                assert [event.value for event in of_one] == [str(n).encode() for n in range(20)]
                assert [event.previous for event in of_one] == [None, *(str(n).encode() for n in range(19))]

    async def test_a_write_is_seen_by_readers_when_it_is_answered(self, store: Store) -> None:
        async def write(i: int) -> None:
            revision = await store.put(f"/pods/{i}", b"x", expect=0, note=NOTE)
            assert await store.revision() >= revision
            entry = await store.get(f"/pods/{i}")
            assert entry is not None
            assert entry.version == revision

        await asyncio.gather(*(write(i) for i in range(50)))

    async def test_compaction_forgets_the_past_and_keeps_the_present(self, store: Store) -> None:
        version = 0
        for i in range(10):
            version = await store.put("/pods/a", str(i).encode(), expect=version, note=NOTE)
        await store.put("/pods/b", b"kept", expect=0, note=NOTE)
        await store.compact(5)
        assert keys(await store.list("/pods/")) == ["/pods/a", "/pods/b"]
        at_five = await store.list("/pods/", at=5)
        assert [entry.value for entry in at_five.entries] == [b"4"]
        with pytest.raises(Expired, match="revision 4"):
            await store.list("/pods/", at=4)
        with pytest.raises(Expired, match="revision 3"):
            await anext(store.watch("/pods/", after=3))
        assert [event.revision for event in await collect(store, "/pods/", 4, 7)] == list(range(5, 12))
        await store.compact(2)  # already gone further: nothing to do
        await store.compact(10_000)  # no further than the present
        assert keys(await store.list("/pods/")) == ["/pods/a", "/pods/b"]

    async def test_a_fork_is_a_world_of_its_own(self, store: Store, root: Path, reopen: Reopen) -> None:
        await store.put("/pods/a", b"1", expect=0, note=NOTE)
        await store.put("/pods/b", b"1", expect=0, note=NOTE)
        await store.put("/pods/a", b"2", expect=1, note=NOTE)
        await store.delete("/pods/b", expect=2, note=NOTE)
        await store.fork(0, root / "now")
        await store.fork(2, root / "then")
        await store.put("/pods/a", b"main", expect=3, note=NOTE)
        then, now = await reopen(root / "then"), await reopen(root / "now")
        assert [(e.key, e.value) for e in (await then.list("")).entries] == [("/pods/a", b"1"), ("/pods/b", b"1")]
        assert [(e.key, e.value) for e in (await now.list("")).entries] == [("/pods/a", b"2")]
        assert (await then.revision(), await now.revision()) == (2, 4)
        assert await then.put("/pods/a", b"fork", expect=1, note=NOTE) == 3
        assert [(e.revision, e.value) for e in await collect(then, "/pods/a", 0, 2)] == [(1, b"1"), (3, b"fork")]
        here = await store.get("/pods/a")
        assert here is not None
        assert here.value == b"main"
        with pytest.raises(Invalid, match="revision 99"):
            await store.fork(99, root / "later")

    async def test_forks_of_forks_and_of_compacted_stores(self, store: Store, root: Path, reopen: Reopen) -> None:
        version = 0
        for i in range(20):
            version = await store.put("/pods/a", str(i).encode(), expect=version, note=NOTE)
        await store.compact(10)
        with pytest.raises(Expired, match="revision 9"):
            await store.fork(9, root / "lost")
        await store.fork(10, root / "one")
        one = await reopen(root / "one")
        assert [e.value for e in (await one.list("")).entries] == [b"9"]
        await one.put("/pods/a", b"one", expect=10, note=NOTE)
        await one.fork(0, root / "two")
        await one.fork(10, root / "three")
        for name, value, revision in (("two", b"one", 11), ("three", b"9", 10)):
            forked = await reopen(root / name)
            assert [e.value for e in (await forked.list("")).entries] == [value]
            assert await forked.revision() == revision
