"""Docker's filters of images."""

import re
from collections.abc import Awaitable, Callable
from dataclasses import replace

from wherry.doors.docker.answers import familiar
from wherry.doors.docker.filters import Filters, has_labels
from wherry.doors.docker.times import read_moment
from wherry.engine.types import Image
from wherry.errors import BadRequest

KNOWN = ("label", "label!", "reference", "dangling", "before", "since", "until")

Find = Callable[[str], Awaitable[Image]]


async def chosen(images: list[Image], filters: Filters, find: Find, now: float) -> list[Image]:
    """The images that pass, each with only the names that a `reference` asks for. Raises BadRequest, NotFound."""
    before = [(await find(ref)).created for ref in filters.get("before", ())]
    since = [(await find(ref)).created for ref in filters.get("since", ())]
    until = [read_moment(text, "until", now) for text in filters.get("until", ())]
    dangling = [text == "true" for text in filters.get("dangling", ())]
    found: list[Image] = []
    for image in images:
        labels = (image.config.get("config") or {}).get("Labels") or {}
        nameless = not any("@" not in name for name in image.names)
        if (
            any(image.created >= moment for moment in before)
            or any(image.created <= moment for moment in since)
            or any(image.created > moment for moment in until)
            or any(nameless != value for value in dangling)
            or not has_labels(labels, filters.get("label", ()))
            or any(has_labels(labels, [each]) for each in filters.get("label!", ()))
        ):
            continue
        if patterns := filters.get("reference", ()):
            names = [name for name in image.names if any(_refers(pattern, name) for pattern in patterns)]
            if not names:
                continue
            repositories = {name.partition("@")[0].rpartition(":")[0] if "@" not in name else name for name in names}
            digests = [each for each in image.digests if each in names or each.partition("@")[0] in repositories]
            image = replace(image, names=names, digests=digests)
        found.append(image)
    return found


def _refers(pattern: str, name: str) -> bool:
    """Whether a name, or its repository, as people write it, fits a pattern. Raises BadRequest for what is none."""
    shown = familiar(name)
    repository = shown.partition("@")[0] if "@" in shown else shown.rpartition(":")[0]
    fits = re.compile(_expression(pattern)).fullmatch
    return any(fits(each) is not None for each in (shown, repository, name, repository.rpartition("@")[0]) if each)


def _expression(pattern: str) -> str:
    """A shell pattern whose `*` and `?` stay within a part between slashes, as Go's path.Match has it."""
    out, at = "", 0
    while at < len(pattern):
        sign = pattern[at]
        at += 1
        if sign == "*":
            out += "[^/]*"
        elif sign == "?":
            out += "[^/]"
        elif sign == "\\" and at < len(pattern):
            out += re.escape(pattern[at])
            at += 1
        elif sign == "[":
            end = pattern.find("]", at + 1)
            if end < 0:
                raise BadRequest(f"invalid filter 'reference={pattern}': syntax error in pattern")
            inside = pattern[at:end].replace("\\", "\\\\")
            out += f"[{inside}]"
            at = end + 1
        else:
            out += re.escape(sign)
    try:
        re.compile(out)
    except re.error:
        raise BadRequest(f"invalid filter 'reference={pattern}': syntax error in pattern") from None
    return out
