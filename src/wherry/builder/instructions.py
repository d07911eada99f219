"""Instructions: what each logical line says, before variables are expanded.

Source: Docker, "Dockerfile reference". What that has and we do not is refused by name, never passed over.
"""

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import msgspec

from wherry.builder.source import Heredoc, Line, Source
from wherry.builder.words import WordError, fields

SUPPORTED = (
    *(
        "ADD",
        "ARG",
        "CMD",
        "COPY",
        "ENTRYPOINT",
        "ENV",
        "EXPOSE",
        "FROM",
        "HEALTHCHECK",
        "LABEL",
        "MAINTAINER",
        "ONBUILD",
    ),
    *("RUN", "SHELL", "STOPSIGNAL", "USER", "VOLUME", "WORKDIR"),
)
REFUSED: Sequence[str] = ()
FLAGS: Mapping[str, Mapping[str, bool]] = {
    "FROM": {"platform": True},
    "COPY": {"from": True, "chown": True, "chmod": True, "link": True, "parents": True, "exclude": True},
    "ADD": {
        "checksum": True,
        "chown": True,
        "chmod": True,
        "link": True,
        "exclude": True,
        "unpack": True,
        "keep-git-dir": True,
    },
    "RUN": {"mount": True, "network": True, "security": True, "device": False},
    "HEALTHCHECK": {"interval": True, "timeout": True, "start-period": True, "start-interval": True, "retries": True},
}
"""The flags that the language has for an instruction: True for those that are built here."""
SWITCHES = frozenset({"link", "parents", "unpack", "keep-git-dir"})
"""Flags that stand alone, or with =true or =false."""
REPEATED = frozenset({"mount", "exclude"})

