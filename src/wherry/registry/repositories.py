"""The registry's records in its database: registry/metadata.Metadata."""

from collections.abc import Callable, Sequence

import msgspec

from wherry.content.protocol import Digest
from wherry.errors import Cause, Conflict
from wherry.registry import space
from wherry.registry.events import Event, record
from wherry.registry.metadata import Held, ManifestRow, RepositoryRow
from wherry.registry.records import Records, Tx
from wherry.registry.rules import Image, RepositorySettings, stored_settings

_MANIFESTS = (
    "SELECT m.digest, m.media_type, m.size, m.pushed, m.subject, m.artifact_type, m.descriptor FROM manifests m"
)

ALL = 2**62
"""A limit that is none."""


class SqlMetadata:
    """registry/metadata.Metadata over a `Records`."""

    def __init__(self, database: Records) -> None:
        self._database = database

    async def repositories(self, *, after: str = "", limit: int = 0) -> Sequence[str]:
        """List repositories later than `after`, at most `limit` (0: all)."""
        query = "SELECT name FROM repositories WHERE name > ? ORDER BY name LIMIT ?"
        return [row[0] for row in await self._database.rows(query, after, limit or ALL)]

    async def repository(self, name: str) -> RepositoryRow | None:
        """Find a repository."""
        query = (
            "SELECT name, created, visibility, description, settings,"
            " coalesce((SELECT bytes FROM usage WHERE scope = name), 0) FROM repositories WHERE name = ?"
        )
        row = await self._database.row(query, name)
        if row is None:
            return None
        name, created, visibility, description, settings, used = row
        return RepositoryRow(name, created, visibility, description, stored_settings(settings), used)

    async def configure(self, name: str, settings: RepositorySettings, description: str, event: Event) -> None:
        """Make a repository or change what it says."""

        def work(db: Tx) -> None:
            _make(db, name, event.at)
            db.execute(
                "UPDATE repositories SET settings = ?, visibility = ?, description = ? WHERE name = ?",
                (msgspec.json.encode(settings), settings.visibility, description, name),
            )
            record(db, event)

        await self._database.write(work)

    async def delete_repository(self, name: str, event: Event) -> Sequence[Held] | None:
        """Drop it with all it has; return what may be released, None when it is not there. Conflict for a protected tag."""

        def work(db: Tx) -> Sequence[Held] | None:
            if db.execute("SELECT 1 FROM repositories WHERE name = ?", (name,)).fetchone() is None:
                return None
            settings = _settings(db, name)
            for (tag,) in db.execute("SELECT tag FROM tags WHERE repository = ?", (name,)).fetchall():
                _check_protected(settings, name, tag)
            rows = db.execute("SELECT hold, digest FROM manifests WHERE repository = ?", (name,)).fetchall()
            links = db.execute("SELECT digest FROM links WHERE repository = ?", (name,)).fetchall()
            for digest in (*(row[1] for row in rows), *(row[0] for row in links)):
                space.remove(db, name, digest)
            for table in ("tags", "manifests", "children", "links", "uploads"):
                db.execute(f"DELETE FROM {table} WHERE repository = ?", (name,))
            db.execute("DELETE FROM policies WHERE target = ?", (f"repository/{name}",))
            db.execute("DELETE FROM usage WHERE scope = ?", (name,))
            db.execute("DELETE FROM repositories WHERE name = ?", (name,))
            record(db, event)
            return [(hold or holder(name), Digest(digest)) for hold, digest in rows]

        return await self._database.write(work)

    async def has(self, repository: str) -> bool:
        """Say whether the repository is known."""
        return await self._database.row("SELECT 1 FROM repositories WHERE name = ?", repository) is not None

    async def tags(self, repository: str, *, after: str = "", limit: int = 0) -> Sequence[str]:
        """List tags later than `after`."""
        query = "SELECT tag FROM tags WHERE repository = ? AND tag > ? ORDER BY tag LIMIT ?"
        return [row[0] for row in await self._database.rows(query, repository, after, limit or ALL)]

    async def find(self, repository: str, reference: str) -> ManifestRow | None:
        """Find a manifest by tag or digest (`children` and `blobs` are left empty)."""
        if ":" in reference:
            row = await self._database.row(
                f"{_MANIFESTS} WHERE m.repository = ? AND m.digest = ?", repository, reference
            )
        else:
            query = f"{_MANIFESTS} JOIN tags t ON t.repository = m.repository AND t.digest = m.digest"
            row = await self._database.row(f"{query} WHERE t.repository = ? AND t.tag = ?", repository, reference)
        return _row(row) if row else None

    async def images(self, repository: str) -> Sequence[Image]:
        """List every manifest as the rules of its life see it."""
        return await self._database.read(lambda db: _images(db, repository))

    async def put(self, repository: str, row: ManifestRow, tags: Sequence[str], event: Event) -> bool:
        """Add a manifest with links to its blobs, and point tags at it; makes the repository, by its template.

        Return whether `row.hold` is the record's holder now; a record that is there already keeps its own.
        Raises Conflict for an immutable tag that means another image, Forbidden over quota.
        """

        def work(db: Tx) -> bool:
            settings = _make(db, repository, row.pushed)
            for tag in tags:
                _check_immutable(db, settings, repository, tag, row.digest)
            known = db.execute(
                "SELECT 1 FROM manifests WHERE repository = ? AND digest = ?", (repository, row.digest)
            ).fetchone()
            if known is None:
                db.execute(
                    "INSERT INTO manifests VALUES (?, ?, ?, ?, ?, ?, ?, ?, 0, ?, ?)",
                    (repository, row.digest, row.media_type, row.size_bytes, row.pushed, row.subject, row.artifact_type,
                     row.descriptor, row.pushed if tags else 0.0, row.hold),
                )  # fmt: skip
                space.add(db, repository, row.digest, row.size_bytes)
            elif tags:
                db.execute(
                    "UPDATE manifests SET tagged = ? WHERE repository = ? AND digest = ?",
                    (row.pushed, repository, row.digest),
                )
            children = [(repository, row.digest, child) for child in row.children]
            db.executemany("INSERT INTO children VALUES (?, ?, ?) ON CONFLICT DO NOTHING", children)
            for child, size in row.blobs:
                space.link(db, repository, child, size, row.pushed)
            for tag in tags:
                db.execute(
                    "INSERT INTO tags VALUES (?, ?, ?, ?) ON CONFLICT (repository, tag)"
                    " DO UPDATE SET digest = excluded.digest, updated = excluded.updated",
                    (repository, tag, row.digest, row.pushed),
                )
            record(db, event)
            return known is None

        return await self._database.write(work)

    async def delete_tag(self, repository: str, tag: str, event: Event) -> bool:
        """Drop a tag; say whether it was there. Raises Conflict when it is protected."""

        def work(db: Tx) -> bool:
            _check_protected(_settings(db, repository), repository, tag)
            done = db.execute("DELETE FROM tags WHERE repository = ? AND tag = ?", (repository, tag)).rowcount > 0
            if done:
                record(db, event)
            return done

        return await self._database.write(work)

    async def delete_manifests(
        self,
        repository: str,
        digests: Sequence[Digest],
        event: Event,
        *,
        still: Callable[[Sequence[Image]], set[str]] | None = None,
    ) -> Sequence[Held]:
        """Drop manifests with their tags, and the links that no other manifest needs; return what may be released.

        `still` is asked within the transaction which of the repository's images may go. Without it, raises Conflict
        when one has a protected tag or when an index that stays refers to one.
        """

        def work(db: Tx) -> Sequence[Held]:
            if still is None:
                chosen = list(digests)
                settings = _settings(db, repository)
                for digest in chosen:
                    _check_unused(db, repository, digest, settings, chosen)
            else:
                allowed = still(_images(db, repository))
                chosen = [digest for digest in digests if digest in allowed]
            gone = [held for digest in chosen if (held := _delete(db, repository, digest)) is not None]
            for _, digest in gone:
                record(db, msgspec.structs.replace(event, digest=digest))
            return gone

        return await self._database.write(work)

    async def parents(self, repository: str, digest: Digest) -> Sequence[Digest]:
        """List the manifests of the repository that refer to a blob or manifest."""
        query = "SELECT parent FROM children WHERE repository = ? AND child = ? ORDER BY parent"
        return [Digest(row[0]) for row in await self._database.rows(query, repository, digest)]

    async def link(self, repository: str, digest: Digest, size_bytes: int, now: float, *, upload: str = "") -> None:
        """Note that the repository has a blob, and that its upload has ended; makes the repository.

        Raises Forbidden over quota.
        """

        def work(db: Tx) -> None:
            _make(db, repository, now)
            space.link(db, repository, digest, size_bytes, now)
            if upload:
                db.execute("DELETE FROM uploads WHERE id = ?", (upload,))

        await self._database.write(work)

    async def linked(self, repository: str, digest: Digest) -> bool:
        """Say whether it has."""
        query = "SELECT 1 FROM links WHERE repository = ? AND digest = ?"
        return await self._database.row(query, repository, digest) is not None

    async def homes(self, digest: Digest, *, limit: int = 20) -> Sequence[str]:
        """List repositories that have a blob."""
        query = "SELECT repository FROM links WHERE digest = ? ORDER BY repository LIMIT ?"
        return [row[0] for row in await self._database.rows(query, digest, limit)]

    async def unlink(self, repository: str, digest: Digest, event: Event) -> None:
        """Drop a link."""

        def work(db: Tx) -> None:
            if space.unlink(db, repository, digest):
                record(db, event)

        await self._database.write(work)

    async def unlink_loose(self, before: float, *, dry_run: bool = False) -> Sequence[tuple[str, Digest, int]]:
        """Drop links that are older than `before` and that no manifest of their repository needs; say which."""
        query = (
            "SELECT repository, digest, size FROM links WHERE linked < ? AND NOT EXISTS"
            " (SELECT 1 FROM children c WHERE c.repository = links.repository AND c.child = links.digest)"
        )
        if dry_run:
            return [(row[0], Digest(row[1]), row[2]) for row in await self._database.rows(query, before)]

        def work(db: Tx) -> Sequence[tuple[str, Digest, int]]:
            loose = db.execute(query, (before,)).fetchall()
            for repository, digest, _ in loose:
                space.unlink(db, repository, digest)
            return loose

        return await self._database.write(work)

    async def referrers(
        self, repository: str, subject: Digest, *, kind: str = "", after: str = "", limit: int = 0
    ) -> Sequence[ManifestRow]:
        """List manifests attached to `subject` later than `after`, in order of digest; of one artifact type if given."""
        query = f"{_MANIFESTS} WHERE m.repository = ? AND m.subject = ? AND m.subject != '' AND m.digest > ?"
        values: list[object] = [repository, subject, after]
        if kind:
            query += " AND m.artifact_type = ?"
            values.append(kind)
        return [
            _row(row) for row in await self._database.rows(f"{query} ORDER BY m.digest LIMIT ?", *values, limit or ALL)
        ]

    async def begin_upload(self, upload: str, repository: str, now: float) -> None:
        """Note an upload."""
        await self._database.execute("INSERT INTO uploads VALUES (?, ?, ?)", upload, repository, now)

    async def upload(self, upload: str) -> str | None:
        """Say which repository an upload is for."""
        row = await self._database.row("SELECT repository FROM uploads WHERE id = ?", upload)
        return row[0] if row else None

    async def end_upload(self, upload: str) -> None:
        """Forget it."""
        await self._database.execute("DELETE FROM uploads WHERE id = ?", upload)

    async def uploads(self, before: float) -> Sequence[str]:
        """List uploads begun before a time."""
        return [row[0] for row in await self._database.rows("SELECT id FROM uploads WHERE started < ?", before)]

    async def held(self) -> Sequence[Held]:
        """List every holder with its manifest."""
        rows = await self._database.rows("SELECT repository, hold, digest FROM manifests ORDER BY repository, digest")
        return [(hold or holder(repository), Digest(digest)) for repository, hold, digest in rows]

    async def room(self, repository: str) -> space.Room | None:
        """Say which quota leaves the least room; None without one."""
        query = "SELECT q.scope, coalesce(u.bytes, 0), q.bytes FROM quotas q LEFT JOIN usage u ON u.scope = q.scope"
        rows = [
            row
            for scope in space.scopes_of(repository)
            for row in await self._database.rows(f"{query} WHERE q.scope = ?", scope)
        ]
        return min((space.Room(*row) for row in rows), key=lambda room: room.left, default=None)


