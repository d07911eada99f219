"""The cache carried to another machine: the layers of a build, and the keys they answer to.

A directory has `cache.json`, a list of rows (key, digest, diff_id, size, created), and `blobs/sha256/HEX`, the layers. In a
registry the same list is the config of a manifest of its own, whose layers are the layers; inline it stands in the image's
config. A row whose layer does not match its digest is not believed.
"""

import asyncio
import os
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from wherry.builder.cache import Built, Cache
from wherry.builder.documents import layer_descriptor
from wherry.builder.running import BuildEngine
from wherry.content import oci
from wherry.content.digests import digest_of, parse_digest
from wherry.content.names import parse_name
from wherry.content.oci import Descriptor, Platform
from wherry.content.protocol import Content, Digest
from wherry.content.push import push
from wherry.content.remote import Remote
from wherry.errors import Broken, Cause, Invalid, NotFound, Unauthorized, Unavailable, WherryError

NAME = "cache.json"
CONFIG_TYPE = "application/vnd.wherry.build-cache.v1+json"
INLINE = "wherry.build-cache.v1"
"""Where an image's config has the rows of its own layers."""
LIST_MAX_BYTES = 16 * 1024 * 1024
_CHUNK = 1024 * 1024
Auth = Callable[[str], Mapping[str, str] | None]
"""The credentials for the registry of a name."""
Fetch = Callable[[Digest], AsyncIterator[bytes]]


@dataclass(frozen=True, slots=True)
class CachePlace:
    """Where a cache is carried: a directory ("local"), a name in a registry ("registry"), or the image itself ("inline").

    `whole`: every step's layer, not only those of the stage that was asked for, and of the stages it stands on.
    """

    kind: str
    place: str = ""
    whole: bool = False


class Row(msgspec.Struct, frozen=True):
    """A key, and what it made."""

    key: str
    digest: str
    diff_id: str
    size: int
    created: float


class _File(msgspec.Struct, frozen=True):
    format: int
    rows: tuple[Row, ...]


def parse_place(text: str, option: str) -> CachePlace:
    """Read `type=registry,ref=NAME,mode=max` and the like; `option` is cache-from or cache-to. Raises Invalid."""
    words: dict[str, str] = {}
    if "=" not in text:
        text = f"type=registry,ref={text}"
    for part in text.split(","):
        key, equals, value = part.partition("=")
        if not equals or key not in ("type", "ref", "src", "dest", "mode"):
            raise _invalid(option, text, f"{part!r} is none of type=, ref=, src=, dest=, mode=")
        words[key] = value
    kind, goes = words.get("type", "local"), option == "cache-to"
    wanted = {"local": "dest" if goes else "src", "registry": "ref", "inline": ""}
    if kind not in wanted or (kind == "inline" and not goes):
        raise _invalid(option, text, f"there are {'local, registry, inline' if goes else 'local, registry'}")
    needed = wanted[kind]
    if needed and not words.get(needed):
        raise _invalid(option, text, f"type={kind} needs {needed}=")
    if unwanted := sorted(words.keys() - {"type", needed} - ({"mode"} if goes and kind != "inline" else set())):
        raise _invalid(option, text, f"type={kind} has no {unwanted[0]}=")
    if words.get("mode", "min") not in ("min", "max"):
        raise _invalid(option, text, "mode is min or max")
    if kind == "registry":
        parse_name(words["ref"], option)
    return CachePlace(kind, words.get(needed, ""), words.get("mode", "min") == "max")


class Imports:
    """The caches of other machines that a build looks into after its own."""

    def __init__(self, content: Content, cache: Cache, rows: Mapping[str, tuple[Fetch, Built]]) -> None:
        self._content = content
        self._cache = cache
        self._rows = rows

    async def find(self, key: str, lease: str) -> Built | None:
        """Take what a key made over into this machine's cache. None when it is not there, or is damaged."""
        found = self._rows.get(key)
        if found is None:
            return None
        fetch, built = found
        if built.digest and await self._content.cover(Digest(built.digest), lease) is None:
            writer = await self._content.ingest(lease=lease)
            try:
                async for data in fetch(Digest(built.digest)):
                    await writer.write(data)
                await writer.commit(parse_digest(built.digest))
            except (OSError, WherryError):
                return None
            finally:
                await writer.abort()
        await self._cache.put(key, built)
        return built


@asynccontextmanager
async def imported(
    content: Content,
    cache: Cache,
    engine: BuildEngine,
    places: Sequence[CachePlace],
    *,
    auth: Auth,
    platform: Platform,
    warn: Callable[[str], None],
) -> AsyncGenerator[Imports | None]:
    """Open the caches of other machines; one that is not there is passed over with a warning.

    Raises Invalid for a damaged one.
    """
    rows: dict[str, tuple[Fetch, Built]] = {}
    async with AsyncExitStack() as stack:
        for each in places:
            if each.kind == "local":
                fetch, found = _local(Path(each.place)), await asyncio.to_thread(_rows_of, Path(each.place))
                if found is None:
                    warn(f"cache-from {each.place}: there is no cache")
            else:
                try:
                    remote, repository = await stack.enter_async_context(engine.registry(each.place, auth(each.place)))
                    found = await _rows_at(remote, repository, parse_name(each.place).reference, each.place, platform)
                except (NotFound, Unavailable, Unauthorized) as error:
                    warn(f"cache-from {each.place}: {error.message}")
                    continue
                fetch = _remote(remote, repository)
            for row in found or ():
                rows.setdefault(row.key, (fetch, Built(row.digest, row.diff_id, row.size, row.created)))
        yield Imports(content, cache, rows) if places else None


