"""Builds by the command line beside dockerd's classic builder and buildah, in turns, on the same files.

Run as root: `python benchmarks/build.py [ROUNDS]`. `wherry build` and the stock docker client (DOCKER_BUILDKIT=0; `docker>w`)
ask an engine of our own, the same docker client a dockerd, and buildah builds by itself; all have their own state below a
temporary directory. Medians; the last columns are theirs by `wherry build`'s. The last row says how much of the processors
was in use while ten independent stages were built.
"""

import asyncio
import os
import shutil
import signal
import statistics
import sys
import tempfile
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from wherry.clock import machine
from wherry.host import mounts

BUSYBOX = next((path for path in ("/bin/busybox", "/usr/bin/busybox") if os.path.exists(path)), "/bin/busybox")
WHERRY = str(Path(sys.executable).parent / "wherry")
BASE = "FROM scratch\nCOPY busybox /bin/busybox\n"
RUN = 'RUN ["/bin/busybox", "sh", "-c", "{}"]\n'
STAGES = "10 independent stages, cold"
LIMIT_S = 300
Build = Callable[[Path, str, bool], Awaitable[None]]


@dataclass(frozen=True)
class Row:
    """One walk: what is built, how often at most, and what is changed before each build."""

    name: str
    context: str
    cold: bool
    once: bool = False
    change: str = ""


ROWS = (
    Row("6 small steps, cold", "steps", True),
    Row("6 small steps, cached", "steps", False),
    Row("100 MB context, cold", "large", True),
    Row("100 MB context, unchanged", "large", False),
    Row("100 MB context, one file changed", "large", False, change="data/7"),
    Row(STAGES, "stages", True),
    Row("20,000-file COPY, cold", "many", True, once=True),
    Row("20,000-file COPY, cached", "many", False, once=True),
)


@asynccontextmanager
async def ours(base: Path) -> AsyncGenerator[dict[str, Build]]:
    """An engine of our own, asked by our command and by docker's."""
    socket = base / "docker.sock"
    serve = [WHERRY, "engine", "serve", "--root", str(base / "root"), "--socket", str(socket)]
    try:
        async with process(serve, base / "log", socket):
            environment = os.environ | {"DOCKER_HOST": f"unix://{socket}", "DOCKER_BUILDKIT": "0"}
            yield {
                "wherry": client([WHERRY, "build", "--network=none", "-q"], environment),
                "docker>w": client(["docker", "build", "--network=none", "-q"], environment),
            }
    finally:
        await command([WHERRY, "down", "--purge", "--root", str(base / "root")], dict(os.environ), check=False)


@asynccontextmanager
async def dockerd(base: Path) -> AsyncGenerator[dict[str, Build]]:
    """A dockerd of our own, its classic builder asked by the stock client."""
    socket = base / "docker.sock"
    daemon = [
        *("dockerd", "--data-root", str(base / "data"), "--exec-root", str(base / "exec"), "-H", f"unix://{socket}"),
        *("--pidfile", str(base / "pid"), "--bridge=none", "--iptables=false", "--ip-masq=false", "--ip6tables=false"),
    ]
    async with process(daemon, base / "log", socket):
        environment = os.environ | {"DOCKER_HOST": f"unix://{socket}", "DOCKER_BUILDKIT": "0"}
        yield {"dockerd": client(["docker", "build", "--network=none", "-q"], environment)}


@asynccontextmanager
async def buildah(base: Path) -> AsyncGenerator[dict[str, Build]]:
    """buildah with its own storage, and runc: with crun it refuses hybrid cgroups."""
    storage = ["--root", str(base / "root"), "--runroot", str(base / "run"), "--storage-driver=overlay"]
    argv = ["buildah", *storage, "bud", "--runtime=runc", "--layers", "--network=none", "-q"]
    try:
        yield {"buildah": client(argv, dict(os.environ))}
    finally:
        mounts.unmount_below(str(base))  # its storage stays mounted, and a container where it was killed


@asynccontextmanager
async def process(argv: Sequence[str], log: Path, socket: Path) -> AsyncGenerator[None]:
    """Run a daemon until the end, from when it answers. Raises RuntimeError with its last words."""
    with log.open("wb") as file:
        child = await asyncio.create_subprocess_exec(*argv, stdout=file, stderr=file)
    environment = os.environ | {"DOCKER_HOST": f"unix://{socket}"}
    try:
        for _ in range(100):
            await machine.sleep(0.2)
            if socket.exists() and await command(["docker", "version"], environment, check=False) == 0:
                break
        else:
            raise RuntimeError(f"{argv[0]}: {log.read_text()[-2000:]}")
        yield
    finally:
        child.terminate()
        await child.wait()


def client(argv: Sequence[str], environment: dict[str, str]) -> Build:
    """A builder that is a command."""

    async def build(context: Path, tag: str, cold: bool) -> None:
        await command([*argv, "-t", tag, *(["--no-cache"] if cold else []), str(context)], environment)

    return build


