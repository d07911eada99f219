"""Processes named for ever, not by pid alone."""

import asyncio
import os
import signal
import subprocess
from dataclasses import replace

import pytest

from wherry.host import processes


def test_we_are_who_we_are() -> None:
    me = processes.identify(os.getpid())
    assert me is not None
    assert processes.is_alive(me)
    assert abs(processes.started_at(me.start_ticks) - os.stat(f"/proc/{os.getpid()}").st_mtime) < 5
    assert processes.proportional_bytes(os.getpid()) > 1 << 20


def test_a_used_again_pid_is_a_stranger() -> None:
    me = processes.identify(os.getpid())
    assert me is not None
    for stranger in (replace(me, start_ticks=me.start_ticks - 1), replace(me, boot_id="another")):
        assert not processes.is_alive(stranger)
        assert processes.open_pidfd(stranger) is None
        assert not processes.send_signal(stranger, signal.SIGKILL)


async def test_the_end_of_a_process_is_seen_by_many() -> None:
    child = subprocess.Popen(["sleep", "60"])  # noqa: ASYNC220 (a millisecond)
    who = processes.identify(child.pid)
    assert who is not None
    assert not await processes.wait_exit(who, timeout_s=0.01)
    waiting = [asyncio.create_task(processes.wait_exit(who, timeout_s=10)) for _ in range(3)]
    ending = asyncio.create_task(processes.end(who, grace_s=5))
    assert await asyncio.gather(*waiting) == [True] * 3
    await ending
    assert not processes.is_alive(who)  # a zombie is no life
    assert child.wait() == -signal.SIGTERM
    assert await processes.wait_exit(who)


def test_children_and_their_children_are_found() -> None:
    script = "sleep 60 & wait"
    with subprocess.Popen(["sh", "-c", script], env={"WORD": "a=b", "PATH": os.environ["PATH"]}) as child:
        while len(found := processes.descendants(child.pid)) < 1 or not processes.command(found[0]):
            os.sched_yield()
        assert processes.command(child.pid)[-1] == script
        assert processes.environment(child.pid)["WORD"] == "a=b"
        for pid in [*found, child.pid]:
            os.kill(pid, signal.SIGKILL)


def test_nobody_has_nothing() -> None:
    nobody = 2**22 - 1
    assert processes.stat(nobody) is None
    assert processes.identify(nobody) is None
    assert processes.children(nobody) == processes.command(nobody) == []


@pytest.mark.parametrize("name", ["plain", "with ) brackets ("])
def test_odd_names_are_read(name: str) -> None:
    with open("/proc/self/comm", "r+") as file:
        old = file.read().strip()
        file.seek(0)
        file.write(name)
    found = processes.stat(os.getpid())
    with open("/proc/self/comm", "w") as file:
        file.write(old)
    assert found is not None
    assert found.parent == os.getppid()
