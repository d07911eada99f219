"""A small HTTP/1.1 client: one endpoint, a bounded pool of kept connections, bodies and answers as streams."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Self
from urllib.parse import quote, urlencode, urlsplit

from wherry.clock import machine
from wherry.errors import BadRequest, Invalid, Unavailable
from wherry.wire.exchange import ClientConnection, HttpAnswer, Stale
from wherry.wire.heads import fields
from wherry.wire.http import HeaderInput, Headers
from wherry.wire.streams import Stream, closed_stream

__all__ = ["Endpoint", "HttpAnswer", "HttpClient"]

# Sending them twice does no more than once. Source: RFC 9110, section 9.2.2.
IDEMPOTENT = frozenset(("GET", "HEAD", "OPTIONS", "PUT", "DELETE", "TRACE"))


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a server listens."""

    scheme: Literal["unix", "http", "https"]
    host: str = ""
    port: int = 0
    path: str = ""
    ssl_context: ssl.SSLContext | None = field(default=None, repr=False, compare=False)

    @classmethod
    def parse(cls, text: str, ssl_context: ssl.SSLContext | None = None) -> Self:
        """Read `unix:/path` (also `unix:///path`), `http://host:port` or `https://host:port`. Raises Invalid for other text."""
        if text.startswith("unix:"):
            path = text[5:]
            path = path[2:] if path.startswith("//") else path
            if not path.startswith("/"):
                raise Invalid(f"endpoint {text!r}: write unix:/absolute/path")
            return cls("unix", path=path)
        try:
            parts = urlsplit(text)
            port = parts.port
        except ValueError as error:
            raise Invalid(f"endpoint {text!r}: {error}") from None
        if parts.scheme not in ("http", "https", "tcp") or not parts.hostname or parts.path not in ("", "/"):
            raise Invalid(f"endpoint {text!r}: write unix:/path, http://host:port or https://host:port")
        secure = parts.scheme == "https" or (parts.scheme == "tcp" and ssl_context is not None)
        return cls(
            "https" if secure else "http",
            host=parts.hostname,
            port=port or (443 if secure else 80),
            ssl_context=ssl_context if secure else None,
        )

    @property
    def authority(self) -> str:
        """What the Host field says."""
        if self.scheme == "unix":
            return "localhost"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.scheme == "https" else 80) else f"{host}:{self.port}"

    def __str__(self) -> str:
        return f"unix:{self.path}" if self.scheme == "unix" else f"{self.scheme}://{self.authority}"


