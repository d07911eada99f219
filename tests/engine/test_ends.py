"""How a run is cleared: once, whoever asks for it, and without keeping anybody waiting who only wants to know of the end."""

import asyncio
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.engine.boxes import Place, put_image, spec

from wherry.clock import machine
from wherry.engine.local import LocalEngine
from wherry.engine.types import State
from wherry.errors import NotFound
from wherry.host import processes

pytestmark = [pytest.mark.root, pytest.mark.asyncio(loop_scope="module")]


class Clears:
    """Stands before the engine's `clear`: who is inside, how many were inside at once, and a gate."""

    def __init__(self, engine: LocalEngine, monkeypatch: pytest.MonkeyPatch) -> None:
        runs = engine._runs  # pyright: ignore[reportPrivateUsage]
        self._clear = runs.clear
        self.gate = asyncio.Event()
        self.inside = self.most = 0
        monkeypatch.setattr(runs, "clear", self)

    async def __call__(self, *args: Any) -> None:
        self.inside += 1
        self.most = max(self.most, self.inside)
        try:
            await self.gate.wait()
            await self._clear(*args)
        finally:
            self.inside -= 1


async def test_a_removal_waits_for_the_clearing_under_way(engine: LocalEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """`stop` and `rm` at once: two that clear one run step on each other's toes, and what fails stays behind."""
    clears = Clears(engine, monkeypatch)
    made = await engine.create(spec("/bin/sleep", "60"))
    await engine.start(made.id)
    await engine.stop(made.id, grace_s=0.0)
    await engine.remove(made.id)
    while not clears.inside:
        await machine.sleep(0.001)
    await machine.sleep(0.05)
    clears.gate.set()
    await engine.settled()
    assert clears.most == 1


async def test_who_waits_for_a_removal_at_the_end_does_not_wait_for_the_clearing(
    engine: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`docker run --rm` returns when its container is gone by name; what the run left goes behind."""
    clears = Clears(engine, monkeypatch)
    happened = engine.events()
    made = await engine.create(spec("/bin/true", name="leaves", auto_remove=True))
    await engine.start(made.id)
    seen: list[str] = []
    async with asyncio.timeout(10):
        async for event in happened:
            if event.id == made.id and event.kind == "container":
                seen.append(event.action)
            if event.action == "destroy" and event.id == made.id:
                break
    assert in_order(seen, ["create", "start", "die", "destroy"])
    with pytest.raises(NotFound):
        await engine.container("leaves")
    again = await engine.create(spec("/bin/true", name="leaves"))
    clears.gate.set()
    await engine.remove(again.id)
    await engine.settled()


def in_order(seen: Sequence[str], wanted: Sequence[str]) -> bool:
    """Say whether `wanted` is what `seen` has of it, in this order."""
    return [each for each in seen if each in wanted] == list(wanted)


async def test_an_engine_that_was_left_notices_nothing(tmp_path: Path) -> None:
    """What ends while nobody is there is found by the next start: the old engine's rows are closed by then."""
    place = Place(tmp_path)
    loop, faults = asyncio.get_running_loop(), list[dict[str, Any]]()
    loop.set_exception_handler(lambda _, fault: faults.append(fault))
    content = place.content()
    try:
        async with place.engine(content) as engine:
            await put_image(content, engine, tmp_path / "source")
            made = await engine.create(spec("/bin/sleep", "60", name="left"))
            await engine.start(made.id)
            pid = (await engine.container("left")).pid
            run = engine._containers.lives.find("left").run  # pyright: ignore[reportPrivateUsage]
            assert run is not None
        os.kill(pid, signal.SIGKILL)
        assert await processes.wait_exit(run.monitor, timeout_s=20)
        for _ in range(5):
            await machine.sleep(0)  # whoever still watches is told now
        assert faults == []
        async with place.engine(content) as engine:
            found = await engine.container("left")
            assert (found.state, found.exit is not None and found.exit.code) == (State.EXITED, 137)
            await engine.remove("left")
            await engine.settled()
    finally:
        loop.set_exception_handler(None)
        await content.close()
        left = place.leftovers()
        place.clear()
    assert left == []
