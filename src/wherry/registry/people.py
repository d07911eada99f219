"""Accounts of the registry: users, robots, teams, and the tokens they act by."""

import asyncio
import dataclasses
import hashlib
import hmac
import re
import secrets
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from wherry.clock import Clock
from wherry.errors import AlreadyExists, Cause, Invalid, NotFound, TooManyRequests
from wherry.registry.events import CHANGE, Event, record
from wherry.registry.records import Records, Tx

USER, ROBOT = "user", "robot"
PASSWORD_LEAST, PASSWORD_MOST = 8, 1024
REMEMBER_S = 300.0
"""A password that was right is not stretched again for this long (cluster time)."""
REMEMBERED = 1024
FREE_TRIES = 5
TRY_AGAIN_MOST_S = 900.0
USED_S = 60.0
"""A token's last use is noted this exactly."""
_NAME = re.compile(r"[a-z0-9]+(?:[._-][a-z0-9]+)*")


class Scope(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a token is for, at most: actions (`*` for all) on repositories by IAM's wildcards."""

    actions: tuple[str, ...] = ("*",)
    repositories: tuple[str, ...] = ("*",)


@dataclass(frozen=True, slots=True)
class Person:
    """An account."""

    name: str
    kind: str
    created: float
    admin: bool
    disabled: bool
    email: str

    @property
    def principal(self) -> str:
        """Its name in policies: `user/ann`, `robot/ci`."""
        return f"{self.kind}/{self.name}"


@dataclass(frozen=True, slots=True)
class Token:
    """A token as it is shown: never its secret. Times in unix seconds, 0 for never."""

    id: str
    owner: str
    name: str
    scope: Scope
    created: float
    expires: float
    used: float


class People:
    """All accounts. Each change is written with the event that tells of it."""

    def __init__(self, database: Records, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._right: OrderedDict[str, tuple[bytes, float]] = OrderedDict()
        self._key = secrets.token_bytes(32)
        self._throttle = Throttle(clock)

    async def find(self, name: str) -> Person | None:
        """Find an account."""
        row = await self._database.row(
            "SELECT name, kind, created, admin, disabled, email FROM people WHERE name = ?", name
        )
        return _person(row) if row else None

    async def every(self) -> Sequence[Person]:
        """List accounts by name."""
        return [_person(row) for row in await self._database.rows(
            "SELECT name, kind, created, admin, disabled, email FROM people ORDER BY name"
        )]  # fmt: skip

    async def teams_of(self, name: str) -> Sequence[str]:
        """List the teams that an account is in."""
        return [
            row[0] for row in await self._database.rows("SELECT team FROM members WHERE person = ? ORDER BY team", name)
        ]

    async def teams(self) -> dict[str, list[str]]:
        """List teams with their members."""
        found: dict[str, list[str]] = {}
        for team, person in await self._database.rows("SELECT team, person FROM members ORDER BY team, person"):
            found.setdefault(team, []).append(person)
        return found

    async def create(
        self, name: str, *, by: str, kind: str = USER, password: str = "", admin: bool = False, email: str = ""
    ) -> Person:
        """Make an account; a robot has no password. Raises Invalid, AlreadyExists."""
        _check_name(name, "name")
        if kind not in (USER, ROBOT):
            raise _invalid("kind", f"kind {kind!r}: user or robot")
        if kind == ROBOT and (password or admin):
            raise _invalid("password", f"robot {name}: it signs in with tokens and is no administrator")
        stretched = await _stretch(password) if kind == USER and password else ""
        now = self._clock.now()

        def work(db: Tx) -> None:
            if db.execute("SELECT 1 FROM people WHERE name = ?", (name,)).fetchone() is not None:
                raise AlreadyExists(f"account {name}: the name is taken")
            values = (name, kind, stretched, now, int(admin), 0, email)
            db.execute("INSERT INTO people VALUES (?, ?, ?, ?, ?, ?, ?)", values)
            record(db, Event(now, by, CHANGE, detail=f"account {name} created ({kind})"))

        await self._database.write(work)
        return Person(name, kind, now, admin, False, email)

    async def change(
        self,
        name: str,
        *,
        by: str,
        password: str | None = None,
        admin: bool | None = None,
        disabled: bool | None = None,
    ) -> Person:
        """Change an account. Raises NotFound, Invalid."""
        stretched = await _stretch(password) if password is not None else None
        parts = {"password": stretched, "admin": admin, "disabled": disabled}
        given = {key: value for key, value in parts.items() if value is not None}

        def work(db: Tx) -> None:
            for key, value in given.items():
                if not db.execute(f"UPDATE people SET {key} = ? WHERE name = ?", (value, name)).rowcount:
                    raise _unknown(name)
            record(db, Event(self._clock.now(), by, CHANGE, detail=f"account {name} changed: {', '.join(given)}"))

        await self._database.write(work)
        self._right.pop(name, None)
        found = await self.find(name)
        if found is None:
            raise _unknown(name)
        return found

    async def delete(self, name: str, *, by: str) -> None:
        """Delete an account with its tokens, memberships and policies. Raises NotFound."""

        def work(db: Tx) -> None:
            row = db.execute("SELECT kind FROM people WHERE name = ?", (name,)).fetchone()
            if row is None:
                raise _unknown(name)
            db.execute("DELETE FROM people WHERE name = ?", (name,))
            db.execute("DELETE FROM tokens WHERE owner = ?", (name,))
            db.execute("DELETE FROM members WHERE person = ?", (name,))
            db.execute("DELETE FROM policies WHERE target = ?", (f"{row[0]}/{name}",))
            record(db, Event(self._clock.now(), by, CHANGE, detail=f"account {name} deleted"))

        await self._database.write(work)
        self._right.pop(name, None)

    async def join(self, team: str, person: str, *, by: str, leave: bool = False) -> None:
        """Put an account into a team, or take it out. Raises NotFound, Invalid."""
        _check_name(team, "team")
        now = self._clock.now()

        def work(db: Tx) -> None:
            if db.execute("SELECT 1 FROM people WHERE name = ?", (person,)).fetchone() is None:
                raise _unknown(person)
            if leave:
                db.execute("DELETE FROM members WHERE team = ? AND person = ?", (team, person))
            else:
                db.execute("INSERT INTO members VALUES (?, ?) ON CONFLICT DO NOTHING", (team, person))
            record(db, Event(now, by, CHANGE, detail=f"team {team}: {person} {'left' if leave else 'joined'}"))

        await self._database.write(work)

    async def issue(self, owner: str, name: str, *, by: str, scope: Scope, expires: float = 0.0) -> tuple[Token, str]:
        """Make a token; its secret is told once, now. `expires` unix seconds, 0 for never. Raises NotFound, Invalid."""
        now = self._clock.now()
        if expires and expires <= now:
            raise _invalid("expires", f"token {name!r}: it would be over at once")
        if not name or len(name) > 128 or not scope.actions or not scope.repositories:
            raise _invalid("name", "token: it needs a name, actions and repositories")
        id, secret = secrets.token_hex(8), secrets.token_urlsafe(30)

        def work(db: Tx) -> None:
            if db.execute("SELECT 1 FROM people WHERE name = ?", (owner,)).fetchone() is None:
                raise _unknown(owner)
            values = (id, owner, name, _digest(secret), msgspec.json.encode(scope), now, expires)
            db.execute("INSERT INTO tokens VALUES (?, ?, ?, ?, ?, ?, ?, 0)", values)
            record(db, Event(now, by, CHANGE, detail=f"token {id} ({name}) of {owner} made"))

        await self._database.write(work)
        return Token(id, owner, name, scope, now, expires, 0.0), f"wht_{id}_{secret}"

    async def revoke(self, owner: str, id: str, *, by: str) -> None:
        """End a token. Raises NotFound."""

        def work(db: Tx) -> None:
            if not db.execute("DELETE FROM tokens WHERE owner = ? AND id = ?", (owner, id)).rowcount:
                raise NotFound(f"token {id}: {owner} has none of this id")
            record(db, Event(self._clock.now(), by, CHANGE, detail=f"token {id} of {owner} ended"))

        await self._database.write(work)

    async def tokens(self, owner: str) -> Sequence[Token]:
        """List an account's tokens."""
        query = "SELECT id, owner, name, scope, created, expires, used FROM tokens WHERE owner = ? ORDER BY created, id"
        return [_token(row) for row in await self._database.rows(query, owner)]

    async def token_alive(self, id: str) -> bool:
        """Say whether a token still holds."""
        row = await self._database.row("SELECT expires FROM tokens WHERE id = ?", id)
        return row is not None and not 0 < row[0] <= self._clock.now()

    async def sign_in(self, name: str, password: str, address: str) -> tuple[Person, Token | None] | None:
        """Check a password, or a token given in its place; None when it is wrong.

        Raises TooManyRequests when the account or the address has failed too often of late.
        """
        found = await self.find(name)
        if password.startswith("wht_"):
            token = await self._by_token(found, password)
            if token is not None:
                assert found is not None
                return found, token
        row = await self._database.row("SELECT password FROM people WHERE name = ?", name)
        stored = str(row[0]) if row else ""
        if found is not None and self._remembers(name, password, stored) and not found.disabled:
            return found, None
        self._throttle.check(name, address)
        right = await _matches(password, stored)
        if found is None or found.disabled or not right:
            self._throttle.failed(name, address)
            return None
        self._throttle.passed(name)
        self._right[name] = (self._mark(name, password, stored), self._clock.now() + REMEMBER_S)
        while len(self._right) > REMEMBERED:
            self._right.popitem(last=False)
        return found, None

    async def _by_token(self, found: Person | None, text: str) -> Token | None:
        _, _, rest = text.partition("_")
        id, _, secret = rest.partition("_")
        query = "SELECT id, owner, name, scope, created, expires, used, secret FROM tokens WHERE id = ?"
        row = await self._database.row(query, id)
        if row is None or found is None or found.disabled or row[1] != found.name:
            return None
        if not hmac.compare_digest(row[7], _digest(secret)) or not await self.token_alive(id):
            return None
        now = self._clock.now()
        if now - row[6] >= USED_S:
            await self._database.execute("UPDATE tokens SET used = ? WHERE id = ?", now, id)
        return dataclasses.replace(_token(row[:7]), used=now)

    def _remembers(self, name: str, password: str, stored: str) -> bool:
        mark, until = self._right.get(name, (b"", 0.0))
        return until > self._clock.now() and hmac.compare_digest(mark, self._mark(name, password, stored))

    def _mark(self, name: str, password: str, stored: str) -> bytes:
        """`stored` is in it: a change of password, also by another registry over these records, ends what is remembered."""
        return hmac.new(self._key, f"{name}\0{password}\0{stored}".encode(), hashlib.sha256).digest()


class Throttle:
    """Slows down who guesses: after some failures each further try must wait, twice as long every time."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._failures: OrderedDict[str, tuple[int, float]] = OrderedDict()

    def check(self, name: str, address: str) -> None:
        """Raise TooManyRequests while one of the two must wait."""
        now = self._clock.now()
        for key in self._keys(name, address):
            _, until = self._failures.get(key, (0, 0.0))
            if until > now:
                wait_s = int(until - now) + 1
                raise TooManyRequests(
                    f"sign-in as {name}: too many failed tries; again in {wait_s} s",
                    retry_after_s=wait_s,
                    causes=[Cause("", "TOOMANYREQUESTS", "too many failed tries")],
                )

    def failed(self, name: str, address: str) -> None:
        """Note a failure."""
        now = self._clock.now()
        for key in self._keys(name, address):
            count, until = self._failures.pop(key, (0, now))
            count = 1 if now - until > TRY_AGAIN_MOST_S else count + 1
            free = FREE_TRIES if key[0] == "n" else 4 * FREE_TRIES
            wait_s = min(TRY_AGAIN_MOST_S, 2.0 ** min(20, count - free)) if count >= free else 0.0
            self._failures[key] = (count, now + wait_s)
        while len(self._failures) > 10_000:
            self._failures.popitem(last=False)

    def passed(self, name: str) -> None:
        """Forget an account's failures."""
        self._failures.pop(f"n{name}", None)

    def _keys(self, name: str, address: str) -> Sequence[str]:
        return (f"n{name}", f"a{address}") if address else (f"n{name}",)


async def _stretch(password: str) -> str:
    if not PASSWORD_LEAST <= len(password) <= PASSWORD_MOST:
        raise _invalid("password", f"password: {PASSWORD_LEAST} to {PASSWORD_MOST} characters")

    def work() -> str:
        from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

        kdf = Argon2id(salt=secrets.token_bytes(16), length=32, iterations=2, lanes=1, memory_cost=19 * 1024)
        return kdf.derive_phc_encoded(password.encode())

    return await asyncio.to_thread(work)


async def _matches(password: str, stretched: str) -> bool:
    """Compare in a thread; for an account that is not there too, so that the time tells nothing."""

    def work() -> bool:
        from cryptography.exceptions import InvalidKey
        from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

        try:
            Argon2id.verify_phc_encoded(password.encode(), stretched or _NOBODY)
        except (InvalidKey, ValueError):
            return False
        return bool(stretched)

    return await asyncio.to_thread(work)


_NOBODY = "$argon2id$v=19$m=19456,t=2,p=1$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"


def _digest(secret: str) -> str:
    """A token's secret has 240 random bits: nothing needs to be stretched."""
    return hashlib.sha256(secret.encode()).hexdigest()


def _check_name(name: str, field: str) -> None:
    if len(name) > 64 or _NAME.fullmatch(name) is None:
        raise _invalid(field, f"{field} {name!r}: lower-case letters and digits, with single . _ - between them")


def _person(row: tuple[str, str, float, int, int, str]) -> Person:
    name, kind, created, admin, disabled, email = row
    return Person(name, kind, created, bool(admin), bool(disabled), email)


def _token(row: tuple[str, str, str, bytes, float, float, float]) -> Token:
    id, owner, name, scope, created, expires, used = row
    return Token(id, owner, name, msgspec.json.decode(scope, type=Scope), created, expires, used)


def _unknown(name: str) -> NotFound:
    return NotFound(f"account {name}: there is none of this name")


def _invalid(field: str, message: str) -> Invalid:
    return Invalid(message, causes=[Cause(field, "Invalid", message)])
