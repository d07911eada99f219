"""What lies on the disk: torn tails, damage, locks, rolled logs, forks that cost nothing, a disk that is full."""

import asyncio
import os
import random
import resource
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from tests.store.conftest import Open
from tests.store.contract import NOTE, collect

from wherry.clock import VirtualClock, machine
from wherry.errors import AlreadyExists, Broken, Damaged, Unavailable, WherryError
from wherry.store import snapshot
from wherry.store.protocol import Write
from wherry.store.settings import Settings
from wherry.store.sqlite import SqliteStore


async def fill(store: SqliteStore, count: int, size_bytes: int = 100, prefix: str = "/pods/") -> None:
    await asyncio.gather(
        *(store.put(f"{prefix}{i:05}", b"%05d" % i + b"x" * size_bytes, expect=0, note=NOTE) for i in range(count))
    )


def files(root: Path, pattern: str) -> list[str]:
    return sorted(path.name for path in root.glob(pattern))


def disk_bytes(*roots: Path) -> int:
    """What the files below take, each inode once."""
    stats: dict[int, int] = {}
    for path in [path for root in roots for path in root.rglob("*")]:
        with suppress(FileNotFoundError):  # a journal that is gone by now
            stats[path.stat().st_ino] = path.stat().st_blocks * 512
    return sum(stats.values())


async def test_a_second_opener_is_kept_out_and_told_by_whom(store: SqliteStore) -> None:
    with pytest.raises(Unavailable, match=rf"process {os.getpid()} has it open.*--root"):
        await SqliteStore.open(store.root, clock=VirtualClock())
    await store.close()
    again = await SqliteStore.open(store.root, clock=VirtualClock())
    await again.close()


async def test_full_durability_syncs_every_commit(tmp_path: Path) -> None:
    async with await SqliteStore.open(tmp_path / "store", clock=VirtualClock()) as store:
        connection = store._committer.head.connection  # pyright: ignore[reportPrivateUsage]
        assert connection.execute("PRAGMA synchronous").fetchone() == (2,)
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert connection.execute("PRAGMA page_size").fetchone() == (16384,)
        assert (tmp_path / "store").stat().st_mode & 0o077 == 0


