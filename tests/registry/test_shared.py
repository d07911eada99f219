"""Two `wherry registry serve` over one database and one bucket: both serve, one is killed, the other carries on."""

import asyncio
import os
import random
import signal
from pathlib import Path

import pytest
from tests.registry.servers import Postgres, Seaweed
from tests.registry.test_alone import alone, command
from tests.registry.test_protocol import push_image

from wherry.clock import RealClock, machine
from wherry.content.digests import digest_of
from wherry.errors import WherryError
from wherry.registry import space
from wherry.registry.bucket import Bucket
from wherry.registry.postgres import PostgresRecords
from wherry.wire.client import Endpoint, HttpClient


@pytest.fixture
def shared(postgres: Postgres, seaweed: Seaweed, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """A database and a place in a bucket, by URL; both in the environment that registries are started with."""
    urls = postgres.fresh(), seaweed.fresh()
    settings = {"WHERRY_REGISTRY_DATABASE": urls[0], "WHERRY_REGISTRY_STORAGE": urls[1], **seaweed.environment}
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    return urls


def at(root: Path) -> HttpClient:
    return HttpClient(Endpoint.parse(f"unix:{root}/registry.sock"))


async def ask(client: HttpClient, method: str, path: str, **more: object) -> tuple[int, bytes, str]:
    answer = await client.request(method, path, **more)  # type: ignore[arg-type]
    return answer.status, await answer.read(), answer.headers.get("location", "")


async def test_what_one_takes_the_other_gives(shared: tuple[str, str], tmp_path: Path) -> None:
    async with alone(tmp_path / "a"), alone(tmp_path / "b"), at(tmp_path / "a") as a, at(tmp_path / "b") as b:
        digest, _ = await push_image(a, "web", "v1", b"layer of a")
        assert (await ask(b, "GET", "/v2/web/manifests/v1"))[0] == 200
        assert (await ask(b, "GET", f"/v2/web/blobs/{digest_of(b'layer of a', 'sha256')}"))[:2] == (200, b"layer of a")
        _, _, location = await ask(
            a, "POST", "/v2/web/blobs/uploads/"
        )  # begun at one, gone on with and ended at the other
        assert (await ask(a, "PATCH", location, body=b"one "))[0] == 202
        assert (await ask(b, "PATCH", location, body=b"two "))[0] == 202
        whole = digest_of(b"one two three", "sha256")
        assert (await ask(a, "PUT", location, query=[("digest", whole)], body=b"three"))[0] == 201
        assert (await ask(b, "GET", f"/v2/web/blobs/{whole}"))[1] == b"one two three"
        part = await ask(b, "GET", f"/v2/web/blobs/{whole}", headers={"Range": "bytes=4-6"})
        assert part[:2] == (206, b"two")
        assert (await ask(a, "GET", f"/v2/web/blobs/{whole}", headers={"Range": "bytes=99-"}))[0] == 416
        assert (await ask(a, "HEAD", f"/v2/web/blobs/{whole}"))[:2] == (200, b"")
        await command(tmp_path / "a", "add", "ann", "--password-stdin", said=b"correct horse\n")
        assert "ann" in await command(tmp_path / "b", "people")
        assert (await ask(b, "DELETE", f"/v2/web/manifests/{digest}"))[0] == 202
        assert (await ask(a, "GET", "/v2/web/manifests/v1"))[0] == 404
        await command(tmp_path / "b", "scrub")
    assert "postgresql" in (await asyncio.to_thread(_refused, tmp_path, "--storage", "s3://x")).lower()


def _refused(root: Path, *words: str) -> str:
    import subprocess
    import sys

    environment = {name: value for name, value in os.environ.items() if not name.startswith("WHERRY_")}
    argv = [sys.executable, "-m", "wherry.cli.main", "registry", "serve", "--root", str(root / "c"), *words]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False, env=environment)
    assert done.returncode != 0
    return done.stderr


