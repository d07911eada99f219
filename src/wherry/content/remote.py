"""One registry somewhere else, spoken to by the OCI distribution protocol.

Plain HTTP and unix sockets go by our own client, which costs nothing to import; TLS goes by aiohttp, imported on use.
Sources: OCI distribution-spec 1.1; Docker registry "Token Authentication Specification".
"""

import asyncio
import ipaddress
import random
import re
import ssl
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlencode, urljoin, urlsplit

import msgspec

from wherry.clock import machine
from wherry.content.answers import AiohttpAnswer, Answer, envelope, words_of
from wherry.content.credentials import Credentials
from wherry.content.names import ImageName
from wherry.content.oci import DOCUMENT_MAX_BYTES, DOCUMENT_TYPES
from wherry.content.protocol import Digest
from wherry.errors import (
    BadRequest,
    Conflict,
    Damaged,
    Forbidden,
    NotFound,
    TooLarge,
    TooManyRequests,
    Unauthorized,
    Unavailable,
    WherryError,
)

CONNECT_S = 15.0
READ_S = 60.0
"""How long a registry may be silent in the middle of an answer."""
ATTEMPTS = 5
BACK_OFF_S = 0.5
HOPS_MAX = 5
PAGES_MAX = 1000
_NEXT = re.compile(r'<([^>]+)>\s*;\s*rel="?next"?')
_CHALLENGE = re.compile(r'([a-zA-Z]+)="([^"]*)"')

Body = bytes | Callable[[], AsyncIterator[bytes]]
"""What is sent: bytes, or a function that begins a stream (anew for each attempt)."""


def endpoint_of(name: ImageName, plain_http: Sequence[str] = ()) -> str:
    """Say where an image's registry answers: https, but http for loopback addresses and the hosts in `plain_http`."""
    scheme = "http" if name.domain in plain_http or _is_loopback(name.domain) else "https"
    return f"{scheme}://{name.host}"


