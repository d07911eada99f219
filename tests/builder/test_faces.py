"""`wherry build` and the stock client, through the Docker door, on the real engine."""

import asyncio
import os
import shutil
import sys
import tarfile
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from tests.engine.boxes import BUSYBOX, Place

from wherry.clock import RealClock, machine
from wherry.daemon.builds import TarBuild
from wherry.doors.docker.door import DockerDoor
from wherry.wire.server import Server

pytestmark = pytest.mark.root
Command = Callable[..., Coroutine[Any, Any, tuple[int, str]]]
DOCKERFILE = """
FROM scratch AS base
COPY busybox /bin/
RUN ["/bin/busybox", "--install", "-s", "/bin"]
FROM base AS Work
ARG WHO
RUN --mount=type=secret,id=token --network=none wc -c < /run/secrets/token > /size && echo $WHO > /who
FROM scratch
COPY --from=Work /size /who /
COPY --from=lib /f /
"""


@pytest.fixture
async def command(tmp_path: Path) -> AsyncIterator[Command]:
    place = Place(tmp_path)
    content = place.content()
    context = tmp_path / "context"
    context.mkdir()
    shutil.copy(BUSYBOX, context / "busybox")
    (context / "Dockerfile").write_text(DOCKERFILE)
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib/f").write_text("f")
    async with place.engine(content) as engine:
        build = TarBuild(engine, content, tmp_path / "builder", clock=RealClock())
        door = DockerDoor(engine, build, clock=RealClock(), node="t")
        server = Server(door.handle, on_error=door.fail)
        socket = str(tmp_path / "d.sock")
        await server.start_unix(socket, mode=0o600)

        async def run(*argv: str, **environment: str) -> tuple[int, str]:
            known = os.environ | {"DOCKER_HOST": f"unix://{socket}", "DOCKER_BUILDKIT": "0"} | environment
            pipe, both = asyncio.subprocess.PIPE, asyncio.subprocess.STDOUT
            child = await asyncio.create_subprocess_exec(*argv, env=known, cwd=tmp_path, stdout=pipe, stderr=both)
            async with machine.timeout(60):
                out, _ = await child.communicate()
            return child.returncode or 0, out.decode()

        yield run
        await server.close(1.0)
        await build.close()
        await engine.settled()
    await content.close()
    left = place.leftovers()
    place.clear()
    assert left == []


async def test_wherry_build_has_the_words_of_buildx(command: Command, tmp_path: Path) -> None:
    wherry = [sys.executable, "-m", "wherry.cli.main", "build"]
    options = [
        "--network",
        "none",
        "--build-arg",
        "WHO=me",
        "--build-context",
        "lib=lib",
        "--secret",
        "id=token,env=TOKEN",
        "-t",
        "web:1",
    ]
    code, said = await command(*wherry, *options, "-o", "out", "--annotation", "a=b", "context", TOKEN="s3cret-s3cret")
    assert code == 0, said
    assert {path.name: path.read_text() for path in (tmp_path / "out").iterdir()} == {
        "size": "13\n",
        "who": "me\n",
        "f": "f",
    }
    assert "(StageNameCasing)" in said
    more = ["-o", "type=oci,dest=image.tar,compression=zstd", "--cache-to", "type=local,dest=cache", "context"]
    code, said = await command(*wherry, *options, *more, TOKEN="another")
    assert code == 0, said
    assert "Using cache" in said
    with tarfile.open(tmp_path / "image.tar") as archive:
        assert {"index.json", "oci-layout", "manifest.json"} <= set(archive.getnames())
    assert (tmp_path / "cache/cache.json").is_file()
    code, said = await command(*wherry, "--check", "--build-context", "lib=lib", "context")
    assert (code, "StageNameCasing" in said, "Step" in said) == (0, True, False)
    code, said = await command(*wherry, "--secret", "id=token,src=absent", "context")
    assert code == 1
    assert "absent: No such file" in said
    code, said = await command(*wherry, "--build-context", "lib=lib", "--target", "nope", "context")
    assert code == 1
    assert "there are base, work" in said
    kept = [path for path in tmp_path.rglob("*") if path.is_file() and not path.is_symlink()]
    assert [path for path in kept if b"s3cret-s3cret" in path.read_bytes()] == []


async def test_the_stock_client_builds_too(command: Command, tmp_path: Path) -> None:
    (tmp_path / "context/Dockerfile").write_text(
        "FROM scratch\nCOPY busybox /\nHEALTHCHECK CMD /busybox true\nVOLUME /v\n"
    )
    code, said = await command("docker", "build", "--network=none", "--pull", "-t", "stock:1", "context")
    assert code == 0, said
    assert "Successfully tagged stock:1" in said
    code, said = await command(
        "docker", "image", "inspect", "-f", "{{json .Config.Volumes}} {{json .Config.Healthcheck.Test}}", "stock:1"
    )
    assert (code, said.strip()) == (0, '{"/v":{}} ["CMD-SHELL","/busybox true"]')
