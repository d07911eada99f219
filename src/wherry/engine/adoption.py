"""What to make of a container's row when an engine starts: the row, and what of its run is still there. Pure."""

from dataclasses import dataclass
from enum import Enum

from wherry.engine.records import ContainerRecord, Stage


class Verdict(Enum):
    """What becomes of a container.

    KEEP: nothing of it runs, and nothing should. RUNNING, WAITING: its conmon lives; watch it. ENDED: it ended while
    nobody looked, and the exit file says how. LOST: it ended and nobody knows how. RESET: a run was half made; take that
    away, the container stays. DISCARD: nobody was ever told of it; take all of it away. REMOVE: go on removing it.
    """

    KEEP = "keep"
    RUNNING = "running"
    WAITING = "waiting"
    ENDED = "ended"
    LOST = "lost"
    RESET = "reset"
    DISCARD = "discard"
    REMOVE = "remove"


@dataclass(frozen=True, slots=True)
class Seen:
    """What is there: conmon (the very process of the row), its exit file, and the runtime's word for the status.

    The status is only asked of a container that was being started.
    """

    has_monitor: bool
    has_exit: bool
    status: str = ""


def judge(record: ContainerRecord, seen: Seen) -> Verdict:
    """Decide. An exit file wins over a conmon that still lives: it is about to end."""
    if record.stage is Stage.REMOVING:
        return Verdict.REMOVE
    if not record.acknowledged:
        return Verdict.DISCARD
    match record.stage:
        case Stage.INTENT | Stage.SPAWNED:
            return Verdict.RESET
        case Stage.CREATED:
            if record.monitor is None:
                return Verdict.KEEP
            return Verdict.WAITING if seen.has_monitor and not seen.has_exit else Verdict.RESET
        case Stage.STARTING | Stage.STARTED:
            if seen.has_exit:
                return Verdict.ENDED
            if not seen.has_monitor:
                return Verdict.LOST
            is_waiting = record.stage is Stage.STARTING and seen.status == "created"
            return Verdict.WAITING if is_waiting else Verdict.RUNNING
        case Stage.EXITED:
            return Verdict.KEEP
