"""Images from registries into a real engine: unpacked as they come, for several platforms, by digest; and what goes again."""

import io
import os
import tarfile
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
import pytest_asyncio
from tests.engine.boxes import BUSYBOX, Place, config, run, spec
from tests.engine.test_registries import Registry

from wherry.clock import RealClock
from wherry.content import oci
from wherry.content.digests import digest_of
from wherry.content.local import LocalContent
from wherry.content.oci import OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_MANIFEST, Descriptor, Platform, manifest_of
from wherry.content.protocol import Digest
from wherry.engine.local import LocalEngine
from wherry.engine.snapshots import Snapshots
from wherry.errors import Broken, Conflict, Damaged, Invalid, NotFound
from wherry.host import mounts
from wherry.wire.server import Server

pytestmark = [pytest.mark.root, pytest.mark.asyncio(loop_scope="module")]

HERE = oci.this_platform()
OTHER = Platform("s390x" if HERE.architecture != "s390x" else "amd64", "linux")


def layer_of(word: str, more: bytes = b"") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, data in (("bin/cat", Path(BUSYBOX).read_bytes()), ("word", word.encode()), ("more", more)):
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(data), 0o755
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


class Far:
    """A registry on TCP."""

    def __init__(self, registry: Registry, address: str) -> None:
        self.registry, self.address = registry, address

    def name(self, rest: str) -> str:
        return f"{self.address}/{rest}"

    async def image(self, platform: Platform, word: str, *, diff_id: str = "", more: bytes = b"") -> Descriptor:
        put = self.registry.content.put
        layer = layer_of(word, more)
        blob = await put(layer)
        document = config([diff_id or digest_of(layer)], Cmd=["/bin/cat", "/word"]) | {
            "architecture": platform.architecture, "os": platform.os,
        }  # fmt: skip
        data = msgspec.json.encode(document)
        described = Descriptor(OCI_CONFIG, (await put(data)).digest, len(data))
        manifest = manifest_of(described, [Descriptor(OCI_LAYER, blob.digest, len(layer))])
        return Descriptor(OCI_MANIFEST, (await put(manifest)).digest, len(manifest), platform)

    async def index(self, tag: str, images: Sequence[Descriptor]) -> Digest:
        document = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": images}
        digest = (await self.registry.content.put(msgspec.json.encode(document))).digest
        self.registry.tags[tag] = digest
        return digest


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def far(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Far]:
    registry = Registry(LocalContent.open(tmp_path_factory.mktemp("far"), clock=RealClock()))
    async with Server(registry.handle) as server:
        host, port = await server.start_tcp("127.0.0.1", 0)
        yield Far(registry, f"{host}:{port}")
    await registry.content.close()


@asynccontextmanager
async def cleared(engine: LocalEngine) -> AsyncGenerator[None]:
    """Removes the images that a test has pulled."""
    before = {image.id for image in await engine.images()}
    yield
    await engine.prune_images([image.id for image in await engine.images() if image.id not in before])
    assert {image.id for image in await engine.images()} == before


def files(content: LocalContent) -> set[str]:
    return {path.name for folder in ("blobs/sha256", "uploads") for path in (content.root / folder).iterdir()}


def snapshots(place: Place) -> set[str]:
    return {path.name for path in (place.root / "snapshots").iterdir() if not path.name.endswith(".new")}


