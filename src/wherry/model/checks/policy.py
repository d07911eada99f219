"""Checks of budgets, autoscalers, priorities, limits and quotas."""

from wherry.errors import Cause
from wherry.model import names
from wherry.model.checks.problems import Object, Problems, each, part
from wherry.model.quantities import Quantity

_HIGHEST_PRIORITY = 1_000_000_000
_SYSTEM = {"system-node-critical": 2_000_001_000, "system-cluster-critical": 2_000_000_000}
_METRICS = ("ContainerResource", "External", "Object", "Pods", "Resource")


def disruption_budget(obj: Object, old: Object | None) -> list[Cause]:
    """Check a PodDisruptionBudget."""
    found = Problems()
    spec = part(obj, "spec")
    if spec.get("minAvailable") is not None and spec.get("maxUnavailable") is not None:
        found.invalid("spec", spec, "minAvailable and maxUnavailable cannot be both set")
    for field in ("minAvailable", "maxUnavailable"):
        found.int_or_percent(f"spec.{field}", spec.get(field))
    found.selector("spec.selector", spec.get("selector"))
    found.one_of(
        "spec.unhealthyPodEvictionPolicy",
        spec.get("unhealthyPodEvictionPolicy"),
        ("AlwaysAllow", "IfHealthyBudget"),
        required=False,
    )
    return found.causes


def autoscaler(obj: Object, old: Object | None) -> list[Cause]:
    """Check a HorizontalPodAutoscaler of either version."""
    found = Problems()
    spec = part(obj, "spec")
    least, most = spec.get("minReplicas"), spec.get("maxReplicas") or 0
    if least is not None and least < 1:
        found.invalid("spec.minReplicas", least, "must be greater than or equal to 1")
    if most < 1:
        found.invalid("spec.maxReplicas", most, "must be greater than 0")
    if least is not None and most < least:
        found.invalid("spec.maxReplicas", most, "must be greater than or equal to `minReplicas`")
    target = part(spec, "scaleTargetRef")
    for field in ("kind", "name"):
        if not target.get(field):
            found.required(f"spec.scaleTargetRef.{field}")
        else:
            found.all_invalid(f"spec.scaleTargetRef.{field}", target[field], names.path_segment(target[field]))
    percent = spec.get("targetCPUUtilizationPercentage")
    if percent is not None and percent < 1:
        found.invalid("spec.targetCPUUtilizationPercentage", percent, "must be greater than 0")
    for here, metric in each("spec", spec, "metrics"):
        kind = metric.get("type") or ""
        if not kind:
            found.required(f"{here}.type", "must specify a metric source type")
        elif kind not in _METRICS:
            found.unsupported(f"{here}.type", kind, _METRICS)
        elif not isinstance(metric.get(kind[0].lower() + kind[1:]), dict):
            found.required(
                f"{here}.{kind[0].lower() + kind[1:]}", "must populate information for the given metric source"
            )
    return found.causes


def priority_class(obj: Object, old: Object | None) -> list[Cause]:
    """Check a PriorityClass; its value never changes."""
    found = Problems()
    name, value = part(obj, "metadata").get("name") or "", obj.get("value") or 0
    if name.startswith("system-"):
        if _SYSTEM.get(name) != value:
            found.forbidden(
                "metadata.name",
                "priority class names with 'system-' prefix are reserved for system use only. error: "
                f"{name} is not a known system priority class",
            )
    elif value > _HIGHEST_PRIORITY:
        found.forbidden("value", f"maximum allowed value of a user defined priority is {_HIGHEST_PRIORITY}")
    found.one_of("preemptionPolicy", obj.get("preemptionPolicy"), ("Never", "PreemptLowerPriority"), required=False)
    if old is not None:
        if value != (old.get("value") or 0):
            found.forbidden("value", "may not be changed in an update.")
        if obj.get("preemptionPolicy") != old.get("preemptionPolicy"):
            found.forbidden("preemptionPolicy", "may not be changed in an update.")
    return found.causes


def limit_range(obj: Object, old: Object | None) -> list[Cause]:
    """Check a LimitRange: its bounds must leave something between them."""
    found = Problems()
    for here, item in each("spec", part(obj, "spec"), "limits"):
        if not item.get("type"):
            found.required(f"{here}.type")
        read: dict[str, dict[str, Quantity]] = {}
        for field in ("min", "max", "default", "defaultRequest"):
            amounts = {name: found.amount(f"{here}.{field}[{name}]", text) for name, text in part(item, field).items()}
            read[field] = {name: amount for name, amount in amounts.items() if amount is not None}
        if item.get("type") == "Pod":
            for field in ("default", "defaultRequest"):
                if item.get(field):
                    found.forbidden(f"{here}.{field}", f"may not be specified when `type` is '{item['type']}'")
        for low, high in (
            ("min", "max"),
            ("min", "default"),
            ("min", "defaultRequest"),
            ("defaultRequest", "default"),
            ("default", "max"),
            ("defaultRequest", "max"),
        ):
            for name, amount in read[low].items():
                bound = read[high].get(name)
                if bound is not None and bound < amount:
                    found.invalid(
                        f"{here}.{low}[{name}]",
                        str(amount),
                        f"{low} value {amount} is greater than {high} value {bound}",
                    )
    return found.causes


def resource_quota(obj: Object, old: Object | None) -> list[Cause]:
    """Check a ResourceQuota."""
    found = Problems()
    for name, text in part(part(obj, "spec"), "hard").items():
        found.all_invalid(f"spec.hard[{name}]", name, names.qualified_name(name))
        found.amount(f"spec.hard[{name}]", text)
    return found.causes
