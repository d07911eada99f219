"""`GET /containers/NAME/logs`: a log as Docker sends it."""

import re
from collections.abc import AsyncIterator, Mapping, Sequence

from wherry.clock import machine, parse_rfc3339
from wherry.doors.docker.changes import find
from wherry.doors.docker.containers import flag
from wherry.doors.docker.engine import DockerEngine
from wherry.doors.docker.logconfig import details
from wherry.doors.docker.streams import MULTIPLEXED, RAW, frame
from wherry.engine.types import LogLine
from wherry.errors import BadRequest, Invalid, NotFound, Unsupported
from wherry.wire.http import Request, Response
from wherry.wire.router import Route


class Logs:
    """The handler."""

    def __init__(self, engine: DockerEngine) -> None:
        self._engine = engine

    def routes(self) -> tuple[Route, ...]:
        """The endpoint."""
        return (Route("GET", "/containers/{name}/logs", self._logs),)

    async def _logs(self, request: Request) -> Response:
        container = await find(self._engine, request)
        stdout, stderr = flag(request, "stdout"), flag(request, "stderr")
        if not stdout and not stderr:
            raise BadRequest("Bad parameters: you must choose at least one stream")
        tail = request.first("tail") or "all"
        most = int(tail) if tail.isascii() and tail.isdigit() else None
        until = read_time(request.first("until"))
        follow = flag(request, "follow") and not (until and until <= machine.now())
        try:
            since = read_time(request.first("since"))
            lines = self._engine.log_blocks(container.id, follow=follow, tail=most, since=since)
        except Unsupported:
            raise Unsupported("configured logging driver does not support reading") from None
        before = b""
        if flag(request, "details"):
            image: Mapping[str, object] = {}
            try:
                image = (await self._engine.image(container.image_id)).config.get("config") or {}
            except NotFound:
                image = {}
            before = details(container, image).encode() + b" "
        pieces = log_pieces(
            _until(lines, until) if follow and until else lines, tty=container.spec.tty, stdout=stdout, stderr=stderr,
            timestamps=flag(request, "timestamps"), until=until, before=before,
        )  # fmt: skip
        return Response.stream(
            pieces, headers={"Content-Type": RAW if container.spec.tty else MULTIPLEXED}, live=follow
        )


async def log_pieces(
    blocks: AsyncIterator[Sequence[LogLine]],
    *,
    tty: bool,
    stdout: bool,
    stderr: bool,
    timestamps: bool,
    until: float = 0.0,
    before: bytes = b"",
) -> AsyncIterator[bytes]:
    """Write a log, many lines at once. Pieces of a long line have one timestamp (and `before`), at its beginning."""
    wanted = {"stdout": stdout, "stderr": stderr}
    goes_on = {"stdout": False, "stderr": False}
    async for lines in blocks:
        written: list[bytes] = []
        for line in lines:
            if until and line.time > until:
                break
            if not wanted[line.stream]:
                continue
            data = line.data
            if not goes_on[line.stream]:
                data = (line.stamp.encode() + b" " if timestamps else b"") + before + data
            goes_on[line.stream] = line.partial
            written.append(data if tty else frame(line.stream, data))
        if written:
            yield b"".join(written)
        if until and lines[-1].time > until:
            return


async def _until(lines: AsyncIterator[Sequence[LogLine]], until: float) -> AsyncIterator[Sequence[LogLine]]:
    """End at a moment to come, also when nothing is written by then."""
    while True:
        try:
            async with machine.timeout(max(0.0, until - machine.now())):
                line = await anext(lines)
        except (TimeoutError, StopAsyncIteration):
            return
        yield line


def read_time(text: str | None) -> float:
    """Read a Unix time, with a fraction, or RFC 3339; 0.0 for none. Raises Invalid."""
    if not text or text == "0":
        return 0.0
    if re.fullmatch(r"\d+(\.\d+)?", text, re.ASCII):
        return float(text)
    try:
        return parse_rfc3339(text)
    except ValueError:
        raise Invalid(f"time {text!r}: neither seconds nor RFC 3339") from None
