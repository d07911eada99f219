"""Watchers that fall behind, a window with bounds, and the policy that keeps it short."""

import asyncio
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.store.conftest import Open
from tests.store.contract import NOTE, collect

from wherry.clock import VirtualClock, machine
from wherry.errors import Expired
from wherry.store.compaction import Keep, horizon, keep_compacted
from wherry.store.index import SortedKeys, prefix_end
from wherry.store.protocol import Note
from wherry.store.sqlite import SqliteStore


async def write(store: SqliteStore, count: int, value: bytes = b"", prefix: str = "/pods/") -> None:
    for i in range(count):
        await store.put(f"{prefix}{i}", value, expect=0, note=NOTE)


async def test_a_watcher_that_falls_behind_is_cut_off_and_the_others_are_not(tmp_path: Path, reopen: Open) -> None:
    store = await reopen(tmp_path / "store", watcher_events=10)
    slow, quick = store.watch("/pods/", after=0), asyncio.create_task(collect(store, "/pods/", 0, 30))
    await machine.sleep(0)
    await write(store, 30)
    assert len(await quick) == 30
    with pytest.raises(Expired, match=r"/pods/ fell 1. events .* behind"):
        await anext(slow)
    # as it is told, it lists and watches again
    page = await store.list("/pods/")
    again = store.watch("/pods/", after=page.revision)
    await store.put("/pods/x", b"", expect=0, note=NOTE)
    assert [event.key for event in await anext(again)] == ["/pods/x"]


async def test_a_watcher_is_bounded_by_bytes_too(tmp_path: Path, reopen: Open) -> None:
    store = await reopen(tmp_path / "store", watcher_bytes=10_000)
    slow = store.watch("/pods/", after=0)
    await write(store, 20, b"x" * 1000)
    with pytest.raises(Expired, match="bytes"):
        await anext(slow)


async def test_a_watch_that_is_dropped_or_closed_costs_nothing(store: SqliteStore) -> None:
    hub = store._hub  # pyright: ignore[reportPrivateUsage]
    watch = store.watch("/pods/", after=0)
    other = store.watch("/nodes/", after=0)
    await write(store, 1)
    await watch.aclose()
    with pytest.raises(StopAsyncIteration):
        await anext(watch)
    del other
    await write(store, 1, prefix="/nodes/")
    await write(store, 1, prefix="/x/")
    assert "/nodes/" not in hub._watchers  # pyright: ignore[reportPrivateUsage]


async def test_a_cancelled_reader_can_go_on_where_it_was(store: SqliteStore) -> None:
    watch = store.watch("/pods/", after=0)
    with pytest.raises(TimeoutError):
        async with machine.timeout(0.01):
            await anext(watch)
    await write(store, 1)
    assert [event.revision for event in await anext(watch)] == [1]


@pytest.mark.parametrize("bound", [{"window_events": 10}, {"window_bytes": 10 * 500}])
async def test_the_window_has_bounds_of_its_own(tmp_path: Path, reopen: Open, bound: dict[str, int]) -> None:
    store = await reopen(tmp_path / "store", **bound)
    await write(store, 50, b"x" * 90)
    assert 8 <= store.window_events <= 10
    with pytest.raises(Expired, match="revision 5"):
        await anext(store.watch("", after=5))
    assert (await collect(store, "", store.floor, 5))[0].revision == store.floor + 1
    assert (await store.list("", at=store.floor)).revision == store.floor
    await store.close()
    again = await reopen(store.root, **bound)
    assert again.floor == store.floor


async def test_the_policy_keeps_what_is_young_but_not_more_than_it_says(store: SqliteStore) -> None:
    clock = store.clock
    assert isinstance(clock, VirtualClock)
    for i in range(60):
        await store.put(f"/pods/{i}", b"", expect=0, note=Note(clock.now(), "a", "o"))
        await clock.advance(10)
    assert horizon(store, Keep(age_s=300)) == 31
    assert horizon(store, Keep(age_s=300, most=20)) == 41
    assert horizon(store, Keep(age_s=300), read_until=12) == 13
    assert horizon(store, Keep(age_s=300, most=20), read_until=12) == 41
    assert horizon(store, Keep(age_s=5)) == 61
    task = asyncio.create_task(keep_compacted(store, Keep(age_s=300, every_s=60)))
    await machine.sleep(0)
    await clock.advance(61)
    async with machine.timeout(10):
        while store.floor < 36:
            await machine.sleep(0.001)
    assert len((await store.list("/pods/")).entries) == 60
    await store.close()
    await clock.advance(61)
    async with machine.timeout(10):
        await task


@given(st.lists(st.tuples(st.booleans(), st.text("ab/", max_size=4)), max_size=60), st.text("ab/", max_size=3))
def test_sorted_keys_are_a_sorted_set(moves: list[tuple[bool, str]], prefix: str) -> None:
    model, keys = set[str](), SortedKeys()
    for add, key in moves:
        if add and key not in model:
            model.add(key)
            keys.add(key)
        elif not add and key in model:
            model.remove(key)
            keys.remove(key)
    wanted = sorted(key for key in model if key.startswith(prefix))
    assert list(keys.range(prefix, prefix_end(prefix))) == wanted
    assert keys.count(prefix, prefix_end(prefix)) == len(wanted)


def test_sorted_keys_split_and_shrink() -> None:
    keys = SortedKeys(f"/{i:05}" for i in range(0, 10_000, 2))
    for i in range(1, 10_000, 2):
        keys.add(f"/{i:05}")
    assert list(keys.range("", "")) == [f"/{i:05}" for i in range(10_000)]
    assert keys.count("/02000", "/07000") == 5000
    assert list(keys.range("/02000", "/02003")) == ["/02000", "/02001", "/02002"]
    for i in range(10_000):
        keys.remove(f"/{i:05}")
    assert list(keys.range("", "")) == []
    assert keys.count("", "") == 0
