"""What a container may not do, tried from inside."""

import asyncio
import os
from dataclasses import replace
from pathlib import Path

import pytest
from tests.engine.boxes import Place, run, spec

from wherry.clock import machine
from wherry.engine.local import LocalEngine
from wherry.engine.spec import MASKED_PATHS
from wherry.engine.types import ExecSpec, Limits
from wherry.errors import Broken, Invalid
from wherry.host import cgroups

pytestmark = [pytest.mark.root, pytest.mark.asyncio(loop_scope="module")]


async def status(engine: LocalEngine, **further: object) -> dict[str, str]:
    """/proc/self/status of a container's process."""
    _, text = await run(engine, spec("/bin/cat", "/proc/self/status", **further))
    return {name: value.strip() for name, _, value in (line.partition(":") for line in text.splitlines())}


async def test_capabilities_are_docker_s_fourteen(engine: LocalEngine) -> None:
    said = await status(engine)
    assert int(said["CapBnd"], 16) == int(said["CapEff"], 16) == 0xA80425FB
    assert int(said["CapInh"], 16) == int(said["CapAmb"], 16) == 0
    assert said["Seccomp"] == "2"
    said = await status(engine, user="ann")
    assert int(said["CapEff"], 16) == int(said["CapPrm"], 16) == 0
    said = await status(engine, cap_drop=["ALL"], cap_add=["chown"], no_new_privileges=True)
    assert int(said["CapEff"], 16) == 1
    assert said["NoNewPrivs"] == "1"


@pytest.mark.parametrize(
    "command",
    [
        "unshare -U true",
        "unshare -n true",
        "mount -t tmpfs x /tmp",
        "umount /proc",
        "hostname changed",
        "mknod /dev/sda b 8 0 && dd if=/dev/sda of=/dev/null count=1",
        "echo 1 > /proc/sys/kernel/panic",
        "echo b > /proc/sysrq-trigger",
        "! date -s 2020-01-01 2>&1 | grep permitted",
        "chroot /proc/1/root true && unshare -m true",
        "echo 1 > /sys/fs/cgroup/pids/pids.max",
        "mkdir /sys/fs/cgroup/memory/x",
    ],
)
async def test_refused(engine: LocalEngine, command: str) -> None:
    code, text = await run(engine, spec("/bin/sh", "-c", command))
    assert code != 0, text


async def test_an_exec_is_confined_alike(engine: LocalEngine) -> None:
    made = await engine.create(spec("/bin/sleep", "100"))
    await engine.start(made.id)
    for command in ("unshare -U true", "mount -t tmpfs x /tmp"):
        session = await engine.exec(made.id, ExecSpec(["/bin/sh", "-c", command]))
        assert await session.wait() != 0
    session = await engine.exec(made.id, ExecSpec(["/bin/grep", "Seccomp:", "/proc/self/status"]))
    assert [data async for _, data in session.output()] == [b"Seccomp:\t2\n"]
    await engine.remove(made.id, force=True)


async def test_masked_and_read_only_paths(engine: LocalEngine) -> None:
    there = [path for path in MASKED_PATHS if os.path.exists(path)]
    assert len(there) >= 4
    look = f"for p in {' '.join(there)}; do if test -d $p; then ls $p; else cat $p; fi; done"
    script = f"{look}; echo end; touch /proc/sys/kernel/panic"
    code, text = await run(engine, spec("/bin/sh", "-c", script))
    assert text.splitlines()[0] == "end", text
    assert code != 0


async def test_nothing_of_the_machine_is_seen(engine: LocalEngine, place: Place) -> None:
    code, text = await run(engine, spec("/bin/sh", "-c", "cat /proc/mounts; ls /proc | grep -c '^[0-9]'; ls /dev"))
    assert code == 0
    assert str(place.base) not in text.replace("upperdir=", "\n#").replace("lowerdir=", "\n#").split("\n#")[0]
    mounts = [line.split() for line in text.splitlines() if line.count(" ") == 5]
    masked = {words[1] for words in mounts if words[2] == "devtmpfs"}  # the machine's /dev/null over a file
    assert masked <= set(MASKED_PATHS)
    kinds = {words[2] for words in mounts} - {"devtmpfs"}
    assert kinds <= {
        "overlay",
        "proc",
        "tmpfs",
        "devpts",
        "sysfs",
        "cgroup",
        "cgroup2",
        "mqueue",
        "ext4",
        "xfs",
        "btrfs",
    }
    assert {words[1] for words in mounts if words[2] in ("ext4", "xfs", "btrfs")} <= {
        "/etc/hosts",
        "/etc/hostname",
        "/etc/resolv.conf",
    }
    assert "vda" not in text.splitlines()[-20:]
    assert "kmsg" not in text


