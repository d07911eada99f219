"""What was is told as it was; what is not known is said to be unknown."""

import asyncio
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.history.conftest import World, data

from wherry.clock import machine
from wherry.errors import Expired, Invalid, Unavailable
from wherry.history.archive import Archive, Budget
from wherry.history.filing import File
from wherry.history.moments import Moment
from wherry.model.kinds import CONFIGMAPS, EVENTS, LEASES, NAMESPACES, NODES, PODS, SECRETS
from wherry.store.protocol import Note, Write
from wherry.store.settings import Settings


async def test_an_object_is_told_as_it_was(world: World) -> None:
    started = world.clock.now()
    await world.clock.advance(60)
    await world.write(CONFIGMAPS, "a", 1)
    await world.clock.advance(60)
    await world.write(CONFIGMAPS, "a", 2)
    await world.clock.advance(60)
    await world.write(CONFIGMAPS, "a", None)
    await world.clock.advance(60)
    told = [data(await world.archive.at(CONFIGMAPS, "default", "a", started + s)) for s in (30, 60, 119, 120, 179, 200)]
    assert told == [None, 1, 1, 2, 2, None]
    assert await world.archive.revision_at(started + 130) == 2
    listing = await world.archive.list_at(CONFIGMAPS, "", started + 130)
    assert [(item.key, data(item.value), item.revision) for item in listing.items] == [
        ("/core/configmaps/default/a", 2, 2)
    ]


async def test_it_says_who_wrote_when_and_how(world: World) -> None:
    await world.write(PODS, "a", 1, actor="ann", operation="POST pods")
    await world.clock.advance(5)
    await world.write(PODS, "a", 2, actor="system:node:n", operation="PATCH pods/status")
    await world.clock.advance(5)
    await world.write(PODS, "a", None, actor="bob", operation="DELETE pods")
    found = await world.archive.revisions(PODS, "default", "a")
    start = found[0].note.time
    assert [(r.revision, r.note, r.deleted, r.readable) for r in found] == [
        (1, Note(start, "ann", "POST pods"), False, True),
        (2, Note(start + 5, "system:node:n", "PATCH pods/status"), False, True),
        (3, Note(start + 10, "bob", "DELETE pods"), True, False),
    ]
    assert await world.archive.revisions(PODS, "default", "other") == []


async def test_a_namespace_is_listed_by_itself_and_names_are_not_mixed(world: World) -> None:
    for namespace, name in (("a", "x"), ("a", "y"), ("a-b", "x"), ("b", "x")):
        await world.write(CONFIGMAPS, name, 1, namespace=namespace)
    await world.write(NODES, "n", 1)
    await world.write(NAMESPACES, "a", 1)
    now = world.clock.now()
    listing = await world.archive.list_at(CONFIGMAPS, "a", now)
    assert [item.key for item in listing.items] == ["/core/configmaps/a/x", "/core/configmaps/a/y"]
    assert len((await world.archive.list_at(CONFIGMAPS, "", now)).items) == 4
    assert [item.key for item in (await world.archive.list_at(NODES, "", now)).items] == ["/core/nodes/n"]


async def test_leases_and_events_are_not_filed(world: World) -> None:
    await world.write(LEASES, "node", 1)
    await world.write(EVENTS, "happened", 1)
    await world.archive.reached(2)
    for kind in (LEASES, EVENTS):
        with pytest.raises(Invalid, match="budget is 0"):
            await world.archive.at_revision(kind, "default", "node", 2)
    assert world.archive.value_bytes == 0
    assert await world.archive.resolve(Moment()) == 2


async def test_it_goes_on_after_a_restart_without_a_gap(world: World) -> None:
    await world.write(CONFIGMAPS, "a", 1)
    await world.archive.reached(1)
    await world.stop_archive()
    await world.write(CONFIGMAPS, "a", 2)
    await world.write(CONFIGMAPS, "b", 1)
    await world.start_archive()
    await world.archive.reached(3)
    assert await world.archive.gaps() == []
    found = await world.archive.revisions(CONFIGMAPS, "default", "a")
    assert [r.revision for r in found] == [1, 2]


async def test_a_death_between_two_batches_files_nothing_twice(world: World) -> None:
    for i in range(10):
        await world.write(CONFIGMAPS, "a", i)
    await world.archive.reached(10)
    await world.stop_archive()
    with closing(sqlite3.connect(world.root / "history" / "archive.db", isolation_level=None)) as connection:
        connection.execute("UPDATE meta SET value = 4 WHERE name = 'position'")
    await world.start_archive()
    await world.archive.reached(10)
    found = await world.archive.revisions(CONFIGMAPS, "default", "a")
    assert [r.revision for r in found] == list(range(1, 11))


