"""Durations of HEALTHCHECK: `1m30s`. Pure. Source: Go, package time, ParseDuration."""

import re
from decimal import Decimal

_PART = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)")
_NS = {"ns": 1, "us": 1_000, "µs": 1_000, "ms": 1_000_000, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9}


def parse_duration_ns(text: str) -> int:
    """Read a duration as nanoseconds. Raises ValueError."""
    if text == "0":
        return 0
    if not text or _PART.sub("", text):
        raise ValueError("write a duration with its units, such as 30s or 1m30s")
    return int(sum(Decimal(number) * _NS[unit] for number, unit in _PART.findall(text)))
