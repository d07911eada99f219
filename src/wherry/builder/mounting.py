"""The mounts of a RUN, made ready: caches that stay, binds that are thrown away, secrets that never touch a disk."""

import asyncio
import hashlib
import os
import shutil
import tempfile
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from wherry.builder.adding import materialise
from wherry.builder.agents import lent
from wherry.builder.flights import Flights
from wherry.builder.operations import Run, RunMount
from wherry.builder.selection import CopyError, Source
from wherry.engine.types import Mount

MEMORY = Path("/dev/shm")
"""A file system in memory, for secrets; where there is none, the build's scratch has to do."""
CACHES_BUDGET_BYTES = 10 * 1024**3
Sources = Mapping[RunMount, Sequence[Source]]


@dataclass(slots=True)
class Prepared:
    """What the container gets: mounts, variables, and variables whose values are in files, since no record may have them."""

    mounts: list[Mount] = field(default_factory=list[Mount])
    env_files: dict[str, str] = field(default_factory=dict[str, str])
    env: list[str] = field(default_factory=list[str])


class Mounts:
    """The cache mounts of one builder, below `root`, and everything else that a RUN mounts."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._flights = Flights()
        owner = hashlib.sha256(str(root.absolute()).encode()).hexdigest()[:16]
        self._prefix = f"wherry-secrets-{owner}-"

    def start(self) -> None:
        """Remove the secrets of builds that were killed."""
        if MEMORY.is_dir():
            for left in MEMORY.glob(f"{self._prefix}*"):
                shutil.rmtree(left, ignore_errors=True)

    @asynccontextmanager
    async def ready(
        self,
        run: Run,
        sources: Sources,
        secrets: Mapping[str, bytes],
        platform: str,
        scratch: Path,
        agents: Mapping[str, str] | None = None,
    ) -> AsyncGenerator[Prepared]:
        """Give the mounts of one RUN until its end. `sources` has what each bind shows, or a cache begins with.

        `agents` are sockets of SSH agents by id. Raises CopyError for a required secret or agent that was not given.
        """
        made = Prepared()
        async with AsyncExitStack() as stack:
            for mount in sorted(run.mounts, key=lambda each: (each.kind, each.id)):  # locks in one order
                match mount.kind:
                    case "tmpfs":
                        size = [f"size={mount.size_bytes}"] if mount.size_bytes else []
                        made.mounts.append(Mount(mount.target, kind="tmpfs", options=["mode=1777", *size, "exec"]))
                    case "cache":
                        place = await stack.enter_async_context(self._cache(mount, sources.get(mount, ()), platform))
                        made.mounts.append(Mount(mount.target, str(place), read_only=mount.read_only))
                    case "bind":
                        place = await asyncio.to_thread(_bind, sources[mount], scratch)
                        made.mounts.append(Mount(mount.target, str(place), read_only=mount.read_only))
                    case "ssh":
                        await self._agent(stack, made, mount, agents or {}, scratch)
                    case _:
                        self._secret(stack, made, mount, secrets, scratch)
            if run.script is not None:
                name, text = run.script
                place = Path(tempfile.mkdtemp(prefix="script-", dir=scratch)) / name
                place.write_text(text)
                place.chmod(0o755)
                made.mounts.append(Mount(f"/dev/pipes/{name}", str(place), read_only=True))
            yield made

    async def kept(self) -> Sequence[tuple[str, int, float]]:
        """List the cache mounts: (name, bytes, last use in unix seconds)."""

        def look() -> Sequence[tuple[str, int, float]]:
            places = list(self._root.iterdir()) if self._root.is_dir() else []
            return [(place.name, _size(place), place.stat().st_mtime) for place in places]

        return await asyncio.to_thread(look)

    async def forget(self, names: Sequence[str]) -> Sequence[str]:
        """Remove some cache mounts; return which: not those that a build is using."""

        def work() -> Sequence[str]:
            gone = [name for name in names if (self._root / name).is_dir() and not self._flights.taken(name)]
            for name in gone:
                shutil.rmtree(self._root / name, ignore_errors=True)
            return gone

        return await asyncio.to_thread(work)

    async def trim(self, budget_bytes: int = CACHES_BUDGET_BYTES) -> int:
        """Remove the cache mounts that were used longest ago until the rest fits; return the bytes that went."""
        return await asyncio.to_thread(self._trim, budget_bytes)

    def _trim(self, budget_bytes: int) -> int:
        if not self._root.is_dir():
            return 0
        kept = sorted(((place.stat().st_mtime, place) for place in self._root.iterdir()), reverse=True)
        room, gone = budget_bytes, 0
        for _, place in kept:
            size = _size(place)
            room -= size
            if (room < 0 or budget_bytes == 0) and not self._flights.taken(place.name):
                shutil.rmtree(place, ignore_errors=True)
                gone += size
        return gone

    @asynccontextmanager
    async def _cache(self, mount: RunMount, begins: Sequence[Source], platform: str) -> AsyncGenerator[Path]:
        """Give the directory of a cache mount: `ID.0`, and for private ones that are taken `ID.1` and so on."""
        id = hashlib.sha256(f"{platform}\0{mount.id}".encode()).hexdigest()[:32]
        number = 0
        while mount.sharing == "private" and self._flights.taken(f"{id}.{number}"):
            number += 1
        name = f"{id}.{number}"
        async with AsyncExitStack() as stack:
            if mount.sharing != "shared":
                await stack.enter_async_context(self._flights.only(name))
            yield await asyncio.to_thread(self._cache_directory, name, mount, begins)

    def _cache_directory(self, name: str, mount: RunMount, begins: Sequence[Source]) -> Path:
        self._root.mkdir(parents=True, exist_ok=True)
        place = self._root / name
        if not place.is_dir():
            making = Path(tempfile.mkdtemp(prefix="making-", dir=self._root))
            making.chmod(mount.mode)
            if os.geteuid() == 0:
                os.chown(making, mount.uid, mount.gid)
            materialise(begins, making)
            try:
                making.rename(place)
            except OSError:  # another build was first
                shutil.rmtree(making, ignore_errors=True)
        os.utime(place)
        return place

    def _secret(
        self, stack: AsyncExitStack, made: Prepared, mount: RunMount, secrets: Mapping[str, bytes], scratch: Path
    ) -> None:
        value = secrets.get(mount.id)
        if value is None:
            if mount.required:
                raise CopyError(
                    f"RUN --mount: the secret {mount.id!r} is required, and was not given (--secret id=...)"
                )
            return
        place = self._hidden(stack, scratch) / "value"
        fd = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(fd, "wb") as file:
            file.write(value)
        place.chmod(mount.mode)
        if os.geteuid() == 0:
            os.chown(place, mount.uid, mount.gid)
        if mount.env:
            made.env_files[mount.env] = str(place)
        if mount.target:
            made.mounts.append(Mount(mount.target, str(place), read_only=True))

    async def _agent(
        self, stack: AsyncExitStack, made: Prepared, mount: RunMount, agents: Mapping[str, str], scratch: Path
    ) -> None:
        agent = agents.get(mount.id)
        if agent is None:
            if mount.required:
                raise CopyError(
                    f"RUN --mount: the SSH agent {mount.id!r} is required, and was not given (--ssh {mount.id})"
                )
            return
        place = self._hidden(stack, scratch) / "agent"  # a short path: a socket's has 107 bytes at most
        await stack.enter_async_context(lent(agent, place, mode=mount.mode, uid=mount.uid, gid=mount.gid))
        made.mounts.append(Mount(mount.target, str(place)))
        if not made.env:
            made.env.append(f"SSH_AUTH_SOCK={mount.target}")

    def _hidden(self, stack: AsyncExitStack, scratch: Path) -> Path:
        """A directory in memory until the step ends."""
        where = MEMORY if MEMORY.is_dir() and os.access(MEMORY, os.W_OK) else scratch
        folder = Path(tempfile.mkdtemp(prefix=self._prefix, dir=where))
        stack.callback(shutil.rmtree, folder, True)
        return folder


def _bind(sources: Sequence[Source], scratch: Path) -> Path:
    """Copy what a bind shows: a directory, or one file."""
    folder = Path(tempfile.mkdtemp(prefix="bind-", dir=scratch))
    folder.chmod(0o755)
    materialise(sources, folder)
    only = sources[0] if len(sources) == 1 else None
    return folder / only.name if only is not None and only.node.kind != "dir" else folder


def _size(place: Path) -> int:
    total = 0
    for folder, _, names in os.walk(place):
        for name in names:
            try:
                total += os.lstat(os.path.join(folder, name)).st_blocks * 512
            except OSError:
                continue
    return total
