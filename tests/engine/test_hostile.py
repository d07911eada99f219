"""A machine that does not help: no space, no right to write, no runtime, damaged files. Clear errors, and no damage."""

import os
import shutil
import sqlite3
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio
from tests.engine.boxes import Place, config, put_image, run, spec, text_of

from wherry.clock import machine
from wherry.content.pack import pack_directory
from wherry.engine.local import LocalEngine
from wherry.engine.types import ExecSpec, Mount, State
from wherry.errors import Broken, Damaged, NotFound
from wherry.host import mounts

pytestmark = [pytest.mark.root, pytest.mark.asyncio(loop_scope="module")]

FILL = "dd if=/dev/zero of={at} bs=64k count=2000 2>&1 | grep -c 'No space'; sleep {then}"
SIZE_BYTES = 24 << 20
NO_SPACE = "[Nn]o space|disk is full"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A place whose state and content lie on a file system of 24 MiB."""
    base = tmp_path_factory.mktemp("small")
    made = Place(base)
    made.base = base / "disk"
    made.base.mkdir()
    made.root = made.base / "root"
    mounts.tmpfs(str(made.base), size_bytes=SIZE_BYTES)
    yield made
    left = [line for line in made.leftovers() if line != f"mount {os.path.realpath(made.base)}"]
    made.clear()
    mounts.unmount_below(str(base))
    assert left == []


@pytest_asyncio.fixture(loop_scope="module")
async def cramped(small: Place, tmp_path: Path) -> AsyncIterator[LocalEngine]:
    content = small.content()
    async with small.engine(content) as engine:
        await put_image(content, engine, tmp_path / "source")
        yield engine
        for container in await engine.containers():
            await engine.remove(container.id, force=True)
        await engine.settled()
    await content.close()


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Place]:
    """A place of this test's own."""
    made = Place(tmp_path / "own")
    made.base.mkdir()
    yield made
    made.clear()


def free_bytes(place: Path) -> int:
    seen = os.statvfs(place)
    return seen.f_bavail * seen.f_frsize


async def fill(engine: LocalEngine, small: Place) -> str:
    """Have a container fill the disk with its own layer; it goes on running."""
    made = await engine.create(spec("/bin/sh", "-c", FILL.format(at="/fill", then=100)))
    await engine.start(made.id)
    async with machine.timeout(30):
        while await text_of(engine, made.id) != "1\n" and free_bytes(small.base):
            await machine.sleep(0.02)
    assert free_bytes(small.base) == 0
    return made.id


async def test_a_full_disk_is_said_and_got_over(cramped: LocalEngine, small: Place) -> None:
    """A container fills the disk: others go on, everything that needs space says so, nothing half-made stays."""
    beside = await cramped.create(spec("/bin/sh", "-c", "while :; do usleep 20000; done", name="beside"))
    await cramped.start(beside.id)
    ended = await cramped.create(spec("/bin/true", name="ended"))
    await cramped.start(ended.id)
    await cramped.wait(ended.id)
    await cramped.settled()
    full = await fill(cramped, small)
    known = {container.id for container in await cramped.containers()}

    # What needs space is refused, with the reason.
    with pytest.raises(Broken, match=NO_SPACE):
        await cramped.create(spec("/bin/true"))
    with pytest.raises(Broken, match=NO_SPACE):
        cramped.volumes.create("no-room")
    with pytest.raises(Broken, match=NO_SPACE):
        await cramped.commit("beside", ["no-room:1"], {}, author="", message="", pause=True)

    async def tar() -> AsyncIterator[bytes]:
        for _ in range(64):
            yield b"\0" * 65536

    with pytest.raises(Broken, match=NO_SPACE):
        await cramped.import_image(tar(), ["no-room:1"], {}, message="", platform="")
    with pytest.raises(Broken, match=NO_SPACE):
        await cramped.load(tar())
    with pytest.raises(Broken, match=NO_SPACE):
        await cramped.write_files("ended", "/", tar())
    with pytest.raises(NotFound):
        await cramped.image("no-room:1")
    with pytest.raises(NotFound):
        cramped.volumes.find("no-room")

    # What does not goes on.
    assert {container.id for container in await cramped.containers()} == known
    assert (await cramped.container("beside")).state is State.RUNNING
    session = await cramped.exec("beside", ExecSpec(["/bin/echo", "here"]))
    assert [data async for _, data in session.output()] == [b"here\n"]

    # Ends are noticed, and a person can make room: by removing what takes it.
    await cramped.stop("beside", grace_s=0)
    assert (await cramped.container("beside")).state is State.EXITED
    await cramped.remove(full, force=True)
    await cramped.settled()
    assert free_bytes(small.base) > SIZE_BYTES // 4
    await cramped.start("beside")
    assert (await run(cramped, spec("/bin/true")))[0] == 0
    cramped.volumes.create("room")
    cramped.volumes.remove("room")
    for directory in ("snapshots", "volumes", "trash"):
        assert not [name for name in os.listdir(small.root / directory) if "making" in name]


