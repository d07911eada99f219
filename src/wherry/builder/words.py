"""Words, quotes and variables, as a Dockerfile has them: like a shell's, but not a shell's.

Source: Docker, "Dockerfile reference", "Environment replacement"; the moby shell lexer's rules for quotes.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


class WordError(Exception):
    """What is wrong with a word; the caller knows where it stands."""


@dataclass(slots=True)
class Expander:
    """Expands variables. `used` gathers the names that were asked for, `missing` those that were not set."""

    values: Mapping[str, str]
    escape: str = "\\"
    used: set[str] = field(default_factory=set[str])
    missing: set[str] = field(default_factory=set[str])

    def word(self, text: str) -> str:
        """Expand variables and take quotes away; the result is one word, whatever is in it. Raises WordError."""
        return _Scan(self, text).all()

    def text(self, text: str) -> str:
        """Expand variables in a heredoc's text: quotes are like any character. Raises WordError."""
        return _Scan(self, text).plain()

    def words(self, text: str) -> Sequence[str]:
        """Expand, then split at spaces that are not quoted, those of the values included. Raises WordError."""
        scan = _Scan(self, text)
        scan.all()
        return scan.split()


class _Scan:
    def __init__(self, expander: Expander, text: str) -> None:
        self._expander = expander
        self._text = text
        self._at = 0
        self._pieces: list[tuple[str, bool]] = []

    def all(self) -> str:
        text, escape = self._text, self._expander.escape
        while self._at < len(text):
            char = text[self._at]
            if char == "'":
                end = text.find("'", self._at + 1)
                if end < 0:
                    raise WordError("a single quote is not closed")
                self._pieces.append((text[self._at + 1 : end], True))
                self._at = end + 1
            elif char == '"':
                self._at += 1
                self._pieces.append((self._double(), True))
            elif char == "$":
                self._pieces.append((self._variable(), False))
            elif char == escape:
                if self._at + 1 < len(text):
                    self._pieces.append((text[self._at + 1], True))
                self._at += 2
            else:
                self._pieces.append((char, False))
                self._at += 1
        return "".join(piece for piece, _ in self._pieces)

    def plain(self) -> str:
        text, escape = self._text, self._expander.escape
        out: list[str] = []
        while self._at < len(text):
            char = text[self._at]
            following = text[self._at + 1 : self._at + 2]
            if char == "$":
                out.append(self._variable())
            elif char == escape and following in ("$", escape):
                out.append(following)
                self._at += 2
            else:
                out.append(char)
                self._at += 1
        return "".join(out)

    def split(self) -> Sequence[str]:
        words: list[str] = []
        word: str | None = None
        for piece, quoted in self._pieces:
            if quoted:
                word = (word or "") + piece
                continue
            for part in re.split(r"(\s+)", piece):
                if part.isspace():
                    if word is not None:
                        words.append(word)
                    word = None
                elif part:
                    word = (word or "") + part
        return [*words, word] if word is not None else words

    def _double(self) -> str:
        text, escape = self._text, self._expander.escape
        out: list[str] = []
        while self._at < len(text):
            char = text[self._at]
            if char == '"':
                self._at += 1
                return "".join(out)
            if char == "$":
                out.append(self._variable())
            elif char == escape and self._at + 1 < len(text):
                following = text[self._at + 1]
                out.append(following if following in ('"', "$", escape) else char + following)
                self._at += 2
            else:
                out.append(char)
                self._at += 1
        raise WordError("a double quote is not closed")

    def _variable(self) -> str:
        text = self._text
        self._at += 1
        if self._at >= len(text):
            return "$"
        if text[self._at] != "{":
            found = re.compile(r"[A-Za-z_][A-Za-z0-9_]*|[0-9@*#?!$-]").match(text, self._at)
            if found is None:
                return "$"
            self._at = found.end()
            return self._value(found[0]) or ""
        found = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*|[0-9@*#])").match(text, self._at)
        if found is None:
            raise WordError(f"${{ is not followed by a variable's name in {text!r}")
        name = found[1]
        self._at = found.end()
        body = self._braced()
        if not body:
            return self._value(name) or ""
        return self._modified(name, body)

    def _braced(self) -> str:
        """Take what is up to the closing brace, inner ones included."""
        depth, start = 1, self._at
        while self._at < len(self._text):
            char = self._text[self._at]
            if char == self._expander.escape:
                self._at += 1
            elif char == "{":
                depth += 1
            elif char == "}":
                depth -= 1
                if not depth:
                    self._at += 1
                    return self._text[start : self._at - 1]
            self._at += 1
        raise WordError("${ is not closed")

    def _modified(self, name: str, body: str) -> str:
        colon = body.startswith(":")
        mark, rest = (body[1:2], body[2:]) if colon else (body[:1], body[1:])
        value = self._value(name, quiet=mark in "-+?")
        present = value is not None and (value != "" or not colon)
        match mark:
            case "-":
                return value or "" if present else self._inner(rest)
            case "+":
                return self._inner(rest) if present else ""
            case "?":
                if not present:
                    raise WordError(f"{name}: {self._inner(rest) or 'it is not set, or empty'}")
                return value or ""
            case "#" | "%" if not colon:
                greedy = rest.startswith(mark)
                return _trim(value or "", self._inner(rest[1:] if greedy else rest), mark == "#", greedy)
            case "/" if not colon:
                every = rest.startswith("/")
                pattern, _, new = (rest[1:] if every else rest).partition("/")
                regex = re.compile(_glob(self._inner(pattern), greedy=True), re.DOTALL)
                put = self._inner(new)
                return regex.sub(lambda _: put, value or "", count=0 if every else 1)
            case _:
                raise WordError(f"${{{name}{body}}}: the modifier {mark!r} is not one of :- :+ :? - + ? # ## % %% / //")

    def _inner(self, text: str) -> str:
        return _Scan(self._expander, text).all()

    def _value(self, name: str, *, quiet: bool = False) -> str | None:
        value = self._expander.values.get(name)
        self._expander.used.add(name)
        if value is None and not quiet:
            self._expander.missing.add(name)
        return value


def fields(text: str, escape: str = "\\") -> Sequence[str]:
    """Split at spaces outside quotes; quotes and escapes stay for a later expansion. Raises WordError."""
    words: list[str] = []
    word = ""
    quote = ""
    at = 0
    while at < len(text):
        char = text[at]
        if char == escape and quote != "'" and at + 1 < len(text):
            word += text[at : at + 2]
            at += 2
            continue
        if quote:
            quote = "" if char == quote else quote
        elif char in "'\"":
            quote = char
        elif char.isspace():
            if word:
                words.append(word)
            word = ""
            at += 1
            continue
        word += char
        at += 1
    if quote:
        raise WordError("a quote is not closed")
    return [*words, word] if word else words


def _trim(value: str, pattern: str, front: bool, greedy: bool) -> str:
    """Cut the shortest or longest match of a pattern from the front or the end."""
    cuts = range(len(value) + 1)
    regex = re.compile(_glob(pattern, greedy=True), re.DOTALL)
    if front:
        for cut in reversed(cuts) if greedy else cuts:
            if regex.fullmatch(value[:cut]):
                return value[cut:]
    else:
        for cut in cuts if greedy else reversed(cuts):
            if regex.fullmatch(value[cut:]):
                return value[:cut]
    return value


def _glob(pattern: str, *, greedy: bool) -> str:
    star = ".*" if greedy else ".*?"
    return "".join(star if char == "*" else "." if char == "?" else re.escape(char) for char in pattern)
