"""A raw duplex stream: what is left of a connection after an upgrade, on the server's and on the client's side."""

import asyncio
import contextlib
from collections.abc import Callable

from wherry.clock import machine
from wherry.wire.flow import HIGH_BYTES, WRITE_HIGH_BYTES, Inflow, Outflow


class Stream(asyncio.Protocol):
    """Bytes both ways with flow control. The peer's end-of-file leaves our side open (half-close) where the transport can.

    asyncio's TLS cannot; wire/tls.py can.

    One task may read and several may write. Nothing is lost between the HTTP head and the first `read`.
    """

    def __init__(
        self, transport: asyncio.Transport, rest: bytes = b"", on_lost: Callable[[], None] | None = None
    ) -> None:
        self._transport = transport
        self._inflow = Inflow(transport)
        self._outflow = Outflow()
        self._on_lost = on_lost
        self._half_closes = transport.can_write_eof()
        self._wrote_eof = False
        self.half_closed = False
        transport.set_write_buffer_limits(high=WRITE_HIGH_BYTES)
        if rest:
            self._inflow.feed(rest)

    @property
    def closed(self) -> bool:
        """Whether the connection is gone or going."""
        return self._outflow.lost or self._transport.is_closing()

    @property
    def can_half_close(self) -> bool:
        """Whether `write_eof` tells the peer anything."""
        return self._half_closes

    @property
    def transport(self) -> asyncio.Transport:
        """The transport below."""
        return self._transport

    async def read(self, n: int = HIGH_BYTES) -> bytes:
        """Return the next bytes, at most `n`; b"" when the peer has ended its side or is gone."""
        return await self._inflow.take(n)

    async def write(self, data: bytes) -> None:
        """Send; waits while the peer does not read. Raises ConnectionResetError when it is gone."""
        if self.closed:
            raise ConnectionResetError("the stream is closed")
        self._transport.write(data)
        if self._outflow.blocked:
            await self._outflow.drain()

    async def write_eof(self) -> None:
        """End our side; the peer may go on sending. Where the transport has no half-close nothing happens until close."""
        if not self._wrote_eof and not self.closed and self._half_closes:
            self._wrote_eof = True
            self._transport.write_eof()

    async def finish(self, linger_s: float) -> None:
        """End our side and drop what still comes, for at most `linger_s`: a close with unread bytes loses our last ones."""
        if self.closed or not self._half_closes:
            return
        await self.write_eof()
        with contextlib.suppress(TimeoutError):
            async with machine.timeout(linger_s):
                while await self.read():
                    pass

    def close(self) -> None:
        """Send what waits, then close both sides; nothing when closed."""
        self._inflow.discard()
        self._inflow.end()
        self._transport.close()

    def abort(self) -> None:
        """Close both sides at once, dropping what waits."""
        if not self._outflow.lost:  # asyncio's abort may fail on a transport that is gone
            self._transport.abort()

    # asyncio's side -----------------------------------------------------------------------------------------------------
    def data_received(self, data: bytes) -> None:
        """Take what arrived."""
        self._inflow.feed(data)

    def eof_received(self) -> bool:
        """The peer ended its side; ours stays open where the transport can do that."""
        self.half_closed = True
        self._inflow.end()
        return self._half_closes

    def pause_writing(self) -> None:
        """The peer does not read."""
        self._outflow.pause()

    def resume_writing(self) -> None:
        """The peer reads again."""
        self._outflow.resume()

    def connection_lost(self, exc: Exception | None) -> None:
        """Both sides are gone: reads end, writes raise."""
        del exc  # a reset and a close are the same to a reader: there is no more
        self._inflow.end()
        self._outflow.lose()
        if self._on_lost is not None:
            self._on_lost()


class _Gone(asyncio.Transport):
    """The transport of a stream that never was."""

    def is_closing(self) -> bool:
        return True

    def can_write_eof(self) -> bool:
        return False

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        del high, low

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    def close(self) -> None: ...

    def abort(self) -> None: ...


def closed_stream() -> Stream:
    """Make a stream that is closed already: reads give b"", writes raise ConnectionResetError."""
    stream = Stream(_Gone())
    stream.connection_lost(None)
    return stream
