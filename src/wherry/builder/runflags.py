"""The flags of RUN: `--mount`, `--network`, `--security`. Pure. Source: Docker, "Dockerfile reference", "RUN --mount"."""

import csv
import posixpath
import re
from collections.abc import Callable, Mapping

from wherry.builder.operations import From, RunMount

_NAMES = {"dst": "target", "destination": "target", "src": "source", "ro": "readonly", "rw": "readwrite"}
_KNOWN: Mapping[str, frozenset[str]] = {
    "bind": frozenset({"target", "source", "from", "readonly", "readwrite"}),
    "cache": frozenset({"target", "source", "from", "id", "sharing", "mode", "uid", "gid", "readonly", "readwrite"}),
    "tmpfs": frozenset({"target", "size"}),
    "secret": frozenset({"target", "id", "required", "mode", "uid", "gid", "env"}),
    "ssh": frozenset({"target", "id", "required", "mode", "uid", "gid"}),
}
SHARING = ("shared", "private", "locked")
_MODES = {"secret": 0o400, "ssh": 0o600}
_SIZE = re.compile(r"(\d+)([kmgt]?)b?", re.IGNORECASE)
_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


class FlagError(Exception):
    """What is wrong with a flag; the caller knows where it stands. `at` is the part that is wrong."""

    def __init__(self, message: str, at: str = "") -> None:
        super().__init__(message)
        self.at = at


def mount_options(text: str) -> dict[str, str]:
    """Split `type=cache,target=/x,ro` into options by their long names. Raises FlagError."""
    options: dict[str, str] = {}
    for part in next(csv.reader([text])):
        name, equals, value = part.strip().partition("=")
        name = _NAMES.get(name.lower(), name.lower())
        options[name] = value if equals else ""
        if not equals and name not in ("readonly", "readwrite", "required"):
            raise FlagError(f"--mount option {part!r}: write {part}=VALUE", part)
    options.setdefault("type", "bind")
    return options


def read_mount(text: str, workdir: str, origin: Callable[[str], From]) -> RunMount:
    """Read one mount, variables already expanded; `origin` says where a `from` points. Raises FlagError."""
    options = mount_options(text)
    kind = options.pop("type")
    if kind not in _KNOWN:
        raise FlagError(f"--mount type {kind!r}: there are bind, cache, tmpfs, secret, ssh", kind)
    for name in options:
        if name not in _KNOWN[kind]:
            raise FlagError(f"--mount of type {kind} has no option {name!r}", name)
    target = options.get("target", "")
    if target:
        target = posixpath.normpath(posixpath.join(workdir, target))
    if not target and kind in ("bind", "cache", "tmpfs"):
        raise FlagError(f"--mount of type {kind} needs a target: target=/PATH", kind)
    if target in ("/", "//"):
        raise FlagError("--mount target=/ would hide the image", "target")
    id = options.get("id", "")
    if kind == "secret":
        if not id and not target:
            raise FlagError("--mount of type secret needs an id, or a target", kind)
        id = id or posixpath.basename(target)
        if not target and "env" not in options:
            target = f"/run/secrets/{id}"
    if kind == "ssh":
        id = id or "default"
        target = target or f"/run/buildkit/ssh_agent.{id}"
    if kind == "cache":
        id = id or target
    sharing = options.get("sharing", "shared")
    if sharing not in SHARING:
        raise FlagError(f"--mount sharing={sharing}: there are {', '.join(SHARING)}", sharing)
    writes, reads = _flag(options, "readwrite"), _flag(options, "readonly")
    return RunMount(
        kind,
        target,
        options.get("source", "").strip("/") if kind in ("bind", "cache") else "",
        origin(options["from"]) if options.get("from") else From(),
        reads if kind == "cache" else kind == "bind" and not writes and options.get("readonly") != "false",
        id,
        sharing,
        _octal(options.get("mode"), _MODES.get(kind, 0o755)),
        _number(options, "uid"),
        _number(options, "gid"),
        _size(options.get("size")),
        options.get("env", ""),
        _flag(options, "required"),
    )


def _flag(options: Mapping[str, str], name: str) -> bool:
    text = options.get(name)
    if text not in (None, "", "true", "false", "1", "0"):
        raise FlagError(f"--mount {name}={text}: it is true or false", text or "")
    return text in ("", "true", "1")


def _octal(text: str | None, default: int) -> int:
    if text is None:
        return default
    if re.fullmatch(r"[0-7]{1,4}", text) is None:
        raise FlagError(f"--mount mode={text}: write an octal mode, such as 0755", text)
    return int(text, 8)


def _number(options: Mapping[str, str], name: str) -> int:
    text = options.get(name, "0")
    if not text.isascii() or not text.isdigit():
        raise FlagError(f"--mount {name}={text}: it is a number", text)
    return int(text)


def _size(text: str | None) -> int:
    if text is None:
        return 0
    found = _SIZE.fullmatch(text)
    if found is None:
        raise FlagError(f"--mount size={text}: write bytes, or 64m", text)
    return int(found[1]) * _UNITS[found[2].lower()]
