"""An engine in a process of its own that is killed between two states: `victim.py BASE INSTANCE ARROW COUNT STEPS...`.

Steps are verbs on the container "c": create, start, wait, remove, sandbox, print. It prints READY before it waits for its end.
"""

import asyncio
import os
import signal
import sys
from pathlib import Path

from wherry.engine.types import SandboxSpec

from tests.engine.boxes import Place, spec

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
    async with place.engine(content, arrow=at) as engine:
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
                case "settle":
                    await engine.settled()
                case _:
                    raise ValueError(step)
        print("READY", flush=True)
        await asyncio.Event().wait()


def waiter(base: Path):  # noqa: ANN201
    """A container that waits for the file `go` in a shared directory, and ends with 7."""
    from wherry.engine.types import Mount

    return spec("/bin/sh", "-c", WAITS, name="c", mounts=[Mount("/shared", str(base / "shared"))])


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4]), sys.argv[5:]))