async def test_a_fork_bomb_ends_at_the_limit(engine: LocalEngine) -> None:
    bomb = "i=0; while test $i -lt 200; do sleep 100 & i=$((i+1)); done; echo all"
    made = await engine.create(spec("/bin/sh", "-c", bomb, limits=Limits(pids=20)))
    await engine.start(made.id)
    async with asyncio.timeout(20):
        exit = await engine.wait(made.id)
    assert exit.code != 0
    await engine.remove(made.id)


async def test_memory_over_the_limit_is_an_oom_kill(engine: LocalEngine) -> None:
    eat = "dd if=/dev/zero of=/dev/null bs=200M count=1"
    made = await engine.create(spec("/bin/dd", *eat.split()[1:], limits=Limits(memory_bytes=32 << 20)))
    await engine.start(made.id)
    exit = await engine.wait(made.id)
    assert exit.code == 137
    assert exit.oom
    await engine.remove(made.id)


async def test_a_kill_is_no_oom(engine: LocalEngine) -> None:
    made = await engine.create(spec("/bin/sleep", "100", limits=Limits(memory_bytes=32 << 20)))
    await engine.start(made.id)
    await engine.kill(made.id)
    exit = await engine.wait(made.id)
    assert (exit.code, exit.oom) == (137, False)
    await engine.remove(made.id)


async def test_limits_are_in_the_kernel(engine: LocalEngine, place: Place) -> None:
    limits = Limits(cpu_quota_us=50_000, cpu_shares=512, memory_bytes=64 << 20, pids=33)
    made = await engine.create(spec("/bin/sleep", "100", limits=limits))
    groups = cgroups.find(place.cgroup)
    pid = (await engine.container(made.id)).pid or engine._containers.lives.find(made.id).run.process.pid  # type: ignore[union-attr]  # pyright: ignore
    where = dict(line.split(":", 2)[1:] for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines())
    if groups.version == 1:
        read = lambda kind, name: Path(f"/sys/fs/cgroup/{kind}{where[kind]}/{name}").read_text().strip()  # noqa: E731
        assert read("cpu", "cpu.cfs_quota_us") == "50000"
        assert read("cpu", "cpu.shares") == "512"
        assert read("memory", "memory.limit_in_bytes") == str(64 << 20)
        assert read("pids", "pids.max") == "33"
    else:
        read = lambda name: Path(f"/sys/fs/cgroup{where['']}/{name}").read_text().strip()  # noqa: E731
        assert read("cpu.max") == "50000 100000"
        assert read("memory.max") == str(64 << 20)
        assert read("pids.max") == "33"
    await engine.remove(made.id)


async def test_a_link_in_the_image_leads_nowhere_outside(engine: LocalEngine, tmp_path: Path) -> None:
    """The engine looks for users, and makes working directories, in a root that may be hostile."""
    victim = tmp_path / "victim"
    made = await engine.create(
        spec(
            "/bin/sh",
            "-c",
            f"rm -rf /etc/passwd /work; ln -s /proc/1/root/etc/shadow /etc/passwd; ln -s {victim} /work",
        )
    )
    await engine.start(made.id)
    await engine.wait(made.id)
    digest, diff_id, size = await engine.diff_layer(made.id)
    assert size > 0
    box = await engine.image("box:1")
    layers = [*box.layers, digest]
    document = {**box.config, "rootfs": {"type": "layers", "diff_ids": [*box.config["rootfs"]["diff_ids"], diff_id]}}
    await engine.commit_image(document, layers, ["hostile:1"])
    with pytest.raises(Invalid):
        await engine.create(replace(spec("/bin/pwd", workdir="/work/below"), image="hostile:1"))
    for user in ("root:root", "ann"):
        wrong = await engine.create(replace(spec("/bin/pwd", user=user), image="hostile:1"))
        with pytest.raises(Broken, match="unable to find"):
            await engine.start(wrong.id)
        await engine.remove(wrong.id)
    assert not os.path.exists(victim)
    await engine.remove(made.id)
    await engine.remove_image("hostile:1")


async def test_a_privileged_container_may_more(engine: LocalEngine) -> None:
    code, text = await run(
        engine,
        spec(
            "/bin/sh",
            "-c",
            "mount -t tmpfs x /tmp && grep Seccomp: /proc/self/status && ls /dev | wc -l",
            privileged=True,
        ),
    )
    assert code == 0, text
    assert "Seccomp:\t0" in text


async def test_nothing_is_inherited(engine: LocalEngine) -> None:
    """No descriptor of the engine or of conmon is open in a container."""
    await machine.sleep(0)
    _, text = await run(engine, spec("/bin/sh", "-c", "ls -l /proc/self/fd | grep -v /proc/"))
    links = [line.rpartition("-> ")[2] for line in text.splitlines() if "->" in line]
    assert all(link.startswith(("pipe:", "/dev/null")) for link in links), text
    assert len(links) <= 3, text
