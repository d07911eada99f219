"""What images this machine has: their names, and what these stand for. There is no other list of them than the holds.

The hold `image/NAME` (NAME as `docker.io/library/web:1`, or `docker.io/library/web@sha256:HEX` for what was pulled by
digest) is the name; an image without one has `image/sha256:HEX`. What a name holds is its *root*: the index where the
registry gave one, else the manifest. Of an index those images are here whose blobs are; the machine's own is preferred.
"""

import logging
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import msgspec

from wherry.clock import parse_rfc3339
from wherry.content import oci
from wherry.content.names import ImageName, parse_name
from wherry.content.oci import Platform
from wherry.content.protocol import Content, Digest
from wherry.engine.types import Image, ImageManifest
from wherry.errors import Damaged, Invalid, NotFound, WherryError

log = logging.getLogger(__name__)

HOLDER = "image/"
KNOWN_IMAGES = 2048
ATTESTATION = "vnd.docker.reference.type"
_HEX = re.compile(r"[0-9a-f]{4,64}")
Row = tuple[str, Digest]
"""A name ("" for none) and its root."""
Sizes = Callable[[Sequence[str]], Awaitable[Sequence[int]]]
"""Says of diff ids how many bytes their files have, -1 for one that is not unpacked."""


class Known(msgspec.Struct, frozen=True):
    """What never changes about an image, by its manifest's digest. `layers` are (blob, diff id), lowest first."""

    id: Digest
    digest: Digest
    config: Mapping[str, Any]
    layers: tuple[tuple[Digest, str], ...]
    size_bytes: int
    created: float
    platform: Platform = Platform()
    layer_bytes: tuple[int, ...] = ()


async def unknown_sizes(diff_ids: Sequence[str]) -> Sequence[int]:
    """Say of no layer what its files have."""
    return [-1] * len(diff_ids)


