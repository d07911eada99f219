"""HTTP's nouns as every room sees them: headers, the peer, a request, a response."""

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self, TypeAlias, cast
from urllib.parse import parse_qsl, quote, unquote, urlencode

import msgspec

from wherry.errors import BadRequest, TooLarge
from wherry.wire.flow import Inflow
from wherry.wire.streams import Stream

# What `Request.body` takes when the handler names no limit: Kubernetes' own limit for one object.
BODY_BYTES = 3 * 1024 * 1024
# More query fields than any client of ours sends; beyond it the request is refused.
QUERY_FIELDS = 1000

HeaderInput: TypeAlias = "Headers | Mapping[str, str] | Iterable[tuple[str, str]] | None"


class Headers:
    """Header fields in their order; names compare without case, a name may come more than once."""

    __slots__ = ("_index", "_items", "_raw")

    def __init__(self, items: HeaderInput = None) -> None:
        self._raw: list[tuple[bytes, bytes]] | None = None
        self._index: dict[str, list[str]] | None = None
        self._items: list[tuple[str, str]]
        if items is None:
            self._items = []
        elif isinstance(items, Headers):
            self._items = list(items.items())
        elif isinstance(items, Mapping):
            self._items = list(cast("Mapping[str, str]", items).items())
        else:
            self._items = list(items)

    @classmethod
    def received(cls, raw: list[tuple[bytes, bytes]]) -> "Headers":
        """Wrap the fields of a received message; they are decoded when someone asks."""
        headers = cls.__new__(cls)
        headers._raw = raw
        headers._index = None
        headers._items = []
        return headers

    def get(self, name: str, default: str | None = None) -> str | None:
        """Return the first value of a name, or `default`."""
        found = self._by_name().get(name.lower())
        return found[0] if found else default

    def all(self, name: str) -> list[str]:
        """Return every value of a name, in order."""
        return list(self._by_name().get(name.lower(), ()))

    def tokens(self, name: str) -> list[str]:
        """Return the comma-separated, lower-case tokens of a name over all its fields, without parameters."""
        values = self._by_name().get(name.lower(), ())
        return [
            token for value in values for part in value.split(",") if (token := part.partition(";")[0].strip().lower())
        ]

    def items(self) -> list[tuple[str, str]]:
        """Return all fields as they came."""
        if self._raw is not None:
            self._items = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in self._raw]
            self._raw = None
        return self._items

    def add(self, name: str, value: str) -> None:
        """Append a field."""
        self.items().append((name, value))
        self._index = None

    def set(self, name: str, value: str) -> None:
        """Replace every field of a name by one."""
        self.remove(name)
        self.add(name, value)

    def remove(self, name: str) -> None:
        """Take away every field of a name."""
        low = name.lower()
        self._items = [item for item in self.items() if item[0].lower() != low]
        self._index = None

    def lower(self) -> dict[str, str]:
        """Return a dict by lower-case name; several values of one name are joined by ", "."""
        return {name: ", ".join(values) for name, values in self._by_name().items()}

    def __contains__(self, name: str) -> bool:
        return name.lower() in self._by_name()

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return iter(self.items())

    def __len__(self) -> int:
        return len(self.items())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Headers) and self.items() == other.items()

    __hash__ = None  # type: ignore[assignment]  # it can change

    def __repr__(self) -> str:
        return f"Headers({sorted(self._by_name())})"  # names only: values may be secrets

    def _by_name(self) -> dict[str, list[str]]:
        if self._index is None:
            index: dict[str, list[str]] = {}
            for name, value in self.items():
                index.setdefault(name.lower(), []).append(value)
            self._index = index
        return self._index


@dataclass(frozen=True, slots=True)
class Peer:
    """Who is at the other end. unix: uid, gid, pid of the connecting process; tls: what the client's certificate says.

    `local` is a call within our own process. `common_name` is "" and `certificate_der` is b"" without a certificate.
    """

    kind: Literal["unix", "tcp", "tls", "local"]
    uid: int | None = None
    gid: int | None = None
    pid: int | None = None
    common_name: str = ""
    organizations: tuple[str, ...] = ()
    certificate_der: bytes = b""
    address: str = ""


LOCAL_PEER = Peer("local", uid=os.getuid(), gid=os.getgid())


