"""`wherry build` and the stock client, through the Docker door, on the real engine."""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from tests.builder.gits import Repository
from tests.engine.boxes import BUSYBOX, Place

from wherry.clock import RealClock, machine
from wherry.daemon.builds import TarBuild
from wherry.doors.docker.door import DockerDoor
from wherry.wire.client import Endpoint, HttpClient
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

        async def run(*argv: str, input: str = "", **environment: str) -> tuple[int, str]:
            known = os.environ | {"DOCKER_HOST": f"unix://{socket}", "DOCKER_BUILDKIT": "0"} | environment
            pipe, both = asyncio.subprocess.PIPE, asyncio.subprocess.STDOUT
            child = await asyncio.create_subprocess_exec(
                *argv, env=known, cwd=tmp_path, stdin=pipe, stdout=pipe, stderr=both
            )
            async with machine.timeout(60):
                out, _ = await child.communicate(input.encode())
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


WHERRY = [sys.executable, "-m", "wherry.cli.main", "build"]


async def test_wherry_build_has_the_later_words_of_buildx_too(command: Command, tmp_path: Path) -> None:
    repository = Repository(tmp_path / "web.git")
    repository.file("app/Dockerfile", "FROM scratch\nCOPY f /f\n")
    repository.file("app/f", "from git")
    commit = repository.commit()
    files = ["--iidfile", "id", "--metadata-file", "made.json"]
    words = ["--sbom", "true", "--provenance", "mode=max", "-o", "type=oci,dest=git.tar", *files]
    code, said = await command(*WHERRY, *words, "-t", "git:1", f"{repository.url}#main:app")
    assert code == 0, said
    made = json.loads((tmp_path / "made.json").read_text())
    assert (made["containerimage.config.digest"], made["image.name"]) == ((tmp_path / "id").read_text(), "git:1")
    with tarfile.open(tmp_path / "git.tar") as archive:
        texts = [archive.extractfile(each).read() for each in archive if each.isfile()]  # type: ignore[union-attr]
        (tmp_path / "layout").mkdir()
        archive.extractall(tmp_path / "layout")
    index = next(json.loads(text) for text in texts if b'"attestation-manifest"' in text)
    assert [each["platform"]["os"] for each in index["manifests"]] == ["linux", "unknown"]
    assert any(b'"sha1":"%s"' % commit.encode() in text for text in texts)
    dockerfile = "FROM base AS a\nFROM scratch\nCOPY --from=a /f /g\n"
    base = ["--build-context", "base=oci-layout://layout:1", "--progress", "rawjson"]
    code, said = await command(*WHERRY, *base, "-f", "-", "-o", "out", "lib", input=dockerfile)
    assert code == 0, said
    assert (tmp_path / "out/g").read_text() == "from git"
    events = [json.loads(line) for line in said.splitlines()]
    assert {"step", "done"} <= {event["kind"] for event in events}
    both = ["--platform", "linux/amd64,linux/s390x", "-t", "both:1", "--progress", "quiet", "-"]
    code, said = await command(
        *WHERRY, *both, input="ARG TARGETARCH\nFROM scratch\nARG TARGETARCH\nCOPY <<E /$TARGETARCH\nE\n"
    )
    assert (code, said.count("\n")) == (0, 1), said
    code, said = await command(*WHERRY, "--platform", "linux/s390x", "--build-context", "lib=lib", "context")
    assert (code, "RUN for linux/s390x on" in said, "Step" in said) == (1, True, False)
    for wrong, words_of_it in (
        (["--platform", "a,b", "-o", "x", "lib"], "build each by itself"),
        (["--attest", "type=signature", "lib"], "write type=sbom"),
        (["--ulimit", "nofile", "lib"], "write NAME=SOFT"),
        (["--cache-to", "type=gha", "context"], "there are local, registry, inline"),
        (["--build-context", "lib=ftp://x", "context"], "is not supported"),
        (["--push", "lib"], "--push needs a name"),
        (["--squash", "lib"], "unknown option --squash"),
        (["https://127.0.0.1:1/x.git"], "git repository https://127.0.0.1:1/x.git"),
    ):
        code, said = await command(*WHERRY, *wrong)
        assert (code > 0, words_of_it in said) == (True, True), said


def key_and_client(tmp_path: Path) -> str:
    """Make a key, and put the agent's client with its libraries into the context; return the client's path."""
    words = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "lent-key", "-f", str(tmp_path / "key")]
    subprocess.run(words, check=True)
    client = str(shutil.which("ssh-add"))
    linked = subprocess.run(["ldd", client], check=True, capture_output=True).stdout.decode()
    for path in [client, *(word for word in linked.split() if word.startswith("/"))]:
        (tmp_path / "context/root" / path.lstrip("/")).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, tmp_path / "context/root" / path.lstrip("/"))
    return client


