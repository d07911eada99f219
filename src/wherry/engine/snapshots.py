"""Root file systems: layers unpacked once, and overlays of them for containers.

`snapshots/HEX` is one unpacked layer, named by its diff id: what a layer unpacks to does not hang on the layers below it,
so images that share layers share these. It appears by a rename when it is whole. Until it is known to be on disk
(`HEX.new` names the boot that made it) a reboot makes it doubtful, and it is unpacked again.

`HEX.size` says how many bytes its files have.

`snapshots/base` lies below every image: the mount points that every container needs (/proc, /etc/hosts ...). So the
runtime has nothing to make in a container's own layer, and what `diff` finds there is the container's work alone.
"""

import asyncio
import logging
import os
import secrets
import shutil
import stat
from collections import Counter
from collections.abc import Collection, Generator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from wherry.content.digests import parse_digest
from wherry.content.protocol import Content, Digest
from wherry.content.steps import Progress, Step
from wherry.content.unpack import Unpacked
from wherry.content.unpack_child import unpack
from wherry.engine.paths import Paths
from wherry.engine.sinks import LayerSink
from wherry.engine.trash import Trash
from wherry.engine.uppers import settle
from wherry.errors import Broken, Damaged, NotFound
from wherry.host import engine_calls, idmaps, mounts, processes
from wherry.host.idmaps import IdRange

log = logging.getLogger(__name__)

PARALLEL = 3
"""Layers unpacked at once."""
OVERLAY_OPTIONS = {"index": "off", "redirect_dir": "off", "metacopy": "off"}
"""Nothing in an upper directory that a layer cannot say."""
BASE_DIRECTORIES = ("dev", "etc", "proc", "sys")
BASE_FILES = ("etc/hostname", "etc/hosts", "etc/resolv.conf")


