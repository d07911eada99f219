"""Writing a layer anew: with no time past SOURCE_DATE_EPOCH, or compressed in another way. The files stay the same."""

import asyncio
import zlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from wherry.content.digests import hasher
from wherry.content.inflate import pieces
from wherry.content.oci import OCI_LAYER, OCI_LAYER_GZIP, OCI_LAYER_ZSTD
from wherry.content.pack import Layer, write_layer
from wherry.content.protocol import Content, Digest
from wherry.content.tars import Tar
from wherry.content.tarwrite import Entry
from wherry.errors import Cause, Invalid

INLINE_BYTES = 4 * 1024 * 1024
"""Larger files go by way of the disk."""
LEVELS = {"gzip": range(1, 10), "zstd": range(1, 23), "uncompressed": range(1)}
DEFAULT_LEVELS = {"gzip": 6, "zstd": 3, "uncompressed": 0}
_TYPES = {"gzip": OCI_LAYER_GZIP, "zstd": OCI_LAYER_ZSTD, "uncompressed": OCI_LAYER}


@dataclass(frozen=True, slots=True)
class Compression:
    """How layers are compressed: gzip, zstd or uncompressed, at a level (0: the usual one)."""

    kind: str
    level: int = 0


def parse_compression(kind: str, level: str = "") -> Compression:
    """Read both words of an output. Raises Invalid."""
    if kind not in LEVELS:
        message = f"compression={kind}: there are {', '.join(LEVELS)}"
        raise Invalid(message, causes=[Cause("outputs.compression", "Invalid", message)])
    if level and (not level.isdigit() or int(level) not in LEVELS[kind]):
        last = LEVELS[kind][-1]
        message = f"compression-level={level}: for {kind} it is a number from 1 to {last}"
        raise Invalid(message, causes=[Cause("outputs.compression-level", "Invalid", message)])
    return Compression(kind, int(level) if level else DEFAULT_LEVELS[kind])


async def rewritten(
    content: Content, layer: Digest, *, epoch: int | None, drop: Collection[str], lease: str, scratch: Path
) -> Layer:
    """Write a layer with every time at most `epoch` (None: as they are) and without the paths `drop`. Raises Damaged."""
    large = scratch / f"large-{layer[-16:]}"

    def entries() -> Iterator[Entry]:
        with content.path(layer).open("rb") as file:
            tar = Tar(pieces(file.fileno(), name=layer), name=layer)
            for member in tar:
                if member.path.strip("/") in drop:
                    continue
                source: bytes | Path | None = None
                if member.kind == "file" and member.size <= INLINE_BYTES:
                    source = b"".join(bytes(part) for part in tar.data())
                elif member.kind == "file":
                    with large.open("wb") as out:
                        for part in tar.data():
                            out.write(part)
                    source = large
                yield Entry(
                    *(member.path.rstrip("/"), member.kind, member.mode, member.uid, member.gid),
                    *(
                        int(member.mtime) if epoch is None else min(int(member.mtime), epoch),
                        member.link,
                        member.size,
                        source,
                        member.device,
                        member.xattrs,
                    ),
                )

    try:
        return await write_layer(content, entries(), lease=lease)
    finally:
        large.unlink(missing_ok=True)


class _Squeezer(Protocol):
    def compress(self, data: bytes, /) -> bytes: ...
    def flush(self) -> bytes: ...


class _Plain:
    def compress(self, data: bytes, /) -> bytes:
        return data

    def flush(self) -> bytes:
        return b""


async def squeezed(content: Content, layer: Digest, wanted: Compression, *, lease: str) -> Layer:
    """Compress a layer in another way; its diff id stays. Raises Damaged."""
    squeezer = _squeezer(wanted)
    plain = hasher()
    total = 0
    writer = await content.ingest(lease=lease)
    try:
        with content.path(layer).open("rb") as file:
            parts = pieces(file.fileno(), name=layer)

            def step() -> bytes | None:
                nonlocal total
                piece = next(parts, None)
                if piece is None:
                    return None
                total += len(piece)
                plain.update(piece)
                return squeezer.compress(piece)

            while (data := await asyncio.to_thread(step)) is not None:
                if data:
                    await writer.write(data)
        if rest := squeezer.flush():
            await writer.write(rest)
        blob = await writer.commit()
    finally:
        await writer.abort()
    return Layer(blob.digest, f"sha256:{plain.hexdigest()}", blob.size_bytes, total, _TYPES[wanted.kind])


def _squeezer(wanted: Compression) -> _Squeezer:
    match wanted.kind:
        case "gzip":
            return zlib.compressobj(wanted.level or 6, wbits=31)
        case "zstd":
            import zstandard

            return zstandard.ZstdCompressor(level=wanted.level or 3).compressobj()
        case _:
            return _Plain()
