"""Images of this machine: how they come, go to registries, get and lose their names. catalogue.py reads what is here."""

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

import msgspec

from wherry.content import oci
from wherry.content.inflate import compression_of
from wherry.content.names import ImageName, parse_name
from wherry.content.protocol import Content, Digest
from wherry.content.remote import Remote
from wherry.content.transfer import Unpacker
from wherry.engine.catalogue import HOLDER, Catalogue, Known, Sizes, tidy, unknown_sizes
from wherry.engine.events import Events
from wherry.engine.registries import Registries
from wherry.engine.settings import EngineSettings
from wherry.engine.types import Image
from wherry.errors import Conflict, Invalid, NotFound

LEASE_S = 3600.0
_LAYER_TYPES = {"gzip": oci.OCI_LAYER_GZIP, "zstd": oci.OCI_LAYER_ZSTD, "": oci.OCI_LAYER}


class Images(Catalogue):
    """The image store. `users(id)` names the containers that use an image, `running` says whether one of them runs, `sizes`
    what unpacked layers have.
    """

    def __init__(
        self,
        content: Content,
        settings: EngineSettings,
        events: Events,
        users: Callable[[str], Sequence[str]],
        running: Callable[[str], bool] = lambda id: False,
        sizes: Sizes = unknown_sizes,
    ) -> None:
        super().__init__(content, sizes)
        self._registries = Registries(content, settings)
        self._events = events
        self._users = users
        self._running = running

    async def pull(
        self,
        ref: str,
        auth: Mapping[str, str] | None,
        progress: Any,
        platform: str = "",
        unpacker: Unpacker | None = None,
    ) -> Image:
        """Get an image from the cluster's registry or else the one its name says, and name it here."""
        name = tidy(parse_name(ref))
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

    def _name_in(self, ref: str, names: Sequence[str]) -> str:
        """The name among an image's that a reference means; by digest alone, where it has no name of its own, none."""
        name = str(tidy(parse_name(ref)))
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


def _is_single(names: Sequence[str]) -> bool:
    """Whether these are at most one tag, and digests of the same repository."""
    return (
        len([name for name in names if "@" not in name]) <= 1
        and len({parse_name(name).repository for name in names}) <= 1
    )
