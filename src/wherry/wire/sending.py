"""How an answer goes out: whole, streamed, from a file, or as the head of a raw stream."""

import asyncio
import fcntl
import logging
import os
import re
import socket
import termios
from typing import TYPE_CHECKING, assert_never

from wherry.clock import machine
from wherry.errors import WherryError
from wherry.wire.flow import HIGH_BYTES
from wherry.wire.heads import fields, status_line
from wherry.wire.http import JSON_FIELD, FileBody, Request, Response, StreamBody, UpgradeBody
from wherry.wire.streams import Stream

if TYPE_CHECKING:
    from wherry.wire.connection import Connection

log = logging.getLogger(__name__)

# Up to here head and body go out by one write; beyond, copying costs more than the second system call.
JOIN_BYTES = 64 * 1024
# How much of a file one sendfile call sends: each call must end within Limits.write_s. It grows up to MOST while the client
# takes a slice within QUICK_S, since each call costs; a larger one would hold up the other connections.
FILE_SLICE_BYTES = 2 * 1024 * 1024
FILE_SLICE_MOST_BYTES = 16 * 1024 * 1024
FILE_QUICK_S = 0.25
# Compressing less saves no packet worth the time; beyond THREAD_BYTES it goes to a thread.
COMPRESS_BYTES = 16 * 1024
THREAD_BYTES = 64 * 1024
STREAM_BYTES = 64 * 1024
# How long a raw stream waits for its client to have read the head.
HEAD_READ_S = 1.0

_OURS = frozenset(("content-length", "transfer-encoding", "connection", "keep-alive", "date"))
_BODILESS = frozenset((204, 304))
_REFUSED = re.compile(r";q=0(\.0*)?$")
_JSON_TEXT = fields((JSON_FIELD,))
_NOTHING = bytes(4)  # an int of C


def _head(
    connection: "Connection", request: Request, response: Response, length: int | None, *, chunked: bool = False
) -> bytes:
    """Write the head. `length` None: no Content-Length, unless the handler gave one to a bodiless answer."""
    items = response.headers.items()
    date = connection.hub.date_line
    close = not request.keep_alive or connection.hub.closing
    status = response.status
    announced: str | None = None
    if len(items) == 1 and items[0] is JSON_FIELD:  # most answers
        text = _JSON_TEXT
    else:
        ours = False
        for name, value in items:
            if (low := name.lower()) in _OURS:
                ours = True
                if low == "content-length":
                    announced = value
                elif low == "date":
                    date = fields((("Date", value),))
                elif low == "connection" and value.lower() == "close":
                    close = True
        text = fields([item for item in items if item[0].lower() not in _OURS] if ours else items)
    if close:
        request.keep_alive = False
    if chunked:
        framing = "Transfer-Encoding: chunked\r\n"
    elif announced is not None and (request.method == "HEAD" or status == 304):
        framing = f"Content-Length: {announced}\r\n"
    elif length is not None and status not in _BODILESS:
        framing = f"Content-Length: {length}\r\n"
    else:
        framing = ""
    if close:
        framing += "Connection: close\r\n"
    elif request.version == "1.0":
        framing += "Connection: keep-alive\r\n"
    return f"{status_line(status)}{text}{date}{framing}\r\n".encode()


def is_bodiless(request: Request, response: Response) -> bool:
    """Say whether the answer ends with its head. Source: RFC 9110, section 6.4.1."""
    return request.method == "HEAD" or response.status in _BODILESS


def write_whole(connection: "Connection", request: Request, response: Response, body: bytes) -> None:
    """Send a whole answer without waiting; the caller drains."""
    head = _head(connection, request, response, len(body))
    connection.begun = True
    connection.transport.write(head if is_bodiless(request, response) else head + body)


async def send(connection: "Connection", request: Request, response: Response) -> None:
    """Send any answer. Raises ConnectionError when the client is gone, and whatever the body's maker raises."""
    body = response.body
    match body:
        case bytes():
            if response.compress and len(body) >= COMPRESS_BYTES and _wants_gzip(request):
                body = await _gzip(body)
                response.headers.set("Content-Encoding", "gzip")
            if response.compress:
                response.headers.set("Vary", "Accept-Encoding")
            if len(body) <= JOIN_BYTES or is_bodiless(request, response):
                write_whole(connection, request, response, body)
                await connection.outflow.drain()
            else:
                await _write(connection, _head(connection, request, response, len(body)))
                await _write(connection, body)
        case StreamBody():
            await _send_stream(connection, request, response, body)
        case FileBody():
            await _send_file(connection, request, response, body)
        case UpgradeBody():
            await _send_upgrade(connection, request, response, body)
        case _:
            assert_never(body)


