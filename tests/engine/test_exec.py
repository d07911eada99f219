"""exec and attach: streams, terminals, exit codes."""

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from tests.engine.boxes import spec, text_of

from wherry.engine.local import LocalEngine
from wherry.engine.types import ExecSpec, Session
from wherry.errors import Conflict, Invalid

pytestmark = [pytest.mark.root, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def sleeper(engine: LocalEngine) -> AsyncIterator[str]:
    made = await engine.create(spec("/bin/sleep", "1000", name="sleeper", env=["PLACE=inside"], user="ann"))
    await engine.start(made.id)
    yield made.id
    await engine.remove(made.id, force=True)


async def read(session: Session) -> dict[str, bytes]:
    """All output by stream."""
    said: dict[str, bytes] = {}
    async with asyncio.timeout(20):
        async for stream, data in session.output():
            said[stream] = said.get(stream, b"") + data
    return said


async def test_streams_and_code(engine: LocalEngine, sleeper: str) -> None:
    session = await engine.exec(sleeper, ExecSpec(["/bin/sh", "-c", "id -un; echo $PLACE; echo bad >&2; exit 9"]))
    assert await read(session) == {"stdout": b"ann\ninside\n", "stderr": b"bad\n"}
    assert await session.wait() == 9


async def test_user_environment_and_directory(engine: LocalEngine, sleeper: str) -> None:
    asked = ExecSpec(
        ["/bin/sh", "-c", "id -u; echo $PLACE $HOME; pwd"], user="root", env=["PLACE=there"], workdir="/etc"
    )
    assert await read(await engine.exec(sleeper, asked)) == {"stdout": b"0\nthere /root\n/etc\n"}


async def test_stdin_goes_in_and_ends(engine: LocalEngine, sleeper: str) -> None:
    session = await engine.exec(sleeper, ExecSpec(["/bin/wc", "-c"], stdin=True))
    await session.write(b"x" * 300_000)
    await session.close_stdin()
    assert (await read(session))["stdout"].strip() == b"300000"
    assert await session.wait() == 0
    with pytest.raises(Conflict, match="stdin"):
        await session.write(b"more")


async def test_much_output_waits_for_its_reader(engine: LocalEngine, sleeper: str) -> None:
    session = await engine.exec(sleeper, ExecSpec(["/bin/sh", "-c", "yes | head -c 5000000"]))
    assert len((await read(session))["stdout"]) == 5_000_000


async def test_a_terminal_with_a_size(engine: LocalEngine, sleeper: str) -> None:
    session = await engine.exec(sleeper, ExecSpec(["/bin/sh"], tty=True, stdin=True))
    await session.resize(33, 99)
    await session.write(b"stty size; tty; exit 4\n")
    text = (await read(session))["stdout"].decode()
    assert "33 99" in text
    assert "/dev/pts/" in text
    assert await session.wait() == 4


@pytest.mark.parametrize("tty", [False, True])
async def test_a_command_that_is_not_there(engine: LocalEngine, sleeper: str, tty: bool) -> None:
    session = await engine.exec(sleeper, ExecSpec(["no-such-thing"], tty=tty))
    said = await read(session)
    assert await session.wait() == 127
    assert b"no-such-thing" in said["stdout" if tty else "stderr"]
    session = await engine.exec(sleeper, ExecSpec(["/etc/not-a-program"], tty=tty))
    assert await session.wait() == 126


async def test_what_is_left_in_the_background_does_not_hold_the_session(engine: LocalEngine, sleeper: str) -> None:
    session = await engine.exec(sleeper, ExecSpec(["/bin/sh", "-c", "sleep 1000 & echo out"]))
    assert await read(session) == {"stdout": b"out\n"}
    assert await session.wait() == 0


async def test_closing_does_not_kill(engine: LocalEngine, sleeper: str) -> None:
    script = "trap '' PIPE; for i in $(seq 200); do echo line || exit 3; usleep 1000; done; touch /tmp/survived"
    session = await engine.exec(sleeper, ExecSpec(["/bin/sh", "-c", script]))
    await session.close()
    assert await session.wait() == 0
    check = await engine.exec(sleeper, ExecSpec(["/bin/ls", "/tmp/survived"]))
    assert await check.wait() == 0


async def test_a_privileged_exec_has_more_capabilities(engine: LocalEngine, sleeper: str) -> None:
    script = ["/bin/grep", "CapEff", "/proc/self/status"]
    plain = await read(await engine.exec(sleeper, ExecSpec(script, user="root")))
    more = await read(await engine.exec(sleeper, ExecSpec(script, user="root", privileged=True)))
    assert int(plain["stdout"].split()[1], 16) < int(more["stdout"].split()[1], 16)


async def test_exec_needs_a_running_container_and_a_command(engine: LocalEngine, sleeper: str) -> None:
    made = await engine.create(spec("/bin/true"))
    with pytest.raises(Conflict, match="does not run"):
        await engine.exec(made.id, ExecSpec(["/bin/true"]))
    with pytest.raises(Invalid, match="no command"):
        await engine.exec(sleeper, ExecSpec([]))
    with pytest.raises(Invalid, match="stranger"):
        await engine.exec(sleeper, ExecSpec(["/bin/true"], user="stranger"))
    await engine.remove(made.id)


async def test_attach_before_start_misses_nothing(engine: LocalEngine) -> None:
    made = await engine.create(
        spec("/bin/sh", "-c", "echo first; cat; echo last >&2; exit 6", stdin=True, stdin_once=True)
    )
    session = await engine.attach(made.id)
    await engine.start(made.id)
    await session.write(b"middle\n" * 3000)
    await session.close_stdin()
    said = await read(session)
    assert said == {"stdout": b"first\n" + b"middle\n" * 3000, "stderr": b"last\n"}
    assert await session.wait() == 6
    assert (await text_of(engine, made.id)).startswith("first\nmiddle\n")
    await engine.remove(made.id)


async def test_attach_to_a_terminal(engine: LocalEngine) -> None:
    made = await engine.create(spec("/bin/sh", tty=True, stdin=True))
    session = await engine.attach(made.id)
    await engine.start(made.id)
    await session.resize(20, 70)
    await session.write(
        b"while test $(stty size | tr ' ' x) != 20x70; do usleep 5000; done; echo size is right; exit 2\n"
    )
    said = await read(session)
    assert b"size is right\r\n" in said["stdout"]
    assert await session.wait() == 2
    await engine.remove(made.id)


async def test_detaching_leaves_it_running(engine: LocalEngine) -> None:
    made = await engine.create(spec("/bin/sh", "-c", "read x; echo $x", stdin=True))
    await engine.start(made.id)
    first = await engine.attach(made.id)
    reading = asyncio.create_task(read(first))
    await asyncio.sleep(0)
    await first.close()
    assert await reading == {}
    second = await engine.attach(made.id)
    await second.write(b"still here\n")
    assert await read(second) == {"stdout": b"still here\n"}
    await engine.remove(made.id, force=True)
    other = await engine.create(spec("/bin/true"))
    await engine.start(other.id)
    await engine.wait(other.id)
    with pytest.raises(Conflict, match="does not run"):
        await engine.attach(other.id)
    await engine.remove(other.id)
