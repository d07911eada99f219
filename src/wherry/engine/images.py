"""Images of this machine: names that hold manifests or indexes in the content store. There is no other list of them.

The hold `image/NAME` (NAME as `docker.io/library/web:1`, or `docker.io/library/web@sha256:HEX` for what was pulled by
digest) is the name; an image without one has `image/sha256:HEX`. What a name holds is its *root*: the index where the
registry gave one, else the manifest. Of an index those images are here whose blobs are; the machine's own is preferred.
"""

import logging
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

import msgspec

from wherry.clock import parse_rfc3339
from wherry.content import oci
from wherry.content.inflate import compression_of
from wherry.content.names import ImageName, parse_name
from wherry.content.oci import Platform
from wherry.content.protocol import Content, Digest
from wherry.content.remote import Remote
from wherry.content.transfer import Unpacker
from wherry.engine.events import Events
from wherry.engine.registries import Registries
from wherry.engine.settings import EngineSettings
from wherry.engine.types import Image, ImageManifest
from wherry.errors import Conflict, Damaged, Invalid, NotFound, WherryError

log = logging.getLogger(__name__)

HOLDER = "image/"
LEASE_S = 3600.0
KNOWN_IMAGES = 2048
ATTESTATION = "vnd.docker.reference.type"
_HEX = re.compile(r"[0-9a-f]{4,64}")
_LAYER_TYPES = {"gzip": oci.OCI_LAYER_GZIP, "zstd": oci.OCI_LAYER_ZSTD, "": oci.OCI_LAYER}
Row = tuple[str, Digest]
"""A name ("" for none) and its root."""


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


