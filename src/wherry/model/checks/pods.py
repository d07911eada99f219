"""Checks of pods, and of the specs of pods in templates."""

from typing import Any

from wherry.errors import Cause
from wherry.model import names
from wherry.model.checks import metadata, problems
from wherry.model.checks.containers import check_containers, check_resources
from wherry.model.checks.problems import Object, Problems, each, part
from wherry.model.checks.volumes import check_volumes

RESTART = ("Always", "OnFailure", "Never")
_DNS = ("ClusterFirstWithHostNet", "ClusterFirst", "Default", "None")
_EFFECTS = ("NoSchedule", "PreferNoSchedule", "NoExecute")
_NODE_OPERATORS = ("In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt")
_SPREAD = ("DoNotSchedule", "ScheduleAnyway")
_NO_BOUND = 2**31 - 1
_UPDATES = (
    "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,"
    "`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),"
    "`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)"
)


def check(obj: Object, old: Object | None) -> list[Cause]:
    """Check a Pod; an update may change next to nothing of its spec."""
    found = Problems()
    check_spec(found, "spec", part(obj, "spec"))
    if old is not None:
        _check_update(found, part(obj, "spec"), part(old, "spec"))
    return found.causes


def check_ephemeral(obj: Object, old: Object) -> list[Cause]:
    """Check a Pod written by its sub-resource `ephemeralcontainers`: these may only be added."""
    found = Problems()
    spec, before = part(obj, "spec"), part(old, "spec")
    check_spec(found, "spec", spec)
    kept: dict[str, Any] = {one.get("name", ""): one for one in spec.get("ephemeralContainers") or ()}
    for one in before.get("ephemeralContainers") or ():
        now = kept.get(one.get("name", ""))
        if now is None:
            found.forbidden(
                "spec.ephemeralContainers", f'existing ephemeral containers "{one.get("name")}" may not be removed'
            )
        elif now != one:
            found.forbidden(
                "spec.ephemeralContainers", f'existing ephemeral containers "{one.get("name")}" may not be changed'
            )
    without = "ephemeralContainers"
    if {**spec, without: None} != {**before, without: None}:
        found.forbidden("spec", "only ephemeralContainers may be changed here")
    return found.causes


def check_template(found: Problems, path: str, template: Object) -> None:
    """Check a template of pods: `path` is its own."""
    metadata.check_template(found, f"{path}.metadata", part(template, "metadata"))
    check_spec(found, f"{path}.spec", part(template, "spec"))
    if part(template, "spec").get("ephemeralContainers"):
        found.forbidden(f"{path}.spec.ephemeralContainers", "ephemeral containers not allowed in pod template")


def check_spec(found: Problems, path: str, spec: Object) -> None:
    """Check the spec of a pod or of a template."""
    volumes = check_volumes(found, path, spec)
    check_containers(found, path, spec, volumes)
    found.one_of(f"{path}.restartPolicy", spec.get("restartPolicy"), RESTART)
    found.one_of(f"{path}.dnsPolicy", spec.get("dnsPolicy"), _DNS)
    if spec.get("dnsPolicy") == "None" and not part(spec, "dnsConfig").get("nameservers"):
        found.required(
            f"{path}.dnsConfig.nameservers", "must provide at least one DNS nameserver when `dnsPolicy` is None"
        )
    found.not_negative(path, spec, "terminationGracePeriodSeconds")
    deadline_s = spec.get("activeDeadlineSeconds")
    if deadline_s is not None and not 1 <= deadline_s <= _NO_BOUND:
        found.invalid(f"{path}.activeDeadlineSeconds", deadline_s, f"must be between 1 and {_NO_BOUND}, inclusive")
    found.labels(f"{path}.nodeSelector", spec.get("nodeSelector"))
    for field, rule in (
        ("nodeName", names.dns_subdomain),
        ("serviceAccountName", names.dns_subdomain),
        ("priorityClassName", names.dns_subdomain),
        ("runtimeClassName", names.dns_subdomain),
        ("hostname", names.dns_label),
        ("subdomain", names.dns_label),
    ):
        if spec.get(field):
            found.all_invalid(f"{path}.{field}", spec[field], rule(spec[field]))
    for here, secret in each(path, spec, "imagePullSecrets"):
        if not secret.get("name"):
            found.required(f"{here}.name")
    for here, alias in each(path, spec, "hostAliases"):
        found.all_invalid(f"{here}.ip", alias.get("ip") or "", names.address(alias.get("ip") or ""))
        for host in alias.get("hostnames") or ():
            found.all_invalid(f"{here}.hostnames", host, names.dns_subdomain(host))
    check_tolerations(found, path, spec)
    _check_affinity(found, f"{path}.affinity", part(spec, "affinity"))
    _check_spread(found, path, spec)
    check_resources(found, f"{path}.resources", part(spec, "resources"))


