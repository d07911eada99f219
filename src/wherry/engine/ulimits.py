"""Resource limits of a container's processes (ulimit), as far as this machine lets us give them."""

import resource
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from wherry.engine.types import Ulimit
from wherry.errors import Invalid

NAMES = (
    "core", "cpu", "data", "fsize", "locks", "memlock", "msgqueue", "nice", "nofile", "nproc", "rss", "rtprio", "rttime",
    "sigpending", "stack",
)  # fmt: skip
_UNLIMITED = 2**64 - 1


def plan(wanted: Sequence[Ulimit], available: Collection[str]) -> tuple[list[dict[str, Any]], list[str]]:
    """Turn limits into `process.rlimits`, and say in words which had to be lowered: (limits, warnings). Raises Invalid.

    A hard limit above our own needs CAP_SYS_RESOURCE, which is not among `available` everywhere.
    """
    made: list[dict[str, Any]] = []
    warnings: list[str] = []
    for each in wanted:
        if each.name not in NAMES:
            raise Invalid(f"ulimit {each.name!r}: use one of {', '.join(NAMES)}")
        soft, hard = _number(each.soft), _number(each.hard)
        if soft > hard:
            raise Invalid(f"ulimit {each.name}: soft limit must be at most the hard limit ({each.soft} > {each.hard})")
        kind = getattr(resource, f"RLIMIT_{each.name.upper()}", None)
        if kind is not None and "CAP_SYS_RESOURCE" not in available:
            most = _number(resource.getrlimit(kind)[1])
            if hard > most:
                warnings.append(
                    f"ulimit {each.name}: this machine does not let wherry raise it above {most}; it is {most} instead"
                )
                soft, hard = min(soft, most), most
        made.append({"type": f"RLIMIT_{each.name.upper()}", "soft": soft, "hard": hard})
    return made, warnings


def oom_score(wanted: int, available: Collection[str]) -> tuple[int, str]:
    """Say which OOM score a container's process can have, and in words why not the one it asked for. Raises Invalid.

    To be spared more than we are needs CAP_SYS_RESOURCE.
    """
    if not -1000 <= wanted <= 1000:
        raise Invalid(f"Invalid value {wanted}, range for oom score adj is [-1000, 1000]")
    if wanted >= 0 or "CAP_SYS_RESOURCE" in available:
        return wanted, ""
    own = int(Path("/proc/self/oom_score_adj").read_text())
    if wanted >= own:
        return wanted, ""
    return own, f"oom-score-adj {wanted}: this machine does not let wherry lower it below {own}; it is {own} instead"


def _number(value: int) -> int:
    return _UNLIMITED if value < 0 else value
