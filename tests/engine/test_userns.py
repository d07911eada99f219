"""User namespaces: what is root inside is nobody outside, and files keep their owners on the disk."""

import io
import os
import shutil
import tarfile
import tempfile
from collections.abc import AsyncIterator, Generator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio
from tests.engine.boxes import Place, put_image, run, spec, text_of

from wherry.clock import machine
from wherry.engine import remaps
from wherry.engine.local import LocalEngine
from wherry.engine.remaps import Remap
from wherry.engine.types import ExecSpec, Mount, SandboxSpec
from wherry.errors import BadRequest, Broken, Invalid, Unavailable, Unsupported
from wherry.host import idmaps
from wherry.host.idmaps import IdRange

root_needed = [pytest.mark.root, pytest.mark.asyncio(loop_scope="module")]
BASE = 300_000
OWN = SandboxSpec(id="", hostname="box", network="none", userns="host")


@pytest.fixture(scope="module")
def open_place() -> Iterator[Place]:
    with opened() as made:
        yield made


@contextmanager
def opened() -> Generator[Place]:
    """A place that a user without rights may pass to: pytest's own directories are closed."""
    base = Path(tempfile.mkdtemp(prefix="wherry-userns-"))
    base.chmod(0o711)
    made = Place(base)
    yield made
    left = made.leftovers()
    made.clear()
    shutil.rmtree(base)
    assert left == []


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def remapped(open_place: Place) -> AsyncIterator[LocalEngine]:
    content = open_place.content()
    async with open_place.engine(content, userns_remap=f"auto:{BASE}:{4 * 65536}") as engine:
        await put_image(content, engine, open_place.base / "source")
        yield engine
        for container in await engine.containers():
            await engine.remove(container.id, force=True)
        await engine.settled()
    await content.close()


def owner(path: Path) -> tuple[int, int]:
    seen = path.lstat()
    return seen.st_uid, seen.st_gid


async def said(engine: LocalEngine, ref: str, *argv: str) -> str:
    session = await engine.exec(ref, ExecSpec(list(argv)))
    text = b"".join([data async for _, data in session.output()]).decode()
    assert await session.wait() == 0, text
    return text


