"""Modes of `--chmod`: octal, or symbolic as chmod(1) has them. Pure. Source: POSIX.1-2017, "chmod", extended description."""

import re
from dataclasses import dataclass

_CLAUSE = re.compile(r"([ugoa]*)((?:[-+=](?:[rwxXst]*|[ugo]))+)")
_ACTION = re.compile(r"([-+=])([rwxXst]*|[ugo])(?=[-+=]|$)")
_SHIFT = {"u": 6, "g": 3, "o": 0}


@dataclass(frozen=True, slots=True)
class Mode:
    """One mode as it was written; "" changes nothing."""

    text: str = ""

    def apply(self, mode: int, *, is_dir: bool) -> int:
        """Say the mode that a file or directory of `mode` gets."""
        if not self.text:
            return mode
        if self.text.isdigit():
            return int(self.text, 8)
        for clause in self.text.split(","):
            found = _CLAUSE.fullmatch(clause)
            assert found is not None  # parse_mode has seen it
            for action in _ACTION.finditer(found[2]):
                mode = _act(mode, found[1] or "a", action[1], action[2], is_dir=is_dir)
        return mode


KEEP = Mode()


def parse_mode(text: str) -> Mode:
    """Read `755`, `0755` or `u=rwX,go=rX`. Raises ValueError."""
    if re.fullmatch(r"[0-7]{1,4}", text):
        return Mode(text)
    if text and not text[0].isdigit() and all(_CLAUSE.fullmatch(clause) for clause in text.split(",")):
        return Mode(text)
    raise ValueError("write an octal mode, such as 755, or a symbolic one, such as u=rwX,go=rX")


def _act(mode: int, who: str, sign: str, what: str, *, is_dir: bool) -> int:
    targets = "ugo" if "a" in who else who
    wanted = whole = 0
    for target in dict.fromkeys(targets):
        shift = _SHIFT[target]
        whole |= 7 << shift
        bits = 0
        if what in _SHIFT and what:
            bits = mode >> _SHIFT[what] & 7
        else:
            bits |= 4 * ("r" in what) | 2 * ("w" in what) | 1 * ("x" in what)
            if "X" in what and (is_dir or mode & 0o111):
                bits |= 1
            if "s" in what:
                wanted |= {"u": 0o4000, "g": 0o2000, "o": 0}[target]
        wanted |= bits << shift
    if "t" in what:
        wanted |= 0o1000
    if sign == "+":
        return mode | wanted
    return mode & ~wanted if sign == "-" else mode & ~whole | wanted
