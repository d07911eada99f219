"""Other runtimes, and tools that are missing or old."""

from pathlib import Path

import pytest
from tests.engine.boxes import Place, put_image, run, spec

from wherry.engine import runtime
from wherry.engine.local import LocalEngine
from wherry.engine.types import ExecSpec, Limits
from wherry.errors import Broken, Invalid, NotFound, Unavailable
from wherry.host import spawn

pytestmark = [pytest.mark.root, pytest.mark.asyncio(loop_scope="module")]


async def test_runc_does_it_too(place: Place) -> None:
    content = place.content()
    async with place.engine(content, runtime="runc") as engine:
        await put_image(content, engine, place.base / "source")
        code, text = await run(engine, spec("/bin/sh", "-c", "grep Seccomp: /proc/self/status; exit 3"))
        assert (code, text) == (3, "Seccomp:\t2\n")
        code, _ = await run(engine, spec("/bin/sh", "-c", "unshare -U true"))
        assert code != 0
        made = await engine.create(spec("/bin/sleep", "100", limits=Limits(pids=30, memory_bytes=64 << 20)))
        await engine.start(made.id)
        session = await engine.exec(made.id, ExecSpec(["/bin/sh", "-c", "echo in; exit 4"]))
        assert [data async for _, data in session.output()] == [b"in\n"]
        assert await session.wait() == 4
        missing = await engine.exec(made.id, ExecSpec(["no-such-thing"]))
        assert await missing.wait() == 127
        await engine.remove(made.id, force=True)
        wrong = await engine.create(spec("no-such-thing"))
        with pytest.raises(Broken, match="no-such-thing"):
            await engine.start(wrong.id)
        shown = await engine.container(wrong.id)
        assert shown.exit is not None
        assert shown.exit.code == 127
        await engine.remove(wrong.id)
    await content.close()


async def test_one_engine_at_a_time_has_a_root(engine: LocalEngine, place: Place) -> None:
    content = place.content()
    with pytest.raises(Unavailable, match="another engine"):
        async with place.engine(content):
            raise AssertionError
    await content.close()
    assert (await run(engine, spec("/bin/true")))[0] == 0


async def test_tools_are_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(runtime.ENVIRONMENT, "PATH", str(tmp_path))
    with pytest.raises(NotFound, match="install the package crun"):
        await runtime.find_runtime("", spawn.plain)
    for name, version in (("crun", "0.17"), ("conmon", "1.9.1")):
        tool = tmp_path / name
        tool.write_text(f"#!/bin/sh\necho {name} version {version}\n")
        tool.chmod(0o755)
        with pytest.raises(Broken, match="at least"):
            await runtime.find(name, spawn.plain)
    with pytest.raises(Invalid, match="runtime"):
        await runtime.find_runtime("magic", spawn.plain)
