"""The server's side of one connection: bytes in, requests out to the handler one after another, time-outs, the end.

States: idle (no request), busy (a task runs the handler and sends its answer), lingering (refused: we read and drop, so
that the refusal arrives before the reset), raw (upgraded: a `Stream` has the transport), closed. While a request is busy
and its body complete, further bytes wait unparsed in `_rest`: the next request, or the raw stream after an upgrade.
"""

import asyncio
import logging
import select
import socket
from collections import deque
from typing import Any

import httptools

from wherry.errors import BadRequest, DeadlineExceeded, WherryError
from wherry.wire.envelopes import docker_error
from wherry.wire.flow import HIGH_BYTES, WRITE_HIGH_BYTES, Inflow, Outflow
from wherry.wire.heads import CONTINUE
from wherry.wire.http import Headers, Peer, Request, Response, StreamBody, split_target
from wherry.wire.hub import Hub
from wherry.wire.peers import peer_of
from wherry.wire.sending import send, write_whole
from wherry.wire.streams import Stream

log = logging.getLogger(__name__)

# What may wait unparsed behind a running request before we stop reading.
REST_BYTES = 64 * 1024
# How much is parsed at once: bounds how many pipelined requests one read can turn into.
HEAD_SLICE_BYTES = 16 * 1024
BODY_SLICE_BYTES = 64 * 1024
# A refused body that is shorter than this is read and dropped, so that the connection can go on.
DROP_BYTES = 256 * 1024