class TestInside:
    pytestmark = root_needed

    async def test_root_inside_is_nobody_outside(
        self, remapped: LocalEngine, open_place: Place, tmp_path: Path
    ) -> None:
        """Whatever a container does as its root, on the machine it is a number that owns nothing."""
        (tmp_path / "secret").write_text("x")
        (tmp_path / "secret").chmod(0o600)
        tmp_path.chmod(0o755)
        script = """id -u; cat /proc/self/uid_map; touch /mine /vol/mine; ln -s x /vol/link
            cat /out/secret 2>&1; echo hosts >> /etc/hosts; echo out > /dev/stdout; echo a > /dev/shm/a
            mount -t tmpfs x /tmp 2>&1; hostname; sleep 100"""
        made = await remapped.create(
            spec(
                "/bin/sh", "-c", script, name="r",
                mounts=[Mount("/vol", "data", kind="volume"), Mount("/out", str(tmp_path))],
                sandbox_spec=SandboxSpec(
                    id="", hostname="own", network="none", sysctls={"net.ipv4.ip_forward": "1", "kernel.shmmni": "77"}
                ),
            )
        )  # fmt: skip
        await remapped.start(made.id)
        assert (await said(remapped, "r", "/bin/cat", "/proc/sys/kernel/shmmni")) == "77\n"
        async with machine.timeout(10):
            while "own\n" not in await text_of(remapped, "r"):
                await machine.sleep(0.01)
        lines = (await text_of(remapped, "r")).splitlines()
        assert lines[0] == "0"
        assert [int(word) for word in lines[1].split()] == [0, BASE, 65536]
        assert "Permission denied" in lines[2]
        assert lines[3] == "out"
        assert "not permitted" in lines[4] or "denied" in lines[4]
        assert lines[5] == "own"
        shown = await remapped.container("r")
        status = Path(f"/proc/{shown.pid}/status").read_text()
        assert f"Uid:\t{BASE}\t{BASE}\t{BASE}\t{BASE}" in status
        assert os.stat(f"/proc/{shown.pid}/ns/user").st_ino != os.stat("/proc/self/ns/user").st_ino
        upper = open_place.root / "containers" / made.id / "upper"
        data = open_place.root / "volumes" / "data" / "_data"
        assert [owner(path) for path in (upper / "mine", data / "mine", data / "link")] == [(0, 0)] * 3

        # An exec, as a user of the image.
        session = await remapped.exec("r", ExecSpec(["/bin/sh", "-c", "id -u; touch /tmp/t"], user="ann"))
        assert [text async for _, text in session.output()] == [b"1000\n"]
        assert await session.wait() == 0
        assert owner(upper / "tmp" / "t") == (1000, 1001)

        # cp both ways while it runs, and when it does not.
        for name in ("running", "stopped"):
            await remapped.write_files("r", "/home", tar_of(f"{name}/a", 33, 44))
            assert owner(upper / "home" / name / "a") == (33, 44)
            assert owner(upper / "home" / name) == (0, 0)
            entries = tar_in(b"".join([piece async for piece in remapped.read_files("r", f"/home/{name}")]))
            assert entries == {name: (0, 0), f"{name}/a": (33, 44)}
            exported = tar_in(b"".join([piece async for piece in remapped.export("r")]))
            assert exported["tmp/t"] == (1000, 1001)
            if name == "running":
                with pytest.raises(Unsupported, match="70000"):
                    await remapped.write_files("r", "/home", tar_of("far", 70000, 0))
                await remapped.stop("r", grace_s=0)

        # What it changed, and an image of it, have the disk's owners; the next one may have another range.
        changed = {change.path for change in await remapped.diff("r")}
        assert {"/mine", "/tmp/t", "/home/stopped/a"} <= changed
        await remapped.commit("r", ["kept:1"], {"Cmd": ["/bin/true"]}, author="", message="", pause=True)
        look = "ls -ln /home/stopped/a /tmp/t /vol/mine; touch /vol/second; cat /proc/self/uid_map"
        made = spec("/bin/sh", "-c", look, name="s", mounts=[Mount("/vol", "data", kind="volume")])
        code, text = await run(remapped, replace(made, image="kept:1"))
        assert code == 0, text
        assert [tuple(line.split()[2:4]) for line in text.splitlines()[:3]] == [
            ("33", "44"),
            ("1000", "1001"),
            ("0", "0"),
        ]
        assert int(text.splitlines()[3].split()[1]) == BASE + 65536
        assert owner(data / "second") == (0, 0)
        await remapped.remove("r")

    async def test_each_has_a_range_of_its_own_until_none_is_left(self, remapped: LocalEngine) -> None:
        seen: set[str] = set()
        for _ in range(4):
            made = await remapped.create(spec("/bin/sleep", "100"))
            await remapped.start(made.id)
            seen.add(await said(remapped, made.id, "/bin/cat", "/proc/self/uid_map"))
        assert len(seen) == 4
        with pytest.raises(Unavailable, match="all 4 ranges"):
            await remapped.create(spec("/bin/true"))
        for container in await remapped.containers():
            await remapped.remove(container.id, force=True)
        await remapped.settled()
        assert (await run(remapped, spec("/bin/true")))[0] == 0

    async def test_host_opts_out_and_docker_s_conflicts_are_told(self, remapped: LocalEngine) -> None:
        code, text = await run(remapped, spec("/bin/cat", "/proc/self/uid_map", sandbox_spec=OWN))
        assert (code, int(text.split()[2])) == (0, 2**32 - 1)
        assert (await run(remapped, spec("/bin/true", sandbox_spec=OWN, privileged=True)))[0] == 0
        mine = replace(OWN, userns="")
        for wrong, words in (
            (spec("/bin/true", privileged=True), "privileged mode is incompatible with user namespaces"),
            (spec("/bin/true", sandbox_spec=replace(mine, network="host")), "host's network namespace"),
            (spec("/bin/true", sandbox_spec=replace(mine, host_pid=True)), "host PID namespace"),
            (spec("/bin/true", sandbox_spec=replace(mine, host_ipc=True)), "host's IPC namespace"),
            (spec("/bin/true", sandbox_spec=replace(mine, userns="keep-id")), "invalid user namespace mode"),
        ):
            with pytest.raises(BadRequest, match=words):
                await remapped.create(wrong)

    async def test_a_joined_container_shares_the_user_namespace(self, remapped: LocalEngine) -> None:
        first = await remapped.create(spec("/bin/sleep", "100", name="first"))
        await remapped.start(first.id)
        look = "cat /proc/self/uid_map; ls -l /proc/self/ns/user; test -e /dev/mqueue && echo x > /dev/shm/x"
        for kind in ("network", "pid"):
            code, text = await run(remapped, spec("/bin/sh", "-c", look, join={kind: first.id}))
            assert code == 0, text
            theirs = os.readlink(f"/proc/{(await remapped.container('first')).pid}/ns/user")
            assert theirs in text
        await remapped.remove("first", force=True)

    async def test_copy_up_and_a_users_directory_of_the_image(self, remapped: LocalEngine, open_place: Place) -> None:
        """A new volume gets what the image has there, owners too; a working directory is made as root."""
        made = spec(
            "/bin/sh", "-c", "ls -ln /etc/not-a-program; pwd; touch here; ls -lnd .",
            workdir="/deep/er", mounts=[Mount("/etc/", "etc", kind="volume")],
        )  # fmt: skip
        code, text = await run(remapped, made)
        assert code == 0, text
        assert text.splitlines()[0].split()[2:4] == ["0", "0"]
        assert text.splitlines()[2].split()[2:4] == ["0", "0"]
        assert owner(open_place.root / "volumes" / "etc" / "_data" / "not-a-program") == (0, 0)

    async def test_what_cannot_be_shown_is_said(self, remapped: LocalEngine, tmp_path: Path) -> None:
        """A file system without id-mapped mounts: proc stands for one."""
        pins = await idmaps.create(str(tmp_path / "ns"), (), IdRange(BASE, 65536))
        (tmp_path / "at").mkdir()
        with pytest.raises(Unsupported, match=r"\(proc, Linux .*--userns=host"):
            idmaps.show("/proc", str(tmp_path / "at"), pins["user"])
        for pin in pins.values():
            idmaps.namespaces.unpin(pin)

    async def test_it_keeps_its_ids_when_the_setting_changes(self) -> None:
        """Over a restart of the engine that no longer remaps; what a kill in the middle of mounting left goes."""
        with opened() as place:
            content = place.content()
            async with place.engine(content, userns_remap=f"{BASE}:65536") as engine:
                await put_image(content, engine, place.base / "source")
                made = await engine.create(spec("/bin/sh", "-c", "touch /mine; exec sleep 100", name="r"))
                await engine.start(made.id)
                ended = await engine.create(spec("/bin/cat", "/proc/self/uid_map", name="e"))
                await engine.start(ended.id)
                await engine.wait(ended.id)
                await engine.settled()
            bundle = place.run / "containers" / ended.id
            (bundle / "layers").mkdir(parents=True)
            idmaps.show(
                str(place.root / "snapshots"),
                str(bundle / "layers"),
                str(place.run / "sandboxes" / made.id / "ns" / "user"),
            )
            async with place.engine(content) as engine:
                assert not bundle.exists()
                assert "300000" in await said(engine, "r", "/bin/cat", "/proc/self/uid_map")
                await engine.start("e")
                assert (await engine.wait("e")).code == 0
                assert (await text_of(engine, "e")).split()[1::3] == [str(BASE)] * 2
                code, text = await run(engine, spec("/bin/cat", "/proc/self/uid_map"))
                assert (code, int(text.split()[1])) == (0, 0)
                for name in ("r", "e"):
                    await engine.remove(name, force=True)
                await engine.settled()
            await content.close()

    async def test_a_closed_way_is_said(self, place: Place) -> None:
        content = place.content()
        with pytest.raises(Broken, match=r"cannot pass .*chmod o\+x"):
            async with place.engine(content, userns_remap=f"{BASE}:65536"):
                raise AssertionError
        await content.close()


