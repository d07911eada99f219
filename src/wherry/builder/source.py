"""A Dockerfile's text: its directives, logical lines and heredocs, and errors that point into it.

Source: Docker, "Dockerfile reference", sections "Format", "Parser directives", "Here-documents".
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from wherry.builder.words import WordError, fields
from wherry.errors import Cause, Invalid, Unsupported

_DIRECTIVE = re.compile(r"#\s*([A-Za-z][A-Za-z0-9]*)\s*=\s*(.+?)\s*")
_SYNTAX = re.compile(r"(?:docker\.io/)?docker/dockerfile(?:-upstream)?(?::[A-Za-z0-9_.-]+)?(?:@sha256:[0-9a-f]{64})?")
_HEREDOC = re.compile(r"\d*<<(-?)(['\"]?)([A-Za-z_][A-Za-z0-9_.-]*)\2")
_HEREDOC_TAKERS = ("RUN", "COPY", "ADD")


@dataclass(frozen=True, slots=True)
class Heredoc:
    """A text that follows its line. `word` stands in the line; `expand` is False where the name was quoted."""

    word: str
    name: str
    text: str
    expand: bool


@dataclass(frozen=True, slots=True)
class Line:
    """A logical line: `text` without continuations and comments; `first` to `last` are its numbers in the file, from 1."""

    text: str
    first: int
    last: int
    heredocs: Sequence[Heredoc] = ()


@dataclass(frozen=True, slots=True)
class CheckRules:
    """What `# check=` says: rules that are skipped ("all" for every one), and whether a finding fails the build."""

    skip: frozenset[str] = frozenset()
    error: bool = False

    def skips(self, rule: str) -> bool:
        """Say whether findings of a rule are not told."""
        return bool(self.skip & {"all", rule.lower()})


@dataclass(frozen=True, slots=True)
class Source:
    """The file under its name, its logical lines, its escape character, its `check` directive.

    `gaps` are the numbers of blank lines within a continued line.
    """

    name: str
    rows: Sequence[str]
    lines: Sequence[Line]
    escape: str = "\\"
    checks: CheckRules = CheckRules()
    gaps: Sequence[int] = ()

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
        for candidate in range(line.first, min(line.last, len(self.rows)) + 1):
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
    escape, checks = _directives(rows, name)
    joined: list[Line] = []
    gaps: list[int] = []
    parts: list[str] = []
    first = last = at = 0
    ends = re.compile(rf"{re.escape(escape)}[ \t]*$")
    while at < len(rows):
        row = rows[at]
        at += 1
        if row.lstrip().startswith("#"):
            continue
        if not row.strip():
            if parts:
                gaps.append(at)  # Docker still takes it, and warns
            continue
        if not parts:
            first = at
        last = at
        body = row.lstrip() if not parts else row
        if ends.search(body):
            parts.append(ends.sub("", body))
            continue
        line = Line(("".join(parts) + body).strip(), first, last)
        heredocs, at = _heredocs(Source(name, rows, [], escape), line, at)
        joined.append(Line(line.text, first, last, heredocs))
        parts = []
    if "".join(parts).strip():
        joined.append(Line("".join(parts).strip(), first, last))
    return Source(name, rows, joined, escape, checks, [gap for gap in gaps if gap < last])


def _heredocs(source: Source, line: Line, at: int) -> tuple[Sequence[Heredoc], int]:
    """Take the texts that the line announces from the rows after it; return them and the next row's index."""
    words = line.text.split()
    taker = words[1] if len(words) > 1 and words[0].upper() == "ONBUILD" else words[0]
    if taker.upper() not in _HEREDOC_TAKERS or "<<" not in line.text:
        return (), at
    try:
        found = [_HEREDOC.fullmatch(word) for word in fields(line.text, source.escape)]
    except WordError:
        return (), at  # an odd quote: only a shell knows
    made: list[Heredoc] = []
    for match in found:
        if match is None:
            continue
        dash, quote, name = match[1], match[2], match[3]
        body: list[str] = []
        while True:
            if at >= len(source.rows):
                raise source.invalid(line, f"the heredoc {match[0]} has no end: a line with {name} alone", match[0])
            row = source.rows[at].lstrip("\t") if dash else source.rows[at]
            at += 1
            if row == name:
                break
            body.append(row + "\n")
        made.append(Heredoc(match[0], name, "".join(body), not quote))
    return made, at


def _directives(rows: Sequence[str], name: str) -> tuple[str, CheckRules]:
    """Read the comments at the very top that steer the parser; return the escape character and what to check."""
    escape = ""
    checks = CheckRules()
    seen: set[str] = set()
    for number, row in enumerate(rows, 1):
        found = _DIRECTIVE.fullmatch(row.strip())
        if found is None:
            if number == 1 and row.startswith("#!"):
                continue
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
        elif key == "check":
            try:
                checks = check_rules(value)
            except ValueError as error:
                raise here.invalid(line, f"check={value}: {error}", value) from None
        elif _SYNTAX.fullmatch(value) is None:
            raise here.unsupported(line, f"the syntax {value!r} (only docker/dockerfile's own)", value)
    return escape or "\\", checks


def check_rules(text: str) -> CheckRules:
    """Read `skip=RULE,RULE;error=true`. Raises ValueError."""
    skip: frozenset[str] = frozenset()
    error = False
    for part in filter(None, (part.strip() for part in text.split(";"))):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        match key:
            case "skip" if equals:
                skip = frozenset(word.strip().lower() for word in value.split(",") if word.strip())
            case "error" if value.lower() in ("true", "false"):
                error = value.lower() == "true"
            case "experimental":
                pass  # it asks for rules that are on here anyway
            case _:
                raise ValueError(f"{part!r}: write skip=RULE,RULE;error=true")
    return CheckRules(skip, error)
