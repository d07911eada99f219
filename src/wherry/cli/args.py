"""Options of the command line: a table for each command, a parser of a page, help made from the table.

It is our own because the standard one costs more time than the whole of `wherry ps` (see ARCHITECTURE.md, decisions).
"""

import os
import sys
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, NoReturn

Shape = Literal["flag", "value", "many", "number"]
TRUE, FALSE = ("1", "true", "yes"), ("0", "false", "no")


class Option(NamedTuple):
    """`name` without dashes; `short` one letter; a `value` may come from the environment variable WHERRY_NAME."""

    name: str
    help: str
    short: str = ""
    shape: Shape = "value"
    default: Any = None
    metavar: str = ""
    choices: Sequence[str] = ()
    env: bool = False


class Spec(NamedTuple):
    """A command. `usage` follows its name; with `rest`, options end at the first word that is none, as in `run IMAGE CMD`."""

    name: str
    summary: str
    usage: str
    options: Sequence[Option] = ()
    least: int = 0
    most: int | None = 0
    rest: bool = False
    examples: Sequence[str] = ()


class Usage(SystemExit):
    """The words cannot be understood: exit code 2."""

    def __init__(self, spec_name: str, message: str) -> None:
        super().__init__(2)
        sys.stderr.write(f"wherry {spec_name}: {message}\nSee 'wherry {spec_name} --help'.\n")


class Parsed:
    """Values by option name, and the other words in order."""

    def __init__(self, values: dict[str, Any], words: list[str]) -> None:
        self.values = values
        self.words = words

    def __getitem__(self, name: str) -> Any:
        return self.values[name]

    def text(self, name: str) -> str:
        """A value as text; "" when it was not given."""
        value = self.values[name]
        return "" if value is None else str(value)

    def flag(self, name: str) -> bool:
        """Whether a flag was given."""
        return bool(self.values[name])

    def many(self, name: str) -> list[str]:
        """All values of an option that may be given several times."""
        return list(self.values[name])


def parse(spec: Spec, argv: Sequence[str]) -> Parsed:
    """Read the words of a command. Ends the program with help on --help, with exit code 2 on wrong words."""
    values: dict[str, Any] = {}
    for option in spec.options:
        values[option.name] = [] if option.shape == "many" else False if option.shape == "flag" else option.default
        if option.env and (found := os.environ.get("WHERRY_" + option.name.upper().replace("-", "_"))):
            _set(spec, values, option, found)
    longs = {option.name: option for option in spec.options}
    shorts = {option.short: option for option in spec.options if option.short}
    words: list[str] = []
    pending = list(argv)
    while pending:
        word = pending.pop(0)
        if word == "--":
            words += pending
            break
        if word in ("--help", "-h") and not ("h" in shorts and word == "-h"):
            _help(spec)
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            option = longs.get(name)
            if option is None:
                raise Usage(spec.name, f"unknown option --{name}{_nearest(name, longs)}")
            if option.shape == "flag":
                _set(spec, values, option, value if equals else "true")
                continue
            if not equals:
                if not pending:
                    raise Usage(spec.name, f"option --{name} needs a value")
                value = pending.pop(0)
            _set(spec, values, option, value)
        elif word.startswith("-") and len(word) > 1:
            _short(spec, values, shorts, word[1:], pending)
        else:
            words.append(word)
            if spec.rest:
                words += pending
                break
    if len(words) < spec.least or (spec.most is not None and len(words) > spec.most and not spec.rest):
        raise Usage(spec.name, f"usage: wherry {spec.name} {spec.usage}")
    return Parsed(values, words)


def _short(spec: Spec, values: dict[str, Any], shorts: dict[str, Option], letters: str, pending: list[str]) -> None:
    while letters:
        option = shorts.get(letters[0])
        if option is None:
            raise Usage(spec.name, f"unknown option -{letters[0]}")
        letters = letters[1:]
        if option.shape == "flag":
            values[option.name] = True
            continue
        if not letters and not pending:
            raise Usage(spec.name, f"option -{option.short} needs a value")
        value = letters.removeprefix("=") if letters else pending.pop(0)
        _set(spec, values, option, value)
        return


def _set(spec: Spec, values: dict[str, Any], option: Option, value: str) -> None:
    if option.choices and value not in option.choices:
        raise Usage(spec.name, f"--{option.name} {value!r}: one of {', '.join(option.choices)}")
    if option.shape == "flag":
        if value.lower() not in TRUE + FALSE:
            raise Usage(spec.name, f"--{option.name} {value!r}: true or false")
        values[option.name] = value.lower() in TRUE
    elif option.shape == "number":
        digits = value.removeprefix("-")
        if not (digits.isascii() and digits.isdigit() and len(digits) < 19):
            raise Usage(spec.name, f"--{option.name} {value!r}: not a whole number")
        values[option.name] = int(value)
    elif option.shape == "many":
        values[option.name] = [*values[option.name], value]
    else:
        values[option.name] = value


def _nearest(name: str, known: dict[str, Option]) -> str:
    from difflib import get_close_matches

    close = get_close_matches(name, list(known), n=1)
    return f"; did you mean --{close[0]}?" if close else ""


def pair(text: str) -> tuple[str, str]:
    """Split NAME=VALUE at the first equals sign; the value is empty without one."""
    name, _, value = text.partition("=")
    return name, value


def help_text(spec: Spec) -> str:
    """The help of a command, with examples."""
    lines = [f"Usage: wherry {spec.name} {spec.usage}".rstrip(), "", spec.summary, ""]
    if spec.options:
        lines.append("Options:")
        heads = [_head(option) for option in spec.options]
        width = min(30, max(len(head) for head in heads))
        for head, option in zip(heads, spec.options, strict=True):
            more = f" ({', '.join(option.choices)})" if option.choices else ""
            more += f" [default: {option.default}]" if option.default not in (None, "", False) else ""
            lines.append(f"  {head:<{width}}  {option.help}{more}")
        lines.append("")
    if spec.examples:
        lines += ["Examples:", *(f"  {each}" for each in spec.examples), ""]
    return "\n".join(lines)


def _head(option: Option) -> str:
    short = f"-{option.short}, " if option.short else "    "
    value = "" if option.shape == "flag" else f" {option.metavar or option.name.upper().replace('-', '_')}"
    return f"{short}--{option.name}{value}"


def _help(spec: Spec) -> NoReturn:
    sys.stdout.write(help_text(spec))
    raise SystemExit(0)
