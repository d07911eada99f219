"""`-p [HOST:][PORT[-PORT]:]PORT[-PORT][/tcp|udp]` as Docker's API says it."""

import re
from collections.abc import Sequence

from wherry.cli.args import Usage

_FORM = re.compile(
    r"(?:(?P<host>\[[0-9a-fA-F:.]+\]|[0-9.]+|):)??(?:(?P<from>\d*)(?:-(?P<to>\d+))?:)?"
    r"(?P<first>\d+)(?:-(?P<last>\d+))?(?:/(?P<kind>tcp|udp|sctp))?",
    re.ASCII,
)


def bindings(texts: Sequence[str]) -> dict[str, list[dict[str, str]]]:
    """Read all `-p` of a command line. Raises Usage."""
    found: dict[str, list[dict[str, str]]] = {}
    for text in texts:
        match = _FORM.fullmatch(text)
        if match is None:
            raise Usage("run", f"-p {text!r}: write [HOST:][PORT:]PORT[/udp], such as 8080:80 or 127.0.0.1:8080:80")
        first, last = int(match["first"]), int(match["last"] or match["first"])
        outer = int(match["from"] or 0)
        until = int(match["to"] or outer)
        inner = range(first, last + 1)
        if not inner or any(not 0 < number < 65536 for number in (first, last)) or until > 65535:
            raise Usage("run", f"-p {text!r}: ports are numbers from 1 to 65535")
        if outer and len(inner) > 1 and until - outer + 1 != len(inner):
            raise Usage("run", f"-p {text!r}: the two ranges are of different length")
        for place, number in enumerate(inner):
            chosen = str(outer + place) if len(inner) > 1 else f"{outer}-{until}" if until > outer else str(outer)
            spot = {"HostIp": (match["host"] or "").strip("[]"), "HostPort": chosen if outer else ""}
            found.setdefault(f"{number}/{match['kind'] or 'tcp'}", []).append(spot)
    return found
