"""Which users of the machine a container's users are: the engine's setting, the subordinate ranges, and what conflicts.

The setting reads `NAME` (the ranges that /etc/subuid and /etc/subgid give that user; `default` is the user wherry) or
`BASE:SIZE` (both numbers), and is for every container that does not say `--userns=host`. With `auto:` before it the range is
cut into slices of 65,536, and each container has one of its own.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from wherry.engine.types import ContainerSpec, SandboxSpec
from wherry.errors import BadRequest, Invalid, Unavailable
from wherry.host.idmaps import IdRange

SLICE = 65536
LEAST_BASE = 1000
"""Below are the machine's own system users."""
DEFAULT_USER = "wherry"
HOST = "host"
OF = "of:"
"""What begins the `userns` of a sandbox that has another sandbox's user namespace."""
_NUMBERS = re.compile(r"(\d{1,10}):(\d{1,10})")


@dataclass(frozen=True, slots=True)
class Remap:
    """The ids that containers may have: one range for all, or a slice of it for each."""

    ids: IdRange
    apart: bool = False

    def choose(self, taken: Collection[IdRange]) -> IdRange:
        """Choose a new sandbox's range. Raises Unavailable when every slice is taken."""
        if not self.apart:
            return self.ids
        for base in range(self.ids.base, self.ids.base + self.ids.size - SLICE + 1, SLICE):
            if not any(ids.base < base + SLICE and base < ids.base + ids.size for ids in taken):  # set otherwise before
                return IdRange(base, SLICE)
        raise Unavailable(
            f"userns-remap: all {self.ids.size // SLICE} ranges of {SLICE} ids are taken by containers: remove some, give a "
            "larger range, or use --userns=host"
        )


def read(text: str, etc: Path = Path("/etc")) -> Remap | None:
    """Read the setting; None for "". Raises Invalid, naming what is missing where."""
    if not text:
        return None
    apart = text.startswith("auto:")
    name = text.removeprefix("auto:")
    numbers = _NUMBERS.fullmatch(name)
    if numbers is not None:
        ids = IdRange(int(numbers[1]), int(numbers[2]))
    else:
        name = DEFAULT_USER if name == "default" else name
        users, groups = _range(etc / "subuid", name), _range(etc / "subgid", name)
        if users.base != groups.base:
            raise Invalid(
                f"userns-remap {text!r}: /etc/subuid gives {name} the users from {users.base}, /etc/subgid the groups from "
                f"{groups.base}: they must begin alike"
            )
        ids = IdRange(users.base, min(users.size, groups.size))
    least = SLICE if apart else LEAST_BASE
    if ids.base < LEAST_BASE or ids.size < least or ids.base + ids.size > 2**32 - 2:
        raise Invalid(
            f"userns-remap {text!r}: {ids.size} ids from {ids.base}: it takes at least {least}, from {LEAST_BASE} on"
        )
    return Remap(ids, apart)


def check(spec: ContainerSpec, sandbox: SandboxSpec, remap: Remap | None) -> None:
    """Refuse what a user namespace would make untrue. Raises BadRequest in Docker's words."""
    if sandbox.userns not in ("", HOST) and not sandbox.userns.startswith(OF):
        raise BadRequest(f"invalid user namespace mode: {sandbox.userns}: use host, or nothing")
    if remap is None or sandbox.userns == HOST:
        return
    if spec.privileged:
        raise BadRequest(
            "privileged mode is incompatible with user namespaces.  You must run the container in the host namespace when "
            "running privileged mode"
        )
    if sandbox.network == "host":
        raise BadRequest("cannot share the host's network namespace when user namespaces are enabled")
    if sandbox.host_pid:
        raise BadRequest("cannot share the host PID namespace when user namespaces are enabled")
    if sandbox.host_ipc:
        raise BadRequest("cannot share the host's IPC namespace when user namespaces are enabled")


def _range(path: Path, name: str) -> IdRange:
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    for line in lines:
        words = line.strip().split(":")
        if len(words) == 3 and words[0] == name and words[1].isdigit() and words[2].isdigit():
            return IdRange(int(words[1]), int(words[2]))
    raise Invalid(f"userns-remap {name!r}: {path} has no line for it: write {name}:231072:65536, or give BASE:SIZE")