async def test_behind_the_compaction_it_says_that_there_is_a_gap(world: World) -> None:
    for name in "abcd":
        await world.write(CONFIGMAPS, name, "before")
    await world.archive.reached(4)
    await world.stop_archive()
    await world.clock.advance(60)
    await world.write(CONFIGMAPS, "a", "changed")  # 5
    await world.write(CONFIGMAPS, "b", None)  # 6
    await world.write(CONFIGMAPS, "new", "unseen")  # 7
    await world.write(CONFIGMAPS, "c", None)  # 8
    await world.write(CONFIGMAPS, "c", "again")  # 9
    await world.write(CONFIGMAPS, "e", "x")  # 10
    await world.store.compact(10)
    await world.start_archive()
    await world.archive.reached(10)
    gaps = await world.archive.gaps()
    assert [(gap.after, gap.until) for gap in gaps] == [(4, 10)]
    with pytest.raises(Expired, match="gap from 4 to 10"):
        await world.archive.at_revision(CONFIGMAPS, "default", "a", 7)
    for revision, wanted in (
        (4, {"a": "before", "b": "before", "c": "before", "d": "before"}),
        (10, {"a": "changed", "c": "again", "d": "before", "e": "x", "new": "unseen"}),
    ):
        listing = await world.archive.list_at_revision(CONFIGMAPS, "", revision)
        assert {item.key.rpartition("/")[2]: data(item.value) for item in listing.items} == wanted
        assert listing.unknown == []
    await world.write(CONFIGMAPS, "a", None)
    assert [r.deleted for r in await world.archive.revisions(CONFIGMAPS, "default", "a")] == [False, False, True]


async def test_an_archive_that_comes_late_begins_late(world: World) -> None:
    await world.stop_archive()
    for i in range(5):
        await world.write(CONFIGMAPS, "a", i)
    await world.store.compact(5)
    (world.root / "history" / "archive.db").unlink()
    await world.start_archive()
    await world.archive.reached(5)
    assert world.archive.began == 5
    with pytest.raises(Expired, match="goes back to revision 5"):
        await world.archive.at_revision(CONFIGMAPS, "default", "a", 4)
    with pytest.raises(Expired):
        await world.archive.at(CONFIGMAPS, "default", "a", world.clock.now() - 600)
    past = await world.archive.at_revision(CONFIGMAPS, "default", "a", 5)
    assert past is not None
    assert data(past.value) == 4


async def test_a_kind_has_a_budget_and_what_is_beyond_it_is_said_to_be_unknown(world: World) -> None:
    for i in range(PODS.history_budget + 10):
        await world.write(PODS, "busy", i)
    await world.write(PODS, "quiet", 0)
    last = PODS.history_budget + 11
    assert len(await world.archive.revisions(PODS, "default", "busy")) == PODS.history_budget
    with pytest.raises(Expired, match=f"keeps {PODS.history_budget} revisions .* oldest is 11"):
        await world.archive.at_revision(PODS, "default", "busy", 5)
    listing = await world.archive.list_at_revision(PODS, "", 5)
    assert (listing.items, listing.unknown) == ([], ["/core/pods/default/busy"])
    listing = await world.archive.list_at_revision(PODS, "", last)
    assert (len(listing.items), listing.unknown) == (2, [])


async def test_a_secret_is_filed_only_sealed_and_a_deleted_one_is_unreadable(world: World) -> None:
    await world.write(SECRETS, "db", "correct horse")
    await world.write(SECRETS, "db", "battery staple")
    await world.archive.reached(2)
    found = await world.archive.at_revision(SECRETS, "default", "db", 1)
    assert found is not None
    assert data(found.value) == "correct horse"
    assert [r.readable for r in await world.archive.revisions(SECRETS, "default", "db")] == [True, True]
    await world.write(SECRETS, "db", None)
    await world.write(SECRETS, "db", "a new life")
    await world.archive.reached(4)
    with pytest.raises(Expired, match="deleted since"):
        await world.archive.at_revision(SECRETS, "default", "db", 2)
    listing = await world.archive.list_at_revision(SECRETS, "", 2)
    assert (listing.items, listing.unknown) == ([], ["/core/secrets/default/db"])
    readable = [r.readable for r in await world.archive.revisions(SECRETS, "default", "db")]
    assert readable == [False, False, False, True]
    found = await world.archive.at_revision(SECRETS, "default", "db", 4)
    assert found is not None
    assert data(found.value) == "a new life"
    await world.stop()
    for path in world.root.rglob("*"):
        assert path.is_dir() or b"correct horse" not in path.read_bytes()


