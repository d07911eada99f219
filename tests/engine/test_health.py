"""Health checks, and execs, when the engine that looks after them is killed."""

import asyncio
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from tests.engine.boxes import Place, put_image, spec

from wherry.clock import machine
from wherry.engine.health import KEPT_PROBES, judge
from wherry.engine.local import LocalEngine
from wherry.engine.types import ExecSpec, Health, HealthState, Probe
from wherry.host import processes

GOOD, BAD = Probe(1.0, 2.0, 0, "well"), Probe(1.0, 2.0, 1, "ill")


def test_verdicts() -> None:
    health = Health(["CMD", "x"], retries=2)
    state = judge(health, HealthState("starting"), BAD, in_start_period=True)
    assert (state.status, state.streak, len(state.log)) == ("starting", 0, 1)
    state = judge(health, state, BAD, in_start_period=False)
    assert (state.status, state.streak) == ("starting", 1)
    state = judge(health, state, BAD, in_start_period=False)
    assert (state.status, state.streak) == ("unhealthy", 2)
    state = judge(health, state, GOOD, in_start_period=False)
    assert (state.status, state.streak) == ("healthy", 0)
    state = judge(health, state, BAD, in_start_period=True)
    assert (state.status, state.streak) == ("healthy", 1), "a start period ends with the first good probe"
    for _ in range(9):
        state = judge(health, state, replace(BAD, ended=3.0), in_start_period=False)
    assert len(state.log) == KEPT_PROBES


VICTIM = """
import asyncio, sys
from pathlib import Path
from tests.engine.boxes import Place, spec
from wherry.clock import machine
from wherry.engine.types import ExecSpec, Health

async def main() -> None:
    place = Place(Path(sys.argv[1]))
    place.instance = sys.argv[2]
    async with place.engine(place.content()) as engine:
        check = Health(["CMD", "/bin/test", "-e", "/tmp/well"], interval_s=0.05, start_interval_s=0.05, retries=1000000)
        made = await engine.create(spec("/bin/sh", "-c", "touch /tmp/well; exec sleep 1000", name="c", health=check))
        await engine.start(made.id)
        held = await engine.exec("c", ExecSpec(["/bin/sleep", "771"]))
        await engine.exec("c", ExecSpec(["/bin/sleep", "772"], tty=True))
        await engine.exec("c", ExecSpec(["/bin/sleep", "773"], detached=True))
        while (await engine.container("c")).health.status != "healthy" or not held.pid:
            await machine.sleep(0.01)
        await engine.exec("c", ExecSpec(["/bin/rm", "/tmp/well"]))
        while not (await engine.container("c")).health.streak:
            await machine.sleep(0.01)
        print("READY", flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


async def commands(engine: LocalEngine, name: str) -> list[str]:
    titles, rows = await engine.top(name, "-eo pid,args")
    assert titles == ["PID", "COMMAND"]
    return [row[1] for row in rows]


@pytest.mark.root
async def test_a_killed_engine(tmp_path: Path) -> None:
    """The verdict stays; what was attached to goes, as nobody can attach to it again; what was detached lives on."""
    place = Place(tmp_path)
    try:
        content = place.content()
        async with place.engine(content) as engine:
            await put_image(content, engine, tmp_path / "source")
        await content.close()
        argv = [sys.executable, "-c", VICTIM, str(tmp_path), place.instance]
        victim = await asyncio.to_thread(
            subprocess.Popen, argv, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )  # fmt: skip
        assert victim.stdout is not None
        ready = await asyncio.to_thread(victim.stdout.readline)
        victim.kill()
        _, error = await asyncio.to_thread(victim.communicate, None, 30)
        assert (ready, victim.returncode) == (b"READY\n", -signal.SIGKILL), error.decode()[-2000:]
        content = place.content()
        async with place.engine(content) as engine:
            seen = await engine.container("c")
            assert seen.health is not None
            assert (seen.health.status, seen.health.streak > 0) == ("healthy", True), "not starting again"
            async with asyncio.timeout(10):
                while set(await commands(engine, "c")) != {"sleep 1000", "/bin/sleep 773"}:
                    await machine.sleep(0.02)
            bundle = engine._paths.bundle(seen.id)  # pyright: ignore[reportPrivateUsage]
            files = set(bundle.glob("exec-*"))
            async with asyncio.timeout(10):
                while files & set(bundle.glob("exec-*")):  # those of probes come and go
                    await machine.sleep(0.02)
            await engine.exec("c", ExecSpec(["/bin/touch", "/tmp/well"]))
            async with asyncio.timeout(10):
                while (health := (await engine.container("c")).health) is None or health.streak:
                    await machine.sleep(0.02)
            await engine.remove("c", force=True)
            await engine.settled()
        await content.close()
        left = [
            words for pid in processes.pids() if "/bin/sleep" in (words := processes.command(pid)) and "773" in words
        ]
        assert left == []
        assert place.leftovers() == []
    finally:
        place.clear()


@pytest.mark.root
async def test_leaving_an_engine_ends_what_was_attached(tmp_path: Path) -> None:
    place = Place(tmp_path)
    content = place.content()
    try:
        async with place.engine(content) as engine:
            await put_image(content, engine, tmp_path / "source")
            made = await engine.create(spec("/bin/sleep", "1000", name="c"))
            await engine.start(made.id)
            session = await engine.exec("c", ExecSpec(["/bin/sleep", "771"]))
            async with asyncio.timeout(10):
                while not session.pid:
                    await machine.sleep(0.01)
            pid = session.pid
        async with asyncio.timeout(5):
            while processes.identify(pid) is not None and "771" in processes.command(pid):
                await machine.sleep(0.01)
        async with place.engine(content) as engine:
            assert await commands(engine, "c") == ["/bin/sleep 1000"]
            await engine.remove("c", force=True)
        assert place.leftovers() == []
    finally:
        await content.close()
        place.clear()
