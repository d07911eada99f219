"""Mirrors per registry, as containerd writes them: `DIR/HOST[:PORT]/hosts.toml`, else `DIR/_default/hosts.toml`.

Source: containerd, docs/hosts.md. `server`, and for each host `capabilities`, `ca`, `skip_verify`, are carried out; what
else stands there (`client`, `header`, `override_path`) is refused by name.
"""

import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wherry.errors import Invalid, Unsupported

_KNOWN = ("capabilities", "ca", "skip_verify")


@dataclass(frozen=True, slots=True)
class Host:
    """Where an image may be had. `resolves`: tags may be asked for there, too. `origin`: the registry that the name says."""

    endpoint: str
    origin: bool = False
    pulls: bool = True
    resolves: bool = True
    ca: tuple[str, ...] = ()
    verify: bool = True

    def tls(self) -> ssl.SSLContext | None:
        """Make what TLS needs beyond the machine's own authorities; None where that is nothing. Raises Invalid."""
        if not self.ca and self.verify:
            return None
        context = ssl.create_default_context()
        try:
            for path in self.ca:
                context.load_verify_locations(path)
        except OSError as error:
            raise Invalid(f"{self.endpoint}: ca {self.ca}: {error.strerror or error}") from None
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
    server = str(document.pop("server", origin))
    found = [_host(endpoint, body, path) for endpoint, body in hosts.items()]
    own = _host(server, document, path)
    return [*found, Host(own.endpoint, True, own.pulls, own.resolves, own.ca, own.verify)]


def _host(endpoint: str, body: Mapping[str, Any], path: Path) -> Host:
    for name in body:
        if name not in _KNOWN:
            raise Unsupported(f"{path}: {name} of {endpoint} is not supported by wherry: {', '.join(_KNOWN)} are")
    endpoint = endpoint.rstrip("/")
    if "://" not in endpoint:
        endpoint = f"https://{endpoint}"
    if not endpoint.startswith(("http://", "https://")):
        raise Invalid(f"{path}: {endpoint}: write http:// or https://")
    if endpoint.partition("://")[2].count("/"):
        raise Unsupported(f"{path}: {endpoint}: a path in the address of a mirror is not supported by wherry")
    words = body.get("capabilities", ["pull", "resolve", "push"])
    files = body.get("ca", [])
    names = [files] if isinstance(files, str) else list(files)
    ca = tuple(str(path.parent / name) for name in names)
    return Host(endpoint, False, "pull" in words, "resolve" in words, ca, not body.get("skip_verify"))