def holder(repository: str) -> str:
    """The beginning of the names under which a repository holds its manifests; the whole name in the first format."""
    return f"repo/{repository}"


def _make(db: Tx, name: str, now: float) -> RepositorySettings:
    """Make the repository, by the longest template that fits, unless it is there; return its settings."""
    row = db.execute("SELECT settings FROM repositories WHERE name = ?", (name,)).fetchone()
    if row is not None:
        return stored_settings(row[0])
    found = db.execute(
        "SELECT settings FROM templates WHERE substr(?, 1, length(prefix)) = prefix ORDER BY length(prefix) DESC LIMIT 1",
        (name,),
    ).fetchone()
    settings = stored_settings(found[0]) if found else RepositorySettings()
    db.execute(
        "INSERT INTO repositories (name, created, visibility, settings) VALUES (?, ?, ?, ?)",
        (name, now, settings.visibility, msgspec.json.encode(settings)),
    )
    return settings


def _settings(db: Tx, name: str) -> RepositorySettings:
    row = db.execute("SELECT settings FROM repositories WHERE name = ?", (name,)).fetchone()
    return stored_settings(row[0]) if row else RepositorySettings()


def _images(db: Tx, repository: str) -> Sequence[Image]:
    tags: dict[object, list[str]] = {}
    for tag, digest in db.execute(
        "SELECT tag, digest FROM tags WHERE repository = ? ORDER BY tag", (repository,)
    ).fetchall():
        tags.setdefault(digest, []).append(str(tag))
    children: dict[object, list[Digest]] = {}
    for parent, child in db.execute(
        "SELECT parent, child FROM children WHERE repository = ?", (repository,)
    ).fetchall():
        children.setdefault(parent, []).append(Digest(str(child)))
    query = "SELECT digest, pushed, pulled, tagged, subject, size FROM manifests WHERE repository = ? ORDER BY digest"
    return [
        msgspec.convert(
            {
                "digest": digest,
                "tags": tags.get(digest, []),
                "pushed": pushed,
                "pulled": pulled,
                "tagged": tagged,
                "children": children.get(digest, []),
                "subject": subject,
                "size_bytes": size,
            },
            Image,
        )
        for digest, pushed, pulled, tagged, subject, size in db.execute(query, (repository,)).fetchall()
    ]


