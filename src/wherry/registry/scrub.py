"""Reading every blob again: what no longer has its digest is put aside, so that a push can bring it back.

A damaged blob is moved to `quarantine/` beside the blobs; its repositories then answer 404 for it, which makes clients
that push the image send it again.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from wherry.clock import machine
from wherry.content.protocol import Digest
from wherry.registry.pile import Pile
from wherry.registry.records import Records

READ_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Finding:
    """A blob that is damaged or missing, and where it is needed. `put_aside` is its new path, "" for a missing one."""

    digest: str
    problem: str
    repositories: Sequence[str]
    put_aside: str = ""


@dataclass(slots=True)
class Scrubbed:
    """What a run saw."""

    blobs: int = 0
    bytes: int = 0
    findings: list[Finding] = field(default_factory=list[Finding])


async def scrub(
    content: Pile,
    database: Records,
    *,
    quarantine: bool = True,
    bytes_per_s: float = 0.0,
    told: Callable[[int, int], None] = lambda done, total: None,
) -> Scrubbed:
    """Read every blob and manifest of every repository. `bytes_per_s` 0 reads as fast as it goes."""
    needed = [
        Digest(row[0])
        for row in await database.rows(
            "SELECT digest FROM manifests UNION SELECT l.digest FROM links l JOIN children c"
            " ON c.repository = l.repository AND c.child = l.digest ORDER BY 1"
        )
    ]
    result = Scrubbed()
    begun = machine.monotonic()
    for number, digest in enumerate(needed):
        read, right = await content.inspect(digest)
        result.blobs += 1
        result.bytes += max(0, read)
        if not right:
            aside = await content.put_aside(digest) if quarantine and read >= 0 else ""
            problem = "damaged" if read >= 0 else "missing"
            result.findings.append(Finding(digest, problem, await _homes(database, digest), aside))
        told(number + 1, len(needed))
        if bytes_per_s > 0:
            await machine.sleep(max(0.0, result.bytes / bytes_per_s - (machine.monotonic() - begun)))
    return result


async def _homes(database: Records, digest: Digest) -> Sequence[str]:
    query = "SELECT repository FROM links WHERE digest = ? UNION SELECT repository FROM manifests WHERE digest = ? ORDER BY 1"
    return [row[0] for row in await database.rows(query, digest, digest)]
