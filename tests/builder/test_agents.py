"""SSH agents lent to steps: what they may be asked, who may ask, and that nothing of them is kept."""

import asyncio
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.builder.yard import Yard

from wherry.builder.agents import FAILURE, lent
from wherry.builder.exchange import CachePlace
from wherry.builder.mounting import Mounts
from wherry.builder.operations import Run, RunMount
from wherry.builder.selection import CopyError
from wherry.builder.source import Line
from wherry.clock import machine
from wherry.errors import Invalid

TEXT = "FROM scratch\nRUN --mount=type=ssh,required=true,uid=3 a\nRUN --mount=type=ssh,id=other,target=/o b\n"


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[str]:
    """A real agent with one key."""
    place = tmp_path / "agent"
    child = subprocess.Popen(["ssh-agent", "-D", "-a", str(place)], stdout=subprocess.DEVNULL)
    while not place.exists():
        machine.pause(0.01)
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "secret-comment", "-f", tmp_path / "key"], check=True
    )
    known = {**os.environ, "SSH_AUTH_SOCK": str(place)}
    subprocess.run(["ssh-add", "-q", tmp_path / "key"], env=known, check=True, capture_output=True)
    yield str(place)
    child.terminate()
    child.wait()


async def ask(socket: Path, *words: str) -> tuple[int, str]:
    known = {**os.environ, "SSH_AUTH_SOCK": str(socket)}
    pipe = asyncio.subprocess.PIPE
    child = await asyncio.create_subprocess_exec(
        "ssh-add", *words, env=known, stdin=asyncio.subprocess.DEVNULL, stdout=pipe, stderr=pipe
    )
    async with machine.timeout(20):
        out, err = await child.communicate()
    return child.returncode or 0, (out + err).decode()


async def test_a_lent_agent_signs_and_lists_and_nothing_else(agent: str, tmp_path: Path) -> None:
    place = tmp_path / "lent"
    async with lent(agent, place, mode=0o600, uid=os.geteuid(), gid=os.getegid()):
        code, said = await ask(place, "-l")
        assert (code, "secret-comment" in said) == (0, True)
        assert (await ask(place, "-T", str(tmp_path / "key.pub")))[0] == 0  # signs and checks
        assert (await ask(place, "-D"))[0] != 0
        reader, writer = await asyncio.open_unix_connection(place)
        writer.write(b"\x00\x00\x00\x01\x13")  # remove all identities
        assert await reader.readexactly(5) == FAILURE
        writer.write(b"\xff\xff\xff\xff")
        assert await reader.read() == b""
        writer.close()
        assert (await ask(Path(agent), "-l"))[0] == 0
        idle, open_ = await asyncio.open_unix_connection(place)
    assert await idle.read() == b""  # at the end whoever is left is cut off
    open_.close()
    assert not place.exists()
    with pytest.raises(CopyError, match="no SSH agent answers at"):
        async with lent(str(tmp_path / "absent"), place, mode=0o600, uid=0, gid=0):
            pass


async def test_a_step_sees_the_agent_that_it_mounts(agent: str, tmp_path: Path) -> None:
    mounts = Mounts(tmp_path / "mounts")
    run = Run(Line("", 1, 1), "", ["a"], [], "/", "", mounts=[RunMount("ssh", "/run/agent", id="default", mode=0o600)])
    async with mounts.ready(run, {}, {}, "linux/amd64", tmp_path, {"default": agent}) as prepared:
        (mount,) = prepared.mounts
        assert (mount.target, prepared.env) == ("/run/agent", ["SSH_AUTH_SOCK=/run/agent"])
        assert (await ask(Path(mount.source), "-l"))[0] == 0
        assert len(mount.source.encode()) < 100
    assert not Path(mount.source).parent.exists()


async def test_who_answers_is_in_no_key_and_kept_nowhere(yard: Yard, agent: str, tmp_path: Path) -> None:
    with pytest.raises(Invalid, match=r"Dockerfile:2: RUN --mount: the SSH agent 'default' is required.*--ssh default"):
        await yard.want(TEXT)
    carried = CachePlace("local", str(tmp_path / "cache"), whole=True)
    image = await yard.want(TEXT, agents={"default": agent, "other": agent}, cache_to=[carried])
    first, second = yard.engine.ran
    assert "SSH_AUTH_SOCK=/run/buildkit/ssh_agent.default" in first.env
    assert [mount.target for mount in second.mounts] == ["/o"]
    again = await yard.want(TEXT, agents={"default": str(tmp_path / "key")})
    assert again.id == image.id
    hidden = (agent.encode(), (tmp_path / "key").read_bytes()[40:80], b"secret-comment")
    kept = [
        path for root in (yard.root / "builder", yard.root / "content", tmp_path / "cache") for path in root.rglob("*")
    ]
    found = [path for path in kept if path.is_file() and any(each in path.read_bytes() for each in hidden)]
    assert found == []
    assert not [event for event in yard.events if agent in event.text]
    assert not [path for path in Path("/dev/shm").glob("wherry-secrets-*") if list(path.iterdir())]
    assert "agent" not in str(image.config["history"]).replace("type=ssh", "")
