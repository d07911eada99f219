"""Images of this machine: names that hold manifests in the content store. There is no other list of them.

The hold `image/NAME` (NAME as `docker.io/library/web:1`) is the name; an image without one has `image/sha256:HEX`.
"""

import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from wherry.clock import parse_rfc3339
from wherry.content import oci, transfer
from wherry.content.hosts import hosts_for
from wherry.content.inflate import compression_of
from wherry.content.names import ImageName, cluster_repository, parse_name
from wherry.content.protocol import Content, Digest
from wherry.content.remote import Credentials, Remote, endpoint_of
from wherry.engine.events import Events
from wherry.engine.settings import EngineSettings
from wherry.engine.types import Image
from wherry.errors import Conflict, Damaged, Forbidden, Invalid, NotFound, Unauthorized, Unavailable, WherryError

log = logging.getLogger(__name__)

HOLDER = "image/"
LEASE_S = 3600.0
KNOWN_IMAGES = 2048
_HEX = re.compile(r"[0-9a-f]{4,64}")
_LAYER_TYPES = {"gzip": oci.OCI_LAYER_GZIP, "zstd": oci.OCI_LAYER_ZSTD, "": oci.OCI_LAYER}


class Known(msgspec.Struct, frozen=True):
    """What never changes about an image, by its manifest's digest. `layers` are (blob, diff id), lowest first."""

    id: Digest
    digest: Digest
    config: Mapping[str, Any]
    layers: tuple[tuple[Digest, str], ...]
    size_bytes: int
    created: float


