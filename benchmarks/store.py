"""What the store costs, beside a bare SQLite commit of the same bytes on the same disk in the same run.

Run: `python benchmarks/store.py`. Values are 2 KiB. Prints a table; the ratio is ours to the floor of its line. Absolute
figures depend on the disk and on what else the machine does; ratios of one run carry over.
"""

import asyncio
import shutil
import sqlite3
import statistics
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

from wherry.clock import RealClock, machine
from wherry.store.protocol import Note
from wherry.store.settings import Settings
from wherry.store.sqlite import SqliteStore

VALUE = b"x" * 2048
POD = b"x" * 3400
NOTE = Note(1.0, "benchmark", "PUT")


def row(what: str, figure: str, floor: str = "", ratio: float | None = None) -> None:
    print(f"{what:58} {figure:>16} {floor:>16} {'' if ratio is None else f'{ratio:6.2f}'}")


def bare(root: Path, commits: int, rows_each: int) -> float:
    """Rows per second of a bare append-only table in WAL mode, synchronous=FULL, 16 KiB pages."""
    connection = sqlite3.connect(root / f"bare-{rows_each}.db", isolation_level=None)
    connection.executescript("PRAGMA page_size=16384; PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL;")
    connection.execute("CREATE TABLE log (id INTEGER PRIMARY KEY, key TEXT, value BLOB)")
    started = machine.monotonic()
    for commit in range(commits):
        connection.execute("BEGIN")
        connection.executemany(
            "INSERT INTO log (key, value) VALUES (?, ?)", [(f"/pods/{commit}-{i}", VALUE) for i in range(rows_each)]
        )
        connection.execute("COMMIT")
    took_s = machine.monotonic() - started
    connection.close()
    return commits * rows_each / took_s


async def writers(store: SqliteStore, count: int, each: int, prefix: str) -> float:
    """Writes per second of `count` writers that each wait for their answer before the next."""

    async def write(writer: int) -> None:
        for i in range(each):
            await store.put(f"/{prefix}/{writer}/{i}", VALUE, expect=0, note=NOTE)

    started = machine.monotonic()
    async with asyncio.TaskGroup() as tasks:
        for writer in range(count):
            tasks.create_task(write(writer))
    return count * each / (machine.monotonic() - started)


async def timed(work: Awaitable[object]) -> float:
    started = machine.monotonic()
    await work
    return machine.monotonic() - started


async def latencies(store: SqliteStore, prefix: str, running: Callable[[], bool]) -> list[float]:
    """Milliseconds of one put after another, while `running`."""
    found: list[float] = []
    while running() or len(found) < 50:
        put = store.put(f"/{prefix}/{len(found)}", VALUE, expect=0, note=NOTE)
        found.append(await timed(put) * 1000)
    return found


def disk_bytes(*roots: Path) -> int:
    stats = {s.st_ino: s for root in roots for path in root.rglob("*") for s in [path.stat()]}
    return sum(s.st_blocks * 512 for s in stats.values())


async def main(root: Path) -> None:
    print(f"{'':58} {'wherry':>16} {'floor':>16}  ratio")
    async with await SqliteStore.open(root / "store", clock=RealClock()) as store:
        for count, each in ((1, 500), (32, 200), (256, 40)):
            floor = bare(root, max(20, 500 // count), count)
            ours = await writers(store, count, each, f"w{count}")
            row(
                f"durable writes/s, {count} writers (floor: bare commits of {count})",
                f"{ours:,.0f}/s",
                f"{floor:,.0f}/s",
                ours / floor,
            )
        listing_ms = min([await timed(store.list("/w256/")) * 1000 for _ in range(5)])
        row("list of 10,240 keys", f"{listing_ms:.2f} ms")
        page_ms = min([await timed(store.list("/w256/", after="/w256/100/", limit=500)) * 1000 for _ in range(5)])
        row("page of 500 of them", f"{page_ms:.2f} ms")

    async with await SqliteStore.open(root / "pods", clock=RealClock()) as store:
        await asyncio.gather(*(store.put(f"/core/pods/ns/{i}", POD, expect=0, note=NOTE) for i in range(5000)))
        before = disk_bytes(root / "pods")
        fork_s = await timed(store.fork(0, root / "fork"))
        row("fork of 5,000 pods of 3.4 KB (aim: under 1 s)", f"{fork_s * 1000:.1f} ms")
        extra = disk_bytes(root / "pods", root / "fork") - before
        row("  disk it takes (aim: under 5 MB)", f"{extra / 1e6:.2f} MB", f"{before / 1e6:.1f} MB", extra / before)
        again_s = await timed(store.fork(0, root / "fork2"))
        row("fork again, nothing written since", f"{again_s * 1000:.1f} ms")
    started = machine.monotonic()
    async with await SqliteStore.open(root / "fork", clock=RealClock()):
        row("open it", f"{(machine.monotonic() - started) * 1000:.1f} ms")

    settings = Settings(roll_bytes=4 << 20, merge_ratio=0.0)
    async with await SqliteStore.open(root / "compacted", clock=RealClock(), settings=settings) as store:
        await asyncio.gather(*(store.put(f"/core/pods/ns/{i}", POD, expect=0, note=NOTE) for i in range(15_000)))
        await store.fork(0, root / "fork3")  # all into sealed files
        quiet = await latencies(store, "quiet", lambda: False)
        merging = asyncio.create_task(timed(store.compact(15_000)))
        busy = await latencies(store, "busy", lambda: not merging.done())
        row(f"compaction of 15,000 pods, {len(busy)} puts meanwhile", f"{await merging * 1000:.0f} ms")
        ours, floor = statistics.median(busy), statistics.median(quiet)
        row("  a put meanwhile, median (floor: the same, quiet)", f"{ours:.2f} ms", f"{floor:.2f} ms", ours / floor)
        row("  the longest put meanwhile", f"{max(busy):.2f} ms", f"{max(quiet):.2f} ms", max(busy) / max(quiet))


if __name__ == "__main__":
    place = Path(tempfile.mkdtemp(prefix="wherry-benchmark-"))
    try:
        asyncio.run(main(place))
    finally:
        shutil.rmtree(place)