async def test_writes_of_one_turn_of_the_loop_share_a_commit(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    commits: list[int] = []
    head = store._committer.head  # pyright: ignore[reportPrivateUsage]
    append = head.append
    monkeypatch.setattr(head, "append", lambda rows, **named: (commits.append(len(rows)), append(rows, **named)))
    await fill(store, 200)
    assert commits == [200]


async def test_readers_see_a_write_only_when_it_is_durable(store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    head = store._committer.head  # pyright: ignore[reportPrivateUsage]
    append, loop, begun, go = head.append, asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()

    def slow(*args: object, **named: object) -> None:
        loop.call_soon_threadsafe(begun.set)
        asyncio.run_coroutine_threadsafe(go.wait(), loop).result(10)
        append(*args, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(head, "append", slow)
    watching = asyncio.create_task(collect(store, "", 0, 1))
    writing = asyncio.create_task(store.put("/pods/a", b"1", expect=0, note=NOTE))
    await begun.wait()
    assert await store.get("/pods/a") is None
    assert (await store.list("")).entries == []
    assert await store.revision() == 0
    assert not watching.done()
    assert not writing.done()
    go.set()
    assert await writing == 1
    assert await store.get("/pods/a") is not None
    assert (await watching)[0].revision == 1


async def test_a_torn_tail_loses_only_what_was_not_whole(tmp_path: Path) -> None:
    """The write-ahead log cut at any byte, or with noise at its end: the state after some whole commit, never less."""
    store = await SqliteStore.open(tmp_path / "store", clock=VirtualClock())
    for i in range(30):  # the sizes differ, so that commits take one page or several
        writes = [Write(f"/pods/{side}", bytes([65 + i]) * (i * 997), i) for side in "ab"]
        await store.txn(writes, note=NOTE)
    whole = tmp_path / "whole"
    shutil.copytree(store.root, whole)
    await store.close()
    (wal,) = whole.glob("*-wal")
    size, dice, seen = wal.stat().st_size, random.Random(1), set[int]()
    for turn in range(25):
        torn = tmp_path / "torn"
        shutil.copytree(whole, torn)
        with (torn / wal.name).open("r+b") as file:
            file.truncate(cut := dice.randrange(size))
            if turn % 2:
                file.seek(cut)
                file.write(dice.randbytes(5000))
        async with await SqliteStore.open(torn, clock=VirtualClock()) as opened:
            a, b = await opened.get("/pods/a"), await opened.get("/pods/b")
            revision = await opened.revision()
            seen.add(revision)
            assert (a.value, a.version) == (b.value, b.version) if a and b else a is b
            if a:
                assert (a.version, a.value) == (revision, bytes([64 + revision]) * ((revision - 1) * 997))
            await opened.put("/pods/c", b"on", expect=0, note=NOTE)
        shutil.rmtree(torn)
    assert len(seen) > 5


async def test_damage_is_told_and_never_served(tmp_path: Path, reopen: Open) -> None:
    store = await reopen(tmp_path / "store", roll_bytes=200_000)
    await fill(store, 1000, 1000)
    while len(files(store.root, "log-*.db")) < 2:
        await machine.sleep(0.01)
    await store.close()
    first = store.root / files(store.root, "log-*.db")[0]
    good = first.read_bytes()
    at = good.index(b"00400xxxx") + 100
    first.write_bytes(good[:at] + b"y" + good[at + 1 :])
    with pytest.raises(Damaged, match=r"log-.*00400.*checksum"):
        await reopen(store.root)
    first.write_bytes(good[: len(good) // 2])
    with pytest.raises(Damaged, match="log-"):
        await reopen(store.root)
    first.write_bytes(b"not a database" * 2000)
    with pytest.raises(Damaged, match="log-"):
        await reopen(store.root)
    first.unlink()
    with pytest.raises(Damaged, match="revisions 1 to"):
        await reopen(store.root)


async def test_a_log_rolls_over_in_the_background(tmp_path: Path, reopen: Open) -> None:
    store = await reopen(tmp_path / "store", roll_bytes=100_000)
    for batch in range(10):
        before = len(files(store.root, "log-*.db"))
        await fill(store, 100, 1000, prefix=f"/pods/{batch}-")
        while len(files(store.root, "log-*.db")) == before:
            await machine.sleep(0.001)
    await store.close()
    assert len(files(store.root, "log-*.db")) == 11
    assert not files(store.root, "*-wal")
    again = await reopen(store.root)
    assert len((await again.list("/pods/")).entries) == 1000
    assert await again.revision() == 1000
    assert again.window_events == 1000


async def test_compaction_unlinks_files_and_a_restart_knows_of_it(tmp_path: Path, reopen: Open) -> None:
    store = await reopen(tmp_path / "store", roll_bytes=100_000)
    version = [0] * 50
    for turn in range(60):
        version = await asyncio.gather(
            *(store.put(f"/pods/{i}", bytes([turn]) * 1000, expect=version[i], note=NOTE) for i in range(50))
        )
    before = disk_bytes(store.root)
    await store.compact(2500)
    assert disk_bytes(store.root) < before / 3
    assert len(files(store.root, "snapshot-*.db")) == 1
    await store.put("/pods/after", b"", expect=0, note=NOTE)
    await store.close()
    again = await reopen(store.root, roll_bytes=100_000)
    assert again.floor <= 2500
    assert len((await again.list("/pods/")).entries) == 51
    # A reader at the floor goes on; one behind it may have to list again: a log may have ended exactly there.
    assert (await collect(again, "", 2500, 1))[0].revision == 2501
    with pytest.raises(WherryError, match="compacted"):
        await again.list("", at=2499)


async def test_writes_go_on_between_any_two_slices_of_a_compaction(
    tmp_path: Path, reopen: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await reopen(tmp_path / "store", roll_bytes=50_000, slice_rows=20)
    await fill(store, 500, 1000)
    while files(store.root, "*-wal") != [f"{files(store.root, 'log-*.db')[-1]}-wal"]:
        await machine.sleep(0.01)
    loop, slices = asyncio.get_running_loop(), list[int]()

    def breathe() -> None:
        """The compaction stands still here, and a write is answered nevertheless."""
        put = store.put(f"/while/{len(slices)}", b"", expect=0, note=NOTE)
        slices.append(asyncio.run_coroutine_threadsafe(put, loop).result(10))

    monkeypatch.setattr(store, "_breathe", breathe)
    await store.fork(0, tmp_path / "roll")  # all 500 into sealed files
    await store.compact(500)
    assert len(slices) >= 2 * 500 // 20
    assert len((await store.list("/while/")).entries) == len(slices)
    assert len(files(store.root, "snapshot-*.db")) == 1


async def test_a_compaction_that_is_cut_short_changes_nothing(
    tmp_path: Path, reopen: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await reopen(tmp_path / "store", roll_bytes=50_000, slice_rows=20)
    await fill(store, 300, 1000)
    await store.fork(0, tmp_path / "roll")
    calls = iter(range(100))

    def breathe() -> None:
        if next(calls) == 17:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(store, "_breathe", breathe)
    with pytest.raises(Broken, match="No space left"):
        await store.compact(300)
    assert files(store.root, "*.tmp*") == []
    assert files(store.root, "snapshot-*") == []
    monkeypatch.setattr(store, "_breathe", lambda: None)
    await store.compact(300)
    assert len(files(store.root, "snapshot-*")) == 1


async def test_a_death_between_merge_and_unlink_leaves_no_harm(
    tmp_path: Path, reopen: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await reopen(tmp_path / "store", roll_bytes=50_000)
    await fill(store, 150, 1000)
    await store.fork(0, tmp_path / "roll")
    await fill(store, 150, 1000, prefix="/more/")
    await store.fork(0, tmp_path / "again")
    with monkeypatch.context() as patched:
        patched.setattr(snapshot.Directory, "remove", lambda *_: None)
        await store.compact(300)
    (store.root / "snapshot-77.tmp").write_bytes(b"half")
    await store.close()
    assert len(files(store.root, "log-*.db")) > 2
    again = await reopen(store.root)
    assert len((await again.list("")).entries) == 300
    assert len(files(store.root, "log-*.db")) == 1
    assert files(store.root, "*.tmp") == []


async def test_a_fork_of_5000_objects_takes_hardly_any_disk(tmp_path: Path, reopen: Open) -> None:
    store = await reopen(tmp_path / "store")
    await fill(store, 5000, 3400)
    before = disk_bytes(store.root)
    assert before > 5000 * 3400
    started = machine.monotonic()
    await store.fork(0, tmp_path / "fork")
    took_s = machine.monotonic() - started
    assert disk_bytes(store.root, tmp_path / "fork") - before < 5_000_000
    assert took_s < 20  # the figure itself is the benchmark's
    forked = await reopen(tmp_path / "fork")
    assert (await forked.list("")).entries == (await store.list("")).entries


async def test_a_fork_goes_only_where_nothing_is(store: SqliteStore, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(AlreadyExists, match="full"):
        await store.fork(0, tmp_path / "full")
    (tmp_path / "empty").mkdir()
    await store.fork(0, tmp_path / "empty")
    with pytest.raises(AlreadyExists, match="empty"):
        await store.fork(0, tmp_path / "empty")
    (tmp_path / "file").touch()
    with pytest.raises(Broken, match="file"):
        await store.fork(0, tmp_path / "file" / "below")
    assert files(tmp_path, ".*fork*") == []


@contextmanager
def files_bounded(size_bytes: int) -> Iterator[None]:
    """Let the kernel refuse to let any file of this process grow beyond a size: to a writer, a full disk."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


async def test_a_full_disk_acknowledges_nothing_and_heals(store: SqliteStore) -> None:
    await fill(store, 20, 1000)
    (wal,) = store.root.glob("*-wal")
    with files_bounded(wal.stat().st_size + 4096):
        outcomes = await asyncio.gather(
            *(store.put(f"/new/{i}", b"x" * 9000, expect=0, note=NOTE) for i in range(50)), return_exceptions=True
        )
        assert {type(outcome) for outcome in outcomes} == {Broken}
        with pytest.raises(Unavailable, match=r"no writes are taken since .*disk"):
            await store.put("/pods/a", b"1", expect=0, note=NOTE)
        assert (await store.list("/new/")).entries == []
        assert await store.revision() == 20
        await machine.sleep(0.3)  # the back-off has passed, and the disk is still full
        with pytest.raises(WherryError, match="disk"):
            await store.put("/new/big", b"x" * 50_000, expect=0, note=NOTE)
    deadline = machine.monotonic() + 20
    while True:
        try:
            revision = await store.put("/pods/healed", b"1", expect=0, note=NOTE)
            break
        except (Unavailable, Broken):
            assert machine.monotonic() < deadline
            await machine.sleep(0.05)
    assert revision == 21
    await store.close()
    async with await SqliteStore.open(store.root, clock=VirtualClock()) as again:
        assert await again.revision() == 21
        assert len((await again.list("")).entries) == 21


async def test_after_a_failed_sync_nothing_is_written_until_a_restart(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        error = sqlite3.OperationalError("disk I/O error")
        error.sqlite_errorcode = sqlite3.SQLITE_IOERR_FSYNC
        raise error

    monkeypatch.setattr(store._committer.head, "append", refuse)  # pyright: ignore[reportPrivateUsage]
    with pytest.raises(Broken, match="disk I/O error"):
        await store.put("/pods/a", b"1", expect=0, note=NOTE)
    await machine.sleep(0.3)
    with pytest.raises(Unavailable, match="restart"):
        await store.put("/pods/a", b"1", expect=0, note=NOTE)


async def test_a_write_that_failed_and_is_there_nevertheless_is_seen_after_healing(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commit's answer was lost: the disk decides, and watchers hear of it."""
    head = store._committer.head  # pyright: ignore[reportPrivateUsage]
    append = head.append

    def half(*args: object, **named: object) -> None:
        append(*args, **named)  # type: ignore[arg-type]
        raise OSError(5, "Input/output error")

    watch = store.watch("/pods/", after=0)
    with monkeypatch.context() as patched:
        patched.setattr(head, "append", half)
        with pytest.raises(Broken):
            await store.put("/pods/a", b"1", expect=0, note=NOTE)
    assert await store.get("/pods/a") is None
    await machine.sleep(0.3)
    assert await store.put("/pods/b", b"2", expect=0, note=NOTE) == 2
    entry = await store.get("/pods/a")
    assert entry is not None
    assert entry.version == 1
    seen = [event.key for event in await anext(watch)]
    assert seen[0] == "/pods/a"


async def test_too_many_waiting_writes_are_refused(tmp_path: Path, reopen: Open) -> None:
    store = await reopen(tmp_path / "store", queue_writes=10)
    outcomes = await asyncio.gather(
        *(store.put(f"/pods/{i}", b"", expect=0, note=NOTE) for i in range(30)), return_exceptions=True
    )
    assert sum(isinstance(outcome, int) for outcome in outcomes) == 10
    assert {type(o).__name__ for o in outcomes if not isinstance(o, int)} == {"TooManyRequests"}
    with pytest.raises(WherryError, match="at most"):
        await store.put("/pods/big", b"x" * (Settings().value_bytes + 1), expect=0, note=NOTE)


async def test_close_finishes_what_was_asked_and_refuses_the_rest(store: SqliteStore) -> None:
    watching = asyncio.create_task(collect(store, "/nothing/", 0, 1))
    writing = [asyncio.create_task(store.put(f"/pods/{i}", b"", expect=0, note=NOTE)) for i in range(20)]
    await machine.sleep(0)
    await store.close()
    await asyncio.gather(*writing)
    with pytest.raises(Unavailable, match="closed"):
        await watching
    with pytest.raises(Unavailable, match="closed"):
        await store.put("/pods/z", b"", expect=0, note=NOTE)
    with pytest.raises(Unavailable, match="closed"):
        await anext(store.watch("", after=0))
    await store.close()
    async with await SqliteStore.open(store.root, clock=VirtualClock()) as again:
        assert await again.revision() == 20
