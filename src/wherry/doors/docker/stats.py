"""`GET /containers/NAME/stats`: once, or every second, in Docker's shape."""

import os
from collections.abc import AsyncIterator, Mapping
from typing import Any

import msgspec

from wherry.clock import machine, rfc3339_nano
from wherry.doors.docker.answers import ZERO_TIME
from wherry.doors.docker.changes import find
from wherry.doors.docker.containers import flag
from wherry.doors.docker.engine import DockerEngine
from wherry.engine.types import Container
from wherry.errors import Conflict, NotFound
from wherry.host.engine_usage import Detail
from wherry.wire.http import Request, Response
from wherry.wire.router import Route

EVERY_S = 1.0
_TRAFFIC = (
    "rx_bytes", "rx_packets", "rx_errors", "rx_dropped", "tx_bytes", "tx_packets", "tx_errors", "tx_dropped",
)  # fmt: skip


class Stats:
    """The handler."""

    def __init__(self, engine: DockerEngine) -> None:
        self._engine = engine

    def routes(self) -> tuple[Route, ...]:
        """The endpoint."""
        return (Route("GET", "/containers/{name}/stats", self._stats),)

    async def _stats(self, request: Request) -> Response:
        container = await find(self._engine, request)
        if flag(request, "stream", default=True):
            return Response.stream(self._stream(container), headers={"Content-Type": "application/json"}, live=True)
        first = await self._sample(container, {})
        if first["read"] == ZERO_TIME or flag(request, "one-shot"):
            return Response.json(first)
        await machine.sleep(EVERY_S)
        return Response.json(await self._sample(container, first))

    async def _stream(self, container: Container) -> AsyncIterator[bytes]:
        """One line every second until the container is removed."""
        last: dict[str, Any] = {}
        while True:
            try:
                container = await self._engine.container(container.id)
            except NotFound:
                return
            last = await self._sample(container, last)
            yield msgspec.json.encode(last) + b"\n"
            await machine.sleep(EVERY_S)

    async def _sample(self, container: Container, last: Mapping[str, Any]) -> dict[str, Any]:
        base = {"name": f"/{container.name}", "id": container.id, "num_procs": 0, "storage_stats": {}}
        try:
            used, traffic, system_ns = await self._engine.usage(container.id)
        except (Conflict, NotFound):  # it does not run: zeros, as Docker has it
            empty: dict[str, Any] = {"cpu_usage": {"total_usage": 0, "usage_in_kernelmode": 0, "usage_in_usermode": 0}}
            zeros = {"read": ZERO_TIME, "preread": ZERO_TIME, "pids_stats": {}, "blkio_stats": _io(None)}
            return base | zeros | {"cpu_stats": empty, "precpu_stats": empty, "memory_stats": {}}
        return base | {
            "read": rfc3339_nano(machine.now()),
            "preread": last.get("read", ZERO_TIME),
            "pids_stats": {"current": used.pids, **({"limit": used.pids_limit} if used.pids_limit else {})},
            "blkio_stats": _io(used),
            "cpu_stats": _cpu(used, system_ns),
            "precpu_stats": last.get("cpu_stats") or {"cpu_usage": {"total_usage": 0}, "throttling_data": {}},
            "memory_stats": _memory(used),
            "networks": {name: dict(zip(_TRAFFIC, numbers, strict=True)) for name, numbers in traffic.items()},
        }


def _cpu(used: Detail, system_ns: int) -> dict[str, Any]:
    usage: dict[str, Any] = {
        "total_usage": used.cpu_ns, "usage_in_kernelmode": used.kernel_ns, "usage_in_usermode": used.user_ns,
    }  # fmt: skip
    if used.per_cpu_ns:
        usage["percpu_usage"] = list(used.per_cpu_ns)
    return {
        "cpu_usage": usage,
        "system_cpu_usage": system_ns,
        "online_cpus": os.cpu_count() or 1,
        "throttling_data": {
            "periods": used.periods, "throttled_periods": used.throttled_periods, "throttled_time": used.throttled_ns,
        },
    }  # fmt: skip


def _memory(used: Detail) -> dict[str, Any]:
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    peak = {"max_usage": used.memory_peak} if used.version == 1 else {}
    limit = min(used.memory_limit or whole, whole)
    return {"usage": used.memory, **peak, "stats": dict(used.memory_stats), "limit": limit}


def _io(used: Detail | None) -> dict[str, Any]:
    names = (
        "io_serviced_recursive", "io_queue_recursive", "io_service_time_recursive", "io_wait_time_recursive",
        "io_merged_recursive", "io_time_recursive", "sectors_recursive",
    )  # fmt: skip
    rows = [{"major": a, "minor": b, "op": op, "value": value} for a, b, op, value in used.io] if used else None
    return {"io_service_bytes_recursive": rows or None} | dict.fromkeys(names)
