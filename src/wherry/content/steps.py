"""What pulls, pushes and unpacking tell of their progress, and the small things that they share."""

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass

from wherry.content.oci import Descriptor
from wherry.content.protocol import Digest

PARALLEL = 4
"""Blobs on their way at once."""


@dataclass(frozen=True, slots=True)
class Step:
    """Progress of one blob; bytes so far and in all. `layer`: it is one, and not a configuration.

    `action`: queued, wait, download, verify, done, extract, unpacked, exists of a pull; queued, upload, mounted, done, exists
    of a push. `source`: the repository that a blob was mounted from.
    """

    digest: Digest
    action: str
    current: int
    total: int
    layer: bool = True
    source: str = ""


Progress = Callable[[Step], None]


def step_of(child: Descriptor, action: str, current: int, source: str = "") -> Step:
    """Say how far a blob is."""
    return Step(child.digest, action, current, child.size, "config" not in child.media_type, source)


def silent(step: Step) -> None:
    """Tell nobody."""
    del step


async def together(jobs: Iterable[Coroutine[None, None, None]]) -> None:
    """Run all, and end the others when one fails; its own error is raised, not a group."""
    try:
        async with asyncio.TaskGroup() as group:
            for job in jobs:
                group.create_task(job)
    except BaseExceptionGroup as failed:
        first = failed.exceptions[0]
        raise first from None
