"""kill -9 at any moment: the cache never says what is not so, and the next build is as if nothing had been."""

import asyncio
import hashlib
import random
import sys
from pathlib import Path

import pytest
from tests.builder import killed
from tests.builder.yard import Yard

from wherry.clock import machine
from wherry.content.inflate import pieces
from wherry.content.protocol import Digest

ROOT = Path(__file__).parents[2]


async def check(kills: int, tmp_path: Path, seed: int) -> None:
    """Kill a builder `kills` times at random moments; look at its cache after each."""
    (tmp_path / "clean").mkdir()
    clean = Yard(tmp_path / "clean")
    killed.prepare(clean)
    right = [await digest_of(clean, number) for number in range(killed.TEXTS)]
    await clean.builder.close()
    await clean.content.close()
    chance = random.Random(seed)
    root = tmp_path / "killed"
    root.mkdir()
    for number in range(kills):
        await kill_one(root, seed + number, chance.uniform(0.0, 0.5))
        yard = Yard(root, exist_ok=True)
        killed.prepare(yard)
        await yard.builder.start()
        await believe(yard)
        which = chance.randrange(killed.TEXTS)
        assert await digest_of(yard, which) == right[which]
        await yard.builder.close()
        await yard.content.close()


async def kill_one(root: Path, seed: int, after_s: float) -> None:
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.builder.killed", str(root), str(seed), cwd=ROOT, stdout=asyncio.subprocess.PIPE
    )
    assert child.stdout is not None
    async with machine.timeout(60):
        assert await child.stdout.readline() == b"begun\n"
    await machine.sleep(after_s)
    assert child.returncode is None
    child.kill()
    await child.wait()


async def believe(yard: Yard) -> None:
    """Everything that the cache and the images name is there, and is what it is said to be."""
    for holder, digest in await yard.content.holders(""):
        assert await yard.content.stat(digest) is not None, holder
        data = yard.content.path(digest).read_bytes()
        assert f"sha256:{hashlib.sha256(data).hexdigest()}" == digest
    for built in await yard.rows_of_cache():
        if built.digest:
            with yard.content.path(Digest(built.digest)).open("rb") as file:
                plain = hashlib.sha256(b"".join(pieces(file.fileno())))
            assert f"sha256:{plain.hexdigest()}" == built.diff_id


async def digest_of(yard: Yard, number: int) -> str:
    image = await yard.builder.build(yard.context, f"Dockerfile.{number}", args={"SOURCE_DATE_EPOCH": "1"})
    return image.digest


async def test_five_kills(tmp_path: Path) -> None:
    await check(5, tmp_path, 1)


@pytest.mark.soak
async def test_fifty_kills(tmp_path: Path) -> None:
    await check(50, tmp_path, 100)