def tar_of(name: str, uid: int, gid: int) -> AsyncIterator[bytes]:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        entry = tarfile.TarInfo(name)
        entry.uid, entry.gid, entry.size = uid, gid, 1
        tar.addfile(entry, io.BytesIO(b"a"))

    async def body() -> AsyncIterator[bytes]:
        yield buffer.getvalue()

    return body()


def tar_in(data: bytes) -> dict[str, tuple[int, int]]:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return {entry.name: (entry.uid, entry.gid) for entry in tar}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", None),
        ("ann", Remap(IdRange(100000, 65536))),
        ("default", Remap(IdRange(231072, 131072))),
        ("auto:default", Remap(IdRange(231072, 131072), apart=True)),
        ("500000:4096", Remap(IdRange(500000, 4096))),
    ],
)
def test_the_setting(tmp_path: Path, text: str, found: Remap | None) -> None:
    (tmp_path / "subuid").write_text("ann:100000:65536\nwherry:231072:131072\nsplit:7000:1000\n# no line\n")
    (tmp_path / "subgid").write_text("ann:100000:65536\nwherry:231072:196608\nsplit:8000:1000\n")
    assert remaps.read(text, tmp_path) == found


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("nobody-here", "has no line for it"),
        ("split", "must begin alike"),
        ("auto:500000:4096", "at least 65536"),
        ("0:65536", "from 1000 on"),
        ("4294901760:65536", "ids from"),
    ],
)
def test_a_wrong_setting_is_named(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "subuid").write_text("split:7000:1000\n")
    (tmp_path / "subgid").write_text("split:8000:1000\n")
    with pytest.raises(Invalid, match=words):
        remaps.read(text, tmp_path)


def test_slices_are_given_back() -> None:
    remap = Remap(IdRange(200000, 3 * 65536 + 10), apart=True)
    first = remap.choose([])
    second = remap.choose([first])
    assert (first.base, second.base) == (200000, 265536)
    assert remap.choose([second]) == first
    assert remap.choose([IdRange(200000 + 65536 // 2, 65536)]).base == 331072, (
        "a range of another setting, across two of ours"
    )
    with pytest.raises(Unavailable):
        remap.choose([first, second, IdRange(331072, 65536)])