async def test_a_step_uses_the_callers_agent_and_surroundings(command: Command, tmp_path: Path) -> None:
    client = key_and_client(tmp_path)
    (tmp_path / "context/root/etc").mkdir()
    (tmp_path / "context/root/etc/passwd").write_text("root:x:0:0::/:/bin/sh\n")
    (tmp_path / "context/Dockerfile").write_text(
        'FROM scratch AS base\nCOPY busybox /bin/\nRUN ["/bin/busybox", "--install", "-s", "/bin"]\nFROM base\nCOPY root /\n'
        f"RUN --mount=type=ssh {client} -l\n"
        "RUN ulimit -n > /files && grep -c made.example /etc/hosts > /hosts; true\n"
    )
    around = ["--add-host", "made.example:10.1.2.3", "--ulimit", "nofile=77", "--network", "none"]
    code, said = await command(*WHERRY, "--ssh", "default=key", *around, "-o", "out", "context")
    assert code == 0, said
    assert "lent-key (ED25519)" in said
    assert not (tmp_path / "out/run/buildkit").exists()
    assert (tmp_path / "out/files").read_text() == "77\n"
    assert (tmp_path / "out/hosts").read_text() == "1\n"
    code, said = await command(*WHERRY, "--ssh", "default", "context", SSH_AUTH_SOCK="")
    assert (code, "SSH_AUTH_SOCK is not set" in said) == (1, True)


async def test_ctrl_c_ends_all_steps_and_leaves_nothing(command: Command, tmp_path: Path) -> None:
    (tmp_path / "context/Dockerfile").write_text(
        'FROM scratch AS base\nCOPY busybox /bin/\nRUN ["/bin/busybox", "--install", "-s", "/bin"]\n'
        "FROM base AS a\nRUN echo begun-a; sleep 600\nFROM base AS b\nRUN echo begun-b; sleep 600\n"
        "FROM scratch\nCOPY --from=a / /a\nCOPY --from=b / /b\n"
    )
    known = os.environ | {"DOCKER_HOST": f"unix://{tmp_path}/d.sock"}
    pipe = asyncio.subprocess.PIPE
    words = [*WHERRY, "--network", "none", "--progress", "plain", "context"]
    child = await asyncio.create_subprocess_exec(*words, env=known, cwd=tmp_path, stdout=pipe, stderr=pipe)
    assert child.stdout is not None
    said = b""
    async with machine.timeout(60):
        while not (b"\nbegun-a" in said and b"\nbegun-b" in said):
            said += await child.stdout.read(4096)
        child.send_signal(signal.SIGINT)
        assert await child.wait() != 0
        while (await command("docker", "ps", "-aq"))[1] or list((tmp_path / "builder/tmp").iterdir()):
            await machine.sleep(0.05)
    code, said_then = await command("docker", "images", "-q", "--filter", "dangling=true")
    assert (code, said_then) == (0, "")


async def test_buildkit_is_refused_with_what_helps(command: Command, tmp_path: Path) -> None:
    socket = Endpoint.parse(f"unix:{tmp_path}/d.sock")
    client = HttpClient(socket)
    for path, query in (
        ("/session", ()),
        ("/grpc", ()),
        ("/build", [("version", "2")]),
        ("/build", [("remote", "client-session")]),
    ):
        answer = await client.request("POST", f"/v1.47{path}", query=query)
        said = (await answer.read()).decode()
        assert (answer.status, "DOCKER_BUILDKIT=0" in said) == (501, True), said
    await client.close()
    code, said = await command(
        "docker", "build", "--network=none", "lib", "-f", "-", input="FROM scratch\n", DOCKER_BUILDKIT="1"
    )
    assert code != 0, said  # without the plug-in docker says so itself


async def test_the_stock_client_names_images_as_caches(command: Command, tmp_path: Path) -> None:
    (tmp_path / "context/Dockerfile").write_text('FROM scratch\nCOPY busybox /\nRUN ["/busybox", "touch", "/f"]\n')
    code, said = await command("docker", "build", "--network=none", "-t", "old:1", "context")
    assert code == 0, said
    code, said = await command("docker", "builder", "prune", "-af")
    assert code == 0, said
    (tmp_path / "context/busybox").touch()
    words = ["--cache-from", "old:1", "--cache-from", "absent:1", "--network=none"]
    code, said = await command("docker", "build", *words, "-t", "new:1", "context")
    assert (code, said.count("Using cache")) == (0, 2), said
    code, said = await command(
        "docker", "build", "--platform", "linux/s390x", "-t", "other:1", "lib", "-f", "-", input="FROM scratch\n"
    )
    assert code == 0, said
    code, said = await command("docker", "image", "inspect", "-f", "{{.Architecture}}", "other:1")
    assert (code, said) == (0, "s390x\n")
