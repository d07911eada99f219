"""How an answer goes out: whole, streamed, from a file, or as the head of a raw stream."""

import asyncio
import contextlib
import logging
import os
from typing import TYPE_CHECKING, assert_never

from wherry.clock import machine
from wherry.errors import WherryError
from wherry.wire.flow import HIGH_BYTES
from wherry.wire.heads import fields, status_line
from wherry.wire.http import FileBody, Request, Response, StreamBody, UpgradeBody

if TYPE_CHECKING:
    from wherry.wire.connection import Connection

log = logging.getLogger(__name__)

# Up to here head and body go out by one write; beyond, copying costs more than the second system call.
JOIN_BYTES = 64 * 1024
# How much of a file one sendfile call sends: each call must end within Limits.write_s.
FILE_SLICE_BYTES = 2 * 1024 * 1024
# Compressing less saves no packet worth the time; beyond THREAD_BYTES it goes to a thread.
COMPRESS_BYTES = 16 * 1024
THREAD_BYTES = 64 * 1024
STREAM_BYTES = 64 * 1024

_OURS = frozenset(("content-length", "transfer-encoding", "connection", "keep-alive", "date"))
_BODILESS = frozenset((204, 304))


def _head(connection: "Connection", request: Request, response: Response, length: int | None, *, chunked: bool = False) -> bytes:
    """Write the head. `length` None: no Content-Length, unless the handler gave one to a bodiless answer."""
    items = response.headers.items()
    date = connection.hub.date_line
    close = not request.keep_alive or connection.hub.closing
    status = response.status
    announced: str | None = None
    for name, value in items:
        if (low := name.lower()) in _OURS:
            if low == "content-length":
                announced = value
            elif low == "date":
                date = f"Date: {value}\r\n"
            elif low == "connection" and value.lower() == "close":
                close = True
    if announced is not None or date is not connection.hub.date_line or close:
        items = [item for item in items if item[0].lower() not in _OURS]
    elif any(name.lower() in _OURS for name, _ in items):
        items = [item for item in items if item[0].lower() not in _OURS]
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
    return f"{status_line(status)}{fields(items)}{date}{framing}\r\n".encode()


def write_whole(connection: "Connection", request: Request, response: Response, body: bytes) -> None:
    """Send a whole answer without waiting; the caller drains."""
    head = _head(connection, request, response, len(body))
    connection.begun = True
    if request.method == "HEAD" or response.status in _BODILESS:
        connection.transport.write(head)
    elif len(body) <= JOIN_BYTES:
        connection.transport.write(head + body)
    else:
        connection.transport.write(head)
        connection.transport.write(body)