def check_tolerations(found: Problems, path: str, spec: Object) -> None:
    """Check tolerations."""
    for here, one in each(path, spec, "tolerations"):
        key, operator, effect = one.get("key") or "", one.get("operator") or "Equal", one.get("effect") or ""
        if key:
            found.all_invalid(f"{here}.key", key, names.qualified_name(key))
        elif operator != "Exists":
            found.invalid(
                f"{here}.operator",
                one.get("operator") or "",
                'operator must be Exists when `key` is empty, which means "match all values and all keys"',
            )
        if operator == "Exists" and one.get("value"):
            found.invalid(f"{here}.operator", one, "value must be empty when `operator` is 'Exists'")
        elif operator == "Equal":
            found.all_invalid(f"{here}.operator", one.get("value") or "", names.label_value(one.get("value") or ""))
        elif operator not in ("Equal", "Exists", "Gt", "Lt"):
            found.unsupported(f"{here}.operator", operator, ("Equal", "Exists"))
        found.one_of(f"{here}.effect", effect, _EFFECTS, required=False)
        if one.get("tolerationSeconds") is not None and effect != "NoExecute":
            found.invalid(f"{here}.effect", effect, "effect must be 'NoExecute' when `tolerationSeconds` is set")


def check_node_selector(found: Problems, path: str, selector: Object) -> None:
    """Check a selector of nodes by terms."""
    if not selector.get("nodeSelectorTerms"):
        found.required(f"{path}.nodeSelectorTerms", "must have at least one node selector term")
    for here, term in each(path, selector, "nodeSelectorTerms"):
        check_node_term(found, here, term)


def check_node_term(found: Problems, path: str, term: Object) -> None:
    """Check one term of a selector of nodes."""
    for name in ("matchExpressions", "matchFields"):
        for here, one in each(path, term, name):
            operator, values = one.get("operator") or "", one.get("values") or ()
            if operator not in _NODE_OPERATORS:
                found.invalid(f"{here}.operator", operator, "not a valid selector operator")
            elif operator in ("In", "NotIn") and not values:
                found.required(f"{here}.values", "must be specified when `operator` is 'In' or 'NotIn'")
            elif operator in ("Exists", "DoesNotExist") and values:
                found.forbidden(f"{here}.values", "may not be specified when `operator` is 'Exists' or 'DoesNotExist'")
            elif operator in ("Gt", "Lt") and len(values) != 1:
                found.required(f"{here}.values", "must be specified single value when `operator` is 'Lt' or 'Gt'")
            if name == "matchExpressions":
                found.all_invalid(f"{here}.key", one.get("key") or "", names.qualified_name(one.get("key") or ""))
            elif one.get("key") != "metadata.name":
                found.invalid(f"{here}.key", one.get("key") or "", "not a valid field selector key")


