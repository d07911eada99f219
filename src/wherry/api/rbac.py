"""Role-based access control as plain values: which rules allow what, and which rules cover which others.

Pure. `authorize` feeds it from the cluster's roles and bindings. Source: Kubernetes, "Using RBAC Authorization".
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from wherry.model.users import User


class Rule(msgspec.Struct, frozen=True, rename="camel"):
    """One rule of a role. `*` stands for all; no resource names mean any name."""

    verbs: tuple[str, ...] = ()
    api_groups: tuple[str, ...] = ()
    resources: tuple[str, ...] = ()
    resource_names: tuple[str, ...] = ()
    non_resource_urls: tuple[str, ...] = msgspec.field(default=(), name="nonResourceURLs")


class Subject(msgspec.Struct, frozen=True, rename="camel"):
    """Whom a binding is for: a User, a Group or a ServiceAccount."""

    kind: str = ""
    name: str = ""
    namespace: str = ""


class RoleRef(msgspec.Struct, frozen=True, rename="camel"):
    """Which role a binding grants."""

    kind: str = ""
    name: str = ""


@dataclass(frozen=True, slots=True)
class Ask:
    """May somebody do this? Either a resource (`resource` with its sub-resource: `pods/log`), or a `path`."""

    verb: str
    group: str = ""
    resource: str = ""
    namespace: str = ""
    name: str = ""
    path: str = ""
    fields: Mapping[str, str] = field(default_factory=dict[str, str], compare=False)
    """Field selector terms `path=value`, for rules about selections."""


@dataclass(frozen=True, slots=True)
class Binding:
    """A role granted: `namespace` is "" for a cluster-wide binding. `label` tells of it in reasons."""

    namespace: str
    subjects: tuple[Subject, ...]
    rules: tuple[Rule, ...]
    label: str


def allows(rule: Rule, ask: Ask) -> bool:
    """Say whether one rule allows what is asked."""
    if not _has(rule.verbs, ask.verb):
        return False
    if ask.path:
        return any(_url_matches(url, ask.path) for url in rule.non_resource_urls)
    return (
        _has(rule.api_groups, ask.group)
        and _resource_matches(rule.resources, ask.resource)
        and (not rule.resource_names or (ask.name != "" and ask.name in rule.resource_names))
    )


def is_for(subject: Subject, user: User, namespace: str) -> bool:
    """Say whether a binding's subject (of a binding in `namespace`) is the user or one of their groups."""
    match subject.kind:
        case "User":
            return subject.name == user.name
        case "Group":
            return subject.name in user.groups
        case "ServiceAccount":
            return user.name == f"system:serviceaccount:{subject.namespace or namespace}:{subject.name}"
        case _:
            return False


def rules_of(bindings: Iterable[Binding], user: User, namespace: str) -> list[tuple[Binding, Sequence[Rule]]]:
    """Everything granted to a user in a namespace, with the binding that grants it; "" asks for cluster-wide grants."""
    return [
        (binding, binding.rules)
        for binding in bindings
        if binding.namespace in ("", namespace)
        and any(is_for(subject, user, binding.namespace) for subject in binding.subjects)
    ]


def missing(held: Sequence[Rule], wanted: Iterable[Rule]) -> list[Rule]:
    """The smallest parts of `wanted` that `held` does not cover: nobody may grant more than they have.

    Each wanted rule is taken apart into one verb on one resource (or URL, or name); each part must be covered by one
    held rule, as upstream does it.
    """
    return [part for rule in wanted for part in _parts(rule) if not any(_covers(own, part) for own in held)]


def describe(rule: Rule) -> str:
    """A rule in the words of upstream's escalation message."""
    pairs = (
        ("APIGroups", rule.api_groups),
        ("Resources", rule.resources),
        ("ResourceNames", rule.resource_names),
        ("NonResourceURLs", rule.non_resource_urls),
        ("Verbs", rule.verbs),
    )
    return "{" + ", ".join(f"{key}:{list(values)}".replace("'", '"') for key, values in pairs if values) + "}"


def _parts(rule: Rule) -> Iterable[Rule]:
    for verb in rule.verbs:
        for url in rule.non_resource_urls:
            yield Rule(verbs=(verb,), non_resource_urls=(url,))
        for group in rule.api_groups:
            for resource in rule.resources:
                for name in rule.resource_names or ("",):
                    yield Rule((verb,), (group,), (resource,), (name,) if name else ())


def _covers(own: Rule, part: Rule) -> bool:
    if not _has(own.verbs, part.verbs[0]):
        return False
    if part.non_resource_urls:
        return any(_url_covers(url, part.non_resource_urls[0]) for url in own.non_resource_urls)
    if not _has(own.api_groups, part.api_groups[0]) or not _resource_matches(own.resources, part.resources[0]):
        return False
    if not own.resource_names:
        return True
    return bool(part.resource_names) and part.resource_names[0] in own.resource_names


def _has(values: Sequence[str], wanted: str) -> bool:
    return wanted in values or "*" in values


def _resource_matches(resources: Sequence[str], wanted: str) -> bool:
    if wanted in resources or "*" in resources:
        return True
    _, slash, subresource = wanted.partition("/")
    return bool(slash) and f"*/{subresource}" in resources


def _url_matches(pattern: str, path: str) -> bool:
    return pattern in ("*", path) or (pattern.endswith("*") and path.startswith(pattern[:-1]))


def _url_covers(own: str, wanted: str) -> bool:
    return own in ("*", wanted) or (own.endswith("*") and wanted.rstrip("*").startswith(own[:-1]))
