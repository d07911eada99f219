"""WebSocket over our HTTP server and client: handshake, messages, ping and pong, close. Source: RFC 6455.

No extensions (nothing is compressed): Kubernetes' streams, the only users, do not compress either.
"""

import asyncio
import base64
import binascii
import contextlib
import hashlib
import logging
import os
from collections import deque
from collections.abc import Awaitable, Callable, Sequence

from wherry.clock import machine
from wherry.errors import BadRequest, Unavailable
from wherry.wire.client import HttpClient
from wherry.wire.envelopes import error_from
from wherry.wire.frames import Frame, FrameReader, Opcode, Violation, close_payload, encode, parse_close
from wherry.wire.http import HeaderInput, Headers, Request, Response
from wherry.wire.streams import Stream

log = logging.getLogger(__name__)

# The largest message that is taken, unless the caller says otherwise.
MESSAGE_BYTES = 4 * 1024 * 1024
# How long we wait for the peer's half of the close handshake.
CLOSE_S = 2.0
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


class WebSocket:
    """One connection. One task may receive, several may send. `protocol` is what was agreed on, "" for none.

    Pings are answered while somebody receives. `close_code` is what the peer closed with: 1005 without a code, 1006
    when the connection broke; None while it is open.
    """

    def __init__(self, stream: Stream, *, server: bool, protocol: str = "", limit_bytes: int = MESSAGE_BYTES) -> None:
        self.protocol = protocol
        self.close_code: int | None = None
        self.close_reason = ""
        self._stream = stream
        self._server = server
        self._limit_bytes = limit_bytes
        self._reader = FrameReader(masked=server, limit_bytes=limit_bytes)
        self._frames: deque[Frame] = deque()
        self._parts: list[bytes] = []
        self._parts_bytes = 0
        self._parts_kind: Opcode | None = None
        self._close_sent = False
        self._receiving = False

    async def recv(self) -> bytes | str | None:
        """Return the next message: str for text, bytes for binary; None when the connection is closed.

        A peer that breaks the protocol is closed with the code that says how, and the answer is None.
        """
        if self.close_code is not None:
            return None
        self._receiving = True
        try:
            while True:
                while self._frames:
                    message = await self._take(self._frames.popleft())
                    if message is not None:
                        return message
                    if self.close_code is not None:
                        return None
                data = await self._stream.read()
                if not data:
                    self._closed(1006, "the connection broke")
                    return None
                self._frames.extend(self._reader.feed(data))
        except Violation as violation:
            log.debug("websocket: %s", violation.message)
            await self._send_close(violation.code, violation.message)
            self._closed(violation.code, violation.message)
            return None
        except ConnectionError:
            self._closed(1006, "the connection broke")
            return None
        finally:
            self._receiving = False

    async def send(self, data: bytes | str) -> None:
        """Send one message; waits while the peer does not read. Raises ConnectionResetError when it is closed."""
        if self._close_sent:
            raise ConnectionResetError("the websocket is closed")
        if isinstance(data, str):
            await self._write(Opcode.TEXT, data.encode())
        else:
            await self._write(Opcode.BINARY, data)

    async def ping(self, payload: bytes = b"") -> None:
        """Send a ping; the pong is taken in by whoever receives."""
        await self._write(Opcode.PING, payload[:125])

    async def close(self, code: int = 1000, reason: str = "") -> None:
        """Close: say so, wait a moment for the peer's close (unless another task receives), let go of the connection."""
        await self._send_close(code, reason)
        if self.close_code is None and not self._receiving:
            with contextlib.suppress(TimeoutError):
                async with machine.timeout(CLOSE_S):
                    while await self.recv() is not None:
                        pass
        with contextlib.suppress(ConnectionError):
            await self._stream.finish(CLOSE_S)
        self._stream.close()

    async def _take(self, frame: Frame) -> bytes | str | None:
        """Act on one frame; return a message when it completes one."""
        match frame.opcode:
            case Opcode.PING:
                if not self._close_sent:
                    await self._write(Opcode.PONG, frame.payload)
            case Opcode.PONG:
                pass
            case Opcode.CLOSE:
                code, reason = parse_close(frame.payload)
                await self._send_close(1000 if code == 1005 else code, "")
                self._closed(code, reason)
            case Opcode.CONTINUATION:
                if self._parts_kind is None:
                    raise Violation(1002, "a continuation of nothing")
                return self._part(frame)
            case Opcode.TEXT | Opcode.BINARY:
                if self._parts_kind is not None:
                    raise Violation(1002, "a new message began before the last one ended")
                if frame.final:
                    return _message(frame.opcode, frame.payload)
                self._parts_kind = frame.opcode
                return self._part(frame)
        return None

    def _part(self, frame: Frame) -> bytes | str | None:
        """Add a fragment; return the message when it was the last."""
        self._parts_bytes += len(frame.payload)
        # Each part counts for a little more than its bytes, or a flood of empty ones would grow without bound.
        if self._parts_bytes + 64 * len(self._parts) > self._limit_bytes + 64 * 1024:
            raise Violation(1009, f"a message has more than {self._limit_bytes} bytes")
        if self._parts_bytes > self._limit_bytes:
            raise Violation(1009, f"a message has more than {self._limit_bytes} bytes")
        self._parts.append(frame.payload)
        if not frame.final or self._parts_kind is None:
            return None
        kind, payload = self._parts_kind, b"".join(self._parts)
        self._parts, self._parts_kind, self._parts_bytes = [], None, 0
        return _message(kind, payload)

    async def _write(self, opcode: Opcode, payload: bytes) -> None:
        await self._stream.write(encode(opcode, payload, key=None if self._server else os.urandom(4)))

    async def _send_close(self, code: int, reason: str) -> None:
        """Send the close frame, once; a peer that does not read does not hold us for long."""
        if not self._close_sent:
            self._close_sent = True
            with contextlib.suppress(ConnectionError, TimeoutError):
                async with machine.timeout(CLOSE_S):
                    await self._write(Opcode.CLOSE, close_payload(code, reason))

    def _closed(self, code: int, reason: str) -> None:
        if self.close_code is None:
            self.close_code, self.close_reason = code, reason
        self._close_sent = True
        self._frames.clear()
        self._parts.clear()


