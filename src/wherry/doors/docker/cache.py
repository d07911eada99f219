"""Docker's endpoints about the build cache: `POST /build/prune`, and its part of `system df`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from wherry.clock import machine, rfc3339_nano
from wherry.doors.docker import filters
from wherry.doors.docker.containers import flag
from wherry.doors.docker.engine import DockerEngine
from wherry.doors.docker.logconfig import read_size
from wherry.doors.docker.times import read_moment
from wherry.errors import BadRequest, Unsupported
from wherry.wire.http import Request, Response
from wherry.wire.router import Route

PRUNE = ("until", "unused-for", "id", "type", "label", "label!")
"""`docker system prune` sends its labels here too; nothing that builds keep has any."""


@dataclass(frozen=True, slots=True)
class Cached:
    """One thing that builds keep: a layer, or (`kind` "exec.cachemount") the files of a cache mount.

    `shared`: an image has the same layer, so that letting go of it frees nothing.
    """

    id: str
    kind: str
    size_bytes: int
    created: float
    used: float
    shared: bool


class BuildCache(Protocol):
    """What builds keep."""

    async def cached(self) -> Sequence[Cached]:
        """List it."""
        ...

    async def forget(self, ids: Sequence[str]) -> Sequence[str]:
        """Let go of some of it, and give the disk back; return what went: not what a build is using."""
        ...


class Cache:
    """The handlers."""

    def __init__(self, engine: DockerEngine, cache: BuildCache) -> None:
        self._engine = engine
        self._cache = cache

    def routes(self) -> tuple[Route, ...]:
        """The endpoint."""
        return (Route("POST", "/build/prune", self._prune),)

    async def rows(self) -> Sequence[Mapping[str, Any]]:
        """List the cache as `system df` shows it."""
        return [_shown(each) for each in await self._cache.cached()]

    async def _prune(self, request: Request) -> Response:
        """Let go of what no image has; with `all` of the rest, too. `keep-storage` keeps the newest of that many bytes."""
        wanted = filters.parse(request.first("filters"), PRUNE)
        room = _room(request)
        everything = flag(request, "all")
        going: list[Cached] = []
        for each in sorted(await self._cache.cached(), key=lambda each: -each.used):
            room -= 0 if each.shared else each.size_bytes
            if room < 0 and (everything or not each.shared) and _matches(each, wanted):
                going.append(each)
        gone = set(await self._cache.forget([each.id for each in going]))
        freed = sum(each.size_bytes for each in going if each.id in gone and not each.shared)
        self._engine.tell("builder", "prune", "", {"reclaimed": str(freed)})
        return Response.json({"CachesDeleted": sorted(gone) or None, "SpaceReclaimed": freed})


def _room(request: Request) -> int:
    for name in ("max-used-space", "min-free-space"):
        if request.first(name) not in (None, "", "0"):
            raise Unsupported(f"{name}: not supported by wherry; keep-storage and reserved-space are")
    text = request.first("reserved-space") or request.first("keep-storage") or "0"
    size = read_size(text)
    if size is None:
        raise BadRequest(f"keep-storage is in bytes and expects an integer, got {text}")
    return size - 1 if size == 0 else size


def _matches(each: Cached, wanted: filters.Filters) -> bool:
    if wanted.get("label"):
        return False
    for name in ("until", "unused-for"):
        for text in wanted.get(name, ()):
            if each.used > read_moment(text, name, machine.now()):
                return False
    ids, kinds = wanted.get("id", ()), wanted.get("type", ())
    return (not ids or any(each.id.startswith(id) for id in ids)) and (not kinds or each.kind in kinds)


def _shown(each: Cached) -> Mapping[str, Any]:
    return {
        "ID": each.id,
        "Type": each.kind,
        "Description": "a layer of a build" if each.kind == "regular" else "files of a cache mount",
        "InUse": False,
        "Shared": each.shared,
        "Size": each.size_bytes,
        "CreatedAt": rfc3339_nano(each.created),
        "LastUsedAt": rfc3339_nano(each.used),
        "UsageCount": 1,
        "Parents": None,
    }