class Images:
    """The image store. `users(id)` names the containers that use an image."""

    def __init__(
        self, content: Content, settings: EngineSettings, events: Events, users: Callable[[str], Sequence[str]]
    ) -> None:
        self._content = content
        self._settings = settings
        self._events = events
        self._users = users
        self._known: dict[Digest, Known] = {}

    async def find(self, ref: str) -> Image:
        """Find an image by name, id, id prefix or digest. Raises NotFound, Invalid."""
        digest = await self._digest_of(ref)
        known = await self.known(digest)
        holders = await self._content.holders(HOLDER)
        return _image(known, [name for name, held in _names(holders) if held == digest])

    async def resolve(self, ref: str) -> Known:
        """Find an image as `find` does, without its names: the fast way to start a container."""
        return await self.known(await self._digest_of(ref))

    async def all(self) -> Sequence[Image]:
        """List the images; those with damaged documents are left out, with a warning."""
        by_id: dict[Digest, tuple[Known, list[str]]] = {}
        for holder, digest in await self._content.holders(HOLDER):
            try:
                known = await self.known(digest)
            except WherryError as error:
                log.warning("image %s: %s", holder.removeprefix(HOLDER), error.message)
                continue
            names = by_id.setdefault(known.id, (known, []))[1]
            if not _is_nameless(holder):
                names.append(holder.removeprefix(HOLDER))
        return [_image(known, names) for known, names in by_id.values()]

    async def named(self, ref: str) -> tuple[Known, str]:
        """Find an image, and the whole name it was asked for by ("" for an id)."""
        known = await self.resolve(ref)
        return known, "" if _looks_like_id(ref, known) else str(parse_name(ref))

    async def layers(self) -> set[str]:
        """Name the diff ids of all images."""
        found: set[str] = set()
        for _, digest in await self._content.holders(HOLDER):
            try:
                found.update(diff_id for _, diff_id in (await self.known(digest)).layers)
            except WherryError as error:
                log.debug("image %s: %s", digest, error.message)
        return found

    async def known(self, digest: Digest) -> Known:
        """Read a manifest and its config, once. Raises NotFound, Damaged, Invalid."""
        found = self._known.get(digest)
        if found is not None:
            return found
        document = oci.parse_document(await self._content.read(digest))
        if isinstance(document, oci.Index):
            child = oci.choose(document, oci.this_platform())
            return await self.known(child.digest)
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
        )
        if len(self._known) >= KNOWN_IMAGES:
            self._known.clear()
        self._known[digest] = found
        return found

    async def pull(self, ref: str, auth: Mapping[str, str] | None, progress: Any, platform: str = "") -> Image:
        """Get an image from the cluster's registry or else the one its name says, and name it here."""
        name = parse_name(ref)
        wanted = platform_of(platform) if platform else None
        lease = await self._content.lease(seconds=LEASE_S)
        try:
            pulled = await self._pull_from_cluster(name, lease, progress, wanted)
            if pulled is None:
                pulled = await self._pull_from_outside(name, lease, Credentials.of(auth), progress, wanted)
            await self._give(str(name), pulled.manifest)
        finally:
            await self._content.end_lease(lease)
        image = await self.find(str(name))
        self._events.tell("image", "pull", str(name), {"id": image.id})
        return image

    async def push(self, ref: str, auth: Mapping[str, str] | None, progress: Any) -> str:
        """Send an image to the registry that its name says; return the manifest's digest."""
        name = parse_name(ref)
        digest = await self._digest_of(ref)
        if self._settings.cluster_registry and name.domain == self._settings.registry_host:
            await self._tag_in_cluster(name, digest, progress)
        else:
            endpoint = endpoint_of(name, tuple(self._settings.insecure))
            async with Remote(endpoint, credentials=Credentials.of(auth)) as remote:
                await transfer.push(
                    self._content, remote, name.path, name.tag or name.reference, digest, progress=progress
                )
        self._events.tell("image", "push", str(name))
        return digest

    async def tag(self, ref: str, new: str) -> None:
        """Give an image one more name, here and in the cluster's registry."""
        name = parse_name(new)
        if not name.tag or name.digest:
            raise Invalid(f"tag {new!r}: a tag is needed, not a digest")
        digest = await self._digest_of(ref)
        await self._give(str(name), digest)
        self._events.tell("image", "tag", str(name), {"id": (await self.known(digest)).id})
        await self._tell_cluster(name, digest)

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
        image = _image(await self.known(manifest.digest), [str(name) for name in parsed])
        for name in parsed:
            self._events.tell("image", "tag", str(name), {"id": image.id})
            await self._tell_cluster(name, manifest.digest)
        return image

    async def adopt(self, digest: Digest, names: Sequence[str]) -> Image:
        """Name a manifest (or index) that is in the store already: what `load` does. The names are local."""
        known = await self.known(digest)
        for name in names:
            await self._give(str(parse_name(name)), known.digest)
        if not names:
            await self._content.hold(f"{HOLDER}{known.digest}", known.digest)
        self._events.tell("image", "load", known.id)
        return _image(known, [str(parse_name(name)) for name in names])

    async def remove(self, ref: str, *, force: bool) -> list[str]:
        """Take a name away, and the image with its last name; by id all names (several only with `force`).

        Raises Conflict when a container uses what would go (with `force` only the names go), NotFound.
        """
        digest = await self._digest_of(ref)
        known = await self.known(digest)
        holders = await self._content.holders(HOLDER)
        same = [name for name, held in _names(holders) if held == digest]
        name = None if _looks_like_id(ref, known) else str(parse_name(ref))
        going = [name] if name is not None and name in same else same
        is_last = len(going) == len(same)
        users = self._users(known.id)
        if name is None and len(same) > 1 and not force:
            raise Conflict(f"image {ref} has {len(same)} names ({', '.join(same)}): remove them by name, or use force")
        if is_last and users and not force:
            raise Conflict(
                f"image {ref} is used by container {users[0][:12]}: remove that container first, or use force"
            )
        lines: list[str] = []
        for gone in going:
            await self._content.release(f"{HOLDER}{gone}")
            lines.append(f"Untagged: {parse_name(gone).familiar}")
            self._events.tell("image", "untag", gone, {"id": known.id})
        if is_last:
            await self._content.release(f"{HOLDER}{digest}")
            if users:
                await self._content.hold(f"{HOLDER}{digest}", digest)
            else:
                lines.append(f"Deleted: {known.id}")
                self._events.tell("image", "delete", known.id)
                self._known.pop(digest, None)
                await self._content.collect()
        return lines

    async def _digest_of(self, ref: str) -> Digest:
        """Resolve: a full id or digest, a name, an id prefix, in this order."""
        if not ref:
            raise Invalid("an image name is missing")
        holders = await self._content.holders(HOLDER)
        bare = ref.removeprefix("sha256:")
        is_full = len(bare) == 64 and _HEX.fullmatch(bare) is not None
        if not is_full and not ref.startswith("sha256:"):
            name = parse_name(ref)
            for holder, digest in holders:
                if holder == f"{HOLDER}{name}":
                    return digest
            if name.digest is not None:
                for holder, digest in holders:
                    if digest == name.digest and holder.startswith(f"{HOLDER}{name.repository}:"):
                        return digest
        if _HEX.fullmatch(bare):
            found = {digest for _, digest in holders if await self._matches(digest, bare)}
            ids = {(await self.known(digest)).id for digest in found}
            if len(ids) > 1:
                raise Invalid(f"image {ref}: several ids begin so; write more digits")
            if found:
                return sorted(found)[0]
        raise NotFound(f"image {ref}: not on this machine; pull or build it")

    async def _matches(self, digest: Digest, bare: str) -> bool:
        if digest == f"sha256:{bare}":
            return True
        try:
            return (await self.known(digest)).id.startswith(f"sha256:{bare}")
        except WherryError:
            return False

    async def _give(self, name: str, digest: Digest) -> None:
        """Move a name to a manifest: held by the new before it lets go of the old."""
        holder = f"{HOLDER}{name}"
        await self._content.hold(holder, digest)
        for held_by, old in await self._content.holders(holder):
            if held_by == holder and old != digest:
                await self._content.release(holder, old)
        await self._content.release(f"{HOLDER}{digest}")  # it has a name now

    async def _layer(self, digest: Digest) -> oci.Descriptor:
        blob = await self._content.stat(digest)
        if blob is None:
            raise NotFound(f"layer {digest}: not on this machine")
        with self._content.path(digest).open("rb") as file:
            kind = compression_of(file.read(16))
        media_type = _LAYER_TYPES.get(kind, oci.OCI_LAYER)
        return oci.Descriptor(media_type=media_type, digest=digest, size=blob.size_bytes)

    async def _pull_from_cluster(
        self, name: ImageName, lease: str, progress: Any, platform: oci.Platform | None
    ) -> transfer.Pulled | None:
        if not self._settings.cluster_registry:
            return None
        own = name.domain == self._settings.registry_host
        repository = cluster_repository(name, self._settings.registry_host)
        try:
            async with self._cluster() as remote:
                return await transfer.pull(
                    self._content, remote, repository, name.reference, lease=lease, platform=platform, progress=progress
                )
        except NotFound:
            if own:
                raise
        except Unavailable as error:
            if own:
                raise
            log.warning("image %s: the cluster's registry: %s", name, error.message)
        return None

    async def _pull_from_outside(
        self, name: ImageName, lease: str, credentials: Credentials | None, progress: Any, platform: oci.Platform | None
    ) -> transfer.Pulled:
        """Ask the mirrors of a registry (hosts.toml), then itself. Mirrors get no credentials."""
        origin = endpoint_of(name, tuple(self._settings.insecure))
        for host in hosts_for(Path(self._settings.hosts_dir), name.domain, origin):
            if not host.origin and (not host.pulls or (not host.resolves and name.digest is None)):
                continue
            try:
                known = credentials if host.origin else None
                async with Remote(host.endpoint, credentials=known, tls=host.tls()) as remote:
                    return await transfer.pull(
                        self._content,
                        remote,
                        name.path,
                        name.reference,
                        lease=lease,
                        platform=platform,
                        progress=progress,
                    )
            except (NotFound, Unavailable, Unauthorized, Forbidden) as error:
                if host.origin:
                    raise
                log.info("image %s: mirror %s: %s; asking the next", name, host.endpoint, error.message)
        raise NotFound(f"image {name}: no host may be asked for it")

    def _cluster(self) -> Remote:
        """The cluster's registry. Raises Unavailable at once when its socket is not even there."""
        endpoint = self._settings.cluster_registry
        if endpoint.startswith("unix:") and not os.path.exists(endpoint.removeprefix("unix:")):
            raise Unavailable(f"{endpoint.removeprefix('unix:')} is not there: the registry is not running")
        return Remote(endpoint)

    async def _tell_cluster(self, name: ImageName, digest: Digest) -> None:
        if self._settings.on_tag is not None:
            await self._settings.on_tag(str(name), digest)
        elif self._settings.cluster_registry and name.tag:
            try:
                await self._tag_in_cluster(name, digest, None)
            except Unavailable as error:
                raise Unavailable(
                    f"image {name.familiar} is tagged on this machine, but not in the cluster's registry: {error.message}; "
                    "tag it again when the registry is back"
                ) from error

    async def _tag_in_cluster(self, name: ImageName, digest: Digest, progress: Any) -> None:
        """Tag in the cluster's registry: by its manifest alone where it has our blobs anyway."""
        repository = cluster_repository(name, self._settings.registry_host)
        async with self._cluster() as remote:
            if self._settings.shares_content:
                data = await self._content.read(digest)
                await remote.put_manifest(repository, name.reference, oci.document_type(data), data)
            else:
                await transfer.push(self._content, remote, repository, name.reference, digest, progress=progress)


