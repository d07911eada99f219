"""Where the engine keeps what. `root` outlives a reboot, `run` need not."""

import fcntl
import os
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from wherry.clock import machine
from wherry.errors import Broken, Unavailable

LOCK_S = 2.0


@dataclass(frozen=True, slots=True)
class Paths:
    """The engine's directories and files."""

    root: Path
    run: Path

    @property
    def records(self) -> Path:
        """The rows of containers and sandboxes."""
        return self.root / "engine.db"

    @property
    def lock(self) -> Path:
        """Locked while an engine has this root."""
        return self.root / "engine.lock"

    @property
    def snapshots(self) -> Path:
        """Unpacked layers."""
        return self.root / "snapshots"

    @property
    def trash(self) -> Path:
        """What is being deleted."""
        return self.root / "trash"

    @property
    def volumes(self) -> Path:
        """Named volumes."""
        return self.root / "volumes"

    @property
    def containers(self) -> Path:
        """What containers wrote, and their logs."""
        return self.root / "containers"

    @property
    def exits(self) -> Path:
        """Exit files, by container id: conmon writes them, inotify tells us."""
        return self.run / "exits"

    @property
    def runtime(self) -> Path:
        """The OCI runtime's own state."""
        return self.run / "runtime"

    @property
    def bundles(self) -> Path:
        """A directory for the present run of each container."""
        return self.run / "containers"

    def bundle(self, id: str) -> Path:
        """config.json, the mounted rootfs, conmon's pid file, sockets and fifos, of a container's present run."""
        return self.bundles / id

    def container(self, id: str) -> Path:
        """`upper` and `work` of its overlay, and its log."""
        return self.containers / id

    def sandbox(self, id: str) -> Path:
        """Pinned namespaces (`ns`), files for /etc, shared memory."""
        return self.run / "sandboxes" / id

    def make(self) -> None:
        """Make all directories, for root alone. Raises Broken."""
        try:
            self._make()
        except OSError as error:
            raise Broken(f"the engine's directory {error.filename} cannot be made: {error.strerror}") from error

    def _make(self) -> None:
        for directory in (self.root, self.run):
            directory.mkdir(parents=True, exist_ok=True)
        for directory in (
            self.snapshots,
            self.trash,
            self.volumes,
            self.containers,
            self.exits,
            self.runtime,
            self.bundles,
            self.run / "sandboxes",
        ):
            directory.mkdir(mode=0o700, exist_ok=True)
        os.close(os.open(self.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))


async def lock(paths: Paths, stack: AsyncExitStack) -> None:
    """Take the root's lock until `stack` closes. Raises Unavailable when another engine has it.

    A child that a killed engine was just spawning has it for a moment, so we ask again.
    """
    fd = os.open(paths.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    stack.callback(os.close, fd)
    deadline = machine.monotonic() + LOCK_S
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if machine.monotonic() > deadline:
                raise Unavailable(
                    f"{paths.root}: another engine has this root; stop it first, or use another --root"
                ) from None
            await machine.sleep(0.02)