def _message(kind: Opcode, payload: bytes) -> bytes | str:
    if kind is Opcode.BINARY:
        return payload
    try:
        return payload.decode()
    except UnicodeDecodeError:
        raise Violation(1007, "a text message is not UTF-8") from None


def _accept_key(key: bytes) -> str:
    return base64.b64encode(hashlib.sha1(key + _GUID, usedforsecurity=False).digest()).decode()


def accept(
    request: Request,
    protocols: Sequence[str],
    callback: Callable[[WebSocket], Awaitable[None]],
    *,
    limit_bytes: int = MESSAGE_BYTES,
) -> Response:
    """Answer a WebSocket handshake; `callback` then talks, and the connection is closed when it returns.

    `protocols` are ours in the order we prefer; the first that the client offers is taken. "" among them lets a client
    that offers none in; with no `protocols` at all what the client offers is ignored. Raises BadRequest for a request that
    is no handshake or has no protocol in common; 426 for another version than 13.
    """
    headers = request.headers
    if request.method != "GET" or request.upgrade != "websocket":
        raise BadRequest("this is a WebSocket: send GET with Connection: Upgrade and Upgrade: websocket")
    if headers.get("sec-websocket-version") != "13":
        return Response(426, {"Sec-WebSocket-Version": "13", "Upgrade": "websocket"}, b"")
    key = (headers.get("sec-websocket-key") or "").encode("latin-1")
    try:
        whole = len(base64.b64decode(key, validate=True)) == 16
    except binascii.Error:
        whole = False
    if not whole:
        raise BadRequest("Sec-WebSocket-Key is not 16 bytes in base64")
    offered = [part.strip() for value in headers.all("sec-websocket-protocol") for part in value.split(",")]
    chosen = next((each for each in protocols if each in offered or (not each and not offered)), None)
    if chosen is None and protocols:
        raise BadRequest(f"no WebSocket protocol in common: you offer {offered}, we have {list(protocols)}")
    answer = Headers({"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Accept": _accept_key(key)})
    if chosen:
        answer.add("Sec-WebSocket-Protocol", chosen)

    async def serve(stream: Stream) -> None:
        ws = WebSocket(stream, server=True, protocol=chosen or "", limit_bytes=limit_bytes)
        try:
            await callback(ws)
        except asyncio.CancelledError:
            await ws._send_close(1001, "the server is closing")  # pyright: ignore[reportPrivateUsage]  # same noun
            raise
        except ConnectionError:
            return
        except Exception:
            log.exception("%s: the handler of the websocket failed", request)
            await ws.close(1011, "internal error")
            return
        await ws.close()

    return Response.upgrade(answer, serve)


async def connect(
    client: HttpClient,
    path: str,
    protocols: Sequence[str] = (),
    *,
    query: Sequence[tuple[str, str]] = (),
    headers: HeaderInput = None,
    limit_bytes: int = MESSAGE_BYTES,
) -> WebSocket:
    """Open a WebSocket. Raises the error that the server's refusal says (Forbidden, NotFound...), Unavailable for no answer."""
    key = base64.b64encode(os.urandom(16))
    wanted = Headers(headers)
    wanted.set("Connection", "Upgrade")
    wanted.set("Upgrade", "websocket")
    wanted.set("Sec-WebSocket-Version", "13")
    wanted.set("Sec-WebSocket-Key", key.decode())
    if protocols:
        wanted.set("Sec-WebSocket-Protocol", ", ".join(protocols))
    answer, stream = await client.upgrade("GET", path, query, wanted)
    if answer.status != 101:
        stream.close()
        if answer.status == 200:
            raise Unavailable(f"{client.endpoint}{path} is no WebSocket")
        body = await answer.read(limit=64 * 1024)
        raise error_from(answer.status, body, f"{client.endpoint}{path} refused the WebSocket")
    chosen = answer.headers.get("sec-websocket-protocol", "")
    wrong = answer.headers.get("sec-websocket-accept") != _accept_key(key) or (chosen and chosen not in protocols)
    if wrong or answer.headers.get("upgrade", "").lower() != "websocket":
        stream.abort()
        raise Unavailable(f"{client.endpoint}{path} answered a WebSocket handshake wrongly")
    return WebSocket(stream, server=False, protocol=chosen, limit_bytes=limit_bytes)
