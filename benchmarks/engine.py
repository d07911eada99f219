"""Containers beside dockerd, podman and the bare runtimes: starting, exec, pull, push, memory.

Run as root: `python benchmarks/engine.py [--rounds N] [--rows A,B] [--sides A,B] [--layer-mb N] [--quick]`. Everything
takes turns round by round, in an order that turns too, on the same files, so that other load hits all alike; the first
round warms caches and is not counted. Wherry is asked by its own command and by the stock `docker` client, dockerd by
the same client (the same binary). All of it happens in a network namespace of its own, so no rule, bridge or port of any
engine touches the machine's; state is below /var/tmp/bench-engine and goes at the end.

What a client costs by itself is in the row of `ps -q`. Floors: `crun run` and `runc run` of the same files, with
namespaces of their own and no network. A layer that is pulled or pushed is new in each round, so nothing is there yet.
"""

import argparse
import asyncio
import os
import resource
import shutil
import signal
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

from engine_start import BUSYBOX, bare_runtime
from peers.daemons import (
    BASE,
    DOCKERD,
    LIMIT_S,
    OURS,
    OURS_BY_DOCKER,
    PODMAN,
    Side,
    dockerd,
    ended,
    podman,
    registry,
    wherry,
)  # fmt: skip
from peers.layers import IMAGE, Debian, box_archive

from wherry.clock import machine
from wherry.host import cgroups, mounts

SIDES = (OURS, OURS_BY_DOCKER, DOCKERD, PODMAN)
ROWS = ("ps", "run", "run-none", "exec", "row20", "once20", "pull", "push", "memory")
STARTS, KEPT = 20, 20
Times = dict[str, dict[str, list[float]]]


# rows -----------------------------------------------------------------------------------------------------------------
def starts(side: Side, *, at_once: bool) -> float:
    """Twenty containers that sleep, detached: one client after the other, or all clients at once."""
    names = [f"s{number}" for number in range(STARTS)]
    begun = machine.monotonic()
    words = [("run", "-d", "--name", name, IMAGE, "sleep", "600") for name in names]
    if at_once:
        clients = [side.popen(*each) for each in words]
        codes = [ended(client) for client in clients]
        if any(codes):
            raise SystemExit(f"engine: {side.name}: 20 at once: {(BASE / 'last').read_text(errors='replace')[-1500:]}")
    else:
        for each in words:
            side(*each)
    took_s = machine.monotonic() - begun
    side(*side.remove, *names)
    return took_s


def exec_row(side: Side) -> float:
    """`exec true` in a container that runs."""
    side("run", "-d", "--name", "target", IMAGE, "sleep", "600")
    try:
        return side("exec", "target", "true")
    finally:
        side(*side.remove, "target")


def transfer(side: Side, source: str, registry: str) -> dict[str, float]:
    """Pull an image that is new, push it to a registry that has nothing of it.

    It stays: for minutes after a removal ext4 looks at each place that became free whenever a file is made, so one side's
    would be in the next one's time.
    """
    before_s = cpu_s(side)
    pulled_s = side("pull", *side.insecure, source)
    pull_cpu_s = cpu_s(side) - before_s
    name = f"{registry}/{side.name.replace(' ', '-')}-{source.rpartition('/')[2]}"
    side("tag", source, name)
    before_s = cpu_s(side)
    pushed_s = side("push", *side.insecure, name)
    push_cpu_s = cpu_s(side) - before_s
    return {"pull": pulled_s, "pull-cpu": pull_cpu_s, "push": pushed_s, "push-cpu": push_cpu_s}


def cpu_s(side: Side) -> float:
    """CPU seconds so far of a side's daemons, of the processes that they have ended, and of all clients."""
    ended_s = sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])
    ticks = 0
    for pid in side.daemons():
        with suppress(OSError):  # user, system, and both of its own children. Source: proc(5)
            words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += sum(map(int, words[11:15]))
    return ended_s + ticks / os.sysconf("SC_CLK_TCK")


def memory_of(side: Side) -> tuple[float, float, dict[str, float]]:
    """PSS in MB of the daemons, of what they grow by for each container, and of each kind of process beside it.

    The containers publish a port, as most that serve something do.
    """
    idle = sum(map(_pss_mb, side.daemons()))
    before = set(_pids())
    for number in range(KEPT):
        side("run", "-d", "--name", f"m{number}", "-p", f"{21000 + number}:80", IMAGE, "sleep", "600")
    machine.pause(2.0)
    grown = (sum(map(_pss_mb, side.daemons())) - idle) / KEPT
    kinds: dict[str, float] = {}
    for pid in set(_pids()) - before:
        with suppress(OSError):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
            name = words.partition("\0")[0].rpartition("/")[2]
            if name.startswith(side.beside) and side.mark in words:
                kinds[name] = kinds.get(name, 0.0) + _pss_mb(pid) / KEPT
    side(*side.remove, *(f"m{number}" for number in range(KEPT)))
    return idle, grown, kinds


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _pss_mb(pid: int) -> float:
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024 / 1e6
    return 0.0


