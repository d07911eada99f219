"""A store's directory: which files there are, who may open it, and how a name on disk becomes certain.

`log-N.db` holds the revisions from N up to the next log's first; the last log is the head, all others are sealed and
never change. `snapshot-N.db` is the whole state at revision N. Because a log ends where the next begins, a fork is
links to logs and snapshots plus an empty log that begins where it was cut.
"""

import fcntl
import os
import re
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from wherry.errors import Unavailable

_NAME = re.compile(r"(log|snapshot)-(\d{20})\.db")
SIDE_FILES = ("-wal", "-shm", "-journal")


@dataclass(frozen=True, slots=True)
class Numbered:
    """A log (`revision` is its first) or a snapshot (the revision it shows)."""

    revision: int
    path: Path

    @property
    def size_bytes(self) -> int:
        """The size of the file."""
        return self.path.stat().st_size


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_file(path: Path) -> None:
    """Make the bytes of a file durable."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def link_or_copy(source: Path, target: Path) -> None:
    """Give a file that never changes a second name; where names cannot be shared (another file system) copy it."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
        sync_file(target)


class Directory:
    """The files of one store."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def log(self, first: int) -> Path:
        """The path of the log that begins with revision `first`."""
        return self.root / f"log-{first:020d}.db"

    def snapshot(self, revision: int) -> Path:
        """The path of the snapshot at `revision`."""
        return self.root / f"snapshot-{revision:020d}.db"

    def logs(self) -> list[Numbered]:
        """All logs, oldest first; the last is the head."""
        return self._numbered("log")

    def snapshots(self) -> list[Numbered]:
        """All snapshots, oldest first."""
        return self._numbered("snapshot")

    def remove(self, path: Path) -> None:
        """Unlink a log or snapshot with what SQLite keeps beside it."""
        for name in (path, *(Path(f"{path}{side}") for side in SIDE_FILES)):
            with suppress(FileNotFoundError):
                name.unlink()

    def sweep(self) -> None:
        """Remove half-made files of a process that died."""
        for path in self.root.glob("*.tmp*"):
            path.unlink()

    def sync(self) -> None:
        """Make the names durable."""
        sync_directory(self.root)

    def _numbered(self, what: str) -> list[Numbered]:
        matches = ((_NAME.fullmatch(path.name), path) for path in self.root.iterdir())
        return sorted(
            (Numbered(int(match[2]), path) for match, path in matches if match and match[1] == what),
            key=lambda numbered: numbered.revision,
        )


class Lock:
    """The right to open a directory, held by one process at a time; the kernel lets go of it when that process dies."""

    def __init__(self, root: Path) -> None:
        path = root / "lock"
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.read(self._fd, 20).decode("ascii", "replace").strip() or "unknown"
            os.close(self._fd)
            raise Unavailable(
                f"store {root}: process {holder} has it open (lock file {path}); "
                "stop that one (`wherry down`), or use another root (--root)"
            ) from None
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Let others open the directory."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
