"""Taking away what nobody needs: by the rules of a repository, and what is left over; while everybody pushes and pulls.

It works from references, not from walks: the records say what refers to what, the content store removes what no record
holds. What a pusher was promised minutes ago (a blob without its manifest yet) is under a lease and stays.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from wherry.clock import Clock
from wherry.content.oci import references
from wherry.content.protocol import Digest
from wherry.errors import Conflict, NotFound, TooLarge, WherryError
from wherry.registry import rules
from wherry.registry.blobs import UNTAGGED_S, Blobs
from wherry.registry.events import EXPIRE, Event, Journal
from wherry.registry.manifests import Manifests
from wherry.registry.metadata import Metadata
from wherry.registry.pile import Pile
from wherry.registry.rules import Expiry, Image

UPLOAD_LIFE_S = 24 * 3600.0
"""How long an upload that nobody ends is kept (cluster time)."""


@dataclass(slots=True)
class Collected:
    """What a run took, or a dry one would: manifests by repository, loose blobs of repositories, uploads, bytes freed."""

    dry_run: bool
    manifests: dict[str, list[str]] = field(default_factory=dict[str, list[str]])
    loose_blobs: int = 0
    uploads: int = 0
    blobs: int = 0
    bytes: int = 0


@dataclass(slots=True)
class Progress:
    """Where a run is: for people who wait."""

    running: bool = False
    phase: str = ""
    done: int = 0
    total: int = 0


class Collector:
    """Lifecycle and collection. One run at a time."""

    def __init__(
        self, content: Pile, metadata: Metadata, blobs: Blobs, manifests: Manifests, journal: Journal, clock: Clock
    ) -> None:
        self._content = content
        self._metadata = metadata
        self._blobs = blobs
        self._manifests = manifests
        self._journal = journal
        self._clock = clock
        self.progress = Progress()
        self.freed_bytes = 0

    async def preview(self, repository: str) -> Sequence[Expiry]:
        """Say what the rules of a repository would take now. Raises NotFound."""
        await self._journal.flush()
        row = await self._metadata.repository(repository)
        if row is None:
            raise NotFound(f"repository {repository}: there is none of this name")
        return rules.expiring(await self._metadata.images(repository), row.settings, self._clock.now())

    async def expire(self, repository: str, *, by: str) -> Sequence[Expiry]:
        """Take it; what has changed since (a new tag, a pull) is seen in the same transaction. Return what went."""
        planned = {expiry.digest: expiry for expiry in await self.preview(repository)}
        row = await self._metadata.repository(repository)
        if not planned or row is None:
            return ()
        now, settings = self._clock.now(), row.settings

        def still(images: Sequence[Image]) -> set[str]:
            return {expiry.digest for expiry in rules.expiring(images, settings, now)}

        event = Event(now, by, EXPIRE, repository, detail="lifecycle")
        gone = await self._metadata.delete_manifests(repository, list(planned), event, still=still)
        await self._manifests.release(gone)
        return [planned[digest] for _, digest in gone]

    async def collect(
        self, *, by: str = "system", untagged: bool = False, lifecycle: bool = False, dry_run: bool = False
    ) -> Collected:
        """Remove what nobody needs: blobs without a manifest, uploads left alone; if asked, untagged images and by rules.

        An untagged image is one that no tag reaches, directly, through an index or as a referrer, an hour after its push.
        Raises Conflict when a run is under way.
        """
        if self.progress.running:
            raise Conflict("collection: a run is under way; ask for its progress")
        result = Collected(dry_run)
        self.progress = Progress(running=True, phase="images")
        try:
            doomed = await self._images(result, by, untagged, lifecycle)
            self.progress.phase = "uploads"
            now = self._clock.now()
            loose = await self._metadata.unlink_loose(now - UNTAGGED_S, dry_run=dry_run)
            result.loose_blobs = len(loose)
            if dry_run:
                result.uploads = len(await self._metadata.uploads(now - UPLOAD_LIFE_S))
            else:
                result.uploads = await self._blobs.drop_old_uploads(now - UPLOAD_LIFE_S)
            self.progress.phase = "blobs"
            removed = {blob.digest: blob.size_bytes for blob in await self._content.collect(dry_run=dry_run)}
            if dry_run:
                removed |= await self._only_of(doomed)
            result.blobs, result.bytes = len(removed), sum(removed.values())
            if not dry_run:
                self.freed_bytes += result.bytes
            return result
        finally:
            self.progress = Progress()

    async def _images(
        self, result: Collected, by: str, untagged: bool, lifecycle: bool
    ) -> Sequence[tuple[str, Digest]]:
        """Take (or, dry, name) images by rules and untagged ones; return all of them."""
        doomed: list[tuple[str, Digest]] = []
        if not untagged and not lifecycle:
            return doomed
        names = await self._metadata.repositories()
        self.progress.total = len(names)
        for name in names:
            gone = [expiry.digest for expiry in await self.preview(name)] if lifecycle else []
            if lifecycle and gone and not result.dry_run:
                gone = [expiry.digest for expiry in await self.expire(name, by=by)]
            if untagged:
                gone += [digest for digest in await self._untagged(name, by, result.dry_run) if digest not in gone]
            if gone:
                result.manifests[name] = sorted(gone)
                doomed += [(name, digest) for digest in gone]
            self.progress.done += 1
        return doomed

    async def _untagged(self, repository: str, by: str, dry_run: bool) -> Sequence[Digest]:
        now = self._clock.now()

        def unreached(images: Sequence[Image]) -> set[str]:
            chosen = {
                image.digest: ("untagged", "no tag reaches it")
                for image in images
                if not image.tags and now - max(image.pushed, image.tagged) >= UNTAGGED_S
            }
            return {expiry.digest for expiry in rules.going(images, chosen)}

        found = [Digest(digest) for digest in sorted(unreached(await self._metadata.images(repository)))]
        if dry_run or not found:
            return found
        event = Event(now, by, EXPIRE, repository, detail="untagged")
        gone = await self._metadata.delete_manifests(repository, found, event, still=unreached)
        await self._manifests.release(gone)
        return [digest for _, digest in gone]

    async def _only_of(self, doomed: Sequence[tuple[str, Digest]]) -> dict[Digest, int]:
        """Find the blobs that only these images reach, with their sizes."""
        if not doomed:
            return {}
        going = set(doomed)
        kept: set[Digest] = set()
        for name in await self._metadata.repositories():
            for image in await self._metadata.images(name):
                if (name, image.digest) not in going:
                    kept |= {image.digest, *image.children}
        for who, digest in await self._content.holders(""):
            if not who.startswith("repo/"):
                await self._reach(digest, kept)
        mine: set[Digest] = set()
        for _, digest in doomed:
            await self._reach(digest, mine)
        found = [blob for digest in mine - kept if (blob := await self._content.stat(digest)) is not None]
        return {blob.digest: blob.size_bytes for blob in found}

    async def _reach(self, digest: Digest, into: set[Digest]) -> None:
        if digest in into:
            return
        into.add(digest)
        try:
            children = references(await self._content.read(digest))
        except (NotFound, TooLarge):
            return
        except WherryError:
            return  # damaged: scrub tells of it
        for child in children:
            await self._reach(child, into)
