"""Reading every blob again: what no longer has its digest is put aside, so that a push can bring it back.

A damaged blob is moved to `quarantine/` beside the blobs; its repositories then answer 404 for it, which makes clients
that push the image send it again.
"""

import asyncio
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from wherry.clock import machine
from wherry.content.digests import algorithm_of, hasher
from wherry.content.protocol import Content, Digest
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
    content: Content,
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
        path = content.path(digest)
        read, right = await asyncio.to_thread(_check, path, digest)
        result.blobs += 1
        result.bytes += read
        if not right:
            aside = await asyncio.to_thread(_put_aside, path, digest) if quarantine and read >= 0 else ""
            problem = "damaged" if path.exists() or aside else "missing"
            result.findings.append(Finding(digest, problem, await _homes(database, digest), aside))
        told(number + 1, len(needed))
        if bytes_per_s > 0:
            await machine.sleep(max(0.0, result.bytes / bytes_per_s - (machine.monotonic() - begun)))
    return result


def _check(path: Path, digest: Digest) -> tuple[int, bool]:
    """Read a file; say how many bytes, and whether it has its digest."""
    state = hasher(algorithm_of(digest))
    size = 0
    try:
        with path.open("rb", buffering=0) as file:
            while data := file.read(READ_BYTES):
                state.update(data)
                size += len(data)
    except OSError:
        return size, False
    return size, state.hexdigest() == digest.partition(":")[2]


def _put_aside(path: Path, digest: Digest) -> str:
    """Move a damaged file away, unless it has been replaced by a good one meanwhile."""
    folder = path.parents[2] / "quarantine"
    folder.mkdir(exist_ok=True)
    target = folder / digest.replace(":", "-")
    try:
        os.rename(path, target)
    except FileNotFoundError:
        return ""
    if _check(target, digest)[1]:  # a push had just put the right bytes there
        os.rename(target, path)
        return ""
    return str(target)


async def _homes(database: Records, digest: Digest) -> Sequence[str]:
    query = "SELECT repository FROM links WHERE digest = ? UNION SELECT repository FROM manifests WHERE digest = ? ORDER BY 1"
    return [row[0] for row in await database.rows(query, digest, digest)]
