"""`GET /containers/json`: which containers there are, by Docker's filters, with their sizes where that is asked."""

from typing import Any

from wherry.clock import Clock
from wherry.doors.docker import answers, filters
from wherry.doors.docker.containers import flag
from wherry.doors.docker.engine import DockerEngine
from wherry.engine.types import Container, State
from wherry.errors import BadRequest, NotFound
from wherry.wire.http import Request, Response
from wherry.wire.router import Route


class Listing:
    """The handler."""

    def __init__(self, engine: DockerEngine, clock: Clock) -> None:
        self._engine = engine
        self._clock = clock

    def routes(self) -> tuple[Route, ...]:
        """The endpoint."""
        return (Route("GET", "/containers/json", self._list),)

    async def _list(self, request: Request) -> Response:
        wanted = filters.parse(request.first("filters"), filters.CONTAINER)
        filters.check_container(wanted)
        most = _limit(request.first("limit") or "")
        everything = flag(request, "all") or most > 0 or "status" in wanted
        first, last = await self._between(wanted)
        images = {image.id: image for image in await self._engine.images()}
        names = {id: [answers.familiar(name) for name in image.names] for id, image in images.items()}
        found = [
            each
            for each in await self._engine.containers()
            if (everything or each.state in (State.RUNNING, State.PAUSED))
            and first < (each.created, each.id) < last
            and filters.matches_container(each, wanted, names.get(each.image_id, ()))
        ]
        found.sort(key=lambda each: -each.created)
        shown = [answers.container_summary(each, self._clock.now()) for each in found[: most or None]]
        if flag(request, "size"):
            for each, row in zip(found, shown, strict=False):
                image = images.get(each.image_id)
                row |= await sizes(self._engine, each, image.size_bytes if image is not None else 0)
        return Response.json(shown)

    async def _between(self, wanted: filters.Filters) -> tuple[tuple[float, str], tuple[float, str]]:
        """Read `since` and `before`: made after the one, and before the other. Raises NotFound."""
        first, last = (-1.0, ""), (float("inf"), "")
        for name in wanted.get("since", ()):
            first = max(first, await self._made(name))
        for name in wanted.get("before", ()):
            last = min(last, await self._made(name))
        return first, last

    async def _made(self, name: str) -> tuple[float, str]:
        try:
            container = await self._engine.container(name.removeprefix("/"))
        except NotFound:
            raise NotFound(f"No such container: {name}") from None
        return container.created, container.id


async def sizes(engine: DockerEngine, container: Container, image_bytes: int) -> dict[str, Any]:
    """Say what a container has written, and how much it is with its image; the first is left out where it is nothing."""
    written = await engine.written(container.id)
    return {"SizeRootFs": image_bytes + written} | ({"SizeRw": written} if written else {})


def _limit(text: str) -> int:
    try:
        return max(0, int(text or 0))
    except ValueError:
        raise BadRequest(f"limit {text!r}: not a number") from None
