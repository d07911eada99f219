"""The cache carried to another machine: a directory with the layers of a build and the keys they answer to.

`cache.json` has a list of rows (key, digest, diff_id, size, created); `blobs/sha256/HEX` the layers. A row whose layer does not
match its digest is not believed.
"""

import asyncio
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from wherry.builder.cache import Built, Cache
from wherry.content.digests import parse_digest
from wherry.content.protocol import Content, Digest
from wherry.errors import Broken, Cause, Invalid

NAME = "cache.json"
_CHUNK = 1024 * 1024


class _Row(msgspec.Struct, frozen=True):
    key: str
    digest: str
    diff_id: str
    size: int
    created: float


class _File(msgspec.Struct, frozen=True):
    format: int
    rows: tuple[_Row, ...]


class Imports:
    """The caches of other machines that a build looks into after its own."""

    def __init__(self, content: Content, cache: Cache, rows: dict[str, tuple[Path, Built]]) -> None:
        self._content = content
        self._cache = cache
        self._rows = rows

    async def find(self, key: str, lease: str) -> Built | None:
        """Take what a key made over into this machine's cache. None when it is not there, or is damaged."""
        found = self._rows.get(key)
        if found is None:
            return None
        root, built = found
        if built.digest and await self._content.cover(Digest(built.digest), lease) is None:
            digest = parse_digest(built.digest)
            writer = await self._content.ingest(lease=lease)
            try:
                with _blob(root, digest).open("rb") as file:
                    while data := await asyncio.to_thread(file.read, _CHUNK):
                        await writer.write(data)
                await writer.commit(digest)
            except (OSError, Invalid):
                return None
            finally:
                await writer.abort()
        await self._cache.put(key, built)
        return built


async def imports(content: Content, cache: Cache, places: Sequence[Path]) -> Imports:
    """Open exported caches; one that is not there is passed over, as docker does. Raises Invalid for a damaged one."""
    rows: dict[str, tuple[Path, Built]] = {}
    for place in places:
        try:
            data = await asyncio.to_thread((place / NAME).read_bytes)
        except (FileNotFoundError, NotADirectoryError):
            continue
        try:
            found = msgspec.json.decode(data, type=_File)
            for row in found.rows:
                if row.digest:
                    parse_digest(row.digest)
                rows.setdefault(row.key, (place, Built(row.digest, row.diff_id, row.size, row.created)))
        except (msgspec.MsgspecError, Invalid) as error:
            message = f"cache-from {place}: {NAME} cannot be read: {error}"
            raise Invalid(message, causes=[Cause("cachefrom", "Invalid", message)]) from None
    return Imports(content, cache, rows)


async def export(content: Content, cache: Cache, keys: Sequence[str], place: Path, lease: str) -> int:
    """Write the layers of some keys to a directory, in place of what it had; return how many bytes. Raises Broken."""
    rows: list[_Row] = []
    for key in keys:
        built = await cache.find(key, lease)
        if built is not None:
            rows.append(_Row(key, built.digest, built.diff_id, built.size_bytes, built.created))
    try:
        return await asyncio.to_thread(_export, content, rows, place)
    except OSError as error:
        raise Broken(f"cache-to {place}: {error.strerror}") from error


def _export(content: Content, rows: Sequence[_Row], place: Path) -> int:
    wanted = {Digest(row.digest) for row in rows if row.digest}
    total = 0
    for digest in wanted:
        target = _blob(place, digest)
        if target.exists():
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        with content.path(digest).open("rb") as source:
            total += _written(target, source.read)
    place.mkdir(parents=True, exist_ok=True)
    data = msgspec.json.encode(_File(1, tuple(rows)))
    fresh = place / f"{NAME}.new"
    fresh.write_bytes(data)
    fresh.rename(place / NAME)
    names = {digest.partition(":")[2] for digest in wanted}
    for old in place.glob("blobs/sha256/*"):
        if old.name not in names:
            old.unlink()
    return total + len(data)


def _written(target: Path, read: Callable[[int], bytes]) -> int:
    total = 0
    fd, name = tempfile.mkstemp(dir=target.parent)
    with open(fd, "wb") as out:
        while data := read(_CHUNK):
            total += out.write(data)
    os.chmod(name, 0o644)
    os.rename(name, target)
    return total


def _blob(place: Path, digest: Digest) -> Path:
    algorithm, _, name = digest.partition(":")
    return place / "blobs" / algorithm / name
