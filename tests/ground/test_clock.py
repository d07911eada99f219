"""The two times: virtual cluster time moves timer by timer; times are written and read as Kubernetes does."""

import asyncio
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wherry.clock import (
    RealClock,
    VirtualClock,
    machine,
    parse_rfc3339,
    rfc3339,
    rfc3339_micro,
    rfc3339_nano,
)

INSTANTS = st.floats(min_value=0, max_value=253_402_300_000, allow_nan=False)


async def turns(count: int = 5) -> None:
    """Let the loop do what is due."""
    for _ in range(count):
        await machine.sleep(0)


async def test_virtual_time_moves_only_when_told() -> None:
    clock = VirtualClock(start=100.0)
    done = asyncio.ensure_future(clock.sleep(10))
    await turns()
    assert clock.now() == 100.0
    assert not done.done()
    await clock.advance(9.5)
    assert clock.now() == 109.5
    assert not done.done()
    await clock.advance(0.5)
    await done
    assert clock.now() == 110.0


async def test_sleepers_wake_in_the_order_of_their_times_each_at_its_own() -> None:
    clock, woken = VirtualClock(start=0.0), list[tuple[str, float]]()

    async def sleeper(name: str, seconds: float) -> None:
        await clock.sleep(seconds)
        woken.append((name, clock.now()))

    async with asyncio.TaskGroup() as tasks:
        for name, seconds in (("c", 30), ("a", 10), ("b", 20), ("also b", 20)):
            tasks.create_task(sleeper(name, seconds))
        await turns()
        await clock.advance(86400)
    assert woken == [("a", 10), ("b", 20), ("also b", 20), ("c", 30)]
    assert clock.now() == 86400


async def test_a_timer_set_by_a_timer_fires_within_the_same_advance() -> None:
    clock, ticks = VirtualClock(start=0.0), list[float]()

    async def ticker() -> None:
        while len(ticks) < 5:
            await clock.sleep(10)
            ticks.append(clock.now())

    task = asyncio.ensure_future(ticker())
    await turns()
    await clock.advance(45)
    assert ticks == [10, 20, 30, 40]
    await clock.advance(5)
    await task
    assert ticks[-1] == 50


async def test_a_cancelled_sleeper_does_not_hold_up_the_others() -> None:
    clock = VirtualClock()
    gone, stays = asyncio.ensure_future(clock.sleep(1)), asyncio.ensure_future(clock.sleep(2))
    await turns()
    gone.cancel()
    await turns()
    await clock.advance(3)
    assert stays.done()
    assert gone.cancelled()


async def test_settle_is_asked_after_each_timer() -> None:
    clock, asked = VirtualClock(start=0.0), list[float]()

    async def settle() -> None:
        asked.append(clock.now())
        await turns()

    sleepers = [asyncio.ensure_future(clock.sleep(seconds)) for seconds in (1, 2, 3)]
    await turns()
    await clock.advance(2, settle=settle)
    assert asked == [1, 2]
    assert [each.done() for each in sleepers] == [True, True, False]
    sleepers[2].cancel()


@pytest.mark.parametrize("clock", [VirtualClock(), RealClock()])
@pytest.mark.parametrize("seconds", [0, -5])
async def test_no_time_is_one_turn_of_the_loop(clock: VirtualClock | RealClock, seconds: float) -> None:
    before = clock.now()
    seen: list[str] = []
    asyncio.get_running_loop().call_soon(seen.append, "a turn")
    await clock.sleep(seconds)
    assert seen
    assert clock.now() - before < 5


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0.001, 1000), max_size=20), st.lists(st.floats(0, 500), max_size=8))
def test_whoever_is_due_has_woken_and_no_one_else(sleeps: list[float], steps: list[float]) -> None:
    async def walk() -> None:
        clock = VirtualClock(start=0.0)
        tasks = [asyncio.ensure_future(clock.sleep(seconds)) for seconds in sleeps]
        await turns()
        for step in steps:
            before = clock.now()
            await clock.advance(step)
            assert clock.now() == before + step
            await turns()
            assert [task.done() for task in tasks] == [seconds <= clock.now() for seconds in sleeps]
        for task in tasks:
            task.cancel()

    asyncio.run(walk())


