"""A Dockerfile's text: its directives and logical lines, and errors that point into it.

Source: Docker, "Dockerfile reference", sections "Format", "Parser directives", "escape".
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from wherry.errors import Cause, Invalid, Unsupported

_DIRECTIVE = re.compile(r"#\s*([A-Za-z][A-Za-z0-9]*)\s*=\s*(.+?)\s*")
_SYNTAX = re.compile(r"(?:docker\.io/)?docker/dockerfile(?::[A-Za-z0-9_.-]+)?(?:@sha256:[0-9a-f]{64})?")


@dataclass(frozen=True, slots=True)
class Line:
    """A logical line: `text` without continuations and comments; `first` to `last` are its numbers in the file, from 1."""

    text: str
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Source:
    """The file under its name, its logical lines, and its escape character."""

    name: str
    rows: Sequence[str]
    lines: Sequence[Line]
    escape: str = "\\"

    def invalid(self, line: Line, message: str, at: str = "") -> Invalid:
        """An error at a line: file:line, the row, a caret under `at` (its first word when `at` is not there)."""
        place, text = self.pointed(line, message, at)
        return Invalid(text, causes=[Cause(place, "InvalidDockerfile", message)])

    def unsupported(self, line: Line, feature: str, at: str = "") -> Unsupported:
        """A feature of the language that is known and not built here, named, with the line."""
        message = f"{feature} is not supported"
        place, text = self.pointed(line, message, at)
        return Unsupported(text, causes=[Cause(place, "Unsupported", message)])

    def pointed(self, line: Line, message: str, at: str = "") -> tuple[str, str]:
        """Write file:line, and the whole message with the row and a caret."""
        number, column, width = line.first, 0, 0
        for candidate in range(line.first, line.last + 1):
            row = self.rows[candidate - 1]
            found = row.find(at) if at else -1
            if found >= 0:
                number, column, width = candidate, found, len(at)
                break
        else:
            row = self.rows[line.first - 1] if self.rows else ""
            column = len(row) - len(row.lstrip())
            width = len(row.split()[0]) if row.split() else 1
        row = self.rows[number - 1].replace("\t", " ") if self.rows else ""
        margin = f"{number:4d} | "
        caret = " " * (len(margin) - 2) + "| " + " " * column + "^" * max(1, width)
        return f"{self.name}:{number}", f"{self.name}:{number}: {message}\n{margin}{row}\n{caret}"


def read(text: str, name: str = "Dockerfile") -> Source:
    """Split a Dockerfile into logical lines. Raises Invalid or Unsupported that points at the row."""
    rows = [row.rstrip("\r") for row in text.removeprefix("\ufeff").split("\n")]
    escape = _directives(rows, name)
    joined: list[Line] = []
    parts: list[str] = []
    first = last = 0
    ends = re.compile(rf"{re.escape(escape)}[ \t]*$")
    for number, row in enumerate(rows, 1):
        if row.lstrip().startswith("#"):
            continue
        if not row.strip():
            continue  # also within a continued line, as Docker still takes it
        if not parts:
            first = number
        last = number
        body = row.lstrip() if not parts else row
        if ends.search(body):
            parts.append(ends.sub("", body))
            continue
        joined.append(Line(("".join(parts) + body).strip(), first, last))
        parts = []
    if "".join(parts).strip():
        joined.append(Line("".join(parts).strip(), first, last))
    return Source(name, rows, joined, escape)


def _directives(rows: Sequence[str], name: str) -> str:
    """Read the comments at the very top that steer the parser; return the escape character."""
    escape = ""
    seen: set[str] = set()
    for number, row in enumerate(rows, 1):
        found = _DIRECTIVE.fullmatch(row.strip())
        if found is None:
            break
        key, value = found[1].lower(), found[2]
        here = Source(name, rows, [])
        line = Line(row, number, number)
        if key not in ("escape", "syntax", "check"):
            break
        if key in seen:
            raise here.invalid(line, f"the directive {key!r} is given twice", key)
        seen.add(key)
        if key == "escape":
            if value not in ("\\", "`"):
                raise here.invalid(line, f"escape={value}: it is a backslash or a backtick", value)
            escape = value
        elif key == "syntax" and _SYNTAX.fullmatch(value) is None:
            raise here.unsupported(line, f"the syntax {value!r} (only docker/dockerfile's own)", value)
    return escape or "\\"
