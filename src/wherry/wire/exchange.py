"""The client's side of one connection: one request at a time, its answer as it arrives."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

import httptools

from wherry.clock import machine
from wherry.errors import DeadlineExceeded, TooLarge, Unavailable
from wherry.wire.flow import HIGH_BYTES, WRITE_HIGH_BYTES, Inflow, Outflow
from wherry.wire.http import Headers
from wherry.wire.streams import Stream

log = logging.getLogger(__name__)

# What an answer's head may be, and what `read` takes when its caller names no limit.
HEAD_BYTES = 256 * 1024
READ_BYTES = 1 << 30


class Stale(Exception):
    """The connection ended before any byte of the answer came."""


class HttpAnswer:
    """An answer: the head is here, the body comes as it is read. It is read once, or closed."""

    def __init__(self, status: int, fields: Headers, inflow: Inflow, connection: "ClientConnection | None") -> None:
        self.status = status
        self.fields = fields
        self.headers = fields.lower()
        self.read_s: float | None = None
        self._inflow = inflow
        self._connection = connection

    async def read(self, limit: int = READ_BYTES) -> bytes:
        """Return the whole body. Raises TooLarge beyond `limit` bytes, Unavailable when the server breaks off."""
        pieces: list[bytes] = []
        size = 0
        while piece := await self._take():
            size += len(piece)
            if size > limit:
                await self.close()
                raise TooLarge(f"the answer is larger than the {limit} bytes that are taken")
            pieces.append(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield the body as it comes; the server is held back while we do not read."""
        while piece := await self._take():
            yield piece

    async def close(self) -> None:
        """Let go; in the middle of the body this closes the connection."""
        if self._connection is not None:
            self._connection.leave(self)
            self._connection = None

    async def _take(self) -> bytes:
        if self.read_s is None:
            return await self._inflow.take()
        try:
            async with machine.timeout(self.read_s):
                return await self._inflow.take()
        except TimeoutError:
            await self.close()
            raise DeadlineExceeded(f"no piece of the answer came for {self.read_s:g} s") from None


