"""Image names as people write them (`web`, `ghcr.io/a/b:1`, `localhost:5000/x@sha256:...`), and what they mean.

Source: the reference grammar and the normalisation rules of Docker (distribution/reference, "Grammar").
"""

import re
from dataclasses import dataclass, replace

from wherry.content.digests import parse_digest
from wherry.content.protocol import Digest
from wherry.errors import Cause, Invalid

DEFAULT_DOMAIN = "docker.io"
NAME_MAX = 255

_LABEL = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_DOMAIN = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[0-9a-fA-F:]+\])(?::[0-9]+)?")
_COMPONENT = re.compile(r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_HEX64 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class ImageName:
    """A whole image name: `docker.io` / `library/web` : `1` @ digest. At least one of tag and digest is set."""

    domain: str
    path: str
    tag: str = ""
    digest: Digest | None = None

    @property
    def repository(self) -> str:
        """Domain and path: `docker.io/library/web`."""
        return f"{self.domain}/{self.path}"

    @property
    def familiar(self) -> str:
        """The shortest text that means the same: `web:1`."""
        return f"{familiar_repository(self.repository)}{self._suffix()}"

    @property
    def reference(self) -> str:
        """What a registry is asked for: the digest where there is one, else the tag."""
        return self.digest or self.tag

    @property
    def host(self) -> str:
        """Where its registry answers (Docker Hub's API has another host than its name)."""
        return "registry-1.docker.io" if self.domain == DEFAULT_DOMAIN else self.domain

    def with_tag(self, tag: str) -> "ImageName":
        """The same repository by another tag."""
        return replace(self, tag=parse_tag(tag), digest=None)

    def with_digest(self, digest: Digest) -> "ImageName":
        """The same repository by digest alone."""
        return replace(self, tag="", digest=digest)

    def _suffix(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        return f"{tag}@{self.digest}" if self.digest else tag

    def __str__(self) -> str:
        return f"{self.repository}{self._suffix()}"


def familiar_repository(repository: str) -> str:
    """Write a repository as Docker shows it: `docker.io/library/web` is `web`."""
    for prefix in (f"{DEFAULT_DOMAIN}/library/", f"{DEFAULT_DOMAIN}/"):
        if repository.startswith(prefix):
            return repository.removeprefix(prefix)
    return repository


def parse_tag(text: str, field: str = "tag") -> str:
    """Check a tag. Raises Invalid."""
    if _TAG.fullmatch(text) is None:
        raise _invalid(
            field, f"tag {text!r}: up to 128 letters, digits, '_', '.' and '-', not beginning with '.' or '-'"
        )
    return text


def parse_repository(text: str, field: str = "name") -> str:
    """Check the path of a repository inside one registry: `a/b`; raises Invalid.

    A repository of the cluster's registry may begin with a domain, so dots and a port are taken in its first part.
    """
    if not text or len(text) > NAME_MAX:
        raise _invalid(
            field, f"repository name {text[:40]!r}: 1 to {NAME_MAX} characters are needed, this has {len(text)}"
        )
    head, slash, rest = text.partition("/")
    parts = rest.split("/") if slash and _DOMAIN.fullmatch(head) else text.split("/")
    for part in parts:
        if _COMPONENT.fullmatch(part) is None:
            raise _invalid(field, _component_problem(text, part))
    return text


def parse_name(text: str, field: str = "image") -> ImageName:
    """Read an image name and fill in what Docker fills in (domain, `library/`, tag `latest`). Raises Invalid.

    A text of 64 hex digits is refused: it would be mistaken for an image id.
    """
    if not text:
        raise _invalid(field, f"{field}: an image name is missing")
    if _HEX64.fullmatch(text):
        raise _invalid(field, f"{field} {text!r}: 64 hex digits name an image id, not a repository")
    rest, at, digest_text = text.partition("@")
    digest = parse_digest(digest_text, field) if at else None
    head, slash, path = rest.partition("/")
    if not slash or not ("." in head or ":" in head or head == "localhost" or head.lower() != head):
        domain, path = DEFAULT_DOMAIN, rest
    else:
        domain = DEFAULT_DOMAIN if head == "index.docker.io" else head
        if _DOMAIN.fullmatch(domain) is None:
            raise _invalid(field, f"{field} {text!r}: {head!r} is no host name with an optional port")
    path, colon, tag = path.partition(":")
    if colon and _TAG.fullmatch(tag) is None:
        raise _invalid(field, f"{field} {text!r}: {tag!r} is no tag (up to 128 letters, digits, '_', '.' and '-')")
    if domain == DEFAULT_DOMAIN and path and "/" not in path:
        path = f"library/{path}"
    for part in path.split("/"):
        if _COMPONENT.fullmatch(part) is None:
            raise _invalid(field, _component_problem(text, part))
    if len(domain) + 1 + len(path) > NAME_MAX:
        raise _invalid(field, f"{field} {text[:40]!r}...: a repository name has at most {NAME_MAX} characters")
    return ImageName(domain, path, tag or ("" if digest else "latest"), digest)


def cluster_repository(name: ImageName, registry_host: str = "") -> str:
    """Say which repository of the cluster's registry keeps this image.

    An image named after that registry (`REGISTRYHOST:PORT/x`) is `x` there; every other keeps its whole name, so that
    `docker.io/library/web` built here and the registry's own `web` stay apart.
    """
    return name.path if registry_host and name.domain == registry_host else name.repository


def _component_problem(text: str, part: str) -> str:
    if part != part.lower():
        return f"image name {text!r}: repository names are lower-case ({part!r} is not)"
    if not part:
        return f"image name {text!r}: a part between slashes is empty"
    return f"image name {text!r}: {part!r} is not letters and digits joined by '.', '_', '__' or '-'"


def _invalid(field: str, message: str) -> Invalid:
    return Invalid(message, causes=[Cause(field, "InvalidName", message)])
