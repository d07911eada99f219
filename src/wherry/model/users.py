"""Who asks: a user of the API, as authentication found them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class User:
    """A name, its groups and what else authentication knows (`extra`)."""

    name: str
    groups: Sequence[str] = ()
    uid: str = ""
    extra: Mapping[str, Sequence[str]] = field(default_factory=dict[str, Sequence[str]])


def controller(name: str) -> User:
    """The identity that one controller acts as: `system:controller:NAME`."""
    return User(f"system:controller:{name}", ("system:controllers", "system:authenticated"))


def node(name: str) -> User:
    """The identity that a node's agent acts as: `system:node:NAME` in the group `system:nodes`."""
    return User(f"system:node:{name}", ("system:nodes", "system:authenticated"))