class Remote:
    """A connection to one registry; an async context manager.

    `endpoint` is `https://HOST[:PORT]`, `http://HOST[:PORT]` or `unix:/PATH`. Requests that can be repeated are, on a
    broken connection, 429 and 5xx, up to ATTEMPTS times with growing, jittered pauses.
    """

    def __init__(
        self,
        endpoint: str,
        *,
        credentials: Credentials | None = None,
        tls: ssl.SSLContext | None = None,
        headers: Sequence[tuple[str, str]] = (),
        api: str = "/v2",
        namespace: str = "",
    ) -> None:
        """`headers` go with each request to its own origin; `api` is where its paths begin; `namespace` the registry that
        a mirror is asked in place of (`?ns=`).
        """
        self._headers = dict(headers)
        self._api = api.rstrip("/")
        self._namespace = namespace
        self._asking = asyncio.Lock()
        self.endpoint = endpoint.rstrip("/")
        self._credentials = credentials
        self._tls = tls
        self._base = "http://localhost" if endpoint.startswith("unix:") else self.endpoint
        self._authorization: dict[str, str] = {}
        self._clients: dict[str, Any] = {}
        self._session: Any = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        for client in self._clients.values():
            await client.close()
        if self._session is not None:
            await self._session.close()

    async def manifest(self, repository: str, reference: str) -> tuple[bytes, str]:
        """Read a manifest or an index; return its bytes and media type. Raises NotFound, TooLarge."""
        answer = await self.send(
            "GET",
            f"{self._api}/{repository}/manifests/{reference}",
            scope=f"repository:{repository}:pull",
            headers={"Accept": ", ".join(DOCUMENT_TYPES)},
        )
        try:
            data = b""
            async for part in answer.chunks():
                data += part
                if len(data) > DOCUMENT_MAX_BYTES:
                    raise TooLarge(f"{repository}:{reference}: its manifest has more than {DOCUMENT_MAX_BYTES} bytes")
        finally:
            await answer.close()
        return data, answer.headers.get("content-type", "").partition(";")[0].strip()

    async def tags(self, repository: str) -> Sequence[str]:
        """List the tags of a repository, page by page. Raises NotFound."""
        found: list[str] = []
        target = f"{self._api}/{repository}/tags/list"
        for _ in range(PAGES_MAX):
            answer = await self.send("GET", target, scope=f"repository:{repository}:pull", headers={})
            try:
                page = msgspec.json.decode(await answer.read(), type=dict[str, Any]).get("tags") or []
                found += [str(tag) for tag in page]
            except (msgspec.MsgspecError, TypeError):
                raise Damaged(f"{self.endpoint}: its list of the tags of {repository} cannot be read") from None
            link = _NEXT.search(answer.headers.get("link", ""))
            if link is None or _origin(urljoin(self._base + "/", link[1])) != _origin(self._base):
                break
            target = link[1]
        return found

    async def exists(self, repository: str, kind: str, reference: str) -> bool:
        """Say whether it has a blob or manifest; `kind` is "blobs" or "manifests"."""
        scope = f"repository:{repository}:pull,push"
        headers = {"Accept": ", ".join(DOCUMENT_TYPES)} if kind == "manifests" else {}
        try:
            answer = await self.send(
                "HEAD", f"{self._api}/{repository}/{kind}/{reference}", scope=scope, headers=headers
            )
        except NotFound:
            return False
        await answer.close()
        return True

    async def blob(self, repository: str, digest: Digest, *, start: int = 0) -> Answer:
        """Begin to read a blob, from `start` if the registry can (206, else 200 from the beginning)."""
        headers = {"Range": f"bytes={start}-"} if start else {}
        scope = f"repository:{repository}:pull"
        return await self.send("GET", f"{self._api}/{repository}/blobs/{digest}", scope=scope, headers=headers)

    async def begin_upload(self, repository: str, digest: Digest, mount_from: str = "") -> str:
        """Begin an upload; return its URL, or "" when the registry could take the blob from another repository."""
        query = {"mount": digest, **({"from": mount_from} if mount_from else {})}
        scopes = f"repository:{repository}:pull,push" + (f" repository:{mount_from}:pull" if mount_from else "")
        path = f"{self._api}/{repository}/blobs/uploads/?{urlencode(query)}"
        answer = await self.send("POST", path, scope=scopes, headers={"Content-Length": "0"})
        await answer.close()
        if answer.status == 201:
            return ""
        location = answer.headers.get("location", "")
        if not location:
            raise Unavailable(f"{self.endpoint}: began an upload to {repository} without saying where (no Location)")
        return location

    async def upload(self, repository: str, location: str, digest: Digest, size_bytes: int, body: Body) -> None:
        """Send a whole blob to an upload's URL."""
        mark = "&" if "?" in location else "?"
        answer = await self.send(
            "PUT",
            f"{location}{mark}{urlencode({'digest': digest})}",
            scope=f"repository:{repository}:pull,push",
            headers={"Content-Type": "application/octet-stream", "Content-Length": str(size_bytes)},
            body=body,
            attempts=1,
        )
        await answer.close()

    async def append(self, repository: str, location: str, start: int, stop: int, body: Body) -> str:
        """Send the bytes from `start` to before `stop` of a blob to an upload; return its next URL."""
        answer = await self.send(
            "PATCH",
            location,
            scope=f"repository:{repository}:pull,push",
            headers={
                "Content-Type": "application/octet-stream",
                "Content-Length": str(stop - start),
                **({"Content-Range": f"{start}-{stop - 1}"} if start else {}),
            },
            body=body,
            attempts=1,
        )
        await answer.close()
        return answer.headers.get("location", "") or location

    async def finish(self, repository: str, location: str, digest: Digest) -> None:
        """End an upload whose bytes have all been sent."""
        await self.upload(repository, location, digest, 0, b"")

    async def upload_state(self, repository: str, location: str) -> tuple[str, int]:
        """Ask how far an upload is: its URL, and how many bytes it has. Raises NotFound when it is gone."""
        answer = await self.send("GET", location, scope=f"repository:{repository}:pull,push", headers={})
        await answer.close()
        first, _, last = answer.headers.get("range", "").removeprefix("bytes=").partition("-")
        if first != "0" or not last.isdigit():
            raise NotFound(f"{self.endpoint}: it does not say how far an upload to {repository} is")
        have = int(last) + 1 if int(last) else 0
        return answer.headers.get("location", "") or location, have

    async def put_manifest(self, repository: str, reference: str, media_type: str, data: bytes) -> None:
        """Store a manifest by tag or digest."""
        path = f"{self._api}/{repository}/manifests/{reference}"
        headers = {"Content-Type": media_type, "Content-Length": str(len(data))}
        answer = await self.send("PUT", path, scope=f"repository:{repository}:pull,push", headers=headers, body=data)
        await answer.close()

    def has_authorized(self, scope: str) -> bool:
        """Whether the registry has asked who we are, and been told, for this scope."""
        return scope in self._authorization

    async def send(
        self,
        method: str,
        target: str,
        *,
        scope: str,
        headers: Mapping[str, str],
        body: Body = b"",
        attempts: int = ATTEMPTS,
    ) -> Answer:
        """Send a request, authenticated as the registry asks, and return a good answer (2xx).

        Raises the WherryError that a bad status means, with the registry's own words; Unavailable when nobody answers.
        """
        url = urljoin(self._base + "/", target)
        if self._namespace:
            url += f"{'&' if '?' in url else '?'}{urlencode({'ns': self._namespace})}"
        failure: WherryError | None = None
        asked = False
        attempt = 0
        while attempt < attempts:
            before = self._authorization.get(scope)
            try:
                answer = await self._follow(method, url, dict(headers), scope, body)
            except (OSError, TimeoutError, Damaged, Unavailable) as error:
                failure = Unavailable(f"{self.endpoint}: {method} {urlsplit(url).path}: {words_of(error)}")
            else:
                if 200 <= answer.status < 300:
                    return answer
                if answer.status == 401 and not asked and await self._again(answer, scope, before):
                    asked = True
                    continue
                failure = await self._refusal(answer, method, url)
                if not isinstance(failure, Unavailable | TooManyRequests):
                    raise failure
            attempt += 1
            if attempt < attempts:
                await machine.sleep(_pause(attempt, failure))
        raise failure or Unavailable(f"{self.endpoint}: no attempt was made")

    async def _follow(self, method: str, url: str, headers: dict[str, str], scope: str, body: Body) -> Answer:
        """Send, and follow redirects of reads; our credentials stay with the registry's own origin."""
        for _ in range(HOPS_MAX):
            own = _origin(url) == _origin(self._base)
            sent = {**(self._headers if own else {}), **headers}
            if own and scope in self._authorization:
                sent["Authorization"] = self._authorization[scope]
            answer = await self._one(method, url, sent, body)
            location = answer.headers.get("location", "")
            if method not in ("GET", "HEAD") or answer.status not in (301, 302, 303, 307, 308) or not location:
                return answer
            await answer.close()
            url = urljoin(url, location)
            safe = ("https",) if self._base.startswith("https:") else ("http", "https")
            if urlsplit(url).scheme not in safe:
                raise Unavailable(f"it redirects to {url.partition('?')[0]}, which is not followed")
        raise Unavailable(f"it redirects more than {HOPS_MAX} times")

    async def _one(self, method: str, url: str, headers: Mapping[str, str], body: Body) -> Answer:
        parts = urlsplit(url)
        data = body if isinstance(body, bytes) else body()
        if parts.scheme == "http":
            by_socket = self.endpoint.startswith("unix:") and _origin(url) == _origin(self._base)
            where = self.endpoint if by_socket else f"http://{parts.netloc}"
            target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            silence_s = READ_S if isinstance(body, bytes) else None
            return await self._client(where).request(
                method, "", headers=headers, body=data, target=target, head_s=silence_s
            )
        return await self._aiohttp(method, url, headers, data)

    def _client(self, where: str) -> Any:
        from wherry.wire.client import Endpoint, HttpClient

        if where not in self._clients:
            self._clients[where] = HttpClient(Endpoint.parse(where))
        return self._clients[where]

    async def _aiohttp(
        self, method: str, url: str, headers: Mapping[str, str], data: bytes | AsyncIterator[bytes]
    ) -> Answer:
        import aiohttp
        from yarl import URL

        if self._session is None:
            timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=READ_S)
            connector = aiohttp.TCPConnector(limit_per_host=6, ssl=self._tls or True)
            self._session = aiohttp.ClientSession(
                timeout=timeout, connector=connector, auto_decompress=False, trust_env=True
            )
        try:
            answer = await self._session.request(
                method, URL(url, encoded=True), headers=headers, data=data or None, allow_redirects=False
            )
        except aiohttp.ClientError as error:
            raise Unavailable(words_of(error)) from error
        return AiohttpAnswer(answer)

    async def _again(self, answer: Answer, scope: str, before: str | None) -> bool:
        """After a 401: have a new authorization; of several requests that were refused at once, one asks for it."""
        async with self._asking:
            if self._authorization.get(scope) != before:
                await answer.close()
                return True
            return await self._authenticate(answer, scope)

    async def _authenticate(self, answer: Answer, scope: str) -> bool:
        """Get what a 401 asks for; False when we have nothing to offer."""
        challenge = answer.headers.get("www-authenticate", "")
        await answer.close()
        kind, _, rest = challenge.partition(" ")
        mine = self._credentials
        if kind.lower() == "basic" and mine and mine.username:
            self._authorization[scope] = mine.basic
            return True
        if kind.lower() != "bearer":
            return False
        if mine and mine.registry_token:
            self._authorization[scope] = f"Bearer {mine.registry_token}"
            return True
        fields = dict(_CHALLENGE.findall(rest))
        self._authorization[scope] = f"Bearer {await self._token(fields, scope)}"
        return True

    async def _token(self, fields: Mapping[str, str], scope: str) -> str:
        realm = fields.get("realm", "")
        if not realm.startswith("https://") and not (self._base.startswith("http://") and realm.startswith("http://")):
            raise Unauthorized(
                f"{self.endpoint}: its tokens come from {realm!r}, which is not https: nothing is sent there"
            )
        query = [("service", fields.get("service", "")), *(("scope", one) for one in scope.split())]
        mine = self._credentials
        headers: dict[str, str] = {}
        if mine and mine.identity_token:
            form = [("grant_type", "refresh_token"), ("refresh_token", mine.identity_token), ("client_id", "wherry")]
            headers["Content-Type"] = "application/x-www-form-urlencoded"
            data = urlencode([*form, query[0], ("scope", scope)]).encode()
            headers["Content-Length"] = str(len(data))
            answer = await self._one("POST", realm, headers, data)
        else:
            if mine and mine.username:
                headers["Authorization"] = mine.basic
                query.append(("account", mine.username))
            answer = await self._one("GET", f"{realm}{'&' if '?' in realm else '?'}{urlencode(query)}", headers, b"")
        if answer.status != 200:
            failure = await self._refusal(answer, "GET", realm)
            raise Unauthorized(f"{self.endpoint}: no token for {scope}: {failure.message}")
        try:
            said = msgspec.json.decode(await answer.read(), type=dict[str, Any])
        except msgspec.MsgspecError:
            said = {}
        token = said.get("token") or said.get("access_token")
        if not isinstance(token, str):
            raise Unauthorized(f"{self.endpoint}: {realm} gave no token for {scope}")
        return token

    async def _refusal(self, answer: Answer, method: str, url: str) -> WherryError:
        """Make the error that a bad answer means, with the words of its OCI error envelope."""
        try:
            async with machine.timeout(READ_S):
                data = await answer.read() if method != "HEAD" else b""
        except (OSError, TimeoutError, WherryError):
            data = b""
        finally:
            await answer.close()
        message = f"{self.endpoint}: {method} {urlsplit(url).path}: {answer.status} {envelope(data)}".strip()
        match answer.status:
            case 401:
                hint = "its credentials were refused" if self._credentials else "it wants credentials: log in first"
                return Unauthorized(f"{message} ({hint})")
            case 403:
                return Forbidden(message)
            case 404:
                return NotFound(message)
            case 429:
                wait = answer.headers.get("retry-after", "")
                return TooManyRequests(message, retry_after_s=int(wait) if wait.isdigit() else 5)
            case status if status >= 500 or status == 408:
                return Unavailable(message)
            case 409 | 416:
                return Conflict(message)
            case _:
                return BadRequest(message)


def back_off_s(attempt: int) -> float:
    """How long to pause after the `attempt`th failure: doubling, with jitter."""
    return BACK_OFF_S * 2 ** (attempt - 1) * random.uniform(0.5, 1.5)


def _pause(attempt: int, failure: WherryError) -> float:
    if isinstance(failure, TooManyRequests):
        return min(60.0, failure.retry_after_s) * random.uniform(1.0, 1.2)
    return back_off_s(attempt)


def _origin(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return parts.scheme, parts.netloc


def _is_loopback(domain: str) -> bool:
    host = domain[1 : domain.find("]")] if domain.startswith("[") else domain.partition(":")[0]
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