class Request:
    """One request. `path` is decoded, `target` is the request line's own; `params` are filled in by the router."""

    __slots__ = (
        "_body",
        "_inflow",
        "_query",
        "_raw_query",
        "has_body",
        "headers",
        "keep_alive",
        "method",
        "params",
        "path",
        "peer",
        "target",
        "upgrading",
        "version",
    )

    def __init__(
        self,
        method: str,
        path: str,
        query: tuple[tuple[str, str], ...] | None,
        headers: Headers,
        peer: Peer,
        target: str = "",
        *,
        raw_query: str = "",
        inflow: Inflow | None = None,
    ) -> None:
        self.method = method
        self.path = path
        self.headers = headers
        self.peer = peer
        self.target = target
        self.params: dict[str, str] = {}
        self.version = "1.1"
        self.keep_alive = True
        self.upgrading = False
        self.has_body = inflow is not None
        self._query = query
        self._raw_query = raw_query
        self._inflow = inflow
        self._body: bytes | None = None if inflow is not None else b""

    @classmethod
    def local(
        cls,
        method: str,
        path: str,
        query: Sequence[tuple[str, str]] = (),
        headers: HeaderInput = None,
        body: bytes = b"",
        *,
        peer: Peer = LOCAL_PEER,
    ) -> Self:
        """Make a request for a call within this process; `path` is the decoded one, without a query."""
        raw_query = urlencode(query)
        target = quote(path, safe="/:@!$&'()*+,;=~") + (f"?{raw_query}" if raw_query else "")
        request = cls(method, path, tuple(query), Headers(headers), peer, target, raw_query=raw_query)
        request._body = body
        request.has_body = bool(body)
        request.upgrading = "upgrade" in request.headers.tokens("connection")
        return request

    @property
    def query(self) -> tuple[tuple[str, str], ...]:
        """The query's fields, decoded, in order. Raises BadRequest when they cannot be read."""
        if self._query is None:
            try:
                self._query = tuple(
                    parse_qsl(self._raw_query, keep_blank_values=True, errors="strict", max_num_fields=QUERY_FIELDS)
                )
            except ValueError as error:
                raise BadRequest(f"the query of {self.path} cannot be read: {error}") from None
        return self._query

    @property
    def raw_query(self) -> str:
        """The query as it came, without the question mark."""
        return self._raw_query

    def first(self, name: str) -> str | None:
        """Return the first query value of a name, or None."""
        if not self._raw_query:
            return None
        for key, value in self.query:
            if key == name:
                return value
        return None

    def all(self, name: str) -> list[str]:
        """Return every query value of a name."""
        return [value for key, value in self.query if key == name] if self._raw_query else []

    @property
    def content_length(self) -> int | None:
        """The body's announced length in bytes; None when it comes in chunks."""
        if self._inflow is None:
            return len(self._body or b"")
        announced = self.headers.get("content-length")
        return int(announced) if announced is not None else None

    @property
    def upgrade(self) -> str:
        """The protocol that the client asks to change to, lower case; "" for none."""
        return (self.headers.get("upgrade") or "").lower() if self.upgrading else ""

    async def body(self, limit: int = BODY_BYTES) -> bytes:
        """Read the whole body; a second call returns it again. Raises TooLarge beyond `limit` bytes."""
        if self._body is not None:
            if len(self._body) > limit:
                raise self._too_large(limit)
            return self._body
        inflow = self._inflow
        assert inflow is not None
        announced = self.content_length
        if announced is not None and announced > limit:
            raise self._too_large(limit)
        pieces: list[bytes] = []
        size = 0
        while piece := await inflow.take():
            size += len(piece)
            if size > limit:
                raise self._too_large(limit)
            pieces.append(piece)
        self._body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        return self._body

    async def stream(self) -> AsyncIterator[bytes]:
        """Yield the body in pieces as they arrive; the sender is held back while we do not read."""
        if self._body is not None:
            if self._body:
                yield self._body
            return
        inflow = self._inflow
        assert inflow is not None
        while piece := await inflow.take():
            yield piece
        self._body = b""

    def _too_large(self, limit: int) -> TooLarge:
        return TooLarge(f"the body of {self.method} {self.path} is larger than the {limit} bytes that are taken here")

    def __repr__(self) -> str:
        return f"Request({self.method} {self.path})"


