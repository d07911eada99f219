"""Mirrors per registry, as containerd writes them: `DIR/HOST[:PORT]/hosts.toml`, else `DIR/_default/hosts.toml`.

Source: containerd, docs/hosts.md. `server`, and for each host `capabilities`, `ca`, `client`, `skip_verify`, `header` and
`override_path`, are carried out; what else stands there is refused by name.
"""

import posixpath
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from wherry.errors import Invalid, Unsupported

_KNOWN = ("capabilities", "ca", "client", "skip_verify", "header", "override_path")
_CAPABILITIES = ("pull", "resolve", "push")


@dataclass(frozen=True, slots=True)
class Host:
    """Where an image may be had. `resolves`: tags may be asked for there, too. `origin`: the registry that the name says.

    `ca` and `client` (certificate, key or "") are files; `api` is where the paths of the registry protocol begin.
    """

    endpoint: str
    origin: bool = False
    pulls: bool = True
    resolves: bool = True
    ca: tuple[str, ...] = ()
    verify: bool = True
    client: tuple[tuple[str, str], ...] = ()
    headers: tuple[tuple[str, str], ...] = ()
    api: str = "/v2"
    pushes: bool = True

    def tls(self) -> ssl.SSLContext | None:
        """Make what TLS needs beyond the machine's own authorities; None where that is nothing. Raises Invalid."""
        if not self.ca and not self.client and self.verify:
            return None
        context = ssl.create_default_context()
        for path in self.ca:
            try:
                context.load_verify_locations(path)
            except OSError as error:
                raise Invalid(f"{self.endpoint}: ca {path}: {error.strerror or error}") from None
        for certificate, key in self.client:
            try:
                context.load_cert_chain(certificate, key or None)
            except OSError as error:
                raise Invalid(f"{self.endpoint}: client {certificate}: {error.strerror or error}") from None
        if not self.verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context


def hosts_for(directory: Path, domain: str, origin: str) -> Sequence[Host]:
    """List where to ask for an image of the registry `domain`, the mirrors first. Raises Invalid, Unsupported."""
    for name in (domain, "_default"):
        path = directory / name / "hosts.toml"
        if path.is_file():
            return parse(path.read_text(errors="replace"), path, origin)
    return [Host(origin, origin=True)]


def parse(text: str, path: Path, origin: str) -> Sequence[Host]:
    """Read a hosts.toml; relative paths in it are beside it. Raises Invalid, Unsupported."""
    import tomllib

    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise Invalid(f"{path}: {error}") from None
    hosts: Mapping[str, Any] = document.pop("host", {})
    server = document.pop("server", "") or origin
    if not isinstance(server, str) or not isinstance(hosts, dict) or not all(map(_is_table, hosts.values())):
        raise Invalid(f"{path}: server is a text, and host a table of tables")
    found = [_host(endpoint, body, path) for endpoint, body in hosts.items()]
    return [*found, replace(_host(server, document, path), origin=True)]


def _host(endpoint: str, body: Mapping[str, Any], path: Path) -> Host:
    for name in body:
        if name not in _KNOWN:
            raise Unsupported(f"{path}: {name} of {endpoint} is not supported by wherry: {', '.join(_KNOWN)} are")
    if "://" not in endpoint:
        endpoint = f"https://{endpoint}"
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.netloc or parts.query or parts.fragment:
        raise Invalid(f"{path}: {endpoint}: write http:// or https:// and a host")
    own = _flag(body, "override_path", path)
    base = posixpath.normpath(parts.path) if parts.path.strip("/") else ""
    api = base if own or base.endswith("/v2") else f"{base}/v2"
    words = _texts(body.get("capabilities", list(_CAPABILITIES)), "capabilities", path)
    for word in words:
        if word not in _CAPABILITIES:
            raise Invalid(f"{path}: capabilities: {word!r} is none of {', '.join(_CAPABILITIES)}")
    return Host(
        f"{parts.scheme}://{parts.netloc}",
        False,
        "pull" in words,
        "resolve" in words,
        tuple(str(path.parent / name) for name in _texts(body.get("ca", []), "ca", path)),
        not _flag(body, "skip_verify", path),
        tuple(_pairs(body.get("client", []), path)),
        tuple(_headers(body.get("header", {}), path)),
        api,
        "push" in words,
    )


def _flag(body: Mapping[str, Any], name: str, path: Path) -> bool:
    value = body.get(name, False)
    if not isinstance(value, bool):
        raise Invalid(f"{path}: {name}: true or false, not {value!r}")
    return value


def _texts(value: Any, name: str, path: Path) -> list[str]:
    found = [value] if isinstance(value, str) else value
    if not isinstance(found, list) or not all(isinstance(each, str) for each in found):  # pyright: ignore[reportUnknownVariableType]
        raise Invalid(f"{path}: {name}: a text or a list of texts, not {value!r}")
    return found  # pyright: ignore[reportUnknownVariableType]


def _pairs(value: Any, path: Path) -> list[tuple[str, str]]:
    """One file with certificate and key, a list of such, or a list of [certificate, key]."""
    rows: list[Any] = [value] if isinstance(value, str) else value if isinstance(value, list) else [None]
    found: list[tuple[str, str]] = []
    for row in rows:
        names = _texts(row, "client", path)
        if not 1 <= len(names) <= 2:
            raise Invalid(f"{path}: client: a file, or [certificate, key], not {row!r}")
        certificate, key = names[0], names[1] if len(names) == 2 else ""
        found.append((str(path.parent / certificate), str(path.parent / key) if key else ""))
    return found


def _headers(value: Any, path: Path) -> list[tuple[str, str]]:
    if not _is_table(value):
        raise Invalid(f"{path}: header: a table of headers, not {value!r}")
    return [(name, ", ".join(_texts(values, f"header.{name}", path))) for name, values in value.items()]


def _is_table(value: object) -> bool:
    return isinstance(value, dict)
