"""Archives: what we save, we load, skopeo reads, and what skopeo writes in either format, we load."""

import asyncio
import gzip
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from tests.content.images import FILE, sample, tar

from wherry.clock import VirtualClock, machine
from wherry.content.layout import load, load_stream, save
from wherry.content.local import LocalContent
from wherry.content.oci import Manifest, parse_document
from wherry.content.pack import pack_directory
from wherry.content.tars import Tar
from wherry.errors import Damaged, Invalid, NotFound

NAME = "docker.io/library/web:1"


@pytest.fixture
async def other(tmp_path: Path, clock: VirtualClock) -> AsyncIterator[LocalContent]:
    store = LocalContent.open(tmp_path / "other", clock=clock)
    yield store
    await store.close()


async def saved(content: LocalContent, path: Path, *images: tuple[str, str]) -> Path:
    path.write_bytes(b"".join([part async for part in save(content, images)]))  # type: ignore[arg-type]
    return path


async def skopeo(*argv: str) -> None:
    process = await asyncio.create_subprocess_exec(
        "skopeo", "--insecure-policy", *argv, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    async with machine.timeout(60):
        said, _ = await process.communicate()
    assert process.returncode == 0, said.decode()


async def test_what_is_saved_is_loaded(tmp_path: Path, content: LocalContent, other: LocalContent) -> None:
    one = await sample(content, tar([("a", FILE, b"1")]), env=["A=1"])
    two = await sample(content, tar([("a", FILE, b"1")]), tar([("b", FILE, b"2")]))
    archive = await saved(
        content, tmp_path / "a.tar", (NAME, one.digest), ("", two.digest), ("ghcr.io/x/y:2", two.digest)
    )
    lease = await other.lease(seconds=60)
    loaded = await load(other, archive, lease=lease)
    assert [each.digest for each in loaded] == [one.digest, two.digest, two.digest]
    assert loaded[0].names == [NAME]
    assert "ghcr.io/x/y:2" in loaded[2].names
    for image in (one, two):
        for digest in (image.digest, image.config, *image.layers):
            assert await other.read(digest) == await content.read(digest)
    assert await other.collect() == []


async def test_skopeo_reads_what_we_save_and_we_load_what_it_writes(
    tmp_path: Path, content: LocalContent, other: LocalContent
) -> None:
    image = await _real_image(content, tmp_path)
    archive = await saved(content, tmp_path / "a.tar", (NAME, image))
    for number, source in enumerate((f"oci-archive:{archive}", f"docker-archive:{archive}:web:1")):
        for form in ("oci-archive", "docker-archive"):
            made = tmp_path / f"{number}-{form}.tar"
            await skopeo("copy", source, f"{form}:{made}:web:1")
            lease = await other.lease(seconds=60)
            (loaded,) = await load(other, made, lease=lease)
            document = parse_document(await other.read(loaded.digest))
            assert isinstance(document, Manifest)
            assert loaded.names == [NAME]
            with other.path(document.layers[0].digest).open("rb") as file:
                data = file.read()
            plain = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
            assert [member.path for member in Tar(iter([plain]))] == ["f"]


async def test_a_stream_is_loaded(tmp_path: Path, content: LocalContent, other: LocalContent) -> None:
    image = await sample(content, tar([("a", FILE, b"1")]))
    stream = save(content, [(NAME, image.digest)])
    (loaded,) = await load_stream(other, stream, lease=await other.lease(seconds=60), scratch=tmp_path)
    assert loaded.digest == image.digest


async def test_a_wrong_archive_says_what_is_wrong(tmp_path: Path, content: LocalContent, other: LocalContent) -> None:
    image = await sample(content, tar([("a", FILE, b"1")]))
    archive = await saved(content, tmp_path / "a.tar", (NAME, image.digest))
    data = archive.read_bytes()
    lease = await other.lease(seconds=60)

    async def refused(data: bytes, kind: type[Exception], words: str) -> None:
        archive.write_bytes(data)
        with pytest.raises(kind, match=words):
            await load(other, archive, lease=lease)

    await refused(tar([("a", FILE, b"1")]), Invalid, "no image archive")
    await refused(b"junk" * 300, Damaged, "tar")
    await refused(data.replace(b'"linux"', b'"linus"'), Invalid, "digest")
    rows = msgspec.json.encode([{"Config": "absent.json", "Layers": []}])
    await refused(tar([("manifest.json", FILE, rows)]), Invalid, "absent.json")
    await refused(tar([("manifest.json", FILE, b'[{"Layers":[1]}]')]), Invalid, "paths in the archive")
    await refused(tar([("manifest.json", FILE, b"{")]), Invalid, "cannot be read")
    await refused(tar([("blobs/sha256/xyz", FILE, b"{")]), Invalid, "64 lower-case")
    content.path(image.layers[0]).unlink()
    with pytest.raises(NotFound, match=image.layers[0]):
        await anext(save(content, [(NAME, image.digest)]))


async def _real_image(content: LocalContent, tmp_path: Path) -> str:
    from wherry.content.oci import OCI_CONFIG, OCI_LAYER_GZIP, Descriptor, manifest_of

    root = tmp_path / "root"
    root.mkdir()
    (root / "f").write_text("hello")
    layer = await pack_directory(content, root, lease="", mtime=0)
    rootfs = {"type": "layers", "diff_ids": [layer.diff_id]}
    config = await content.put(msgspec.json.encode({"architecture": "amd64", "os": "linux", "rootfs": rootfs}))
    described = Descriptor(OCI_LAYER_GZIP, layer.digest, layer.size_bytes)
    manifest = manifest_of(Descriptor(OCI_CONFIG, config.digest, config.size_bytes), [described])
    return (await content.put(manifest)).digest