class Images:
    """The image store. `users(id)` names the containers that use an image, `running` says whether one of them runs."""

    def __init__(
        self,
        content: Content,
        settings: EngineSettings,
        events: Events,
        users: Callable[[str], Sequence[str]],
        running: Callable[[str], bool] = lambda id: False,
    ) -> None:
        self._content = content
        self._registries = Registries(content, settings)
        self._events = events
        self._users = users
        self._running = running
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
        return digest, "" if await self._is_id(ref, root) else str(_tidy(parse_name(ref)))

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

    async def pull(
        self,
        ref: str,
        auth: Mapping[str, str] | None,
        progress: Any,
        platform: str = "",
        unpacker: Unpacker | None = None,
    ) -> Image:
        """Get an image from the cluster's registry or else the one its name says, and name it here."""
        name = _tidy(parse_name(ref))
        wanted = oci.parse_platform(platform) if platform else None
        lease = await self._content.lease(seconds=LEASE_S)
        is_whole = False
        try:
            pulled = await self._registries.pull(name, lease, auth, progress, wanted, unpacker)
            await self._give(str(name), pulled.root)
            is_whole = True
        finally:
            await self._content.end_lease(lease)
            if not is_whole:
                await self._content.collect()  # nothing of it is left but the blob it was at, for the next try
        rows = await self._rows()
        image = await self._image(await self.known(pulled.manifest), pulled.root, rows)
        self._events.tell("image", "pull", name.familiar, {"id": image.id, "name": name.familiar})
        return image

    async def tags(self, ref: str, auth: Mapping[str, str] | None) -> Sequence[str]:
        """List the tags that a repository has at its registry."""
        return await self._registries.tags(parse_name(ref), auth)

    async def push(self, ref: str, auth: Mapping[str, str] | None, progress: Any, platform: str = "") -> str:
        """Send an image to the registry that its name says; return the digest of what was sent.

        Of an index whose other images are neither here nor there the one that is here goes alone, as Docker does it.
        """
        name = parse_name(ref)
        digest, _ = await self.named(ref, platform)
        here = await self._here(digest)
        digest = await self._registries.push(
            name, digest, auth, progress, await self._sisters(name), here[0] if here else digest
        )
        self._events.tell("image", "push", name.familiar, {"name": name.familiar})
        return digest

    async def tag(self, ref: str, new: str) -> None:
        """Give an image one more name, here and in the cluster's registry."""
        name = parse_name(new)
        if not name.tag or name.digest:
            raise Invalid("refusing to create a tag with a digest reference")
        root = await self._root_of(ref, await self._rows())
        await self._give(str(name), root)
        self._events.tell("image", "tag", (await self.known(root)).id, {"name": name.familiar})
        await self._registries.tell_cluster(name, root)

    async def commit(
        self,
        config: Mapping[str, Any],
        layers: Sequence[str],
        names: Sequence[str],
        *,
        annotations: Mapping[str, str] | None = None,
    ) -> Image:
        """Make an image of a config and layer blobs that are in the store, and name it."""
        parsed = [parse_name(name) for name in names]
        diff_ids = (config.get("rootfs") or {}).get("diff_ids") or []
        if len(diff_ids) != len(layers):
            raise Invalid(f"image: {len(layers)} layers, but rootfs.diff_ids has {len(diff_ids)}")
        lease = await self._content.lease(seconds=LEASE_S)
        try:
            descriptors = [await self._layer(Digest(layer)) for layer in layers]
            data = msgspec.json.encode(config)
            blob = await self._content.put(data, lease=lease)
            described = oci.Descriptor(media_type=oci.OCI_CONFIG, digest=blob.digest, size=blob.size_bytes)
            manifest = await self._content.put(oci.manifest_of(described, descriptors, annotations), lease=lease)
            for name in parsed:
                await self._give(str(name), manifest.digest)
            if not parsed:
                await self._content.hold(f"{HOLDER}{manifest.digest}", manifest.digest)
        finally:
            await self._content.end_lease(lease)
        image = await self._image(await self.known(manifest.digest), manifest.digest, await self._rows())
        for name in parsed:
            self._events.tell("image", "tag", image.id, {"name": name.familiar})
            await self._registries.tell_cluster(name, manifest.digest)
        return image

    async def name_root(self, root: Digest, names: Sequence[str]) -> Image:
        """Name an index that is in the store, here and in the cluster's registry; without names it is a nameless image."""
        for text in names:
            await self._give(str(parse_name(text)), root)
        if not names:
            await self._content.hold(f"{HOLDER}{root}", root)
        image = await self._image(await self.known(root), root, await self._rows())
        for text in names:
            self._events.tell("image", "tag", image.id, {"name": parse_name(text).familiar})
            await self._registries.tell_cluster(parse_name(text), root)
        return image

    def registry(self, ref: str, auth: Mapping[str, str] | None) -> AbstractAsyncContextManager[tuple[Remote, str]]:
        """Give the registry that a name says, and the repository there."""
        return self._registries.opened(parse_name(ref), auth)

    async def adopt(self, digest: Digest, names: Sequence[str]) -> tuple[Image, Mapping[str, str]]:
        """Name a manifest (or index) that is in the store already: what `load` does. The names are local.

        Returns the image, and which of the names another one had: (name, its id).
        """
        known = await self.known(digest)
        taken: dict[str, str] = {}
        for text in names:
            name = str(parse_name(text))
            old = await self._give(name, digest)
            if old and old != known.id:
                taken[name] = old
        if not names:
            await self._content.hold(f"{HOLDER}{digest}", digest)
        self._events.tell("image", "load", known.id, {"name": known.id})
        return await self._image(known, digest, await self._rows()), taken

    async def remove(self, ref: str, *, force: bool, collect: bool = True) -> list[str]:
        """Take a name away, and the image with its last name; by id all names, if they are of one repository or by `force`.

        Raises Conflict when a container uses what would go (`force` takes those that do not run), NotFound.
        """
        rows = await self._rows()
        root = await self._root_of(ref, rows)
        known = await self.known(root)
        same = [name for name, held in rows if name and (await self._id_of(held)) == known.id]
        short = known.id.removeprefix("sha256:")[:12]
        by_id = await self._is_id(ref, root)
        users = self._users(known.id)
        name = "" if by_id else self._name_in(ref, same)
        lines: list[str] = []
        if name:
            if not force and _is_single(same) and users:
                raise Conflict(
                    f'conflict: unable to remove repository reference "{ref}" (must force) - container '
                    f"{users[0][:12]} is using its referenced image {short}"
                )
            repository = parse_name(name).repository
            left = [each for each in same if each != name]
            digests = [each for each in left if "@" in each and parse_name(each).repository == repository]
            if "@" not in name and not any(
                "@" not in each and parse_name(each).repository == repository for each in left
            ):
                left = [each for each in left if each not in digests]  # they came with the tag, and go with it
            for gone in [each for each in same if each not in left]:
                lines.append(await self._untag(gone, known))
            if left:
                return lines
            if users:  # by force: only the names go
                await self._content.hold(f"{HOLDER}{root}", root)
                return lines
        else:
            self._check_free(known, users, same, force=force)
            for gone in same:
                lines.append(await self._untag(gone, known))
            if users:
                await self._content.hold(f"{HOLDER}{root}", root)
                return lines
        for _, held in rows:
            if await self._id_of(held) == known.id:
                await self._content.release(f"{HOLDER}{held}")
                self._known.pop(held, None)
        lines.append(f"Deleted: {known.id}")
        self._events.tell("image", "delete", known.id, {"name": known.id})
        if collect:
            await self._content.collect()
        return lines

    def _check_free(self, known: Known, users: Sequence[str], names: Sequence[str], *, force: bool) -> None:
        """Raise Docker's Conflict for an image, asked for by its id, that may not go."""
        short = known.id.removeprefix("sha256:")[:12]
        running = next((user for user in users if self._running(user)), "")
        if running:
            raise Conflict(
                f"conflict: unable to delete {short} (cannot be forced) - image is being used by running container "
                f"{running[:12]}"
            )
        if force:
            return
        if not _is_single(names) and names:
            raise Conflict(
                f"conflict: unable to delete {short} (must be forced) - image is referenced in multiple repositories"
            )
        if users:
            raise Conflict(
                f"conflict: unable to delete {short} (must be forced) - image is being used by stopped container "
                f"{users[0][:12]}"
            )

    async def _untag(self, name: str, known: Known) -> str:
        await self._content.release(f"{HOLDER}{name}")
        familiar = parse_name(name).familiar
        self._events.tell("image", "untag", known.id, {"name": familiar})
        return f"Untagged: {familiar}"

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
        )

    async def _image(self, known: Known, root: Digest, rows: Sequence[Row]) -> Image:
        mine = [(name, held) for name, held in rows if name and await self._id_of(held) == known.id]
        if not mine:  # another platform than the one that its names stand for
            mine = [(name, held) for name, held in rows if name and held == root]
        digests = {f"{parse_name(name).repository}@{held}" for name, held in mine}
        return Image(
            id=known.id,
            digest=known.digest,
            names=tuple(name for name, _ in mine),
            config=known.config,
            size_bytes=known.size_bytes,
            created=known.created,
            layers=tuple(digest for digest, _ in known.layers),
            root=root,
            digests=tuple(sorted(digests)),
            layer_bytes=known.layer_bytes,
        )

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
            name = _tidy(parse_name(ref))
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

    def _name_in(self, ref: str, names: Sequence[str]) -> str:
        """The name among an image's that a reference means; by digest alone, where it has no name of its own, none."""
        name = str(_tidy(parse_name(ref)))
        return name if name in names else ""

    async def _give(self, name: str, root: Digest) -> str:
        """Move a name to a root: held by the new before it lets go of the old. What had it becomes nameless; returns its id."""
        holder = f"{HOLDER}{name}"
        await self._content.hold(holder, root)
        before = ""
        for held_by, old in await self._content.holders(holder):
            if held_by != holder or old == root:
                continue
            before = await self._id_of(old)
            if before and before != await self._id_of(root):
                rows = await self._rows()
                if not any(each != name and held == old for each, held in rows):
                    await self._content.hold(f"{HOLDER}{old}", old)
            await self._content.release(holder, old)
        await self._content.release(f"{HOLDER}{root}")  # it has a name now
        return before

    async def _layer(self, digest: Digest) -> oci.Descriptor:
        blob = await self._content.stat(digest)
        if blob is None:
            raise NotFound(f"layer {digest}: not on this machine")
        with self._content.path(digest).open("rb") as file:
            kind = compression_of(file.read(16))
        media_type = _LAYER_TYPES.get(kind)
        if media_type is None:
            raise Invalid(f"layer {digest}: {kind} is no compression that an image's layer can have")
        return oci.Descriptor(media_type=media_type, digest=digest, size=blob.size_bytes)

    async def _sisters(self, name: ImageName) -> Callable[[Digest], Collection[str]]:
        """Say which repositories of a name's registry may have a blob: those that images here are named after."""
        found: dict[Digest, set[str]] = {}
        for text, root in await self._rows():
            other = parse_name(text) if text else name
            if other.domain != name.domain or other.path == name.path:
                continue
            for digest in await self._quietly_here(root):
                document = await self._document(digest)
                for child in document.children:
                    found.setdefault(child.digest, set()).add(other.path)
        return lambda digest: sorted(found.get(digest, ()))


def _tidy(name: ImageName) -> ImageName:
    """A name with a digest says what it means by that alone, as Docker has it: its tag is left out."""
    return name.with_digest(name.digest) if name.digest is not None and name.tag else name


def _is_single(names: Sequence[str]) -> bool:
    """Whether these are at most one tag, and digests of the same repository."""
    return (
        len([name for name in names if "@" not in name]) <= 1
        and len({parse_name(name).repository for name in names}) <= 1
    )


def _is_nameless(holder: str) -> bool:
    return holder.startswith(f"{HOLDER}sha256:")


def _time(text: str | None) -> float:
    """Read an image's time; builders write nonsense there now and then."""
    try:
        return parse_rfc3339(text) if text else 0.0
    except ValueError:
        return 0.0
