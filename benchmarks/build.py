"""Builds beside dockerd's classic builder (and buildah, where it is installed), in turns, on the same files.

Run as root: `python benchmarks/build.py [ROUNDS]`. Each builder has its own state below a temporary directory; dockerd is
started by hand with its own data, exec root and socket, and no bridge. Medians; the last column is theirs by ours.
"""

import asyncio
import os
import shutil
import signal
import statistics
import sys
import tempfile
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from wherry.builder.service import Builder, Wanted
from wherry.clock import RealClock, machine
from wherry.content.local import LocalContent
from wherry.engine.local import LocalEngine
from wherry.engine.settings import EngineSettings
from wherry.host import cgroups
from wherry.network.types import Attachment

BUSYBOX = next((path for path in ("/bin/busybox", "/usr/bin/busybox") if os.path.exists(path)), "/bin/busybox")
BASE = "FROM scratch\nCOPY busybox /bin/busybox\n"
RUN = 'RUN ["/bin/busybox", "sh", "-c", "{}"]\n'
Build = Callable[[Path, str, bool], Awaitable[None]]
LIMIT_S = 120


class NoNetwork:
    """Steps here have `lo` only, with every builder."""

    gateway = ""

    async def attach(self, owner: str, netns: str) -> Attachment:
        raise RuntimeError(f"{owner}: no network for {netns}")

    async def detach(self, owner: str) -> None:
        del owner

    async def attachments(self) -> list[tuple[str, Attachment]]:
        return []


@asynccontextmanager
async def ours(base: Path) -> AsyncGenerator[Build]:
    """Our builder on our engine."""
    content = LocalContent.open(base / "content", clock=RealClock())
    engine = LocalEngine(
        *(base / "root", base / "run"),
        instance="be4c4b0b", node="bench", content=content, network=NoNetwork(), clock=RealClock(), settings=EngineSettings(),
    )  # fmt: skip
    async with engine:
        builder = Builder(engine, content, base / "builder", clock=RealClock(), network="none")
        await builder.start()

        async def build(context: Path, tag: str, cold: bool) -> None:
            await builder.build(context, wanted=Wanted(tags=[tag], no_cache=cold))

        yield build
        await builder.close()
        await engine.settled()
    await content.close()
    cgroups.find("wherry/be4c4b0b").remove("")


@asynccontextmanager
async def dockerd(base: Path) -> AsyncGenerator[Build]:
    """A dockerd of our own, its classic builder asked by the stock client."""
    socket = f"unix://{base}/docker.sock"
    daemon = [
        *("dockerd", "--data-root", str(base / "data"), "--exec-root", str(base / "exec"), "-H", socket),
        *("--pidfile", str(base / "pid"), "--bridge=none", "--iptables=false", "--ip-masq=false", "--ip6tables=false"),
    ]
    with (base / "log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(*daemon, stdout=log, stderr=log)
    environment = os.environ | {"DOCKER_HOST": socket, "DOCKER_BUILDKIT": "0"}
    try:
        for _ in range(100):
            await machine.sleep(0.2)
            if await command(["docker", "version"], environment, check=False) == 0:
                break
        else:
            raise RuntimeError((base / "log").read_text()[-2000:])

        async def build(context: Path, tag: str, cold: bool) -> None:
            argv = [
                "docker",
                "build",
                "--network=none",
                "-q",
                "-t",
                tag,
                *(["--no-cache"] if cold else []),
                str(context),
            ]
            await command(argv, environment)

        yield build
    finally:
        process.terminate()
        await process.wait()


@asynccontextmanager
async def buildah(base: Path) -> AsyncGenerator[Build]:
    """buildah with its own storage."""

    async def build(context: Path, tag: str, cold: bool) -> None:
        argv = [
            "buildah",
            "--root",
            str(base / "root"),
            "--runroot",
            str(base / "run"),
            "--storage-driver=overlay",
            "bud",
        ]
        argv += ["--layers", "--network=none", "-q", "-t", tag, *(["--no-cache"] if cold else []), str(context)]
        await command(argv, dict(os.environ))

    yield build


async def command(argv: list[str], environment: dict[str, str], *, check: bool = True) -> int:
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
            peers: dict[str, Build] = {}
            for name, opened, there in (("wherry", ours, True), ("dockerd", dockerd, shutil.which("dockerd")),
                                        ("buildah", buildah, shutil.which("buildah"))):  # fmt: skip
                if there:
                    (base / name).mkdir()
                    peers[name] = await stack.enter_async_context(opened(base / name))
            await measure(places, peers, rounds)
    finally:
        shutil.rmtree(base, ignore_errors=True)


async def measure(places: dict[str, Path], peers: dict[str, Build], rounds: int) -> None:
    """Run every walk with every builder in turns."""
    taken: dict[tuple[str, str], list[float]] = {}

    async def turn(walk: str, context: str, *, cold: bool, count: int, change: Path | None = None) -> None:
        for number in range(count):
            for name, build in peers.items():
                if change is not None:
                    change.write_bytes(os.urandom(1024 * 1024))
                begin = machine.monotonic()
                await build(places[context], f"{context}:{number}", cold)
                taken.setdefault((walk, name), []).append(machine.monotonic() - begin)

    for name, build in peers.items():  # the first build of each warms what a day of work has warm
        await build(places["steps"], "warm:1", False)
        del name
    await turn("6 small steps, cold", "steps", cold=True, count=rounds)
    await turn("6 small steps, cached", "steps", cold=False, count=rounds + 2)
    await turn("100 MB context, cold", "large", cold=True, count=1)
    await machine.sleep(2.1)  # files younger than this are read again
    await turn("100 MB context, first cached", "large", cold=False, count=1)
    await turn("100 MB context, unchanged", "large", cold=False, count=rounds)
    await turn("100 MB context, one file changed", "large", cold=False, count=rounds, change=places["large"] / "data/7")
    await turn("10 independent stages, cold", "stages", cold=True, count=1)
    await turn("20,000-file COPY, cold", "many", cold=True, count=1)
    await turn("20,000-file COPY, cached", "many", cold=False, count=rounds)
    names = list(peers)
    print(f"{'':34}" + "".join(f"{name:>12}" for name in names) + "".join(f"{name + '/w':>12}" for name in names[1:]))
    for walk in dict.fromkeys(walk for walk, _ in taken):
        medians = [statistics.median(taken[walk, name]) for name in names]
        print(f"{walk:34}" + "".join(f"{value * 1e3:9.0f} ms" for value in medians)
              + "".join(f"{value / medians[0]:12.1f}" for value in medians[1:]))  # fmt: skip


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 1))
