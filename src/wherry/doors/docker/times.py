"""Moments as Docker's clients write them."""

import re

from wherry.clock import parse_rfc3339
from wherry.errors import BadRequest

_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
_DURATION = re.compile(r"(?:\d+(?:\.\d+)?(?:h|ms|m|s|us|ns))+")


def read_moment(text: str | None, name: str, now: float) -> float:
    """Read seconds (with a fraction), RFC 3339, a date, or a Go duration before `now`; 0.0 for none. Raises BadRequest."""
    if not text or text == "0":
        return 0.0
    if re.fullmatch(r"\d+(\.\d+)?", text, re.ASCII):
        return float(text)
    if _DURATION.fullmatch(text):
        return now - read_duration(text, name)
    whole = {10: f"{text}T00:00:00Z", 16: f"{text}:00Z", 19: f"{text}Z"}.get(len(text), text)
    try:
        return parse_rfc3339(whole)
    except ValueError:
        raise BadRequest(f"{name} {text!r}: neither seconds, a duration nor RFC 3339") from None


def read_duration(text: str, name: str) -> float:
    """Read a Go duration such as `1m30s` in seconds. Raises BadRequest."""
    if not _DURATION.fullmatch(text):
        raise BadRequest(f"{name} {text!r}: not a duration such as 1m30s")
    parts = re.findall(r"(\d+(?:\.\d+)?)(h|ms|m|s|us|ns)", text)
    return sum(float(number) * _UNITS[unit] for number, unit in parts)
