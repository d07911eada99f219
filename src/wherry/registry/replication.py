"""Replication: what is pushed here (and deleted, where asked) goes to other registries too, by rules.

A rule reads the audit log from where it stands and makes a task for each event that it fits; tasks are tried until they
are done, with growing pauses, and kept to be looked at. What the target has already is not sent; a cut upload goes on.
"""

import asyncio
import fnmatch
import logging
import random
import secrets
from collections.abc import Sequence

import msgspec

from wherry.clock import Clock, machine
from wherry.content.oci import DOCUMENT_TYPES
from wherry.content.protocol import Digest
from wherry.content.push import push
from wherry.content.remote import Remote
from wherry.errors import NotFound, WherryError
from wherry.registry import elsewhere
from wherry.registry.events import DELETE, EXPIRE, FETCH, PUSH, Event, Journal, event_of, record
from wherry.registry.metadata import Metadata
from wherry.registry.pile import Pile
from wherry.registry.records import Records, Tx

EVERY_S = 1.0
PARALLEL = 4
BATCH = 200
KEPT = 1000
"""Finished tasks kept for each rule."""
ATTEMPTS = 20
FIRST_AGAIN_S, LAST_AGAIN_S = 2.0, 3600.0
CLAIM_S = 900.0
"""How long a task is left to the registry that began it."""
log = logging.getLogger(__name__)


