"""Docker's endpoints about the files of a container: archive (cp), export, commit."""

import base64
import stat
from collections.abc import Mapping
from typing import Any

import msgspec

from wherry.clock import rfc3339_nano
from wherry.doors.docker.changes import find
from wherry.doors.docker.containers import flag, json_body
from wherry.doors.docker.engine import DockerEngine
from wherry.doors.docker.images import new_names
from wherry.doors.docker.instructions import changed
from wherry.engine.archive import PathStat
from wherry.engine.types import Container
from wherry.errors import BadRequest, NotFound
from wherry.wire.http import Request, Response
from wherry.wire.router import Route

TAR = {"Content-Type": "application/x-tar"}
_GO_MODES = (
    (stat.S_IFDIR, 1 << 31), (stat.S_IFLNK, 1 << 27), (stat.S_IFBLK, 1 << 26), (stat.S_IFCHR, (1 << 26) | (1 << 21)),
    (stat.S_IFIFO, 1 << 25), (stat.S_IFSOCK, 1 << 24),
)  # fmt: skip
"""Go's os.FileMode, which `X-Docker-Container-Path-Stat` carries. Source: Go, package io/fs, "FileMode"."""


class Archive:
    """The handlers."""

    def __init__(self, engine: DockerEngine) -> None:
        self._engine = engine

    def routes(self) -> tuple[Route, ...]:
        """All endpoints of this module."""
        return (
            Route("HEAD", "/containers/{name}/archive", self._head),
            Route("GET", "/containers/{name}/archive", self._get),
            Route("PUT", "/containers/{name}/archive", self._put),
            Route("GET", "/containers/{name}/export", self._export),
            Route("POST", "/commit", self._commit),
        )

    async def _head(self, request: Request) -> Response:
        container, path = await self._place(request)
        return Response(200, {"X-Docker-Container-Path-Stat": _stat_header(await self._look(container, path))})

    async def _get(self, request: Request) -> Response:
        container, path = await self._place(request)
        seen = await self._look(container, path)
        pieces = self._engine.read_files(container.id, path)
        self._engine.tell_of(container.id, "archive-path", {})
        return Response.stream(pieces, headers={**TAR, "X-Docker-Container-Path-Stat": _stat_header(seen)})

    async def _put(self, request: Request) -> Response:
        container, path = await self._place(request)
        try:
            await self._engine.write_files(
                container.id, path, request.stream(), own=flag(request, "copyUIDGID"),
                keep_kinds=flag(request, "noOverwriteDirNonDir"),
            )  # fmt: skip
        except NotFound:
            raise NotFound(f"Could not find the file {path} in container {container.name}") from None
        self._engine.tell_of(container.id, "extract-to-dir", {})
        return Response(200)

    async def _export(self, request: Request) -> Response:
        container = await find(self._engine, request)
        self._engine.tell_of(container.id, "export", {})
        return Response.stream(self._engine.export(container.id), headers=TAR)

    async def _commit(self, request: Request) -> Response:
        name = request.first("container") or ""
        try:
            container = await self._engine.container(name)
        except NotFound:
            raise NotFound(f"No such container: {name}") from None
        body = await json_body(request)
        image = await self._engine.image(container.image_id)
        config = _config_of(container, image.config.get("config") or {})
        known = {key: value for key, value in body.items() if key in _CONFIG and value not in (None, "", [], {})}
        for key, value in known.items():
            if key in ("Labels", "ExposedPorts", "Volumes") and isinstance(value, dict):
                config[key] = {**(config.get(key) or {}), **value}
            else:
                config[key] = value
        config = changed(config, request.all("changes"))
        made = await self._engine.commit(
            container.id, new_names(request), config, author=request.first("author") or "",
            message=request.first("comment") or "", pause=flag(request, "pause", default=True),
        )  # fmt: skip
        return Response.json({"Id": made.id}, status=201)

    async def _place(self, request: Request) -> tuple[Container, str]:
        container = await find(self._engine, request)
        path = request.first("path")
        if not path:
            raise BadRequest("bad parameter: path cannot be empty")
        return container, path

    async def _look(self, container: Container, path: str) -> PathStat:
        try:
            return await self._engine.look(container.id, path)
        except NotFound:
            raise NotFound(f"Could not find the file {path} in container {container.name}") from None


_CONFIG = (
    "User", "ExposedPorts", "Env", "Cmd", "Volumes", "WorkingDir", "Entrypoint", "Labels", "StopSignal", "Healthcheck",
)  # fmt: skip


def _config_of(container: Container, image: Mapping[str, Any]) -> dict[str, Any]:
    """The image's settings, with the container's own laid over."""
    spec = container.spec
    names = {each.partition("=")[0] for each in spec.env}
    env = [each for each in image.get("Env") or () if each.partition("=")[0] not in names]
    config = dict(image) | {"Env": [*env, *(each for each in spec.env if "=" in each)]}
    if spec.entrypoint is not None:
        config |= {"Entrypoint": list(spec.entrypoint), "Cmd": list(spec.command or ())}
    elif spec.command is not None:
        config["Cmd"] = list(spec.command)
    for key, value in (("User", spec.user), ("WorkingDir", spec.workdir), ("StopSignal", spec.stop_signal)):
        if value:
            config[key] = value
    if spec.labels:
        config["Labels"] = {**(image.get("Labels") or {}), **spec.labels}
    return config


def _stat_header(seen: PathStat) -> str:
    mode = stat.S_IMODE(seen.mode) & 0o777
    mode |= next((bits for kind, bits in _GO_MODES if stat.S_IFMT(seen.mode) == kind), 0)
    for bit, go in ((stat.S_ISUID, 1 << 23), (stat.S_ISGID, 1 << 22), (stat.S_ISVTX, 1 << 20)):
        mode |= go if seen.mode & bit else 0
    document = {
        "name": seen.name, "size": seen.size, "mode": mode, "mtime": rfc3339_nano(seen.mtime), "linkTarget": seen.link,
    }  # fmt: skip
    return base64.b64encode(msgspec.json.encode(document)).decode()
