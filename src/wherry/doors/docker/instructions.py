"""`changes` of commit and import: Dockerfile lines that set an image's configuration."""

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from wherry.doors.docker.times import read_duration
from wherry.errors import BadRequest

_KNOWN = (
    "CMD", "ENTRYPOINT", "ENV", "EXPOSE", "HEALTHCHECK", "LABEL", "ONBUILD", "STOPSIGNAL", "USER", "VOLUME", "WORKDIR",
)  # fmt: skip
_HEALTH = {
    "interval": "Interval", "timeout": "Timeout", "start-period": "StartPeriod", "start-interval": "StartInterval",
}  # fmt: skip


def changed(config: Mapping[str, Any], lines: Sequence[str]) -> dict[str, Any]:
    """Lay instructions over an image's configuration. Raises BadRequest."""
    made = dict(config)
    for line in lines:
        word, _, rest = line.strip().partition(" ")
        name, rest = word.upper(), rest.strip()
        if name not in _KNOWN or not rest:
            raise BadRequest(f"change {line!r}: use one of {', '.join(_KNOWN)}, with a value")
        _apply(made, name, rest)
    return made


def _apply(made: dict[str, Any], name: str, rest: str) -> None:
    match name:
        case "CMD" | "ENTRYPOINT":
            made["Cmd" if name == "CMD" else "Entrypoint"] = _command(rest)
        case "ENV":
            new = _pairs(rest)
            kept = [each for each in made.get("Env") or () if each.partition("=")[0] not in new]
            made["Env"] = kept + [f"{key}={value}" for key, value in new.items()]
        case "LABEL":
            made["Labels"] = {**(made.get("Labels") or {}), **_pairs(rest)}
        case "HEALTHCHECK":
            made["Healthcheck"] = _health(rest)
        case "ONBUILD":
            made["OnBuild"] = [*(made.get("OnBuild") or ()), rest]
        case "EXPOSE":
            ports = {port if "/" in port else f"{port}/tcp": {} for port in rest.split()}
            made["ExposedPorts"] = {**(made.get("ExposedPorts") or {}), **ports}
        case "VOLUME":
            places = _list(rest) or _split(rest)
            made["Volumes"] = {**(made.get("Volumes") or {}), **{place: {} for place in places}}
        case _:
            made[{"USER": "User", "WORKDIR": "WorkingDir", "STOPSIGNAL": "StopSignal"}[name]] = rest


def _command(text: str) -> list[str]:
    return _list(text) or ["/bin/sh", "-c", text]


def _health(text: str) -> dict[str, Any]:
    """Read `NONE`, or `--OPTION=VALUE ... CMD COMMAND`. Raises BadRequest."""
    made: dict[str, Any] = {}
    while text.startswith("--"):
        option, _, text = text.partition(" ")
        name, _, value = option[2:].partition("=")
        if name == "retries" and value.isdecimal():
            made["Retries"] = int(value)
        elif name in _HEALTH:
            made[_HEALTH[name]] = int(read_duration(value, f"--{name}") * 1e9)
        else:
            raise BadRequest(f"change: HEALTHCHECK {option}: unknown option or wrong value")
        text = text.lstrip()
    kind, _, command = text.partition(" ")
    if kind.upper() == "NONE" and not command.strip() and not made:
        return {"Test": ["NONE"]}
    if kind.upper() != "CMD" or not command.strip():
        raise BadRequest(f"change: HEALTHCHECK {text!r}: write CMD with a command, or NONE")
    words = _list(command.strip())
    return made | {"Test": ["CMD", *words] if words else ["CMD-SHELL", command.strip()]}


def _list(text: str) -> list[str]:
    if not text.startswith("["):
        return []
    try:
        return msgspec.json.decode(text, type=list[str])
    except (msgspec.MsgspecError, UnicodeError):
        return []


def _pairs(text: str) -> dict[str, str]:
    words = _split(text)
    if words and "=" not in words[0]:  # the old form: one name, and the rest of the line
        key, _, value = text.partition(" ")
        return {key: value.strip()}
    pairs = [word.partition("=") for word in words]
    if any(not key or not equals for key, equals, _ in pairs):
        raise BadRequest(f"change: {text!r}: write NAME=value")
    return {key: value for key, _, value in pairs}


def _split(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        raise BadRequest(f"change: {text!r}: {error}") from None
