"""`GET /events`: what happens from now on, and what has happened since a time as far as the engine remembers."""

from collections.abc import AsyncIterator, Mapping
from typing import Any

import msgspec

from wherry.clock import Clock, machine
from wherry.doors.docker import filters
from wherry.doors.docker.engine import DockerEngine
from wherry.doors.docker.times import read_moment
from wherry.engine.types import EngineEvent
from wherry.errors import BadRequest
from wherry.wire.http import Request, Response
from wherry.wire.router import Route

KINDS = ("container", "image", "network", "volume", "builder", "daemon")


class Events:
    """The handler."""

    def __init__(self, engine: DockerEngine, clock: Clock) -> None:
        self._engine = engine
        self._clock = clock

    def routes(self) -> tuple[Route, ...]:
        """The endpoint."""
        return (Route("GET", "/events", self._events),)

    async def _events(self, request: Request) -> Response:
        wanted = filters.parse(request.first("filters"), filters.EVENT)
        now = machine.now()
        since = read_moment(request.first("since"), "since", now)
        until = read_moment(request.first("until"), "until", now)
        if since and until and since > until:
            raise BadRequest("`since` time cannot be after `until` time")
        # Without `since` an `until` of the past has nothing to say.
        happened = self._engine.events(since=since)

        async def pieces() -> AsyncIterator[bytes]:
            while True:
                try:
                    async with machine.timeout(max(0.0, until - machine.now()) if until else None):
                        event = await anext(happened)
                except TimeoutError:
                    return
                if until and event.time > until:
                    return
                event = as_docker(event)
                if event.kind in KINDS and filters.matches_event(event, wanted):
                    yield msgspec.json.encode(shown(event)) + b"\n"

        return Response.stream(pieces(), headers={"Content-Type": "application/json"}, live=True)


def as_docker(event: EngineEvent) -> EngineEvent:
    """Say the name of an image that was pulled or pushed without its tag, as Docker does."""
    if event.kind != "image" or event.action not in ("pull", "push"):
        return event
    said = {name: value for name, value in event.attributes.items() if name != "id"} | {"name": _without_tag(event.id)}
    return EngineEvent(event.time, event.kind, event.action, event.id, said)


def _without_tag(name: str) -> str:
    head, colon, tag = name.partition("@")[0].rpartition(":")
    return head if colon and "/" not in tag else name.partition("@")[0]


def shown(event: EngineEvent) -> Mapping[str, Any]:
    """One line of `GET /events`; the old names stand where Docker still has them."""
    nanoseconds = int(event.time * 1e9)
    old: dict[str, Any] = {}
    if event.kind in ("container", "image"):
        old = {"status": event.action, "id": event.id} if event.id else {"status": event.action}
        if event.kind == "container" and "image" in event.attributes:
            old["from"] = event.attributes["image"]
    return old | {
        "Type": event.kind,
        "Action": event.action,
        "Actor": {"ID": event.id, "Attributes": dict(event.attributes)},
        "scope": "local",
        "time": nanoseconds // 1_000_000_000,
        "timeNano": nanoseconds,
    }
