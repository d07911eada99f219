"""A container from its image to its end, as a user walks."""

import pytest
from wherry.engine.local import LocalEngine
from wherry.engine.types import State

from .conftest import run, spec

pytestmark = [pytest.mark.root, pytest.mark.asyncio(loop_scope="module")]


async def test_a_container_runs_and_ends(engine: LocalEngine) -> None:
    made = await engine.create(spec("/bin/sh", "-c", "echo hello; echo oops >&2; exit 3", name="first"))
    assert made.state is State.CREATED
    await engine.start("first")
    exit = await engine.wait("first")
    assert (exit.code, exit.oom) == (3, False)
    lines = [(line.stream, line.data) async for line in engine.logs("first")]
    assert sorted(lines) == [("stderr", b"oops\n"), ("stdout", b"hello\n")]
    shown = await engine.container("first")
    assert shown.state is State.EXITED
    await engine.remove("first")
    assert "first" not in [container.name for container in await engine.containers()]
