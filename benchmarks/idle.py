"""What an instance of one node costs while nothing happens: memory and processor time of each of its processes.

Run as root: `python benchmarks/idle.py [SECONDS]` (default 25, after 12 s to settle). PSS counts shared pages in part, so
that the sum of all processes is what they take from the machine. Beside it, from the same run, a Python that does nothing
and one that has imported asyncio and ssl: the floors of a process. The machine's own load is shown: processor time that
others take is not counted, but caches that they empty are.
"""

import os
import subprocess
import sys
from pathlib import Path

import msgspec

from wherry.clock import machine
from wherry.daemon.instance import Instance, ask

ROOT = Path("/var/tmp/bench-idle")
WHERRY = str(Path(sys.executable).with_name("wherry"))
SETTLE_S = 12.0
TICKS = os.sysconf("SC_CLK_TCK")
AIM_BYTES, AIM_CPU = 150_000_000, 0.01
FLOORS = (
    ("floor: python, nothing imported", ["-IS"], "import sys; sys.stdin.read()"),
    ("floor: python, asyncio and ssl", ["-I"], "import asyncio, ssl, sys; sys.stdin.read()"),
)


class Sample(msgspec.Struct, frozen=True):
    """One process at one moment: processor seconds, switches it asked for, switches it was made to take."""

    cpu_s: float
    voluntary: int
    involuntary: int


def sample(pid: int) -> Sample:
    """Read a process's counters, all its threads together."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    switches = [0, 0]
    for task in Path(f"/proc/{pid}/task").iterdir():
        for line in (task / "status").read_text().splitlines():
            name, _, value = line.partition(":")
            if name == "voluntary_ctxt_switches":
                switches[0] += int(value)
            elif name == "nonvoluntary_ctxt_switches":
                switches[1] += int(value)
    runtime_s = sum(int((task / "schedstat").read_text().split()[0]) for task in Path(f"/proc/{pid}/task").iterdir())
    ticks_s = (int(fields[11]) + int(fields[12])) / TICKS
    return Sample(runtime_s / 1e9 or ticks_s, switches[0], switches[1])


def memory(pid: int) -> tuple[int, int, int]:
    """Bytes of PSS, of memory that is its own alone, and of RSS."""
    found: dict[str, int] = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, _, value = line.partition(":")
        found[name] = int(value.split()[0]) * 1024
    return found["Pss"], found["Private_Clean"] + found["Private_Dirty"], found["Rss"]


def children(pid: int) -> list[tuple[str, int]]:
    """What a process has started and keeps: helpers count too."""
    found: list[tuple[str, int]] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        for each in (task / "children").read_text().split():
            words = Path(f"/proc/{each}/cmdline").read_bytes().split(b"\0")
            found.append((Path(words[0].decode() or "?").name, int(each)))
    return found


def measure(processes: list[tuple[str, int]], seconds: float) -> None:
    """Print a table of the processes over `seconds`."""
    before = {pid: sample(pid) for _, pid in processes}
    begun = machine.monotonic()
    machine.pause(seconds)
    took_s = machine.monotonic() - begun
    print(f"{'process':<34}{'PSS MB':>8}{'own MB':>8}{'RSS MB':>8}{'CPU %':>8}{'wakes/s':>9}{'pushed/s':>9}")
    total_bytes, total_cpu = 0, 0.0
    for name, pid in processes:
        now, then = sample(pid), before[pid]
        pss, own, rss = memory(pid)
        cpu = (now.cpu_s - then.cpu_s) / took_s
        wakes, pushed = (now.voluntary - then.voluntary) / took_s, (now.involuntary - then.involuntary) / took_s
        print(f"{name:<34}{pss / 1e6:8.1f}{own / 1e6:8.1f}{rss / 1e6:8.1f}{cpu * 100:8.2f}{wakes:9.2f}{pushed:9.2f}")
        if not name.startswith("floor"):
            total_bytes, total_cpu = total_bytes + pss, total_cpu + cpu
    kept = "kept" if total_bytes < AIM_BYTES and total_cpu < AIM_CPU else "MISSED"
    print(f"{'instance, total':<34}{total_bytes / 1e6:8.1f}{'':16}{total_cpu * 100:8.2f}")
    print(f"aim: < {AIM_BYTES / 1e6:.0f} MB and < {AIM_CPU * 100:g} % of one core: {kept}")


def main(seconds: float) -> int:
    """Start an instance, let it settle, measure, take it down."""
    if os.geteuid() != 0:
        print("idle: needs root: a real node")
        return 2
    environment = {**os.environ, "WHERRY_ROOT": str(ROOT)}
    idle = [
        (name, subprocess.Popen([sys.executable, *flags, "-c", text], stdin=subprocess.PIPE))
        for name, flags, text in FLOORS
    ]
    try:
        subprocess.run([WHERRY, "up", "--detach", "--nodes", "1"], env=environment, check=True, capture_output=True)
        machine.pause(SETTLE_S)
        status = ask(Instance.at(ROOT).warden_socket, {"op": "status"})
        processes = [("warden", int(status["pid"]))]
        for role in status["roles"]:
            processes.append((role["name"], role["pid"]))
            processes += [(f"  {role['name']}: {name}", pid) for name, pid in children(role["pid"])]
        print(f"one node, nothing runs; {seconds:g} s; load before: {Path('/proc/loadavg').read_text().strip()}")
        measure([*processes, *((name, process.pid) for name, process in idle)], seconds)
        return 0
    finally:
        for _, process in idle:
            process.kill()
            process.wait()
        subprocess.run([WHERRY, "down", "--purge"], env=environment, check=True, capture_output=True, timeout=60)


if __name__ == "__main__":
    raise SystemExit(main(float(sys.argv[1]) if len(sys.argv) > 1 else 25.0))
