"""What a build tells while it runs."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class BuildEvent:
    """One piece of news. `kind`: step (it begins; `text` is the instruction), cached (its layer was there), output (of a
    RUN; `stream` is stdout or stderr, `text` as it came), layer (`text` is its digest), warning, done (`text` is the id).
    `stage` is the name of its stage, `platform` which of several it is done for.
    """

    kind: str
    step: int = 0
    total: int = 0
    text: str = ""
    stream: str = ""
    stage: str = ""
    platform: str = ""


Progress = Callable[[BuildEvent], None]


def silent(event: BuildEvent) -> None:
    """Tell nobody."""
    del event