_FLAG = re.compile(r"--([a-z][a-z0-9-]*)(?:=(\"[^\"]*\"|\S*))?(?:\s+|$)")
_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
_STAGE = re.compile(r"[a-z][a-z0-9_.-]*")


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction. `flags` by name, `repeated` those that may stand more than once; `args` by its kind:

    words (FROM, COPY, ADD, EXPOSE, VOLUME), one text (USER, WORKDIR, STOPSIGNAL, MAINTAINER), an argument vector or one text
    for the shell (`shell` True; RUN, CMD, ENTRYPOINT, HEALTHCHECK; its `NONE` has no words), `pairs` (ENV, LABEL, ARG; an ARG
    without default has None), or `trigger` (ONBUILD). `rest` is what follows the flags, `word` the name as it is written.
    """

    name: str
    line: Line
    flags: Mapping[str, str] = field(default_factory=dict[str, str])
    args: Sequence[str] = ()
    pairs: Sequence[tuple[str, str | None]] = ()
    shell: bool = False
    rest: str = ""
    repeated: Mapping[str, Sequence[str]] = field(default_factory=dict[str, Sequence[str]])
    word: str = ""
    legacy: bool = False
    trigger: "Instruction | None" = None

    @property
    def heredocs(self) -> Sequence[Heredoc]:
        """The texts that follow the line."""
        return self.line.heredocs


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
        one = instruction(source, line)
        if one.name == "FROM":
            name = _stage_name(source, one)
            if name and any(stage.name == name for stage in stages):
                message = f"the stage name {name!r} is taken by an earlier stage (DuplicateStageName)"
                raise source.invalid(line, message, one.args[2])
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


def instruction(source: Source, line: Line) -> Instruction:
    """Read one line. Raises Invalid or Unsupported that points at it."""
    word = line.text.split(None, 1)[0]
    rest = line.text[len(word) :].strip()
    name = word.upper()
    if name not in SUPPORTED:
        near = difflib.get_close_matches(name, SUPPORTED, n=1)
        hint = f"; did you mean {near[0]}?" if near else f"; there are {', '.join(SUPPORTED)}"
        raise source.invalid(line, f"unknown instruction {word!r}{hint}", word)
    flags, repeated, rest = _flags(source, line, name, rest)
    if not rest:
        raise source.invalid(line, f"{name} needs at least one argument", word)
    try:
        made = _read(source, line, name, rest)
    except WordError as error:
        raise source.invalid(line, f"{name}: {error}") from None
    return replace(made, flags=flags, repeated=repeated, rest=rest, word=word)


def _read(source: Source, line: Line, name: str, rest: str) -> Instruction:
    match name:
        case "RUN" | "CMD" | "ENTRYPOINT":
            argv = _json(rest)
            if argv is not None and not argv and name == "RUN":
                raise source.invalid(line, "RUN []: there is no command to run", "[")
            return Instruction(name, line, args=argv if argv is not None else [rest], shell=argv is None)
        case "HEALTHCHECK":
            return _healthcheck(source, line, rest)
        case "SHELL":
            argv = _json(rest)
            if not argv:
                raise source.invalid(line, 'SHELL is written in the JSON form: SHELL ["executable", "parameter"]', rest)
            return Instruction(name, line, args=argv)
        case "ENV" | "LABEL":
            pairs, legacy = _pairs(source, line, name, rest)
            return Instruction(name, line, pairs=pairs, legacy=legacy)
        case "ARG":
            defaults: list[tuple[str, str | None]] = []
            for word in fields(rest, source.escape):
                key, equals, value = word.partition("=")
                if _KEY.fullmatch(key) is None:
                    raise source.invalid(line, f"ARG {key!r}: a name is letters, digits and '_'", word)
                defaults.append((key, value if equals else None))
            return Instruction(name, line, pairs=defaults)
        case "COPY" | "ADD":
            words = _json(rest)
            words = words if words is not None else list(fields(rest, source.escape))
            if len(words) < 2:
                raise source.invalid(line, f"{name} needs a source and a destination", rest)
            if len(words) > 2 and not words[-1].endswith(("/", "/.")) and words[-1] != "." and "$" not in words[-1]:
                message = f"{name} of several sources needs a destination that ends with '/'"
                raise source.invalid(line, message, words[-1])
            if any(words[-1] == heredoc.word for heredoc in line.heredocs):
                raise source.invalid(line, f"{name}: the destination cannot be a heredoc", words[-1])
            return Instruction(name, line, args=words)
        case "VOLUME":
            words = _json(rest)
            words = words if words is not None else list(fields(rest, source.escape))
            if not words or not all(words):
                raise source.invalid(line, "VOLUME: a path is empty", rest)
            return Instruction(name, line, args=words)
        case "ONBUILD":
            trigger = instruction(source, Line(rest, line.first, line.last, line.heredocs))
            if trigger.name in ("ONBUILD", "FROM", "MAINTAINER"):
                raise source.invalid(line, f"ONBUILD {trigger.name} is not allowed", rest.split()[0])
            return Instruction(name, line, args=[rest], trigger=trigger)
        case "FROM":
            words = rest.split()
            if len(words) not in (1, 3) or (len(words) == 3 and words[1].upper() != "AS"):
                raise source.invalid(line, "FROM is written FROM IMAGE or FROM IMAGE AS NAME", rest)
            return Instruction(name, line, args=words)
        case "EXPOSE":
            return Instruction(name, line, args=rest.split())
        case _:  # USER, WORKDIR, STOPSIGNAL, MAINTAINER
            return Instruction(name, line, args=[rest])


def _healthcheck(source: Source, line: Line, rest: str) -> Instruction:
    kind, _, command = rest.partition(" ")
    command = command.strip()
    if kind.upper() == "NONE":
        if command:
            raise source.invalid(line, "HEALTHCHECK NONE takes nothing after it", command)
        return Instruction("HEALTHCHECK", line)
    if kind.upper() != "CMD":
        raise source.invalid(
            line, "HEALTHCHECK is written HEALTHCHECK [OPTIONS] CMD COMMAND, or HEALTHCHECK NONE", kind
        )
    if not command:
        raise source.invalid(line, "HEALTHCHECK CMD: there is no command", kind)
    argv = _json(command)
    if argv is not None and not argv:
        raise source.invalid(line, "HEALTHCHECK CMD []: there is no command", "[")
    return Instruction("HEALTHCHECK", line, args=argv if argv is not None else [command], shell=argv is None)


def _flags(source: Source, line: Line, name: str, rest: str) -> tuple[dict[str, str], dict[str, Sequence[str]], str]:
    known = FLAGS.get(name, {})
    flags: dict[str, str] = {}
    repeated: dict[str, Sequence[str]] = {}
    while name in FLAGS and (found := _FLAG.match(rest)):
        flag, value = found[1], found[2]
        if flag not in known:
            near = difflib.get_close_matches(flag, known, n=1)
            hint = f"; did you mean --{near[0]}?" if near else ""
            raise source.invalid(line, f"{name} has no flag --{flag}{hint}", f"--{flag}")
        if not known[flag]:
            raise source.unsupported(line, f"{name} --{flag}", f"--{flag}")
        value = value.strip('"') if value else value
        if flag in SWITCHES:
            value = value or "true"
            if value.lower() not in ("true", "false"):
                raise source.invalid(line, f"{name} --{flag}={value}: it is true or false", f"--{flag}")
            value = value.lower()
        if not value:
            raise source.invalid(line, f"{name} --{flag} needs a value: --{flag}=VALUE", f"--{flag}")
        if flag in REPEATED:
            repeated[flag] = [*repeated.get(flag, ()), value]
        elif flag in flags:
            raise source.invalid(line, f"{name} --{flag} is given twice", f"--{flag}")
        else:
            flags[flag] = value
        rest = rest[found.end() :]
    return flags, repeated, rest


def _pairs(source: Source, line: Line, name: str, rest: str) -> tuple[Sequence[tuple[str, str | None]], bool]:
    words = fields(rest, source.escape)
    if "=" not in words[0]:  # the old form: one name, and all the rest is its value
        key, _, value = rest.partition(" ") if " " in rest else rest.partition("\t")
        if not value.strip():
            raise source.invalid(line, f"{name} {key}: write {name} {key}=VALUE", key)
        return [(key, value.strip())], True
    pairs: list[tuple[str, str | None]] = []
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            raise source.invalid(line, f"{name}: {word!r} is not NAME=VALUE; quote a value that has spaces", word)
        if not key:
            raise source.invalid(line, f"{name}: {word!r} has no name before '='", word)
        pairs.append((key, value))
    return pairs, False


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
    return name
