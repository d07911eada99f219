"""A process that writes to a store and says on stdout what was asked and what was answered, until it is killed.

Every line is one write(2) to the pipe, made after the answer: what the parent has read was acknowledged. Lines:
`ask KEY VALUE`, `ok KEY VALUE REVISION`, `pair N` before and `pair-ok N REVISION` after a transaction of two keys.
"""

import asyncio
import os
import random
import sys
from pathlib import Path

from wherry.clock import RealClock, machine
from wherry.store.protocol import Note, Write
from wherry.store.settings import Settings
from wherry.store.sqlite import SqliteStore

NOTE = Note(1.0, "victim", "PUT")
TINY = Settings(roll_bytes=60_000, merge_ratio=0.5, slice_rows=16)


def say(line: str) -> None:
    os.write(1, f"{line}\n".encode())


async def write(store: SqliteStore, writer: int, dice: random.Random) -> None:
    """Put and delete a writer's own keys; `-` stands for a deletion."""
    versions: dict[str, int] = {}
    for turn in range(1_000_000):
        kind = "core/secrets" if dice.random() < 0.2 else "core/pods"
        key = f"/{kind}/ns/{writer}-{dice.randrange(5)}"
        if versions.get(key) and dice.random() < 0.2:
            say(f"ask {key} -")
            revision = await store.delete(key, expect=versions.pop(key), note=NOTE)
            say(f"ok {key} - {revision}")
        else:
            value = f"{writer}.{turn}." + "x" * dice.randrange(2000)
            say(f"ask {key} {value}")
            revision = versions[key] = await store.put(key, value.encode(), expect=versions.get(key, 0), note=NOTE)
            say(f"ok {key} {value} {revision}")


async def write_pairs(store: SqliteStore) -> None:
    """Keep two keys equal, by transactions."""
    version = 0
    for turn in range(1_000_000):
        value = str(turn).encode()
        say(f"pair {turn}")
        version = await store.txn((Write("/pair/a", value, version), Write("/pair/b", value, version)), note=NOTE)
        say(f"pair-ok {turn} {version}")


async def tidy(store: SqliteStore) -> None:
    """Compact and fork all the time, so that a death may fall into either."""
    for turn in range(1_000_000):
        await store.compact(max(0, await store.revision() - 20))
        if turn % 5 == 0:
            await store.fork(0, store.root.parent / f"fork-{turn}")
        await machine.sleep(0.005)


async def main(root: Path, seed: int) -> None:
    store = await SqliteStore.open(root, clock=RealClock(), settings=TINY)
    say("open")
    async with asyncio.TaskGroup() as tasks:
        for writer in range(6):
            tasks.create_task(write(store, writer, random.Random(seed * 100 + writer)))
        tasks.create_task(write_pairs(store))
        tasks.create_task(tidy(store))


asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2])))
