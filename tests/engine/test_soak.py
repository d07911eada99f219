"""Many containers at once, many one after the other, and kills in the middle of it: nothing is lost, nothing is left.

Small in every run; whole by `make soak`. What was counted is printed (`-s` shows it); seeds are printed where they matter.
"""

import asyncio
import os
import random
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path

import pytest
from tests.engine.harbour import Harbour, Refused, pss_bytes

from wherry.clock import machine
from wherry.errors import WherryError

pytestmark = pytest.mark.root

AT_ONCE = 8
OBEYS = ("sh", "-c", "trap 'exit 0' TERM; while :; do sleep 0.02; done")
SLEEPS = ("sleep", "600")


@pytest.fixture
async def harbour(tmp_path: Path) -> AsyncIterator[Harbour]:
    made = Harbour(tmp_path / "root")
    try:
        await made.start()
        await made.load()
        await all_of([lambda: removed_after_run(made)] * AT_ONCE * 2)  # caches, threads, parents of groups
        yield made
    finally:
        left = await made.down()
    assert left == []


async def all_of(works: Sequence[Callable[[], Awaitable[None]]]) -> None:
    """Do all, AT_ONCE at a time."""
    waiting = iter(works)

    async def worker() -> None:
        for work in waiting:
            await work()

    async with asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(worker())


@pytest.mark.parametrize("count", [16, pytest.param(200, marks=pytest.mark.soak)])
async def test_many_containers_at_once(harbour: Harbour, count: int) -> None:
    """Each answers at its address, takes an exec and has statistics; then all go and nothing of them stays."""
    before, memory = await harbour.baseline(), harbour.memory_bytes()
    ids: dict[str, str] = {}

    async def begin(name: str) -> None:
        ids[name] = await harbour.run("busybox", "nc", "-ll", "-p", "80", "-e", "echo", name, name=name)

    async def use(name: str) -> None:
        shown = await harbour.call("GET", f"/containers/{name}/json")
        assert shown["State"]["Running"], shown["State"]
        assert await asyncio.to_thread(heard, shown["NetworkSettings"]["IPAddress"]) == name
        assert await harbour.exec(name, "true") == 0
        stats = await harbour.call("GET", f"/containers/{name}/stats?stream=0&one-shot=1")
        assert stats["pids_stats"]["current"] >= 1
        assert stats["memory_stats"]["usage"] > 0

    names = [f"many-{number}" for number in range(count)]
    await all_of([lambda name=name: begin(name) for name in names])
    assert len({each["Id"] for each in await harbour.containers()}) == count
    await all_of([lambda name=name: use(name) for name in names])
    monitors = harbour.monitors()
    assert len(monitors) == count
    beside = sum(map(pss_bytes, monitors)) / count
    grown = (harbour.memory_bytes() - memory) / count
    print(f"\n{count} at once: conmon {beside / 1e6:.2f} MB each, the engine {grown / 1e6:.3f} MB more for each")
    assert beside < 1_000_000
    assert grown < 500_000
    await all_of([lambda name=name: removed(harbour, name) for name in names])
    assert await harbour.calm(before) == [], harbour.said()


@pytest.mark.parametrize("count", [48, pytest.param(2000, marks=pytest.mark.soak)])
async def test_many_containers_one_after_the_other(harbour: Harbour, count: int) -> None:
    """Create, start, stop, remove, eight at a time: processes, mounts, links, rules, descriptors, memory as before."""
    rng = random.Random(5)

    async def cycle() -> None:
        id = await harbour.create(*rng.choice((OBEYS, SLEEPS)))
        await harbour.call("POST", f"/containers/{id}/start")
        if rng.random() < 0.2:
            assert await harbour.exec(id, "true") == 0
        await harbour.call("POST", f"/containers/{id}/stop?t={rng.choice((0, 0, 1))}")
        await harbour.call("DELETE", f"/containers/{id}")

    before, memory, begun = await harbour.baseline(), [harbour.memory_bytes()], machine.monotonic()
    for _ in range(4):
        await all_of([cycle] * (count // 4))
        memory.append(harbour.memory_bytes())
    took_s = machine.monotonic() - begun
    shown = ", ".join(f"{each / 1e6:.1f}" for each in memory)
    print(
        f"\n{count} cycles in {took_s:.0f} s ({count / took_s:.1f}/s); PSS of the engine after each quarter: {shown} MB"
    )
    assert await harbour.containers() == []
    assert await harbour.calm(before) == [], harbour.said()
    assert memory[-1] - memory[1] < 4_000_000


@pytest.mark.parametrize("kills", [5, pytest.param(50, marks=pytest.mark.soak)])
async def test_kills_in_the_middle_of_the_load(harbour: Harbour, kills: int) -> None:
    """What ran lives on, what was half made is gone, what is shown is whole; and at the end nothing is left."""
    rng = random.Random(7)
    harbour_is_up = asyncio.Event()
    harbour_is_up.set()
    done = 0
    before = await harbour.baseline()
    kept = [await harbour.run(*SLEEPS, name=f"kept-{number}") for number in range(4)]
    pids = {id: (await harbour.call("GET", f"/containers/{id}/json"))["State"]["Pid"] for id in kept}

    async def churn() -> None:
        nonlocal done
        while True:
            await harbour_is_up.wait()
            try:
                await removed_after_run(harbour)
                done += 1
            except (Refused, OSError, WherryError, EOFError):
                await machine.sleep(0.01)  # it was killed under us

    workers = [asyncio.create_task(churn()) for _ in range(AT_ONCE)]
    try:
        for _ in range(kills):
            await machine.sleep(rng.uniform(0.1, 1.2))
            harbour_is_up.clear()
            await harbour.kill()
            await harbour.start()
            await whole(harbour, pids)
            harbour_is_up.set()
    finally:
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
    print(f"\n{kills} kills (seed 7) over {done} whole cycles")
    for each in await harbour.containers():
        await removed(harbour, each["Id"])
    assert await harbour.calm(before) == [], harbour.said()


async def whole(harbour: Harbour, pids: dict[str, int]) -> None:
    """Everything that an engine shows right after a kill can be looked at, and is in a state that has a name."""
    for each in await harbour.containers():
        with suppress(Refused):  # one that is removed meanwhile
            shown = await harbour.call("GET", f"/containers/{each['Id']}/json")
            state = shown["State"]
            assert state["Status"] in ("created", "running", "exited"), shown
            if state["Running"]:
                assert os.path.exists(f"/proc/{state['Pid']}"), shown
                assert await harbour.exec(each["Id"], "true") == 0
    for id, pid in pids.items():
        state = (await harbour.call("GET", f"/containers/{id}/json"))["State"]
        assert (state["Running"], state["Pid"]) == (True, pid)


async def removed_after_run(harbour: Harbour) -> None:
    id = await harbour.run(*OBEYS)
    await harbour.call("POST", f"/containers/{id}/stop?t=0")
    await harbour.call("DELETE", f"/containers/{id}")


async def removed(harbour: Harbour, name: str) -> None:
    with suppress(Refused):
        await harbour.call("DELETE", f"/containers/{name}?force=1&v=1")


def heard(address: str) -> str:
    """What a container says to who connects."""
    with socket.create_connection((address, 80), 10) as connection:
        return connection.makefile().readline().strip()
