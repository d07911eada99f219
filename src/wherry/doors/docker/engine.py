"""What this door needs of an engine beyond the protocol that all its callers share."""

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from typing import Any, Protocol

from wherry.engine.archive import PathStat
from wherry.engine.diffs import Change
from wherry.engine.networks import Networks
from wherry.engine.runtime import Runtimes
from wherry.engine.settings import EngineSettings
from wherry.engine.types import (
    Engine,
    EngineEvent,
    ExecSpec,
    Image,
    ImageManifest,
    Join,
    Limits,
    LogLine,
    Mount,
    Session,
)
from wherry.engine.volumes import Volumes
from wherry.host.abilities import Abilities
from wherry.host.engine_usage import Detail
from wherry.network.types import PortBinding


class ExecSession(Session, Protocol):
    """An exec'ed process."""

    @property
    def pid(self) -> int:
        """Its pid on the machine; 0 before it runs and after it has ended."""
        ...

    @property
    def has_output_ended(self) -> bool:
        """Whether all that it writes has been read."""
        ...


class DockerEngine(Engine, Protocol):
    """An engine that can also be sized, and filled from and emptied into archives."""

    volumes: Volumes
    networks: Networks
    runtimes: Runtimes
    abilities: Abilities
    settings: EngineSettings

    async def exec(self, ref: str, spec: ExecSpec) -> ExecSession:
        """Run one more process in a container. Raises NotFound, Conflict, Invalid, Broken."""
        ...

    async def stop(self, ref: str, *, grace_s: float | None = None, signal: str = "") -> None:
        """Stop a container: its stop signal, or `signal`, then, after a while, SIGKILL."""
        ...

    async def settled(self, *, timeout_s: float = 20.0) -> None:
        """Wait until what goes on behind (clearing, deleting) is done."""
        ...

    def log_blocks(
        self, ref: str, *, follow: bool = False, tail: int | None = None, since: float = 0.0
    ) -> AsyncGenerator[Sequence[LogLine]]:
        """Yield a container's log, many lines at once. Raises NotFound, Unsupported."""
        ...

    def tell(self, kind: str, action: str, id: str, attributes: Mapping[str, str]) -> None:
        """Send an event."""
        ...

    def tell_of(self, ref: str, action: str, attributes: Mapping[str, str]) -> None:
        """Send an event of a container, with its name, image and labels; nothing when it is not there any more."""
        ...

    async def connect(self, ref: str, join: Join) -> None:
        """Put a container on one more network."""
        ...

    async def disconnect(self, ref: str, network: str) -> None:
        """Take a container off a network."""
        ...

    async def pull(
        self, ref: str, *, auth: Mapping[str, str] | None = None, progress: Any = None, platform: str = ""
    ) -> Image:
        """Get an image for a platform ("" is this machine's): from the cluster's registry, or where its name says."""
        ...

    async def image(self, ref: str, *, platform: str = "") -> Image:
        """Find an image by name, id, id prefix or digest; `platform`: of one that is here for several. Raises NotFound."""
        ...

    async def manifests(self, ref: str) -> Sequence[ImageManifest]:
        """List the manifests that an image's name stands for, here or not. Raises NotFound."""
        ...

    async def describe(self, digest: str) -> tuple[str, int]:
        """Say the media type and the size of a manifest or index that is here. Raises NotFound."""
        ...

    async def remote_tags(self, ref: str, auth: Mapping[str, str] | None) -> Sequence[str]:
        """List the tags that a repository has at its registry."""
        ...

    async def push(
        self, ref: str, *, auth: Mapping[str, str] | None = None, progress: Any = None, platform: str = ""
    ) -> str:
        """Send an image, or only its part for a platform, to the registry that its name says; return the digest."""
        ...

    async def prune_images(self, ids: Sequence[str]) -> tuple[Sequence[str], int]:
        """Remove images that no container uses, and what pulls left half done: (what went, bytes given back)."""
        ...

    async def usage(self, ref: str) -> tuple[Detail, Mapping[str, Sequence[int]], int]:
        """Read all counters of a running container, its traffic, and the machine's CPU time. Raises Conflict, NotFound."""
        ...

    def log_path(self, ref: str) -> str:
        """Say where a container's log is."""
        ...

    def log_size(self, ref: str) -> int:
        """Count the bytes on disk of a container's log, with its rotated files."""
        ...

    async def written(self, ref: str) -> int:
        """Count the bytes on disk that a container has written to its own layer."""
        ...

    async def layers_size(self) -> int:
        """Count the bytes on disk of all unpacked layers."""
        ...

    def events(self, *, since: float = 0.0) -> AsyncIterator[EngineEvent]:
        """Yield what happens from now on; with `since`, a time, first what is remembered from then on."""
        ...

    async def size_of(self, directory: str) -> int:
        """Count the bytes on disk below a directory."""
        ...

    async def empty_trash(self) -> None:
        """Have what was removed leave the disk now."""
        ...

    async def pause(self, ref: str) -> None:
        """Stop all processes of a container where they are. Raises Conflict when it does not run, or is paused."""
        ...

    async def unpause(self, ref: str) -> None:
        """Let them go on. Raises Conflict when it is not paused."""
        ...

    async def rename(self, ref: str, name: str) -> None:
        """Give a container another name. Raises Invalid, AlreadyExists."""
        ...

    async def update(
        self,
        ref: str,
        *,
        limits: Limits | None = None,
        restart: str | None = None,
        asked: Mapping[str, Any] | None = None,
    ) -> None:
        """Give a container other limits, at once where it runs, or another restart policy. Raises Invalid, Broken.

        `asked` replaces what its spec shows as the client wrote it.
        """
        ...

    async def reshape(
        self,
        ref: str,
        *,
        ports: Sequence[PortBinding] | None,
        mounts: Sequence[Mount] | None,
        env: Sequence[str] | None,
        asked: Mapping[str, Any],
    ) -> None:
        """Give a stopped container other ports, mounts or variables; None leaves them. Raises Conflict, Invalid."""
        ...

    async def top(self, ref: str, words: str) -> tuple[Sequence[str], Sequence[Sequence[str]]]:
        """List the processes of a container by ps with options `words`: (titles, rows). Raises Invalid, Conflict."""
        ...

    async def diff(self, ref: str) -> Sequence[Change]:
        """List what a container has changed against its image."""
        ...

    async def look(self, ref: str, path: str) -> PathStat:
        """Look at a path in a container, running or not. Raises NotFound."""
        ...

    def read_files(self, ref: str, path: str) -> AsyncIterator[bytes]:
        """Yield a tar of what is at a path in a container."""
        ...

    async def write_files(
        self, ref: str, path: str, body: AsyncIterator[bytes], *, own: bool = False, keep_kinds: bool = False
    ) -> None:
        """Unpack a tar into a directory of a container; `own`: it all belongs to the container's user. Raises NotFound,
        Invalid, Damaged, Broken. With `keep_kinds` no directory becomes a file or the other way round.
        """
        ...

    def export(self, ref: str) -> AsyncIterator[bytes]:
        """Yield a tar of a container's whole root, without what is mounted in it."""
        ...

    async def commit(
        self, ref: str, names: Sequence[str], config: Mapping[str, Any], *, author: str, message: str, pause: bool
    ) -> Image:
        """Make an image of a container as it is now, with the settings `config`."""
        ...

    async def import_image(
        self,
        body: AsyncIterator[bytes],
        names: Sequence[str],
        config: Mapping[str, Any],
        *,
        message: str,
        platform: str,
    ) -> Image:
        """Make an image of one layer out of a tar of a file system. Raises Damaged, Invalid."""
        ...

    async def resize(self, ref: str, rows: int, columns: int) -> None:
        """Set the size of a container's terminal. Raises Conflict when it does not run."""
        ...

    async def load(
        self, archive: AsyncIterator[bytes], *, platform: str = "", renamed: Callable[[str, str], None] | None = None
    ) -> Sequence[Image]:
        """Read a tar of images (`docker save`, or an OCI layout); return what is new or named anew.

        `renamed` hears of each name that another image had: (name, that image's id).
        """
        ...

    def save(self, refs: Sequence[str], *, platform: str = "") -> AsyncIterator[bytes]:
        """Yield a tar of images. Raises NotFound before the first byte."""
        ...
