"""Processes of this machine: who they are over time, whether they live, and signals that cannot hit a stranger.

A pid alone names nobody, since it is used again. An `Identity` (boot, pid, start time) does, over restarts of ours too.
"""

import asyncio
import os
import signal
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from wherry.clock import machine
from wherry.errors import Broken
from wherry.host import kernel

TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Identity:
    """One process, for ever: the boot it belongs to, its pid, and its start in clock ticks since that boot."""

    boot_id: str
    pid: int
    start_ticks: int


@dataclass(frozen=True, slots=True)
class Stat:
    """What /proc/PID/stat says. `state` is its letter: Z is a zombie, X is dead."""

    pid: int
    name: str
    state: str
    parent: int
    group: int
    session: int
    cpu_ticks: int
    threads: int
    start_ticks: int
    resident_bytes: int


def boot_id() -> str:
    """Return the kernel's random name for this boot."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


def stat(pid: int) -> Stat | None:
    """Read /proc/PID/stat; None when there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            text = file.read()
    except (FileNotFoundError, ProcessLookupError):
        return None
    start, end = text.index("("), text.rindex(")")
    words = text[end + 2 :].split()
    return Stat(
        pid=pid,
        name=text[start + 1 : end],
        state=words[0],
        parent=int(words[1]),
        group=int(words[2]),
        session=int(words[3]),
        cpu_ticks=int(words[11]) + int(words[12]),
        threads=int(words[17]),
        start_ticks=int(words[19]),
        resident_bytes=int(words[21]) * os.sysconf("SC_PAGE_SIZE"),
    )


def identify(pid: int) -> Identity | None:
    """Say who has this pid now; None when nobody has, or only a zombie."""
    found = stat(pid)
    if found is None or found.state in "ZX":
        return None
    return Identity(boot_id(), pid, found.start_ticks)


def is_alive(identity: Identity) -> bool:
    """Say whether this very process still runs (a zombie does not)."""
    return identify(identity.pid) == identity


@contextmanager
def opened(identity: Identity) -> Generator[int | None]:
    """Give a pidfd of this very process, or None when it is gone; closed at the end."""
    fd = open_pidfd(identity)
    try:
        yield fd
    finally:
        if fd is not None:
            os.close(fd)


def open_pidfd(identity: Identity) -> int | None:
    """Open a pidfd (close it!) that names this very process, or return None when it is gone."""
    try:
        fd = os.pidfd_open(identity.pid)
    except ProcessLookupError:
        return None
    except OSError as error:
        raise kernel.refused(f"pidfd_open({identity.pid})", error.errno or 0) from error
    if is_alive(identity):  # asked after opening: from here on the pidfd can mean nobody else
        return fd
    os.close(fd)
    return None


def send_signal(target: Identity | int, number: int) -> bool:
    """Send a signal to a process (an identity, or a pidfd); False when it is gone."""
    if isinstance(target, Identity):
        with opened(target) as fd:
            return fd is not None and send_signal(fd, number)
    try:
        signal.pidfd_send_signal(target, number)
    except ProcessLookupError:
        return False
    except OSError as error:
        raise kernel.refused(f"send signal {number}", error.errno or 0) from error
    return True


async def wait_exit(target: Identity | int, *, timeout_s: float | None = None) -> bool:
    """Wait until a process (an identity, or a pidfd), ours or a stranger's, has ended; False after `timeout_s`."""
    if isinstance(target, Identity):
        with opened(target) as fd:
            return fd is None or await wait_exit(fd, timeout_s=timeout_s)
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[None] = loop.create_future()
    watched = os.dup(target)  # a loop takes a descriptor once; several may wait for one process

    def wake() -> None:
        loop.remove_reader(watched)  # a pidfd stays readable
        if not ended.done():
            ended.set_result(None)

    loop.add_reader(watched, wake)
    try:
        async with machine.timeout(timeout_s):
            await ended
    except TimeoutError:
        return False
    finally:
        loop.remove_reader(watched)
        os.close(watched)
    return True


async def end(identity: Identity, *, grace_s: float, kill_s: float = 5.0) -> None:
    """SIGTERM, up to `grace_s` seconds, SIGKILL; returns when it is gone. Raises Broken when it stays."""
    with opened(identity) as fd:
        if fd is None or not send_signal(fd, signal.SIGTERM):
            return
        if await wait_exit(fd, timeout_s=grace_s):
            return
        send_signal(fd, signal.SIGKILL)
        if not await wait_exit(fd, timeout_s=kill_s):
            raise Broken(
                f"process {identity.pid} is still there {kill_s:g} s after SIGKILL: it waits inside the kernel"
            )


def pids() -> list[int]:
    """List the pids of all processes that this /proc shows."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def children(pid: int) -> list[int]:
    """List the direct children of a process."""
    found: list[int] = []
    with suppress(FileNotFoundError, ProcessLookupError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with suppress(FileNotFoundError, ProcessLookupError):
                with open(f"/proc/{pid}/task/{thread}/children", encoding="ascii") as file:
                    found += [int(word) for word in file.read().split()]
    return found


def descendants(pid: int) -> list[int]:
    """List children, their children and so on; parents come before their children."""
    found = children(pid)
    for child in found:  # grows while we walk it
        found += children(child)
    return found


def command(pid: int) -> list[str]:
    """Return a process's arguments; empty for a kernel thread, a zombie or nobody."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            text = file.read()
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [os.fsdecode(word) for word in text.rstrip(b"\0").split(b"\0")] if text else []


def environment(pid: int) -> dict[str, str]:
    """Return the environment that a process was started with; empty for nobody. Raises Broken when we may not look."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            text = file.read()
    except (FileNotFoundError, ProcessLookupError):
        return {}
    except OSError as error:
        raise kernel.refused(f"read the environment of process {pid}", error.errno or 0) from error
    pairs = (os.fsdecode(word).partition("=") for word in text.split(b"\0") if word)
    return {key: value for key, _, value in pairs}


def proportional_bytes(pid: int) -> int:
    """Return a process's share of memory (PSS): what is shared counts by the number of those who share it."""
    try:
        with open(f"/proc/{pid}/smaps_rollup", encoding="ascii", errors="replace") as file:
            for line in file:
                if line.startswith("Pss:"):
                    return int(line.split()[1]) * 1024
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return 0


def started_at(start_ticks: int) -> float:
    """Turn a start in ticks since boot into unix seconds, as good as /proc/stat's boot time: about a second."""
    with open("/proc/stat", encoding="ascii") as file:
        for line in file:
            if line.startswith("btime "):
                return int(line.split()[1]) + start_ticks / TICKS_PER_S
    raise Broken("/proc/stat has no btime")
