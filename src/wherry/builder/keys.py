"""Cache keys: what a step's layer depends on, and nothing else. Pure.

A key chains the key of the step before with the step's own inputs. Times are in no key; labels, ports and commands are in
none either, since no layer depends on them. FORMAT is raised when the same inputs would give other layers.
"""

import hashlib
from collections.abc import Callable, Sequence

import msgspec

from wherry.builder.graph import Copy, Meta, Operation, Run, Workdir

FORMAT = 1
SCRATCH = "scratch"


def base_key(diff_ids: Sequence[str]) -> str:
    """The key of an image's files."""
    return _key("base", list(diff_ids))


def step_key(before: str, operation: Operation, content: str = "") -> str:
    """The key of the files after a step; `content` is the digest of what a COPY copies (`Selection.digest`)."""
    match operation:
        case Meta():
            return before
        case Run():
            return _key("run", before, operation.argv, sorted(operation.env), operation.workdir, operation.user)
        case Copy():
            return _key("copy", before, content, operation.dest, operation.chown, operation.chmod)
        case Workdir():
            return _key("workdir", before, operation.path, operation.user)


def keys(first: str, operations: Sequence[Operation], content: Callable[[Copy], str]) -> Sequence[str]:
    """The key after each of some operations."""
    found: list[str] = []
    for operation in operations:
        first = step_key(first, operation, content(operation) if isinstance(operation, Copy) else "")
        found.append(first)
    return found


def _key(kind: str, *parts: object) -> str:
    return hashlib.sha256(msgspec.json.encode([FORMAT, kind, *parts])).hexdigest()