def _delete(db: Tx, repository: str, digest: str) -> Held | None:
    where = (repository, digest)
    row = db.execute("SELECT hold FROM manifests WHERE repository = ? AND digest = ?", where).fetchone()
    if row is None:
        return None
    db.execute("DELETE FROM manifests WHERE repository = ? AND digest = ?", where)
    space.remove(db, repository, digest)
    db.execute("DELETE FROM tags WHERE repository = ? AND digest = ?", where)
    mine = db.execute("SELECT child FROM children WHERE repository = ? AND parent = ?", where).fetchall()
    db.execute("DELETE FROM children WHERE repository = ? AND parent = ?", where)
    for (child,) in mine:
        needed = db.execute("SELECT 1 FROM children WHERE repository = ? AND child = ?", (repository, child)).fetchone()
        if needed is None:
            space.unlink(db, repository, child)
    return row[0] or holder(repository), Digest(digest)


def _check_immutable(db: Tx, settings: RepositorySettings, repository: str, tag: str, digest: str) -> None:
    if not settings.immutable.covers(tag):
        return
    row = db.execute("SELECT digest FROM tags WHERE repository = ? AND tag = ?", (repository, tag)).fetchone()
    if row is not None and row[0] != digest:
        raise _denied(f"{repository}:{tag} is immutable and means {row[0]}; push another tag")


def _check_protected(settings: RepositorySettings, repository: str, tag: str) -> None:
    if settings.protected.covers(tag):
        raise _denied(f"{repository}:{tag} is protected from deletion by the repository's settings")


def _check_unused(db: Tx, repository: str, digest: str, settings: RepositorySettings, going: Sequence[str]) -> None:
    where = (repository, digest)
    for (tag,) in db.execute("SELECT tag FROM tags WHERE repository = ? AND digest = ?", where).fetchall():
        _check_protected(settings, repository, tag)
    for (parent,) in db.execute("SELECT parent FROM children WHERE repository = ? AND child = ?", where).fetchall():
        if parent not in going:
            raise _denied(f"{repository}@{digest}: the index {parent} refers to it; delete that first")


def _denied(message: str) -> Conflict:
    return Conflict(message, causes=[Cause("", "DENIED", message)])


def _row(row: tuple[str, str, int, float, str, str, bytes]) -> ManifestRow:
    digest, media_type, size, pushed, subject, artifact_type, descriptor = row
    return ManifestRow(Digest(digest), media_type, size, pushed, (), subject, artifact_type, descriptor)
