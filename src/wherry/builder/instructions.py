"""Instructions: what each logical line says, before variables are expanded.

Source: Docker, "Dockerfile reference". What that has and we do not is refused by name, never passed over.
"""

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from wherry.builder.source import Line, Source
from wherry.builder.words import WordError, fields

SUPPORTED = ("ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "EXPOSE", "FROM", "LABEL", "RUN", "USER", "WORKDIR")
REFUSED = ("ADD", "HEALTHCHECK", "MAINTAINER", "ONBUILD", "SHELL", "STOPSIGNAL", "VOLUME")
FLAGS: Mapping[str, Mapping[str, bool]] = {
    "FROM": {"platform": True},
    "COPY": {"from": True, "chown": True, "chmod": True, "link": False, "parents": False, "exclude": False},
    "RUN": {"mount": False, "network": False, "security": False, "device": False},
}
"""The flags that the language has for an instruction: True for those that are built here."""

_FLAG = re.compile(r"--([a-z][a-z0-9-]*)(?:=(\S*))?(?:\s+|$)")
_HEREDOC = re.compile(r"(?:^|\s)(\d*<<-?(['\"]?)[A-Za-z_][A-Za-z0-9_.]*\2)(?=\s|$)")
_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
_STAGE = re.compile(r"[a-z][a-z0-9_.-]*")


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction. `flags` by name; `args` by its kind:

    words (FROM, COPY, EXPOSE), one text (USER, WORKDIR), an argument vector or one text for the shell (`shell` True; RUN,
    CMD, ENTRYPOINT), or `pairs` (ENV, LABEL, ARG; an ARG without default has None).
    """

    name: str
    line: Line
    flags: Mapping[str, str] = field(default_factory=dict[str, str])
    args: Sequence[str] = ()
    pairs: Sequence[tuple[str, str | None]] = ()
    shell: bool = False
    rest: str = ""


@dataclass(frozen=True, slots=True)
class Stage:
    """A FROM and what follows it. `name` is "" or lower case."""

    index: int
    name: str
    origin: Instruction
    instructions: Sequence[Instruction]


@dataclass(frozen=True, slots=True)
class Dockerfile:
    """A whole file: the ARGs before the first FROM, then the stages."""

    source: Source
    globals: Sequence[Instruction]
    stages: Sequence[Stage]


def parse(source: Source) -> Dockerfile:
    """Read all instructions. Raises Invalid or Unsupported that points at the line."""
    globals_: list[Instruction] = []
    stages: list[Stage] = []
    body: list[Instruction] = []
    for line in source.lines:
        one = _instruction(source, line)
        if one.name == "FROM":
            name = _stage_name(source, one)
            if name and any(stage.name == name for stage in stages):
                raise source.invalid(line, f"the stage name {name!r} is taken by an earlier stage", one.args[2])
            body = []
            stages.append(Stage(len(stages), name, one, body))
        elif stages:
            body.append(one)
        elif one.name == "ARG":
            globals_.append(one)
        else:
            raise source.invalid(line, f"{one.name} before the first FROM: only ARG may stand there")
    if not stages:
        last = Line("", max(1, len(source.rows)), max(1, len(source.rows)))
        raise source.invalid(last, "there is no FROM: a Dockerfile begins with FROM IMAGE or FROM scratch")
    return Dockerfile(source, globals_, stages)


def _instruction(source: Source, line: Line) -> Instruction:
    word = line.text.split(None, 1)[0]
    rest = line.text[len(word) :].strip()
    name = word.upper()
    if name in REFUSED:
        raise source.unsupported(line, f"the instruction {name}", word)
    if name not in SUPPORTED:
        near = difflib.get_close_matches(name, SUPPORTED, n=1)
        hint = f"; did you mean {near[0]}?" if near else f"; there are {', '.join(SUPPORTED)}"
        raise source.invalid(line, f"unknown instruction {word!r}{hint}", word)
    heredoc = _HEREDOC.search(rest) if name in ("RUN", "COPY") else None
    if heredoc is not None:
        raise source.unsupported(line, f"a heredoc ({heredoc[1]}) in {name}", heredoc[1])
    flags, rest = _flags(source, line, name, rest)
    if not rest:
        raise source.invalid(line, f"{name} needs at least one argument", word)
    try:
        return _read(source, line, name, flags, rest)
    except WordError as error:
        raise source.invalid(line, f"{name}: {error}") from None


def _read(source: Source, line: Line, name: str, flags: Mapping[str, str], rest: str) -> Instruction:
    match name:
        case "RUN" | "CMD" | "ENTRYPOINT":
            argv = _json(rest)
            if argv is not None and not argv and name == "RUN":
                raise source.invalid(line, "RUN []: there is no command to run", "[")
            return Instruction(name, line, flags, argv if argv is not None else [rest], shell=argv is None, rest=rest)
        case "ENV" | "LABEL":
            return Instruction(name, line, flags, pairs=_pairs(source, line, name, rest), rest=rest)
        case "ARG":
            pairs: list[tuple[str, str | None]] = []
            for word in fields(rest, source.escape):
                key, equals, value = word.partition("=")
                if _KEY.fullmatch(key) is None:
                    raise source.invalid(line, f"ARG {key!r}: a name is letters, digits and '_'", word)
                pairs.append((key, value if equals else None))
            return Instruction(name, line, flags, pairs=pairs, rest=rest)
        case "COPY":
            words = _json(rest)
            words = words if words is not None else rest.split()
            if len(words) < 2:
                raise source.invalid(line, "COPY needs a source and a destination", rest)
            if len(words) > 2 and not words[-1].endswith(("/", "/.")) and words[-1] != ".":
                raise source.invalid(line, "COPY of several sources needs a destination that ends with '/'", words[-1])
            return Instruction(name, line, flags, words, rest=rest)
        case "FROM":
            words = rest.split()
            if len(words) not in (1, 3) or (len(words) == 3 and words[1].upper() != "AS"):
                raise source.invalid(line, "FROM is written FROM IMAGE or FROM IMAGE AS NAME", rest)
            return Instruction(name, line, flags, words, rest=rest)
        case "EXPOSE":
            return Instruction(name, line, flags, rest.split(), rest=rest)
        case _:  # USER, WORKDIR
            return Instruction(name, line, flags, [rest], rest=rest)


def _flags(source: Source, line: Line, name: str, rest: str) -> tuple[dict[str, str], str]:
    known = FLAGS.get(name, {})
    flags: dict[str, str] = {}
    while name in FLAGS and (found := _FLAG.match(rest)):
        flag, value = found[1], found[2]
        if flag not in known:
            raise source.invalid(line, f"{name} has no flag --{flag}", f"--{flag}")
        if not known[flag]:
            raise source.unsupported(line, f"{name} --{flag}", f"--{flag}")
        if not value:
            raise source.invalid(line, f"{name} --{flag} needs a value: --{flag}=VALUE", f"--{flag}")
        if flag in flags:
            raise source.invalid(line, f"{name} --{flag} is given twice", f"--{flag}")
        flags[flag] = value
        rest = rest[found.end() :]
    return flags, rest


def _pairs(source: Source, line: Line, name: str, rest: str) -> Sequence[tuple[str, str | None]]:
    words = fields(rest, source.escape)
    if "=" not in words[0]:  # the old form: one name, and all the rest is its value
        key, _, value = rest.partition(" ") if " " in rest else rest.partition("\t")
        if not value.strip():
            raise source.invalid(line, f"{name} {key}: write {name} {key}=VALUE", key)
        return [(key, value.strip())]
    pairs: list[tuple[str, str | None]] = []
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            raise source.invalid(line, f"{name}: {word!r} is not NAME=VALUE; quote a value that has spaces", word)
        if not key:
            raise source.invalid(line, f"{name}: {word!r} has no name before '='", word)
        pairs.append((key, value))
    return pairs


def _json(text: str) -> list[str] | None:
    """The exec form; None for anything else, which then is for the shell."""
    if not text.startswith("["):
        return None
    try:
        return msgspec.json.decode(text, type=list[str])
    except (msgspec.MsgspecError, UnicodeError):
        return None


def _stage_name(source: Source, one: Instruction) -> str:
    if len(one.args) < 3:
        return ""
    name = one.args[2].lower()
    if _STAGE.fullmatch(name) is None:
        words = f"stage name {one.args[2]!r}: a letter, then letters, digits, '_', '.' or '-'"
        raise source.invalid(one.line, words, one.args[2])
    if name == "scratch":
        raise source.invalid(one.line, "the stage name 'scratch' is reserved", one.args[2])
    return name
