"""An OCI image layout in a directory as a base image or a named context. Source: OCI image-spec 1.1, "Image Layout"."""

import asyncio
from pathlib import Path

import msgspec

from wherry.content import oci
from wherry.content.digests import digest_of, parse_digest
from wherry.content.oci import Platform
from wherry.content.protocol import Content, Digest
from wherry.engine.types import Image
from wherry.errors import Cause, Invalid

SCHEME = "oci-layout://"
REF_NAME = "org.opencontainers.image.ref.name"
_CHUNK = 1024 * 1024


async def read_layout(content: Content, text: str, platform: Platform, lease: str) -> Image:
    """Take an image of a layout, `oci-layout://DIRECTORY[:TAG][@DIGEST]`, into the store. Raises Invalid.

    Without a tag or digest it is the only one, or the one called `latest`.
    """
    place, tag, digest = _parts(text)
    try:
        index = oci.parse_document(await asyncio.to_thread((place / "index.json").read_bytes), oci.OCI_INDEX)
    except OSError as error:
        raise _invalid(text, f"{place / 'index.json'}: {error.strerror}") from None
    assert isinstance(index, oci.Index)
    found = [each for each in index.manifests if not digest or each.digest == digest]
    if tag:
        found = [each for each in found if (each.annotations or {}).get(REF_NAME, "").rpartition(":")[2] == tag]
    elif len(found) > 1:
        found = [each for each in found if (each.annotations or {}).get(REF_NAME) in (None, "latest")]
    if not found and not digest:
        raise _invalid(text, f"there is no image {tag!r} in it" if tag else "there is no image in it, or several")
    root = found[0].digest if found else Digest(digest)
    document = oci.parse_document(await _document(place, root, text))
    while isinstance(document, oci.Index):
        root = oci.choose(document, platform).digest
        document = oci.parse_document(await _document(place, root, text))
    for child in document.children:
        if await content.cover(child.digest, lease) is None:
            await _take(content, place, child.digest, text, lease)
    config = msgspec.json.decode(await content.read(document.config.digest))
    layers = [layer.digest for layer in document.layers]
    if len((config.get("rootfs") or {}).get("diff_ids") or ()) != len(layers):
        raise _invalid(text, "its config has another number of layers than its manifest")
    return Image(document.config.digest, root, (), config, 0, 0.0, layers, root)


async def _document(place: Path, digest: Digest, text: str) -> bytes:
    try:
        data = await asyncio.to_thread(_blob(place, digest).read_bytes)
    except OSError as error:
        raise _invalid(text, f"{digest}: {error.strerror}") from None
    if digest_of(data, digest.partition(":")[0]) != digest:
        raise _invalid(text, f"{digest}: it is not what its digest says")
    return data


async def _take(content: Content, place: Path, digest: Digest, text: str, lease: str) -> None:
    writer = await content.ingest(lease=lease)
    try:
        with _blob(place, digest).open("rb") as file:
            while data := await asyncio.to_thread(file.read, _CHUNK):
                await writer.write(data)
        await writer.commit(digest)
    except (OSError, Invalid) as error:
        raise _invalid(text, f"{digest}: {error}") from None
    finally:
        await writer.abort()


def _parts(text: str) -> tuple[Path, str, str]:
    rest, _, digest = text.removeprefix(SCHEME).partition("@")
    folder, slash, last = rest.rpartition("/")
    name, _, tag = last.partition(":")
    if digest:
        parse_digest(digest, "contexts")
    return Path(f"{folder}{slash}{name}"), tag, digest


def _blob(place: Path, digest: Digest) -> Path:
    algorithm, _, name = parse_digest(digest).partition(":")
    return place / "blobs" / algorithm / name


def _invalid(text: str, why: str) -> Invalid:
    message = f"build context {text}: {why}"
    return Invalid(message, causes=[Cause("contexts", "Invalid", message)])