async def test_secrets_survive_a_gap_sealed(world: World) -> None:
    await world.write(SECRETS, "db", "correct horse")
    await world.stop_archive()
    (world.root / "history" / "archive.db").unlink()
    await world.write(CONFIGMAPS, "a", 1)
    await world.store.compact(2)
    await world.start_archive()
    await world.archive.reached(2)
    found = await world.archive.at_revision(SECRETS, "default", "db", 2)
    assert found is not None
    assert data(found.value) == "correct horse"
    await world.stop_archive()
    assert b"correct horse" not in (world.root / "history" / "archive.db").read_bytes()


async def test_old_history_is_collected_and_the_state_at_its_beginning_stays(tmp_path: Path) -> None:
    world = await World.start(tmp_path, budget=Budget(age_s=1000, every_s=1e9))
    await world.write(CONFIGMAPS, "stays", "from the beginning")
    await world.write(CONFIGMAPS, "goes", 0)
    for i in range(20):
        await world.clock.advance(100)
        await world.write(CONFIGMAPS, "changes", i)
        if i == 3:
            await world.write(CONFIGMAPS, "goes", None)
    last = await world.store.revision()
    await world.archive.reached(last)
    before = world.archive.value_bytes
    await world.archive.collect()
    assert world.archive.value_bytes < before
    began = world.archive.began
    assert await world.archive.revision_at(world.clock.now() - 1000) == began
    listing = await world.archive.list_at_revision(CONFIGMAPS, "", began)
    told = {item.key.rpartition("/")[2]: data(item.value) for item in listing.items}
    assert told == {"stays": "from the beginning", "changes": 9}
    assert listing.unknown == []
    assert await world.archive.revisions(CONFIGMAPS, "default", "goes") == []
    assert len(await world.archive.revisions(CONFIGMAPS, "default", "changes")) == 11
    with pytest.raises(Expired, match="goes back to"):
        await world.archive.at_revision(CONFIGMAPS, "default", "stays", began - 1)
    await world.stop()
    world.store = await type(world.store).open(tmp_path / "store", clock=world.clock)
    await world.start_archive()
    assert world.archive.began == began
    await world.stop()


async def test_history_stays_within_its_bytes(tmp_path: Path) -> None:
    world = await World.start(tmp_path, budget=Budget(value_bytes=20_000, every_s=1e9))
    for i in range(300):
        await world.write(CONFIGMAPS, f"c{i % 5}", f"{i:0>3}" * 7)
    await world.archive.reached(300)
    before = world.archive.value_bytes
    assert before > 20_000
    for _ in range(20):
        await world.archive.collect()
    assert world.archive.value_bytes <= 20_000
    listing = await world.archive.list_at_revision(CONFIGMAPS, "", world.archive.began)
    assert len(listing.items) == 5
    with closing(sqlite3.connect(tmp_path / "history" / "archive.db")) as connection:
        (counted,) = connection.execute("SELECT SUM(LENGTH(value)) FROM revisions").fetchone()
        filed = connection.execute("SELECT SUM(filed) = (SELECT COUNT(*) FROM revisions) FROM objects").fetchone()
    assert counted == world.archive.value_bytes
    assert filed == (1,)
    await world.stop()


async def test_collection_is_regular_and_goes_by_cluster_time(tmp_path: Path) -> None:
    world = await World.start(tmp_path, budget=Budget(age_s=100, every_s=300))
    await world.write(CONFIGMAPS, "a", 1)
    await world.write(CONFIGMAPS, "a", 2)
    await world.archive.reached(2)
    await world.clock.advance(301)
    async with machine.timeout(10):
        while world.archive.began < 2:
            await machine.sleep(0.001)
    await world.stop()