async def test_an_engine_comes_up_on_a_full_disk(small: Place) -> None:
    """And lets its containers be seen, stopped and removed: it is the way out."""
    content = small.content()
    async with small.engine(content) as engine:
        full = await fill(engine, small)
    async with small.engine(content) as engine:
        assert (await engine.container(full)).state is State.RUNNING
        await engine.stop(full, grace_s=0)
        await engine.remove(full)
        await engine.settled()
    await content.close()
    assert free_bytes(small.base) > SIZE_BYTES // 4


async def test_a_log_that_cannot_be_written_stops_nobody(cramped: LocalEngine, small: Place) -> None:
    """The container's own output goes on, is lost while there is no room, and is kept again after."""
    talking = "i=0; while :; do i=$((i+1)); echo line $i; usleep 5000; done"
    made = await cramped.create(spec("/bin/sh", "-c", talking))
    await cramped.start(made.id)
    full = await fill(cramped, small)
    session = await cramped.exec(made.id, ExecSpec(["/bin/sleep", "0.1"]))
    await session.wait()
    assert (await cramped.container(made.id)).state is State.RUNNING
    await cramped.remove(full, force=True)
    await cramped.settled()
    before = len(await text_of(cramped, made.id))
    async with machine.timeout(10):
        while len(await text_of(cramped, made.id)) <= before:
            await machine.sleep(0.02)


async def test_a_file_system_that_turns_read_only(own: Place, tmp_path: Path) -> None:
    """What the kernel does to a disk with faults: told at once, while it lasts, and the next start says it too."""
    there = Place(tmp_path)
    there.base = tmp_path / "disk"
    there.base.mkdir()
    there.root = there.base / "root"
    mounts.tmpfs(str(there.base), size_bytes=64 << 20)

    def turn(*, read_only: bool) -> None:
        mounts.mount("tmpfs", str(there.base), "tmpfs", flags=mounts.REMOUNT | read_only, options="size=64m")

    content = there.content()
    try:
        async with there.engine(content) as engine:
            await put_image(content, engine, tmp_path / "source")
            for directory in ("containers", "volumes"):  # open files keep the whole of it from being turned
                mounts.bind(str(there.root / directory), str(there.root / directory), read_only=True)
            with pytest.raises(Broken, match="Read-only"):
                await engine.create(spec("/bin/true"))
            with pytest.raises(Broken, match="Read-only"):
                engine.volumes.create("v")
            assert await engine.containers() == []
            for directory in ("containers", "volumes"):
                mounts.unmount(str(there.root / directory))
            assert (await run(engine, spec("/bin/true")))[0] == 0
        await content.close()
        turn(read_only=True)
        with pytest.raises(Broken, match="index cannot be opened"):
            there.content()
        other = own.content()
        with pytest.raises(Broken, match="Read-only"):
            async with there.engine(other):
                raise AssertionError
        await other.close()
        turn(read_only=False)
        content = there.content()
        async with there.engine(content) as engine:
            assert (await run(engine, spec("/bin/true")))[0] == 0
        assert [line for line in there.leftovers() if "disk" not in line] == []
    finally:
        await content.close()
        mounts.unmount_below(str(tmp_path))