# the whole ------------------------------------------------------------------------------------------------------------
def measure(sides: Sequence[Side], rows: Sequence[str], rounds: int) -> Times:
    """The rows that take a moment, in turns."""
    times: Times = {row: {} for row in rows if row in CALLS}
    bare = _bare() if "run-none" in rows else {}
    for number in range(rounds + 1):
        for row in times:
            found = {name: one(number) for name, one in bare.items()} if row == "run-none" else {}
            for side in _turned(sides, number):
                found[side.name] = CALLS[row](side)
            if number:
                for name, took_s in found.items():
                    times[row].setdefault(name, []).append(took_s)
        (BASE / "last").write_bytes(b"")
    return times


def measure_transfers(sides: Sequence[Side], rows: Sequence[str], rounds: int, layer_mb: int) -> Times:
    """Pull and push, in turns; each with a layer that nobody has had."""
    times: Times = {name: {} for row in ("pull", "push") if row in rows for name in (row, f"{row}-cpu")}
    if not times:
        return times
    debian = Debian(layer_mb * 1_000_000)
    print(f"layer: {debian.size_bytes / 1e6:.0f} MB packed, {debian.unpacked_bytes / 1e6:.0f} MB, {debian.files} files")
    with registry("reg-a") as source, registry("reg-b") as target:
        for number in range(rounds):
            for side in _turned(sides, number):
                for row, took_s in transfer(side, debian.put(source), target).items():
                    if row in times:
                        times[row].setdefault(side.name, []).append(took_s)
    return times


def _turned(sides: Sequence[Side], number: int) -> Sequence[Side]:
    at = number % len(sides)
    return [*sides[at:], *sides[:at]]


CALLS: dict[str, Callable[[Side], float]] = {
    "ps": lambda side: side("ps", "-q"),
    "run": lambda side: side("run", "--rm", IMAGE, "true"),
    "run-none": lambda side: side("run", "--rm", "--network", "none", IMAGE, "true"),
    "exec": exec_row,
    "row20": lambda side: starts(side, at_once=False),
    "once20": lambda side: starts(side, at_once=True),
}


def _bare() -> dict[str, Callable[[int], float]]:
    """The floors."""
    runner = asyncio.Runner()
    found: dict[str, Callable[[int], float]] = {}
    source = BASE / "source"
    (source / "bin").mkdir(parents=True)
    for folder in ("etc", "proc", "sys", "dev"):
        (source / folder).mkdir()
    shutil.copy(BUSYBOX, source / "bin/busybox")
    (source / "bin/true").symlink_to("busybox")
    for program in ("crun", "runc"):
        if shutil.which(program):
            place = BASE / program
            place.mkdir()
            one = runner.run(bare_runtime(place, source, program))
            found[f"{program} run"] = lambda number, one=one: runner.run(one(number))
    return found


TITLES = {
    "ps": "`ps -q` (the client, and one request)", "run": "`run --rm true`", "run-none": "the same, `--network none`",
    "exec": "`exec true`", "row20": "20 x `run -d` in a row", "once20": "20 x `run -d` at once",
    "pull": "pull and unpack", "pull-cpu": "the same, CPU of daemon and client", "push": "push",
    "push-cpu": "the same, CPU of daemon and client",
}  # fmt: skip
AIMS = {"run": 1 / 5, "run-none": 1 / 8, "pull": 1.0}


