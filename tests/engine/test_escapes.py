"""Known ways out of a container, tried; and each again without its guard, to show that the attempt is a real one."""

import hashlib
import io
import json
import os
import shutil
import socket
import sys
import tarfile
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.engine.boxes import Place, run, spec, text_of

from wherry.clock import machine
from wherry.engine import archive
from wherry.engine.local import LocalEngine
from wherry.engine.types import ExecSpec, Mount, SandboxSpec
from wherry.errors import Broken, Invalid, NotFound, Unsupported, WherryError
from wherry.host import mounts, spawn

pytestmark = [pytest.mark.root, pytest.mark.asyncio(loop_scope="module")]

HOST_PID = SandboxSpec(id="", hostname="box", network="none", host_pid=True)
HOST_NETWORK = SandboxSpec(id="", hostname="", network="host")
KERNEL_FILES = ("/proc/sys", "/proc/sysrq-trigger", "/proc/irq", "/proc/bus", "/proc/fs", "/sys")
FLIP = """mkdir -p /d.real; i=0
while :; do ln -sfn {to} /d.link; mv -T /d.link /d 2>/dev/null || rm -rf /d; rm -rf /d; mkdir /d; done"""


def probing(*words: str, **further: Any) -> Any:
    """A container that runs probe.py by the machine's own Python."""
    python = os.path.realpath(sys.executable)
    places = {"/usr", "/lib", "/lib64", sys.base_prefix}
    seen = [Mount(place, place, read_only=True) for place in sorted(places) if os.path.exists(place)]
    script = Mount("/probe.py", str(Path(__file__).parent / "probe.py"), read_only=True)
    seen = [mount for mount in seen if not any(mount.target.startswith(f"{each}/") for each in places)]
    return spec(python, "-IS", "/probe.py", *words, mounts=[*seen, script], **further)


async def probe(engine: LocalEngine, *words: str, **further: Any) -> Any:
    code, text = await run(engine, probing(*words, **further))
    assert code == 0, text
    return json.loads(text)


async def read_all(pieces: AsyncIterator[bytes]) -> bytes:
    return b"".join([piece async for piece in pieces])


def tar_of(name: str, data: bytes = b"bad") -> AsyncIterator[bytes]:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        entry = tarfile.TarInfo(name)
        entry.size = len(data)
        tar.addfile(entry, io.BytesIO(data))

    async def body() -> AsyncIterator[bytes]:
        yield buffer.getvalue()

    return body()


# the kernel ----------------------------------------------------------------------------------------------------------
async def test_the_kernel_s_raw_interfaces_are_refused(engine: LocalEngine) -> None:
    """Keys, BPF, modules, mounts, namespaces, reboot, clocks, performance counters, io_uring."""
    said = await probe(engine, "calls")
    assert {name: answer for name, answer in said.items() if answer not in ("EPERM", "ENOSYS")} == {}
    free = await probe(engine, "calls", seccomp="unconfined", cap_add=["ALL"])
    assert sum(answer not in ("EPERM", "ENOSYS") for answer in free.values()) > len(free) // 2


async def test_no_setting_of_the_kernel_can_be_opened_for_writing(engine: LocalEngine) -> None:
    """Nor a control file of its own cgroup, where release agents and limits are."""
    assert await probe(engine, "writable", *KERNEL_FILES, "/sys/fs/cgroup") == []
    free = await probe(engine, "writable", "/proc/sys/kernel", privileged=True)
    assert "/proc/sys/kernel/core_pattern" in free


async def test_other_processes_cannot_be_reached(engine: LocalEngine) -> None:
    """Even where it sees them, with the machine's PID namespace."""
    pid = str(os.getpid())
    said = await probe(engine, "others", pid, sandbox_spec=HOST_PID)
    assert set(said.values()) <= {"EPERM", "EACCES"}, said
    free = await probe(engine, "others", pid, sandbox_spec=HOST_PID, privileged=True)
    assert free["environ"] == free["root"] == "done"


async def test_a_socket_without_a_file_is_of_one_network(engine: LocalEngine) -> None:
    """Abstract unix sockets of the machine's services are out of reach, unless the network is the machine's."""
    name = f"wherry-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("\0" + name)
        listening.listen(4)
        assert await probe(engine, "abstract", name) == "ECONNREFUSED"
        assert await probe(engine, "abstract", name, sandbox_spec=HOST_NETWORK) == "connected"