async def command(argv: Sequence[str], environment: dict[str, str], *, check: bool = True) -> int:
    """Run a client. Raises RuntimeError with its last words."""
    pipe = asyncio.subprocess.PIPE
    child = await asyncio.create_subprocess_exec(*argv, env=environment, stdout=pipe, stderr=pipe)
    async with machine.timeout(LIMIT_S):
        out, err = await child.communicate()
    if check and child.returncode:
        raise RuntimeError(f"{argv[0]} ended with {child.returncode}: {(err or out)[-1000:].decode()}")
    return child.returncode or 0


def contexts(base: Path) -> dict[str, Path]:
    """The contexts of all walks."""
    stages = "".join(
        f"FROM base AS s{n}\n" + RUN.format(f"i=0; while [ $i -lt 60000 ]; do i=$((i+1)); done; echo {n} > /out{n}")
        for n in range(10)
    )
    gathered = "".join(f"COPY --from=s{n} /out{n} /\n" for n in range(10))
    texts = {
        "steps": BASE + "".join(RUN.format(f"echo {n} > /f{n}") for n in range(4)) + "COPY small /small\n",
        "large": BASE + "COPY data /data\n",
        "stages": BASE.replace("FROM scratch", "FROM scratch AS base") + stages + "FROM base\n" + gathered,
        "many": BASE + "COPY tree /tree\n",
    }
    made: dict[str, Path] = {}
    for name, text in texts.items():
        place = made[name] = base / name
        place.mkdir(parents=True)
        shutil.copy(BUSYBOX, place / "busybox")
        (place / "Dockerfile").write_text(text)
    (made["steps"] / "small").write_text("small")
    (made["large"] / "data").mkdir()
    for number in range(100):
        (made["large"] / f"data/{number}").write_bytes(os.urandom(1024 * 1024))
    for number in range(20_000):
        place = made["many"] / f"tree/{number // 200}/{number}"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(f"file {number}\n")
    return made


async def main(rounds: int) -> None:
    """Measure and print a table."""
    base = Path(tempfile.mkdtemp(prefix="wherry-bench-build-", dir="/tmp"))
    task = asyncio.current_task()
    if task is not None:  # ended from outside: nothing may be left
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    try:
        places = contexts(base / "contexts")
        async with AsyncExitStack() as stack:
            builders: dict[str, Build] = {}
            for name, opened, there in (("wherry", ours, True), ("dockerd", dockerd, shutil.which("dockerd")),
                                        ("buildah", buildah, shutil.which("buildah"))):  # fmt: skip
                if there:
                    (base / name).mkdir()
                    builders |= await stack.enter_async_context(opened(base / name))
            await measure(places, builders, rounds)
    finally:
        shutil.rmtree(base, ignore_errors=True)


async def measure(places: dict[str, Path], builders: dict[str, Build], rounds: int) -> None:
    """Run every walk with every builder in turns."""
    taken: dict[tuple[str, str], list[float]] = {}
    used: dict[str, list[float]] = {}
    load = os.getloadavg()[0]
    for context in ("steps", "large"):  # the first build of each warms what a day of work has warm
        for build in builders.values():
            await build(places[context], "warm:1", False)
    await machine.sleep(2.1)  # files younger than this are read again
    for row in ROWS:
        for number in range(1 if row.once else rounds):
            for name, build in builders.items():
                if row.change:
                    (places[row.context] / row.change).write_bytes(os.urandom(1024 * 1024))
                idle, begin = idle_s(), machine.monotonic()
                await build(places[row.context], f"{row.context}:{number}", row.cold)
                taken.setdefault((row.name, name), []).append(machine.monotonic() - begin)
                if row.name == STAGES:
                    spent = taken[row.name, name][-1] * (os.cpu_count() or 1)
                    used.setdefault(name, []).append(100 * (1 - min(1.0, (idle_s() - idle) / spent)))
    names = list(builders)
    print(f"load {load:.1f} before, {os.getloadavg()[0]:.1f} after; {rounds} rounds")
    print(f"{'':34}" + "".join(f"{name:>12}" for name in names) + "".join(f"{name + '/w':>12}" for name in names[1:]))
    for row in ROWS:
        medians = [statistics.median(taken[row.name, name]) for name in names]
        print(f"{row.name:34}" + "".join(f"{value * 1e3:9.0f} ms" for value in medians)
              + "".join(f"{value / medians[0]:12.1f}" for value in medians[1:]))  # fmt: skip
    print(f"{'processors in use meanwhile':34}" + "".join(f"{statistics.median(used[name]):10.0f} %" for name in names))


def idle_s() -> float:
    """The seconds that all processors together have been idle."""
    with open("/proc/stat", encoding="ascii") as file:
        words = file.readline().split()
    return int(words[4]) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 3))
