"""Checks of roles and their bindings."""

from wherry.errors import Cause
from wherry.model import names
from wherry.model.checks.problems import Object, Problems, each, part

_GROUP = "rbac.authorization.k8s.io"


def role(obj: Object, old: Object | None) -> list[Cause]:
    """Check a Role."""
    found = Problems()
    _check_rules(found, obj, namespaced=True)
    return found.causes


def cluster_role(obj: Object, old: Object | None) -> list[Cause]:
    """Check a ClusterRole."""
    found = Problems()
    _check_rules(found, obj, namespaced=False)
    aggregation = obj.get("aggregationRule")
    if isinstance(aggregation, dict):
        if not aggregation.get("clusterRoleSelectors"):
            found.required(
                "aggregationRule.clusterRoleSelectors",
                "at least one clusterRoleSelector required if aggregationRule is non-nil",
            )
        for here, selector in each("aggregationRule", aggregation, "clusterRoleSelectors"):
            found.selector(here, selector)
    return found.causes


def _check_rules(found: Problems, obj: Object, *, namespaced: bool) -> None:
    for here, rule in each("", obj, "rules"):
        if not rule.get("verbs"):
            found.required(f"{here}.verbs", "verbs must contain at least one value")
        if rule.get("nonResourceURLs"):
            if namespaced:
                found.invalid(
                    f"{here}.nonResourceURLs",
                    rule["nonResourceURLs"],
                    "namespaced rules cannot apply to non-resource URLs",
                )
            if rule.get("apiGroups") or rule.get("resources") or rule.get("resourceNames"):
                found.invalid(
                    f"{here}.nonResourceURLs",
                    rule["nonResourceURLs"],
                    "rules cannot apply to both regular resources and non-resource URLs",
                )
            continue
        if not rule.get("apiGroups"):
            found.required(f"{here}.apiGroups", "resource rules must supply at least one api group")
        if not rule.get("resources"):
            found.required(f"{here}.resources", "resource rules must supply at least one resource")


def role_binding(obj: Object, old: Object | None) -> list[Cause]:
    """Check a RoleBinding."""
    return _check_binding(obj, old, ("ClusterRole", "Role"))


def cluster_role_binding(obj: Object, old: Object | None) -> list[Cause]:
    """Check a ClusterRoleBinding."""
    return _check_binding(obj, old, ("ClusterRole",))


def _check_binding(obj: Object, old: Object | None, kinds: tuple[str, ...]) -> list[Cause]:
    found = Problems()
    ref = part(obj, "roleRef")
    if ref.get("apiGroup") != _GROUP:
        found.unsupported("roleRef.apiGroup", ref.get("apiGroup") or "", (_GROUP,))
    if ref.get("kind") not in kinds:
        found.unsupported("roleRef.kind", ref.get("kind") or "", kinds)
    if not ref.get("name"):
        found.required("roleRef.name")
    else:
        found.all_invalid("roleRef.name", ref["name"], names.path_segment(ref["name"]))
    for here, subject in each("", obj, "subjects"):
        _check_subject(found, here, subject)
    if old is not None:
        found.unchanged("roleRef", ref, part(old, "roleRef"), "cannot change roleRef")
    return found.causes


def _check_subject(found: Problems, path: str, subject: Object) -> None:
    kind, group = subject.get("kind") or "", subject.get("apiGroup") or ""
    if not subject.get("name"):
        found.required(f"{path}.name")
    if kind == "ServiceAccount":
        if subject.get("name"):
            found.all_invalid(f"{path}.name", subject["name"], names.dns_subdomain(subject["name"]))
        if group:
            found.unsupported(f"{path}.apiGroup", group, ("",))
        if not subject.get("namespace"):
            found.required(f"{path}.namespace")
    elif kind in ("User", "Group"):
        if group != _GROUP:
            found.unsupported(f"{path}.apiGroup", group, (_GROUP,))
    else:
        found.unsupported(f"{path}.kind", kind, ("ServiceAccount", "User", "Group"))