async def _write(connection: "Connection", data: bytes) -> None:
    """Write in slices, each when there is room: a slow reader of a large answer holds one slice, not a copy of it all."""
    connection.begun = True
    if len(data) <= HIGH_BYTES:
        connection.transport.write(data)
        await connection.outflow.drain()
        return
    view = memoryview(data)
    for start in range(0, len(view), HIGH_BYTES):
        if connection.transport.is_closing():
            raise ConnectionResetError("the client closed the connection")
        connection.transport.write(view[start : start + HIGH_BYTES])
        await connection.outflow.drain()


class _Chunks:
    """Collects what is to be written in one turn of the loop and writes it at its end."""

    __slots__ = ("_connection", "_loop", "_pending", "_scheduled", "chunked", "size_bytes")

    def __init__(self, connection: "Connection", head: bytes, *, chunked: bool) -> None:
        self._connection = connection
        self._loop = asyncio.get_running_loop()
        self._pending = [head]
        self.chunked = chunked
        self.size_bytes = 0
        self._scheduled = True
        self._loop.call_soon(self.flush)

    def add(self, piece: bytes) -> None:
        """Add a piece of the body."""
        if self.chunked:
            piece = b"%x\r\n%b\r\n" % (len(piece), piece)
        self._pending.append(piece)
        self.size_bytes += len(piece)
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self.flush)

    def end(self) -> None:
        """Add the last chunk and write."""
        if self.chunked:
            self._pending.append(b"0\r\n\r\n")
        self.flush()

    def drop(self) -> None:
        """Forget what is not written."""
        self._pending.clear()

    def flush(self) -> None:
        """Write what there is."""
        self._scheduled = False
        pending = self._pending
        if pending and not self._connection.transport.is_closing():
            self._connection.begun = True
            self._connection.transport.write(pending[0] if len(pending) == 1 else b"".join(pending))
            pending.clear()
            self.size_bytes = 0


async def _send_stream(connection: "Connection", request: Request, response: Response, body: StreamBody) -> None:
    """Send pieces as they are made; those of one turn of the loop go together."""
    announced = response.headers.get("content-length")
    left = int(announced) if announced is not None else None
    chunked = left is None and request.version != "1.0"
    if left is None and not chunked:
        request.keep_alive = False  # HTTP/1.0 knows the end by the close
    bodiless = is_bodiless(request, response)
    pieces = body.pieces
    try:
        head = _head(connection, request, response, left, chunked=chunked and not bodiless)
        if bodiless:
            await _write(connection, head)
            return
        chunks = _Chunks(connection, head, chunked=chunked)
        try:
            async for piece in pieces:
                if left is not None and (left := left - len(piece)) < 0:
                    raise ValueError(f"the body is longer than its Content-Length {announced}")
                if len(piece) > HIGH_BYTES:
                    chunks.flush()
                    await _send_large(connection, piece, chunked=chunked)
                elif piece:
                    chunks.add(piece)
                    if chunks.size_bytes >= STREAM_BYTES:
                        chunks.flush()
                        await machine.sleep(0)  # a maker that never waits must not hold up the others
                if connection.outflow.blocked or connection.outflow.lost:
                    await connection.outflow.drain()
                elif connection.transport.is_closing():
                    raise ConnectionResetError("the client closed the connection")
            if left:
                raise ValueError(f"the body ended {left} bytes before its Content-Length {announced}")
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if not (body.live and connection.ending and task is not None):
                chunks.drop()
                raise
            task.uncancel()  # the server closes: the stream ends in order
            request.keep_alive = False
        except BaseException:
            chunks.drop()
            raise
        chunks.end()
        await connection.outflow.drain()
    finally:
        close = getattr(pieces, "aclose", None)
        if close is not None:
            await close()


async def _send_large(connection: "Connection", piece: bytes, *, chunked: bool) -> None:
    if chunked:
        connection.transport.write(b"%x\r\n" % len(piece))
    await _write(connection, piece)
    if chunked:
        connection.transport.write(b"\r\n")