async def _pushes(root: Path, done: dict[tuple[str, str], bytes], name: str, stop: asyncio.Event) -> None:
    """Push until the registry dies or we are told to stop; note what was acknowledged."""
    chance = random.Random(name)
    try:
        async with at(root) as client:
            for turn in range(10_000):
                if stop.is_set():
                    return
                layer = chance.randbytes(chance.choice((10, 5_000, 300_000)))
                await push_image(client, name, f"t{turn}", layer)
                done[name, f"t{turn}"] = layer
                if turn % 5 == 4:
                    await ask(client, "POST", "/api/registry/v1/collection", query=[("untagged", "true")])
    except (WherryError, OSError, AssertionError, KeyError, ConnectionError):
        return


async def killed(shared: tuple[str, str], root: Path, times: int) -> None:
    done: dict[tuple[str, str], bytes] = {}
    chance = random.Random(times)
    async with alone(root / "stays"), at(root / "stays") as stays:
        for number in range(times):
            stop = asyncio.Event()
            async with alone(root / "dies") as (process, _):
                async with at(root / "dies") as dies:
                    _, _, location = await ask(dies, "POST", "/v2/resumed/blobs/uploads/")
                    assert (await ask(dies, "PATCH", location, body=b"before "))[0] == 202
                pushers = [
                    asyncio.create_task(_pushes(root / where, done, f"{where}{number}-{n}", stop), name=f"{where}{n}")
                    for where in ("dies", "stays")
                    for n in range(2)
                ]
                await machine.sleep(0.3 + chance.random())
                process.send_signal(signal.SIGKILL)
                await process.wait()
                acknowledged = len(done)
                async with machine.timeout(30):
                    while len(done) <= acknowledged:  # the other carries on
                        await machine.sleep(0.01)
                stop.set()
                await asyncio.gather(*pushers)
            whole = digest_of(b"before and after", "sha256")
            assert (await ask(stays, "PUT", location, query=[("digest", whole)], body=b"and after"))[0] == 201
        for (name, tag), layer in done.items():
            assert (await ask(stays, "GET", f"/v2/{name}/manifests/{tag}"))[0] == 200, (name, tag)
            status, data, _ = await ask(stays, "GET", f"/v2/{name}/blobs/{digest_of(layer, 'sha256')}")
            assert (status, data) == (200, layer), (name, tag)
    assert any(name.startswith("dies") for name, _ in done)
    await _exact(shared)


async def _exact(shared: tuple[str, str]) -> None:
    """Every blob has its digest, nothing is counted wrong, and what is over goes when its time has come."""
    records = PostgresRecords(shared[0])
    bucket = await Bucket.open(shared[1], records, clock=RealClock())
    for (digest,) in await records.rows("SELECT digest FROM pile_blobs WHERE present = 1"):
        assert (await bucket.inspect(digest))[1], digest
    before = [await records.rows(f"SELECT * FROM {table} ORDER BY 1, 2") for table in ("space", "usage")]
    await records.write(space.recount)
    after = [await records.rows(f"SELECT * FROM {table} ORDER BY 1, 2") for table in ("space", "usage")]
    assert before[0] == after[0]
    assert {row for row in before[1] if row[1]} == set(after[1])
    await records.execute("UPDATE pile_leases SET until = 0")
    await records.execute("DELETE FROM pile_holds")
    await records.execute("UPDATE pile_uploads SET touched = 0")
    await bucket.collect()
    assert [each["path"] for page in bucket.store.list("blobs/") for each in page] == []
    await records.close()


async def test_one_of_two_is_killed_and_nothing_acknowledged_is_lost(shared: tuple[str, str], tmp_path: Path) -> None:
    await killed(shared, tmp_path, 3)


@pytest.mark.soak
async def test_one_of_two_is_killed_twenty_times(shared: tuple[str, str], tmp_path: Path) -> None:
    await killed(shared, tmp_path, 20)
