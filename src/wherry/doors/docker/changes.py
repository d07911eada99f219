"""Docker's endpoints that change or look into a container: pause, unpause, rename, update, top, changes."""

from collections.abc import Mapping
from typing import Any

from wherry.doors.docker import requests
from wherry.doors.docker.containers import json_body
from wherry.doors.docker.endpoints import read_bindings
from wherry.doors.docker.engine import DockerEngine
from wherry.doors.docker.limits import check_cpus, check_unmixed, deprecated, fit, merged_limits
from wherry.doors.docker.mounts import read_mounts
from wherry.doors.docker.requests import read_restart
from wherry.engine.types import Container, State
from wherry.errors import AlreadyExists, BadRequest, Conflict, NotFound, Unsupported
from wherry.wire.http import Request, Response
from wherry.wire.router import Route

LIMITS = (
    "BlkioWeight", "CpuShares", "CpuPeriod", "CpuQuota", "CpuRealtimePeriod", "CpuRealtimeRuntime", "CpusetCpus",
    "CpusetMems", "Memory", "MemoryReservation", "MemorySwap", "NanoCpus", "NanoCPUs", "PidsLimit",
)  # fmt: skip
"""What `update` changes at once, besides the restart policy."""
MOUNTS = ("Binds", "Mounts", "Tmpfs")
SHAPE = (*MOUNTS, "PortBindings", "Env")
"""What `update` changes of a stopped container, beyond Docker's own."""
_WARNED = ("KernelMemory", "CpuPercent")


class Changes:
    """The handlers."""

    def __init__(self, engine: DockerEngine) -> None:
        self._engine = engine

    def routes(self) -> tuple[Route, ...]:
        """All endpoints of this module."""
        return (
            Route("POST", "/containers/{name}/pause", self._pause),
            Route("POST", "/containers/{name}/unpause", self._unpause),
            Route("POST", "/containers/{name}/rename", self._rename),
            Route("POST", "/containers/{name}/update", self._update),
            Route("GET", "/containers/{name}/top", self._top),
            Route("GET", "/containers/{name}/changes", self._changes),
        )

    async def _pause(self, request: Request) -> Response:
        container = await find(self._engine, request)
        if container.state is State.PAUSED:
            raise Conflict(f"Container {container.id} is already paused")
        check_runs(container)
        await self._engine.pause(container.id)
        return Response(204)

    async def _unpause(self, request: Request) -> Response:
        container = await find(self._engine, request)
        if container.state is not State.PAUSED:
            raise Conflict(f"Container {container.id} is not paused")
        await self._engine.unpause(container.id)
        return Response(204)

    async def _rename(self, request: Request) -> Response:
        container = await find(self._engine, request)
        name = (request.first("name") or "").removeprefix("/")
        if not name:
            raise BadRequest("Neither old nor new names may be empty")
        if name == container.name:
            raise BadRequest("Renaming a container with the same name as its current name")
        try:
            await self._engine.rename(container.id, name)
        except AlreadyExists:
            raise Conflict(
                f'Conflict. The container name "/{name}" is already in use. You have to remove (or rename) that container '
                "to be able to reuse that name."
            ) from None
        return Response(204)

    async def _update(self, request: Request) -> Response:
        container = await find(self._engine, request)
        body = await json_body(request)
        for name, value in body.items():
            if name not in (*LIMITS, *_WARNED, *SHAPE, "RestartPolicy") and value not in (None, 0, "", [], {}, False):
                raise Unsupported(f"{name}: `update` does not change it in wherry; see SCOPE.md")
        policy = body.get("RestartPolicy") or {}
        restart = read_restart(policy) if policy.get("Name") else None
        asked = {name: value for name, value in body.items() if name in LIMITS}
        machine = self._engine.abilities
        limits, warnings = merged_limits(container.spec.limits, asked), deprecated(body)
        if limits is not None:
            check_cpus(asked, machine)
            check_unmixed(container.spec.asked.get("HostConfig") or {}, container.spec.limits, asked)
            limits, discarded = fit(limits, machine)
            warnings = [*discarded, *warnings]
        shown = _asked_anew(container.spec.asked, asked)
        if any(name in body for name in SHAPE):
            shown = await self._reshape(container, body, shown)
        await self._engine.update(container.id, limits=limits, restart=restart, asked=shown)
        return Response.json({"Warnings": list(warnings)})

    async def _reshape(
        self, container: Container, body: Mapping[str, Any], shown: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        """Give a stopped container other ports, mounts, variables: what Docker does not have. Returns what is shown then."""
        host = {**shown["HostConfig"], **{name: body[name] for name in (*MOUNTS, "PortBindings") if name in body}}
        requests.check_types(host)
        if container.spec.join.get("network") and body.get("PortBindings"):
            raise BadRequest("conflicting options: port publishing and the container type network mode")
        mounts = read_mounts({}, host, requests.version_of("")) if any(name in body for name in MOUNTS) else None
        ports = read_bindings(body["PortBindings"] or {}) if "PortBindings" in body else None
        env = body.get("Env")
        if env is not None and not (isinstance(env, list) and all(isinstance(each, str) for each in env)):
            raise BadRequest("Env: a list of strings is wanted")
        host.pop("PortBindings", None)
        shown = {**shown, "HostConfig": host}
        await self._engine.reshape(container.id, ports=ports, mounts=mounts, env=env, asked=shown)
        return shown

    async def _top(self, request: Request) -> Response:
        container = await find(self._engine, request)
        check_runs(container)
        self._engine.tell_of(container.id, "top", {})
        titles, rows = await self._engine.top(container.id, request.first("ps_args") or "-ef")
        return Response.json({"Titles": titles, "Processes": rows})

    async def _changes(self, request: Request) -> Response:
        container = await find(self._engine, request)
        found = await self._engine.diff(container.id)
        return Response.json([{"Path": each.path, "Kind": each.kind} for each in found] or None)


async def find(engine: DockerEngine, request: Request) -> Container:
    """The container that the path names. Raises NotFound in Docker's words."""
    name = request.params["name"]
    try:
        return await engine.container(name.removeprefix("/"))
    except NotFound:
        raise NotFound(f"No such container: {name}") from None


def check_runs(container: Container) -> None:
    """Raise Conflict in Docker's words when it does not run."""
    if container.state not in (State.RUNNING, State.PAUSED):
        raise Conflict(f"Container {container.id} is not running")


def _asked_anew(old: Mapping[str, Any], asked: Mapping[str, Any]) -> Mapping[str, Any]:
    """Show processors as they were asked for the last time: `--cpus`, or a quota."""
    host = dict(old.get("HostConfig") or {})
    nano = asked.get("NanoCpus") or asked.get("NanoCPUs")
    if nano:
        host["NanoCpus"] = nano
    elif asked.get("CpuQuota") or asked.get("CpuPeriod"):
        host.pop("NanoCpus", None)
    return {**old, "HostConfig": host}