class ClientConnection(asyncio.Protocol):
    """One connection to `name`. `on_free(connection, reusable)` is called once after each exchange."""

    def __init__(self, name: str, on_free: Callable[["ClientConnection", bool], None]) -> None:
        self.transport: asyncio.Transport
        self.idle_since = 0.0
        self._name = name
        self._on_free = on_free
        self._outflow = Outflow()
        self._parser: Any = None
        self._head: asyncio.Future[HttpAnswer] | None = None
        self._exchange: asyncio.Future[HttpAnswer] | None = None  # as long as this exchange runs
        self._answer: HttpAnswer | None = None
        self._inflow: Inflow | None = None
        self._sender: asyncio.Task[None] | None = None
        self._busy = False
        self._method = ""
        self._wants_stream = False
        self._stream: Stream | None = None
        self._rest: list[bytes] = []
        self._raw = False
        self._until_close = False
        self._keep_alive = False
        self._sent = True
        self._started = False  # a byte of the answer came
        self._lost = False
        self._headers: list[tuple[bytes, bytes]] = []
        self._head_bytes = 0
        self._in_head = False

    # the caller's side --------------------------------------------------------------------------------------------------
    @property
    def usable(self) -> bool:
        """Whether a new request may be sent."""
        return not self._busy and not self._lost and not self.transport.is_closing()

    async def exchange(
        self,
        method: str,
        head: bytes,
        body: bytes | AsyncIterator[bytes],
        *,
        chunked: bool,
        head_s: float | None,
        wants_stream: bool = False,
    ) -> tuple[HttpAnswer, Stream | None]:
        """Send one request; return when the answer's head is here.

        Raises Stale when the server closed before it answered anything, Unavailable when it broke off,
        DeadlineExceeded after `head_s`, and what the body's iterator raises.
        """
        self._busy = True
        self._method = method
        self._wants_stream = wants_stream
        self._started = self._raw = self._until_close = False
        self._keep_alive = False
        future = self._head = self._exchange = asyncio.get_running_loop().create_future()
        try:
            if isinstance(body, bytes) and len(body) <= HIGH_BYTES:
                self._sent = True
                self.transport.write(head + body if body else head)
            else:
                self._sent = False
                self.transport.write(head)
                self._sender = asyncio.create_task(self._send(body, chunked), name="request body")
            try:
                async with machine.timeout(head_s):
                    answer = await future
            except TimeoutError:
                raise DeadlineExceeded(f"{self._name} did not answer {method} within {head_s:g} s") from None
        except BaseException:
            if (
                self._exchange is future
            ):  # else the answer was whole, and another exchange may have the connection by now
                self._finish(reusable=False)
            raise
        return answer, self._stream

    def leave(self, answer: HttpAnswer) -> None:
        """The answer is not wanted any more: break the connection if it is still coming."""
        if self._answer is answer:
            self._finish(reusable=False)

    def close(self) -> None:
        """Close it, whatever runs."""
        if not self._lost:
            self._break(Unavailable(f"the connection to {self._name} was closed"))
            self.transport.abort()

    async def _send(self, body: bytes | AsyncIterator[bytes], chunked: bool) -> None:
        transport, write = self.transport, self.transport.write
        try:
            if isinstance(body, bytes):
                view = memoryview(body)
                for start in range(0, len(view), HIGH_BYTES):
                    if transport.is_closing():
                        return
                    write(view[start : start + HIGH_BYTES])
                    await self._outflow.drain()
            else:
                async for piece in body:
                    if transport.is_closing():
                        return
                    if piece:
                        write(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
                        await self._outflow.drain()
                if chunked:
                    write(b"0\r\n\r\n")
            self._sent = True
        except ConnectionError:
            pass  # the reading side says what happened; the server may have answered before it closed
        except Exception as error:
            self._break(error)
            if not self._lost:  # asyncio's abort may fail on a transport that is gone
                self.transport.abort()

    # asyncio's side -----------------------------------------------------------------------------------------------------
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Connected."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.set_write_buffer_limits(high=WRITE_HIGH_BYTES)

    def data_received(self, data: bytes) -> None:
        """Parse what came."""
        if not self._busy:
            self.transport.abort()  # an answer to no question
            return
        self._started = True
        if self._parser is None:
            self._parser = httptools.HttpResponseParser(self)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._rest.append(data[upgrade.args[0] :])
        except httptools.HttpParserError as error:
            if self._busy:
                self._broken(str(error.__context__ or error))
            return
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > 2 * HEAD_BYTES:
                self._broken("the answer's head is too large")
        if self._raw and self._stream is None:
            self._become_raw()

    def eof_received(self) -> bool:
        """The server ended its side: that is the end of a body without length, else it broke off."""
        if self._until_close and self._inflow is not None:
            self._complete()
        return False

    def pause_writing(self) -> None:
        """The server does not read."""
        self._outflow.pause()

    def resume_writing(self) -> None:
        """The server reads again."""
        self._outflow.resume()

    def connection_lost(self, exc: Exception | None) -> None:
        """It is gone."""
        self._lost = True
        self._outflow.lose()
        if self._until_close and self._inflow is not None and exc is None:
            self._complete()
        elif self._busy and not self._started:
            self._break(Stale())
        else:
            detail = f": {exc}" if exc else ""
            self._break(Unavailable(f"{self._name} closed the connection in the middle of its answer{detail}"))
        self._finish(reusable=False)
        self._parser = None

    # the parser's side --------------------------------------------------------------------------------------------------
    def on_message_begin(self) -> None:
        """An answer begins."""
        self._headers = []
        self._head_bytes = 0
        self._in_head = True

    def on_header(self, name: bytes, value: bytes) -> None:
        """A field of the head or of the trailers."""
        self._head_bytes += len(name) + len(value)
        if self._head_bytes > HEAD_BYTES:
            raise ValueError("the answer's head is too large")
        if self._in_head:
            self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        """The head is whole: hand it to the caller."""
        self._in_head = False
        status: int = self._parser.get_status_code()
        if 100 <= status < 200 and status != 101:
            return
        if status == 101 and not self._wants_stream:
            raise ValueError("it changed the protocol unasked")
        fields = Headers.received(self._headers)
        framed = "content-length" in fields or "transfer-encoding" in fields
        self._keep_alive = self._parser.should_keep_alive()
        inflow = Inflow(self.transport)
        answer = HttpAnswer(status, fields, inflow, self)
        self._answer = answer
        self._inflow = inflow
        if self._wants_stream and (status == 101 or (status == 200 and not framed)):
            self._raw = True
            return
        self._until_close = not framed and status not in (204, 304) and self._method != "HEAD"
        if self._head is not None and not self._head.done():
            self._head.set_result(answer)
        if self._method == "HEAD":
            self._parser = None  # it would wait for a body that Content-Length announces
            self._complete()

    def on_body(self, data: bytes) -> None:
        """A piece of the body."""
        if self._raw:
            self._rest.append(data)
        elif self._inflow is not None:
            self._inflow.feed(data)

    def on_message_complete(self) -> None:
        """The answer is whole."""
        if self._inflow is not None and not self._raw:
            self._complete()

    # ends ---------------------------------------------------------------------------------------------------------------
    def _become_raw(self) -> None:
        answer = self._answer
        assert answer is not None
        self._stream = Stream(self.transport, b"".join(self._rest), on_lost=self._stream_lost)
        self._rest = []
        self._parser = None
        self.transport.set_protocol(self._stream)
        if self._inflow is not None:
            self._inflow.end()
        if self._head is not None and not self._head.done():
            self._head.set_result(answer)

    def _stream_lost(self) -> None:
        self._lost = True
        self._answer = self._inflow = None
        self._finish(reusable=False)

    def _complete(self) -> None:
        inflow, self._inflow = self._inflow, None
        if inflow is not None:
            inflow.end()
        self._finish(reusable=self._keep_alive and self._sent and not self._until_close)

    def _broken(self, why: str) -> None:
        self._break(Unavailable(f"{self._name} gave an answer that cannot be read: {why}"))
        self.transport.abort()

    def _break(self, error: Exception) -> None:
        if self._head is not None and not self._head.done():
            self._head.set_exception(error)
        elif self._inflow is not None:
            self._inflow.fail(error)

    def _finish(self, *, reusable: bool) -> None:
        """End the exchange: once."""
        if not self._busy:
            return
        self._busy = False
        self._head = self._exchange = None
        inflow, self._inflow, self._answer = self._inflow, None, None
        if inflow is not None and not self._lost:
            inflow.fail(Unavailable(f"the answer of {self._name} was let go"))
        if self._sender is not None:
            self._sender.cancel()
            self._sender = None
        if not reusable and not self._lost:
            self.transport.abort()
        with contextlib.suppress(RuntimeError):  # the loop is closing
            self._on_free(self, reusable and not self._lost)