def platform_of(text: str) -> oci.Platform:
    """Read `linux/arm64`, `linux/arm/v7` or `arm64`. Raises Invalid."""
    parts = [part for part in text.lower().split("/") if part]
    if not 1 <= len(parts) <= 3:
        raise Invalid(f"platform {text!r}: write os/architecture or os/architecture/variant")
    if len(parts) == 1:
        parts = ["linux", {"x86_64": "amd64", "aarch64": "arm64"}.get(parts[0], parts[0])]
    return oci.Platform(os=parts[0], architecture=parts[1], variant=parts[2] if len(parts) == 3 else "")


def _names(holders: Sequence[tuple[str, Digest]]) -> list[tuple[str, Digest]]:
    return [(holder.removeprefix(HOLDER), digest) for holder, digest in holders if not _is_nameless(holder)]


def _is_nameless(holder: str) -> bool:
    return holder.startswith(f"{HOLDER}sha256:")


def _looks_like_id(ref: str, known: Known) -> bool:
    bare = ref.removeprefix("sha256:")
    return _HEX.fullmatch(bare) is not None and (
        known.id.startswith(f"sha256:{bare}") or known.digest == f"sha256:{bare}"
    )


def _image(known: Known, names: Sequence[str]) -> Image:
    return Image(
        id=known.id,
        digest=known.digest,
        names=tuple(names),
        config=known.config,
        size_bytes=known.size_bytes,
        created=known.created,
        layers=tuple(digest for digest, _ in known.layers),
    )


def _time(text: str | None) -> float:
    """Read an image's time; builders write nonsense there now and then."""
    try:
        return parse_rfc3339(text) if text else 0.0
    except ValueError:
        return 0.0
