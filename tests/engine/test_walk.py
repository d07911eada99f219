"""A container from its image to its end, as a user walks."""

import asyncio
import os
from dataclasses import replace
from pathlib import Path

import pytest
from tests.engine.boxes import IMAGE, run, spec, text_of

from wherry.clock import machine
from wherry.engine.local import LocalEngine
from wherry.engine.types import EngineEvent, Mount, SandboxSpec, State
from wherry.errors import AlreadyExists, Broken, Conflict, Invalid, NotFound
from wherry.host import mounts, processes

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


async def test_the_image_says_command_and_environment_and_the_spec_wins(engine: LocalEngine) -> None:
    code, text = await run(engine, spec("/bin/env", env=["COLOUR=red", "SIZE=2"]))
    said = dict(line.partition("=")[::2] for line in text.splitlines())
    assert code == 0
    assert (said["COLOUR"], said["SIZE"], said["PATH"], said["HOSTNAME"]) == ("red", "2", "/bin", "box")


async def test_user_groups_home_and_working_directory(engine: LocalEngine) -> None:
    _, text = await run(
        engine, spec("/bin/sh", "-c", "id -u; id -g; id -G; echo $HOME; pwd", user="ann", workdir="/new/here")
    )
    assert text.split("\n")[:5] == ["1000", "1001", "1001 29", "/home/ann", "/new/here"]
    _, text = await run(engine, spec("/bin/id", user="7:8", groups=[9]))
    assert "uid=7 gid=8 groups=8,9" in text
    for wrong in ({"user": "nobody-here"}, {"user": "7", "groups": ["nobody-here"]}):
        made = await engine.create(spec("/bin/id", **wrong))  # as Docker has it: the start fails, and says so
        with pytest.raises(Broken, match="nobody-here"):
            await engine.start(made.id)
        shown = (await engine.container(made.id)).exit
        assert shown is not None
        assert (shown.code, "nobody-here" in shown.error) == (128, True)
        await engine.remove(made.id)


@pytest.mark.parametrize(("command", "code"), [("nothing-here", 127), ("/no/such", 127), ("/etc/not-a-program", 126)])
async def test_a_command_that_cannot_be_run(engine: LocalEngine, command: str, code: int) -> None:
    made = await engine.create(spec(command))
    with pytest.raises(Broken, match=command.rpartition("/")[2]):
        await engine.start(made.id)
    shown = await engine.container(made.id)
    assert shown.state is State.EXITED
    assert shown.exit is not None
    assert shown.exit.code == code, shown.exit
    assert (await engine.wait(made.id)).code == code
    await engine.remove(made.id)


async def test_stop_asks_first_and_kills_later(engine: LocalEngine) -> None:
    polite = await engine.create(spec("/bin/sh", "-c", "trap 'exit 5' TERM; echo up; while :; do usleep 5000; done"))
    await engine.start(polite.id)
    await until_said(engine, polite.id, "up")
    await engine.stop(polite.id)
    assert (await engine.wait(polite.id)).code == 5

    stubborn = await engine.create(spec("/bin/sh", "-c", "trap '' TERM; echo up; while :; do usleep 5000; done"))
    await engine.start(stubborn.id)
    await until_said(engine, stubborn.id, "up")
    before = machine.monotonic()
    await engine.stop(stubborn.id, grace_s=0.3)
    assert machine.monotonic() - before >= 0.3
    assert (await engine.wait(stubborn.id)).code == 137
    for container in (polite, stubborn):
        await engine.remove(container.id)


async def test_kill_wait_and_start_again(engine: LocalEngine) -> None:
    made = await engine.create(spec("/bin/sleep", "100"))
    with pytest.raises(Conflict, match="does not run"):
        await engine.kill(made.id)
    await engine.start(made.id)
    await engine.start(made.id)  # nothing happens
    waiting = asyncio.create_task(engine.wait(made.id))
    with pytest.raises(Conflict, match="stop it first"):
        await engine.remove(made.id)
    await engine.kill(made.id, "SIGINT")  # the first process of a PID namespace hears only what it listens to
    await engine.kill(made.id, "9")
    assert (await waiting).code == 137
    await engine.start(made.id)
    assert (await engine.container(made.id)).state is State.RUNNING
    await engine.remove(made.id, force=True)
    with pytest.raises(NotFound):
        await engine.container(made.id)


async def test_names_ids_and_prefixes(engine: LocalEngine) -> None:
    made = await engine.create(spec(name="known"))
    assert (await engine.container("known")).id == made.id
    assert (await engine.container(made.id[:10])).id == made.id
    with pytest.raises(AlreadyExists, match="known"):
        await engine.create(spec(name="known"))
    await engine.remove("known")
    again = await engine.create(spec(name="known"))  # the name is free at once
    await engine.remove(again.id)


async def test_what_cannot_be_is_refused_before_anything_is_made(engine: LocalEngine) -> None:
    wrong = (
        (spec(name="no spaces"), Invalid),
        (replace(spec(), image="missing:1"), NotFound),
        (spec(restart="sometimes"), Invalid),
        (spec(stop_signal="SIGNOTHING"), Invalid),
        (spec(cap_add=["NOTHING"]), Invalid),
        (spec(workdir="here"), Invalid),
        (spec(mounts=[Mount("/x", "/no/such/source")]), Invalid),
        (spec(mounts=[Mount("x", "/tmp")]), Invalid),
        (spec(env=["=x"]), Invalid),
        (spec(sandbox="nowhere"), NotFound),
        (spec(seccomp="{}"), Invalid),
    )
    before = len(await engine.containers())
    for made, error in wrong:
        with pytest.raises(error):
            await engine.create(made)
    assert len(await engine.containers()) == before