async def test_real_time_is_the_machines() -> None:
    clock = RealClock()
    assert abs(clock.now() - machine.now()) < 5
    begun = machine.monotonic()
    await clock.sleep(0.01)
    assert machine.monotonic() - begun >= 0.009
    machine.pause(0.01)
    assert machine.monotonic() - begun >= 0.018


async def test_a_deadline_of_the_machine_raises_and_none_never_does() -> None:
    with pytest.raises(TimeoutError):
        async with machine.timeout(0.01):
            await asyncio.Event().wait()
    async with machine.timeout(None):
        await machine.sleep(0)


@pytest.mark.parametrize(
    ("seconds", "second", "micro", "nano"),
    [
        (0.0, "1970-01-01T00:00:00Z", "1970-01-01T00:00:00.000000Z", "1970-01-01T00:00:00.000000000Z"),
        (951782400.0, "2000-02-29T00:00:00Z", "2000-02-29T00:00:00.000000Z", "2000-02-29T00:00:00.000000000Z"),
        (1767225599.5, "2025-12-31T23:59:59Z", "2025-12-31T23:59:59.500000Z", "2025-12-31T23:59:59.500000000Z"),
        (1795348800.0, "2026-11-22T12:00:00Z", "2026-11-22T12:00:00.000000Z", "2026-11-22T12:00:00.000000000Z"),
    ],
)
def test_times_are_written_as_the_wire_has_them(seconds: float, second: str, micro: str, nano: str) -> None:
    assert (rfc3339(seconds), rfc3339_micro(seconds), rfc3339_nano(seconds)) == (second, micro, nano)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1970-01-01T00:00:00Z", 0.0),
        ("1970-01-01T00:00:01z", 1.0),
        ("1970-01-01T01:00:00+01:00", 0.0),
        ("1969-12-31T16:30:00-07:30", 0.0),
        ("1970-01-01T00:00:00.5Z", 0.5),
        ("1970-01-01T00:00:00.123456789Z", 0.123456),
        ("1970-01-01T02:00:00.25+02:00", 0.25),
        ("2026-11-22T12:00:00.000001Z", 1795348800.000001),
    ],
)
def test_times_are_read_with_any_fraction_and_zone(text: str, seconds: float) -> None:
    assert parse_rfc3339(text) == pytest.approx(seconds, abs=1e-6)


@pytest.mark.parametrize("text", ["", "yesterday", "2026-13-01T00:00:00Z", "2026-01-01T25:00:00Z", "1.5", ".5Z"])
def test_other_text_is_no_time(text: str) -> None:
    with pytest.raises(ValueError):
        parse_rfc3339(text)


@settings(max_examples=200)
@given(INSTANTS)
def test_what_is_written_is_read_back(seconds: float) -> None:
    assert parse_rfc3339(rfc3339(seconds)) == int(seconds)
    assert parse_rfc3339(rfc3339_micro(seconds)) == pytest.approx(seconds, abs=1e-5)
    assert parse_rfc3339(rfc3339_nano(seconds)) == pytest.approx(seconds, abs=1e-5)
    assert len(rfc3339(seconds)) == 20
    assert datetime.fromisoformat(rfc3339(seconds)).tzinfo == UTC


@settings(max_examples=100)
@given(INSTANTS, INSTANTS)
def test_written_times_of_one_form_sort_as_the_times_do(one: float, other: float) -> None:
    first, second = sorted((one, other))
    assert rfc3339(first) <= rfc3339(second)
    assert rfc3339_micro(first) <= rfc3339_micro(second)
