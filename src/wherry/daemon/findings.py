"""What a check of the machine finds."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from wherry.daemon.instance import Instance


class Grade(Enum):
    """How a check ended. A WARN lets wherry run with less; a FAIL means that real containers cannot run."""

    PASS = "PASS"
    WARN = "WARN"
    FAIL = "FAIL"


@dataclass(frozen=True, slots=True)
class Finding:
    """One check: `seen` is what is there, `why` what hangs on it, `fix` the command that mends it ("" for a PASS)."""

    name: str
    grade: Grade
    seen: str
    why: str = ""
    fix: str = ""


Check = Callable[[Instance], Finding]