async def test_a_disk_can_be_named_but_not_opened(engine: LocalEngine) -> None:
    disk = os.stat("/").st_dev if os.major(os.stat("/").st_dev) else 0x800
    major, minor = os.major(disk), os.minor(disk)
    for kind, number, name in (("b", f"{major} {minor}", "disk"), ("c", "1 11", "kmsg"), ("c", "10 229", "fuse")):
        script = f"mknod /{name} {kind} {number} && echo made; dd if=/{name} of=/dev/null bs=512 count=1 2>&1"
        code, text = await run(engine, spec("/bin/sh", "-c", script))
        assert text.startswith("made\n")
        assert code != 0
        assert "not permitted" in text
    script = "mknod /console c 5 1 && mknod /loop c 10 237 && dd if=/loop of=/dev/null count=0 2>&1"
    assert (await run(engine, spec("/bin/sh", "-c", script)))[0] != 0
    assert (await run(engine, spec("/bin/sh", "-c", script, device_rules=["c 10:237 r"])))[0] == 0


# the runtime ---------------------------------------------------------------------------------------------------------
async def test_the_runtime_cannot_be_overwritten(engine: LocalEngine) -> None:
    """CVE-2019-5736: whoever enters the container is the runtime's own file for a moment, by /proc/PID/exe."""
    attack = """/bin/busybox cp /bin/busybox /busybox-victim
        (/busybox-victim sleep 1 & usleep 300000; exec 8</proc/$!/exe; wait; echo ruined > /proc/self/fd/8) 2>&1
        head -c 6 /busybox-victim; echo
        while :; do for p in /proc/[0-9]*; do
            if test $p != /proc/1 && exec 9<$p/exe; then (echo ruined > /proc/self/fd/9) 2>/dev/null; exec 9<&-; fi
        done 2>/dev/null; done"""
    programs = [Path(path) for path in (shutil.which("crun"), shutil.which("conmon")) if path]
    assert len(programs) == 2
    before = [hashlib.sha256(path.read_bytes()).hexdigest() for path in programs]
    made = await engine.create(spec("/bin/sh", "-c", attack))
    await engine.start(made.id)
    async with machine.timeout(20):
        while "ruined" not in await text_of(engine, made.id):
            await machine.sleep(0.01)
    for argv in (["/proc/self/exe"], ["/bin/true"], ["/bin/true"], ["/bin/true"]):
        session = await engine.exec(made.id, ExecSpec(argv))
        await session.wait()
    await engine.remove(made.id, force=True)
    assert [hashlib.sha256(path.read_bytes()).hexdigest() for path in programs] == before
    assert (await run(engine, spec("/bin/true")))[0] == 0


async def test_a_descriptor_is_no_working_directory(engine: LocalEngine, tmp_path: Path) -> None:
    """CVE-2024-21626: a directory of the machine that the runtime has open would be the way out."""
    (tmp_path / "secret").write_text("of the machine")
    look = f"cat {'../' * 12}{tmp_path}/secret"
    for number in (3, 7, 8):
        with suppress(WherryError):
            _, text = await run(engine, spec("/bin/sh", "-c", look, workdir=f"/proc/self/fd/{number}"))
            assert "of the machine" not in text
    made = await engine.create(spec("/bin/sleep", "100"))
    await engine.start(made.id)
    for number in range(3, 13):
        session = await engine.exec(made.id, ExecSpec(["/bin/sh", "-c", look], workdir=f"/proc/self/fd/{number}"))
        assert b"of the machine" not in b"".join([data async for _, data in session.output()])
        assert await session.wait() != 0
    await engine.remove(made.id, force=True)
    _, text = await run(engine, spec("/bin/sh", "-c", look, mounts=[Mount(str(tmp_path), str(tmp_path))]))
    assert text == "of the machine"
    for container in await engine.containers():
        await engine.remove(container.id, force=True)


