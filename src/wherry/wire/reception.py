"""Bytes of one connection in, requests out: the parser's side of the server.

While a request is busy and its body complete, further bytes wait unparsed in `_rest`: they are the next request, or the raw
stream after an upgrade. What the parser lets through and we do not (smuggling, limits) is refused here.
"""

import asyncio
import logging
from abc import ABC, abstractmethod
from typing import Any

import httptools

from wherry.errors import WherryError
from wherry.wire.flow import Inflow
from wherry.wire.http import Headers, Peer, Request, split_target
from wherry.wire.hub import Hub

log = logging.getLogger(__name__)

# What may wait unparsed behind a running request before we stop reading.
REST_BYTES = 64 * 1024
# How much is parsed at once: bounds how many pipelined requests one read can turn into.
HEAD_SLICE_BYTES = 16 * 1024
BODY_SLICE_BYTES = 64 * 1024

# Fields that may come once only, by their place in `on_headers_complete`.
_SPECIAL = {b"host": 0, b"content-length": 1, b"transfer-encoding": 2, b"expect": 3}
_METHODS = {method.encode(): method for method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")}


class Refusal(Exception):
    """A head that we do not take: the status to answer, and why."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class Reception(asyncio.Protocol, ABC):
    """The message that is being parsed; httptools calls the `on_...` methods, `Connection` fills in what follows."""

    def __init__(self, hub: Hub) -> None:
        self.hub = hub
        self.transport: asyncio.Transport
        self._peer = Peer("local")
        self._parser: Any = None
        self._current: Request | None = None  # the request whose handler runs
        self._rest = bytearray()
        self._deaf = False  # nothing more is parsed
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
        self._plain = False  # the rest of the body needs no parser, nor does what may follow it
        self._head_since = 0  # the hub's tick

    @abstractmethod
    def _arrived(self, request: Request) -> None:
        """A head is whole: start the request or queue it."""

    @abstractmethod
    def _whole(self) -> None:
        """A body is whole."""

    @abstractmethod
    def _continue(self) -> None:
        """A handler waits for a body that waits for its invitation."""

    @abstractmethod
    def _refuse_later(self, refusal: Refusal) -> None:
        """Stop parsing; answer what was understood, then refuse."""

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
                    if self._plain:
                        self._pass(data if start == 0 and step >= size else bytes(view[start : start + step]))
                        start += step
                        continue
                elif self._current is None:
                    step = HEAD_SLICE_BYTES
                else:
                    self._keep(view[start:])
                    return
                self._parse(view[start : start + step])
                start += step

    def _pass(self, data: bytes) -> None:
        """Take a piece of a body of known length without the parser, which would copy it; the next head gets a new one."""
        self._parser = None
        self.on_body(data)
        if not self._body_left:
            self._plain = False
            self.on_message_complete()

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
            self._plain = self._body_left > 0 and request.keep_alive and not request.upgrading
        self._arrived(request)

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
        self._resumed = self._plain = False
        self._body_left = 0
        if self._inflow is not None:
            inflow, self._inflow, self._receiving = self._inflow, None, None
            inflow.end()
            self._whole()

    def _keep(self, data: bytes | memoryview) -> None:
        self._rest += data
        if len(self._rest) > REST_BYTES:
            self.transport.pause_reading()
