""".dockerignore: which files of a context a build does not see. Source: Docker, "Build context", ".dockerignore files"."""

import posixpath
import re
from collections.abc import Sequence
from dataclasses import dataclass

from wherry.errors import Cause, Invalid


@dataclass(frozen=True, slots=True)
class _Rule:
    regex: re.Pattern[str]
    keeps: bool


class Ignore:
    """The rules of one file, later ones winning."""

    def __init__(self, text: str = "", name: str = ".dockerignore") -> None:
        """Read the rules. Raises Invalid with the line for a pattern that cannot be one."""
        self.name = name
        self._rules: list[_Rule] = []
        for number, row in enumerate(text.removeprefix("\ufeff").splitlines(), 1):
            pattern = row.strip()
            if not pattern or row.startswith("#"):
                continue
            keeps = pattern.startswith("!")
            pattern = pattern[1:].strip() if keeps else pattern
            if not pattern:
                message = f"{name}:{number}: '!' is not followed by a pattern"
                raise Invalid(message, causes=[Cause(f"{name}:{number}", "InvalidPattern", message)])
            pattern = posixpath.normpath(pattern).lstrip("/")
            if pattern in ("", "."):
                continue
            try:
                self._rules.append(_Rule(re.compile(pattern_regex(pattern), re.DOTALL), keeps))
            except ValueError as error:
                message = f"{name}:{number}: {row.strip()!r}: {error}"
                raise Invalid(message, causes=[Cause(f"{name}:{number}", "InvalidPattern", message)]) from None
        self._may_keep = any(rule.keeps for rule in self._rules)

    def hides(self, path: str) -> bool:
        """Say whether a path (relative, with slashes) is left out: the last rule that fits it or a folder above decides."""
        hidden = False
        if not self._rules:
            return False
        for rule in self._rules:
            if rule.keeps == hidden and any(rule.regex.fullmatch(part) for part in _with_parents(path)):
                hidden = not rule.keeps
        return hidden

    def prunes(self, folder: str) -> bool:
        """Say whether nothing in a folder can be seen, so that it need not be walked."""
        return not self._may_keep and self.hides(folder)


def pattern_regex(pattern: str) -> str:
    """Write a pattern as a regular expression: `*` and `?` within one name, `[...]` sets, `**` over folders.

    Raises ValueError for one that is malformed. Source: Go's filepath.Match, with `**` of Docker.
    """
    out: list[str] = []
    at = 0
    while at < len(pattern):
        char = pattern[at]
        if pattern.startswith("**", at):
            at += 2
            if pattern.startswith("/", at):
                at += 1
                out.append("(?:.*/)?")
            else:
                out.append(".*")
            continue
        if char == "*":
            out.append("[^/]*")
        elif char == "?":
            out.append("[^/]")
        elif char == "[":
            at, text = _set(pattern, at)
            out.append(text)
            continue
        elif char == "\\":
            at += 1
            if at >= len(pattern):
                raise ValueError("a backslash at the end escapes nothing")
            out.append(re.escape(pattern[at]))
        else:
            out.append(re.escape(char))
        at += 1
    return "".join(out)


def is_pattern(text: str) -> bool:
    """Say whether a source is a pattern rather than a path."""
    return any(mark in text for mark in "*?[")


def _set(pattern: str, at: int) -> tuple[int, str]:
    at += 1
    negated = pattern[at : at + 1] == "^"
    at += negated
    out = "[^/" if negated else "["
    first = True
    while first or pattern[at : at + 1] != "]":
        if at >= len(pattern):
            raise ValueError("a set [ is not closed")
        char = pattern[at]
        if char == "\\":
            at += 1
            char = pattern[at : at + 1]
            if not char:
                raise ValueError("a set [ is not closed")
        out += "-" if char == "-" and not first else re.escape(char)
        at += 1
        first = False
    try:
        re.compile(out + "]")
    except re.error:
        raise ValueError("a set [...] cannot be read") from None
    return at + 1, out + "]"


def _with_parents(path: str) -> Sequence[str]:
    parts = path.split("/")
    return ["/".join(parts[: count + 1]) for count in range(len(parts))]
