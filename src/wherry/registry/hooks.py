"""Webhooks: events told to other programs, signed, tried again, and kept so that people can see what was said.

Deliveries are made from the audit log: each hook remembers how far it has read, so a kill loses none (it may send one
twice; each has an id). Shapes: Docker Hub's, and CloudEvents 1.0 in structured JSON. The signature is HMAC-SHA256 over
the body, in `X-Wherry-Signature: sha256=HEX`.
"""

import asyncio
import hashlib
import hmac
import logging
import random
import secrets
from collections.abc import Sequence
from fnmatch import fnmatchcase
from urllib.parse import parse_qsl, urlsplit

import msgspec

from wherry.clock import Clock, machine, rfc3339
from wherry.errors import Cause, Invalid, NotFound, WherryError
from wherry.registry.events import DELETE, EXPIRE, PULL, PUSH, Event, Journal, event_of, record
from wherry.registry.records import Records, Tx
from wherry.wire.client import Endpoint, HttpClient

DEADLINE_S = 10.0
ATTEMPTS = 8
FIRST_AGAIN_S = 2.0
LAST_AGAIN_S = 3600.0
CLAIM_S = 60.0
"""How long a delivery is left to the registry that began to send it."""
KEPT = 1000
"""Deliveries kept for each hook."""
ANSWER_BYTES = 2000
BATCH = 200
log = logging.getLogger(__name__)