def split_target(target: str) -> tuple[str, str]:
    """Split a request target into its decoded path and its raw query.

    Takes origin form (`/a?b`), absolute form (`http://host/a?b`) and `*`. Raises BadRequest for other text, for escapes
    that are no UTF-8 and for NUL. Source: RFC 9112, section 3.2.
    """
    path, _, query = target.partition("?")
    if not path.startswith("/"):
        scheme, mark, rest = path.partition("://")
        if mark and scheme.lower() in ("http", "https"):
            path = "/" + rest.partition("/")[2]
        elif path != "*":
            raise BadRequest("the request target is neither a path nor an http URL")
    if "%" in path:
        try:
            path = unquote(path, errors="strict")
        except UnicodeDecodeError:
            raise BadRequest("the path's escapes are not UTF-8") from None
    if "\0" in path:
        raise BadRequest("the path holds a NUL byte")
    return path, query


@dataclass(frozen=True, slots=True)
class FileBody:
    """Bytes `start` to `stop` (exclusive) of a file."""

    path: str
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class StreamBody:
    """Pieces as an iterator makes them. A `live` one (a watch, a followed log) is ended when the server closes."""

    pieces: AsyncIterator[bytes]
    live: bool = False


@dataclass(frozen=True, slots=True)
class UpgradeBody:
    """From here on the connection belongs to `callback`; it is closed when `callback` returns.

    `dropped` is called instead when the client is gone before `callback` could be.
    """

    callback: Callable[[Stream], Awaitable[None]]
    dropped: Callable[[], None] | None = None


Body = bytes | FileBody | StreamBody | UpgradeBody


class Response:
    """An answer. The server adds Date, Content-Length or Transfer-Encoding, and Connection.

    `compress` lets the server send it with gzip to clients that accept that (large JSON lists).
    """

    __slots__ = ("body", "compress", "headers", "status")

    def __init__(
        self,
        status: int = 200,
        headers: HeaderInput = None,
        body: Body = b"",
        *,
        compress: bool = False,
    ) -> None:
        self.status = status
        self.headers = headers if isinstance(headers, Headers) else Headers(headers)
        self.body = body
        self.compress = compress

    @classmethod
    def json(
        cls,
        value: Any,
        status: int = 200,
        headers: HeaderInput = None,
        *,
        compress: bool = False,
    ) -> Self:
        """Answer JSON; bytes are taken as JSON that is already encoded."""
        response = cls(status, headers, value if isinstance(value, bytes) else _encode(value), compress=compress)
        response.headers.items().append(JSON_FIELD)
        return response

    @classmethod
    def text(
        cls,
        text: str,
        status: int = 200,
        headers: HeaderInput = None,
    ) -> Self:
        """Answer plain text."""
        response = cls(status, headers, text.encode())
        response.headers.add("Content-Type", "text/plain; charset=utf-8")
        return response

    @classmethod
    def stream(
        cls,
        pieces: AsyncIterator[bytes],
        headers: HeaderInput = None,
        *,
        status: int = 200,
        live: bool = False,
    ) -> Self:
        """Answer pieces as they are made, each sent at once (those of one turn of the loop together).

        Chunked, unless `headers` give Content-Length, which must then be right. The iterator is closed when the client
        goes; a `live` one (watch, followed log) also when the server closes, and then ends in order.
        """
        return cls(status, headers, StreamBody(pieces, live))

    @classmethod
    def file(
        cls,
        path: str | os.PathLike[str],
        start: int = 0,
        stop: int | None = None,
        headers: HeaderInput = None,
        *,
        status: int = 200,
    ) -> Self:
        """Answer bytes `start` to `stop` (exclusive; None: its end) of a file, by sendfile where there is no TLS."""
        name = os.fspath(path)
        return cls(status, headers, FileBody(name, start, os.stat(name).st_size if stop is None else stop))

    @classmethod
    def upgrade(
        cls,
        headers: HeaderInput,
        callback: Callable[[Stream], Awaitable[None]],
        status: int = 101,
        *,
        dropped: Callable[[], None] | None = None,
    ) -> Self:
        """Answer `status` (101, or 200 for Docker clients that sent no Upgrade header) and hand over the connection.

        `dropped` is called in place of `callback` when the client is gone before the connection could be handed over.
        """
        return cls(status, headers, UpgradeBody(callback, dropped))

    def __repr__(self) -> str:
        return f"Response({self.status})"


JSON_FIELD = ("Content-Type", "application/json")
_encode = msgspec.json.Encoder().encode

Handler = Callable[[Request], Awaitable[Response]]
OnError = Callable[[Request, Exception], Response]