async def test_an_index_is_kept_whole_and_each_platform_has_its_image(
    engine: LocalEngine, place: Place, far: Far
) -> None:
    content: LocalContent = engine._content  # type: ignore[assignment]  # pyright: ignore
    before = files(content), snapshots(place)
    foreign_image, own = await far.image(OTHER, "foreign"), await far.image(HERE, "own")
    root = await far.index("multi:1", [foreign_image, own])
    name = far.name("multi:1")
    image = await engine.pull(name)
    assert (image.root, image.digest) == (root, own.digest)
    assert image.digests == (f"{far.address}/multi@{root}",)
    far.registry.asked.clear()
    assert (await engine.pull(name)).id == image.id
    assert far.registry.asked == ["GET /v2/multi/manifests/1"]
    assert await run(engine, spec_of(name)) == (0, "own")
    with pytest.raises(NotFound, match="does not match the specified platform: wanted linux/"):
        await engine.image(name, platform=str(OTHER))
    shown = [(each.platform["architecture"], each.available) for each in await engine.manifests(name)]
    assert shown == [(OTHER.architecture, False), (HERE.architecture, True)]
    other = await engine.pull(name, platform=str(OTHER))
    assert (other.root, other.digest) == (root, foreign_image.digest)
    assert (await engine.image(name)).id == image.id  # the machine's own is still what the name means
    assert (await engine.image(name, platform=str(OTHER))).id == other.id == (await engine.image(other.id)).id
    assert [each.available for each in await engine.manifests(name)] == [True, True]
    assert len([each for each in await engine.images() if name in each.names]) == 1
    with pytest.raises(Invalid, match="exec format error"):
        await engine.create(spec_of(name, platform=str(OTHER)))
    with pytest.raises(NotFound, match=r"no matching manifest for linux/mips in the manifest list entries"):
        await engine.pull(name, platform="linux/mips")
    for ref in (f"{far.address}/multi@{root}", f"{far.address}/multi:9@{root}", str(root), image.id):
        assert (await engine.image(ref)).id == image.id
    assert await engine.remove_image(name) == [f"Untagged: {name}", f"Deleted: {image.id}"]
    await engine.settled()
    assert (files(content), snapshots(place)) == before


def spec_of(image: str, **more: object):
    from dataclasses import replace

    return replace(spec(), image=image, command=None, **more)  # type: ignore[arg-type]


async def test_what_is_pulled_by_digest_is_named_by_it_alone(engine: LocalEngine, far: Far) -> None:
    root = await far.index("pin:1", [await far.image(HERE, "pinned")])
    async with cleared(engine):
        name = f"{far.address}/pin@{root}"
        image = await engine.pull(f"{far.address}/pin:whatever@{root}")
        assert (image.names, image.digests) == ((name,), (name,))
        await engine.pull(far.name("pin:1"))
        image = await engine.image(far.name("pin:1"))
        assert set(image.names) == {name, far.name("pin:1")}
        assert image.digests == (name,)
        assert await engine.remove_image(far.name("pin:1")) == [
            f"Untagged: {far.name('pin:1')}", f"Untagged: {name}", f"Deleted: {image.id}",
        ]  # fmt: skip


async def test_sizes_are_those_of_the_files(engine: LocalEngine, place: Place, far: Far) -> None:
    """Of a layer that was unpacked; until then that of its blob. A size that a kill kept from being written is counted."""
    await far.index("size:1", [await far.image(HERE, "sized", more=bytes(500_000))])
    async with cleared(engine):
        image = await engine.pull(far.name("size:1"))
        expected = len(Path(BUSYBOX).read_bytes()) + len("sized") + 500_000
        assert (image.size_bytes, tuple(image.layer_bytes)) == (expected, (expected,))
        shown = (await engine.manifests(far.name("size:1")))[0]
        assert (shown.unpacked_bytes, shown.content_bytes > expected) == (expected, True)
        layer = image.config["rootfs"]["diff_ids"][0].removeprefix("sha256:")
        (place.root / "snapshots" / f"{layer}.size").write_text("")
        fresh = Snapshots(engine._paths, engine._content, engine._trash)  # pyright: ignore[reportPrivateUsage]
        assert await fresh.sizes([f"sha256:{layer}", f"sha256:{'2' * 64}"]) == [expected, -1]
        assert (place.root / "snapshots" / f"{layer}.size").read_text() == str(expected)


async def test_an_unwritable_content_directory_is_said_and_leaves_nothing(far: Far, tmp_path: Path) -> None:
    await far.index("stuck:1", [await far.image(HERE, "stuck", more=os.urandom(3_000_000))])
    content = LocalContent.open(tmp_path / "content", clock=RealClock())
    uploads = str(content.root / "uploads")
    place = Place(tmp_path / "place")
    place.base.mkdir()
    try:
        async with place.engine(content) as engine:
            mounts.bind(uploads, uploads, read_only=True)
            try:
                with pytest.raises(Broken, match="Read-only file system"):
                    await engine.pull(far.name("stuck:1"))
            finally:
                mounts.unmount(uploads)
            assert snapshots(place) == {"base"}
            assert files(content) == set()
            assert (await engine.pull(far.name("stuck:1"))).size_bytes > 3_000_000
            await engine.remove_image(far.name("stuck:1"))
    finally:
        await content.close()
    assert place.leftovers() == []