class HttpClient:
    """Sends requests to one endpoint. Bound to the loop it is used in; `close` it, or enter it.

    `connections` bounds all connections at once (further requests wait up to `connect_s`), `idle` those kept.
    `connect_s`: to connect, TLS included. `head_s`: until the answer's head, None for no deadline. `idle_s`: how long an
    unused connection is kept (shorter than the server keeps it). `headers` go with every request.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        connections: int = 512,
        idle: int = 16,
        connect_s: float = 10.0,
        head_s: float | None = 60.0,
        idle_s: float = 60.0,
        headers: HeaderInput = None,
    ) -> None:
        self.endpoint = endpoint
        self._idle_most = idle
        self._connect_s = connect_s
        self._head_s = head_s
        self._idle_s = idle_s
        self._headers = Headers(headers).items()
        self._slots = asyncio.Semaphore(connections)
        self._idle: list[ClientConnection] = []
        self._all: set[ClientConnection] = set()
        self._closed = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def request(
        self,
        method: str,
        path: str,
        query: Sequence[tuple[str, str]] = (),
        headers: HeaderInput = None,
        body: bytes | AsyncIterator[bytes] = b"",
        *,
        target: str | None = None,
        head_s: float | None = -1.0,
    ) -> HttpAnswer:
        """Send a request; return when the answer's head is here.

        `path` is the decoded path; `target`, when given, is sent as it is in place of path and query. An iterator is sent
        in chunks, unless `headers` give its Content-Length. `head_s` -1 takes the client's own.
        An idempotent request with a body of bytes is sent once more when a kept connection turns out to be closed.
        Raises Unavailable when nobody answers, DeadlineExceeded when it takes too long.
        """
        head, chunked = self._head(method, path, query, headers, body, target)
        deadline_s = self._head_s if head_s == -1.0 else head_s
        connection = await self._acquire()
        fresh = connection is None
        if connection is None:
            connection = await self._connect()
        try:
            return (await connection.exchange(method, head, body, chunked=chunked, head_s=deadline_s))[0]
        except Stale:
            if fresh or method not in IDEMPOTENT or not isinstance(body, bytes):
                raise self._no_answer() from None
        await self._slot()
        connection = await self._connect()
        try:
            return (await connection.exchange(method, head, body, chunked=chunked, head_s=deadline_s))[0]
        except Stale:
            raise self._no_answer() from None

    async def upgrade(
        self,
        method: str,
        path: str,
        query: Sequence[tuple[str, str]] = (),
        headers: HeaderInput = None,
        body: bytes = b"",
        *,
        target: str | None = None,
        head_s: float | None = -1.0,
    ) -> tuple[HttpAnswer, Stream]:
        """Ask for a raw stream. Answered 101 (or 200 without a length, as Docker does) the stream is open.

        With any other status the answer's body can be read and the stream is closed. `headers` name the protocol
        (`Upgrade`); `Connection: Upgrade` is added.
        """
        wanted = Headers(headers)
        if "connection" not in wanted:
            wanted.add("Connection", "Upgrade")
        head, _ = self._head(method, path, query, wanted, body, target)
        await self._slot()
        connection = await self._connect()
        try:
            answer, stream = await connection.exchange(
                method, head, body, chunked=False, head_s=self._head_s if head_s == -1.0 else head_s, wants_stream=True
            )
        except Stale:
            raise self._no_answer() from None
        return answer, stream or closed_stream()

    async def close(self) -> None:
        """Close every connection, also those in use (streams included)."""
        self._closed = True
        self._idle.clear()
        for connection in list(self._all):
            connection.close()
        if self._all:
            await machine.sleep(0)

    # ----------------------------------------------------------------------------------------------------------------------
    def _head(
        self,
        method: str,
        path: str,
        query: Iterable[tuple[str, str]],
        headers: HeaderInput,
        body: bytes | AsyncIterator[bytes],
        target: str | None,
    ) -> tuple[bytes, bool]:
        """Write the request's head; also say whether the body goes in chunks."""
        if target is None:
            target = quote(path, safe="/:@!$&'()*+,;=~")
            if query:
                target += "?" + urlencode(list(query))
        if not target.isascii() or any(mark in target for mark in " \r\n\0") or not method.isalpha():
            raise BadRequest(f"{method} {target!r} is no request line")
        own = Headers(headers)
        names = {name.lower() for name, _ in own.items()}
        items = [(name, value) for name, value in self._headers if name.lower() not in names] + own.items()
        chunked = False
        if "host" not in names:
            items.insert(0, ("Host", self.endpoint.authority))
        if isinstance(body, bytes):
            if "content-length" not in names and (body or method in ("POST", "PUT", "PATCH")):
                items.append(("Content-Length", str(len(body))))
        elif "content-length" not in names:
            chunked = True
            if "transfer-encoding" not in names:
                items.append(("Transfer-Encoding", "chunked"))
        try:
            return f"{method} {target} HTTP/1.1\r\n{fields(items)}\r\n".encode(), chunked
        except ValueError as error:
            raise BadRequest(str(error)) from None

    def _no_answer(self) -> Unavailable:
        return Unavailable(f"{self.endpoint} closed the connection without an answer")

    async def _slot(self) -> None:
        if self._closed:
            raise Unavailable(f"the client of {self.endpoint} is closed")
        if not self._slots.locked():
            await self._slots.acquire()
            return
        try:
            async with machine.timeout(self._connect_s):
                await self._slots.acquire()
        except TimeoutError:
            raise Unavailable(f"all connections to {self.endpoint} are in use") from None

    async def _acquire(self) -> ClientConnection | None:
        """Take a slot and a kept connection; None when a new one is needed."""
        await self._slot()
        oldest = machine.monotonic() - self._idle_s
        while self._idle:
            connection = self._idle.pop()
            if connection.usable and connection.idle_since >= oldest:
                return connection
            connection.close()
            self._all.discard(connection)
        return None

    async def _connect(self) -> ClientConnection:
        """Connect; the caller has the slot, which is given back here on failure and by `_freed` later."""
        endpoint = self.endpoint
        loop = asyncio.get_running_loop()
        made = ClientConnection(str(endpoint), self._freed)
        try:
            async with machine.timeout(self._connect_s):
                if endpoint.scheme == "unix":
                    await loop.create_unix_connection(lambda: made, endpoint.path)
                elif endpoint.scheme == "http":
                    await loop.create_connection(lambda: made, endpoint.host, endpoint.port)
                else:
                    await loop.create_connection(
                        lambda: made,
                        endpoint.host,
                        endpoint.port,
                        ssl=endpoint.ssl_context or ssl.create_default_context(),
                        server_hostname=endpoint.host,
                    )
        except TimeoutError:
            self._slots.release()
            raise Unavailable(f"{endpoint} could not be reached within {self._connect_s:g} s") from None
        except (OSError, ssl.SSLError) as error:
            self._slots.release()
            raise Unavailable(f"{endpoint} cannot be reached: {error.strerror or error}") from error
        except BaseException:
            self._slots.release()
            raise
        if self._closed:
            made.transport.abort()
            self._slots.release()
            raise Unavailable(f"the client of {endpoint} is closed")
        self._all.add(made)
        return made

    def _freed(self, connection: ClientConnection, reusable: bool) -> None:
        """An exchange is over: keep the connection or forget it."""
        self._slots.release()
        if reusable and not self._closed and len(self._idle) < self._idle_most:
            connection.idle_since = machine.monotonic()
            self._idle.append(connection)
            return
        self._all.discard(connection)
        with contextlib.suppress(ValueError):
            self._idle.remove(connection)
        if reusable:
            connection.transport.close()
