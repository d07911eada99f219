"""The server's side of one connection: requests to the handler one after another, answers, time-outs, the end.

States: idle (no request), busy (a task runs the handler and sends its answer), lingering (refused: we read and drop, so
that the refusal arrives before the reset), raw (upgraded: a `Stream` has the transport), closed.
"""

import asyncio
import logging
import select
import socket
from collections import deque
from typing import Any

from wherry.errors import BadRequest, DeadlineExceeded, WherryError
from wherry.wire.envelopes import docker_error
from wherry.wire.flow import HIGH_BYTES, WRITE_HIGH_BYTES, Outflow
from wherry.wire.heads import CONTINUE
from wherry.wire.http import Headers, Request, Response, StreamBody
from wherry.wire.hub import Hub
from wherry.wire.peers import peer_of
from wherry.wire.reception import Reception, Refusal
from wherry.wire.sending import send, write_whole
from wherry.wire.streams import Stream

log = logging.getLogger(__name__)

# A refused body that is shorter than this is read and dropped, so that the connection can go on.
DROP_BYTES = 256 * 1024


class Connection(Reception):
    """One accepted connection: asyncio calls it, `Reception` gives it requests."""

    def __init__(self, hub: Hub) -> None:
        super().__init__(hub)
        self.outflow = Outflow()
        self.stream: Stream | None = None
        self.begun = False  # the current answer's head is written
        self.ending = False  # the server closes: a live stream ends in order
        self.tls = False
        self._loop = asyncio.get_running_loop()
        self._task: asyncio.Task[None] | None = None
        self._streaming = False
        self._queue: deque[Request] = deque()
        self._refusal: Refusal | None = None
        self._lingering = False
        self._closed = False
        self._eof = False
        # ticks of the hub
        self._since = 0
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
        if self._current is None or not self.transport.can_write_eof():
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

    # requests, from Reception -------------------------------------------------------------------------------------------
    def _arrived(self, request: Request) -> None:
        if self._current is None:
            self._start(request)
        else:
            self._queue.append(request)

    def _whole(self) -> None:
        if self._current is None:  # its answer went out before its body was here: now the next may come
            self._next()

    def _continue(self) -> None:
        if not self.begun:
            self.transport.write(CONTINUE)

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
