"""How much a repository and a namespace hold, counted in the transaction that changes it: so it is always exact.

A digest counts once in a scope, however many of its repositories and names have it. A scope is a repository (`team/web`)
or everything below a first component (`team/`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from wherry.errors import Cause, Forbidden
from wherry.registry.records import Tx


@dataclass(frozen=True, slots=True)
class Room:
    """The nearest quota of a repository."""

    scope: str
    used: int
    limit: int

    @property
    def left(self) -> int:
        """How many more bytes it allows."""
        return max(0, self.limit - self.used)

    def refusal(self, needed: int) -> Forbidden:
        """The refusal, which states used, limit and needed."""
        return over(self.scope, self.used, self.limit, needed)


def scopes_of(repository: str) -> Sequence[str]:
    """The scopes that a repository counts in."""
    top, slash, _ = repository.partition("/")
    return (repository, f"{top}/") if slash else (repository,)


def link(db: Tx, repository: str, digest: str, size_bytes: int, now: float) -> None:
    """Note that a repository has a blob. Raises Forbidden when a quota does not allow it."""
    known = db.execute("SELECT size FROM links WHERE repository = ? AND digest = ?", (repository, digest)).fetchone()
    if known is not None:
        db.execute("UPDATE links SET linked = ? WHERE repository = ? AND digest = ?", (now, repository, digest))
        return
    db.execute("INSERT INTO links VALUES (?, ?, ?, ?)", (repository, digest, size_bytes, now))
    add(db, repository, digest, size_bytes)


def unlink(db: Tx, repository: str, digest: str) -> bool:
    """Undo it; say whether there was one."""
    if db.execute("DELETE FROM links WHERE repository = ? AND digest = ?", (repository, digest)).rowcount:
        remove(db, repository, digest)
        return True
    return False


def add(db: Tx, repository: str, digest: str, size_bytes: int) -> None:
    """Count one more name of a digest. Raises Forbidden when a quota does not allow it."""
    for scope in scopes_of(repository):
        db.execute(
            "INSERT INTO space VALUES (?, ?, 1, ?) ON CONFLICT (scope, digest) DO UPDATE SET n = space.n + 1",
            (scope, digest, size_bytes),
        )
        (n,) = db.execute("SELECT n FROM space WHERE scope = ? AND digest = ?", (scope, digest)).fetchone()
        if n > 1:
            continue
        check(db, scope, size_bytes)
        db.execute(
            "INSERT INTO usage VALUES (?, ?) ON CONFLICT (scope) DO UPDATE SET bytes = usage.bytes + excluded.bytes",
            (scope, size_bytes),
        )


def remove(db: Tx, repository: str, digest: str) -> None:
    """Count one name less."""
    for scope in scopes_of(repository):
        row = db.execute("SELECT n, size FROM space WHERE scope = ? AND digest = ?", (scope, digest)).fetchone()
        if row is None:
            continue
        if row[0] > 1:
            db.execute("UPDATE space SET n = n - 1 WHERE scope = ? AND digest = ?", (scope, digest))
        else:
            db.execute("DELETE FROM space WHERE scope = ? AND digest = ?", (scope, digest))
            db.execute("UPDATE usage SET bytes = bytes - ? WHERE scope = ?", (row[1], scope))


def check(db: Tx, scope: str, needed_bytes: int) -> None:
    """Raise Forbidden when `needed_bytes` more would pass the scope's quota."""
    row = db.execute("SELECT bytes FROM quotas WHERE scope = ?", (scope,)).fetchone()
    if row is None:
        return
    used = (db.execute("SELECT bytes FROM usage WHERE scope = ?", (scope,)).fetchone() or (0,))[0]
    if used + needed_bytes > row[0]:
        raise over(scope, used, row[0], needed_bytes)


def over(scope: str, used: int, limit: int, needed: int) -> Forbidden:
    """The refusal, which states used, limit and needed."""
    message = (
        f"quota of {scope}: {used} bytes used of {limit}, {needed} more needed; delete images or ask for a larger quota"
    )
    return Forbidden(message, causes=[Cause("", "DENIED", message)])


def recount(db: Tx) -> None:
    """Count everything anew, as an older format's records need it (and as tests compare it)."""
    db.execute("DELETE FROM space")
    db.execute("DELETE FROM usage")
    names = "SELECT repository, digest, size FROM links UNION ALL SELECT repository, digest, size FROM manifests"
    found: dict[tuple[str, str], tuple[int, int]] = {}
    for repository, digest, size in db.execute(names).fetchall():
        for scope in scopes_of(repository):
            n, largest = found.get((scope, digest), (0, 0))
            found[scope, digest] = n + 1, max(largest, size)
    db.executemany("INSERT INTO space VALUES (?, ?, ?, ?)", [(*key, *value) for key, value in sorted(found.items())])
    db.execute("INSERT INTO usage SELECT scope, CAST(sum(size) AS BIGINT) FROM space GROUP BY scope")
