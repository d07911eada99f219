"""Other programs that people point at Docker's socket: aiodocker, and skopeo's `docker-daemon:`."""

import json
from pathlib import Path
from typing import Any

import aiodocker
import pytest
from tests.walks.clients import Engine

from wherry.clock import machine

pytestmark = pytest.mark.root
LABEL = {"walk": "aiodocker"}


async def test_aiodocker_runs_execs_follows_and_is_told_of_errors(engine: Engine) -> None:
    async with aiodocker.Docker(url=engine.host) as client, machine.timeout(30):
        assert (await client.version())["Os"] == "linux"
        events = client.events.subscribe()
        config: Any = {"Image": "busybox", "Cmd": ["sh", "-c", "echo hello; read word; echo $word"], "Labels": LABEL}
        made = await client.containers.create({**config, "OpenStdin": True, "StdinOnce": True, "AttachStdin": True})
        async with made.attach(stdout=True, stderr=True, stdin=True) as stream:
            await made.start()
            assert (await stream.read_out()).data == b"hello\n"  # pyright: ignore[reportOptionalMemberAccess]
            await stream.write_in(b"over the wire\n")
            assert (await stream.read_out()).data == b"over the wire\n"  # pyright: ignore[reportOptionalMemberAccess]
        assert (await made.wait())["StatusCode"] == 0
        assert await made.log(stdout=True) == ["hello\n", "over the wire\n"]
        seen: list[str] = []
        while "die" not in seen:
            event: Any = await events.get()
            if event["Actor"]["ID"] == made.id:
                seen.append(event["Action"])
        assert [each for each in seen if each in ("create", "start", "die")] == ["create", "start", "die"]
        await made.delete()
        running = await client.containers.run({"Image": "busybox", "Cmd": ["sleep", "600"], "Labels": LABEL})
        execution = await running.exec(["sh", "-c", "echo out; echo err >&2; exit 7"])
        async with execution.start() as stream:
            pieces: list[tuple[int, bytes]] = []
            while (piece := await stream.read_out()) is not None:
                pieces.append((piece.stream, piece.data))
        assert sorted(pieces) == [(1, b"out\n"), (2, b"err\n")]
        assert (await execution.inspect())["ExitCode"] == 7
        assert (await running.stats(stream=False))[0]["pids_stats"]["current"] >= 1
        await running.delete(force=True)
        network = await client.networks.create({"Name": "aiodocker-walk", "Labels": LABEL})
        volume = await client.volumes.create({"Name": "aiodocker-walk", "Labels": LABEL})
        assert (await network.show())["Driver"] == "bridge"
        assert (await volume.show())["Driver"] == "local"
        await network.delete()
        await volume.delete()
        with pytest.raises(aiodocker.DockerError, match="No such container") as refused:
            await client.containers.get("nobody")
        assert refused.value.status == 404
    assert engine.left("walk=aiodocker") == []


def test_skopeo_takes_images_out_of_the_engine_and_brings_them_in(engine: Engine, tmp_path: Path) -> None:
    daemon = f"--src-daemon-host={engine.host}"
    engine.run("skopeo", "copy", "--quiet", daemon, "docker-daemon:busybox:latest", f"oci:{tmp_path}/out:1")
    engine.run(
        "skopeo", "copy", "--quiet", f"--dest-daemon-host={engine.host}", f"oci:{tmp_path}/out:1",
        "docker-daemon:brought:1",
    )  # fmt: skip
    assert engine.docker("run", "--rm", "brought:1", "echo", "alive") == "alive\n"
    shown = json.loads(engine.run("skopeo", "inspect", f"--daemon-host={engine.host}", "docker-daemon:brought:1").out)
    layers = json.loads(engine.docker("image", "inspect", "brought:1"))[0]["RootFS"]["Layers"]
    assert shown["Layers"] == layers
    assert shown["Os"] == "linux"
    assert engine.docker("rmi", "brought:1").splitlines()[0] == "Untagged: brought:1"