async def _send_file(connection: "Connection", request: Request, response: Response, body: FileBody) -> None:
    """Send a part of a file: by sendfile, or over TLS by reads in a thread."""
    with open(body.path, "rb", buffering=0) as file:
        size = body.stop - body.start
        head = _head(connection, request, response, size)
        if is_bodiless(request, response) or size == 0:
            await _write(connection, head)
            return
        if size <= JOIN_BYTES:
            data = os.pread(file.fileno(), size, body.start)
            if len(data) != size:
                raise OSError(f"{body.path} has fewer bytes than the {body.stop} that were promised")
            await _write(connection, head + data)
            return
        os.posix_fadvise(file.fileno(), body.start, size, os.POSIX_FADV_SEQUENTIAL)
        await _write(connection, head)
        loop = asyncio.get_running_loop()
        at, most = body.start, FILE_SLICE_BYTES
        while at < body.stop:
            count = min(most, body.stop - at)
            if connection.tls:
                data = await asyncio.to_thread(os.pread, file.fileno(), min(count, HIGH_BYTES), at)
                sent = len(data)
                await _write(connection, data)
            else:
                os.posix_fadvise(file.fileno(), at + count, FILE_SLICE_BYTES, os.POSIX_FADV_WILLNEED)
                begun = machine.monotonic()
                try:
                    async with machine.timeout(connection.hub.limits.write_s):
                        sent = await loop.sendfile(connection.transport, file, at, count)
                except TimeoutError:
                    raise ConnectionResetError("the client does not read") from None
                quick = machine.monotonic() - begun < FILE_QUICK_S
                most = min(2 * most, FILE_SLICE_MOST_BYTES) if quick else FILE_SLICE_BYTES
            if sent == 0:
                raise OSError(f"{body.path} became shorter while it was sent")
            at += sent


async def _send_upgrade(connection: "Connection", request: Request, response: Response, body: UpgradeBody) -> None:
    """Write the head, hand the connection over as a raw stream, and close it when the callback is done."""
    try:
        stream = await _hand_over(connection, request, response)
    except BaseException:
        if body.dropped is not None:
            body.dropped()
        raise
    try:
        await body.callback(stream)
        await stream.finish(connection.hub.limits.linger_s)
    except (ConnectionError, WherryError) as error:
        log.debug("%s: the raw stream ended: %s", request, error)
    except Exception:
        log.exception("%s: the handler of the raw stream failed", request)
    finally:
        stream.close()


async def _hand_over(connection: "Connection", request: Request, response: Response) -> Stream:
    await connection.outflow.drain()
    headers = response.headers
    if response.status == 101:
        if "connection" not in headers:
            headers.add("Connection", "Upgrade")
        if "upgrade" not in headers and (asked := request.headers.get("upgrade")):
            headers.add("Upgrade", asked)
    date = "" if "date" in headers else connection.hub.date_line
    head = f"{status_line(response.status)}{fields(headers.items())}{date}\r\n"
    rest = connection.take_rest()
    connection.begun = True
    request.keep_alive = False
    connection.transport.write(head.encode())
    stream = connection.become_raw(rest)
    await _head_is_read(stream)
    return stream


async def _head_is_read(stream: Stream) -> None:
    """Wait, at most `HEAD_READ_S`, until a client on a unix socket has taken the head out of the socket.

    docker-py reads the head through a buffer and the stream past it: first frames that arrive in the same read as the
    head are lost to it. Over TCP nothing tells when the peer has read.
    """
    sock = stream.transport.get_extra_info("socket")
    if sock is None or sock.family != socket.AF_UNIX:
        return
    pause = 0.0
    until = machine.monotonic() + HEAD_READ_S
    while not stream.closed and machine.monotonic() < until:
        if fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, _NOTHING) == _NOTHING:
            return
        await machine.sleep(pause)
        pause = min(0.01, pause * 2 or 0.0001)


def _wants_gzip(request: Request) -> bool:
    """Say whether compressing pays: the client takes gzip and is not on this machine."""
    peer = request.peer
    if peer.kind in ("unix", "local") or peer.address.startswith(("127.", "::1")):
        return False
    accepted = (each.replace(" ", "").lower() for each in ",".join(request.headers.all("accept-encoding")).split(","))
    return any(each.partition(";")[0] == "gzip" and not _REFUSED.search(each) for each in accepted)


async def _gzip(data: bytes) -> bytes:
    from isal import igzip  # on use: most servers never compress

    if len(data) < THREAD_BYTES:
        return igzip.compress(data, 1)
    return await asyncio.to_thread(igzip.compress, data, 1)
