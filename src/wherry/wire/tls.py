"""TLS with half-close: an asyncio transport over another one, by OpenSSL on memory.

asyncio's own TLS closes a connection as soon as the peer has said that it will send no more (close_notify). Docker's
clients say that at the end of their standard input, and go on reading: `echo text | docker exec -i NAME cat`. Here the
peer's end-of-data is `eof_received` and ours is `write_eof`, as with plain TCP. The end of the TCP connection ends both.

Source: RFC 8446, section 6.1; Python's documentation of `ssl.SSLObject`.
"""

import asyncio
import logging
import ssl
from collections.abc import Callable
from contextlib import suppress
from typing import Any

log = logging.getLogger(__name__)

READ_BYTES = 64 * 1024
HANDSHAKE_RECORD = 0x16
PLAIN_ANSWER = (
    b"HTTP/1.0 400 Bad Request\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\n"
    b"Client sent an HTTP request to an HTTPS server: this address speaks TLS only, and asks for a client certificate.\n"
)
"""What a client gets whose first byte begins no TLS handshake: the first sentence is what Docker's clients look for."""


class TlsTransport(asyncio.Transport):
    """What the protocol above writes to. `ssl_object` has the peer's certificate."""

    def __init__(self, layer: "TlsLayer", lower: asyncio.Transport, tls: ssl.SSLObject) -> None:
        super().__init__()
        self._layer, self._lower, self._tls = layer, lower, tls
        self._closing = False
        self._wrote_eof = False

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """`ssl_object`, else what the connection below knows."""
        return self._tls if name == "ssl_object" else self._lower.get_extra_info(name, default)

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Hand what comes to another protocol from now on."""
        assert isinstance(protocol, asyncio.Protocol)
        self._layer.upper = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        """Who gets what comes."""
        assert self._layer.upper is not None
        return self._layer.upper

    def is_closing(self) -> bool:
        """Whether it is closed or about to be."""
        return self._closing or self._lower.is_closing()

    def is_reading(self) -> bool:
        """Whether what comes is handed on."""
        return not self._layer.paused

    def pause_reading(self) -> None:
        """Hand nothing on for now."""
        self._layer.paused = True
        self._lower.pause_reading()

    def resume_reading(self) -> None:
        """Hand on what waits, and what comes."""
        if self._layer.paused:
            self._layer.paused = False
            asyncio.get_running_loop().call_soon(self._layer.proceed)  # it may be decrypted already: no byte need come
        if not self._lower.is_closing():
            self._lower.resume_reading()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """See asyncio: counted in encrypted bytes."""
        self._lower.set_write_buffer_limits(high=high, low=low)

    def get_write_buffer_size(self) -> int:
        """How many encrypted bytes wait."""
        return self._lower.get_write_buffer_size()

    def get_write_buffer_limits(self) -> tuple[int, int]:
        """See asyncio."""
        return self._lower.get_write_buffer_limits()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Encrypt and send; nothing once our side has ended."""
        if data and not self._wrote_eof and not self._closing:
            try:
                self._tls.write(data)
            except ssl.SSLError as error:
                log.debug("tls: %s", error)
                self.abort()
                return
            self._layer.flush()

    def can_write_eof(self) -> bool:
        """It can: that is what this module is for."""
        return True

    def write_eof(self) -> None:
        """Say that no more comes from us (close_notify); the peer may go on."""
        if not self._wrote_eof:
            self._wrote_eof = True
            with suppress(ssl.SSLError):  # it also asks whether the peer has ended, and complains where it has not
                self._tls.unwrap()
            self._layer.flush()

    def close(self) -> None:
        """Say that no more comes, send what waits, then close both sides."""
        if not self._closing:
            self.write_eof()
            self._closing = True
            self._lower.close()

    def abort(self) -> None:
        """Close at once."""
        self._closing = True
        self._lower.abort()


class TlsLayer(asyncio.Protocol):
    """The protocol of the connection below: shakes hands, decrypts, hands on to the protocol that `make` gives."""

    def __init__(self, make: Callable[[], asyncio.Protocol], context: ssl.SSLContext, handshake_s: float) -> None:
        self._make = make
        self._handshake_s = handshake_s
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._lower: asyncio.Transport | None = None
        self._transport: TlsTransport | None = None
        self._alarm: asyncio.TimerHandle | None = None
        self._begun = self._ended = False
        self.upper: asyncio.Protocol | None = None
        self.paused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A connection: the handshake has `handshake_s`."""
        assert isinstance(transport, asyncio.Transport)
        self._lower = transport
        self._alarm = asyncio.get_running_loop().call_later(self._handshake_s, transport.abort)

    def data_received(self, data: bytes) -> None:
        """Take encrypted bytes."""
        assert self._lower is not None
        if not self._begun:
            self._begun = True
            if data[0] != HANDSHAKE_RECORD:
                self._ended = True
                self._lower.write(PLAIN_ANSWER)
                self._lower.close()
                return
        if not self._ended or self.upper is not None:
            self._incoming.write(data)
            self.proceed()

    def proceed(self) -> None:
        """Go on with what is there: the handshake, then data."""
        assert self._lower is not None
        if self._lower.is_closing():
            return
        try:
            if self._transport is None and not self._shake_hands(self._lower):
                return
            self._read()
        except ssl.SSLError as error:  # no certificate, one of another authority, a damaged record
            log.debug("tls: %s: %s", self._lower.get_extra_info("peername"), error)
            self.flush()  # an alert that says why
            self._ended = True
            self._lower.close()

    def _shake_hands(self, lower: asyncio.Transport) -> bool:
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            self.flush()
            return False
        self._calm()
        self.flush()
        self._transport = TlsTransport(self, lower, self._tls)
        self.upper = self._make()
        self.upper.connection_made(self._transport)
        return True

    def _read(self) -> None:
        while self.upper is not None and not self.paused and not self._ended:
            try:
                data = self._tls.read(READ_BYTES)
            except ssl.SSLWantReadError:
                break
            except ssl.SSLZeroReturnError:
                data = b""
            if data:
                self.upper.data_received(data)
                continue
            self._ended = True
            if not self.upper.eof_received() and self._transport is not None:
                self._transport.close()
        self.flush()

    def flush(self) -> None:
        """Send what OpenSSL has made."""
        if self._lower is not None and (data := self._outgoing.read()):
            self._lower.write(data)

    def eof_received(self) -> bool:
        """The TCP connection's other side has ended: nobody reads what we would say; close."""
        return False

    def pause_writing(self) -> None:
        """The peer does not read."""
        if self.upper is not None:
            self.upper.pause_writing()

    def resume_writing(self) -> None:
        """The peer reads again."""
        if self.upper is not None:
            self.upper.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """It is gone."""
        self._calm()
        if self.upper is not None:
            self.upper.connection_lost(exc)

    def _calm(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