async def test_a_runtime_that_fails_or_is_gone(own: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own words come back, the container is as it was, and nothing of the try stays."""
    place = own
    tools = tmp_path / "tools"
    tools.mkdir()
    real = {name: shutil.which(name) for name in ("crun", "conmon")}
    for name, path in real.items():
        script = f'#!/bin/sh\nif test "$*" != --version && test -e {tools}/{name}.fails; then\n'
        script += f"echo 'out of luck: {name}' >&2; exit 1; fi\nexec {path} \"$@\"\n"
        (tools / name).write_text(script)
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    content = place.content()
    async with place.engine(content) as engine:
        await put_image(content, engine, place.base / "source")
        made = await engine.create(spec("/bin/sh", "-c", "exit 3", name="kept"))
        await engine.start(made.id)
        assert (await engine.wait(made.id)).code == 3
        await engine.settled()
        for name, words in (("crun", "out of luck: crun"), ("conmon", "out of luck: conmon")):
            (tools / f"{name}.fails").touch()
            with pytest.raises(Broken, match=words):
                await engine.create(spec("/bin/true"))
            with pytest.raises(Broken, match=words):
                await engine.start("kept")
            shown = await engine.container("kept")
            assert (shown.state, shown.exit is not None) == (State.EXITED, True)
            (tools / f"{name}.fails").unlink()
        for name in ("crun", "conmon"):
            (tools / name).rename(tools / "away")
            with pytest.raises(Broken, match=rf"{name}.*No such file|No such file.*{name}"):
                await engine.create(spec("/bin/true"))
            (tools / "away").rename(tools / name)
        await engine.start("kept")
        assert (await engine.wait("kept")).code == 3
        assert [container.name for container in await engine.containers()] == ["kept"]
        await engine.remove("kept")
        await engine.settled()
    await content.close()
    assert place.leftovers() == []


async def test_a_layer_that_lies(engine: LocalEngine, place: Place, tmp_path: Path) -> None:
    """Its bytes are not those of its digest, or unpack to something else than the config says: nothing of it is shown."""
    content = engine._content  # pyright: ignore[reportPrivateUsage]
    (tmp_path / "a").write_text("a" * 5000)
    lease = await content.lease(seconds=60)
    layer = await pack_directory(content, tmp_path, lease=lease, mtime=0)  # type: ignore[arg-type]
    before = set(os.listdir(place.root / "snapshots"))
    other = "sha256:" + "7" * 64
    await engine.commit_image(config([other]), [layer.digest], ["lies:1"])
    with pytest.raises(Damaged, match=f"unpacks to {layer.diff_id}, its config says {other}"):
        await engine.create(replace(spec("/bin/true"), image="lies:1"))
    await engine.commit_image(config([layer.diff_id]), [layer.digest], ["rots:1"])
    path = content.path(layer.digest)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.chmod(0o644)
    path.write_bytes(data)
    with pytest.raises(Damaged):
        await engine.create(replace(spec("/bin/true"), image="rots:1"))
    await content.end_lease(lease)
    assert set(os.listdir(place.root / "snapshots")) == before
    for name in ("lies:1", "rots:1"):
        await engine.remove_image(name)


async def test_damaged_state(own: Place) -> None:
    """A snapshot that is gone is unpacked again; a row that cannot be read costs one container, a lost database none."""
    place = own
    content = place.content()
    async with place.engine(content) as engine:
        await put_image(content, engine, place.base / "source")
        keeps = await engine.create(spec("/bin/sh", "-c", "touch /made; exec sleep 100", name="keeps"))
        await engine.start(keeps.id)
        ended = await engine.create(
            spec("/bin/test", "-e", "/bin/sh", name="ended", mounts=[Mount("/v", "v", kind="volume")])
        )
        for snapshot in (place.root / "snapshots").iterdir():
            if len(snapshot.name) == 64:
                snapshot.rename(place.root / "aside")
        await engine.remove("ended")
        again = await engine.create(spec("/bin/test", "-e", "/bin/sh", name="ended"))
        await engine.start(again.id)
        assert (await engine.wait(again.id)).code == 0
        shutil.rmtree(place.root / "aside")
        (place.root / "volumes" / "v" / "volume.json").write_bytes(b"{no")
        assert engine.volumes.find("v").name == "v"
        engine.volumes.remove("v")
        pid = (await engine.container("keeps")).pid
    with sqlite3.connect(place.root / "engine.db") as database:
        (good,) = database.execute("SELECT body FROM containers WHERE id = ?", (keeps.id,)).fetchone()
        database.execute("UPDATE containers SET body = ? WHERE id = ?", (good[:40], keeps.id))
    database.close()
    async with place.engine(content) as engine:
        assert [each.name for each in await engine.containers()] == ["ended"]
        os.kill(pid, 0)  # what nobody can read is left alone: it lives
        await engine.remove("ended")
        await engine.settled()
    with sqlite3.connect(place.root / "engine.db") as database:
        database.execute("UPDATE containers SET body = ? WHERE id = ?", (good, keeps.id))
    database.close()
    data = (place.root / "engine.db").read_bytes()
    (place.root / "engine.db").write_bytes(b"no database" * 1000)
    with pytest.raises(Broken, match=r"engine\.db: .*not a database"):
        async with place.engine(content):
            raise AssertionError
    os.kill(pid, 0)
    (place.root / "engine.db").write_bytes(data)
    async with place.engine(content) as engine:
        assert (await engine.container("keeps")).pid == pid
        await engine.remove("keeps", force=True)
        await engine.settled()
    await content.close()
    assert ended.id != again.id
    assert place.leftovers() == []
