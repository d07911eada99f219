"""Reading one stage: its instructions in order, its variables and config, to operations. Pure.

Source: Docker, "Dockerfile reference", the section of each instruction; "Scope", "Predefined ARGs".
"""

import posixpath
import re
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from wherry.builder.checks import Finding
from wherry.builder.config import ImageConfig
from wherry.builder.durations import parse_duration_ns
from wherry.builder.gitnames import parse_git
from wherry.builder.instructions import Instruction
from wherry.builder.modes import Mode, parse_mode
from wherry.builder.operations import Copy, From, Meta, Operation, Run, RunMount, Workdir, is_git, is_url
from wherry.builder.runflags import FlagError, read_mount
from wherry.builder.source import Source
from wherry.builder.words import Expander, WordError
from wherry.content.names import parse_name
from wherry.errors import Invalid, Unsupported

PROXY_ARGS = frozenset(
    name
    for text in ("HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "NO_PROXY", "ALL_PROXY")
    for name in (text, text.lower())
)
"""ARGs that RUN sees undeclared, and that neither keys nor history know."""
_PORT = re.compile(r"(?:(?:\d+\.\d+\.\d+\.\d+:)?\d*:)?(\d{1,5})(?:-(\d{1,5}))?(?:/([A-Za-z]+))?")
_OWNER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(?::[A-Za-z0-9_][A-Za-z0-9_.-]*)?")
_COMMIT = re.compile(r"[0-9a-f]{7,64}")
_CHECKSUM = re.compile(r"sha256:[0-9a-f]{64}|sha384:[0-9a-f]{96}|sha512:[0-9a-f]{128}")


@dataclass(slots=True)
class Scope:
    """The variables of the whole file, before any stage."""

    args: Mapping[str, str]
    values: dict[str, str] = field(default_factory=dict[str, str])
    automatic: frozenset[str] = frozenset()
    declared: set[str] = field(default_factory=set[str])
    consumed: set[str] = field(default_factory=set[str])
    findings: list[Finding] = field(default_factory=list[Finding])
    insecure: bool = False

    def base_name(self, source: Source, one: Instruction) -> str:
        """The name in a FROM. Raises Invalid."""
        expander = Expander(self.values, source.escape)
        try:
            name = expander.word(one.args[0])
        except WordError as error:
            raise source.invalid(one.line, f"FROM {one.args[0]}: {error}", one.args[0]) from None
        for missing in sorted(expander.missing - self.declared):
            text = f"FROM uses {missing!r}, which no ARG before it declares"
            self.findings.append(Finding("UndefinedArgInFrom", one.line.first, text))
        if expander.used & self.args.keys() or expander.missing & self.declared:
            defaults = Expander({key: self.values[key] for key in self.values if key not in self.args}, source.escape)
            if not _is_name(defaults, one.args[0]):
                text = f"with the defaults of its ARGs, {one.args[0]} is no image name"
                self.findings.append(Finding("InvalidDefaultArgInFrom", one.line.first, text))
        return name


def expand(source: Source, one: Instruction, values: Mapping[str, str], text: str) -> str:
    """Expand one word. Raises Invalid that points at it."""
    try:
        return Expander(values, source.escape).word(text)
    except WordError as error:
        raise source.invalid(one.line, f"{one.name} {text}: {error}", text) from None


class StageReader:
    """Reads one stage's instructions in order. `origin` says where a `from` of an instruction points."""

    def __init__(
        self, source: Source, scope: Scope, config: ImageConfig, origin: Callable[[Instruction, str], From]
    ) -> None:
        self.config = config
        self.findings: list[Finding] = []
        self._source = source
        self._scope = scope
        self._origin = origin
        self._args: dict[str, str] = {}

    def read(self, one: Instruction) -> Operation:
        """Turn one instruction into its operation; the config is changed on the way."""
        match one.name:
            case "RUN":
                return self._run(one)
            case "COPY" | "ADD":
                return self._copy(one)
            case "WORKDIR":
                return self._workdir(one)
            case "ENV" | "LABEL":
                return self._named(one)
            case "ARG":
                return self._arg(one)
            case "EXPOSE":
                return self._expose(one)
            case "HEALTHCHECK":
                return self._health(one)
            case "USER" | "STOPSIGNAL" | "MAINTAINER":
                return self._one_word(one)
            case "CMD" | "ENTRYPOINT":
                argv = [*self.config.shell, *one.args] if one.shell else list(one.args)
                if one.name == "CMD":
                    self.config.set_command(argv)
                else:
                    self.config.set_entrypoint(argv)
                return Meta(one.line, f"{one.name} [{' '.join(_quoted(word) for word in argv)}]")
            case "SHELL":
                self.config.set_shell(one.args)
                return Meta(one.line, f"SHELL [{' '.join(_quoted(word) for word in one.args)}]")
            case "VOLUME":
                paths = [self._expanded(one, word) for word in one.args]
                if not all(paths):
                    raise self._source.invalid(one.line, "VOLUME: a path is empty; is its variable set?")
                self.config.add_volumes(paths)
                return Meta(one.line, f"VOLUME [{' '.join(paths)}]")
            case "ONBUILD":
                self.config.add_trigger(one.rest)
                return Meta(one.line, f"ONBUILD {one.rest}")
            case _:
                raise Unsupported(f"the instruction {one.name} is not supported")

    @property
    def _values(self) -> Mapping[str, str]:
        return {**self._args, **self.config.env}  # ENV always wins over ARG

    def _expanded(self, one: Instruction, text: str, *, whole: bool = False) -> str:
        expander = Expander(self._values, self._source.escape)
        try:
            value = expander.text(text) if whole else expander.word(text)
        except WordError as error:
            shown = one.name if whole else f"{one.name} {text}"
            raise self._source.invalid(one.line, f"{shown}: {error}", text) from None
        for name in sorted(expander.missing):
            self.findings.append(Finding("UndefinedVar", one.line.first, f"the variable {name} is not set here"))
        return value

    def _one_word(self, one: Instruction) -> Meta:
        text = one.args[0] if one.name == "MAINTAINER" else self._expanded(one, one.args[0])
        match one.name:
            case "USER":
                if not text or _OWNER.fullmatch(text) is None:
                    message = f"USER {text!r}: write NAME, UID, NAME:GROUP or UID:GID"
                    raise self._source.invalid(one.line, message, one.args[0])
                self.config.set_user(text)
            case "STOPSIGNAL":
                if not _is_signal(text):
                    message = f"STOPSIGNAL {text!r}: write a signal's name or number, such as SIGTERM or 15"
                    raise self._source.invalid(one.line, message, one.args[0])
                self.config.set_stop_signal(text)
            case _:
                self.config.author = text
        return Meta(one.line, f"{one.name} {text}")

    def _run(self, one: Instruction) -> Run:
        argv, script = self._command(one)
        env = self.config.env
        args = {name: value for name, value in self._args.items() if name not in env}
        proxies = [
            f"{name}={value}" for name, value in self._scope.args.items() if name in PROXY_ARGS and name not in args
        ]
        shown = [f"{name}={value}" for name, value in args.items() if name not in PROXY_ARGS]
        head = f"|{len(shown)} {' '.join(shown)} " if shown else ""
        network, security = one.flags.get("network", "default"), one.flags.get("security", "sandbox")
        if network not in ("default", "none", "host"):
            message = f"RUN --network={network}: there are default, none, host"
            raise self._source.invalid(one.line, message, network)
        if security == "insecure" and not self._scope.insecure:
            feature = "RUN --security=insecure without the build's --allow security.insecure"
            raise self._source.unsupported(one.line, feature, security)
        if security not in ("sandbox", "insecure"):
            raise self._source.invalid(one.line, f"RUN --security={security}: there are sandbox, insecure", security)
        return Run(
            one.line,
            f"RUN {head}{' '.join(argv) if script is None else f'<<{script[0]} ({script[1].strip()})'}",
            argv,
            [f"{name}={value}" for name, value in {**args, **env}.items()],
            self.config.workdir,
            self.config.user,
            proxies,
            [self._mount(one, text) for text in one.repeated.get("mount", ())],
            "" if network == "default" else network,
            script,
            security == "insecure",
        )

    def _command(self, one: Instruction) -> tuple[list[str], tuple[str, str] | None]:
        """The argument vector of a RUN, and the file that it runs when a heredoc begins with `#!`."""
        if not one.shell:
            return list(one.args), None
        if len(one.heredocs) == 1 and one.rest == one.heredocs[0].word:
            body = one.heredocs[0]
            if body.text.startswith("#!"):
                return [f"/dev/pipes/{body.name}"], (body.name, body.text)
            return [*self.config.shell, body.text], None
        text = one.args[0]
        for body in one.heredocs:
            text += f"\n{body.text}{body.name}"
        return [*self.config.shell, text + ("\n" if one.heredocs else "")], None

    def _mount(self, one: Instruction, text: str) -> RunMount:
        try:
            return read_mount(self._expanded(one, text), self.config.workdir, lambda name: self._origin(one, name))
        except FlagError as error:
            raise self._source.invalid(one.line, f"RUN {error}", error.at) from None

    def _copy(self, one: Instruction) -> Copy:
        inline = {body.word: body for body in one.heredocs}
        words = [word if word in inline else self._expanded(one, word) for word in one.args]
        if not all(words):
            raise self._source.invalid(one.line, f"{one.name}: a source or destination is empty; is its variable set?")
        sources, dest = words[:-1], words[-1]
        if len(words) > 2 and not _is_folder(dest):
            message = f"{one.name} of several sources needs a destination that ends with '/'"
            raise self._source.invalid(one.line, message, one.args[-1])
        checksum = self._expanded(one, one.flags.get("checksum", ""))
        self._check_remote(one, sources, checksum)
        chown = self._expanded(one, one.flags.get("chown", ""))
        if chown and _OWNER.fullmatch(chown) is None:
            message = f"--chown={chown}: write USER, USER:GROUP, UID or UID:GID"
            raise self._source.invalid(one.line, message, one.flags["chown"])
        mode = self._expanded(one, one.flags.get("chmod", ""))
        try:
            chmod = parse_mode(mode) if mode else Mode()
        except ValueError as error:
            raise self._source.invalid(one.line, f"--chmod={mode}: {error}", one.flags["chmod"]) from None
        whole = "/" + posixpath.normpath(posixpath.join(self.config.workdir, dest)).lstrip("/")
        flags = "".join(f"--{name}={value} " for name, value in one.flags.items())
        flags += "".join(f"--{name}={value} " for name, values in one.repeated.items() for value in values)
        unpack = one.flags.get("unpack")
        return Copy(
            one.line,
            f"{one.name} {flags}{' '.join(words)}",
            sources,
            whole + ("/" if _is_folder(dest) and whole != "/" else ""),
            self._origin(one, one.flags["from"]) if "from" in one.flags else From(),
            chown,
            chmod,
            one.flags.get("link") == "true",
            one.flags.get("parents") == "true",
            [self._expanded(one, text) for text in one.repeated.get("exclude", ())],
            {
                word: (body.name, self._expanded(one, body.text, whole=True) if body.expand else body.text)
                for word, body in inline.items()
            },
            one.name == "ADD",
            None if unpack is None else unpack == "true",
            checksum,
            one.flags.get("keep-git-dir") == "true",
        )

    def _check_remote(self, one: Instruction, sources: Sequence[str], checksum: str) -> None:
        for text in sources:
            if one.name == "ADD" and is_git(text):
                self._check_git(one, text)
            elif "keep-git-dir" in one.flags:
                raise self._source.invalid(one.line, f"--keep-git-dir: {text} is no git repository", "--keep-git-dir")
            if one.name == "COPY" and is_url(text):
                raise self._source.invalid(one.line, f"COPY {text}: only ADD takes a URL", text)
        if not checksum:
            return
        if len(sources) == 1 and is_git(sources[0]):
            if _COMMIT.fullmatch(checksum) is None:
                message = f"--checksum={checksum}: of a repository it is a commit, 7 to 64 hex digits"
                raise self._source.invalid(one.line, message, one.flags["checksum"])
            return
        if _CHECKSUM.fullmatch(checksum) is None:
            raise self._source.invalid(one.line, f"--checksum={checksum}: write sha256:HEX", one.flags["checksum"])
        if len(sources) != 1 or not is_url(sources[0]):
            raise self._source.invalid(
                one.line, "--checksum is for one source that is a URL or a git repository", "--checksum"
            )

    def _check_git(self, one: Instruction, text: str) -> None:
        if text.startswith("file:"):
            message = f"ADD {text}: a repository of the builder's machine is no part of the build; give it as a context"
            raise self._source.invalid(one.line, message, text)
        try:
            parse_git(text)
        except Invalid as error:
            raise self._source.invalid(one.line, f"ADD: {error.message}", text) from None

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
            hidden = value is None or name in PROXY_ARGS
            shown.append(name if hidden else f"{name}={value}")
        return Meta(one.line, f"ARG {' '.join(shown)}")

    def _expose(self, one: Instruction) -> Meta:
        ports: list[str] = []
        for word in one.args:
            for text in self._expanded(one, word).split():
                found = _PORT.fullmatch(text)
                first = int(found[1]) if found else 0
                last = int(found[2]) if found and found[2] else first
                protocol = (found[3] or "tcp") if found else ""
                if not 1 <= first <= last <= 65535 or protocol.lower() not in ("tcp", "udp", "sctp"):
                    message = f"EXPOSE {text}: write PORT, PORT/udp or FIRST-LAST, from 1 to 65535; tcp, udp or sctp"
                    raise self._source.invalid(one.line, message, word)
                if ":" in text:
                    said = f"EXPOSE {text}: the container's port alone is taken"
                    self.findings.append(Finding("ExposeInvalidFormat", one.line.first, said))
                if protocol != protocol.lower():
                    said = f"EXPOSE {text}: the protocol should be lower case"
                    self.findings.append(Finding("ExposeProtoCasing", one.line.first, said))
                ports += [f"{port}/{protocol.lower()}" for port in range(first, last + 1)]
        self.config.expose(ports)
        return Meta(one.line, f"EXPOSE {' '.join(ports)}")

    def _health(self, one: Instruction) -> Meta:
        if not one.args:
            self.config.set_health({"Test": ["NONE"]})
            return Meta(one.line, "HEALTHCHECK NONE")
        check: dict[str, Any] = {"Test": ["CMD-SHELL" if one.shell else "CMD", *one.args]}
        for flag, key in (
            ("interval", "Interval"), ("timeout", "Timeout"), ("start-period", "StartPeriod"),
            ("start-interval", "StartInterval"),
        ):  # fmt: skip
            if flag in one.flags:
                check[key] = self._duration(one, flag)
        if "retries" in one.flags:
            retries = self._expanded(one, one.flags["retries"])
            if not retries.isdigit() or int(retries) < 1:
                raise self._source.invalid(
                    one.line, f"--retries={retries}: it is a number from 1", one.flags["retries"]
                )
            check["Retries"] = int(retries)
        self.config.set_health(check)
        flags = "".join(f"--{name}={value} " for name, value in one.flags.items())
        return Meta(one.line, f"HEALTHCHECK {flags}CMD {' '.join(one.args)}")

    def _duration(self, one: Instruction, flag: str) -> int:
        text = self._expanded(one, one.flags[flag])
        try:
            value = parse_duration_ns(text)
        except ValueError as error:
            raise self._source.invalid(one.line, f"--{flag}={text}: {error}", one.flags[flag]) from None
        if 0 < value < 1_000_000:
            raise self._source.invalid(one.line, f"--{flag}={text}: at least 1ms", one.flags[flag])
        return value


def _is_folder(dest: str) -> bool:
    return dest.endswith(("/", "/.")) or dest in (".", "..")


def _is_name(expander: Expander, text: str) -> bool:
    try:
        parse_name(expander.word(text))
    except (WordError, Invalid):
        return False
    return True


def _is_signal(text: str) -> bool:
    if text.isdigit():
        return 1 <= int(text) <= 64
    name = text.upper().removeprefix("SIG")
    return f"SIG{name}" in signal.Signals.__members__ or re.fullmatch(r"RTM(IN\+\d{1,2}|AX-\d{1,2})", name) is not None


def _quoted(word: str) -> str:
    return '"' + word.replace("\\", "\\\\").replace('"', '\\"') + '"'