async def rows_of_keys(cache: Cache, keys: Sequence[str], lease: str) -> Sequence[Row]:
    """What some keys made, as rows; layers are covered by `lease`."""
    rows: list[Row] = []
    for key in keys:
        built = await cache.find(key, lease)
        if built is not None:
            rows.append(Row(key, built.digest, built.diff_id, built.size_bytes, built.created))
    return rows


def inline(rows: Sequence[Row]) -> dict[str, Any]:
    """What an image's config says of the cache."""
    return {INLINE: msgspec.to_builtins(_File(1, tuple(rows)))}


async def export(
    content: Content,
    engine: BuildEngine,
    place: CachePlace,
    rows: Sequence[Row],
    *,
    auth: Auth,
    lease: str,
) -> None:
    """Write rows and their layers to a directory, in place of what it had, or to a registry. Raises Broken, Unavailable."""
    if place.kind == "local":
        try:
            await asyncio.to_thread(_export, content, rows, Path(place.place))
        except OSError as error:
            raise Broken(f"cache-to {place.place}: {error.strerror}") from error
        return
    data = msgspec.json.encode(_File(1, tuple(rows)))
    blob = await content.put(data, lease=lease)
    layers = [await layer_descriptor(content, Digest(each)) for each in _digests(rows)]
    config = Descriptor(CONFIG_TYPE, blob.digest, blob.size_bytes)
    manifest = await content.put(oci.manifest_of(config, layers), lease=lease)
    async with engine.registry(place.place, auth(place.place)) as (remote, repository):
        await push(content, remote, repository, parse_name(place.place).reference, manifest.digest)


async def _rows_at(remote: Remote, repository: str, reference: str, shown: str, platform: Platform) -> Sequence[Row]:
    data, media_type = await remote.manifest(repository, reference)
    document = oci.parse_document(data, media_type)
    if isinstance(document, oci.Index):
        child = oci.choose(document, platform)
        document = oci.parse_document((await remote.manifest(repository, child.digest))[0])
    if not isinstance(document, oci.Manifest):
        raise _damaged(shown, "an index in an index")
    config = document.config
    parts = bytearray()
    answer = await remote.blob(repository, config.digest)
    try:
        async for part in answer.chunks():
            parts += part
            if len(parts) > LIST_MAX_BYTES:
                raise _damaged(shown, f"its list has more than {LIST_MAX_BYTES} bytes")
    finally:
        await answer.close()
    if digest_of(bytes(parts)) != config.digest:
        raise _damaged(shown, "its list is not what its digest says")
    if config.media_type == CONFIG_TYPE:
        return _read(bytes(parts), shown)
    if config.media_type in oci.CONFIG_TYPES:
        found = msgspec.json.decode(bytes(parts), type=dict[str, msgspec.Raw]).get(INLINE)
        if found is None:
            raise NotFound("that image has no build cache in it (--cache-to type=inline)")
        return _read(bytes(found), shown)
    raise NotFound(f"that is no build cache of wherry's, but {config.media_type}")


def _rows_of(place: Path) -> Sequence[Row] | None:
    try:
        return _read((place / NAME).read_bytes(), str(place))
    except (FileNotFoundError, NotADirectoryError):
        return None


def _read(data: bytes, shown: str) -> Sequence[Row]:
    try:
        rows = msgspec.json.decode(data, type=_File).rows
        for row in rows:
            if row.digest:
                parse_digest(row.digest)
    except (msgspec.MsgspecError, Invalid) as error:
        raise _damaged(shown, f"{NAME} cannot be read: {error}") from None
    return rows


def _local(root: Path) -> Fetch:
    async def fetch(digest: Digest) -> AsyncIterator[bytes]:
        with _blob(root, digest).open("rb") as file:
            while data := await asyncio.to_thread(file.read, _CHUNK):
                yield data

    return fetch


def _remote(remote: Remote, repository: str) -> Fetch:
    async def fetch(digest: Digest) -> AsyncIterator[bytes]:
        answer = await remote.blob(repository, digest)
        try:
            async for data in answer.chunks():
                yield data
        finally:
            await answer.close()

    return fetch


def _digests(rows: Sequence[Row]) -> Sequence[str]:
    return list(dict.fromkeys(row.digest for row in rows if row.digest))


def _export(content: Content, rows: Sequence[Row], place: Path) -> None:
    wanted = [Digest(digest) for digest in _digests(rows)]
    for digest in wanted:
        target = _blob(place, digest)
        if target.exists():
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        with content.path(digest).open("rb") as source:
            _written(target, source.read)
    place.mkdir(parents=True, exist_ok=True)
    fresh = place / f"{NAME}.new"
    fresh.write_bytes(msgspec.json.encode(_File(1, tuple(rows))))
    fresh.rename(place / NAME)
    names = {digest.partition(":")[2] for digest in wanted}
    for old in place.glob("blobs/sha256/*"):
        if old.name not in names:
            old.unlink()


def _written(target: Path, read: Callable[[int], bytes]) -> None:
    fd, name = tempfile.mkstemp(dir=target.parent)
    with open(fd, "wb") as out:
        while data := read(_CHUNK):
            out.write(data)
    os.chmod(name, 0o644)
    os.rename(name, target)


def _blob(place: Path, digest: Digest) -> Path:
    algorithm, _, name = digest.partition(":")
    return place / "blobs" / algorithm / name


def _damaged(shown: str, why: str) -> Invalid:
    message = f"cache-from {shown}: {why}"
    return Invalid(message, causes=[Cause("cachefrom", "Invalid", message)])


def _invalid(option: str, text: str, why: str) -> Invalid:
    message = f"{option} {text}: {why}"
    return Invalid(message, causes=[Cause(option.replace("-", ""), "Invalid", message)])
