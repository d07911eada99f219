"""Images in and out as archives: `docker load`, `docker save`; and the removal of many at once."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from wherry.content import layout
from wherry.content.oci import parse_platform
from wherry.content.protocol import Content
from wherry.content.transfer import Unpacker
from wherry.engine.images import LEASE_S, Images
from wherry.engine.types import Image
from wherry.errors import Conflict, NotFound

Renamed = Callable[[str, str], None]


class Archives:
    """The archives of one engine. `scratch` is a directory for what is being read."""

    def __init__(self, content: Content, images: Images, unpacker: Unpacker, scratch: Path) -> None:
        self._unpacker = unpacker
        self._content = content
        self._images = images
        self._scratch = scratch

    async def load(
        self, archive: AsyncIterator[bytes], *, platform: str = "", renamed: Renamed | None = None
    ) -> Sequence[Image]:
        """Read a tar of images (`docker save`, or an OCI layout), of one `platform` or all; return what is named.

        `renamed` hears of each name that another image had: (name, that image's id). A failure leaves nothing.
        """
        wanted = parse_platform(platform) if platform else None
        lease = await self._content.lease(seconds=LEASE_S)
        is_whole = False
        try:
            loaded = await layout.load_stream(
                self._content, archive, lease=lease, scratch=self._scratch, platform=wanted
            )
            found: list[Image] = []
            for each in loaded:  # what does not unpack to what it says gets no name
                known = await self._images.known(each.digest)
                if known.platform.os == "linux":
                    await self._unpacker.ensure(known.layers, "archive")
            for each in loaded:
                image, taken = await self._images.adopt(each.digest, each.names)
                found.append(replace(image, names=tuple(each.names)))
                if renamed is not None:
                    for name, id in taken.items():
                        renamed(name, id)
            is_whole = True
            return found
        finally:
            await self._content.end_lease(lease)
            if wanted is not None or not is_whole:
                await self._content.collect()

    async def save(self, refs: Sequence[str], *, platform: str = "") -> AsyncIterator[bytes]:
        """Yield a tar of images that `load`, Docker and OCI tools read. Raises NotFound before the first byte."""
        names = [name for ref in refs for name in await self._images.expand(ref)]
        chosen = [(name, digest) for digest, name in [await self._images.named(each, platform) for each in names]]
        async for piece in layout.save(self._content, chosen):
            yield piece

    async def prune(self, ids: Sequence[str]) -> tuple[Sequence[str], int]:
        """Remove images that no container uses, and what pulls left half done: (what went, bytes of content given back)."""
        lines: list[str] = []
        for id in ids:
            with suppress(Conflict, NotFound):
                lines += await self._images.remove(id, force=True, collect=False)
        gone = await self._content.collect(fetched=True)
        return lines, sum(blob.size_bytes for blob in gone)