class Snapshots:
    """The unpacked layers of one engine."""

    def __init__(self, paths: Paths, content: Content, trash: Trash) -> None:
        self._paths = paths
        self._trash = trash
        self._content = content
        self._locks: dict[str, asyncio.Lock] = {}
        self._slots = asyncio.Semaphore(PARALLEL)
        self._kept: Counter[str] = Counter()
        self._boot_id = processes.boot_id()
        self._sizes: dict[str, int] = {}

    async def open(self) -> None:
        """Make the base; remove half-made layers, and those that a reboot made doubtful. Raises Broken."""
        try:
            self._open()
        except OSError as error:
            raise Broken(f"{error.filename}: the engine cannot write there: {error.strerror}") from error

    def _open(self) -> None:
        base = self._paths.snapshots / "base"
        for name in BASE_DIRECTORIES:
            (base / name).mkdir(parents=True, exist_ok=True)
        for name in BASE_FILES:
            (base / name).touch(mode=0o644)
        engine_calls.spread_directories(str(self._paths.snapshots))
        for entry in list(os.scandir(self._paths.snapshots)):
            if entry.name.startswith("making-"):
                self._trash.put(Path(entry.path))
            elif entry.name.endswith(".new") and Path(entry.path).read_text() != self._boot_id:
                self._trash.put(Path(entry.path.removesuffix(".new")))
                Path(entry.path).unlink()

    async def ensure(self, layers: Sequence[tuple[Digest, str]], what: str, progress: Progress | None = None) -> None:
        """Unpack the layers (blob digest, diff id) that are not unpacked. Raises Damaged, Invalid, NotFound, Broken.

        `progress` hears when each is begun and done.
        """
        missing = [pair for pair in layers if not self._directory(pair[1]).is_dir()]
        if not missing:
            return
        try:
            async with asyncio.TaskGroup() as group:
                for blob, diff_id in dict.fromkeys(missing):
                    group.create_task(self._unpack(blob, diff_id, what, progress), name=f"unpack {diff_id}")
        except BaseExceptionGroup as failed:
            raise failed.exceptions[0] from None

    def has(self, diff_id: str) -> bool:
        """Say whether a layer is unpacked."""
        return self._directory(diff_id).is_dir()

    async def sizes(self, diff_ids: Sequence[str]) -> Sequence[int]:
        """Count the bytes of the files in layers; -1 for one that is not unpacked."""
        return [await self._size(self._directory(diff_id)) for diff_id in diff_ids]

    async def begin(self, file: Path, blob: Digest, diff_id: str, what: str) -> LayerSink | None:
        """Begin to unpack a layer while `file` still grows; None when there are no hands free, or it is unpacked already."""
        target = self._directory(diff_id)
        lock = self._locks.setdefault(target.name, asyncio.Lock())
        if target.is_dir() or lock.locked() or self._slots.locked():
            return None
        await lock.acquire()  # neither of them waits
        await self._slots.acquire()

        def release() -> None:
            self._slots.release()
            lock.release()

        try:
            making = self._make()
            name = f"layer {blob}"
            return LayerSink(
                file, making, name, lambda done: self._place(making, target, done, diff_id, f"{what}: {name}"), release
            )
        except BaseException:
            release()
            raise

    @contextmanager
    def keeping(self, diff_ids: Collection[str]) -> Generator[None]:
        """Keep layers of an image that has no name yet from `collect`."""
        self._kept.update(diff_ids)
        try:
            yield
        finally:
            self._kept.subtract(diff_ids)

    async def adopt(self, upper: Path, diff_id: str, exclude: Collection[str]) -> bool:
        """Take a dead container's upper directory as the unpacked layer that was packed of it, where it can be that.

        The directory is gone then. It lies on the file system of the layers, and nothing is mounted on it any more.
        """
        target = self._directory(diff_id)
        async with self._locks.setdefault(target.name, asyncio.Lock()):
            if target.is_dir():
                return False
            making = self._paths.snapshots / f"making-{secrets.token_hex(8)}"
            try:
                if not await asyncio.to_thread(settle, str(upper), exclude):
                    return False
                upper.rename(making)
                (self._paths.snapshots / f"{target.name}.new").write_text(self._boot_id)
                making.rename(target)
            except OSError as error:
                log.warning("%s: it is not kept as a layer: %s", upper, error)
                return False
            return True

    def lower(self, diff_ids: Sequence[str]) -> list[str]:
        """Name the directories for an overlay of layers (lowest first, as images list them): topmost first, base last."""
        unpacked = [str(self._directory(diff_id)) for diff_id in reversed(diff_ids)]
        return [*dict.fromkeys(unpacked), str(self._paths.snapshots / "base")]

    def mount(self, id: str, diff_ids: Sequence[str]) -> None:
        """Mount a container's root at its bundle's `rootfs`. Raises Broken."""
        own, root = self._paths.container(id), self._paths.bundle(id) / "rootfs"
        for directory in (own / "upper", own / "work", root):
            directory.mkdir(parents=True, exist_ok=True)
        lower = self.lower(diff_ids)
        mounts.overlay(str(root), lower, str(own / "upper"), str(own / "work"), options=OVERLAY_OPTIONS)

    def remount(self, id: str, diff_ids: Sequence[str], ids: IdRange, user_namespace: str) -> None:
        """Mount a container's root anew as those see it who are in a user namespace; on the disk owners stay as they are.

        The overlay keeps what it is made of, so nothing but the root stays mounted. Raises Unsupported, Broken.
        """
        own, bundle = self._paths.container(id), self._paths.bundle(id)
        root, layers, upper = bundle / "rootfs", bundle / "layers", bundle / "own"
        mounts.unmount(str(root))
        for directory in (layers, upper):
            directory.mkdir(exist_ok=True)
        try:
            idmaps.show(str(self._paths.snapshots), str(layers), user_namespace)
            idmaps.show(str(own), str(upper), user_namespace)
            lower = [str(layers / os.path.basename(path)) for path in self.lower(diff_ids)]

            def mount() -> None:
                mounts.overlay(str(root), lower, str(upper / "upper"), str(upper / "work"), options=OVERLAY_OPTIONS)

            idmaps.as_root_of(ids, mount)  # the overlay makes files as whoever mounted it
        finally:
            self.unmount_parts(id)

    def unmount_parts(self, id: str) -> None:
        """Take away what a kill in the middle of `remount` left."""
        for name in ("layers", "own"):
            place = self._paths.bundle(id) / name
            while place.exists() and mounts.unmount(str(place)):
                pass
            with suppress(FileNotFoundError):
                place.rmdir()  # never more than an empty directory: it was a place to mount on

    def mount_image(self, place: str, diff_ids: Sequence[str]) -> None:
        """Mount an image by itself, read-only. Raises Broken."""
        layers = self.lower(diff_ids)[:-1]  # without the base: it is no part of the image
        if len(layers) == 1:
            mounts.bind(layers[0], place, read_only=True)
        else:
            mounts.overlay(place, layers, options=OVERLAY_OPTIONS)

    async def collect(self, used: Collection[str]) -> int:
        """Remove the layers whose diff id is not in `used`; return how many went."""
        coming = [diff_id for diff_id, count in self._kept.items() if count > 0]
        keep = {self._directory(diff_id).name for diff_id in (*used, *coming)} | {"base"}
        gone = 0
        for entry in list(os.scandir(self._paths.snapshots)):
            name = entry.name.removesuffix(".new").removesuffix(".size")
            if name in keep or name.startswith("making-") or ((lock := self._locks.get(name)) and lock.locked()):
                continue
            if entry.name != name:
                Path(entry.path).unlink(missing_ok=True)
                self._sizes.pop(name, None)
            else:
                self._trash.put(Path(entry.path))
                self._locks.pop(name, None)
                gone += 1
        return gone

    async def settle(self) -> None:
        """Have everything unpacked in this boot on disk, so that a reboot leaves it believed."""
        fresh = [Path(entry.path) for entry in os.scandir(self._paths.snapshots) if entry.name.endswith(".new")]
        if fresh:
            await asyncio.to_thread(engine_calls.sync_file_system, str(self._paths.snapshots))
            for mark in fresh:
                mark.unlink(missing_ok=True)

    async def _unpack(self, blob: Digest, diff_id: str, what: str, progress: Progress | None) -> None:
        target = self._directory(diff_id)
        lock = self._locks.setdefault(target.name, asyncio.Lock())
        async with lock, self._slots:
            if target.is_dir():
                return
            found = await self._content.stat(blob)
            if found is None:
                raise NotFound(f"{what}: its layer {blob} is not on this machine; pull the image again")
            if progress is not None:
                progress(Step(blob, "extract", 0, found.size_bytes))
            making = self._make()
            try:
                done = await unpack(self._content.path(blob), making, name=f"layer {blob}")
                self._place(making, target, done, diff_id, f"{what}: layer {blob}")
            finally:
                with suppress(FileNotFoundError):
                    await asyncio.to_thread(shutil.rmtree, making)
            if progress is not None:
                progress(Step(blob, "extract", found.size_bytes, found.size_bytes))
                progress(Step(blob, "unpacked", found.size_bytes, found.size_bytes))
            log.info("%s: unpacked %s, %d bytes", what, blob, done.size_bytes)

    def _make(self) -> Path:
        making = self._paths.snapshots / f"making-{secrets.token_hex(8)}"
        try:
            making.mkdir(mode=0o755)
        except OSError as error:
            raise Broken(f"{making}: a layer cannot be unpacked there: {error.strerror}") from error
        return making

    def _place(self, making: Path, target: Path, done: Unpacked, diff_id: str, what: str) -> None:
        """Show a layer that has been unpacked. Raises Damaged when it is another than its image's config says."""
        if done.diff_id != diff_id:
            raise Damaged(f"{what} unpacks to {done.diff_id}, its config says {diff_id}")
        try:
            (self._paths.snapshots / f"{target.name}.new").write_text(self._boot_id)
            making.rename(target)
        except OSError as error:
            raise Broken(f"{what}: {error.strerror} ({error.filename})") from error
        self._note_size(target, done.file_bytes)

    async def _size(self, layer: Path) -> int:
        found = self._sizes.get(layer.name)
        if found is None:
            if not layer.is_dir():
                return -1
            try:
                found = self._sizes[layer.name] = int(layer.with_name(f"{layer.name}.size").read_text())
            except (OSError, ValueError):  # it was adopted, or a kill came first
                found = await asyncio.to_thread(_file_bytes, str(layer))
                self._note_size(layer, found)
        return found

    def _note_size(self, layer: Path, size_bytes: int) -> None:
        self._sizes[layer.name] = size_bytes
        with suppress(OSError):  # it is counted again then
            layer.with_name(f"{layer.name}.size").write_text(str(size_bytes))

    def _directory(self, diff_id: str) -> Path:
        return self._paths.snapshots / parse_digest(diff_id).partition(":")[2]


def _file_bytes(directory: str) -> int:
    """Count the bytes of the files below a directory, each once, however many names it has."""
    total = 0
    seen: set[int] = set()
    for folder, _, names in os.walk(directory):
        for name in names:
            found = os.lstat(os.path.join(folder, name))
            if stat.S_ISREG(found.st_mode) and found.st_ino not in seen:
                total += found.st_size
                if found.st_nlink > 1:
                    seen.add(found.st_ino)
    return total
