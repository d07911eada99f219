"""Who asks, and whether they may.

Signing in: Basic with an account's password or one of its tokens, or with the registry's own token (its file is for
the administrator of the machine); or a short bearer token from `/v2/token`, which stock clients fetch after a 401.
A bearer token says who and what for; what that person may do is decided anew at each use, so that taking a right away
works at once. Source: Docker registry "Token Authentication Specification".
"""

import base64
import hashlib
import hmac
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from urllib.parse import parse_qsl

import msgspec

from wherry.clock import Clock, rfc3339
from wherry.errors import Cause, Forbidden, Unauthorized
from wherry.registry.events import SIGN_IN, Event, Journal
from wherry.registry.people import People, Scope
from wherry.registry.policy import Ask, Decision, Policy, Statement, evaluate, parse_policy
from wherry.registry.records import Records, Tx
from wherry.wire.http import Peer, Request, Response

PING, PULL, PUSH, DELETE, LIST, ADMIN = "ping", "pull", "push", "delete", "list", "admin"
TOKEN_S = 300
REFRESH_S = 86400.0
SCOPES_MAX = 64
SERVICE = "wherry"
_KEY = "token-key"
_REFRESH = (("refresh", ()),)
"""What a refresh token is good for: no repository has this name and no action, so as a bearer token it opens nothing."""
_PUBLIC = Policy("public", (Statement("Allow", principals=("*",), actions=(PULL,)),))
_ALL = Policy("administrator", (Statement("Allow", actions=("*",), resources=("*",)),))


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks. `name` is a principal (`user/ann`, `anonymous`, `administrator`); `trusted` is of this machine's own.

    `scope` is what the token used is for, at most; `granted` what a bearer token was asked for; None: all.
    """

    name: str
    address: str = ""
    principals: frozenset[str] = frozenset()
    admin: bool = False
    trusted: bool = False
    scope: Scope | None = None
    granted: tuple[tuple[str, tuple[str, ...]], ...] | None = None

    @property
    def anonymous(self) -> bool:
        """Whether nobody signed in."""
        return self.name == ANONYMOUS


ANONYMOUS = "anonymous"


class _Claims(msgspec.Struct, frozen=True):
    until: float
    name: str
    token: str
    access: tuple[tuple[str, tuple[str, ...]], ...]


class Access:
    """The gate. `public` says what a repository without a word of its own is; `open` lets everybody do everything."""

    def __init__(
        self,
        database: Records,
        people: People,
        journal: Journal,
        clock: Clock,
        *,
        token_file: Path | None = None,
        trusted: Callable[[Peer], bool],
        public: bool = True,
        open: bool = False,
    ) -> None:
        self._database = database
        self._people = people
        self._journal = journal
        self._clock = clock
        self._token_file = token_file
        self._trusted = trusted
        self._public = public
        self._open = open
        self._key = b""

    async def start(self) -> None:
        """Find or make the key of the tokens: it is in the records, so that tokens outlive a restart."""

        def work(db: Tx) -> bytes:
            db.execute("INSERT INTO facts VALUES (?, ?) ON CONFLICT DO NOTHING", (_KEY, secrets.token_bytes(32)))
            return db.execute("SELECT value FROM facts WHERE name = ?", (_KEY,)).fetchone()[0]

        self._key = await self._database.write(work)

    async def identify(self, request: Request) -> Caller:
        """Say who asks. Raises Unauthorized for credentials that are wrong, TooManyRequests after too many."""
        address = request.peer.address
        if self._open:
            return Caller("administrator", address, admin=True)
        if self._trusted(request.peer):
            return Caller("administrator", address, admin=True, trusted=True)
        kind, _, value = (request.headers.get("authorization") or "").partition(" ")
        match kind.lower():
            case "":
                return _anonymous(address)
            case "basic":
                return await self._basic(value, address)
            case "bearer":
                claims = self._read(value)
                if claims is None or claims.until <= self._clock.now():
                    raise _ask("the token is not one of ours, or over; ask for another")
                return await self._of_claims(claims, address)
            case _:
                raise _ask(f"authorization by {kind!r} is not known here; use Basic or Bearer")

    async def decide(self, caller: Caller, action: str, repository: str, *, asked: bool = True) -> Decision:
        """Say whether somebody may do something with a repository, and why. `asked` False leaves out a bearer's words."""
        if asked and caller.granted is not None and not _is_granted(caller.granted, action, repository):
            return Decision(False, "boundary", "the bearer token was not asked for it")
        targets = [f"repository/{repository}", "registry", *sorted(caller.principals)]
        marks = ", ".join("?" * len(targets))
        rows = await self._database.rows(
            f"SELECT target, name, document FROM policies WHERE target IN ({marks})", *targets
        )
        resource = [parse_policy(row[2], name=row[1]) for row in rows if row[0] in targets[:2]]
        identity = [parse_policy(row[2], name=row[1], identity=True) for row in rows if row[0] not in targets[:2]]
        if caller.admin:
            identity.append(_ALL)
        if action == PULL and await self._is_public(repository):
            resource.append(_PUBLIC)
        boundaries = [[_of_scope(caller.scope)]] if caller.scope is not None else []
        context = {
            "principal": (caller.name,),
            "username": (caller.name.partition("/")[2] or caller.name,),
            "sourceip": (_host(caller.address),),
            "currenttime": (rfc3339(self._clock.now()),),
            "epochtime": (str(int(self._clock.now())),),
            "repository": (repository,),
        }
        ask = Ask(caller.principals | {caller.name}, action, repository, context)
        return evaluate(ask, identity=identity, resource=resource, boundaries=boundaries)

    async def readable(self, caller: Caller, names: Sequence[str]) -> Sequence[str]:
        """Keep of some repositories, in order, those that somebody may pull from: for catalogues."""
        if not names or caller.trusted or self._open:
            return names
        if caller.scope is None and await self._database.row("SELECT 1 FROM policies LIMIT 1") is None:
            if caller.admin:  # nothing but visibility decides: one query for all
                return names
            query = "SELECT name, visibility FROM repositories WHERE name BETWEEN ? AND ?"
            said = dict[str, str](await self._database.rows(query, names[0], names[-1]))
            return [name for name in names if (said.get(name) or ("public" if self._public else "")) == "public"]
        return [name for name in names if (await self.decide(caller, PULL, name, asked=False)).allowed]

    async def check(self, caller: Caller, action: str, repository: str) -> None:
        """Let pass, or raise Unauthorized for somebody who has not signed in, else Forbidden."""
        if caller.admin and caller.granted is None and caller.scope is None and self._open | caller.trusted:
            return
        decision = await self.decide(caller, action, repository)
        if decision.allowed:
            return
        what = f"{action} {repository}".strip()
        if caller.granted is not None and (await self.decide(caller, action, repository, asked=False)).allowed:
            raise _ask(f"{what}: the bearer token was not asked for this; ask for another")
        if caller.anonymous and caller.granted is None:
            raise _ask(f"{what}: this registry takes it from its own machine's socket, or with credentials")
        hint = "; log in with an account that may, or with the registry's token" if caller.anonymous else ""
        by = f" by {decision.by}" if decision.by else ""
        raise Forbidden(f"{what}: {caller.name} may not ({decision.reason}{by}){hint}")

    def check_admin(self, caller: Caller) -> None:
        """Let an administrator pass who signed in whole, or raise Unauthorized or Forbidden."""
        if caller.admin and caller.scope is None:
            return
        if caller.anonymous:
            raise _ask("this is for administrators: sign in")
        raise Forbidden(f"{caller.name} may not: this is for administrators")

    def check_signed_in(self, caller: Caller) -> None:
        """`/v2/` itself wants a token, or stock clients would never ask for one."""
        if caller.anonymous and caller.granted is None:
            raise _ask("sign in, or ask for a token")

    def challenge(self, request: Request, scope: str) -> str:
        """The WWW-Authenticate value of a 401; behind a proxy it names the address that the proxy was asked by."""
        scheme = "https" if request.peer.kind == "tls" else "http"
        scheme = (request.headers.get("x-forwarded-proto") or scheme).partition(",")[0].strip()
        host = (request.headers.get("x-forwarded-host") or request.headers.get("host") or "localhost").partition(",")[0]
        realm = f'Bearer realm="{scheme}://{host.strip()}/v2/token",service="{SERVICE}"'
        return f'{realm},scope="{scope}"' if scope else realm

    async def token(self, request: Request) -> Response:
        """Answer `/v2/token` (GET) or its OAuth2 form (POST): a bearer token for what of the scopes they may do.

        Raises Unauthorized for bad credentials: anonymous people get a token for what everybody may.
        """
        fields = list(request.query)
        if request.method == "POST":
            fields += parse_qsl((await request.body(64 * 1024)).decode("utf-8", "replace"), keep_blank_values=True)
        asked = dict(fields)
        address = request.peer.address
        if self._trusted(request.peer):
            caller = Caller("administrator", address, admin=True)
        elif request.headers.get("authorization"):
            caller = await self.identify(request)
        elif asked.get("grant_type") == "password":
            caller = await self._password(asked.get("username", ""), asked.get("password", ""), address)
        elif asked.get("grant_type") == "refresh_token":
            claims = self._read(asked.get("refresh_token", ""))
            if claims is None or claims.access != _REFRESH or claims.until <= self._clock.now():
                raise _ask("the refresh token is not one of ours, or over")
            caller = await self._of_claims(msgspec.structs.replace(claims, access=()), address)
        else:
            caller = _anonymous(address)
        texts = [one for key, value in fields if key == "scope" for one in value.split()][:SCOPES_MAX]
        asked_for = [await self._grant(caller, text) for text in texts]
        access = tuple(granted for granted in asked_for if granted is not None)
        now = self._clock.now()
        token = self._sign_claims(_Claims(now + TOKEN_S, caller.name, _token_of(caller), access))
        body: dict[str, object] = {
            "token": token,
            "access_token": token,
            "expires_in": TOKEN_S,
            "issued_at": rfc3339(now),
        }
        if not caller.anonymous:
            self._journal.note(Event(now, caller.name, SIGN_IN, address=address))
            if asked.get("offline_token") == "true" or asked.get("access_type") == "offline":
                refresh = _Claims(now + REFRESH_S, caller.name, _token_of(caller), _REFRESH)
                body["refresh_token"] = self._sign_claims(refresh)
        return Response.json(body, headers={"Cache-Control": "no-store"})

    async def _grant(self, caller: Caller, text: str) -> tuple[str, tuple[str, ...]] | None:
        """Read one scope, `repository:team/web:pull,push`, and keep of its actions what they may do."""
        kind, _, rest = text.partition(":")
        name, _, actions = rest.rpartition(":")
        if kind == "registry":
            return "registry", (LIST,)
        if kind.partition("(")[0] != "repository" or not name:
            return None
        wanted = [PULL, PUSH, DELETE, ADMIN] if "*" in actions.split(",") else actions.split(",")
        may = [one for one in wanted if one and (await self.decide(caller, one, name, asked=False)).allowed]
        return name, tuple(may)

    async def _basic(self, value: str, address: str) -> Caller:
        try:
            name, _, password = base64.b64decode(value, validate=True).decode().partition(":")
        except ValueError:
            raise _ask("the Authorization header is no Basic credentials") from None
        return await self._password(name, password, address)

    async def _password(self, name: str, password: str, address: str) -> Caller:
        if self._is_own_token(password):
            return Caller("administrator", address, admin=True)
        found = await self._people.sign_in(name, password, _host(address)) if len(name) <= 64 else None
        if found is None:
            self._journal.note(
                Event(self._clock.now(), f"user/{name[:64]}", SIGN_IN, outcome="refused", address=address)
            )
            raise _ask("the password is not right, nor is it the registry's token")
        person, token = found
        return await self._person(person.name, address, token.scope if token else None, token.id if token else "")

    async def _person(self, name: str, address: str, scope: Scope | None, token: str) -> Caller:
        person = await self._people.find(name)
        if person is None or person.disabled:
            raise _ask(f"account {name}: it is gone or disabled")
        teams = [f"team/{team}" for team in await self._people.teams_of(name)]
        principals = frozenset((person.principal, "authenticated", *teams, *((f"token/{token}",) if token else ())))
        return Caller(person.principal, address, principals, person.admin, False, scope)

    async def _of_claims(self, claims: _Claims, address: str) -> Caller:
        granted = claims.access
        if claims.name == ANONYMOUS:
            caller = _anonymous(address)
        elif claims.name == "administrator":
            caller = Caller("administrator", address, admin=True)
        else:
            if claims.token and not await self._people.token_alive(claims.token):
                raise _ask("the token that this bearer token came from has ended")
            name = claims.name.partition("/")[2]
            scopes = [token.scope for token in await self._people.tokens(name) if token.id == claims.token]
            caller = await self._person(name, address, scopes[0] if scopes else None, claims.token)
        if not granted and claims.name in ("administrator", ANONYMOUS):
            granted = (("*", ("*",)),)  # asked for with no scope: it stands for whoever asked
        return Caller(
            caller.name, address, caller.principals, caller.admin, False, caller.scope, granted or (("*", ("*",)),)
        )

    async def _is_public(self, repository: str) -> bool:
        row = await self._database.row("SELECT visibility FROM repositories WHERE name = ?", repository)
        return row[0] == "public" if row is not None and row[0] else self._public

    def _is_own_token(self, password: str) -> bool:
        if self._token_file is None:
            return False
        try:
            wanted = self._token_file.read_text().strip()
        except OSError:
            return False
        return bool(wanted) and hmac.compare_digest(password.encode(), wanted.encode())

    def _sign_claims(self, claims: _Claims) -> str:
        data = msgspec.json.encode(claims)
        return f"{_text(data)}.{_text(self._sign(data))}"

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


def trust_local(*uids: int) -> Callable[[Peer], bool]:
    """Trust calls within this process, and unix-socket peers that are root or one of `uids`."""
    known = frozenset((0, *uids))
    return lambda peer: peer.kind == "local" or (peer.kind == "unix" and peer.uid in known)


def _anonymous(address: str) -> Caller:
    return Caller(ANONYMOUS, address, frozenset((ANONYMOUS,)))


def _token_of(caller: Caller) -> str:
    return next((one.removeprefix("token/") for one in caller.principals if one.startswith("token/")), "")


def _is_granted(granted: Sequence[tuple[str, tuple[str, ...]]], action: str, repository: str) -> bool:
    return any(name in ("*", repository) and (action in actions or "*" in actions) for name, actions in granted)


@lru_cache(maxsize=1024)
def _of_scope(scope: Scope) -> Policy:
    return Policy("token", (Statement("Allow", actions=scope.actions, resources=scope.repositories),))


def _host(address: str) -> str:
    host, colon, port = address.rpartition(":")
    return host.strip("[]") if colon and port.isdigit() else address


def _ask(message: str) -> Unauthorized:
    return Unauthorized(message, causes=[Cause("", "UNAUTHORIZED", message)])


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _bytes(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