class HookBody(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """A webhook as people write it. `actions` of the audit log, `repositories` by shell pattern."""

    url: str
    shape: str = "cloudevents"
    actions: tuple[str, ...] = (PUSH,)
    repositories: str = "*"
    active: bool = True


class Hook(msgspec.Struct, frozen=True):
    """A webhook as it is shown."""

    id: str
    hook: HookBody


class Delivery(msgspec.Struct, frozen=True):
    """One message. `state` is waiting, done or failed; `status` the last answer's, 0 for none; times in unix seconds."""

    id: int
    hook: str
    event: int
    attempts: int
    due: float
    state: str
    status: int
    answer: str
    created: float
    body: msgspec.Raw


class Hooks:
    """All webhooks, and the task that sends."""

    def __init__(self, database: Records, journal: Journal, clock: Clock) -> None:
        self._database = database
        self._journal = journal
        self._clock = clock
        self._task: asyncio.Task[None] | None = None

    def start(self, every_s: float = 1.0) -> None:
        """Send in the background until `close`."""
        self._task = asyncio.create_task(self._keep(every_s), name="registry-hooks")

    async def close(self) -> None:
        """Stop; what was not sent is sent after the next start."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def every(self) -> Sequence[Hook]:
        """List webhooks."""
        rows = await self._database.rows("SELECT id, body FROM webhooks ORDER BY id")
        return [Hook(row[0], msgspec.json.decode(row[1], type=HookBody)) for row in rows]

    async def create(self, body: HookBody, event: Event) -> tuple[Hook, str]:
        """Make a webhook for what happens from now on; its secret is told once. Raises Invalid."""
        check(body)
        await self._journal.flush()
        id, secret = secrets.token_hex(4), secrets.token_urlsafe(24)

        def work(db: Tx) -> None:
            record(db, event)
            (position,) = db.execute("SELECT coalesce(max(seq), 0) FROM events").fetchone()
            db.execute("INSERT INTO webhooks VALUES (?, ?, ?, ?)", (id, msgspec.json.encode(body), secret, position))

        await self._database.write(work)
        return Hook(id, body), secret

    async def delete(self, id: str, event: Event) -> None:
        """Drop a webhook with its deliveries. Raises NotFound."""

        def work(db: Tx) -> None:
            if not db.execute("DELETE FROM webhooks WHERE id = ?", (id,)).rowcount:
                raise NotFound(f"webhook {id}: there is none")
            db.execute("DELETE FROM deliveries WHERE hook = ?", (id,))
            record(db, event)

        await self._database.write(work)

    async def deliveries(self, hook: str, *, limit: int = 100) -> Sequence[Delivery]:
        """List deliveries, the latest first."""
        query = (
            "SELECT id, hook, event, attempts, due, state, status, answer, created, body FROM deliveries"
            " WHERE hook = ? ORDER BY id DESC LIMIT ?"
        )
        rows = await self._database.rows(query, hook, min(limit, KEPT))
        return [_delivery(row) for row in rows]

    async def resend(self, id: int) -> None:
        """Send a delivery again. Raises NotFound."""
        query = "UPDATE deliveries SET state = 'waiting', attempts = 0, due = 0 WHERE id = ?"
        if not await self._database.execute(query, id):
            raise NotFound(f"delivery {id}: there is none; the oldest are dropped")

    async def work(self) -> int:
        """Make deliveries of new events and send those that are due; return how many were tried."""
        await self._journal.flush()
        for id, body, _, position in await self._database.rows("SELECT id, body, secret, position FROM webhooks"):
            await self._make(id, msgspec.json.decode(body, type=HookBody), position)
        due = await self._database.rows(
            "SELECT d.id, d.body, d.attempts, d.due, w.body, w.secret FROM deliveries d JOIN webhooks w ON w.id = d.hook"
            " WHERE d.state = 'waiting' AND d.due <= ? ORDER BY d.id LIMIT ?",
            self._clock.now(),
            BATCH,
        )
        gate = asyncio.Semaphore(8)

        async def one(id: int, message: bytes, attempts: int, was: float, hook: bytes, secret: str) -> None:
            async with gate:
                mine = "UPDATE deliveries SET due = ? WHERE id = ? AND state = 'waiting' AND due = ?"
                if not await self._database.execute(mine, self._clock.now() + CLAIM_S, id, was):
                    return  # another registry over these records sends it
                status, answer = await send(msgspec.json.decode(hook, type=HookBody).url, message, secret, id)
                await self._done(id, attempts + 1, status, answer)

        await asyncio.gather(*(one(*row) for row in due))
        return len(due)

    async def _make(self, id: str, hook: HookBody, position: int) -> None:
        rows = await self._database.rows(
            "SELECT seq, at, actor, address, action, repository, reference, digest, media_type, size, outcome, detail"
            " FROM events WHERE seq > ? ORDER BY seq LIMIT ?",
            position,
            BATCH,
        )
        if not rows:
            return
        chosen = [event for event in map(event_of, rows) if fits(hook, event)]
        now = self._clock.now()

        def work(db: Tx) -> None:
            moved = "UPDATE webhooks SET position = ? WHERE id = ? AND position = ?"
            if not db.execute(moved, (rows[-1][0], id, position)).rowcount:
                return  # another registry over these records was first, or the webhook is gone
            for event in chosen:
                body = msgspec.json.encode(message_of(hook, event))
                db.execute(
                    "INSERT INTO deliveries (hook, event, body, attempts, due, state, status, answer, created)"
                    " VALUES (?, ?, ?, 0, 0, 'waiting', 0, '', ?)",
                    (id, event.seq, body, now),
                )
            db.execute(
                "DELETE FROM deliveries WHERE hook = ? AND state != 'waiting' AND id <="
                " (SELECT max(id) FROM deliveries WHERE hook = ?) - ?",
                (id, id, KEPT),
            )

        await self._database.write(work)

    async def _done(self, id: int, attempts: int, status: int, answer: str) -> None:
        good = 200 <= status < 300
        state = "done" if good else "failed" if attempts >= ATTEMPTS else "waiting"
        again_s = min(LAST_AGAIN_S, FIRST_AGAIN_S * 4.0 ** (attempts - 1)) * random.uniform(0.8, 1.2)
        await self._database.execute(
            "UPDATE deliveries SET attempts = ?, due = ?, state = ?, status = ?, answer = ? WHERE id = ?",
            attempts, self._clock.now() + again_s, state, status, answer, id,
        )  # fmt: skip

    async def _keep(self, every_s: float) -> None:
        while True:
            try:
                if await self._database.row("SELECT 1 FROM webhooks LIMIT 1") is not None:
                    await self.work()
            except WherryError as error:
                log.warning("registry: webhooks: %s", error.message)
            await machine.sleep(every_s)


def check(body: HookBody) -> None:
    """Raise Invalid for a webhook that cannot be."""
    parts = urlsplit(body.url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise _invalid("url", f"url {body.url!r}: an http or https address")
    if body.shape not in ("cloudevents", "docker"):
        raise _invalid("shape", f"shape {body.shape!r}: cloudevents or docker")
    for action in body.actions:
        if action not in (PUSH, PULL, DELETE, EXPIRE):
            raise _invalid("actions", f"action {action!r}: one of push, pull, delete, expire")


def fits(hook: HookBody, event: Event) -> bool:
    """Say whether a webhook tells of an event."""
    wanted = hook.active and event.action in hook.actions and event.outcome == "ok" and bool(event.repository)
    return wanted and fnmatchcase(event.repository, hook.repositories)


def message_of(hook: HookBody, event: Event) -> dict[str, object]:
    """Write an event in the hook's shape. Sources: Docker Hub, "Webhooks"; CloudEvents 1.0, "JSON format"."""
    if hook.shape == "docker":
        namespace, _, name = event.repository.rpartition("/")
        tag = event.reference if ":" not in event.reference else event.detail.partition(",")[0]
        return {
            "callback_url": "",
            "push_data": {"pushed_at": int(event.at), "pusher": event.actor, "tag": tag, "digest": event.digest,
                          "media_type": event.media_type},
            "repository": {"name": name, "namespace": namespace, "repo_name": event.repository, "status": "Active"},
            "action": event.action,
        }  # fmt: skip
    return {
        "specversion": "1.0",
        "id": str(event.seq),
        "source": f"/v2/{event.repository}",
        "type": f"wherry.registry.{event.action}",
        "time": rfc3339(event.at),
        "subject": event.reference or event.digest,
        "datacontenttype": "application/json",
        "data": event,
    }


def sign(body: bytes, secret: str) -> str:
    """The signature header's value."""
    return "sha256=" + hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()


async def send(url: str, body: bytes, secret: str, id: int) -> tuple[int, str]:
    """Post a message; return the status (0: no answer) and the beginning of what was said."""
    parts = urlsplit(url)
    path = parts.path or "/"
    query = parse_qsl(parts.query, keep_blank_values=True)
    headers = {
        "Content-Type": "application/json",
        "X-Wherry-Signature": sign(body, secret),
        "X-Wherry-Delivery": str(id),
    }
    try:
        async with machine.timeout(DEADLINE_S):
            async with HttpClient(Endpoint.parse(f"{parts.scheme}://{parts.netloc}")) as client:
                answer = await client.request("POST", path, query, headers, body)
                said = (await answer.read())[:ANSWER_BYTES]
                return answer.status, said.decode("utf-8", "replace")
    except (TimeoutError, OSError, WherryError) as error:
        return 0, f"no answer: {error or 'timeout'}"[:ANSWER_BYTES]


def _delivery(row: tuple[int, str, int, int, float, str, int, str, float, bytes]) -> Delivery:
    id, hook, event, attempts, due, state, status, answer, created, body = row
    return Delivery(id, hook, event, attempts, due, state, status, answer, created, msgspec.Raw(body))


def _invalid(field: str, message: str) -> Invalid:
    return Invalid(message, causes=[Cause(field, "Invalid", message)])