def _check_affinity(found: Problems, path: str, affinity: Object) -> None:
    node = part(affinity, "nodeAffinity")
    required = node.get("requiredDuringSchedulingIgnoredDuringExecution")
    if isinstance(required, dict):
        check_node_selector(found, f"{path}.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution", required)
    for here, one in each(f"{path}.nodeAffinity", node, "preferredDuringSchedulingIgnoredDuringExecution"):
        _check_weight(found, here, one)
        check_node_term(found, f"{here}.preference", part(one, "preference"))
    for kind in ("podAffinity", "podAntiAffinity"):
        inner = part(affinity, kind)
        for here, term in each(f"{path}.{kind}", inner, "requiredDuringSchedulingIgnoredDuringExecution"):
            _check_pod_term(found, here, term)
        for here, one in each(f"{path}.{kind}", inner, "preferredDuringSchedulingIgnoredDuringExecution"):
            _check_weight(found, here, one)
            _check_pod_term(found, f"{here}.podAffinityTerm", part(one, "podAffinityTerm"))


def _check_weight(found: Problems, path: str, one: Object) -> None:
    weight = one.get("weight") or 0
    if not 1 <= weight <= 100:
        found.invalid(f"{path}.weight", weight, "must be in the range 1-100")


def _check_pod_term(found: Problems, path: str, term: Object) -> None:
    found.selector(f"{path}.labelSelector", term.get("labelSelector"))
    found.selector(f"{path}.namespaceSelector", term.get("namespaceSelector"))
    key = term.get("topologyKey") or ""
    if not key:
        found.required(f"{path}.topologyKey", "can not be empty")
    else:
        found.all_invalid(f"{path}.topologyKey", key, names.qualified_name(key))


def _check_spread(found: Problems, path: str, spec: Object) -> None:
    seen: set[tuple[Any, Any]] = set()
    for here, one in each(path, spec, "topologySpreadConstraints"):
        skew, key, action = one.get("maxSkew") or 0, one.get("topologyKey") or "", one.get("whenUnsatisfiable")
        if skew <= 0:
            found.invalid(f"{here}.maxSkew", skew, problems.POSITIVE)
        if not key:
            found.required(f"{here}.topologyKey", "can not be empty")
        else:
            found.all_invalid(f"{here}.topologyKey", key, names.qualified_name(key))
        found.one_of(f"{here}.whenUnsatisfiable", action, _SPREAD)
        if (key, action) in seen:
            found.duplicate(f"{here}.{{topologyKey, whenUnsatisfiable}}", f"{{{key}, {action}}}")
        seen.add((key, action))
        found.selector(f"{here}.labelSelector", one.get("labelSelector"))


def _check_update(found: Problems, spec: Object, old: Object) -> None:
    for field in ("containers", "initContainers"):
        if len(spec.get(field) or ()) != len(old.get(field) or ()):
            found.forbidden(f"spec.{field}", "pod updates may not add or remove containers")
            return
    deadline_s, before_s = spec.get("activeDeadlineSeconds"), old.get("activeDeadlineSeconds")
    if before_s is not None and (deadline_s is None or deadline_s > before_s):
        if deadline_s is None:
            found.invalid("spec.activeDeadlineSeconds", None, "must not update from a positive integer to nil value")
        else:
            found.invalid(
                "spec.activeDeadlineSeconds", deadline_s, f"must be less than or equal to previous value {before_s}"
            )
        return
    kept = [one for one in old.get("tolerations") or () if one not in (spec.get("tolerations") or ())]
    if kept:
        found.forbidden("spec.tolerations", "existing toleration can not be modified except its tolerationSeconds")
        return
    if _fixed(spec) != _fixed(old):
        found.forbidden("spec", _UPDATES)


def _fixed(spec: Object) -> Object:
    """What of a pod's spec no update may change."""
    fixed = {
        name: value
        for name, value in spec.items()
        if name not in ("activeDeadlineSeconds", "tolerations", "schedulingGates") and value not in (None, [], {}, "")
    }
    grace_s = spec.get("terminationGracePeriodSeconds")
    if grace_s is not None and grace_s < 0:
        fixed["terminationGracePeriodSeconds"] = 1
    for field in ("containers", "initContainers"):
        if fixed.get(field):
            fixed[field] = [{**container, "image": ""} for container in fixed[field]]
    return fixed
