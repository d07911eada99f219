"""The calls of the engine that are about images: each handed on to the part that does it."""

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

from wherry.content.protocol import Digest
from wherry.content.remote import Remote
from wherry.engine.images import Images
from wherry.engine.imports import Archives, Renamed
from wherry.engine.snapshots import Snapshots
from wherry.engine.types import Image, ImageManifest


class ImageCalls(ABC):
    """What local.py makes an engine of, beside containers and networks."""

    _images: Images
    _archives: Archives
    _snapshots: Snapshots

    async def image(self, ref: str, *, platform: str = "") -> Image:
        """See Engine. `platform`: of an image that is here for several."""
        return await self._images.find(ref, platform)

    async def manifests(self, ref: str) -> Sequence[ImageManifest]:
        """List the manifests that an image's name stands for, here or not. Raises NotFound."""
        return await self._images.manifests(ref)

    async def describe(self, digest: str) -> tuple[str, int]:
        """Say the media type and the size of a manifest or index that is here. Raises NotFound."""
        return await self._images.describe(Digest(digest))

    async def remote_tags(self, ref: str, auth: Mapping[str, str] | None) -> Sequence[str]:
        """List the tags that a repository has at its registry."""
        return await self._images.tags(ref, auth)

    async def images(self) -> Sequence[Image]:
        """See Engine."""
        return await self._images.all()

    async def pull(
        self, ref: str, *, auth: Mapping[str, str] | None = None, progress: Any = None, platform: str = ""
    ) -> Image:
        """See Engine. `progress` is called with each content/transfer.Step. Its layers are unpacked on return."""
        return await self._images.pull(ref, auth, progress, platform, self._snapshots)

    async def push(
        self, ref: str, *, auth: Mapping[str, str] | None = None, progress: Any = None, platform: str = ""
    ) -> str:
        """See Engine. With a `platform` only that image of an index."""
        return await self._images.push(ref, auth, progress, platform)

    async def tag(self, ref: str, name: str) -> None:
        """See Engine."""
        await self._images.tag(ref, name)

    async def commit_image(
        self,
        config: Mapping[str, Any],
        layers: Sequence[str],
        names: Sequence[str],
        *,
        annotations: Mapping[str, str] | None = None,
    ) -> Image:
        """See Engine."""
        return await self._images.commit(config, layers, names, annotations=annotations)

    async def name_root(self, root: Digest, names: Sequence[str]) -> Image:
        """Name an index that is in the store: see Images."""
        return await self._images.name_root(root, names)

    def registry(self, ref: str, auth: Mapping[str, str] | None) -> AbstractAsyncContextManager[tuple[Remote, str]]:
        """Give the registry that a name says, and the repository there: what carries build caches."""
        return self._images.registry(ref, auth)

    async def remove_image(self, ref: str, *, force: bool = False) -> Sequence[str]:
        """See Engine."""
        lines = await self._images.remove(ref, force=force)
        await self.collect()
        return lines

    async def load(
        self, archive: AsyncIterator[bytes], *, platform: str = "", renamed: Renamed | None = None
    ) -> Sequence[Image]:
        """Read a tar of images: see Archives."""
        return await self._archives.load(archive, platform=platform, renamed=renamed)

    def save(self, refs: Sequence[str], *, platform: str = "") -> AsyncIterator[bytes]:
        """Yield a tar of images. Raises NotFound before the first byte."""
        return self._archives.save(refs, platform=platform)

    async def prune_images(self, ids: Sequence[str]) -> tuple[Sequence[str], int]:
        """Remove images that no container uses, and what pulls left half done: (what went, bytes given back)."""
        lines, freed = await self._archives.prune(ids)
        await self.collect()
        return lines, freed

    @abstractmethod
    async def collect(self) -> int:
        """Remove the snapshots that no image and no container needs; return how many went."""