# Fields that may come once only, by their place in `on_headers_complete`.
_SPECIAL = {b"host": 0, b"content-length": 1, b"transfer-encoding": 2, b"expect": 3}
_METHODS = {method.encode(): method for method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")}


class Refusal(Exception):
    """A head that we do not take: the status to answer, and why."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class Connection(asyncio.Protocol):
    """One accepted connection; asyncio calls it, and httptools' parser calls its `on_...` methods."""

    def __init__(self, hub: Hub) -> None:
        self.hub = hub
        self.outflow = Outflow()
        self.transport: asyncio.Transport
        self.stream: Stream | None = None
        self.begun = False  # the current answer's head is written
        self.ending = False  # the server closes: a live stream ends in order
        self.tls = False
        self._peer = Peer("local")
        self._loop = asyncio.get_running_loop()
        self._parser: Any = None
        self._task: asyncio.Task[None] | None = None
        self._current: Request | None = None
        self._streaming = False
        self._queue: deque[Request] = deque()
        self._rest = bytearray()
        self._refusal: Refusal | None = None
        self._deaf = False  # nothing more is parsed
        self._lingering = False
        self._closed = False
        self._eof = False
        # the message that is being parsed
        self._url = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._length: bytes | None = None
        self._encoding: bytes | None = None
        self._head_bytes = 0
        self._in_head = False
        self._resumed = False  # the parser was fed a made-up head, for the body of a request that asks for an upgrade
        self._inflow: Inflow | None = None
        self._receiving: Request | None = None  # the request that `_inflow` belongs to
        self._body_left = 0
        # ticks of the hub
        self._since = 0
        self._head_since = 0
        self._backlog = -1
        self._backlog_since = 0

    # asyncio's side -----------------------------------------------------------------------------------------------------
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Accept: find out who it is, or say that there are too many."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self._since = self.hub.tick
        transport.set_write_buffer_limits(high=WRITE_HIGH_BYTES)
        others = len(self.hub.connections)
        self.hub.join(self)
        if others >= 2 * self.hub.limits.connections:  # even saying no takes more than we have
            self._deaf = True
            transport.abort()
            return
        try:
            self._peer = peer_of(transport)
        except OSError:  # it has gone already
            transport.abort()
            return
        self.tls = self._peer.kind == "tls"
        if self._peer.kind != "unix":
            _keep_alive(transport.get_extra_info("socket"))
        if others >= self.hub.limits.connections or self.hub.closing:
            self._refuse(Refusal(503, "the server has too many connections; try again later"))

    def data_received(self, data: bytes) -> None:
        """Parse what came, or keep it for later."""
        self._since = self.hub.tick
        if self._deaf:
            return
        if self._current is not None and self._inflow is None:
            self._keep(data)
        else:
            self._feed(data)

    def eof_received(self) -> bool:
        """The client ended its side. A complete request is still answered, if it is soon; a stream is ended."""
        self._eof = True
        self._since = self.hub.tick
        if self._receiving is not None and self._inflow is not None:
            self._receiving.keep_alive = False
            self._inflow.fail(BadRequest("the connection ended in the middle of the body"))
        if self._current is None or self.tls:
            return False
        if self._streaming and self._task is not None:
            self._task.cancel()
        return True

    def pause_writing(self) -> None:
        """The client does not read."""
        self.outflow.pause()

    def resume_writing(self) -> None:
        """The client reads again."""
        self.outflow.resume()

    def connection_lost(self, exc: Exception | None) -> None:
        """It is gone: what still runs for it is cancelled."""
        del exc  # reset, time-out or close: nobody is left to be told
        self._lost()

    def _lost(self) -> None:
        self._closed = self._deaf = True
        self.hub.leave(self)
        self.outflow.lose()
        if self._inflow is not None:
            self._inflow.fail(BadRequest("the connection was lost in the middle of the body"))
            self._inflow = self._receiving = None
        self._parser = None  # it and we hold each other
        self._queue.clear()
        if self._task is not None:
            self._task.cancel()

    # the parser's side --------------------------------------------------------------------------------------------------
    def _feed(self, data: bytes) -> None:
        size = len(data)
        if size <= HEAD_SLICE_BYTES and self._inflow is None:
            self._parse(data)
        else:
            view = memoryview(data)
            start = 0
            while start < size and not self._deaf:
                if self._inflow is not None:
                    step = self._body_left or BODY_SLICE_BYTES
                elif self._current is None:
                    step = HEAD_SLICE_BYTES
                else:
                    self._keep(view[start:])
                    return
                self._parse(view[start : start + step])
                start += step

    def _parse(self, data: bytes | memoryview) -> None:
        if self._parser is None:
            self._parser = httptools.HttpRequestParser(self)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._after_upgrade_head(bytes(data[upgrade.args[0] :]))
        except httptools.HttpParserError as error:
            cause = error.__context__
            if isinstance(cause, Refusal):
                self._refuse_later(cause)
            elif isinstance(cause, WherryError):
                self._refuse_later(Refusal(400, cause.message))
            elif isinstance(error, httptools.HttpParserCallbackError):
                log.error("%s: parsing a request failed", self._peer.kind, exc_info=cause or error)
                self._refuse_later(Refusal(400, "the request cannot be read"))
            else:
                self._refuse_later(Refusal(400, f"the request is not HTTP/1.1: {error}"))
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > self.hub.limits.header_bytes + HEAD_SLICE_BYTES:
                self._refuse_later(Refusal(431, "the request's head is too large"))

    def _after_upgrade_head(self, rest: bytes) -> None:
        """Go on after the head of a request that asks for an upgrade: the parser skipped its body, which Docker's exec has."""
        request = self._receiving
        self._parser = None
        if request is None or self._inflow is None:
            if rest:
                self._keep(rest)
            return
        parser = self._parser = httptools.HttpRequestParser(self)
        length, encoding = self._length, self._encoding
        framing = (
            b"Content-Length: " + length if length is not None else b"Transfer-Encoding: " + (encoding or b"chunked")
        )
        self._resumed = True
        parser.feed_data(b"POST / HTTP/1.1\r\n" + framing + b"\r\n\r\n")
        if length is not None and len(rest) > int(length):
            self._parse(rest[: int(length)])
            self._keep(rest[int(length) :])
        elif rest:
            self._parse(rest)

    def on_message_begin(self) -> None:
        """A request line begins."""
        if self._resumed:
            return
        self._url = b""
        self._headers = []
        self._head_bytes = 0
        self._in_head = True
        self._head_since = self.hub.tick

    def on_url(self, url: bytes) -> None:
        """A piece of the request target."""
        if self._resumed:
            return
        self._url += url
        if len(self._url) > self.hub.limits.header_bytes:
            raise Refusal(414, "the request target is too long")

    def on_header(self, name: bytes, value: bytes) -> None:
        """A field of the head, or of the trailers, which are dropped."""
        if self._in_head:
            self._headers.append((name, value))
        elif not self._resumed:
            self._head_bytes += len(name) + len(value) + 4
            if self._head_bytes > self.hub.limits.header_bytes:
                raise Refusal(431, "the trailers are too large")

    def on_headers_complete(self) -> None:
        """The head is whole: make the request and start it, or queue it behind the current one."""
        if self._resumed:
            return
        self._in_head = False
        headers, limits = self._headers, self.hub.limits
        # `_head_bytes` are those of the reads before this one: only a head that may be too large is counted exactly.
        if len(headers) > limits.header_count or (
            self._head_bytes + HEAD_SLICE_BYTES > limits.header_bytes
            and sum([len(name) + len(value) + 4 for name, value in headers]) > limits.header_bytes
        ):
            raise Refusal(
                431, f"the request's head is larger than {limits.header_bytes} bytes or {limits.header_count} fields"
            )
        self._head_bytes = 0
        special: list[bytes | None] = [None, None, None, None]
        for field, value in headers:
            which = _SPECIAL.get(field.lower())
            if which is not None:
                if special[which] is not None:
                    raise Refusal(400, f"the field {field.decode('latin-1')} comes twice")
                special[which] = value
        host, self._length, self._encoding, expect = special
        length, encoding = self._length, self._encoding
        parser = self._parser
        version = parser.get_http_version()
        if version == "1.1":
            if host is None:
                raise Refusal(400, "the field Host is missing")
        elif version != "1.0":
            raise Refusal(505, f"HTTP/{version} is not spoken here; use HTTP/1.1")
        name = parser.get_method()
        method = _METHODS.get(name) or name.decode("latin-1")
        if method == "CONNECT":
            raise Refusal(405, "CONNECT is not supported: this server is no proxy")
        inflow: Inflow | None = None
        if encoding is not None:
            if encoding.strip().lower() != b"chunked" or version == "1.0" or length is not None:
                raise Refusal(400, "Transfer-Encoding may only be chunked, on HTTP/1.1, and without Content-Length")
            inflow = Inflow(self.transport)
        elif length is not None and length.strip(b"0"):
            inflow = Inflow(self.transport)
            self._body_left = int(length)
        try:
            target = self._url.decode()
        except UnicodeDecodeError:
            raise Refusal(400, "the request target is not UTF-8") from None
        path, raw_query = split_target(target)
        request = Request(
            method, path, None, Headers.received(headers), self._peer, target, raw_query=raw_query, inflow=inflow
        )
        request.version = version
        request.keep_alive = parser.should_keep_alive()
        request.upgrading = parser.should_upgrade()
        if expect is not None:
            if expect.strip().lower() != b"100-continue":
                raise Refusal(417, "only Expect: 100-continue is understood")
            if inflow is not None and version == "1.1":
                inflow.on_wait = self._continue
        if inflow is not None:
            self._inflow = inflow
            self._receiving = request
        if self._current is None:
            self._start(request)
        else:
            self._queue.append(request)

    def on_body(self, data: bytes) -> None:
        """A piece of the body."""
        if self._body_left:
            self._body_left -= len(data)
        if self._inflow is not None:
            self._inflow.feed(data)

    def on_message_complete(self) -> None:
        """The request is whole."""
        if self._receiving is not None and self._receiving.upgrading and not self._resumed:
            return  # its body follows: see _after_upgrade_head
        self._resumed = False
        self._body_left = 0
        if self._inflow is not None:
            inflow, self._inflow, self._receiving = self._inflow, None, None
            inflow.end()
            if self._current is None:  # its answer went out before its body was here: now the next may come
                self._next()

    def _continue(self) -> None:
        if not self.begun:
            self.transport.write(CONTINUE)

    def _keep(self, data: bytes | memoryview) -> None:
        self._rest += data
        if len(self._rest) > REST_BYTES:
            self.transport.pause_reading()

    # the handler's side -------------------------------------------------------------------------------------------------
    def _start(self, request: Request) -> None:
        self._current = request
        self._task = asyncio.Task(self._run(request), loop=self._loop, name="request")

    async def _run(self, request: Request) -> None:
        """Call the handler, send its answer; whatever happens, go on with the next request or close."""
        self.begun = False
        whole = False
        try:
            try:
                response = await self.hub.handler(request)
            except Exception as error:
                response = self.hub.answer_error(request, error)
            body = response.body
            if type(body) is bytes and not response.compress and len(body) <= HIGH_BYTES:
                write_whole(self, request, response, body)
                if self.outflow.blocked:
                    await self.outflow.drain()
            else:
                self._streaming = type(body) is StreamBody and "content-length" not in response.headers
                await send(self, request, response)
            whole = True
        except ConnectionError:
            log.debug("%s: the client went away", request)
        except Exception as error:
            whole = await self._failed(request, error)
        finally:
            self._done(request, whole)

    async def _failed(self, request: Request, error: Exception) -> bool:
        """The answer could not be sent: say so if nothing was sent yet, else break the connection so that it shows."""
        if self.begun:
            if isinstance(error, WherryError):
                log.warning("%s: the answer broke off: %s", request, error.message)
            else:
                log.error("%s: the answer broke off", request, exc_info=error)
            return False
        response = self.hub.answer_error(request, error)
        try:
            await send(self, request, response)
        except Exception:
            log.exception("%s: the error could not be sent either", request)
            return False
        return True

    def _done(self, request: Request, whole: bool) -> None:
        self._current = self._task = None
        self._streaming = False
        self._since = self.hub.tick
        if self._closed or self.stream is not None:
            return
        if not whole:
            self._deaf = True
            self.transport.abort()
        elif not request.keep_alive or self.hub.closing:
            self._linger()
        elif self._receiving is request and self._inflow is not None:
            # The handler left some of the body: drop a short rest, break with a long one or one that was not invited.
            if self._inflow.on_wait is not None or self._body_left > DROP_BYTES:
                self._linger()
            else:
                self._inflow.discard()
        else:
            self._next()

    def _next(self) -> None:
        """Start the next parsed request, or parse what waits, or rest."""
        if self._queue:
            self._start(self._queue.popleft())
        elif self._rest and not self._deaf:
            data = bytes(self._rest)
            self._rest.clear()
            self.transport.resume_reading()
            self._feed(data)
        if self._current is not None or self._inflow is not None:
            return
        if self._refusal is not None:
            self._refuse(self._refusal)
        elif self._eof:
            self._deaf = True
            self.transport.close()

    # refusing and ending ------------------------------------------------------------------------------------------------
    def _refuse_later(self, refusal: Refusal) -> None:
        """Stop parsing; answer what was understood, then refuse."""
        self._deaf = True
        self._in_head = False
        if self._inflow is not None and self._receiving is not None:
            self._receiving.keep_alive = False
            self._inflow.fail(BadRequest(f"the body cannot be read: {refusal.message}"))
            if self._current is not None:
                self._inflow = None
                return
            self._inflow = self._receiving = None
        self._refusal = refusal
        if self._current is None:
            self._refuse(refusal)

    def _refuse(self, refusal: Refusal) -> None:
        response = Response.json(docker_error(refusal.message), refusal.status)
        request = Request("GET", "/", (), Headers(), self._peer)
        request.keep_alive = False
        assert isinstance(response.body, bytes)
        write_whole(self, request, response, response.body)
        self._linger(more=True)

    def _linger(self, *, more: bool = False) -> None:
        """Close; when `more` may come, end our side and read and drop for a moment first.

        A close with unread bytes would make the kernel reset the connection, and our last answer would be lost with it.
        """
        more = more or self._inflow is not None or bool(self._rest)
        self._deaf = True
        self._lingering = True
        self._since = self.hub.tick
        if self._inflow is not None:
            self._inflow.discard()
        self._rest.clear()
        if self._eof or not more or self.transport.is_closing():
            self.transport.close()
            return
        self.transport.resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()

    # the hub's side -----------------------------------------------------------------------------------------------------
    def check(self) -> None:
        """Look at the time-outs; called once a tick."""
        hub, limits, transport = self.hub, self.hub.limits, self.transport
        quiet = hub.tick - self._since
        if self.stream is not None:
            if self.stream.half_closed and self._hung_up():
                transport.abort()
            return
        backlog = transport.get_write_buffer_size()
        if backlog and (self.outflow.blocked or transport.is_closing() or self._current is None):
            if backlog != self._backlog:
                self._backlog, self._backlog_since = backlog, hub.tick
            elif hub.tick - self._backlog_since > hub.ticks(limits.write_s):
                transport.abort()
            return
        self._backlog = -1
        if self._lingering or transport.is_closing():
            if quiet > hub.ticks(limits.linger_s):
                transport.abort()
        elif self._inflow is not None and (self._inflow.waiting or self._current is None):
            if quiet > hub.ticks(limits.body_s):
                self._stalled()
        elif self._current is not None:
            if self._eof and self._task is not None and (quiet > hub.ticks(limits.half_close_s) or self._hung_up()):
                self._task.cancel()
        elif self._in_head:
            if hub.tick - self._head_since > hub.ticks(limits.head_s):
                self._refuse(Refusal(408, f"the request's head did not arrive within {limits.head_s:g} s"))
        elif quiet > hub.ticks(limits.idle_s):
            self._deaf = True
            transport.close()

    def _stalled(self) -> None:
        """The body does not go on."""
        assert self._inflow is not None
        if self._receiving is not None:
            self._receiving.keep_alive = False
        self._deaf = True
        limits = self.hub.limits
        self._inflow.fail(DeadlineExceeded(f"no piece of the body came for {limits.body_s:g} s"))
        if self._current is None:
            self.transport.abort()

    def _hung_up(self) -> bool:
        """Whether the client has closed both sides; only a unix socket tells."""
        sock: Any = self.transport.get_extra_info("socket")
        if self._peer.kind != "unix" or sock is None or sock.fileno() < 0:
            return False
        poll = select.poll()
        poll.register(sock.fileno(), 0)
        return any(event & (select.POLLHUP | select.POLLERR) for _, event in poll.poll(0))

    def shut(self) -> None:
        """The server closes: go when idle, end a live stream, else finish the current request first."""
        if self._current is None and self.stream is None:
            self._deaf = True
            self.transport.close()
        elif self._streaming and self._task is not None:
            self.ending = True
            self._task.cancel()

    def take_rest(self) -> bytes:
        """Hand over what came behind the current request. Raises ConnectionResetError when it was parsed as HTTP already."""
        if self._queue or self._refusal is not None or self._in_head:
            raise ConnectionResetError("the client sent requests behind one that became a raw stream")
        self._deaf = True
        self._parser = None
        rest = bytes(self._rest)
        self._rest.clear()
        return rest

    def become_raw(self, rest: bytes) -> Stream:
        """Give the transport to a Stream."""
        self.stream = Stream(self.transport, rest, on_lost=self._lost)
        self.transport.set_protocol(self.stream)
        self.transport.resume_reading()
        if self._eof:
            self.stream.eof_received()
        return self.stream

    def cancel(self) -> asyncio.Task[None] | None:
        """Cancel what runs; return its task."""
        if self._task is not None:
            self._task.cancel()
        return self._task


def _keep_alive(sock: Any) -> None:
    """Let the kernel find peers that vanished without a word (a watch may be silent for long)."""
    if sock is None:
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 15)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4)