async def test_what_masks_cannot_be_replaced(engine: LocalEngine) -> None:
    """CVE-2025-31133: a /dev/null of the container's own, where the runtime takes what hides paths from."""
    aim = "ln -s /proc/sys/kernel/core_pattern /v/null; ls -l /v/null"
    code, text = await run(engine, spec("/bin/sh", "-c", aim, mounts=[Mount("/v", "devices", kind="volume")]))
    assert (code, "core_pattern" in text) == (0, True), text
    before = Path("/proc/sys/kernel/core_pattern").read_text()
    look = """for p in /proc/kcore /proc/keys /proc/timer_list /proc/latency_stats; do
        test -e $p && cat $p | head -c 200; (echo ruined > $p) 2>/dev/null; done; echo end"""
    with suppress(Broken):  # or the runtime will not start such a thing at all
        _, text = await run(engine, spec("/bin/sh", "-c", look, mounts=[Mount("/dev", "devices", kind="volume")]))
        assert before.strip() not in text
    assert Path("/proc/sys/kernel/core_pattern").read_text() == before
    engine.volumes.remove("devices", force=True)


# files ---------------------------------------------------------------------------------------------------------------
async def test_links_lead_no_copy_out(engine: LocalEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """cp out of and into a container whose paths are links to the machine's; running and not."""
    (tmp_path / "secret").write_text("of the machine")
    made = await engine.create(
        spec("/bin/sh", "-c", f"ln -s {tmp_path} /link; ln -s {tmp_path}/secret /file; sleep 100")
    )
    await engine.start(made.id)
    async with machine.timeout(10):
        while "/file" not in {change.path for change in await engine.diff(made.id)}:
            await machine.sleep(0.01)

    async def attempts() -> bytes:
        seen = b""
        for path in ("/link/secret", "/link/.", "/file", "/link/../link/secret"):
            with suppress(NotFound):
                seen += await read_all(engine.read_files(made.id, path))
        with suppress(NotFound, Invalid):
            await engine.write_files(made.id, "/link", tar_of("planted"))
        with suppress(NotFound, Invalid):
            await engine.write_files(made.id, "/", tar_of("link/planted"))
        return seen

    for _ in ("running", "stopped"):
        assert b"of the machine" not in await attempts()
        assert sorted(os.listdir(tmp_path)) == ["secret"]
        await engine.stop(made.id, grace_s=0)

    # Without the guard the very same attempt gets out.
    def naive(root: int, path: str, flags: int, mode: int = 0) -> int:
        return os.open(
            os.path.realpath(path) if path.startswith("/link") else f"/proc/self/fd/{root}/{path}", flags, mode
        )

    monkeypatch.setattr(archive.engine_calls, "open_beneath", naive)
    assert b"of the machine" not in await read_all(engine.read_files(made.id, "/bin/true"))
    (Path("/link")).symlink_to(tmp_path)
    try:
        assert b"of the machine" in await read_all(engine.read_files(made.id, "/link/secret"))
    finally:
        Path("/link").unlink()
    await engine.remove(made.id)


async def test_a_link_that_comes_and_goes_leads_no_copy_out(engine: LocalEngine, tmp_path: Path) -> None:
    """The container swaps a directory and a link to the machine all the time, while we copy both ways."""
    (tmp_path / "secret").write_text("of the machine")
    made = await engine.create(spec("/bin/sh", "-c", FLIP.format(to=tmp_path)))
    await engine.start(made.id)
    for _ in range(25):
        with suppress(NotFound, Invalid, Broken):
            assert b"of the machine" not in await read_all(engine.read_files(made.id, "/d/."))
        with suppress(NotFound, Invalid, Broken):
            await engine.write_files(made.id, "/d", tar_of("planted"))
        with suppress(NotFound, Invalid, Broken):
            await engine.write_files(made.id, "/", tar_of("d/planted"))
    assert sorted(os.listdir(tmp_path)) == ["secret"]
    await engine.remove(made.id, force=True)


async def test_a_mount_s_target_that_is_a_link_stays_inside(engine: LocalEngine, tmp_path: Path) -> None:
    """CVE-2021-30465: the target of a mount lies in a volume, where another container swaps it for a link all the time."""
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "sub").mkdir()
    flip = FLIP.format(to=victim).replace("/d", "/shared/d")
    swapping = await engine.create(spec("/bin/sh", "-c", flip, mounts=[Mount("/shared", "swapped", kind="volume")]))
    await engine.start(swapping.id)
    both = [Mount("/shared", "swapped", kind="volume"), Mount("/shared/d/sub", "lent", kind="volume")]
    for _ in range(8):
        with suppress(WherryError):
            await run(engine, spec("/bin/sh", "-c", "echo bad > /shared/d/sub/planted", mounts=both))
    assert list((victim / "sub").iterdir()) == []
    assert not [point for point in mounts.table() if point.target.startswith(str(victim))]
    await engine.remove(swapping.id, force=True)
    for container in await engine.containers():
        await engine.remove(container.id, force=True)
    await engine.settled()
    for name in ("swapped", "lent"):
        engine.volumes.remove(name, force=True)
    # A link that stays, in an image: the target is made beneath the root.
    made = await engine.create(spec("/bin/sh", "-c", f"ln -s {victim} /way"))
    await engine.start(made.id)
    await engine.wait(made.id)
    await engine.commit(made.id, ["way:1"], {}, author="", message="", pause=False)
    await engine.remove(made.id)
    aimed = spec(
        "/bin/sh", "-c", "echo in > /way/planted; cat /way/planted", mounts=[Mount("/way", "lent", kind="volume")]
    )
    with suppress(Broken):  # the runtime may refuse a target that leads nowhere
        assert await run(engine, replace(aimed, image="way:1")) == (0, "in\n")
    assert list(victim.iterdir()) == [victim / "sub"]
    for container in await engine.containers():
        await engine.remove(container.id, force=True)
    await engine.remove_image("way:1")


