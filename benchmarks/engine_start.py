"""How long the engine takes from `create` to the exit of /bin/true, beside a bare `crun run` of the same root.

Run as root: `python benchmarks/engine_start.py [ROUNDS]`. Both are measured in turns, so that other load hits both alike;
the last line is the ratio of the medians. Nothing is left behind.
"""

import asyncio
import json
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from wherry.clock import RealClock, machine
from wherry.content.local import LocalContent
from wherry.content.pack import pack_directory
from wherry.engine.local import LocalEngine
from wherry.engine.settings import EngineSettings
from wherry.engine.types import ContainerSpec, SandboxSpec
from wherry.host import cgroups, spawn
from wherry.network.types import Attachment

BUSYBOX = next((path for path in ("/bin/busybox", "/usr/bin/busybox") if os.path.exists(path)), "/bin/busybox")


class NoNetwork:
    """Containers here have a namespace with `lo` only, as the bare runtime's have."""

    gateway = ""

    async def attach(self, owner: str, netns: str) -> Attachment:
        raise RuntimeError(f"{owner}: no network for {netns}")

    async def detach(self, owner: str) -> None:
        del owner

    async def attachments(self) -> Sequence[tuple[str, Attachment]]:
        return []


async def main(rounds: int) -> None:
    """Measure and print a table."""
    base = Path(tempfile.mkdtemp(prefix="wherry-bench-", dir="/tmp"))
    source = base / "source"
    for folder in ("bin", "etc", "proc", "sys", "dev"):
        (source / folder).mkdir(parents=True)
    shutil.copy(BUSYBOX, source / "bin/busybox")
    (source / "bin/true").symlink_to("busybox")
    content = LocalContent.open(base / "content", clock=RealClock())
    try:
        async with LocalEngine(
            base / "root",
            base / "run",
            instance="be4c4b0a",
            node="bench",
            content=content,
            network=NoNetwork(),
            clock=RealClock(),
            settings=EngineSettings(),
        ) as engine:
            layer = await pack_directory(content, source, lease=await content.lease(seconds=600))
            config = {
                "architecture": "amd64",
                "os": "linux",
                "config": {"Cmd": ["/bin/true"]},
                "rootfs": {"type": "layers", "diff_ids": [layer.diff_id]},
            }
            await engine.commit_image(config, [layer.digest], ["bench:1"])
            bare = await bare_runtime(base, source)
            rows: dict[str, list[float]] = {
                "crun run": [],
                "engine, to exit": [],
                "  create": [],
                "  start": [],
                "  exit seen": [],
            }
            for index in range(rounds + 2):
                taken = [await bare(index), *await one(engine)]
                if index >= 2:  # the first two warm caches
                    for values, value in zip(rows.values(), taken, strict=True):
                        values.append(value)
            for name, values in rows.items():
                print(f"{name:<18} median {statistics.median(values) * 1e3:7.1f} ms   min {min(values) * 1e3:7.1f} ms")
            ratio = statistics.median(rows["engine, to exit"]) / statistics.median(rows["crun run"])
            print(f"ratio of medians   {ratio:.2f}")
    finally:
        await content.close()
        shutil.rmtree(base, ignore_errors=True)


async def one(engine: LocalEngine) -> tuple[float, float, float, float]:
    """Run one container: seconds in all, to create, to start, until its exit was seen."""
    begin = machine.monotonic()
    sandbox = SandboxSpec(id="", hostname="bench", network="none")
    made = await engine.create(ContainerSpec(name="bench", image="bench:1", sandbox_spec=sandbox))
    created = machine.monotonic()
    await engine.start(made.id)
    started = machine.monotonic()
    exit = await engine.wait(made.id)
    ended = machine.monotonic()
    assert exit.code == 0, exit
    await engine.remove(made.id)
    await engine.settled()  # what goes behind must not hit the next round
    return ended - begin, created - begin, started - created, ended - started


async def bare_runtime(base: Path, source: Path, program: str = "crun") -> Callable[[int], Awaitable[float]]:
    """Return a function that times one `crun run` (or `runc run`) with the same namespaces and no limits."""
    bundle = base / "bundle"
    bundle.mkdir()
    spawner = await spawn.Spawner(mask_controllers=spawn.needs_mask()).__aenter__()
    crun = shutil.which(program) or program
    await spawner.run([crun, "spec"], timeout_s=10, cwd=str(bundle))
    document = json.loads((bundle / "config.json").read_text())
    document["root"] = {"path": str(source), "readonly": True}
    document["process"] |= {"args": ["/bin/true"], "terminal": False}
    document["linux"]["cgroupsPath"] = "/wherry/be4c4b0a/bare"
    (bundle / "config.json").write_text(json.dumps(document))

    async def measure(index: int) -> float:
        begin = machine.monotonic()
        done = await spawner.run(
            [crun, "--root", str(base / "bare"), "run", "--bundle", str(bundle), f"b{index}"], timeout_s=30
        )
        done.check()
        return machine.monotonic() - begin

    return measure


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 30))
    cgroups.find("wherry/be4c4b0a").remove("")
