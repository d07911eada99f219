"""`GET /events`: what happens from now on, and what has happened since a time as far as the engine remembers."""

from collections.abc import AsyncIterator

import msgspec

from wherry.clock import Clock, machine
from wherry.doors.docker import answers, filters
from wherry.doors.docker.engine import DockerEngine
from wherry.doors.docker.times import read_moment
from wherry.wire.http import Request, Response
from wherry.wire.router import Route


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
        since = read_moment(request.first("since"), "since", machine.now())
        until = read_moment(request.first("until"), "until", machine.now())
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
                if event.kind != "sandbox" and filters.matches_event(event, wanted):
                    yield msgspec.json.encode(answers.event(event)) + b"\n"

        return Response.stream(pieces(), headers={"Content-Type": "application/json"}, live=True)
