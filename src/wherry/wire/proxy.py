"""Passing a request on to another server and its answer back, as streams; raw streams after an upgrade too."""

import asyncio
from collections.abc import AsyncIterator

from wherry.wire.client import HttpAnswer, HttpClient
from wherry.wire.http import HeaderInput, Headers, Request, Response
from wherry.wire.streams import Stream

# Fields that speak of one connection, not of the message. Source: RFC 9110, section 7.6.1.
HOP_BY_HOP = frozenset(
    (
        "connection",
        "expect",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    )
)
# How long the client may still send when the server beyond has ended its side.
LINGER_S = 2.0


async def forward(
    request: Request,
    client: HttpClient,
    path: str | None = None,
    headers: HeaderInput = None,
    *,
    drop: frozenset[str] = frozenset(),
) -> Response:
    """Send `request` to `client`'s server and return its answer, streaming both ways with back-pressure.

    `path` (decoded) replaces the path; the query goes along. `headers` replace those of the same names; `drop` names
    (lower case) that are not passed on, such as `authorization`. Host becomes the server's own.
    Raises Unavailable when the server does not answer.
    """
    fields = end_to_end(request.headers, frozenset(("host",)) | drop)
    for name, value in Headers(headers):
        fields.set(name, value)
    target = None if path is not None else request.target or None
    query = request.query if path is not None else ()
    if request.upgrading:
        return await _forward_upgrade(request, client, path or request.path, query, fields, target)
    body = request.stream() if request.has_body else b""
    answer = await client.request(request.method, path or request.path, query, fields, body, target=target, head_s=None)
    kept = end_to_end(answer.fields)
    if request.method == "HEAD" or answer.status in (204, 304):
        await answer.close()
        return Response(answer.status, kept)
    return Response.stream(_Pieces(answer), kept, status=answer.status)


def end_to_end(headers: Headers, drop: frozenset[str] = frozenset()) -> Headers:
    """Return the fields that are passed on: without those of one connection, and those that `Connection` names."""
    away = HOP_BY_HOP | drop | set(headers.tokens("connection"))
    return Headers([(name, value) for name, value in headers.items() if name.lower() not in away])


class _Pieces:
    """An answer's body; closing it lets go of the answer even when nothing was read."""

    def __init__(self, answer: HttpAnswer) -> None:
        self._answer = answer
        self._chunks = answer.chunks()

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        return await anext(self._chunks)

    async def aclose(self) -> None:
        """Let go."""
        await self._answer.close()


async def _forward_upgrade(
    request: Request,
    client: HttpClient,
    path: str,
    query: tuple[tuple[str, str], ...],
    fields: Headers,
    target: str | None,
) -> Response:
    fields.remove("content-length")
    fields.set("Connection", "Upgrade")
    if asked := request.headers.get("upgrade"):
        fields.set("Upgrade", asked)
    answer, beyond = await client.upgrade(
        request.method, path, query, fields, await request.body(), target=target, head_s=None
    )
    if beyond.closed and answer.status != 101:
        return Response.stream(_Pieces(answer), end_to_end(answer.fields), status=answer.status)
    kept = end_to_end(answer.fields)
    if answer.status == 101:
        kept.set("Connection", "Upgrade")
        if upgrade := answer.fields.get("upgrade"):
            kept.set("Upgrade", upgrade)

    async def join(near: Stream) -> None:
        await splice(near, beyond)

    return Response.upgrade(kept, join, answer.status, dropped=beyond.abort)


async def splice(near: Stream, beyond: Stream) -> None:
    """Copy both ways until both ends are done; the end of one side is passed on as a half-close.

    When the far side has ended, the near one has LINGER_S to end too (none where it cannot be told of a half-close).
    Closes `beyond`; the caller closes `near`.
    """
    try:
        async with asyncio.TaskGroup() as group:
            onward = group.create_task(_copy(near, beyond), name="splice: onward")
            await _copy(beyond, near)
            if near.can_half_close:
                await asyncio.wait([onward], timeout=LINGER_S)
            onward.cancel()
    except* ConnectionError:
        pass  # one end is gone: that is the end
    finally:
        beyond.close()


async def _copy(source: Stream, sink: Stream) -> None:
    while data := await source.read():
        await sink.write(data)
    await sink.write_eof()