async def test_a_layer_that_lies_leaves_nothing(engine: LocalEngine, place: Place, far: Far) -> None:
    """About what it unpacks to; large enough to be unpacked while it comes."""
    content: LocalContent = engine._content  # type: ignore[assignment]  # pyright: ignore
    before = files(content), snapshots(place)
    for more in (b"", os.urandom(3_000_000)):
        lying = await far.image(HERE, "lie", diff_id=f"sha256:{'1' * 64}", more=more)
        await far.index("lie:1", [lying])
        with pytest.raises(Damaged, match="its config says sha256:1111"):
            await engine.pull(far.name("lie:1"))
        await engine.settled()
        assert (files(content), snapshots(place)) == before


async def test_a_full_disk_is_said_and_leaves_nothing(far: Far, tmp_path: Path) -> None:
    await far.index("big:1", [await far.image(HERE, "big", more=os.urandom(20_000_000))])
    small = tmp_path / "small"
    small.mkdir()
    mounts.mount("tmpfs", str(small), "tmpfs", options="size=12m")
    place = Place(tmp_path / "place")
    place.base.mkdir()
    content = LocalContent.open(small / "content", clock=RealClock())
    try:
        async with place.engine(content) as engine:
            with pytest.raises(Broken, match="No space left on device"):
                await engine.pull(far.name("big:1"))
            assert files(content) == set()
            assert snapshots(place) == {"base"}
            assert list(await engine.images()) == []
    finally:
        await content.close()
        mounts.unmount(str(small))
    assert place.leftovers() == []


async def test_removing_follows_docker_s_rules(engine: LocalEngine, far: Far) -> None:
    await far.index("rule:1", [await far.image(HERE, "rules")])
    async with cleared(engine):
        name, sister, cousin = far.name("rule:1"), far.name("rule:2"), far.name("other:1")
        image = await engine.pull(name)
        short = image.id.removeprefix("sha256:")[:12]
        await engine.tag(name, sister)
        await engine.tag(name, cousin)
        with pytest.raises(
            Conflict, match=rf"unable to delete {short} \(must be forced\) - image is referenced in mult"
        ):
            await engine.remove_image(image.id)
        assert await engine.remove_image(cousin) == [f"Untagged: {cousin}"]
        made = await engine.create(spec_of(name))
        with pytest.raises(Conflict, match="must be forced"):
            await engine.remove_image(short)
        assert await engine.remove_image(sister) == [f"Untagged: {sister}"]
        with pytest.raises(Conflict, match=rf'reference "{name}" \(must force\) - container {made.id[:12]} is using'):
            await engine.remove_image(name)
        with pytest.raises(Conflict, match=rf"being used by stopped container {made.id[:12]}"):
            await engine.remove_image(short)
        assert await engine.remove_image(name, force=True) == [f"Untagged: {name}"]
        left = await engine.image(image.id)
        assert left.names == ()
        await engine.remove(made.id)
        assert await engine.remove_image(short) == [f"Deleted: {image.id}"]


async def test_one_tag_and_its_digest_go_by_the_id(engine: LocalEngine, far: Far) -> None:
    await far.index("solo:1", [await far.image(HERE, "solo")])
    async with cleared(engine):
        image = await engine.pull(far.name("solo:1"))
        assert await engine.remove_image(image.id) == [f"Untagged: {far.name('solo:1')}", f"Deleted: {image.id}"]


async def test_a_running_container_cannot_be_forced(engine: LocalEngine) -> None:
    made = await engine.create(spec("/bin/sleep", "100"))
    await engine.start(made.id)
    image = await engine.image("box:1")
    with pytest.raises(Conflict, match=r"cannot be forced\) - image is being used by running container"):
        await engine.remove_image(image.id, force=True)
    assert (await engine.image("box:1")).id == image.id
    await engine.remove(made.id, force=True)
