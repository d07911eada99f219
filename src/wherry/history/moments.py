"""A point in the past as people write it: `-5m`, `2026-01-31T12:00:00Z`, or a revision."""

import re
from dataclasses import dataclass

from wherry.clock import parse_rfc3339
from wherry.errors import BadRequest

_UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_AGO = re.compile(r"-((?:\d+(?:\.\d+)?(?:ms|s|m|h|d))+)")
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")


@dataclass(frozen=True, slots=True)
class Moment:
    """Either a revision, or a cluster time (unix seconds); with neither, now."""

    revision: int | None = None
    time: float | None = None


def parse_moment(text: str, now: float) -> Moment:
    """Read a moment: "" is now, `-1h30m` is so long before `now`, digits are a revision, else RFC 3339.

    Raises BadRequest for any other text, and for a time to come.
    """
    if not text:
        return Moment()
    if text.isascii() and text.isdigit():
        if len(text) > 18:
            raise BadRequest(f"at={text}: no store has that many revisions")
        return Moment(revision=int(text))
    ago = _AGO.fullmatch(text)
    if ago is not None:
        return Moment(time=now - sum(float(number) * _UNITS_S[unit] for number, unit in _PART.findall(ago[1])))
    try:
        time = parse_rfc3339(text.replace(" ", "+"))  # a plus sign that nobody escaped arrives as a space
    except ValueError:
        raise BadRequest(
            f"at={text}: write how long ago (-5m, -1h30m, -2d), a time (2026-01-31T12:00:00Z) or a revision (1234)"
        ) from None
    if time > now:
        raise BadRequest(f"at={text}: that is yet to come")
    return Moment(time=time)
