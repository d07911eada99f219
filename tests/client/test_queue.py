"""Work queues: each key once, one worker at a time, later after failures; in cluster time where it is policy."""

import asyncio
from itertools import pairwise

import pytest

from wherry.client.backoff import Backoff, delay
from wherry.client.queue import WorkQueue
from wherry.clock import RealClock, VirtualClock, machine


async def turns(count: int = 20) -> None:
    for _ in range(count):
        await machine.sleep(0)


async def drain(queue: WorkQueue[str]) -> list[str]:
    found = []
    while len(queue):
        key = await queue.get()
        queue.done(key)
        found.append(key)
    return found


async def test_a_key_is_in_line_once() -> None:
    async with WorkQueue[str](RealClock()) as queue:
        for key in ("a", "b", "a"):
            queue.add(key)
        assert await drain(queue) == ["a", "b"]
        assert queue.is_idle


async def test_a_key_added_while_worked_on_comes_again() -> None:
    async with WorkQueue[str](RealClock()) as queue:
        queue.add("a")
        key = await queue.get()
        queue.add("a")
        queue.add("a")
        assert len(queue) == 0  # never by two workers at once
        queue.done(key)
        assert await drain(queue) == ["a"]


async def test_the_line_is_in_order_of_rank() -> None:
    ranks = {"low": 5, "high": -5}
    async with WorkQueue[str](RealClock(), rank=lambda key: ranks.get(key, 0)) as queue:
        for key in ("low", "b", "high", "c"):
            queue.add(key)
        assert await drain(queue) == ["high", "b", "c", "low"]


async def test_delays_pass_in_cluster_time_and_the_earliest_holds() -> None:
    clock = VirtualClock()
    async with WorkQueue[str](clock) as queue:
        queue.add_after("a", 60)
        queue.add_after("a", 10)
        queue.add_after("a", 30)
        queue.add_after("b", 5)
        await turns()
        assert await drain(queue) == []
        await clock.advance(9)
        assert await drain(queue) == ["b"]
        await clock.advance(2)
        assert await drain(queue) == ["a"]
        await clock.advance(100)
        assert await drain(queue) == []
        queue.add_after("c", 0)
        assert await drain(queue) == ["c"]


async def test_failures_delay_a_key_longer_each_time() -> None:
    clock = VirtualClock()
    async with WorkQueue[str](clock, base_s=0.001, cap_s=100) as queue:
        seconds = [queue.retry("a") for _ in range(20)]
        assert seconds[0] <= 0.001
        assert all(later > 0.75 * sooner for sooner, later in pairwise(seconds[:15]))
        assert max(seconds) <= 100
        assert queue.failures("a") == 20
        queue.forget("a")
        assert queue.retry("a") <= 0.001


async def test_short_delays_pass_without_moving_the_clock() -> None:
    async with WorkQueue[str](VirtualClock(), base_s=0.001) as queue:
        queue.retry("a")
        async with machine.timeout(5):
            assert await queue.get() == "a"


async def test_workers_try_again_what_failed() -> None:
    tried: list[str] = []
    done = asyncio.Event()

    async def handle(key: str) -> None:
        tried.append(key)
        if len(tried) < 4:
            raise RuntimeError("not yet")
        done.set()

    async with WorkQueue[str](RealClock(), base_s=0.001) as queue:
        work = asyncio.create_task(queue.work(handle, name="test", workers=3))
        queue.add("a")
        async with machine.timeout(5):
            await done.wait()
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work
    assert tried == ["a"] * 4


async def test_nothing_is_added_to_a_closed_queue() -> None:
    async with WorkQueue[str](RealClock()) as queue:
        queue.retry("a")
        queue.add_after("b", 0.001)
    await machine.sleep(0.02)
    queue.add("c")
    assert len(queue) == 0


def test_back_off_grows_to_its_cap_with_jitter() -> None:
    backoff = Backoff(base_s=1, cap_s=8)
    waits = [backoff.next_s() for _ in range(6)]
    for wait, whole in zip(waits, (1, 2, 4, 8, 8, 8), strict=True):
        assert whole / 2 <= wait <= whole
    backoff.reset()
    assert backoff.next_s() <= 1
    assert len({delay(3, 1, 100) for _ in range(5)}) > 1
