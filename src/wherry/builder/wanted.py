"""What a build is asked for, and what of it cannot be."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from wherry.builder.exchange import CachePlace
from wherry.builder.running import Surroundings
from wherry.builder.squeezing import Compression
from wherry.content.names import parse_name
from wherry.content.oci import Platform
from wherry.errors import Cause, Invalid, Unsupported

SECRET_MAX_BYTES = 500 * 1024
INSECURE, NETWORK_HOST = "security.insecure", "network.host"
ENTITLEMENTS = (INSECURE, NETWORK_HOST)
_SYNTAX = re.compile(r"(?:docker\.io/)?docker/dockerfile(?:-upstream)?(?::[A-Za-z0-9_.-]+)?(?:@sha256:[0-9a-f]{64})?")


@dataclass(frozen=True, slots=True)
class Attest:
    """What is said of an image beside it: what packages it has, and how it came to be ("min" or "max", "" for not)."""

    sbom: bool = False
    provenance: str = ""
    version: str = "v0.2"
    builder_id: str = ""


@dataclass(frozen=True, slots=True)
class Wanted:
    """How to build. `contexts` are named contexts: a directory, an image name, `oci-layout://DIRECTORY[:TAG]`, or an address.

    `secrets` are values by id, `agents` sockets of SSH agents by id: they reach the steps that mount them, and nothing that is
    kept. `fresh_stages` are built without the cache. `network` is that of RUNs that name none ("": the builder's).
    `platforms`: none is the machine's; an index is made of several, and of what `attest` asks for. `alike` are images of this
    machine whose layers are taken where their history says that they are the same. `allow` are ENTITLEMENTS. `auths` are
    credentials by the address of a registry.
    """

    tags: Sequence[str] = ()
    args: Mapping[str, str] = field(default_factory=dict[str, str])
    target: str = ""
    no_cache: bool = False
    fresh_stages: Sequence[str] = ()
    labels: Mapping[str, str] = field(default_factory=dict[str, str])
    annotations: Mapping[str, str] = field(default_factory=dict[str, str])
    auths: Mapping[str, Mapping[str, str]] = field(default_factory=dict[str, Mapping[str, str]])
    pull: bool = False
    contexts: Mapping[str, Path | str] = field(default_factory=dict[str, Path | str])
    secrets: Mapping[str, bytes] = field(default_factory=dict[str, bytes])
    agents: Mapping[str, str] = field(default_factory=dict[str, str])
    network: str = ""
    platforms: Sequence[Platform] = ()
    cache_from: Sequence[CachePlace] = ()
    cache_to: Sequence[CachePlace] = ()
    alike: Sequence[str] = ()
    attest: Attest = field(default_factory=Attest)
    allow: frozenset[str] = frozenset()
    compression: Compression | None = None
    around: Surroundings = field(default_factory=Surroundings)

    def auth(self, name: str) -> Mapping[str, str] | None:
        """The credentials for the registry of an image."""
        domain = parse_name(name).domain
        for address, found in self.auths.items():
            host = re.sub(r"^https?://", "", address).partition("/")[0]
            if host == domain or (domain == "docker.io" and host in ("index.docker.io", "registry-1.docker.io")):
                return found
        return None

    @property
    def is_inline(self) -> bool:
        """Whether the image's config gets the keys of its layers."""
        by_arg = self.args.get("BUILDKIT_INLINE_CACHE", "").lower() in ("1", "true")
        return by_arg or any(each.kind == "inline" for each in self.cache_to)


def check(ask: Wanted) -> None:
    """Refuse what cannot be. Raises Invalid, Unsupported."""
    for id, value in ask.secrets.items():
        if len(value) > SECRET_MAX_BYTES:
            message = f"secret {id}: it has {len(value)} bytes; at most {SECRET_MAX_BYTES} are taken"
            raise Invalid(message, causes=[Cause("secrets", "TooLarge", message)])
    for name in sorted(ask.allow - frozenset(ENTITLEMENTS)):
        message = f"entitlement {name!r}: there are {', '.join(ENTITLEMENTS)}"
        raise Invalid(message, causes=[Cause("allow", "Invalid", message)])
    for platform in ask.platforms:
        if platform.os != "linux":
            raise Unsupported(f"platform {platform} is not supported: images are built for linux alone")
    syntax = ask.args.get("BUILDKIT_SYNTAX", "")
    if syntax and _SYNTAX.fullmatch(syntax) is None:
        raise Unsupported(f"BUILDKIT_SYNTAX={syntax} is not supported (only docker/dockerfile's own)")
    epoch_of(ask.args)


def tag_of(text: str) -> str:
    """The whole name that a tag gives. Raises Invalid."""
    name = parse_name(text, "tag")
    if name.digest is not None:
        message = f"tag {text!r}: an image is named by a tag, not by a digest"
        raise Invalid(message, causes=[Cause("tag", "InvalidName", message)])
    return str(name)


def epoch_of(args: Mapping[str, str]) -> int | None:
    """SOURCE_DATE_EPOCH, where it is set. Raises Invalid."""
    text = args.get("SOURCE_DATE_EPOCH")
    if text is None or text == "":
        return None
    if not text.isdigit():
        message = f"SOURCE_DATE_EPOCH={text!r}: seconds since 1970 are a whole number"
        raise Invalid(message, causes=[Cause("buildargs.SOURCE_DATE_EPOCH", "Invalid", message)])
    return int(text)
