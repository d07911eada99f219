"""Restart policies: the plan, and the engine that follows it."""

import asyncio

import pytest
from tests.engine.boxes import Place, put_image, spec, text_of

from wherry.clock import VirtualClock, machine
from wherry.engine import restarts
from wherry.engine.local import LocalEngine
from wherry.engine.types import Exit, State
from wherry.errors import Invalid, NotFound


@pytest.mark.parametrize(
    ("text", "code", "count", "stopped", "came_up", "again"),
    [
        ("no", 1, 0, False, False, False),
        ("always", 0, 9, False, False, True),
        ("always", 0, 9, True, False, False),
        ("always", 0, 9, True, True, True),
        ("unless-stopped", 0, 0, False, True, True),
        ("unless-stopped", 0, 0, True, True, False),
        ("on-failure", 0, 0, False, False, False),
        ("on-failure", 1, 99, False, False, True),
        ("on-failure:3", 1, 2, False, False, True),
        ("on-failure:3", 1, 3, False, False, False),
    ],
)
def test_when_to_start_again(text: str, code: int, count: int, stopped: bool, came_up: bool, again: bool) -> None:
    exit = Exit(code, 0.0)
    policy = restarts.parse(text)
    assert restarts.should_restart(policy, exit, restarts=count, stopped=stopped, machine_came_up=came_up) is again


def test_words_that_are_no_policy() -> None:
    for text in ("sometimes", "always:3", "on-failure:x", "no:1"):
        with pytest.raises(Invalid):
            restarts.parse(text)


def test_delays_grow_and_start_over() -> None:
    delay, seen = 0.0, []
    for _ in range(12):
        delay = restarts.next_delay_s(delay, ran_s=0.1)
        seen.append(delay)
    assert seen[:3] == [0.1, 0.2, 0.4]
    assert seen[-1] == 60.0
    assert restarts.next_delay_s(60.0, ran_s=11.0) == 0.1


@pytest.mark.root
@pytest.mark.asyncio(loop_scope="module")
async def test_the_engine_starts_it_again(place: Place) -> None:
    clock = VirtualClock()
    content = place.content()
    async with place.engine(content, clock=clock) as engine:
        await put_image(content, engine, place.base / "source")
        made = await engine.create(spec("/bin/sh", "-c", "echo run; exit 1", restart="on-failure:2"))
        await engine.start(made.id)
        await until(engine, made.id, State.EXITED, clock, least=2)
        await clock.advance(600.0)
        assert (await engine.wait(made.id)).code == 1
        assert (await engine.container(made.id)).restarts == 2
        assert await text_of(engine, made.id) == "run\n" * 3

        always = await engine.create(spec("/bin/sleep", "100", restart="always", name="always"))
        await engine.start(always.id)
        await engine.stop(always.id, grace_s=0)
        await clock.advance(600.0)
        assert (await engine.container(always.id)).state is State.EXITED  # a person ended it

    async with place.engine(content, clock=clock) as engine:  # "always" comes back with the engine
        await until(engine, "always", State.RUNNING, clock)
        assert (await engine.container(made.id)).state is State.EXITED
        await engine.remove("always", force=True)
        await engine.remove(made.id)

        gone = await engine.create(spec("/bin/true", auto_remove=True))
        waiting = asyncio.create_task(engine.wait(gone.id))
        await engine.start(gone.id)
        assert (await waiting).code == 0
        async with asyncio.timeout(10):
            while any(container.id == gone.id for container in await engine.containers()):
                await machine.sleep(0.005)
        with pytest.raises(NotFound):
            await engine.container(gone.id)
    await content.close()


async def until(engine: LocalEngine, ref: str, state: State, clock: VirtualClock, *, least: int = 0) -> None:
    """Wait until a container is in `state`, started again at least `least` times, while cluster time passes."""
    async with asyncio.timeout(15):
        while True:
            shown = await engine.container(ref)
            if shown.state is state and shown.restarts >= least:
                return
            await clock.advance(1.0)
            await machine.sleep(0.005)
