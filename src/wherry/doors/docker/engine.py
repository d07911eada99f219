"""What this door needs of an engine beyond the protocol that all its callers share."""

from collections.abc import AsyncIterator, Sequence
from typing import Protocol

from wherry.engine.types import Engine, Image
from wherry.engine.volumes import Volumes


class DockerEngine(Engine, Protocol):
    """An engine that can also be sized, and filled from and emptied into archives."""

    volumes: Volumes

    async def size_of(self, directory: str) -> int:
        """Count the bytes on disk below a directory."""
        ...

    async def empty_trash(self) -> None:
        """Have what was removed leave the disk now."""
        ...

    async def resize(self, ref: str, rows: int, columns: int) -> None:
        """Set the size of a container's terminal. Raises Conflict when it does not run."""
        ...

    async def load(self, archive: AsyncIterator[bytes]) -> Sequence[Image]:
        """Read a tar of images (`docker save`, or an OCI layout); return what is new or named anew."""
        ...

    def save(self, refs: Sequence[str]) -> AsyncIterator[bytes]:
        """Yield a tar of images. Raises NotFound before the first byte."""
        ...
