"""Pulls that are cut off in the middle of a layer: by a client that hangs up, and by `kill -9` of the engine's process."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from tests.engine.harbour import Harbour
from tests.engine.test_pulls import HERE, Far
from tests.engine.test_registries import Registry
from tests.traces import processes

from wherry.clock import RealClock, machine
from wherry.content.local import LocalContent
from wherry.content.protocol import Digest
from wherry.wire.http import Request, Response
from wherry.wire.server import Server

pytestmark = pytest.mark.root
HALF = 8_000_000


class Slow(Registry):
    """Sends half of a large blob, then nothing until `go_on`. `starts` are where the blob was asked for."""

    def __init__(self, content: LocalContent) -> None:
        super().__init__(content)
        self.go_on = asyncio.Event()
        self.starts: list[int] = []
        self.open = 0

    async def handle(self, request: Request) -> Response:
        digest = Digest(request.path.rpartition("/")[2])
        blob = await self.content.stat(digest) if "/blobs/" in request.path else None
        if blob is None or blob.size_bytes < HALF:
            return await super().handle(request)
        start = int((request.headers.get("range") or "bytes=0-").removeprefix("bytes=").rstrip("-"))
        self.starts.append(start)

        async def body() -> AsyncIterator[bytes]:
            self.open += 1
            try:
                if start < HALF:
                    async for piece in self.content.stream(digest, start=start, stop=HALF):
                        yield piece
                    await self.go_on.wait()
                async for piece in self.content.stream(digest, start=max(start, HALF)):
                    yield piece
            finally:
                self.open -= 1

        headers = {"Content-Length": str(blob.size_bytes - start)}
        return Response.stream(body(), headers=headers, status=206 if start else 200)


async def until(what: Callable[[], object]) -> None:
    async with machine.timeout(20):
        while not what():
            await machine.sleep(0.02)


async def test_a_pull_that_is_cut_off_leaves_nothing_half_made_and_goes_on_where_it_was(tmp_path: Path) -> None:
    registry = Slow(LocalContent.open(tmp_path / "far", clock=RealClock()))
    harbour = Harbour(tmp_path / "root")

    def making() -> list[str]:
        return [each for each in os.listdir(snapshots) if each.startswith("making-")]

    uploads = harbour.root / "content" / "uploads"
    async with Server(registry.handle) as server:
        host, port = await server.start_tcp("127.0.0.1", 0)
        far = Far(registry, f"{host}:{port}")
        await far.index("cut:1", [await far.image(HERE, "cut", more=os.urandom(2 * HALF))])
        target = f"/images/create?fromImage={far.address}/cut&tag=1"
        await harbour.start()
        snapshots = next(harbour.root.glob("nodes/*/snapshots"))
        before = set(processes(harbour.root))
        try:
            for cut in ("hang up", "kill"):
                reader, writer = await asyncio.open_unix_connection(str(harbour.socket))
                writer.write(f"POST {target} HTTP/1.1\r\nHost: d\r\nContent-Length: 0\r\n\r\n".encode())
                while b"Downloading" not in await reader.readline():
                    pass
                await until(making)  # it unpacks while it comes
                if cut == "kill":
                    await harbour.kill()
                writer.close()
                await until(lambda: not registry.open)  # the registry is let go
                if cut == "kill":
                    await harbour.start()
                await until(lambda: not making())
                assert await harbour.call("GET", "/images/json") == []
                assert [each.stat().st_size > 0 for each in uploads.iterdir()] == [True]
            assert len(registry.starts) == 2
            assert registry.starts[1] > 0  # the second went on where the first was cut
            registry.go_on.set()
            assert "Downloaded newer image" in str(await harbour.call("POST", target))
            assert registry.starts[2] >= registry.starts[1]
            assert list(uploads.iterdir()) == []
            image = (await harbour.call("GET", "/images/json"))[0]
            assert image["Size"] > 2 * HALF
            await until(lambda: len(set(processes(harbour.root))) == len(before))
        finally:
            assert await harbour.down() == []
    await registry.content.close()