async def test_a_sandbox_is_shared(engine: LocalEngine) -> None:
    sandbox = await engine.create_sandbox(
        SandboxSpec(id="pod-1", hostname="together", network="none", cgroup="pods/1", hosts=[("db", "10.1.2.3")])
    )
    assert sandbox.ready
    assert (await engine.create_sandbox(sandbox.spec)) == sandbox
    one = await engine.create(
        spec("/bin/sh", "-c", "echo x > /dev/shm/x; while :; do echo hi | nc -l -p 9000; done", sandbox="pod-1")
    )
    await engine.start(one.id)
    ask = "until test -s /tmp/x; do nc 127.0.0.1 9000 > /tmp/x; done; cat /tmp/x /dev/shm/x; hostname; cat /etc/hosts"
    two = await engine.create(spec("/bin/sh", "-c", ask, sandbox="pod-1"))
    await engine.start(two.id)
    assert (await engine.wait(two.id)).code == 0
    text = await text_of(engine, two.id)
    said = [line for line in text.splitlines() if not line.startswith("nc:")]  # nobody listened yet
    assert said[:3] == ["hi", "x", "together"]
    assert "10.1.2.3\tdb" in text
    await engine.remove_sandbox("pod-1")
    assert [container.id for container in await engine.containers() if container.sandbox == "pod-1"] == []
    with pytest.raises(NotFound):
        await engine.sandbox("pod-1")


async def test_mounts(engine: LocalEngine, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "word").write_text("from outside\n")
    asked = [
        Mount("/in", str(tmp_path / "in"), read_only=True),
        Mount("/data", "kept", kind="volume"),
        Mount("/scratch", kind="tmpfs", options=["size=1m"]),
    ]
    script = (
        "cat /in/word; touch /in/x || echo sealed; echo kept > /data/f; touch /scratch/y; grep -c scratch /proc/mounts"
    )
    code, text = await run(engine, spec("/bin/sh", "-c", script, mounts=asked))
    assert code == 0
    assert [line for line in text.splitlines() if "touch" not in line] == ["from outside", "sealed", "1"]
    _, text = await run(engine, spec("/bin/cat", "/data/f", mounts=asked[1:2]))
    assert text == "kept\n"


async def test_a_source_mounted_after_the_engine_started(engine: LocalEngine, tmp_path: Path) -> None:
    """The runtime works in a copy of the mount namespace on some machines; it must not see the empty directory below."""
    mounts.tmpfs(str(tmp_path))
    try:
        (tmp_path / "secret").write_text("seen\n")
        code, text = await run(
            engine, spec("/bin/cat", "/in/secret", mounts=[Mount("/in", str(tmp_path), read_only=True)])
        )
        assert (code, text) == (0, "seen\n")
        await engine.settled()
        assert (tmp_path / "secret").exists()
    finally:
        mounts.unmount(str(tmp_path))


async def test_a_read_only_root(engine: LocalEngine) -> None:
    code, text = await run(engine, spec("/bin/touch", "/x", read_only_root=True))
    assert code == 1
    assert "Read-only" in text


async def test_events_are_told(engine: LocalEngine) -> None:
    seen: list[EngineEvent] = []
    stream = engine.events()
    made = await engine.create(spec("/bin/sh", "-c", "exit 4"))
    await engine.start(made.id)
    await engine.wait(made.id)
    await engine.remove(made.id)
    async for event in stream:
        if event.id == made.id and event.kind == "container":
            seen.append(event)
            if event.action == "destroy":
                break
    assert [event.action for event in seen] == ["create", "start", "die", "destroy"]
    assert seen[2].attributes["exitCode"] == "4"
    assert seen[0].attributes["image"] == IMAGE


async def test_many_at_once(engine: LocalEngine) -> None:
    codes = await asyncio.gather(*(run(engine, spec("/bin/sh", "-c", f"exit {number}")) for number in range(12)))
    assert [code for code, _ in codes] == list(range(12))


async def test_stats(engine: LocalEngine) -> None:
    made = await engine.create(spec("/bin/sleep", "100"))
    await engine.start(made.id)
    stats = await engine.stats(made.id)
    assert stats["pids"] == 1
    assert stats["memory_usage_bytes"] >= stats["memory_working_set_bytes"]
    await engine.remove(made.id, force=True)


async def test_it_is_in_its_own_cgroup_and_session(engine: LocalEngine) -> None:
    """A kill of the engine's group or session must not reach conmon."""
    made = await engine.create(spec("/bin/sleep", "100"))
    await engine.start(made.id)
    shown = await engine.container(made.id)
    process = processes.stat(shown.pid)
    assert process is not None
    conmon = processes.stat(process.parent)
    own = processes.stat(os.getpid())
    assert conmon is not None
    assert own is not None
    assert conmon.session != own.session
    assert conmon.group != own.group
    text = Path(f"/proc/{conmon.pid}/cgroup").read_text()
    assert "/t/conmon" in text
    await engine.remove(made.id, force=True)


async def until_said(engine: LocalEngine, ref: str, words: str) -> None:
    """Wait until the log has `words`."""
    async with asyncio.timeout(10):
        async for line in engine.logs(ref, follow=True):
            if words in line.data.decode():
                return
