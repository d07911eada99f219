"""Where the mounts of a container come from on the machine: checked, made where that was asked for, and staged.

What a runtime could not see or use as it is, is bound once more in the bundle: what was mounted after the engine started
(its mount namespace was copied then, see host/spawn.py), parts of volumes and images, files whose owners are shifted.
"""

import os
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from wherry.engine.paths import Paths
from wherry.engine.records import ContainerRecord
from wherry.engine.snapshots import Snapshots
from wherry.engine.types import Mount
from wherry.engine.volumes import Volumes
from wherry.errors import Broken, Invalid, Unsupported
from wherry.host import engine_calls, idmaps, mounts

STAGED = "source-"
IMAGE = "image-"


class Sources:
    """The sources of the mounts of one engine's containers."""

    def __init__(self, paths: Paths, volumes: Volumes, snapshots: Snapshots) -> None:
        self._paths = paths
        self._volumes = volumes
        self._snapshots = snapshots

    def check(self, record: ContainerRecord) -> None:
        """Make the sources that are to be made; refuse those that are not there, and what cannot spread. Raises Invalid."""
        for mount in record.spec.mounts:
            if mount.kind == "volume" and not (place := self._volumes.place(mount.source)).is_dir():
                raise Invalid(f"container {record.name}: volume {mount.source}: its directory {place} is not there")
            if mount.kind != "bind":
                continue
            if mount.create and not os.path.lexists(mount.source):
                os.makedirs(mount.source, exist_ok=True)
            if not os.path.exists(mount.source):
                raise Invalid(
                    f'invalid mount config for type "bind": bind source path does not exist: {mount.source} '
                    f"(container {record.name})"
                )
            _check_spread(record, mount)

    def stage(
        self, record: ContainerRecord, bundle: Path, user_namespace: str, *, is_masked: bool
    ) -> Mapping[str, str]:
        """Say where the source of each mount is that has one beside its own words, by target. Raises Invalid,
        Unsupported, Broken.

        `is_masked`: the runtime lives in a copy of the mount namespace.
        """
        found: dict[str, str] = {}
        for number, mount in enumerate(record.spec.mounts):
            if is_masked and spread_of(mount).lstrip("r") == "shared":
                raise Unsupported(
                    f"container {record.name}: mounts made at {mount.target} would not spread to the machine: on a host "
                    "with cgroup v1 beside v2 crun works in a copy of the mounts; use the runtime runc"
                )
            with ExitStack() as stack:
                match mount.kind:
                    case "bind":
                        source = mount.source
                    case "volume":
                        source = found[mount.target] = str(self._volumes.place(mount.source))
                    case "image":
                        source = found[mount.target] = self._mount_image(record, mount, bundle / f"{IMAGE}{number}")
                    case _:
                        continue
                is_own = bool(user_namespace) and Path(os.path.realpath(source)).is_relative_to(self._paths.root)
                if mount.subpath:
                    source = _part(record, mount, source, stack)
                elif not user_namespace and (not is_masked or mount.kind == "image"):
                    continue
                target = bundle / f"{STAGED}{number}"
                if os.path.isdir(source):
                    target.mkdir()
                else:
                    target.touch()
                if is_own:  # volumes, and what a build keeps: shown with the container's owners
                    idmaps.show(source, str(target), user_namespace)
                else:
                    mounts.follow(source, str(target), recursive=mount.recursive)
                found[mount.target] = str(target)
        return found

    def clear(self, bundle: Path) -> None:
        """Take away what `stage` made. Raises Broken. Repeatable."""
        for staged in [*sorted(bundle.glob(f"{STAGED}*")), *sorted(bundle.glob(f"{IMAGE}*"))]:
            while mounts.unmount(str(staged)):  # somebody's files: never delete what is still mounted
                pass
            try:
                staged.rmdir() if staged.is_dir() else staged.unlink()
            except OSError as error:
                raise Broken(f"{staged}: it is to be an empty mount point: {error.strerror}") from error

    def _mount_image(self, record: ContainerRecord, mount: Mount, place: Path) -> str:
        layers = next(each.layers for each in record.image_mounts if each.target == mount.target)
        place.mkdir()
        self._snapshots.mount_image(str(place), layers)
        return str(place)


def spread_of(mount: Mount) -> str:
    """Say how mounts spread through a bind: "rprivate", unless it says otherwise."""
    return next((word for word in mount.options if word.lstrip("r") in ("private", "shared", "slave")), "rprivate")


def _check_spread(record: ContainerRecord, mount: Mount) -> None:
    spread = spread_of(mount).lstrip("r")
    if spread not in ("shared", "slave"):
        return
    around = mounts.containing(os.path.realpath(mount.source), mounts.table())
    if around.shared or (spread == "slave" and around.is_slave):
        return
    kinds = "a shared mount" if spread == "shared" else "a shared or slave mount"
    raise Invalid(f"path {mount.source} is mounted on {around.target} but it is not {kinds} (container {record.name})")


def _part(record: ContainerRecord, mount: Mount, source: str, stack: ExitStack) -> str:
    """Open a part of a volume or image, which may be hostile: nothing outside of it is ever reached."""
    root = os.open(source, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    stack.callback(os.close, root)
    try:
        part = engine_calls.open_beneath(root, mount.subpath, os.O_PATH)
    except OSError as error:
        raise Invalid(
            f"container {record.name}: cannot access path {mount.subpath} of {mount.kind} {mount.source}: {error.strerror}"
        ) from error
    stack.callback(os.close, part)
    return f"/proc/self/fd/{part}"
