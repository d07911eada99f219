"""What all connections of one server share: the handler, the limits, the set of connections, and one clock tick.

Time-outs cost a request nothing: a connection notes the number of the current tick, and one task compares.
"""

import asyncio
import logging
import math
from dataclasses import dataclass
from typing import Protocol

from wherry.clock import machine
from wherry.errors import WherryError
from wherry.wire.envelopes import docker_error, message_of, retry_after_s, status_of
from wherry.wire.heads import date_line
from wherry.wire.http import Handler, OnError, Request, Response

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Limits:
    """What one server takes. All times are machine seconds.

    header_bytes, header_count: of one request's head. connections: at once; more are answered 503 and closed.
    idle_s: between two requests. head_s: from a head's first byte to its last. body_s: between two pieces of a body that
    the handler waits for. write_s: without any progress while the client does not read. half_close_s: how long a handler
    may still work when the client has ended its side and no answer has begun. linger_s: how long a refused request's
    rest is read and dropped, so that the refusal arrives.
    """

    header_bytes: int = 64 * 1024
    header_count: int = 128
    connections: int = 10_000
    idle_s: float = 120.0
    head_s: float = 15.0
    body_s: float = 60.0
    write_s: float = 120.0
    half_close_s: float = 5.0
    linger_s: float = 2.0
    handshake_s: float = 10.0

    @property
    def tick_s(self) -> float:
        """How often time-outs are looked at: a fraction of the shortest of them, at most a second."""
        return min(
            1.0,
            *(
                each / 4
                for each in (self.idle_s, self.head_s, self.body_s, self.write_s, self.half_close_s, self.linger_s)
            ),
        )


class Watched(Protocol):
    """A connection as the hub and the server see it."""

    @property
    def transport(self) -> asyncio.Transport:
        """Its transport."""
        ...

    def check(self) -> None:
        """Look at the time-outs."""
        ...

    def shut(self) -> None:
        """The server closes: go when idle, end a live stream, else finish the current request first."""
        ...

    def cancel(self) -> asyncio.Task[None] | None:
        """Cancel what runs; return its task."""
        ...


class Hub:
    """The shared state; `watch` is the task that ticks while there are connections."""

    def __init__(self, handler: Handler, limits: Limits, on_error: OnError | None) -> None:
        self.handler = handler
        self.limits = limits
        self.connections: set[Watched] = set()
        self.closing = False
        self.tick = 0
        self.date_line = date_line(machine.now())
        self._on_error = on_error
        self._some = asyncio.Event()
        self._none = asyncio.Event()
        self._none.set()

    def ticks(self, seconds: float) -> int:
        """Return how many ticks a time-out is."""
        return max(1, math.ceil(seconds / self.limits.tick_s))

    def join(self, connection: Watched) -> None:
        """Count a new connection."""
        if not self.connections:
            self.date_line = date_line(machine.now())
            self._some.set()
            self._none.clear()
        self.connections.add(connection)

    def leave(self, connection: Watched) -> None:
        """Forget a connection."""
        self.connections.discard(connection)
        if not self.connections:
            self._some.clear()
            self._none.set()

    async def wait_empty(self) -> None:
        """Return when there is no connection."""
        await self._none.wait()

    async def watch(self) -> None:
        """Tick, until cancelled; sleeps without waking while there is no connection."""
        period_s = self.limits.tick_s
        while True:
            await self._some.wait()
            await machine.sleep(period_s)
            self.tick += 1
            self.date_line = date_line(machine.now())
            for connection in list(self.connections):
                try:
                    connection.check()
                except Exception:  # one connection's trouble must not end the time-outs of all
                    log.exception("checking the time-outs of a connection failed")
                    connection.transport.abort()

    def answer_error(self, request: Request, error: Exception) -> Response:
        """Turn what a handler raised into an answer, by the owner's `on_error` or in the plain envelope."""
        if not isinstance(error, WherryError):
            log.error("%s %s: the handler failed", request.method, request.path, exc_info=error)
        elif status_of(error)[0] >= 500:
            log.warning("%s %s: %s: %s", request.method, request.path, type(error).__name__, error.message)
        if self._on_error is not None:
            try:
                return self._on_error(request, error)
            except Exception:
                log.exception("%s %s: on_error failed", request.method, request.path)
        return plain_error(request, error)


def plain_error(request: Request, error: Exception) -> Response:
    """Answer an error as `{"message": ...}`."""
    del request  # the plain envelope does not depend on it
    response = Response.json(docker_error(message_of(error)), status_of(error)[0])
    seconds = retry_after_s(error)
    if seconds is not None:
        response.headers.add("Retry-After", str(seconds))
    return response
