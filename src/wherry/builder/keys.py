"""Cache keys: what a step's layer depends on, and nothing else. Pure.

A key chains the key of the step before with the step's own inputs. Times are in no key; labels, ports and commands are in
none either, since no layer depends on them. FORMAT is raised when the same inputs would give other layers.
"""

import hashlib
from collections.abc import Callable, Sequence

import msgspec

from wherry.builder.operations import Copy, Meta, Operation, Run, RunMount, Workdir

FORMAT = 3
SCRATCH = "scratch"


def base_key(diff_ids: Sequence[str]) -> str:
    """The key of an image's files."""
    return _key("base", list(diff_ids))


def step_key(
    before: str, operation: Operation, content: str = "", *, epoch: int | None = None, platform: str = ""
) -> str:
    """The key of the files after a step.

    `content` is the digest of what a COPY copies, or of all that a RUN's mounts show it (selection.digest); of
    git repositories the commits (sourcing.py). `platform` is what a RUN runs as: other steps do the same on each.
    """
    match operation:
        case Meta():
            return before
        case Run():
            return _key(
                "run",
                before,
                content,
                epoch,
                operation.argv,
                sorted(operation.env),
                operation.workdir,
                operation.user,
                operation.network,
                operation.insecure,
                platform,
                operation.script,
                [_mount(mount) for mount in operation.mounts],
            )
        case Copy():
            return _key("link" if operation.link else "copy", before, epoch, *_placed(operation, content))
        case Workdir():
            return _key("workdir", before, epoch, operation.path, operation.user)


def settled_key(key: str, diff_id: str) -> str:
    """The key to chain on: a step that was made anew and came out otherwise has other steps after it."""
    return _key("settled", key, diff_id)


def link_key(operation: Copy, content: str, owner: object, *, epoch: int | None = None) -> str:
    """The key of the layer of a COPY --link, whatever is below it. `owner` is the owner in numbers."""
    return _key("linked", epoch, owner, *_placed(operation, content))


def keys(
    first: str, operations: Sequence[Operation], content: Callable[[Copy], str], *, platform: str = ""
) -> Sequence[str]:
    """The key after each of some operations."""
    found: list[str] = []
    for operation in operations:
        first = step_key(first, operation, content(operation) if isinstance(operation, Copy) else "", platform=platform)
        found.append(first)
    return found


def _mount(mount: RunMount) -> Sequence[object]:
    """All of a mount but where it comes from: that is in `content`. No key has a secret's value, or who answers as an agent."""
    return (
        *(mount.kind, mount.target, mount.source, mount.read_only, mount.id, mount.sharing),
        *(mount.mode, mount.uid, mount.gid, mount.size_bytes, mount.env, mount.required),
    )


def _placed(operation: Copy, content: str) -> Sequence[object]:
    return content, operation.dest, operation.chown, operation.chmod.text, operation.parents


def _key(kind: str, *parts: object) -> str:
    return hashlib.sha256(msgspec.json.encode([FORMAT, kind, *parts])).hexdigest()
