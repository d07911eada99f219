"""Files with holes: as GNU tar writes them in each of its formats, and as long runs of zeros; and bombs."""

import bz2
import gzip
import lzma
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import zstandard
from tests.content.images import FILE, tar

from wherry.content.inflate import pieces
from wherry.content.tars import Tar
from wherry.content.tarwrite import END, Entry, header
from wherry.content.unpack import unpack_here
from wherry.content.unpack_child import unpack
from wherry.errors import Broken, Damaged, Invalid
from wherry.host import mounts

PARTS = [(0, b"begin" * 1000), (3_000_000, os.urandom(70_000)), (9_000_000, b"end")]
SIZE = 12_000_000
UNPACK = """
import asyncio, pathlib, resource, sys
from wherry.content.unpack_child import unpack
done = asyncio.run(unpack(*map(pathlib.Path, sys.argv[1:])))
print(done.size_bytes, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def holed(path: Path) -> bytes:
    with path.open("wb") as file:
        for offset, data in PARTS:
            file.seek(offset)
            file.write(data)
        file.truncate(SIZE)
    return path.read_bytes()


def packed(folder: Path, archive: Path, format: list[str], *names: str) -> None:
    subprocess.run(["tar", "-C", folder, "--sparse", *format, "-cf", archive, *names], check=True, timeout=20)


@pytest.mark.parametrize(
    "format",
    [["--format=gnu"], *(["--format=posix", f"--sparse-version={version}"] for version in ("0.0", "0.1", "1.0"))],
    ids=["gnu", "0.0", "0.1", "1.0"],
)
async def test_sparse_files_of_gnu_tar(tmp_path: Path, format: list[str]) -> None:
    data = holed(tmp_path / "holes")
    for number in range(60):  # more pieces than one header has room for
        with (tmp_path / "holes").open("r+b") as file:
            file.seek(3_200_000 + number * 90_000)
            file.write(b"x")
    data = (tmp_path / "holes").read_bytes()
    (tmp_path / "after").write_text("after")
    archive = tmp_path / "layer"
    packed(tmp_path, archive, format, "holes", "after")
    for number, take in enumerate((unpack, unpack_here)):
        target = tmp_path / f"t{number}"
        target.mkdir()
        done = take(archive, target)
        done = done if take is unpack_here else await done  # type: ignore[misc]
        assert (target / "holes").read_bytes() == data
        assert (target / "holes").stat().st_blocks * 512 < 2_000_000
        assert (target / "after").read_text() == "after"


def test_maps_that_lie_are_refused(tmp_path: Path) -> None:
    holed(tmp_path / "holes")
    archive = tmp_path / "layer"
    for format in (["--format=gnu"], ["--format=posix", "--sparse-version=1.0"]):
        packed(tmp_path, archive, format, "holes")
        good = archive.read_bytes()
        for old, new in ((b"3000000", b"9999999"), (b"%011o" % 3_000_000, b"%011o" % 1)):
            if old in good:
                broken = good.replace(old, new)
                if format[0] == "--format=gnu":
                    total = sum(broken[:148]) + sum(broken[156:512]) + 256
                    broken = broken[:148] + b"%06o\0 " % total + broken[156:]
                with pytest.raises((Damaged, Invalid), match="sparse"):
                    for _ in Tar(iter([broken])):
                        pass


@pytest.mark.parametrize("size", [256 * 1024**2, pytest.param(4 * 1024**3, marks=pytest.mark.soak)])
def test_zeros_cost_no_disk_and_little_memory(tmp_path: Path, size: int) -> None:

    def parts() -> Iterator[bytes]:
        yield header(Entry("zeros", "file", size=size))
        for _ in range(size >> 24):
            yield bytes(1 << 24)
        yield END

    squeezed = tmp_path / "layer"
    with squeezed.open("wb") as file, zstandard.ZstdCompressor(level=1).stream_writer(file, closefd=False) as out:
        for part in parts():
            out.write(part)
    target = tmp_path / "t"
    target.mkdir()
    # In a process of its own, so that no other child is the largest.
    words = [sys.executable, "-c", UNPACK, str(squeezed), str(target)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=True)
    size_bytes, largest_kib = map(int, done.stdout.split())
    assert size_bytes == size + 512 + 1024
    seen = (target / "zeros").stat()
    assert seen.st_size == size
    assert seen.st_blocks * 512 < 1_000_000
    assert largest_kib < 200 * 1024


@pytest.mark.root
async def test_a_bomb_leaves_room_on_the_disk(tmp_path: Path) -> None:
    """A small disk of its own: unpacking stops while there is still room for others."""
    target = tmp_path / "small"
    target.mkdir()
    mounts.mount("tmpfs", str(target), "tmpfs", options="size=48m")
    try:
        layer = tmp_path / "layer"
        layer.write_bytes(gzip.compress(tar([("bomb", FILE, b"12345678" * (5 << 20))]), 1))
        with pytest.raises(Broken, match="no space left on device"):
            await unpack(layer, target)
        free = os.statvfs(target)
        assert free.f_bavail * free.f_frsize > 1 << 20
    finally:
        mounts.unmount(str(target))


@pytest.mark.parametrize("kind", ["bz2", "xz"])
async def test_other_compressions_of_archives(tmp_path: Path, kind: str) -> None:
    data = tar([("f", FILE, os.urandom(1_500_000))])
    (tmp_path / "a").write_bytes(data)
    squeeze = {"bz2": bz2.compress, "xz": lzma.compress}[kind]
    (tmp_path / "squeezed").write_bytes(squeeze(tar([("a", FILE, data)])))
    target = tmp_path / "t"
    target.mkdir()
    await unpack(tmp_path / "squeezed", target)
    assert (target / "a").read_bytes() == data
    whole = (tmp_path / "squeezed").read_bytes()
    (tmp_path / "cut").write_bytes(whole[: len(whole) // 2])
    fd = os.open(tmp_path / "cut", os.O_RDONLY)
    with pytest.raises(Damaged, match="early"):
        for _ in pieces(fd):
            pass
    os.close(fd)


async def test_times_are_kept_to_the_nanosecond(tmp_path: Path) -> None:
    layer = tmp_path / "layer"
    layer.write_bytes(tar([("f", FILE, b"1"), ("d", tarfile.DIRTYPE, b"")], pax={"mtime": "1700000000.123456789"}))
    target = tmp_path / "t"
    target.mkdir()
    await unpack(layer, target)
    assert {(target / name).stat().st_mtime_ns for name in ("f", "d")} == {1_700_000_000_123_456_789}