async def test_trouble_with_its_own_disk_is_waited_out(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    file, calls = File.file, iter(range(100))

    def refuse_twice(self: File, *args: object) -> None:
        if next(calls) < 2:
            raise sqlite3.OperationalError("database or disk is full")
        file(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(File, "file", refuse_twice)
    await world.write(CONFIGMAPS, "a", 1)
    await world.write(CONFIGMAPS, "a", 2)
    await world.archive.reached(2)
    assert [r.revision for r in await world.archive.revisions(CONFIGMAPS, "default", "a")] == [1, 2]
    assert await world.archive.gaps() == []


async def test_who_asks_beyond_what_was_read_is_told(world: World) -> None:
    await world.write(CONFIGMAPS, "a", 1)
    await world.archive.reached(1)
    with pytest.raises(Invalid, match="revision 9 is not there yet"):
        await world.archive.resolve(Moment(revision=9))
    await world.archive.__aexit__()  # it stands still
    await world.write(CONFIGMAPS, "a", 2)
    with pytest.raises(Unavailable, match="has read up to revision 1"):
        await world.archive.reached(2, timeout_s=0.05)


async def test_the_store_may_close_first(world: World) -> None:
    await world.write(CONFIGMAPS, "a", 1)
    await world.archive.reached(1)
    await world.store.close()
    await world.archive.close()
    await world.archive.close()


NAMES = st.sampled_from(["a", "b", "c"])
KIND = st.sampled_from([CONFIGMAPS, NODES, SECRETS, LEASES])
STEP = st.tuples(KIND, NAMES, st.none() | st.integers(0, 99), st.floats(0.05, 30))


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps=st.lists(st.lists(STEP, min_size=1, max_size=3), max_size=25), restart=st.integers(0, 25))
def test_whatever_was_written_each_revision_is_told_as_it_was(
    steps: list[list[tuple[object, str, int | None, float]]], restart: int
) -> None:
    async def run() -> None:
        with tempfile.TemporaryDirectory(prefix="history-") as place:
            world = await World.start(Path(place), settings=Settings(roll_bytes=2000, merge_ratio=0.3))
            try:
                await _compare(world, steps, restart)
            finally:
                await world.stop()

    asyncio.run(run())


async def _compare(world: World, steps: list[list[tuple[object, str, int | None, float]]], restart: int) -> None:
    states: list[dict[str, bytes]] = [{}]
    times = [world.clock.now()]
    lives: dict[str, int] = {}  # of secrets: since when they live; earlier lives cannot be read
    for number, step in enumerate(steps):
        if number == restart:
            await world.stop_archive()
        state, writes = dict(states[-1]), dict[str, Write]()
        for kind, name, value, wait_s in step:
            key = kind.key("default", name)  # type: ignore[attr-defined]
            entry = await world.store.get(key)
            if key in writes or (value is None and entry is None):
                continue
            body = None if value is None else b'{"metadata":{},"data":%d}' % value
            writes[key] = Write(key, body, entry.version if entry else 0)
            if body is None:
                del state[key]
                lives[key] = 1 << 60
            else:
                state[key] = body
                if entry is None:
                    lives[key] = len(states)
            await world.clock.advance(wait_s)
        if writes:
            await world.store.txn(list(writes.values()), note=Note(world.clock.now(), "someone", "something"))
            states.append(state)
            times.append(world.clock.now())
    if restart < len(steps):
        await world.start_archive()
    for revision, state in enumerate(states):
        for kind in (CONFIGMAPS, NODES, SECRETS):
            sure = kind is not SECRETS
            wanted = {
                key: value
                for key, value in state.items()
                if key.startswith(kind.prefix()) and (sure or lives[key] <= revision)
            }
            at = await world.archive.resolve(Moment(revision=revision))
            listing = await world.archive.list_at_revision(kind, "", at)
            assert {item.key: item.value for item in listing.items} == wanted
            for key, value in wanted.items():
                past = await world.archive.at_revision(kind, "default", key.rpartition("/")[2], revision)
                assert past is not None
                assert past.value == value
            if sure:
                later = times[revision + 1] if revision + 1 < len(times) else times[revision] + 1
                listing = await world.archive.list_at(kind, "", (times[revision] + later) / 2)
                assert {item.key: item.value for item in listing.items} == wanted


async def test_an_archive_of_another_version_is_refused(tmp_path: Path) -> None:
    world = await World.start(tmp_path)
    await world.stop_archive()
    with closing(sqlite3.connect(tmp_path / "history" / "archive.db")) as connection:
        connection.execute("PRAGMA user_version = 99")
    with pytest.raises(Exception, match="format 99"):
        await Archive.open(tmp_path / "history", world.store, clock=world.clock)
    (tmp_path / "history" / "archive.db").write_bytes(b"no database" * 1000)
    with pytest.raises(Exception, match="not readable"):
        await Archive.open(tmp_path / "history", world.store, clock=world.clock)
    await world.store.close()
