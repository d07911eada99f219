"""What a request is about: its path and method read as verb, kind, namespace, name and sub-resource."""

from collections.abc import Mapping
from dataclasses import dataclass

from wherry.api.errors import About
from wherry.errors import MethodNotAllowed, NotFound
from wherry.model.kinds import NAMESPACES, Kind, by_resource

_VERBS: Mapping[str, tuple[str, str]] = {
    # method: (verb on a collection, verb on one object)
    "GET": ("list", "get"),
    "HEAD": ("list", "get"),
    "POST": ("create", "create"),
    "PUT": ("update", "update"),
    "PATCH": ("patch", "patch"),
    "DELETE": ("deletecollection", "delete"),
}
_STREAMS = frozenset({"exec", "attach", "portforward"})


@dataclass(frozen=True, slots=True)
class Target:
    """One request for a resource. `verb` is the API's (list, watch, ...), `rest` what follows a sub-resource."""

    verb: str
    kind: Kind
    namespace: str = ""
    name: str = ""
    subresource: str = ""
    rest: str = ""

    @property
    def about(self) -> About:
        """For the details of a Status."""
        return About(self.kind.group, self.kind.plural, self.name)

    @property
    def resource(self) -> str:
        """The resource as rules and notes name it: `deployments/scale`."""
        return f"{self.kind.plural}/{self.subresource}" if self.subresource else self.kind.plural

    @property
    def key(self) -> str:
        """The store's key of the object."""
        return self.kind.key(self.namespace, self.name)

    def missing(self) -> NotFound:
        """The error for an object that is not there, in upstream's words."""
        return NotFound(f'{self.kind.qualified} "{self.name}" not found')


def is_resource(path: str) -> bool:
    """Say whether a path goes below a group-version, to a resource."""
    parts = path.split("/")
    return (len(parts) > 3 and parts[1] == "api" and parts[3] != "") or (
        len(parts) > 4 and parts[1] == "apis" and parts[4] != ""
    )


def read(method: str, path: str, *, watch: bool = False) -> Target:
    """Read a resource path such as /apis/apps/v1/namespaces/x/deployments/y/scale.

    Raises NotFound for a resource or sub-resource that does not exist, MethodNotAllowed for a method or verb that
    it does not have.
    """
    parts = path.strip("/").split("/")
    group, rest = ("", parts[1:]) if parts[0] == "api" else (parts[1], parts[2:])
    version, rest = rest[0], rest[1:]
    if method not in _VERBS:
        raise MethodNotAllowed(f"the server does not allow this method ({method}) on the requested resource")
    namespace, scoped = "", False
    if rest[0] == "namespaces" and group == "" and not _below_a_namespace(rest):
        kind: Kind | None = NAMESPACES
        rest = rest[1:]
    else:
        if rest[0] == "namespaces" and len(rest) > 2:
            namespace, rest, scoped = rest[1], rest[2:], True
        kind, rest = by_resource(group, version, rest[0]), rest[1:]
    if kind is None or kind.version != version or (scoped and not kind.namespaced):
        raise NotFound("the server could not find the requested resource")
    name = rest[0] if rest else ""
    subresource = rest[1] if len(rest) > 1 else ""
    collection, single = _VERBS[method]
    if kind.namespaced and not scoped and (name or method == "POST") and kind.stored:
        raise MethodNotAllowed(f"{kind.qualified} are namespaced: write /namespaces/NAMESPACE/{kind.plural}")
    if watch and method == "GET" and not subresource:
        collection = single = "watch"
    verb = single if name else collection
    target = Target(verb, kind, namespace, name, subresource, "/".join(rest[2:]))
    _check(target, method)
    if subresource in _STREAMS:
        return Target("create", kind, namespace, name, subresource)
    return target


def _check(target: Target, method: str) -> None:
    kind = target.kind
    if target.subresource:
        part = kind.subresource(target.subresource)
        if part is None or (target.rest and target.subresource != "proxy"):
            raise NotFound("the server could not find the requested resource")
        if target.verb not in part.verbs:
            raise MethodNotAllowed(f"{target.resource} does not have the method {method}")
    elif (
        target.verb not in kind.verbs
        or (target.name and target.verb == "create")
        or (not target.name and target.verb in ("update", "patch"))
    ):
        raise MethodNotAllowed(f"{kind.qualified} does not have the method {method} here")


def _below_a_namespace(rest: list[str]) -> bool:
    """Say whether /namespaces/x/WORD names a resource in it (and not the namespace's own status or finalize)."""
    return len(rest) > 2 and NAMESPACES.subresource(rest[2]) is None
