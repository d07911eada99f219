"""Signals by name. Pure."""

import re
import signal

from wherry.errors import Invalid


def signal_number(name: str) -> int:
    """Read a signal: "SIGTERM", "TERM", "15", "SIGRTMIN+3". Raises Invalid."""
    text = name.upper().removeprefix("SIG")
    if text.isdigit() and 1 <= int(text) <= 64:
        return int(text)
    found = re.fullmatch(r"RT(MIN|MAX)(?:([+-])(\d+))?", text)
    if found:
        base = int(signal.SIGRTMIN if found[1] == "MIN" else signal.SIGRTMAX)
        number = base + int(found[3] or 0) * (-1 if found[2] == "-" else 1)
        if signal.SIGRTMIN <= number <= signal.SIGRTMAX:
            return number
    member = signal.Signals.__members__.get(f"SIG{text}")
    if member is None:
        raise Invalid(f"signal {name!r}: use a name such as SIGTERM, or a number from 1 to 64")
    return int(member)
