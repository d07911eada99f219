"""The two ways a request travels: straight into the server of this process, or by HTTP."""

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence

from wherry.client.protocol import Answer
from wherry.errors import Unsupported
from wherry.model.users import User
from wherry.wire.client import HttpClient
from wherry.wire.http import Request, Response, StreamBody

Serve = Callable[[Request, User], Awaitable[Response]]
"""`Api.serve`: answers a request of a user already authenticated."""


class LocalAnswer:
    """An `Answer` made from a server's `Response` in this process."""

    def __init__(self, response: Response) -> None:
        self._response = response

    @property
    def status(self) -> int:
        """The HTTP status."""
        return self._response.status

    @property
    def headers(self) -> Mapping[str, str]:
        """Headers by lower-case name."""
        return self._response.headers.lower()

    async def read(self) -> bytes:
        """The whole body."""
        body = self._response.body
        if isinstance(body, bytes):
            return body
        return b"".join([chunk async for chunk in self.chunks()])

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body in pieces, as the server makes them."""
        body = self._response.body
        if isinstance(body, bytes):
            if body:
                yield body
        elif isinstance(body, StreamBody):
            async for chunk in body.pieces:
                yield chunk
        else:
            raise Unsupported("files and upgraded connections are not read in process; use HTTP")

    async def close(self) -> None:
        """End the server's iterator, so that it lets go of what it holds."""
        body = self._response.body
        if isinstance(body, StreamBody) and isinstance(body.pieces, AsyncGenerator):
            await body.pieces.aclose()


class LocalTransport:
    """Enters `serve` directly as `user`. Only transport and authentication are skipped; all else is as by HTTP.

    A watch's or log's body is pulled piece by piece from the server's own iterator: no socket, no copy.
    """

    def __init__(self, serve: Serve, user: User) -> None:
        self._serve, self._user = serve, user

    async def send(
        self,
        method: str,
        path: str,
        *,
        query: Sequence[tuple[str, str]] = (),
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
    ) -> Answer:
        """Call the server."""
        request = Request.local(method, path, query=tuple(query), headers=dict(headers or {}), body=body)
        return LocalAnswer(await self._serve(request, self._user))

    async def close(self) -> None:
        """Nothing is kept."""


class HttpTransport:
    """Goes by HTTP as whoever the connection says, or, with `user`, as another by impersonation.

    The server lets its local administrators impersonate (root and itself on the unix socket): that is how roles of
    one machine act each as itself.
    """

    def __init__(self, http: HttpClient, user: User | None = None) -> None:
        self._http = http
        self._headers: list[tuple[str, str]] = []
        if user is not None:
            self._headers = [("impersonate-user", user.name)]
            self._headers += [("impersonate-group", group) for group in user.groups]

    async def send(
        self,
        method: str,
        path: str,
        *,
        query: Sequence[tuple[str, str]] = (),
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
    ) -> Answer:
        """Send by HTTP."""
        head = [*(headers or {}).items(), *self._headers]
        return await self._http.request(method, path, query=tuple(query), headers=head, body=body)

    async def close(self) -> None:
        """Close idle connections."""
        await self._http.close()
