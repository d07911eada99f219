"""Volumes: directories that outlive containers.

`ROOT/volumes/NAME` holds `volume.json` (labels, options) and `_data`. There is no other list: a volume appears by a
rename when it is whole, and goes by one into the trash. While an empty volume gets what an image has at its place,
`filling` is being copied to; as `filled` it is whole and its entries move into `_data`, if need be at the next start.
"""

import asyncio
import logging
import os
import re
import secrets
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec

from wherry.clock import machine
from wherry.engine.copying import copy_attributes, copy_tree
from wherry.engine.events import Events
from wherry.engine.paths import Paths
from wherry.engine.records import ContainerRecord
from wherry.engine.trash import Trash
from wherry.engine.types import Volume
from wherry.errors import Broken, Conflict, Invalid, NotFound, Unsupported
from wherry.host import engine_calls

log = logging.getLogger(__name__)

_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,254}")


class _Body(msgspec.Struct, frozen=True):
    """volume.json."""

    created: float = 0.0
    labels: dict[str, str] = {}
    options: dict[str, str] = {}
    anonymous: bool = False


def check_name(name: str) -> None:
    """Raise Invalid for what cannot be a volume's name."""
    if _NAME.fullmatch(name) is None:
        raise Invalid(f"volume {name!r}: letters, digits, '_', '.' and '-', beginning with a letter or digit")


def check_options(options: Mapping[str, str]) -> None:
    """Refuse options of the local driver that are not carried out: only a directory of this machine by `o=bind`."""
    if not options:
        return
    words = set(options.get("o", "").split(","))
    unknown = sorted(set(options) - {"type", "o", "device"})
    if unknown:
        raise Unsupported(f"volume option {unknown[0]!r} is not supported by wherry")
    if (
        options.get("type", "none") not in ("none", "bind")
        or not words & {"bind", "rbind"}
        or words - {"bind", "rbind"}
    ):
        raise Unsupported(f"volume options {dict(options)}: only type=none, o=bind, device=/directory are supported")
    if not options.get("device", "").startswith("/"):
        raise Invalid(f"volume option device={options.get('device', '')!r}: an absolute path is wanted")


