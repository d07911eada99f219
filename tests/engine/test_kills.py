"""kill -9 of the engine at every arrow of README.md's table, and what the next start makes of it."""

import asyncio
import os
import random
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.engine.boxes import Place, put_image, run, spec, text_of
from tests.engine.test_registries import Registry

from wherry.clock import RealClock, machine
from wherry.content import oci
from wherry.content.local import LocalContent
from wherry.content.protocol import Digest
from wherry.engine.local import LocalEngine
from wherry.engine.types import ExecSpec, State
from wherry.host import processes
from wherry.wire.server import Server

pytestmark = [pytest.mark.root, pytest.mark.asyncio(loop_scope="module")]

ROOT = Path(__file__).parents[2]
CREATING = ("intent", "sandbox:intent", "sandbox:namespaces", "sandbox:made", "sandbox", "spawned", "made", "created")


class Scene:
    """A place with an image, and victims in it."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.shared = place.base / "shared"
        self.shared.mkdir(exist_ok=True)

    async def victim(
        self, arrow: str, count: int, *steps: str, kill: bool = False, after_s: float = 0.0, **environment: str
    ) -> None:
        """Run a victim until it is killed: by its own arrow, or by us when it is READY."""
        argv = [
            sys.executable,
            "-m",
            "tests.engine.victim",
            str(self.place.base),
            self.place.instance,
            arrow,
            str(count),
        ]
        process = await asyncio.to_thread(
            subprocess.Popen,
            [*argv, *steps],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=os.environ | environment,
        )
        try:
            if kill:
                assert process.stdout is not None
                assert await asyncio.to_thread(process.stdout.readline) == b"READY\n", process.stderr
                await machine.sleep(after_s)
                process.kill()
            out, err = await asyncio.to_thread(process.communicate, None, 30)
            assert process.returncode == -signal.SIGKILL, (arrow, out, err.decode()[-3000:])
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()

    @asynccontextmanager
    async def engine(self, **settings: Any) -> AsyncGenerator[LocalEngine]:
        content = self.place.content()
        async with self.place.engine(content, **settings) as engine:
            yield engine
        await content.close()

    def release(self) -> None:
        """Let the container end."""
        (self.shared / "go").touch()


@pytest.fixture
async def scene(place: Place) -> AsyncIterator[Scene]:
    made = Scene(place)
    (made.shared / "go").unlink(missing_ok=True)
    if not (place.base / "source").exists():
        async with made.engine() as engine:
            content = engine._content  # pyright: ignore[reportPrivateUsage]
            await put_image(content, engine, place.base / "source")  # type: ignore[arg-type]
    yield made
    async with made.engine() as engine:
        for container in await engine.containers():
            await engine.remove(container.id, force=True)
        for sandbox in await engine.sandboxes():
            await engine.remove_sandbox(sandbox.id)
    assert place.leftovers() == []


@pytest.mark.parametrize("arrow", CREATING)
async def test_a_kill_while_creating_leaves_nothing(scene: Scene, arrow: str) -> None:
    """Nobody was told of the container, so the next start takes it away."""
    await scene.victim(arrow, 1, "create")
    async with scene.engine() as engine:
        assert await engine.containers() == []
        await engine.settled()
        assert await engine.sandboxes() == []
    assert scene.place.leftovers() == []


async def test_a_kill_before_the_start_leaves_it_created(scene: Scene) -> None:
    await scene.victim("starting", 1, "create", "start")
    async with scene.engine() as engine:
        assert (await engine.container("c")).state is State.CREATED
        await engine.start("c")
        scene.release()
        assert (await engine.wait("c")).code == 7


@pytest.mark.parametrize("arrow", ["started", ""])
async def test_it_lives_on_when_the_engine_is_killed(scene: Scene, arrow: str) -> None:
    """Also when the kill comes before the row says STARTED. Log and exit code are kept."""
    await scene.victim(arrow, 1, "create", "start", kill=not arrow)
    async with scene.engine() as engine:
        shown = await engine.container("c")
        assert shown.state is State.RUNNING
        assert processes.identify(shown.pid) is not None
        scene.release()
        assert (await engine.wait("c")).code == 7
        assert await text_of(engine, "c") == "begun\ndone\n"
        await engine.start("c")
        assert (await engine.wait("c")).code == 7
        assert await text_of(engine, "c") == "begun\ndone\n" * 2


async def test_an_end_that_nobody_saw_is_found(scene: Scene) -> None:
    await scene.victim("", 1, "create", "start", kill=True)
    before = machine.now()
    scene.release()
    exits = scene.place.run / "exits"
    async with asyncio.timeout(10):
        while not [name for name in os.listdir(exits) if len(name) == 64]:
            await machine.sleep(0.01)
    async with scene.engine() as engine:
        shown = await engine.container("c")
        assert shown.state is State.EXITED
        assert shown.exit is not None
        assert shown.exit.code == 7
        assert before - 1 < shown.exit.time < machine.now() + 1


async def test_an_end_without_conmon_is_known_as_lost(scene: Scene) -> None:
    await scene.victim("", 1, "create", "start", kill=True)
    for pid in processes.pids():
        words = processes.command(pid)
        if words and words[0].endswith("conmon") and any(str(scene.place.base) in word for word in words):
            os.kill(pid, signal.SIGKILL)
    async with scene.engine() as engine:
        shown = await engine.container("c")
        assert shown.state is State.EXITED
        assert shown.exit is not None
        assert shown.exit.code == 255
        assert shown.exit.error


async def test_a_kill_after_the_end_is_written_clears_up(scene: Scene) -> None:
    await scene.victim("exited", 1, "create", "start", "go", "wait", "settle")
    async with scene.engine() as engine:
        shown = await engine.container("c")
        assert shown.exit is not None
        assert shown.exit.code == 7
        assert not list((scene.place.run / "containers").iterdir())


@pytest.mark.parametrize("arrow", ["intent", "spawned", "made", "created"])
async def test_a_kill_while_starting_again_keeps_the_container(scene: Scene, arrow: str) -> None:
    await scene.victim(arrow, 2, "create", "start", "go", "wait", "start")
    async with scene.engine() as engine:
        shown = await engine.container("c")
        assert shown.state is State.EXITED
        assert shown.exit is not None
        assert shown.exit.code == 7
        await engine.start("c")
        assert (await engine.wait("c")).code == 7


@pytest.mark.parametrize("arrow", ["removing", "sandbox:removing"])
async def test_a_kill_while_removing_goes_on_removing(scene: Scene, arrow: str) -> None:
    await scene.victim(arrow, 1, "create", "start", "remove", "settle")
    async with scene.engine() as engine:
        assert await engine.containers() == []
    assert scene.place.leftovers() == []


@pytest.mark.parametrize("arrow", ["sandbox:intent", "sandbox:namespaces", "sandbox:made"])
async def test_a_half_made_sandbox_is_made_again(scene: Scene, arrow: str) -> None:
    await scene.victim(arrow, 1, "sandbox")
    async with scene.engine() as engine:
        assert [sandbox.ready for sandbox in await engine.sandboxes()] == [False]
        spec = (await engine.sandbox("s")).spec
        assert (await engine.create_sandbox(spec)).ready


async def killed_while_committing(scene: Scene, times: int) -> None:
    """The container was stopped for the moment of the commit: it must not stay so. The image is there whole, or not at all."""
    async with scene.engine() as engine:
        made = await engine.create(
            spec("/bin/sh", "-c", "dd if=/dev/urandom of=/big bs=1M count=6; sleep 1000", name="c")
        )
        await engine.start(made.id)
        async with machine.timeout(20):
            while "6+0 records out" not in await text_of(engine, made.id):
                await machine.sleep(0.01)
    rng = random.Random(3)
    for _ in range(times):
        await scene.victim("", 1, "commits", kill=True, after_s=rng.uniform(0.0, 0.3))
        async with scene.engine() as engine:
            assert (await engine.container("c")).state is State.RUNNING
            session = await engine.exec("c", ExecSpec(["/bin/echo", "alive"]))
            async with machine.timeout(10):
                assert [data async for _, data in session.output()] == [b"alive\n"]
            if any("docker.io/library/kept:1" in image.names for image in await engine.images()):
                assert (await run(engine, replace(spec("/bin/test", "-s", "/big"), image="kept:1")))[0] == 0
            await engine.settled()
            assert not list((scene.place.root / "trash").iterdir())
            assert not [name for name in os.listdir(scene.place.root / "snapshots") if name.startswith("making-")]
    async with scene.engine() as engine:
        await engine.commit("c", ["kept:1"], {"Cmd": ["/bin/true"]}, author="", message="", pause=True)
        assert (await run(engine, replace(spec("/bin/test", "-s", "/big"), image="kept:1")))[0] == 0
        await engine.remove("c", force=True)
        await engine.remove_image("kept:1")


async def killed_while_pulling(scene: Scene, times: int) -> None:
    """The image is there whole, or not at all; the next pull is as if nothing had been; nothing half-made stays."""
    content = scene.place.content()
    registry = Registry(content)
    async with scene.engine() as engine:
        registry.tags["far:1"] = Digest((await engine.image("box:1")).digest)
        other = Registry(LocalContent.open(scene.place.base / "far", clock=RealClock()))
        for digest in [
            (await engine.image("box:1")).digest,
            *await documents(content, (await engine.image("box:1")).digest),
        ]:
            await other.content.put(await content.read(Digest(digest)))
        other.tags = registry.tags
        await engine.remove_image("box:1", force=True)
        await content.collect()
    rng = random.Random(4)
    async with Server(other.handle) as server:
        host, port = await server.start_tcp("127.0.0.1", 0)
        name = f"{host}:{port}"
        for _ in range(times):
            await scene.victim("", 1, "pulls", kill=True, after_s=rng.uniform(0.0, 0.4), REF=f"{name}/far:1")
            async with scene.engine(insecure=frozenset({name})) as engine:
                for image in await engine.images():
                    assert (await run(engine, replace(spec("/bin/true"), image=image.id)))[0] == 0
                await engine.settled()
                assert not [each for each in os.listdir(scene.place.root / "snapshots") if each.startswith("making-")]
                assert not list((scene.place.root / "trash").iterdir())
                await engine.pull(f"{name}/far:1")
                assert (await run(engine, replace(spec("/bin/true"), image=f"{name}/far:1")))[0] == 0
                await engine.remove_image(f"{name}/far:1")
                await content.collect()
                assert [image.names for image in await engine.images() if image.names] == []
    await put_again(scene)
    await other.content.close()
    await content.close()


async def documents(content: LocalContent, digest: str) -> list[str]:
    """Name what a manifest refers to."""
    return list(oci.references(await content.read(Digest(digest))))


async def put_again(scene: Scene) -> None:
    async with scene.engine() as engine:
        content = engine._content  # pyright: ignore[reportPrivateUsage]
        await put_image(content, engine, scene.place.base / "source")  # type: ignore[arg-type]


async def test_a_kill_while_committing(scene: Scene) -> None:
    await killed_while_committing(scene, 2)


async def test_a_kill_while_pulling(scene: Scene) -> None:
    await killed_while_pulling(scene, 2)


@pytest.mark.soak
async def test_many_kills_while_committing_and_pulling(scene: Scene) -> None:
    await killed_while_committing(scene, 25)
    await killed_while_pulling(scene, 25)


@pytest.mark.soak
async def test_kills_at_random_moments(scene: Scene) -> None:
    """Whatever was going on: the next start takes up or takes away everything, and then nothing is left."""
    rng = random.Random(2)
    for _ in range(50):
        await scene.victim("", 1, "churn", kill=True, after_s=rng.uniform(0.0, 0.4))
        async with scene.engine() as engine:
            for container in await engine.containers():
                if container.state is State.RUNNING:
                    assert (await engine.wait(container.id)).code == 3
                elif container.state is State.CREATED:
                    await engine.start(container.id)
                    assert (await engine.wait(container.id)).code == 3
                else:
                    assert container.exit is not None
                    assert container.exit.code in (3, 137), container.exit  # the churn kills some itself
                await engine.remove(container.id, force=True)
            await engine.settled()
        assert scene.place.leftovers() == []
