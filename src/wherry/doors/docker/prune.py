"""Docker's endpoints that give disk space back, and the one that shows who has it: prune, `system df`."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from wherry.clock import machine
from wherry.doors.docker import answers, filters, image_shapes
from wherry.doors.docker.cache import Cache
from wherry.doors.docker.engine import DockerEngine
from wherry.doors.docker.images import shared_bytes
from wherry.doors.docker.requests import version_of
from wherry.doors.docker.times import read_moment
from wherry.doors.docker.volumes import show, volume_users
from wherry.engine.types import State
from wherry.errors import BadRequest, Conflict, NotFound
from wherry.wire.http import Request, Response
from wherry.wire.router import Route

CONTAINERS = ("until", "label", "label!")
IMAGES = ("until", "label", "label!", "dangling")
KINDS = ("container", "image", "volume", "build-cache")


class Prune:
    """The handlers."""

    def __init__(self, engine: DockerEngine, cache: Cache) -> None:
        self._engine = engine
        self._cache = cache

    def routes(self) -> tuple[Route, ...]:
        """All endpoints of this module."""
        return (
            Route("POST", "/containers/prune", self._containers),
            Route("POST", "/images/prune", self._images),
            Route("GET", "/system/df", self._usage),
        )

    async def _containers(self, request: Request) -> Response:
        wanted = _parse(request, CONTAINERS)
        gone: list[str] = []
        freed = 0
        for each in await self._engine.containers():
            stands = each.state in (State.CREATED, State.EXITED) and not each.restarting
            if not stands or each.spec.sandbox or not _matches(each.created, each.spec.labels, wanted):
                continue  # containers of pods are their node's to remove
            size = await self._engine.written(each.id) + self._engine.log_size(each.id)
            with suppress(Conflict, NotFound):  # started or removed meanwhile
                await self._engine.remove(each.id)
                gone.append(each.id)
                freed += size
        await self._engine.settled()  # what was promised is on the disk's free space when we answer
        self._engine.tell("container", "prune", "", {"reclaimed": str(freed)})
        return Response.json({"ContainersDeleted": gone or None, "SpaceReclaimed": freed})

    async def _images(self, request: Request) -> Response:
        wanted = _parse(request, IMAGES)
        only_nameless = not any(value in ("0", "false") for value in wanted.get("dangling", ()))
        used = {container.image_id for container in await self._engine.containers()}
        going: list[str] = []
        for each in await self._engine.images():
            labels = (each.config.get("config") or {}).get("Labels") or {}
            if each.id in used or (only_nameless and each.names) or not _matches(each.created, labels, wanted):
                continue
            going.append(each.id)
        removed, freed = await self._engine.prune_images(going)
        await self._engine.settled()
        lines = [dict([line.split(": ", 1)]) for line in removed]
        self._engine.tell("image", "prune", "", {"reclaimed": str(freed)})
        return Response.json({"ImagesDeleted": lines or None, "SpaceReclaimed": freed})

    async def _usage(self, request: Request) -> Response:
        asked = set(request.all("type"))
        if unknown := asked - set(KINDS):
            raise BadRequest(f"unknown object type: {min(unknown)}")
        everything = not asked
        containers = await self._engine.containers()
        answer: dict[str, Any] = {"LayersSize": 0, "Images": [], "Containers": [], "Volumes": [], "BuildCache": []}
        if everything or "image" in asked:
            users: dict[str, int] = {}
            for container in containers:
                users[container.image_id] = users.get(container.image_id, 0) + 1
            images = await self._engine.images()
            shared = shared_bytes(images)
            answer["LayersSize"] = await self._engine.layers_size()
            answer["Images"] = [
                image_shapes.summary(image, version_of(request.path), containers=users.get(image.id, 0))
                | {"SharedSize": shared[image.id]}
                for image in images
            ]
        if everything or "container" in asked:  # what it has written, its log too: all that goes with it
            sizes_of_images = {image.id: image.size_bytes for image in await self._engine.images()}
            for container in containers:
                written = await self._engine.written(container.id) + self._engine.log_size(container.id)
                summary = answers.container_summary(container, machine.now())
                whole = sizes_of_images.get(container.image_id, 0) + written
                answer["Containers"].append(summary | {"SizeRw": written, "SizeRootFs": whole})
        if everything or "volume" in asked:
            named = await volume_users(self._engine)
            for volume in self._engine.volumes.all():
                size = await self._engine.size_of(volume.place)
                usage = {"Size": size, "RefCount": len(named.get(volume.name, ()))}
                answer["Volumes"].append(show(volume) | {"UsageData": usage})
        if everything or "build-cache" in asked:
            answer["BuildCache"] = await self._cache.rows()
        return Response.json(answer)


def _parse(request: Request, known: Sequence[str]) -> filters.Filters:
    wanted = filters.parse(request.first("filters"), known)
    if len(wanted.get("until", ())) > 1:
        raise BadRequest("more than one until filter specified")
    return wanted


def _matches(created: float, labels: Mapping[str, str], wanted: filters.Filters) -> bool:
    for text in wanted.get("until", ()):
        if created > read_moment(text, "until", machine.now()):
            return False
    if not filters.has_labels(labels, wanted.get("label", ())):
        return False
    return not any(filters.has_labels(labels, [each]) for each in wanted.get("label!", ()))
