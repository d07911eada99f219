"""Conditions in status: made, compared and merged, so that times change only when something did."""

from collections.abc import Sequence

import msgspec

from wherry.clock import rfc3339
from wherry.controllers.objects import Condition


def condition(type: str, status: str, reason: str, message: str, now: float) -> Condition:
    """Make a condition that has just come to be."""
    time = rfc3339(now)
    return Condition(type, status, reason, message, last_transition_time=time)


def find(conditions: Sequence[Condition], type: str) -> Condition | None:
    """Find a condition by type."""
    return next((one for one in conditions if one.type == type), None)


def merge_condition(conditions: Sequence[Condition], new: Condition) -> list[Condition]:
    """Put `new` in its type's place; the transition time stays while the status does."""
    old = find(conditions, new.type)
    if old is None:
        return [*conditions, new]
    if (old.status, old.reason, old.message) == (new.status, new.reason, new.message):
        return list(conditions)
    if old.status == new.status:
        new = msgspec.structs.replace(new, last_transition_time=old.last_transition_time)
    return [new if one.type == new.type else one for one in conditions]


def without(conditions: Sequence[Condition], type: str) -> list[Condition]:
    """All conditions but those of one type."""
    return [one for one in conditions if one.type != type]