class Volumes:
    """The volumes of one engine. `users(name)` names the containers that have one."""

    def __init__(self, paths: Paths, events: Events, trash: Trash, users: Callable[[str], Sequence[str]]) -> None:
        self._directory = paths.volumes
        self._events = events
        self._trash = trash
        self._users = users
        self._locks: dict[str, asyncio.Lock] = {}

    def open(self) -> None:
        """Finish or take back what a kill cut short."""
        for entry in list(os.scandir(self._directory)):
            path = Path(entry.path)
            if entry.name.startswith(".making-"):
                self._trash.put(path)
                continue
            self._trash.put(path / "filling")
            if (path / "filled").is_dir():
                _move(path / "filled", path / "_data")

    def all(self) -> Sequence[Volume]:
        """List them by name."""
        names = sorted(entry.name for entry in os.scandir(self._directory) if _NAME.fullmatch(entry.name))
        return [self.find(name) for name in names]

    def find(self, name: str) -> Volume:
        """Find one. Raises NotFound."""
        directory = self._directory / name
        if _NAME.fullmatch(name) is None or not directory.is_dir():
            raise NotFound(f"get {name}: no such volume")
        body = self._body(directory)
        place = body.options.get("device") or str(directory / "_data")
        created = body.created or directory.stat().st_mtime
        return Volume(name, place, created, body.labels, body.options, body.anonymous)

    def create(
        self,
        name: str = "",
        *,
        labels: Mapping[str, str] | None = None,
        options: Mapping[str, str] | None = None,
        anonymous: bool = False,
    ) -> Volume:
        """Make a volume, or return the one that has the name. Raises Invalid, Unsupported, Conflict for other options."""
        name = name or secrets.token_hex(32)
        check_name(name)
        check_options(options or {})
        directory = self._directory / name
        if directory.is_dir():
            found = self.find(name)
            if options and dict(options) != dict(found.options):
                raise Conflict(f"volume {name}: it exists with other options: {dict(found.options)}")
            return found
        making = self._directory / f".making-{secrets.token_hex(8)}"
        body = _Body(machine.now(), dict(labels or {}), dict(options or {}), anonymous)
        try:
            making.mkdir(mode=0o711)
            (making / "_data").mkdir(mode=0o755)
            (making / "volume.json").write_bytes(msgspec.json.encode(body))
            making.rename(directory)
        except OSError as error:
            shutil.rmtree(making, ignore_errors=True)
            raise Broken(f"volume {name}: cannot be made: {error.strerror} ({error.filename})") from error
        self._events.tell("volume", "create", name, {"driver": "local"})
        return self.find(name)

    def remove(self, name: str, *, force: bool = False) -> None:
        """Take a volume away with what is in it. Raises Conflict when a container has it, NotFound without `force`."""
        try:
            self.find(name)
        except NotFound:
            if force:
                return
            raise
        users = self._users(name)
        if users:
            raise Conflict(f"remove {name}: volume is in use - [{', '.join(users)}]")
        self.drop(name)

    def drop(self, name: str) -> None:
        """Take a volume away, whoever has it; nothing if it is not there. Its files go when the trash is emptied."""
        directory = self._directory / name
        if not directory.is_dir():
            return
        self._trash.put(directory)
        self._locks.pop(name, None)
        self._events.tell("volume", "destroy", name, {"driver": "local"})

    def place(self, name: str) -> Path:
        """Say where a volume's files are; also of one that is not there any more."""
        try:
            return Path(self.find(name).place)
        except NotFound:
            return self._directory / name / "_data"

    def make_for(self, record: ContainerRecord) -> None:
        """Make the volumes that a container is to have and that are not there."""
        for mount in record.spec.mounts:
            if mount.kind == "volume":
                is_own = mount.source in record.anonymous
                options = mount.driver_options
                labels = mount.labels
                self.create(mount.source, labels=labels, options=options, anonymous=is_own)

    async def fill(self, record: ContainerRecord, root: int) -> None:
        """Copy what the image has at a volume's place into each empty volume of a new container.

        `root`: its mounted root, open. Raises Broken.
        """
        for mount in record.spec.mounts:
            if mount.kind == "volume" and mount.copy:
                async with self._locks.setdefault(mount.source, asyncio.Lock()):
                    try:
                        await asyncio.to_thread(self._fill, mount.source, root, mount.target)
                    except OSError as error:
                        raise Broken(
                            f"volume {mount.source}: cannot be filled from the image's {mount.target}: {error}"
                        ) from error

    def _fill(self, name: str, root: int, target: str) -> None:
        place = self.place(name)
        if any(os.scandir(place)):
            return
        try:
            source = engine_calls.open_beneath(root, target, os.O_RDONLY | os.O_DIRECTORY)
        except (FileNotFoundError, NotADirectoryError):
            return
        try:
            here = Path(f"/proc/self/fd/{source}")
            own = self._directory / name
            if place != own / "_data":  # somebody's directory elsewhere: no renames into it
                copy_tree(here, place)
            else:
                filling = own / "filling"
                shutil.rmtree(filling, ignore_errors=True)
                filling.mkdir(mode=0o755)
                copy_tree(here, filling)
                filling.rename(own / "filled")
                _move(own / "filled", place)
            copy_attributes(here, place, os.fstat(source))
        finally:
            os.close(source)

    def _body(self, directory: Path) -> _Body:
        try:
            return msgspec.json.decode((directory / "volume.json").read_bytes(), type=_Body)
        except (FileNotFoundError, msgspec.MsgspecError):  # made before there were any, or cut short by a power loss
            return _Body()


def _move(source: Path, target: Path) -> None:
    for entry in list(os.scandir(source)):
        os.rename(entry.path, target / entry.name)
    source.rmdir()
