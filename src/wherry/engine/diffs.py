"""What a container has changed against its image: a walk over its upper directory beside the layers below."""

import os
import stat
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from wherry.content.unpack import OPAQUE

CHANGED, ADDED, DELETED = 0, 1, 2


@dataclass(frozen=True, slots=True)
class Change:
    """A path from the container's root, and what became of it: CHANGED, ADDED or DELETED."""

    path: str
    kind: int


def changes(upper: str, lower: Sequence[str], exclude: Collection[str] = ()) -> Iterator[Change]:
    """Yield the changes in the order of their paths. `lower`: layers from the topmost down; no link is followed.

    `exclude`: paths (with or without leading slash) of mount points that the runtime made, left out with all below.
    """
    left_out = frozenset(path.strip("/") for path in exclude)
    yield from _walk(upper, list(lower), "", left_out)


def _walk(upper: str, lower: Sequence[str], below: str, exclude: frozenset[str]) -> Iterator[Change]:
    with os.scandir(upper) as found:
        names = sorted(entry.name for entry in found)
    for name in names:
        path = f"{below}/{name}"
        if path.strip("/") in exclude:
            continue
        seen = os.lstat(f"{upper}/{name}")
        was_there, deeper = _look(lower, name)
        if _is_whiteout(seen):
            if was_there:
                yield Change(path, DELETED)
            continue
        yield Change(path, CHANGED if was_there else ADDED)
        if stat.S_ISDIR(seen.st_mode):
            opaque = _is_opaque(f"{upper}/{name}")
            yield from _walk(f"{upper}/{name}", () if opaque else deeper, path, exclude)


def _look(lower: Sequence[str], name: str) -> tuple[bool, Sequence[str]]:
    """Say whether the layers have the name in this directory, and which directories by it are merged."""
    was_there = False
    deeper: list[str] = []
    for layer in lower:
        place = f"{layer}/{name}"
        try:
            seen = os.lstat(place)
        except OSError:
            continue
        if _is_whiteout(seen):
            break
        was_there = True
        if not stat.S_ISDIR(seen.st_mode):
            break
        deeper.append(place)
        if _is_opaque(place):
            break
    return was_there, deeper


def _is_whiteout(seen: os.stat_result) -> bool:
    return stat.S_ISCHR(seen.st_mode) and seen.st_rdev == 0


def _is_opaque(directory: str) -> bool:
    try:
        return os.getxattr(directory, OPAQUE, follow_symlinks=False) in (b"y", b"x")
    except OSError:
        return False
