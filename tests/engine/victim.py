"""An engine in a process of its own that is killed between two states: `victim.py BASE INSTANCE ARROW COUNT STEPS...`.

Steps are verbs on the container "c": create, start, wait, remove, sandbox; commits, or pulls of $REF, for ever.
It prints READY before it waits for its end.
"""

import asyncio
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

from tests.engine.boxes import Place, spec

from wherry.engine.local import LocalEngine
from wherry.engine.types import ExecSpec, Mount, SandboxSpec
from wherry.errors import Conflict

WAITS = "echo begun; while ! test -e /shared/go; do usleep 5000; done; echo done; exit 7"


async def main(base: Path, instance: str, arrow: str, count: int, steps: list[str]) -> None:
    seen = 0

    def at(name: str) -> None:
        nonlocal seen
        if name == arrow:
            seen += 1
            if seen == count:
                os.kill(os.getpid(), signal.SIGKILL)

    place = Place(base)
    place.instance = instance
    content = place.content()
    ref = os.environ.get("REF", "")
    insecure = frozenset({ref.partition("/")[0]} if ref else ())
    async with place.engine(content, arrow=at, insecure=insecure) as engine:
        for step in steps:
            match step:
                case "create":
                    await engine.create(waiter(base))
                case "sandbox":
                    await engine.create_sandbox(SandboxSpec(id="s", hostname="s", network="none", cgroup="pods/s"))
                case "start":
                    await engine.start("c")
                case "wait":
                    await engine.wait("c")
                case "go":
                    (base / "shared" / "go").touch()
                case "remove":
                    await engine.remove("c", force=True)
                case "churn":
                    print("READY", flush=True)
                    async with asyncio.TaskGroup() as group:
                        for number in range(4):
                            group.create_task(churn(engine, number))
                case "commits":
                    print("READY", flush=True)
                    while True:
                        await engine.commit("c", ["kept:1"], {"Cmd": ["/bin/true"]}, author="", message="", pause=True)
                case "pulls":
                    print("READY", flush=True)
                    while True:
                        await engine.pull(ref)
                        await engine.remove_image(ref)
                        await content.collect()
                case "settle":
                    await engine.settled()
                case _:
                    raise ValueError(step)
        print("READY", flush=True)
        await asyncio.Event().wait()


async def churn(engine: LocalEngine, number: int) -> None:
    """Make, run and remove containers, for ever."""
    while True:
        made = await engine.create(spec("/bin/sh", "-c", "echo x; usleep 3000; exit 3", restart="no"))
        session = await engine.attach(made.id)
        await engine.start(made.id)
        if number % 2:
            with suppress(Conflict):
                await (await engine.exec(made.id, ExecSpec(["/bin/true"]))).wait()
        await engine.wait(made.id)
        await session.close()
        await engine.start(made.id)
        await engine.remove(made.id, force=bool(number % 2) or (await engine.wait(made.id)).code == 3)


def waiter(base: Path):
    """A container that waits for the file `go` in a shared directory, and ends with 7."""
    return spec("/bin/sh", "-c", WAITS, name="c", mounts=[Mount("/shared", str(base / "shared"))])


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4]), sys.argv[5:]))
