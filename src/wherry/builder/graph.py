"""From instructions to a plan: which stages are needed, and what each has to do, with every variable in its place.

Pure: the configs of base images are handed in. Source: Docker, "Dockerfile reference", "Understand how ARG and FROM
interact", "Scope", "Predefined ARGs".
"""

import posixpath
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from wherry.builder.config import SHELL, ImageConfig, Json
from wherry.builder.instructions import Dockerfile, Instruction, Stage
from wherry.builder.source import Line, Source
from wherry.builder.words import Expander, WordError
from wherry.content.names import parse_name
from wherry.content.oci import Platform, parse_platform
from wherry.errors import Cause, Invalid, Unsupported

PROXY_ARGS = frozenset(
    name
    for text in ("HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "NO_PROXY", "ALL_PROXY")
    for name in (text, text.lower())
)
"""ARGs that RUN sees undeclared, and that neither keys nor history know."""
_PORT = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?(?:/([A-Za-z]+))?")
_OWNER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(?::[A-Za-z0-9_][A-Za-z0-9_.-]*)?")


@dataclass(frozen=True, slots=True)
class Meta:
    """Only the config changes."""

    line: Line
    created_by: str


@dataclass(frozen=True, slots=True)
class Run:
    """A command in a container. `env` is all it sees; `proxies` too, but they are in no key."""

    line: Line
    created_by: str
    argv: Sequence[str]
    env: Sequence[str]
    workdir: str
    user: str
    proxies: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Copy:
    """Files from the context, an earlier stage (`stage`) or an image (`image`). `chmod` -1 leaves modes."""

    line: Line
    created_by: str
    sources: Sequence[str]
    dest: str
    stage: int = -1
    image: str = ""
    chown: str = ""
    chmod: int = -1


@dataclass(frozen=True, slots=True)
class Workdir:
    """A directory that must be there; it is made for `user`."""

    line: Line
    created_by: str
    path: str
    user: str


Operation = Meta | Run | Copy | Workdir


@dataclass(frozen=True, slots=True)
class StagePlan:
    """One stage. It stands on an earlier one (`stage`), on an image, or on nothing (both unset: scratch).

    `config` is the image's `config` object after all operations.
    """

    index: int
    name: str
    line: Line
    text: str
    operations: Sequence[Operation]
    config: Json
    stage: int = -1
    image: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """The needed stages in order; the last one is the target."""

    source: Source
    stages: Sequence[StagePlan]
    warnings: Sequence[str] = ()

    @property
    def steps(self) -> int:
        """How many steps a person sees: each FROM and each instruction."""
        return sum(1 + len(stage.operations) for stage in self.stages)


@dataclass(slots=True)
class _Origin:
    stage: int = -1
    image: str = ""


@dataclass(slots=True)
class _Scope:
    """The variables of the whole file, before any stage."""

    args: Mapping[str, str]
    values: dict[str, str] = field(default_factory=dict[str, str])
    consumed: set[str] = field(default_factory=set[str])


def images(dockerfile: Dockerfile, *, args: Mapping[str, str], target: str, platform: Platform) -> Sequence[str]:
    """List the images that must be had before `plan`, whole names, in order. Raises Invalid."""
    scope = _globals(dockerfile, args, platform)
    origins = [_origin(dockerfile, stage, scope, platform) for stage in dockerfile.stages]
    found: list[str] = []
    for index in _needed(dockerfile, origins, _target(dockerfile, target)):
        found.append(origins[index].image)
        for one in dockerfile.stages[index].instructions:
            if one.name == "COPY" and "from" in one.flags:
                found.append(_copy_from(dockerfile, dockerfile.stages[index], one)[1])
    return [name for name in dict.fromkeys(found) if name]


def plan(
    dockerfile: Dockerfile,
    *,
    args: Mapping[str, str],
    target: str,
    platform: Platform,
    bases: Mapping[str, Mapping[str, Any]],
) -> Plan:
    """Work out what to do. `bases` has the config document of each of `images`. Raises Invalid, Unsupported."""
    scope = _globals(dockerfile, args, platform)
    origins = [_origin(dockerfile, stage, scope, platform) for stage in dockerfile.stages]
    done: dict[int, StagePlan] = {}
    warnings: list[str] = []
    for index in _needed(dockerfile, origins, _target(dockerfile, target)):
        origin = origins[index]
        if origin.image:
            base: Mapping[str, Any] | None = bases[origin.image].get("config") or {}
        else:
            base = done[origin.stage].config if origin.stage >= 0 else None
        if base and base.get("OnBuild"):
            line = dockerfile.stages[index].origin.line
            raise dockerfile.source.unsupported(line, f"the ONBUILD of the base image {origin.image}")
        reader = _StageReader(dockerfile, dockerfile.stages[index], scope, ImageConfig(base))
        operations = [reader.read(one) for one in dockerfile.stages[index].instructions]
        stage = dockerfile.stages[index]
        done[index] = StagePlan(
            index,
            stage.name,
            stage.origin.line,
            stage.origin.line.text,
            operations,
            reader.config.body,
            origin.stage,
            origin.image,
        )
        warnings += reader.warnings
    unused = sorted(set(args) - scope.consumed - PROXY_ARGS - {"SOURCE_DATE_EPOCH"})
    if unused:
        warnings.append(f"build arguments that no ARG declares: {', '.join(unused)}")
    return Plan(dockerfile.source, [done[index] for index in sorted(done)], warnings)


def platform_args(platform: Platform) -> dict[str, str]:
    """The ARGs that every build has. Source: Dockerfile reference, "Automatic platform ARGs in the global scope"."""
    values: dict[str, str] = {}
    for side in ("TARGET", "BUILD"):
        values[f"{side}PLATFORM"] = str(platform)
        values[f"{side}OS"] = platform.os
        values[f"{side}ARCH"] = platform.architecture
        values[f"{side}VARIANT"] = platform.variant
    return values


def _globals(dockerfile: Dockerfile, args: Mapping[str, str], platform: Platform) -> _Scope:
    scope = _Scope(args, platform_args(platform))
    for one in dockerfile.globals:
        for name, default in one.pairs:
            if name in args:
                scope.values[name] = args[name]
                scope.consumed.add(name)
            elif default is not None:
                scope.values[name] = _expand(dockerfile.source, one, scope.values, default)
    return scope


def _origin(dockerfile: Dockerfile, stage: Stage, scope: _Scope, platform: Platform) -> _Origin:
    """Say what a stage stands on."""
    source, one = dockerfile.source, stage.origin
    name = _expand(source, one, scope.values, one.args[0])
    if not name:
        raise source.invalid(
            one.line, f"FROM {one.args[0]}: the name is empty; the variable is not set before FROM", one.args[0]
        )
    wanted = one.flags.get("platform")
    if wanted is not None:
        text = _expand(source, one, scope.values, wanted)
        try:
            asked = parse_platform(text)
        except Invalid as error:
            raise source.invalid(one.line, error.message, wanted) from None
        if (asked.os, asked.architecture) != (platform.os, platform.architecture):
            raise source.unsupported(one.line, f"building for {asked} on {platform}", wanted)
    for earlier in dockerfile.stages[: stage.index]:
        if earlier.name and earlier.name == name.lower():
            return _Origin(stage=earlier.index)
    if name == "scratch":
        return _Origin()
    return _Origin(image=_image(source, one.line, name, one.args[0]))


def _image(source: Source, line: Line, name: str, at: str) -> str:
    try:
        return str(parse_name(name, "image"))
    except Invalid as error:
        raise source.invalid(line, error.message, at) from None


def _copy_from(dockerfile: Dockerfile, stage: Stage, one: Instruction) -> tuple[int, str]:
    """Say where COPY --from points: (stage index, "") or (-1, image)."""
    source, text = dockerfile.source, one.flags["from"]
    if text.isdigit():
        if int(text) >= stage.index:
            raise source.invalid(one.line, f"COPY --from={text}: there are {stage.index} stages before this one", text)
        return int(text), ""
    for other in dockerfile.stages:
        if other.name and other.name == text.lower():
            if other.index < stage.index:
                return other.index, ""
            where = "this stage itself" if other.index == stage.index else "a later stage"
            raise source.invalid(one.line, f"COPY --from={text}: that is {where}", text)
    return -1, _image(source, one.line, text, text)


def _target(dockerfile: Dockerfile, target: str) -> int:
    if not target:
        return len(dockerfile.stages) - 1
    for stage in dockerfile.stages:
        if stage.name == target.lower():
            return stage.index
    if target.isdigit() and int(target) < len(dockerfile.stages):
        return int(target)
    names = [stage.name for stage in dockerfile.stages if stage.name]
    message = f"target {target!r}: there is no such stage; there are {', '.join(names) or 'only unnamed ones'}"
    raise Invalid(message, causes=[Cause("target", "NotFound", message)])


def _needed(dockerfile: Dockerfile, origins: Sequence[_Origin], target: int) -> Sequence[int]:
    """List the stages that the target stands on or copies from, and itself, in order."""
    seen: set[int] = set()
    waiting = [target]
    while waiting:
        index = waiting.pop()
        if index in seen:
            continue
        seen.add(index)
        if origins[index].stage >= 0:
            waiting.append(origins[index].stage)
        stage = dockerfile.stages[index]
        for one in stage.instructions:
            if one.name == "COPY" and "from" in one.flags:
                other = _copy_from(dockerfile, stage, one)[0]
                if other >= 0:
                    waiting.append(other)
    return sorted(seen)


def _expand(source: Source, one: Instruction, values: Mapping[str, str], text: str) -> str:
    try:
        return Expander(values, source.escape).word(text)
    except WordError as error:
        raise source.invalid(one.line, f"{one.name} {text}: {error}", text) from None


class _StageReader:
    """Reads one stage's instructions in order, keeping its variables and config."""

    def __init__(self, dockerfile: Dockerfile, stage: Stage, scope: _Scope, config: ImageConfig) -> None:
        self.config = config
        self.warnings: list[str] = []
        self._dockerfile = dockerfile
        self._source = dockerfile.source
        self._stage = stage
        self._scope = scope
        self._args: dict[str, str] = {}

    def read(self, one: Instruction) -> Operation:
        """Turn one instruction into its operation; the config is changed on the way."""
        match one.name:
            case "RUN":
                return self._run(one)
            case "COPY":
                return self._copy(one)
            case "WORKDIR":
                return self._workdir(one)
            case "ENV" | "LABEL":
                return self._named(one)
            case "ARG":
                return self._arg(one)
            case "USER":
                user = self._expanded(one, one.args[0])
                if not user or _OWNER.fullmatch(user) is None:
                    raise self._source.invalid(
                        one.line, f"USER {user!r}: write NAME, UID, NAME:GROUP or UID:GID", one.args[0]
                    )
                self.config.set_user(user)
                return Meta(one.line, f"USER {user}")
            case "EXPOSE":
                return self._expose(one)
            case "CMD" | "ENTRYPOINT":
                argv = [*SHELL, *one.args] if one.shell else list(one.args)
                if one.name == "CMD":
                    self.config.set_command(argv)
                else:
                    self.config.set_entrypoint(argv)
                return Meta(one.line, f"{one.name} [{' '.join(_quoted(word) for word in argv)}]")
            case _:
                raise Unsupported(f"the instruction {one.name} is not supported")

    @property
    def _values(self) -> Mapping[str, str]:
        return {**self._args, **self.config.env}  # ENV always wins over ARG

    def _expanded(self, one: Instruction, text: str) -> str:
        expander = Expander(self._values, self._source.escape)
        try:
            value = expander.word(text)
        except WordError as error:
            raise self._source.invalid(one.line, f"{one.name} {text}: {error}", text) from None
        for name in sorted(expander.missing):
            self.warnings.append(f"{self._source.name}:{one.line.first}: the variable {name} is not set here")
        return value

    def _run(self, one: Instruction) -> Run:
        argv = [*SHELL, *one.args] if one.shell else list(one.args)
        env = self.config.env
        args = {name: value for name, value in self._args.items() if name not in env}
        proxies = [
            f"{name}={value}" for name, value in self._scope.args.items() if name in PROXY_ARGS and name not in args
        ]
        shown = [f"{name}={value}" for name, value in args.items() if name not in PROXY_ARGS]
        head = f"|{len(shown)} {' '.join(shown)} " if shown else ""
        return Run(
            one.line,
            f"RUN {head}{' '.join(argv)}",
            argv,
            [f"{name}={value}" for name, value in {**args, **env}.items()],
            self.config.workdir,
            self.config.user,
            proxies,
        )

    def _copy(self, one: Instruction) -> Copy:
        words = [self._expanded(one, word) for word in one.args]
        if not all(words):
            raise self._source.invalid(one.line, "COPY: a source or destination is empty; is its variable set?")
        dest = words[-1]
        if len(words) > 2 and not _is_folder(dest):
            raise self._source.invalid(
                one.line, "COPY of several sources needs a destination that ends with '/'", one.args[-1]
            )
        stage, image = _copy_from(self._dockerfile, self._stage, one) if "from" in one.flags else (-1, "")
        chown = self._expanded(one, one.flags.get("chown", ""))
        if chown and _OWNER.fullmatch(chown) is None:
            raise self._source.invalid(
                one.line, f"--chown={chown}: write USER, USER:GROUP, UID or UID:GID", one.flags["chown"]
            )
        mode_text = self._expanded(one, one.flags.get("chmod", ""))
        if mode_text and re.fullmatch(r"[0-7]{1,4}", mode_text) is None:
            if re.fullmatch(r"[ugoa]*[-+=][rwxXst]*(,.*)?", mode_text):
                raise self._source.unsupported(
                    one.line, f"--chmod={mode_text} (a symbolic mode; write it in octal)", mode_text
                )
            raise self._source.invalid(
                one.line, f"--chmod={mode_text}: write an octal mode, such as 755", one.flags["chmod"]
            )
        whole = posixpath.normpath(posixpath.join(self.config.workdir, dest))
        whole = "/" + whole.lstrip("/")
        flags = "".join(f"--{name}={value} " for name, value in one.flags.items())
        return Copy(
            one.line,
            f"COPY {flags}{' '.join(words)}",
            words[:-1],
            whole + ("/" if _is_folder(dest) and whole != "/" else ""),
            stage,
            image,
            chown,
            int(mode_text, 8) if mode_text else -1,
        )

    def _workdir(self, one: Instruction) -> Workdir:
        text = self._expanded(one, one.args[0])
        if not text:
            raise self._source.invalid(one.line, "WORKDIR: the path is empty; is its variable set?", one.args[0])
        path = "/" + posixpath.normpath(posixpath.join(self.config.workdir, text)).lstrip("/")
        self.config.set_workdir(path)
        return Workdir(one.line, f"WORKDIR {path}", path, self.config.user)

    def _named(self, one: Instruction) -> Meta:
        pairs = [(self._expanded(one, key), self._expanded(one, value or "")) for key, value in one.pairs]
        for key, value in pairs:
            if not key or (one.name == "ENV" and "=" in key):
                raise self._source.invalid(one.line, f"{one.name}: {key!r} is no name")
            if one.name == "ENV":
                self.config.set_env(key, value)
            else:
                self.config.set_label(key, value)
        return Meta(one.line, f"{one.name} {' '.join(f'{key}={value}' for key, value in pairs)}")

    def _arg(self, one: Instruction) -> Meta:
        shown: list[str] = []
        for name, default in one.pairs:
            value = self._expanded(one, default) if default is not None else None
            if name in self._scope.args:
                value = self._scope.args[name]
                self._scope.consumed.add(name)
            elif value is None:
                value = self._scope.values.get(name)
            if value is not None:
                self._args[name] = value
            shown.append(name if value is None else f"{name}={value}")
        return Meta(one.line, f"ARG {' '.join(shown)}")

    def _expose(self, one: Instruction) -> Meta:
        ports: list[str] = []
        for word in one.args:
            for text in self._expanded(one, word).split():
                found = _PORT.fullmatch(text)
                first = int(found[1]) if found else 0
                last = int(found[2]) if found and found[2] else first
                protocol = (found[3] or "tcp").lower() if found else ""
                if not 1 <= first <= last <= 65535 or protocol not in ("tcp", "udp", "sctp"):
                    message = f"EXPOSE {text}: write PORT, PORT/udp or FIRST-LAST, from 1 to 65535; tcp, udp or sctp"
                    raise self._source.invalid(one.line, message, word)
                ports += [f"{port}/{protocol}" for port in range(first, last + 1)]
        self.config.expose(ports)
        return Meta(one.line, f"EXPOSE {' '.join(ports)}")


def _is_folder(dest: str) -> bool:
    return dest.endswith(("/", "/.")) or dest in (".", "..")


def _quoted(word: str) -> str:
    return '"' + word.replace("\\", "\\\\").replace('"', '\\"') + '"'
