"""Children: spawned, waited for, ended; in a masked mount namespace too."""

import asyncio
import os
import signal
from pathlib import Path

import pytest

from wherry.errors import Broken, DeadlineExceeded
from wherry.host import mounts, processes, spawn
from wherry.host.spawn import Spawner


async def test_output_and_status_come_back() -> None:
    done = await spawn.run(["sh", "-c", "cat; echo no >&2; exit 3"], timeout_s=10, stdin=b"in")
    assert (done.code, done.out, done.err) == (3, b"in", b"no\n")
    with pytest.raises(Broken, match=r"sh ended with 3: no"):
        done.check()
    killed = await spawn.run(["sh", "-c", "kill -9 $$"], timeout_s=10)
    assert killed.code == -9


async def test_what_cannot_be_run_says_so() -> None:
    with pytest.raises(Broken, match=r"run /no/such: No such file or directory \(ENOENT\)"):
        await spawn.run(["/no/such"], timeout_s=1)


async def test_a_child_past_its_deadline_is_killed(tmp_path: Path) -> None:
    marker = tmp_path / "pid"
    with pytest.raises(DeadlineExceeded, match="waiting"):
        await spawn.run(["sh", "-c", f"echo $$ > {marker}; echo waiting >&2; exec sleep 60"], timeout_s=0.5)
    assert processes.identify(int(marker.read_text())) is None


async def test_a_grandchild_that_keeps_the_streams_does_not_keep_us() -> None:
    done = await spawn.run(["sh", "-c", "sleep 30 & echo $!"], timeout_s=10)
    found = processes.identify(int(done.out))
    assert found is not None
    assert processes.send_signal(found, signal.SIGKILL)


async def test_output_past_the_limit_is_cut_and_the_child_never_stuck() -> None:
    done = await spawn.plain.run(["head", "-c", "3000000", "/dev/zero"], timeout_s=10, limit_bytes=1000)
    assert (done.code, len(done.out), done.cut) == (0, 1000, True)


async def test_a_child_is_signalled_and_waited_for() -> None:
    child = await spawn.plain.start(["sleep", "60"])
    assert await child.wait(timeout_s=0.01) is None
    assert child.signal(signal.SIGTERM)
    assert await child.wait(timeout_s=5) == -signal.SIGTERM
    assert not child.signal(signal.SIGTERM)
    child.close()


async def test_a_stubborn_child_is_killed_after_its_grace() -> None:
    read_end, write_end = os.pipe()
    child = await spawn.plain.start(["sh", "-c", "trap '' TERM; echo; while :; do sleep 0.05; done"], stdout=write_end)
    os.close(write_end)
    await asyncio.to_thread(os.read, read_end, 1)
    assert await child.end(grace_s=0.2) == -signal.SIGKILL
    child.close()
    os.close(read_end)


@pytest.mark.root
async def test_masked_children_see_no_controllers_and_others_do() -> None:
    if not spawn.needs_mask():
        return  # a machine with one cgroup version: nothing to mask
    async with Spawner(mask_controllers=True) as masked:
        seen = await masked.run(["cat", spawn.HYBRID_CONTROLLERS], timeout_s=5)
        assert (seen.code, seen.out) == (0, b"")
        crun = await masked.run(["crun", "--version"], timeout_s=5)
        assert crun.code == 0
    assert Path(spawn.HYBRID_CONTROLLERS).read_text().strip()
    with pytest.raises(Broken, match="closed"):
        await masked.run(["true"], timeout_s=5)


@pytest.mark.root
async def test_masked_children_see_later_mounts_on_a_shared_directory(tmp_path: Path) -> None:
    (tmp_path / "later").mkdir()
    mounts.share(str(tmp_path))
    try:
        async with Spawner(mask_controllers=True) as masked:
            mounts.tmpfs(str(tmp_path / "later"))
            (tmp_path / "later" / "file").write_text("")
            assert (await masked.run(["ls", str(tmp_path / "later")], timeout_s=5)).out == b"file\n"
    finally:
        mounts.unmount_below(str(tmp_path))


async def test_a_cancelled_wait_leaves_no_child() -> None:
    task = asyncio.create_task(spawn.run(["sleep", "60"], timeout_s=60))
    while not (mine := [pid for pid in processes.children(os.getpid()) if processes.command(pid) == ["sleep", "60"]]):
        await asyncio.to_thread(os.sched_yield)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert all(processes.identify(pid) is None for pid in mine)