class Catalogue:
    """The images that are here, read."""

    def __init__(self, content: Content, sizes: Sizes = unknown_sizes) -> None:
        self._content = content
        self._sizes = sizes
        self._known: dict[Digest, Known] = {}
        self._documents: dict[Digest, oci.Document] = {}

    async def find(self, ref: str, platform: str = "") -> Image:
        """Find an image by name, id, id prefix or digest, for a platform ("": the machine's, or the one that is here).

        Raises NotFound, Invalid.
        """
        rows = await self._rows()
        root = await self._root_of(ref, rows)
        return await self._image(await self._chosen(root, ref, platform), root, rows)

    async def resolve(self, ref: str, platform: str = "") -> Known:
        """Find an image as `find` does, without its names: the fast way to start a container."""
        return await self._chosen(await self._root_of(ref, await self._rows()), ref, platform)

    async def all(self) -> Sequence[Image]:
        """List the images; those with damaged documents are left out, with a warning."""
        rows = await self._rows()
        found: dict[Digest, Image] = {}
        for name, root in rows:
            try:
                known = await self.known(root)
                if known.id not in found:
                    found[known.id] = await self._image(known, root, rows)
            except WherryError as error:
                log.warning("image %s: %s", name or root, error.message)
        return list(found.values())

    async def named(self, ref: str, platform: str = "") -> tuple[Digest, str]:
        """Find an image for a tool that moves it: its root, or one platform's manifest; and its whole name ("" for an id)."""
        rows = await self._rows()
        root = await self._root_of(ref, rows)
        digest = (await self._chosen(root, ref, platform)).digest if platform else root
        return digest, "" if await self._is_id(ref, root) else str(tidy(parse_name(ref)))

    async def expand(self, ref: str) -> Sequence[str]:
        """Say what a reference to save means: a repository without a tag is all its names. Raises NotFound."""
        rows = await self._rows()
        if _HEX.fullmatch(ref.removeprefix("sha256:")) is None and "@" not in ref and ":" not in ref.rpartition("/")[2]:
            repository = parse_name(ref).repository
            if found := [name for name, _ in rows if name and parse_name(name).repository == repository]:
                return found
        await self._root_of(ref, rows)
        return [ref]

    async def layers(self) -> set[str]:
        """Name the diff ids of all images, for each platform that is here."""
        found: set[str] = set()
        for _, root in await self._rows():
            try:
                for digest in await self._here(root):
                    found.update(diff_id for _, diff_id in (await self.known(digest)).layers)
            except WherryError as error:
                log.debug("image %s: %s", root, error.message)
        return found

    async def manifests(self, ref: str) -> Sequence[ImageManifest]:
        """List what a name's root refers to, here or not: one line for each platform, and attestations."""
        root = await self._root_of(ref, await self._rows())
        document = await self._document(root)
        if not isinstance(document, oci.Index):
            blob = await self._content.stat(root)
            size = blob.size_bytes if blob else 0
            return [await self._describe(oci.Descriptor(document.media_type, root, size))]
        return [await self._describe(child) for child in document.manifests]

    async def describe(self, digest: Digest) -> tuple[str, int]:
        """Say the media type and the size of a manifest or index."""
        blob = await self._content.stat(digest)
        return (await self._document(digest)).media_type, blob.size_bytes if blob else 0

    async def known(self, digest: Digest) -> Known:
        """Read a manifest and its config, once; of an index our platform's, or else the first that is here.

        Raises NotFound, Damaged, Invalid.
        """
        found = self._known.get(digest)
        if found is not None:
            return found
        document = await self._document(digest)
        if isinstance(document, oci.Index):
            here = await self._here(digest)
            return await self.known(here[0] if here else oci.choose(document, oci.this_platform()).digest)
        data = await self._content.read(document.config.digest)
        config = oci.parse_config(data)
        if len(config.rootfs.diff_ids) != len(document.layers):
            raise Damaged(
                f"image {digest}: {len(document.layers)} layers, but its config has {len(config.rootfs.diff_ids)} diff ids"
            )
        found = Known(
            id=document.config.digest,
            digest=digest,
            config=msgspec.json.decode(data),
            layers=tuple(
                (layer.digest, diff) for layer, diff in zip(document.layers, config.rootfs.diff_ids, strict=True)
            ),
            size_bytes=sum(layer.size for layer in document.layers) + document.config.size,
            created=_time(config.created),
            platform=config.platform,
            layer_bytes=tuple(layer.size for layer in document.layers),
        )
        if len(self._known) >= KNOWN_IMAGES:
            self._known.clear()
        self._known[digest] = found
        return found

    async def _rows(self) -> list[Row]:
        found = await self._content.holders(HOLDER)
        return [("" if _is_nameless(holder) else holder.removeprefix(HOLDER), digest) for holder, digest in found]

    async def _document(self, digest: Digest) -> oci.Document:
        found = self._documents.get(digest)
        if found is None:
            found = oci.parse_document(await self._content.read(digest))
            if len(self._documents) >= KNOWN_IMAGES:
                self._documents.clear()
            self._documents[digest] = found
        return found

    async def _here(self, root: Digest) -> list[Digest]:
        """Name the manifests of a root that are here with all their blobs: the machine's platform first."""
        document = await self._document(root)
        if not isinstance(document, oci.Index):
            return [root]
        own = oci.this_platform()
        found = [child for child in document.manifests if await self._is_whole(child)]
        found.sort(key=lambda child: child.platform is None or not oci.fits(child.platform, own))
        return [child.digest for child in found]

    async def _is_whole(self, child: oci.Descriptor) -> bool:
        if (child.annotations or {}).get(ATTESTATION) or await self._content.stat(child.digest) is None:
            return False
        manifest = await self._document(child.digest)
        if not isinstance(manifest, oci.Manifest):
            return False
        for part in manifest.children:
            if await self._content.stat(part.digest) is None:
                return False
        return True

    async def _chosen(self, root: Digest, ref: str, platform: str) -> Known:
        """Take the image of a platform out of a root. Raises NotFound in Docker's words."""
        known = await self.known(root)
        if not platform:
            return known
        wanted = oci.parse_platform(platform)
        for digest in await self._here(root):
            each = await self.known(digest)
            if oci.fits(each.platform, wanted):
                return each
        raise NotFound(
            f"image with reference {ref} was found but does not match the specified platform: wanted {wanted}, "
            f"actual: {known.platform}"
        )

    async def _describe(self, child: oci.Descriptor) -> ImageManifest:
        note = child.annotations or {}
        kind, of = (
            ("attestation", note.get("vnd.docker.reference.digest", "")) if note.get(ATTESTATION) else ("image", "")
        )
        here = await self._is_whole(child) if kind == "image" else await self._content.stat(child.digest) is not None
        known = await self.known(child.digest) if here and kind == "image" else None
        unpacked = await self._sizes([diff_id for _, diff_id in known.layers]) if known else ()
        return ImageManifest(
            digest=child.digest,
            media_type=child.media_type,
            size_bytes=child.size,
            platform=msgspec.to_builtins(child.platform or (known.platform if known else Platform())),
            kind=kind,
            available=here,
            content_bytes=known.size_bytes + child.size if known else 0,
            image_id=known.id if known else "",
            subject=of,
            unpacked_bytes=sum(size for size in unpacked if size > 0),
        )

    async def _image(self, known: Known, root: Digest, rows: Sequence[Row]) -> Image:
        mine = [(name, held) for name, held in rows if name and await self._id_of(held) == known.id]
        if not mine:  # another platform than the one that its names stand for
            mine = [(name, held) for name, held in rows if name and held == root]
        sizes = await self._layer_sizes(known)
        digests = {f"{parse_name(name).repository}@{held}" for name, held in mine}
        return Image(
            id=known.id,
            digest=known.digest,
            names=tuple(name for name, _ in mine),
            config=known.config,
            size_bytes=sum(sizes),
            created=known.created,
            layers=tuple(digest for digest, _ in known.layers),
            root=root,
            digests=tuple(sorted(digests)),
            layer_bytes=sizes,
        )

    async def _layer_sizes(self, known: Known) -> tuple[int, ...]:
        """The bytes of the files in each layer; those of its blob, where it has not been unpacked."""
        found = await self._sizes([diff_id for _, diff_id in known.layers])
        return tuple(size if size >= 0 else blob for size, blob in zip(found, known.layer_bytes, strict=True))

    async def _id_of(self, root: Digest) -> str:
        """An image's id; "" for one that is damaged."""
        try:
            return (await self.known(root)).id
        except WherryError:
            return ""

    async def _root_of(self, ref: str, rows: Sequence[Row]) -> Digest:
        """Resolve: a full id or digest, a name, an id prefix, in this order."""
        if not ref:
            raise Invalid("an image name is missing")
        bare = ref.removeprefix("sha256:")
        is_full = len(bare) == 64 and _HEX.fullmatch(bare) is not None
        if not is_full and not ref.startswith("sha256:"):
            name = tidy(parse_name(ref))
            for held_by, root in rows:
                if held_by == str(name):
                    return root
            if name.digest is not None:
                for held_by, root in rows:
                    if held_by.startswith((f"{name.repository}:", f"{name.repository}@")) and (
                        root == name.digest or name.digest in await self._here(root)
                    ):
                        return root if root == name.digest else name.digest
        if _HEX.fullmatch(bare):
            found: dict[str, Digest] = {}
            for _, root in rows:
                if root == f"sha256:{bare}":
                    return root
                for digest in await self._quietly_here(root):
                    if digest == f"sha256:{bare}":
                        return digest
                    id = await self._id_of(digest)
                    if id.startswith(f"sha256:{bare}"):
                        first = id not in found and digest == (await self.known(root)).digest
                        found[id] = root if first else found.get(id, digest)
            if len(found) > 1:
                raise Invalid(f"image {ref}: several ids begin so; write more digits")
            if found:
                return next(iter(found.values()))
        raise NotFound(f"No such image: {ref}")

    async def _quietly_here(self, root: Digest) -> list[Digest]:
        try:
            return await self._here(root)
        except WherryError:
            return []

    async def _is_id(self, ref: str, root: Digest) -> bool:
        bare = ref.removeprefix("sha256:")
        if _HEX.fullmatch(bare) is None:
            return False
        return root == f"sha256:{bare}" or (await self._id_of(root)).startswith(f"sha256:{bare}")


def tidy(name: ImageName) -> ImageName:
    """A name with a digest says what it means by that alone, as Docker has it: its tag is left out."""
    return name.with_digest(name.digest) if name.digest is not None and name.tag else name


def _is_nameless(holder: str) -> bool:
    return holder.startswith(f"{HOLDER}sha256:")


def _time(text: str | None) -> float:
    """Read an image's time; builders write nonsense there now and then."""
    try:
        return parse_rfc3339(text) if text else 0.0
    except ValueError:
        return 0.0
