"""`POST /containers/create`: what is asked for, looked up among images, networks and other containers."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from wherry.doors.docker import requests
from wherry.doors.docker.containers import json_body
from wherry.doors.docker.endpoints import linked_by_networks, read_exposed
from wherry.doors.docker.engine import DockerEngine
from wherry.doors.docker.limits import check_cpus, deprecated, fit
from wherry.doors.docker.mounts import borrowed
from wherry.doors.docker.options import read_health
from wherry.doors.docker.platforms import platform_text
from wherry.doors.docker.security import read_security
from wherry.engine import capabilities, ulimits
from wherry.engine.types import Container, ContainerSpec, Image, Join
from wherry.errors import AlreadyExists, BadRequest, NotFound
from wherry.host.limits import Limits
from wherry.wire.http import Request, Response
from wherry.wire.router import Route


class Creation:
    """The handler."""

    def __init__(self, engine: DockerEngine) -> None:
        self._engine = engine

    def routes(self) -> tuple[Route, ...]:
        """All endpoints of this module."""
        return (Route("POST", "/containers/create", self._create),)

    async def _create(self, request: Request) -> Response:
        body = await json_body(request)
        name = request.first("name") or ""
        spec = requests.container_spec(body, name, requests.version_of(request.path))
        host: dict[str, Any] = body.get("HostConfig") or {}
        if lenders := host.get("VolumesFrom") or ():
            names = [str(each).partition(":")[0] for each in lenders]
            known = {each: await self._named(each, "volumes-from") for each in names}
            spec = replace(spec, mounts=[*spec.mounts, *borrowed(lenders, known, spec.mounts)])
        try:
            spec = replace(spec, platform=platform_text(request.first("platform")))
            image = await self._engine.image(spec.image, platform=spec.platform)
        except NotFound as error:
            words = "specified platform" in error.message
            raise NotFound(error.message if words else f"No such image: {spec.image}") from None
        own = body.get("Healthcheck")
        spec = replace(spec, health=read_health(own, (image.config.get("config") or {}).get("Healthcheck")))
        of_image = {
            str(key): str(value) for key, value in ((image.config.get("config") or {}).get("Labels") or {}).items()
        }
        spec = replace(spec, labels={**of_image, **spec.labels})
        limits, warnings = self._fit(spec, host)
        spec = self._on_networks(replace(spec, limits=limits), image)
        join: dict[str, str] = {}
        for kind in ("Network", "Pid", "Ipc"):
            mode = str(host.get(f"{kind}Mode") or "")
            if mode.startswith("container:"):
                other = await self._named(mode.removeprefix("container:"), f"joining {kind} namespace of container")
                join[kind.lower()] = other.id
        spec = replace(spec, join=join, links=await self._links(body, host))
        try:
            made = await self._engine.create(spec)
        except AlreadyExists:
            raise AlreadyExists(
                f'Conflict. The container name "/{spec.name}" is already in use. You have to remove (or rename) that '
                "container to be able to reuse that name."
            ) from None
        return Response.json({"Id": made.id, "Warnings": list(warnings)}, status=201)

    def _fit(self, spec: ContainerSpec, host: dict[str, Any]) -> tuple[Limits, Sequence[str]]:
        """Say which limits the machine can keep, and what it has to leave out."""
        check_cpus(host, self._engine.abilities)
        limits, warnings = fit(spec.limits, self._engine.abilities)
        held = capabilities.own()
        _, lowered = ulimits.plan(spec.ulimits, held)
        _, score = ulimits.oom_score(spec.oom_score_adj, held)
        secured = read_security(host.get("SecurityOpt") or ()).warnings
        return limits, [*warnings, *deprecated(host), *lowered, *([score] if score else []), *secured]

    async def _links(self, body: dict[str, Any], host: dict[str, Any]) -> dict[str, str]:
        """Read `--link`, for the default network and for one's own: ids by the names they get. Raises BadRequest."""
        found: dict[str, str] = {}
        mode = str(host.get("NetworkMode") or "").partition(":")[0]
        for text in [*(host.get("Links") or ()), *linked_by_networks(body)]:
            name, _, alias = str(text).partition(":")
            if mode in ("host", "container"):
                raise BadRequest(
                    f"conflicting options: {mode} type networking can't be used with links. This would result in undefined "
                    "behavior"
                )
            alias = alias.rpartition("/")[2] or name.lstrip("/")
            found[alias] = (await self._named(name, "could not get container for a link")).id
        return found

    async def _named(self, name: str, what: str) -> Container:
        """Find another container. Not finding it is no 404: clients take that for an image that is to be pulled."""
        try:
            return await self._engine.container(name.removeprefix("/"))
        except NotFound:
            raise BadRequest(f"{what}: No such container: {name}") from None

    def _on_networks(self, spec: ContainerSpec, image: Image) -> ContainerSpec:
        """Name what the image exposes, and look for the networks: to clients, 404 would say that the image is not here."""
        sandbox = spec.sandbox_spec
        if sandbox is None:
            return spec
        joins: dict[str, Join] = {}
        for wish in sandbox.networks:
            try:
                id = self._engine.networks.find(wish.network).id
            except NotFound as error:
                raise BadRequest(error.message) from None
            known = joins.get(id, wish)
            aliases = list(dict.fromkeys([*known.aliases, *wish.aliases]))
            joins[id] = Join(
                known.network, aliases, known.address or wish.address, known.address6 or wish.address6,
                known.mac or wish.mac, known.priority or wish.priority,
            )  # fmt: skip
        exposed = read_exposed(dict.fromkeys(sandbox.exposed), (image.config.get("config") or {}).get("ExposedPorts"))
        return replace(spec, sandbox_spec=replace(sandbox, networks=list(joins.values()), exposed=exposed))
