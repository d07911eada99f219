"""The inside of containers, for people's files: cp, export, commit. A container that does not run is mounted meanwhile."""

import asyncio
import os
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any

from wherry.clock import machine, rfc3339_nano
from wherry.content.names import parse_name
from wherry.content.pack import as_layer, pack_upper
from wherry.content.protocol import Content, Digest
from wherry.engine import archive, users
from wherry.engine import spec as specs
from wherry.engine.containers import Containers
from wherry.engine.images import LEASE_S, Images
from wherry.engine.lives import Life
from wherry.engine.paths import Paths
from wherry.engine.runs import Runs
from wherry.engine.snapshots import Snapshots
from wherry.engine.types import Image
from wherry.engine.volumes import Volumes
from wherry.errors import Broken, Conflict, Invalid, NotFound
from wherry.host import engine_calls, idmaps, mounts, processes
from wherry.host.idmaps import IdRange


class Insides:
    """Reads and writes below the roots of one engine's containers."""

    def __init__(
        self,
        paths: Paths,
        containers: Containers,
        runs: Runs,
        snapshots: Snapshots,
        images: Images,
        volumes: Volumes,
        content: Content,
    ) -> None:
        self._paths = paths
        self._containers = containers
        self._runs = runs
        self._snapshots = snapshots
        self._images = images
        self._volumes = volumes
        self._content = content

    async def look(self, life: Life, path: str) -> archive.PathStat:
        """Look at a path. Raises NotFound."""
        async with self._root(life) as (root, _):
            return await asyncio.to_thread(archive.look, root, path)

    async def read(self, life: Life, path: str) -> AsyncIterator[bytes]:
        """Yield a tar of what is at a path."""
        async with self._root(life) as (root, ids):
            async for piece in _threaded(archive.read(root, path, ids)):
                yield piece

    async def write(self, life: Life, path: str, body: AsyncIterator[bytes], *, own: bool, keep_kinds: bool) -> None:
        """Unpack a tar into the directory at a path; `own`: everything belongs to the container's user."""
        with tempfile.TemporaryFile(dir=self._paths.trash) as file:
            try:
                async for part in body:
                    await asyncio.to_thread(file.write, part)
                file.flush()
            except OSError as error:
                raise Broken(
                    f"archive for {life.record.name}: it cannot be kept meanwhile: {error.strerror}"
                ) from error
            async with self._root(life, writing=path) as (root, ids):
                owner = None
                if own:
                    image = await self._images.known(Digest(life.record.image_digest))
                    who = users.look_up(root, specs.user_of(life.record.spec, image.config), ())
                    owner = (who.uid, who.gid)

                def write() -> None:
                    archive.write(root, path, file.fileno(), owner=owner, keep_kinds=keep_kinds, ids=ids)

                await (asyncio.to_thread(write) if ids is None else idmaps.as_root_of_async(ids, write))

    async def export(self, life: Life) -> AsyncIterator[bytes]:
        """Yield a tar of its whole root, without what is mounted in it."""
        async with self._root(life, with_mounts=False) as (root, ids):
            async for piece in _threaded(archive.read_tree(root, ids)):
                yield piece
        self._containers.tell(life, "export")

    async def commit(
        self, life: Life, names: Sequence[str], config: Mapping[str, Any], *, author: str, message: str, pause: bool
    ) -> Image:
        """Make an image of a container as it is: its image's layers, and what it changed. `config`: the image's settings."""
        record = life.record
        known = await self._images.known(Digest(record.image_digest))
        lease = await self._content.lease(seconds=LEASE_S)
        try:
            async with life.lock:
                sandbox = self._containers.sandbox_of(record)
                hold = pause and life.is_running and not life.record.paused and sandbox is not None
                if hold and sandbox is not None:
                    try:
                        await self._runs.freeze(record, sandbox, frozen=True)
                    except NotFound:
                        hold = False  # it has just ended
                try:
                    upper = self._paths.container(record.id) / "upper"
                    upper.mkdir(parents=True, exist_ok=True)
                    layer = await pack_upper(self._content, upper, lease=lease, exclude=record.mount_points)
                finally:
                    if hold and sandbox is not None:
                        await asyncio.shield(self._runs.freeze(record, sandbox, frozen=False))
            now = rfc3339_nano(machine.now())
            old = known.config
            entry = {"created": now, "author": author, "created_by": " ".join(record.argv), "comment": message}
            document = {
                **old,
                "created": now,
                "author": author,
                "config": dict(config),
                "rootfs": {"type": "layers", "diff_ids": [*(diff for _, diff in known.layers), layer.diff_id]},
                "history": [*(old.get("history") or ()), {key: value for key, value in entry.items() if value}],
            }
            layers = [*(blob for blob, _ in known.layers), layer.digest]
            image = await self._images.commit(document, layers, names)
        finally:
            await self._content.end_lease(lease)
        said = {
            "comment": message,
            "imageID": image.id,
            "imageRef": ",".join(parse_name(name).familiar for name in names),
        }
        self._containers.tell(life, "commit", **said)
        return image

    async def take(
        self,
        body: AsyncIterator[bytes],
        names: Sequence[str],
        config: Mapping[str, Any],
        *,
        message: str,
        platform: str,
    ) -> Image:
        """Make an image of one layer out of a tar of a file system, compressed or not. Raises Damaged, Invalid."""
        lease = await self._content.lease(seconds=LEASE_S)
        try:
            writer = await self._content.ingest(lease=lease)
            try:
                async for part in body:
                    await writer.write(part)
                blob = await writer.commit()
            finally:
                await writer.abort()
            layer, diff_id = await as_layer(self._content, blob.digest, lease=lease)
            now = rfc3339_nano(machine.now())
            system, _, architecture = platform.partition("/")
            machines = {"x86_64": "amd64", "aarch64": "arm64"}
            document = {
                "created": now,
                "architecture": architecture or machines.get(os.uname().machine, os.uname().machine),
                "os": system or "linux",
                "config": dict(config),
                "rootfs": {"type": "layers", "diff_ids": [diff_id]},
                "history": [{"created": now, "comment": message or "Imported from -"}],
            }
            return await self._images.commit(document, [layer], names)
        finally:
            await self._content.end_lease(lease)

    @asynccontextmanager
    async def _root(
        self, life: Life, *, with_mounts: bool = True, writing: str = ""
    ) -> AsyncGenerator[tuple[int, IdRange | None]]:
        """Open a container's root: as its process sees it where it has one, else mounted for as long as this is entered.

        Nobody can start it while it is mounted; one that runs is not held up. Beside the descriptor: the ids that owners are
        seen with there; None where they are as on the disk.
        """
        async with AsyncExitStack() as stack:
            root, ids = -1, None
            async with life.lock:
                run, record = life.run, life.record
                running = run is not None and not run.ended.is_set()
                if run is not None and running:
                    bundle = self._paths.bundle(record.id)
                    sandbox = self._containers.sandbox_of(record)
                    ids = sandbox.ids if sandbox is not None else None
                    root = _open(f"/proc/{run.process.pid}/root" if with_mounts else str(bundle / "rootfs"))
                    stack.callback(os.close, root)
                    if not processes.is_alive(run.process):
                        raise Conflict(f"container {record.name}: it has just ended; try again")
            if not running:
                await stack.enter_async_context(life.lock)
                if life.run is not None:
                    if not life.run.ended.is_set():
                        raise Conflict(f"container {record.name}: it has just been started; try again")
                    await life.run.cleared.wait()
                stack.push_async_callback(self._unmount, record.id)
                root = await self._mount(life, with_mounts=with_mounts, writing=writing)
                stack.callback(os.close, root)
            yield root, ids

    async def _unmount(self, id: str) -> None:
        await asyncio.shield(self._runs.clear_bundle(id))

    async def _mount(self, life: Life, *, with_mounts: bool, writing: str) -> int:
        record = life.record
        if writing and record.spec.read_only_root and not _is_below_a_mount(life, writing):
            raise Invalid(f"container {record.name}: its root is read-only")
        bundle = self._paths.bundle(record.id)
        bundle.mkdir(mode=0o700, exist_ok=True)
        known = await self._images.known(Digest(record.image_digest))
        await self._snapshots.ensure(known.layers, f"container {record.name}")
        self._snapshots.mount(record.id, record.layers)
        root = _open(str(bundle / "rootfs"))
        try:
            for mount in sorted(record.spec.mounts, key=lambda each: each.target.count("/")):
                if with_mounts and mount.kind in ("bind", "volume"):
                    source = str(self._volumes.place(mount.source)) if mount.kind == "volume" else mount.source
                    _bind(root, source, mount.target, read_only=mount.read_only)
        except BaseException:
            os.close(root)
            raise
        return root