class RuleBody(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """A rule. `repositories` and `tags` are shell patterns; `prefix` goes before a repository's name at the target.

    Images pushed by digest alone (those of an index, referrers) go along with `tags` "*".
    """

    url: str
    username: str = ""
    password: str = ""
    repositories: str = "*"
    tags: str = "*"
    prefix: str = ""
    deletions: bool = False
    active: bool = True


class Task(msgspec.Struct, frozen=True):
    """One copy or deletion. `state` is waiting, done or failed; times in unix seconds."""

    id: int
    rule: str
    action: str
    repository: str
    reference: str
    digest: str
    attempts: int
    due: float
    state: str
    answer: str
    created: float


_TASK = "id, rule, action, repository, reference, digest, attempts, due, state, answer, created"


class Replication:
    """The rules, and the worker that carries them out."""

    def __init__(self, pile: Pile, metadata: Metadata, database: Records, journal: Journal, clock: Clock) -> None:
        self._pile = pile
        self._metadata = metadata
        self._database = database
        self._journal = journal
        self._clock = clock
        self._task: asyncio.Task[None] | None = None

    def start(self, *, every_s: float = EVERY_S) -> None:
        """Begin to carry rules out."""
        self._task = asyncio.create_task(self._keep(every_s), name="registry-replication")

    async def close(self) -> None:
        """Stop; what is not done is done after the next start."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    # rules --------------------------------------------------------------------------------------------------------------
    async def every(self) -> Sequence[dict[str, object]]:
        """List rules, without passwords."""
        rows = await self._database.rows("SELECT id, body FROM replications ORDER BY id")
        shown: list[dict[str, object]] = []
        for id, data in rows:
            body = msgspec.to_builtins(msgspec.json.decode(data, type=RuleBody))
            shown.append({"id": id, **{key: value for key, value in body.items() if key != "password"}})
        return shown

    async def create(self, body: RuleBody, event: Event) -> str:
        """Make a rule for what happens from now on; return its id. Raises Invalid."""
        check(body)
        await self._journal.flush()
        id = secrets.token_hex(4)

        def work(db: Tx) -> None:
            record(db, event)
            (position,) = db.execute("SELECT coalesce(max(seq), 0) FROM events").fetchone()
            db.execute("INSERT INTO replications VALUES (?, ?, ?)", (id, msgspec.json.encode(body), position))

        await self._database.write(work)
        return id

    async def delete(self, id: str, event: Event) -> None:
        """Drop a rule with its tasks. Raises NotFound."""

        def work(db: Tx) -> None:
            if not db.execute("DELETE FROM replications WHERE id = ?", (id,)).rowcount:
                raise NotFound(f"replication {id}: there is none")
            db.execute("DELETE FROM copies WHERE rule = ?", (id,))
            record(db, event)

        await self._database.write(work)

    async def tasks(self, rule: str, *, limit: int = 100) -> Sequence[Task]:
        """List tasks of a rule, the latest first."""
        query = f"SELECT {_TASK} FROM copies WHERE rule = ? ORDER BY id DESC LIMIT ?"
        return [Task(*row) for row in await self._database.rows(query, rule, min(limit, KEPT))]

    async def copy_all(self, id: str) -> int:
        """Make tasks for all that is here and that a rule fits; return how many. Raises NotFound."""
        row = await self._database.row("SELECT body FROM replications WHERE id = ?", id)
        if row is None:
            raise NotFound(f"replication {id}: there is none")
        body = msgspec.json.decode(row[0], type=RuleBody)
        wanted: list[tuple[str, str, str]] = []
        for name in await self._metadata.repositories():
            if fnmatch.fnmatchcase(name, body.repositories):
                for image in await self._metadata.images(name):
                    tags = [tag for tag in image.tags if fnmatch.fnmatchcase(tag, body.tags)]
                    alone = [image.digest] if not image.tags and body.tags == "*" else []
                    wanted += [(name, reference, image.digest) for reference in tags or alone]
        now = self._clock.now()

        def work(db: Tx) -> None:
            for name, reference, digest in wanted:
                _add(db, id, PUSH, name, reference, digest, now)

        await self._database.write(work)
        return len(wanted)

    # work ---------------------------------------------------------------------------------------------------------------
    async def work(self) -> int:
        """Make tasks of new events and try those that are due; return how many were tried."""
        await self._journal.flush()
        for id, data, position in await self._database.rows("SELECT id, body, position FROM replications"):
            await self._make(id, msgspec.json.decode(data, type=RuleBody), position)
        rows = await self._database.rows(
            "SELECT " + ", ".join(f"c.{one}" for one in _TASK.split(", ")) + ", r.body FROM copies c"
            " JOIN replications r ON r.id = c.rule WHERE c.state = 'waiting' AND c.due <= ? ORDER BY c.id LIMIT ?",
            self._clock.now(),
            BATCH,
        )
        gate = asyncio.Semaphore(PARALLEL)

        async def one(task: Task, body: RuleBody) -> None:
            async with gate:
                await self._try(task, body)

        await asyncio.gather(*(one(Task(*row[:-1]), msgspec.json.decode(row[-1], type=RuleBody)) for row in rows))
        return len(rows)

    async def _make(self, id: str, body: RuleBody, position: int) -> None:
        columns = "seq, at, actor, address, action, repository, reference, digest, media_type, size, outcome, detail"
        query = f"SELECT {columns} FROM events WHERE seq > ? ORDER BY seq LIMIT ?"
        rows = await self._database.rows(query, position, BATCH)
        if not rows:
            return
        now = self._clock.now()
        chosen = [event for event in map(event_of, rows) if fits(body, event)]

        def work(db: Tx) -> None:
            moved = "UPDATE replications SET position = ? WHERE id = ? AND position = ?"
            if not db.execute(moved, (rows[-1][0], id, position)).rowcount:
                return  # another registry over these records was first, or the rule is gone
            for event in chosen:
                action = PUSH if event.action in (PUSH, FETCH) else DELETE
                for reference in _references(event):
                    _add(db, id, action, event.repository, reference, event.digest, now)
            done = "DELETE FROM copies WHERE rule = ? AND state = 'done' AND id <= (SELECT max(id) FROM copies) - ?"
            db.execute(done, (id, KEPT))

        await self._database.write(work)

    async def _try(self, task: Task, body: RuleBody) -> None:
        mine = "UPDATE copies SET due = ? WHERE id = ? AND state = 'waiting' AND due = ?"
        if not await self._database.execute(mine, self._clock.now() + CLAIM_S, task.id, task.due):
            return  # another registry over these records does it
        try:
            answer, state = await self._carry_out(task, body), "done"
        except WherryError as error:
            answer, state = error.message[:500], "failed" if task.attempts + 1 >= ATTEMPTS else "waiting"
            log.warning("registry: replication %s: %s:%s: %s", task.rule, task.repository, task.reference, answer)
        pause_s = min(LAST_AGAIN_S, FIRST_AGAIN_S * 2.0**task.attempts) * random.uniform(0.8, 1.2)
        await self._database.execute(
            "UPDATE copies SET attempts = ?, due = ?, state = ?, answer = ? WHERE id = ?",
            task.attempts + 1, self._clock.now() + pause_s, state, answer, task.id,
        )  # fmt: skip

    async def _carry_out(self, task: Task, body: RuleBody) -> str:
        target = elsewhere.name_there(body, body.prefix + task.repository)
        row = await self._metadata.find(task.repository, task.reference)
        async with elsewhere.client(body) as remote:
            if task.action == DELETE:
                if row is not None:
                    return "it is here again"
                return await _delete(remote, target, task.reference)
            if row is None or row.digest != task.digest:
                return "it is not here any more"
            if await _has(remote, target, task.reference, row.digest):
                return "it was there"
            sent = await push(self._pile, remote, target, task.reference, Digest(task.digest))
            return f"{sent} bytes sent"

    async def _keep(self, every_s: float) -> None:
        while True:
            try:
                if await self._database.row("SELECT 1 FROM replications LIMIT 1") is not None:
                    await self.work()
            except WherryError as error:
                log.warning("registry: replication: %s", error.message)
            await machine.sleep(every_s)


def fits(body: RuleBody, event: Event) -> bool:
    """Say whether a rule wants an event."""
    if not body.active or event.outcome != "ok" or not fnmatch.fnmatchcase(event.repository, body.repositories):
        return False
    if event.action not in (PUSH, FETCH) and not (body.deletions and event.action in (DELETE, EXPIRE)):
        return False
    return any(body.tags == "*" if ":" in one else fnmatch.fnmatchcase(one, body.tags) for one in _references(event))


def check(body: RuleBody) -> None:
    """Raise Invalid when it cannot be one."""
    elsewhere.check(body)
    if body.prefix and (not body.prefix.endswith("/") or body.prefix.startswith("/")):
        raise elsewhere.invalid("prefix", f"prefix {body.prefix!r}: a name and a slash, as team/")


def _references(event: Event) -> Sequence[str]:
    """What an event named: a tag, or a digest with the tags that came along."""
    if event.action in (DELETE, EXPIRE):
        return (event.reference if event.reference and event.action == DELETE else event.digest,)
    tags = [tag for tag in event.detail.split(",") if tag] if ":" in event.reference else []
    return tags or (event.reference,)


def _add(db: Tx, rule: str, action: str, repository: str, reference: str, digest: str, now: float) -> None:
    db.execute(
        "INSERT INTO copies (rule, action, repository, reference, digest, attempts, due, state, answer, created)"
        " VALUES (?, ?, ?, ?, ?, 0, 0, 'waiting', '', ?)",
        (rule, action, repository, reference, digest, now),
    )


async def _has(remote: Remote, repository: str, reference: str, digest: str) -> bool:
    """Say whether the target has it already: two registries that copy to each other come to rest by this."""
    headers = {"Accept": ", ".join(DOCUMENT_TYPES)}
    path = f"/v2/{repository}/manifests/{reference}"
    try:
        answer = await remote.send(
            "HEAD", path, scope=f"repository:{repository}:pull,push", headers=headers, attempts=1
        )
    except NotFound:
        return False
    await answer.close()
    return answer.headers.get("docker-content-digest") == digest


async def _delete(remote: Remote, repository: str, reference: str) -> str:
    path = f"/v2/{repository}/manifests/{reference}"
    try:
        answer = await remote.send(
            "DELETE", path, scope=f"repository:{repository}:pull,push,delete", headers={}, attempts=1
        )
    except NotFound:
        return "it was not there"
    await answer.close()
    return "deleted"
