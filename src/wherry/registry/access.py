"""Who may do what, until people and policies come: reads are open, writes are for this machine's own and for one token.

A stock client learns from a 401 at `/v2/` how to ask; it gets a short bearer token from `/v2/token`: with nothing, for
reading; with Basic credentials whose password is the token file's content, for all. Basic is taken directly as well.
Source: Docker registry "Token Authentication Specification".
"""

import base64
import hashlib
import hmac
import secrets
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec

from wherry.clock import Clock
from wherry.errors import Cause, Forbidden, Unauthorized
from wherry.wire.http import Peer, Request, Response

PING, PULL, PUSH, DELETE, LIST = "ping", "pull", "push", "delete", "list"
READS = frozenset((PING, PULL, LIST))
TOKEN_S = 300

Authorize = Callable[[Request, str, str], Awaitable[None]]
"""(request, action, repository): returns for yes, raises Unauthorized or Forbidden."""


class _Claims(msgspec.Struct, frozen=True):
    until: float
    write: bool


class Access:
    """The registry's own rule. `token_file` None means that only trusted local peers write."""

    def __init__(self, clock: Clock, *, token_file: Path | None = None, trusted: Callable[[Peer], bool]) -> None:
        self._clock = clock
        self._token_file = token_file
        self._trusted = trusted
        self._key = secrets.token_bytes(32)  # a token outlives no restart: clients ask for another

    async def __call__(self, request: Request, action: str, repository: str) -> None:
        """Decide. `/v2/` itself wants a token, or stock clients would never ask for one."""
        if self._trusted(request.peer):
            return
        given = request.headers.get("authorization") or ""
        kind, _, value = given.partition(" ")
        what = f"{action} {repository}".strip()
        match kind.lower():
            case "":
                if action in READS and action != PING:
                    return
                raise self._ask(f"{what}: this registry takes it from its own machine's socket, or with credentials")
            case "basic":
                if not self._knows(value):
                    raise self._ask(f"{what}: the password is not the registry's token")
            case "bearer":
                claims = self._read(value)
                if claims is None or claims.until <= self._clock.now():
                    raise self._ask(f"{what}: the token is not one of ours, or over; ask for another")
                if action not in READS and not claims.write:
                    raise Forbidden(f"{what}: an anonymous token reads only; log in with the registry's token")
            case _:
                raise self._ask(f"{what}: authorization by {kind!r} is not known here; use Basic or Bearer")

    def challenge(self, request: Request, scope: str) -> str:
        """The WWW-Authenticate value of a 401."""
        scheme = "https" if request.peer.kind == "tls" else "http"
        host = request.headers.get("host") or "localhost"
        realm = f'Bearer realm="{scheme}://{host}/v2/token",service="wherry"'
        return f'{realm},scope="{scope}"' if scope else realm

    async def token(self, request: Request) -> Response:
        """Answer `/v2/token`: a token for reading, or for all with good credentials. Raises Unauthorized for bad ones."""
        kind, _, value = (request.headers.get("authorization") or "").partition(" ")
        if kind and not (kind.lower() == "basic" and self._knows(value)):
            raise self._ask("the password is not the registry's token")
        claims = msgspec.json.encode(_Claims(self._clock.now() + TOKEN_S, bool(kind)))
        token = f"{_text(claims)}.{_text(self._sign(claims))}"
        body = {"token": token, "access_token": token, "expires_in": TOKEN_S}
        return Response.json(body, headers={"Cache-Control": "no-store"})

    def _knows(self, value: str) -> bool:
        if self._token_file is None:
            return False
        try:
            _, _, password = base64.b64decode(value, validate=True).decode().partition(":")
            wanted = self._token_file.read_text().strip()
        except (ValueError, OSError):
            return False
        return bool(wanted) and hmac.compare_digest(password.encode(), wanted.encode())

    def _read(self, token: str) -> _Claims | None:
        claims, _, mark = token.partition(".")
        try:
            data = _bytes(claims)
            return (
                msgspec.json.decode(data, type=_Claims) if hmac.compare_digest(_bytes(mark), self._sign(data)) else None
            )
        except (ValueError, msgspec.MsgspecError):
            return None

    def _sign(self, data: bytes) -> bytes:
        return hmac.new(self._key, data, hashlib.sha256).digest()

    def _ask(self, message: str) -> Unauthorized:
        return Unauthorized(message, causes=[Cause("", "UNAUTHORIZED", message)])


def trust_local(*uids: int) -> Callable[[Peer], bool]:
    """Trust calls within this process, and unix-socket peers that are root or one of `uids`."""
    known = frozenset((0, *uids))
    return lambda peer: peer.kind == "local" or (peer.kind == "unix" and peer.uid in known)


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _bytes(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
