"""A process that builds one image after another until it is killed: `python -m tests.builder.killed ROOT SEED`."""

import asyncio
import random
import sys
from pathlib import Path

from tests.builder.yard import Yard

TEXTS = 6


def prepare(yard: Yard) -> None:
    """Make the files of the context; the same every time."""
    yard.engine.says_time = False
    for number in range(TEXTS):
        yard.file(f"src/{number}", f"{number}" * 20_000)
        yard.file(f"Dockerfile.{number}", dockerfile(number))


def dockerfile(number: int) -> str:
    """One of some Dockerfiles that share steps."""
    return (
        f"FROM scratch AS a\nCOPY src /src\nRUN a{number % 2}\nFROM scratch AS b\nADD src/{number} /b/\nRUN b{number}\n"
        "FROM a\nCOPY --from=b / /of-b\nWORKDIR /w\nCOPY --link src/0 /linked\n"
    )


async def main(root: Path, seed: int) -> None:
    """Build for ever, two at a time."""
    yard = Yard(root, exist_ok=True)
    prepare(yard)
    await yard.builder.start()
    chance = random.Random(seed)
    print("begun", flush=True)
    while True:
        await asyncio.gather(*(one(yard, chance.randrange(TEXTS)) for _ in range(2)))
        if chance.random() < 0.2:
            await yard.builder.prune()


async def one(yard: Yard, number: int) -> None:
    """Build one of them."""
    await yard.builder.build(
        yard.context, f"Dockerfile.{number}", tags=[f"t:{number}"], args={"SOURCE_DATE_EPOCH": "1"}
    )


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2])))