async def test_a_mount_inside_is_seen_nowhere_else(engine: LocalEngine, place: Place, tmp_path: Path) -> None:
    """Even a privileged container's, and in a directory that it has of the machine; MS_SHARED changes nothing."""
    (tmp_path / "at").mkdir()
    before = {point.target for point in mounts.table()}
    script = "mount -t tmpfs x /out/at && mount --make-rshared / && mount -t tmpfs y /tmp && echo done; sleep 100"
    made = await engine.create(spec("/bin/sh", "-c", script, privileged=True, mounts=[Mount("/out", str(tmp_path))]))
    await engine.start(made.id)
    async with machine.timeout(10):
        while not await text_of(engine, made.id):
            await machine.sleep(0.01)

    def seen() -> list[str]:
        new = {point.target for point in mounts.table()} - before
        return [target for target in new if "/rootfs/" in target or target.startswith(str(tmp_path))]

    assert seen() == []
    mounts.tmpfs(str(tmp_path / "at"))  # the same look does see one that is there
    assert seen() == [str(tmp_path / "at")]
    mounts.unmount(str(tmp_path / "at"))
    await engine.remove(made.id, force=True)
    with pytest.raises(Invalid, match="not a shared mount"):
        await engine.create(spec("/bin/true", mounts=[Mount("/out", str(tmp_path), options=["rshared"])]))
    if spawn.needs_mask():  # the runtime works in a copy of the mounts: what it shares would stop there
        with pytest.raises(Unsupported, match="runc"):
            await engine.create(spec("/bin/true", mounts=[Mount("/out", str(place.run), options=["rshared"])]))


async def test_nothing_of_ours_is_in_its_environment(engine: LocalEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a container nor an exec inherits a variable from the engine or the runtime."""
    monkeypatch.setenv("WHERRY_TEST_SECRET", "of the machine")
    made = await engine.create(spec("/bin/sh", "-c", "env; cat /proc/1/environ; sleep 100", env=["MINE=1"]))
    await engine.start(made.id)
    session = await engine.exec(made.id, ExecSpec(["/bin/env"]))
    inside = b"".join([data async for _, data in session.output()]).decode()
    names = {line.partition("=")[0] for line in inside.splitlines()}
    assert {"MINE", "PATH", "HOME"} <= names <= {"MINE", "PATH", "HOME", "HOSTNAME", "COLOUR"}
    assert "of the machine" not in await text_of(engine, made.id) + inside
    await engine.remove(made.id, force=True)


async def test_a_flood_is_bounded(engine: LocalEngine) -> None:
    """Shared memory, /dev and temporary file systems have an end of their own, and the engine goes on beside it."""
    script = "for d in /dev /dev/shm /t; do dd if=/dev/zero of=$d/f bs=64k count=4096 2>&1 | grep -c 'No space'; rm $d/f; done"
    code, text = await run(
        engine, spec("/bin/sh", "-c", script, mounts=[Mount("/t", kind="tmpfs", options=["size=1m"])])
    )
    assert (code, text) == (0, "1\n1\n1\n")