def table(times: Times) -> None:
    """Print medians and least, and the ratio to dockerd by the same client."""
    if not times:
        return
    names = list(dict.fromkeys(name for found in times.values() for name in found))
    print(f"\n| ms: median (least) | {' | '.join(names)} | wherry by docker : dockerd |")
    print(f"|---|{'---:|' * (len(names) + 1)}")
    for row, found in times.items():
        cells = [
            f"{statistics.median(found[name]) * 1e3:.0f} ({min(found[name]) * 1e3:.0f})" if found.get(name) else ""
            for name in names
        ]
        ratio = ""
        if OURS_BY_DOCKER in found and DOCKERD in found:
            pairs = [ours / theirs for ours, theirs in zip(found[OURS_BY_DOCKER], found[DOCKERD], strict=True)]
            middle = statistics.median(found[OURS_BY_DOCKER]) / statistics.median(found[DOCKERD])
            ratio = f"1/{1 / middle:.1f} (pairs 1/{1 / max(pairs):.1f} to 1/{1 / min(pairs):.1f})"
            if row in AIMS:
                ratio += f"; aim 1/{1 / AIMS[row]:.0f}: {'kept' if middle <= AIMS[row] else 'MISSED'}"
        print(f"| {TITLES[row]} | {' | '.join(cells)} | {ratio} |")
    for name in SIDES:
        row, once = (times.get(each, {}).get(name) for each in ("row20", "once20"))
        if row and once:
            print(f"{name}: 20 at once take {statistics.median(once) / statistics.median(row):.2f} of 20 in a row")


def memory_table(sides: Sequence[Side]) -> None:
    """Print what idles and what a container costs."""
    print("\n| PSS MB | idle daemons | daemons' growth per container | beside each container |\n|---|---:|---:|---|")
    for side in sides:
        if side.name != OURS_BY_DOCKER:
            idle, grown, kinds = memory_of(side)
            beside = ", ".join(f"{name} {size:.2f}" for name, size in sorted(kinds.items()))
            print(f"| {side.name} | {idle:.1f} | {grown:.2f} | {beside} |")


def main() -> int:
    """Read the options, measure, print, leave nothing."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--rows", default=",".join(ROWS))
    parser.add_argument("--sides", default=",".join(SIDES))
    parser.add_argument("--transfers", type=int, default=2, help="rounds of pull and push")
    parser.add_argument("--layer-mb", type=int, default=100)
    parser.add_argument("--quick", action="store_true", help="3 rounds, one pull and push of 20 MB")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    rows, wanted = options.rows.split(","), options.sides.split(",")
    if unknown := (set(rows) - set(ROWS)) | (set(wanted) - set(SIDES)):
        parser.error(f"{', '.join(sorted(unknown))}: rows are {', '.join(ROWS)}; sides are {', '.join(SIDES)}")
    if os.geteuid() != 0:
        print("engine: needs root: containers")
        return 2
    if not options.inside:
        os.execvp("unshare", ["unshare", "--net", sys.executable, __file__, *sys.argv[1:], "--inside"])
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    rounds = 3 if options.quick else options.rounds
    layer_mb, transfers = (20, 1) if options.quick else (options.layer_mb, options.transfers)
    loadavg = Path("/proc/loadavg")
    print(f"{rounds} rounds, {os.cpu_count()} processors, load before: {loadavg.read_text().strip()}")
    _sweep()
    BASE.mkdir()
    groups = _groups()
    try:
        with ExitStack() as stack:
            opened = {OURS: wherry, DOCKERD: dockerd, PODMAN: podman}
            needed = {OURS if name == OURS_BY_DOCKER else name for name in wanted}
            sides = [
                side
                for name, open_it in opened.items()
                if name in needed and shutil.which({OURS: "crun"}.get(name, name))
                for side in stack.enter_context(open_it())
                if side.name in wanted
            ]
            archive = box_archive()
            for load in dict.fromkeys(side.load for side in sides):
                subprocess.run([*load, str(archive)], check=True, capture_output=True, timeout=LIMIT_S)
            table(measure(sides, rows, rounds))  # each part is shown when it is there: the next may take minutes
            table(measure_transfers(sides, rows, transfers, layer_mb))
            if "memory" in rows:
                memory_table(sides)
    finally:
        _sweep()
        for group in _groups() - groups:
            with suppress(OSError):
                os.rmdir(group)
        cgroups.find("wherry/be4c4b0a").remove("")
    print(f"\nload after: {loadavg.read_text().strip()} (this benchmark alone makes 1 to 2)")
    return 0


def _sweep() -> None:
    """Take away what is below our directory: mounts that an engine left, then files."""
    mounts.unmount_below(str(BASE))
    shutil.rmtree(BASE, ignore_errors=True)


def _groups() -> set[str]:
    """The control groups at the top that dockerd and podman make and never take away."""
    return {
        str(path)
        for name in ("docker", "libpod_parent", "machine.slice")
        for path in Path("/sys/fs/cgroup").glob(f"*/{name}")
    }


if __name__ == "__main__":
    sys.stdout.reconfigure(line_buffering=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    raise SystemExit(main())
