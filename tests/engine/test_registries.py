"""Pull and push, and the cluster's registry: which is asked first, and what moves."""

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from tests.engine.boxes import NoNetwork, config

from wherry.clock import RealClock
from wherry.content import oci
from wherry.content.local import LocalContent
from wherry.content.pack import pack_directory
from wherry.content.protocol import Digest
from wherry.engine.events import Events
from wherry.engine.images import Images
from wherry.engine.settings import EngineSettings
from wherry.errors import NotFound, Unavailable
from wherry.wire.http import Request, Response
from wherry.wire.server import Server


class Registry:
    """As much of a registry as pull and push need, on a content store. `asked` is what came."""

    def __init__(self, content: LocalContent) -> None:
        self.content = content
        self.tags: dict[str, Digest] = {}
        self.asked: list[str] = []

    async def handle(self, request: Request) -> Response:
        self.asked.append(f"{request.method} {request.path}")
        if found := re.fullmatch(r"/v2/(.+)/manifests/(.+)", request.path):
            name, reference = found.groups()
            if request.method == "PUT":
                blob = await self.content.put(await request.body())
                self.tags[f"{name}:{reference}"] = blob.digest
                return Response(201, {"Location": request.path})
            digest = Digest(reference) if ":" in reference else self.tags.get(f"{name}:{reference}")
            if digest is None or await self.content.stat(digest) is None:
                return Response(404)
            data = await self.content.read(digest)
            return Response(200, {"Content-Type": oci.document_type(data)}, data)
        if found := re.fullmatch(r"/v2/(.+)/blobs/(sha256:\w+)", request.path):
            blob = await self.content.stat(Digest(found[2]))
            if blob is None:
                return Response(404)
            return Response(200) if request.method == "HEAD" else Response.file(self.content.path(blob.digest))
        if request.method == "POST":
            return Response(202, {"Location": f"{request.path}upload"})
        await self.content.put(await request.body())
        return Response(201)


class World:
    """A store of this machine, and two registries on unix sockets with stores of their own."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.content = LocalContent.open(base / "content", clock=RealClock())
        self.cluster = Registry(LocalContent.open(base / "cluster", clock=RealClock()))

    def images(self, content: LocalContent | None = None, **settings: object) -> Images:
        chosen = EngineSettings(cluster_registry=f"unix:{self.base}/r", registry_host="r.local:5000", **settings)  # type: ignore[arg-type]
        return Images(content or self.content, chosen, Events(), lambda _: [])

    async def make(self, images: Images, content: LocalContent, name: str) -> str:
        source = self.base / "source"
        source.mkdir(exist_ok=True)
        (source / "file").write_text("hello" * 1000)
        layer = await pack_directory(content, source, lease=await content.lease(seconds=60), mtime=0)
        return (await images.commit(config([layer.diff_id]), [layer.digest], [name])).digest


@pytest_asyncio.fixture
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    made = World(tmp_path_factory.mktemp("w"))
    async with Server(made.cluster.handle) as server:
        await server.start_unix(made.base / "r")
        yield made
    await made.content.close()
    await made.cluster.content.close()


async def test_a_tag_goes_to_the_cluster_by_its_manifest_alone(world: World) -> None:
    images = world.images(shares_content=True)
    digest = await world.make(images, world.content, "web:1")
    assert world.cluster.tags == {"docker.io/library/web:1": digest}
    assert world.cluster.asked == ["PUT /v2/docker.io/library/web/manifests/1"]
    await images.tag("web:1", "r.local:5000/shop/web:2")
    assert world.cluster.tags["shop/web:2"] == digest


async def test_another_store_gets_the_blobs_too(world: World) -> None:
    images = world.images(shares_content=False)
    digest = await world.make(images, world.content, "web:1")
    other = LocalContent.open(world.base / "other", clock=RealClock())
    there = world.images(other)
    with pytest.raises(NotFound):
        await there.find("web:1")
    pulled = await there.pull("web:1", None, None)
    assert pulled.digest == digest
    assert pulled.names == ("docker.io/library/web:1",)
    assert await other.stat(Digest(pulled.layers[0])) is not None
    await other.close()


async def test_a_registry_beside_an_engine_that_stands_alone_gets_and_sends_no_blob(world: World) -> None:
    """One content store: what is pushed to it and pulled from it are manifests, and only where a name says it."""
    world.cluster = Registry(world.content)
    async with Server(world.cluster.handle) as server:
        await server.start_unix(world.base / "beside")
        place = f"unix:{world.base}/beside"
        settings = EngineSettings(beside=lambda domain: place if domain == "localhost:5000" else "")
        images = Images(world.content, settings, Events(), lambda _: [])
        digest = await world.make(images, world.content, "web:1")
        assert world.cluster.asked == []  # unlike a cluster's, it is told of what is pushed to it alone
        await images.tag("web:1", "localhost:5000/shop/web:2")
        await images.push("localhost:5000/shop/web:2", None, None)
        assert world.cluster.tags == {"shop/web:2": digest}
        assert world.cluster.asked == ["PUT /v2/shop/web/manifests/2"]
        await images.remove("localhost:5000/shop/web:2", force=False)
        world.cluster.asked.clear()
        assert (await images.pull("localhost:5000/shop/web:2", None, None)).digest == digest
        assert world.cluster.asked
        assert not [asked for asked in world.cluster.asked if "blobs" in asked]


async def test_a_hook_is_told_instead(world: World) -> None:
    told: list[tuple[str, str]] = []

    async def on_tag(name: str, digest: Digest) -> None:
        told.append((name, digest))

    images = world.images(on_tag=on_tag)
    digest = await world.make(images, world.content, "web:1")
    assert told == [("docker.io/library/web:1", digest)]
    assert world.cluster.asked == []


async def test_the_registry_s_own_names_are_asked_nowhere_else(world: World) -> None:
    images = world.images()
    with pytest.raises(NotFound):
        await images.pull("r.local:5000/none:1", None, None)
    assert world.cluster.asked == ["GET /v2/none/manifests/1"]


async def test_a_registry_that_is_away_is_named(world: World) -> None:
    chosen = EngineSettings(cluster_registry=f"unix:{world.base}/nobody", registry_host="r.local:5000")
    images = Images(world.content, chosen, Events(), lambda _: [])
    with pytest.raises(Unavailable, match="tagged on this machine"):
        await asyncio.wait_for(world.make(images, world.content, "web:1"), 30)
    assert (await images.find("web:1")).names == ("docker.io/library/web:1",)


async def test_push_to_a_plain_registry(world: World) -> None:
    upstream = Registry(LocalContent.open(world.base / "upstream", clock=RealClock()))
    async with Server(upstream.handle) as server:
        host, port = await server.start_tcp("127.0.0.1", 0)
        images = Images(world.content, EngineSettings(), Events(), lambda _: [])
        await world.make(images, world.content, f"{host}:{port}/team/web:3")
        digest = await images.push(f"{host}:{port}/team/web:3", None, None)
        assert upstream.tags == {"team/web:3": digest}
        other = LocalContent.open(world.base / "fresh", clock=RealClock())
        there = Images(other, EngineSettings(), Events(), lambda _: [])
        assert (await there.pull(f"{host}:{port}/team/web:3", None, None)).digest == digest
        await other.close()
    await upstream.content.close()
    assert NoNetwork().gateway
