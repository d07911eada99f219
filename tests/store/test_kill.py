"""`kill -9` at any moment: what was acknowledged is there; what was not is whole or absent."""

import os
import random
import shutil
import subprocess
import sys
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from wherry.clock import VirtualClock, machine
from wherry.store.sqlite import SqliteStore

VICTIM = Path(__file__).with_name("victim.py")
SEED = int(os.environ.get("WHERRY_SOAK_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 30)
PAIR = ("/pair/a", "/pair/b")


@dataclass
class Told:
    """What the victim said: for each key the last acknowledged value, and those asked for since."""

    acked: dict[str, tuple[str, int]] = field(default_factory=dict)
    asked: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    lines: int = 0

    def hear(self, line: str) -> None:
        self.lines += 1
        match line.split(" "):
            case ["ask", key, value]:
                self.asked[key].append(value)
            case ["ok", key, value, revision]:
                self.acked[key] = (value, int(revision))
                self.asked[key].clear()
            case ["pair", turn]:
                for key in PAIR:
                    self.asked[key].append(turn)
            case ["pair-ok", turn, revision]:
                for key in PAIR:
                    self.acked[key] = (turn, int(revision))
                    self.asked[key].clear()
            case _:
                pass


def run_and_kill(root: Path, seed: int) -> Told:
    """Start a victim, let it say some lines, kill it at a random moment soon after, and read what it had said."""
    dice = random.Random(seed)
    told = Told()
    victim = subprocess.Popen([sys.executable, str(VICTIM), str(root), str(seed)], stdout=subprocess.PIPE, text=True)
    try:
        assert victim.stdout is not None
        for _ in range(dice.randrange(2, 1500)):
            line = victim.stdout.readline()
            assert line.endswith("\n"), "the victim ended by itself"
            told.hear(line.rstrip("\n"))
        machine.pause(dice.uniform(0, 0.01))
        victim.kill()
        for line in victim.stdout:
            if line.endswith("\n"):
                told.hear(line.rstrip("\n"))
    finally:
        victim.kill()
        victim.wait()
        if victim.stdout is not None:
            victim.stdout.close()
    return told


async def check(root: Path, told: Told) -> None:
    store = await SqliteStore.open(root, clock=VirtualClock())
    try:
        for key in told.acked.keys() | told.asked.keys():
            entry = await store.get(key)
            found = entry.value.decode() if entry else "-"
            acked, revision = told.acked.get(key, ("-", 0))
            assert found in (acked, *told.asked[key]), f"{key}: {found[:20]}, acknowledged was {acked[:20]}"
            if entry is not None and found == acked:
                assert entry.version == revision
        a, b = await store.get(PAIR[0]), await store.get(PAIR[1])
        assert (a.value, a.version) == (b.value, b.version) if a and b else a is b
        last = max([0, *(revision for _, revision in told.acked.values())])
        assert await store.revision() >= last
        for fork in root.parent.glob("fork-*"):
            forked = await SqliteStore.open(fork, clock=VirtualClock())
            assert await forked.revision() <= await store.revision()
            await forked.close()
    finally:
        await store.close()


async def kill_often(tmp_path: Path, count: int) -> None:
    lines = 0
    for seed in range(SEED, SEED + count):
        place = tmp_path / str(seed)
        print(f"WHERRY_SOAK_SEED={seed}")
        told = run_and_kill(place / "store", seed)
        await check(place / "store", told)
        lines += told.lines
        shutil.rmtree(place)
    assert lines > count  # they did write


async def test_no_acknowledged_write_is_lost_by_5_kills(tmp_path: Path) -> None:
    await kill_often(tmp_path, 5)


@pytest.mark.soak
async def test_no_acknowledged_write_is_lost_by_200_kills(tmp_path: Path) -> None:
    await kill_often(tmp_path, int(os.environ.get("WHERRY_SOAK_COUNT", "200")))
