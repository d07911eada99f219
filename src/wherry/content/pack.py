"""Making a layer: entries, or a directory, or the upper directory of an overlay, as a gzip blob in the content store.

The same tree makes the same bytes: entries are sorted, owners are numbers, gzip has no time, and times can be given.
"""

import asyncio
import os
import stat
import struct
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from wherry.content.digests import hasher
from wherry.content.inflate import HEAD_BYTES, compression_of, pieces
from wherry.content.oci import OCI_LAYER, OCI_LAYER_GZIP
from wherry.content.protocol import Content, Digest
from wherry.content.tarwrite import END, Entry, header, padding
from wherry.content.unpack import OPAQUE, OPAQUE_MARK, WHITEOUT
from wherry.errors import Broken

GZIP_LEVEL = 1
"""isal's; 262 MB/s for 13 % more bytes than zlib -6 (facts, section 7)."""
_PIECE = 1024 * 1024
_SAMPLE = 8 * 1024
_STORED_MAX = 65535
"""Of a block that deflate leaves as it is (RFC 1951, 3.2.4)."""
_GZIP_HEAD = bytes.fromhex("1f8b 08 00 00000000 00 ff")
"""No name, no time, no system (RFC 1952, 2.3)."""


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer in the store: `digest` and `size_bytes` of the blob, `diff_id` and `tar_bytes` of the plain tar."""

    digest: Digest
    diff_id: str
    size_bytes: int
    tar_bytes: int
    media_type: str = OCI_LAYER_GZIP


async def write_layer(content: Content, entries: Iterable[Entry], *, lease: str, compress: bool = True) -> Layer:
    """Write entries (in this order) as a layer. Raises Broken when a file changes or vanishes meanwhile."""
    plain = hasher()
    total = 0
    writer = await content.ingest(lease=lease)
    pieces = _gathered(_tar(entries))
    squeeze = _Gzip() if compress else None

    def step() -> bytes | None:
        """Make the next piece of the blob, with the digest of its tar taken beside."""
        nonlocal total
        try:
            piece = next(pieces, None)
        except OSError as error:
            raise Broken(f"layer: {error.filename}: {error.strerror} while packing") from error
        if piece is None:
            return None
        total += len(piece)
        hashing: Future[None] = digester.submit(plain.update, piece)
        out = squeeze.add(piece) if squeeze else piece
        hashing.result()
        return out

    try:
        with ThreadPoolExecutor(1, "digest") as digester:
            data = await asyncio.to_thread(step)
            while data is not None:
                writing = asyncio.create_task(writer.write(data), name="write a layer's piece")
                try:
                    data = await asyncio.to_thread(step)  # the next is made meanwhile
                finally:
                    await writing
        if squeeze:
            await writer.write(squeeze.end())
        blob = await writer.commit()
    finally:
        await writer.abort()
    media_type = OCI_LAYER_GZIP if compress else OCI_LAYER
    return Layer(blob.digest, f"sha256:{plain.hexdigest()}", blob.size_bytes, total, media_type)


async def as_layer(content: Content, digest: Digest, *, lease: str) -> tuple[Digest, str]:
    """Make a layer of a tar that is in the store: (blob, diff id). By bzip2 or xz no layer can be, so that becomes gzip.

    Raises Damaged.
    """
    fd = os.open(content.path(digest), os.O_RDONLY | os.O_CLOEXEC)
    try:
        keeps = compression_of(os.pread(fd, HEAD_BYTES, 0)) not in ("bzip2", "xz")
        plain = hasher()
        parts = pieces(fd, name="archive")
        if keeps:
            while (part := await asyncio.to_thread(next, parts, None)) is not None:
                await asyncio.to_thread(plain.update, part)
            return digest, f"sha256:{plain.hexdigest()}"
        squeeze = _Gzip()
        writer = await content.ingest(lease=lease)
        try:
            while (part := await asyncio.to_thread(next, parts, None)) is not None:
                plain.update(part)
                await writer.write(await asyncio.to_thread(squeeze.add, part))
            await writer.write(squeeze.end())
            return (await writer.commit()).digest, f"sha256:{plain.hexdigest()}"
        finally:
            await writer.abort()
    finally:
        os.close(fd)


async def pack_directory(content: Content, root: Path, *, lease: str, mtime: int | None = None) -> Layer:
    """Pack a directory's content, as it is, as a layer. `mtime` replaces every time."""
    return await write_layer(content, entries_of(root, mtime=mtime), lease=lease)


async def pack_upper(
    content: Content, upper: Path, *, lease: str, exclude: Collection[str] = (), mtime: int | None = None
) -> Layer:
    """Pack the upper directory of an overlay: what a container changed, whiteouts and opaque directories included.

    `exclude` are paths (without leading slash) of mount points that the runtime made, left out with all below them.
    """
    return await write_layer(content, entries_of(upper, upper=True, exclude=exclude, mtime=mtime), lease=lease)


def entries_of(
    root: Path, *, upper: bool = False, exclude: Collection[str] = (), mtime: int | None = None
) -> Iterator[Entry]:
    """Walk a directory in byte order of names. With `upper`, overlayfs's marks become `.wh.` entries.

    Hard links among the entries stay hard links; sockets are left out. Raises Broken for overlay features that a layer
    cannot say (redirects, metadata-only copies).
    """
    return _walk(str(root), "", {}, upper, frozenset(path.strip("/") for path in exclude), mtime)


