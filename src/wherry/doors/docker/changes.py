"""Docker's endpoints that change or look into a container: pause, unpause, rename, update, top, changes."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from wherry.doors.docker.containers import json_body
from wherry.doors.docker.engine import DockerEngine
from wherry.doors.docker.requests import read_limits, read_restart
from wherry.engine.types import Container, Limits, State
from wherry.errors import AlreadyExists, BadRequest, Conflict, NotFound, Unsupported
from wherry.wire.http import Request, Response
from wherry.wire.router import Route

UPDATE = (
    "CpuShares", "Memory", "MemorySwap", "CpuPeriod", "CpuQuota", "NanoCpus", "NanoCPUs", "CpusetCpus", "PidsLimit",
    "RestartPolicy",
)  # fmt: skip
"""What `update` changes live."""


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
        check_runs(container)
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
            if name not in UPDATE and value not in (None, 0, "", [], {}, False):
                raise Unsupported(f"{name}: `update` does not change it in wherry; see SCOPE.md")
        policy = body.get("RestartPolicy") or {}
        restart = read_restart(policy) if policy.get("Name") else None
        await self._engine.update(container.id, limits=_merged(container, body), restart=restart)
        return Response.json({"Warnings": []})

    async def _top(self, request: Request) -> Response:
        container = await find(self._engine, request)
        check_runs(container)
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


def _merged(container: Container, body: Mapping[str, Any]) -> Limits | None:
    """The container's limits with those of the request laid over; None when it asks for none."""
    asked = {name: value for name, value in body.items() if name in UPDATE and name != "RestartPolicy"}
    if not any(value not in (None, 0, "") for value in asked.values()):
        return None
    old = container.spec.limits
    memory = asked.get("Memory") or old.memory_bytes
    swap = asked.get("MemorySwap") or old.memory_swap_bytes
    if asked.get("Memory") and not asked.get("MemorySwap") and swap and 0 < swap < (memory or 0):
        raise BadRequest(
            "Memory limit should be smaller than already set memoryswap limit, update the memoryswap at the same time"
        )
    new = read_limits({**asked, "Memory": memory or 0, "MemorySwap": swap or 0})
    pids = asked.get("PidsLimit")
    return replace(
        old,
        cpu_quota_us=new.cpu_quota_us or old.cpu_quota_us,
        cpu_period_us=new.cpu_period_us if asked.get("CpuPeriod") else old.cpu_period_us,
        cpu_shares=new.cpu_shares or old.cpu_shares,
        memory_bytes=new.memory_bytes,
        memory_swap_bytes=new.memory_swap_bytes,
        pids=old.pids if not pids else new.pids,
        cpuset_cpus=new.cpuset_cpus or old.cpuset_cpus,
    )
