"""`wherry registry serve` as a process of its own: commands, and what is left after kill -9 at any moment."""

import asyncio
import os
import random
import re
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
from tests.registry.test_protocol import push_image

from wherry.clock import RealClock, machine
from wherry.content.digests import digest_of
from wherry.content.local import LocalContent
from wherry.errors import WherryError
from wherry.registry import space
from wherry.registry.service import Registry
from wherry.wire.client import Endpoint, HttpClient


@asynccontextmanager
async def alone(root: Path, *more: str) -> AsyncIterator[tuple[Process, str]]:
    argv = [
        sys.executable,
        "-m",
        "wherry.cli.main",
        "registry",
        "serve",
        "--root",
        str(root),
        "--listen",
        "127.0.0.1:0",
    ]
    process = await asyncio.create_subprocess_exec(*argv, *more, stdout=PIPE, stderr=asyncio.subprocess.DEVNULL)
    try:
        assert process.stdout is not None
        async with machine.timeout(30):
            line = (await process.stdout.readline()).decode()
        found = re.search(r"http://(\S+)", line)
        assert found is not None, line
        yield process, found[1]
    finally:
        if process.returncode is None:
            process.terminate()
        async with machine.timeout(15):
            await process.wait()


async def command(root: Path, *words: str, code: int = 0, said: bytes = b"") -> str:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "wherry.cli.main", "registry", *words, "--root", str(root),
        stdin=PIPE, stdout=PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    async with machine.timeout(60):
        out, _ = await process.communicate(said)
    assert process.returncode == code, out.decode()
    return out.decode()


async def test_a_registry_runs_alone_and_is_administered(tmp_path: Path) -> None:
    root = tmp_path / "alone"
    async with alone(root, "--metrics", "127.0.0.1:0") as (_, address):
        async with HttpClient(Endpoint.parse(f"unix:{root}/registry.sock")) as client:
            digest, _ = await push_image(client, "web", "v1", b"layer")
        async with HttpClient(Endpoint.parse(f"http://{address}")) as client:
            closed = await client.request("GET", "/v2/web/manifests/v1")
            await closed.read()
            assert closed.status == 401  # private unless it is said to be public
        await command(root, "add", "ann", "--password-stdin", said=b"correct horse\n")
        assert "ann" in await command(root, "people")
        policy = tmp_path / "policy.json"
        policy.write_text('{"Statement": [{"Effect": "Allow", "Action": "pull", "Resource": "*"}]}')
        await command(root, "policy", "user/ann", "read", str(policy))
        settings = tmp_path / "settings.json"
        settings.write_text('{"lifecycle": [{"name": "none", "tags": {"match": ["*"]}, "newest": 0}]}')
        await command(root, "configure", "web", str(settings))
        assert digest in await command(root, "lifecycle", "web")
        assert digest in await command(root, "expire", "web")
        assert msgspec.json.decode(await command(root, "gc", "--dry-run", "-o", "json"))["dry_run"] is True
        assert "account ann created" in await command(root, "events", "--action", "change")
        assert "web" in await command(root, "repositories")
        assert "no subcommand" in await command(root, "peple", code=2)
        assert "there is none" in await command(root, "remove", "nobody", code=1)
        await command(root, "scrub")
    assert "no registry runs" in await command(root, "people", code=1)


async def _pushes(root: Path, done: dict[tuple[str, str], bytes], doubtful: set[tuple[str, str]], number: int) -> None:
    """Push until the registry dies; note what was acknowledged."""
    chance = random.Random(number)
    try:
        async with HttpClient(Endpoint.parse(f"unix:{root}/registry.sock")) as client:
            for turn in range(10_000):
                layer = chance.randbytes(chance.choice((10, 5_000, 300_000)))
                await push_image(client, f"r{number}", f"t{turn}", layer)
                done[f"r{number}", f"t{turn}"] = layer
                if turn % 4 == 3:
                    doubtful.add((f"r{number}", f"t{turn - 1}"))
                    gone = await client.request("DELETE", f"/v2/r{number}/manifests/t{turn - 1}")
                    await gone.read()
                    await (await client.request("POST", "/api/registry/v1/collection", [("untagged", "true")])).read()
    except (WherryError, OSError, AssertionError, KeyError, ConnectionError):
        return


async def killed(root: Path, times: int) -> None:
    done: dict[tuple[str, str], bytes] = {}
    doubtful: set[tuple[str, str]] = set()  # somebody asked to delete them, answered or not
    chance = random.Random(times)
    for _ in range(times):
        async with alone(root) as (process, _):
            pushers = [asyncio.create_task(_pushes(root, done, doubtful, n), name=f"push-{n}") for n in range(3)]
            await machine.sleep(0.2 + chance.random() * 0.5)
            process.send_signal(signal.SIGKILL)
            await process.wait()
            await asyncio.gather(*pushers)
    assert done
    clock = RealClock()
    content = LocalContent.open(root / "content", clock=clock)
    registry = Registry(content, root / "registry", clock=clock)
    await registry.start()
    for (name, tag), layer in done.items():
        row = await registry.metadata.find(name, tag)
        if row is None:
            assert (name, tag) in doubtful
            continue
        await content.read(row.digest)
        assert await content.read(digest_of(layer)) == layer
    before = await registry.database.rows("SELECT * FROM space ORDER BY 1, 2")
    await registry.database.write(space.recount)
    assert await registry.database.rows("SELECT * FROM space ORDER BY 1, 2") == before
    held = {digest for _, digest in await content.holders("repo/")}
    assert held == {digest for _, digest in await registry.metadata.held()}
    await registry.close()
    await content.close()


async def test_kill_nine_loses_nothing_acknowledged(tmp_path: Path) -> None:
    await killed(tmp_path / "alone", 5)


@pytest.mark.soak
async def test_kill_nine_fifty_times(tmp_path: Path) -> None:
    await killed(tmp_path / "alone", 50)


async def test_an_upload_goes_on_after_kill_nine(tmp_path: Path) -> None:
    data = os.urandom(3_000_000)
    root = tmp_path / "alone"
    async with alone(root) as (process, _):
        async with HttpClient(Endpoint.parse(f"unix:{root}/registry.sock")) as client:
            begun = await client.request("POST", "/v2/web/blobs/uploads/")
            await begun.read()
            url = begun.headers["location"]
            part = await client.request("PATCH", url, body=data[:2_000_000])
            await part.read()
            assert part.headers["range"] == "0-1999999"
        process.send_signal(signal.SIGKILL)
        await process.wait()
    async with alone(root):
        async with HttpClient(Endpoint.parse(f"unix:{root}/registry.sock")) as client:
            status = await client.request("GET", url)
            await status.read()
            assert (status.status, status.headers["range"]) == (204, "0-1999999")
            done = await client.request("PUT", url, [("digest", digest_of(data))], body=data[2_000_000:])
            await done.read()
            assert done.status == 201