def _walk(
    folder: str, below: str, links: dict[tuple[int, int], str], upper: bool, exclude: frozenset[str], mtime: int | None
) -> Iterator[Entry]:
    with os.scandir(folder) as found:
        names = sorted(entry.name for entry in found)
    for name in names:
        path = f"{below}{name}"
        if path in exclude:
            continue
        place = f"{folder}/{name}"
        seen = os.lstat(place)
        kind = _kind(seen)
        when = int(seen.st_mtime) if mtime is None else mtime
        if kind == "":
            continue
        if upper and kind == "char" and seen.st_rdev == 0:
            yield Entry(f"{below}{WHITEOUT}{name}", "file", 0, mtime=when)
            continue
        xattrs = _xattrs(place, kind, upper)
        link = os.readlink(place) if kind == "symlink" else ""
        if kind != "dir" and seen.st_nlink > 1:
            first = links.setdefault((seen.st_dev, seen.st_ino), path)
            if first != path:
                kind, link, xattrs = "link", first, {}
        opaque = xattrs.pop(OPAQUE, b"") in (b"y", b"x")
        yield Entry(
            path,
            kind,
            stat.S_IMODE(seen.st_mode),
            seen.st_uid,
            seen.st_gid,
            when,
            link,
            seen.st_size if kind == "file" else 0,
            Path(place) if kind == "file" else None,
            (os.major(seen.st_rdev), os.minor(seen.st_rdev)) if kind in ("char", "block") else (0, 0),
            xattrs,
        )
        if kind == "dir":
            if opaque:
                yield Entry(f"{path}/{OPAQUE_MARK}", "file", 0, mtime=when)
            yield from _walk(place, f"{path}/", links, upper, exclude, mtime)


def _kind(seen: os.stat_result) -> str:
    tests = (
        (stat.S_ISREG, "file"),
        (stat.S_ISDIR, "dir"),
        (stat.S_ISLNK, "symlink"),
        (stat.S_ISCHR, "char"),
        (stat.S_ISBLK, "block"),
        (stat.S_ISFIFO, "fifo"),
    )
    return next((kind for test, kind in tests if test(seen.st_mode)), "")


def _xattrs(place: str, kind: str, upper: bool) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    if kind not in ("file", "dir"):
        return found
    try:
        names = os.listxattr(place, follow_symlinks=False)
    except OSError:
        return found  # a file system without attributes
    for name in names:
        if name.startswith("trusted.overlay.") and upper:
            if name.endswith((".redirect", ".metacopy")):
                raise Broken(
                    f"{place}: the overlay was mounted with {name.rpartition('.')[2]}, which a layer cannot say"
                )
            if name != OPAQUE:
                continue
        elif name != "security.capability" and not (name.startswith("user.") and not name.startswith("user.overlay.")):
            continue
        with suppress(OSError):
            found[name] = os.getxattr(place, name, follow_symlinks=False)
    return found


def _tar(entries: Iterable[Entry]) -> Iterator[bytes]:
    for entry in entries:
        yield header(entry)
        if entry.kind != "file" or not entry.size:
            continue
        if isinstance(entry.source, bytes):
            yield entry.source
        elif entry.source is not None:
            yield from _file(entry.source, entry.size)
        yield padding(entry.size)
    yield END


def _file(path: Path, size: int) -> Iterator[bytes]:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        left = size
        while left:
            data = os.read(fd, min(left, _PIECE))
            if not data:
                raise Broken(f"{path}: it became shorter while it was packed")
            left -= len(data)
            yield data
        if os.read(fd, 1):
            raise Broken(f"{path}: it became longer while it was packed")
    finally:
        os.close(fd)


def _gathered(parts: Iterator[bytes]) -> Iterator[bytes]:
    waiting: list[bytes] = []
    have = 0
    for part in parts:
        waiting.append(part)
        have += len(part)
        if have >= _PIECE:
            yield b"".join(waiting)
            waiting, have = [], 0
    if waiting:
        yield b"".join(waiting)


class _Gzip:
    """One gzip stream. What does not become smaller (pictures, archives, keys) goes in as it is: that costs a tenth."""

    def __init__(self) -> None:
        from isal import isal_zlib

        self._isal = isal_zlib
        self._state = isal_zlib.compressobj(GZIP_LEVEL, isal_zlib.DEFLATED, -15)
        self._begin = _GZIP_HEAD
        self._is_open = False
        self._crc = self._size = 0

    def add(self, data: bytes) -> bytes:
        self._crc = self._isal.crc32(data, self._crc)
        self._size += len(data)
        out, self._begin = [self._begin], b""
        if not self._is_dense(data):
            self._is_open = True
            out.append(self._state.compress(data))
            return b"".join(out)
        if self._is_open:  # a whole byte's end, and nothing after it looks back to before
            out.append(self._state.flush(self._isal.Z_FULL_FLUSH))
            self._is_open = False
        for start in range(0, len(data), _STORED_MAX):
            part = data[start : start + _STORED_MAX]
            out += (struct.pack("<BHH", 0, len(part), len(part) ^ 0xFFFF), part)
        return b"".join(out)

    def end(self) -> bytes:
        return self._begin + self._state.flush() + struct.pack("<II", self._crc, self._size & 0xFFFFFFFF)

    def _is_dense(self, data: bytes) -> bool:
        """Say whether samples of a large piece do not become smaller; the same bytes give the same answer."""
        if len(data) < _PIECE // 2:
            return False
        starts = (0, len(data) // 2, len(data) - _SAMPLE)
        samples = [data[start : start + _SAMPLE] for start in starts]
        return all(len(self._isal.compress(each, GZIP_LEVEL, -15)) > _SAMPLE * 97 // 100 for each in samples)