def _is_below_a_mount(life: Life, path: str) -> bool:
    return any(
        mount.kind in ("bind", "volume")
        and not mount.read_only
        and f"{path}/".startswith(mount.target.rstrip("/") + "/")
        for mount in life.record.spec.mounts
    )


def _open(place: str) -> int:
    try:
        return os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise Conflict(f"{place}: the container's root is not there: {error.strerror}") from error


def _bind(root: int, source: str, target: str, *, read_only: bool) -> None:
    try:
        place = engine_calls.open_beneath(root, target, os.O_PATH)
    except OSError:
        return  # the image has no such place, and the container never ran: there is nothing to see there
    try:
        if os.path.exists(source):
            mounts.bind(source, f"/proc/self/fd/{place}", read_only=read_only)
    finally:
        os.close(place)


async def _threaded(parts: Generator[bytes]) -> AsyncIterator[bytes]:
    """Gather the pieces of a blocking iterator in threads, about a mebibyte at a time."""

    def gather() -> bytes:
        found: list[bytes] = []
        have = 0
        for part in parts:
            found.append(part)
            have += len(part)
            if have >= archive.PIECE_BYTES:
                break
        return b"".join(found)

    try:
        while piece := await asyncio.to_thread(gather):
            yield piece
    finally:
        with suppress(ValueError):  # at work in its thread: it closes when that is done
            parts.close()
