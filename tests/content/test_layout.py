"""Archives: what we save, we load, skopeo reads, and what skopeo writes in either format, we load."""

import asyncio
import bz2
import gzip
import lzma
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from tests.content.images import FILE, SYMLINK, Row, sample, tar

from wherry.clock import VirtualClock, machine
from wherry.content.digests import digest_of
from wherry.content.layout import load, load_stream, save
from wherry.content.local import LocalContent
from wherry.content.oci import OCI_INDEX, OCI_MANIFEST, Manifest, parse_document, parse_platform
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
    assert [each.digest for each in loaded] == [one.digest, two.digest]
    assert [each.names for each in loaded] == [[NAME], ["ghcr.io/x/y:2"]]
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


def old_archive(*, config: bytes = b"", rows: list[dict[str, object]] | None = None, layer: bytes = b"") -> list[Row]:
    """What Docker wrote before it had OCI layouts: the files of one image."""
    layer = layer or tar([("a", FILE, b"1")])
    document = {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": [digest_of(layer)]}}
    row = {"Config": "c.json", "RepoTags": ["web:1"], "Layers": ["1/layer.tar"]}
    return [
        ("c.json", FILE, config or msgspec.json.encode(document)),
        ("1/VERSION", FILE, b"1.0"),
        ("1/json", FILE, b"{}"),
        ("1/layer.tar", FILE, layer),
        ("manifest.json", FILE, msgspec.json.encode(rows if rows is not None else [row])),
        ("repositories", FILE, b'{"web":{"1":"1"}}'),
    ]


async def test_what_docker_wrote_long_ago(tmp_path: Path, content: LocalContent) -> None:
    archive = tmp_path / "a"
    lease = await content.lease(seconds=60)
    archive.write_bytes(tar(old_archive()))
    [loaded] = await load(content, archive, lease=lease)
    assert loaded.names == [NAME]
    linked = [*old_archive(), ("2/layer.tar", SYMLINK, "../1/layer.tar")]
    linked[4] = ("manifest.json", FILE, b'[{"Config":"c.json","RepoTags":null,"Layers":["2/layer.tar"]}]')
    archive.write_bytes(bz2.compress(tar(linked)))
    [again] = await load(content, archive, lease=lease)
    assert (again.digest, again.names) == (loaded.digest, [])
    archive.write_bytes(lzma.compress(tar(old_archive())))
    assert [each.digest for each in await load(content, archive, lease=lease)] == [loaded.digest]


WRONG_ID = b'{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":["sha256:' + b"1" * 64 + b'"]}}'
HOSTILE: dict[str, tuple[list[Row], type[Exception], str]] = {
    "a diff id that lies": (old_archive(config=WRONG_ID), Damaged, 'invalid diffID for layer 0: expected "sha256:1111'),
    "too many diff ids": (
        old_archive(config=WRONG_ID.replace(b"[", b"[" + b'"sha256:' + b"2" * 64 + b'",')), Invalid, "length mismatch",
    ),
    "a missing layer": ([row for row in old_archive() if row[0] != "1/layer.tar"], Invalid, "does not have"),
    "a path out": (old_archive(rows=[{"Config": "../../etc/passwd", "Layers": []}]), Invalid, "does not have"),
    "an absolute path": (old_archive(rows=[{"Config": "/etc/passwd", "Layers": []}]), Invalid, "does not have"),
    "no text": (old_archive(rows=[{"Config": 1, "Layers": [None]}]), Invalid, "must be paths"),
    "a link out": (
        [*[row for row in old_archive() if row[0] != "1/layer.tar"], ("1/layer.tar", SYMLINK, "/etc/passwd")],
        Invalid, "does not have",
    ),
    "a loop of links": (
        [*[row for row in old_archive() if row[0] != "c.json"], ("c.json", SYMLINK, "d"), ("d", SYMLINK, "c.json")],
        Invalid, "does not have",
    ),
    "no JSON": ([*old_archive()[:4], ("manifest.json", FILE, b"[{")], Invalid, "cannot be read"),
    "a bad name": (
        old_archive(rows=[{"Config": "c.json", "RepoTags": ["UP:1"], "Layers": ["1/layer.tar"]}]), Invalid, "lower-case",
    ),
    "a blob of another name": ([(f"blobs/sha256/{'1' * 64}", FILE, b"x")], Invalid, "have the digest"),
    "a blob of no name": ([("blobs/sha256/../../x", FILE, b"x"), *old_archive()[:1]], Invalid, "no image archive"),
    "a giant document": ([("manifest.json", FILE, bytes(9_000_000))], Invalid, "at most"),
    "nothing": ([], Invalid, "no image archive"),
}  # fmt: skip


@pytest.mark.parametrize(("rows", "kind", "words"), HOSTILE.values(), ids=HOSTILE.keys())
async def test_archives_that_lie_are_refused_and_leave_nothing(
    tmp_path: Path, content: LocalContent, rows: list[Row], kind: type[Exception], words: str
) -> None:
    archive = tmp_path / "a"
    archive.write_bytes(tar(rows))
    lease = await content.lease(seconds=60)
    with pytest.raises(kind, match=words):
        await load(content, archive, lease=lease)
    await content.end_lease(lease)
    await content.collect()
    assert [path for folder in ("blobs/sha256", "uploads") for path in (content.root / folder).iterdir()] == []


async def test_headers_without_end_are_refused(tmp_path: Path, content: LocalContent) -> None:
    archive = tmp_path / "a"
    archive.write_bytes(tar([("a", FILE, b"1")], pax={"comment": "x" * 2_000_000}))
    with pytest.raises(Invalid, match="a header of 2000"):
        await load(content, archive, lease=await content.lease(seconds=60))


async def test_one_platform_of_an_archive(tmp_path: Path, content: LocalContent, other: LocalContent) -> None:
    image = await sample(content, tar([("a", FILE, b"1")]))
    body = msgspec.json.encode(
        {
            "schemaVersion": 2,
            "mediaType": OCI_INDEX,
            "manifests": [
                {
                    "mediaType": OCI_MANIFEST,
                    "digest": image.digest,
                    "size": 1,
                    "platform": {"os": "linux", "architecture": name},
                }
                for name in ("amd64", "s390x")
            ],
        }
    )
    index = await content.put(body)
    archive = await saved(content, tmp_path / "a.tar", (NAME, index.digest))
    lease = await other.lease(seconds=60)
    assert [each.digest for each in await load(other, archive, lease=lease)] == [index.digest]
    one = await load(other, archive, lease=lease, platform=parse_platform("linux/s390x"))
    assert [(each.digest, each.names) for each in one] == [(image.digest, [NAME])]
    with pytest.raises(NotFound, match="no matching manifest for linux/mips"):
        await load(other, archive, lease=lease, platform=parse_platform("linux/mips"))
