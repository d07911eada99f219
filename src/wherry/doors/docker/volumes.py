"""Docker's endpoints about volumes."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from wherry.doors.docker import answers, filters
from wherry.doors.docker.containers import flag, json_body
from wherry.doors.docker.engine import DockerEngine
from wherry.engine.types import Volume
from wherry.errors import BadRequest, NotFound, Unsupported
from wherry.wire.http import Request, Response
from wherry.wire.router import Route

LIST = ("name", "label", "driver", "dangling")
PRUNE = ("label", "label!", "all")
_VERSION = re.compile(r"/v(\d+)\.(\d+)/")


class Volumes:
    """The handlers."""

    def __init__(self, engine: DockerEngine) -> None:
        self._engine = engine

    def routes(self) -> tuple[Route, ...]:
        """All endpoints about volumes."""
        return (
            Route("GET", "/volumes", self._list),
            Route("POST", "/volumes/create", self._create),
            Route("POST", "/volumes/prune", self._prune),
            Route("GET", "/volumes/{name}", self._inspect),
            Route("DELETE", "/volumes/{name}", self._remove),
        )

    async def _list(self, request: Request) -> Response:
        wanted = filters.parse(request.first("filters"), LIST)
        users = await volume_users(self._engine)
        found = [show(each) for each in self._engine.volumes.all() if _matches(each, wanted, users)]
        return Response.json({"Volumes": found, "Warnings": None})

    async def _create(self, request: Request) -> Response:
        body = await json_body(request)
        driver = str(body.get("Driver") or "local")
        if driver != "local":
            raise Unsupported(f"volume driver {driver!r}: only local is supported by wherry")
        if body.get("ClusterVolumeSpec"):
            raise Unsupported("ClusterVolumeSpec: cluster volumes are not supported by wherry")
        labels, options = _strings(body, "Labels"), _strings(body, "DriverOpts")
        name = body.get("Name") or ""
        if not isinstance(name, str):
            raise BadRequest("Name: a string is wanted")
        made = self._engine.volumes.create(name, labels=labels, options=options, anonymous=not name)
        return Response.json(show(made), status=201)

    async def _inspect(self, request: Request) -> Response:
        return Response.json(show(self._engine.volumes.find(request.params["name"])))

    async def _remove(self, request: Request) -> Response:
        self._engine.volumes.remove(request.params["name"], force=flag(request, "force"))
        await self._engine.empty_trash()
        return Response(204)

    async def _prune(self, request: Request) -> Response:
        wanted = filters.parse(request.first("filters"), PRUNE)
        # Before 1.42 every unused volume went; since then the anonymous ones, and all by a filter.
        version = _VERSION.match(request.path)
        old = version is not None and (int(version[1]), int(version[2])) < (1, 42)
        everything = old or any(value in ("1", "true") for value in wanted.get("all", ()))
        users = await volume_users(self._engine)
        gone: list[str] = []
        freed = 0
        for each in self._engine.volumes.all():
            labels_fit = filters.has_labels(each.labels, wanted.get("label", ()))
            spared = bool(wanted.get("label!")) and filters.has_labels(each.labels, wanted["label!"])
            if users.get(each.name) or not labels_fit or spared or not (everything or each.anonymous):
                continue
            freed += await self._engine.size_of(each.place)
            try:
                self._engine.volumes.remove(each.name)
            except NotFound:
                continue
            gone.append(each.name)
        await self._engine.empty_trash()
        self._engine.tell("volume", "prune", "", {"reclaimed": str(freed)})
        return Response.json({"VolumesDeleted": gone, "SpaceReclaimed": freed})


async def volume_users(engine: DockerEngine) -> Mapping[str, Sequence[str]]:
    """Name the containers of each volume."""
    users: dict[str, list[str]] = {}
    for container in await engine.containers():
        for name in container.volumes:
            users.setdefault(name, []).append(container.id)
    return users


def show(volume: Volume) -> dict[str, Any]:
    """A volume in Docker's shape."""
    labels = dict(volume.labels)
    if volume.anonymous:
        labels.setdefault("com.docker.volume.anonymous", "")
    return {
        "CreatedAt": answers.moment(volume.created),
        "Driver": "local",
        "Labels": labels or None,
        "Mountpoint": volume.place,
        "Name": volume.name,
        "Options": dict(volume.options) or None,
        "Scope": "local",
    }


def _matches(volume: Volume, wanted: filters.Filters, users: Mapping[str, Sequence[str]]) -> bool:
    tests = {
        "name": lambda values: any(value in volume.name for value in values),
        "label": lambda values: filters.has_labels(volume.labels, values),
        "driver": lambda values: "local" in values,
        "dangling": lambda values: all((not users.get(volume.name)) == (value in ("1", "true")) for value in values),
    }
    return all(tests[name](values) for name, values in wanted.items())


def _strings(body: Mapping[str, Any], name: str) -> dict[str, str]:
    values = body.get(name) or {}
    if not isinstance(values, dict):
        raise BadRequest(f"{name}: an object is wanted")
    return {str(key): str(value) for key, value in values.items()}
