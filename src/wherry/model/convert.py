"""Objects that several group-versions share, turned from one into another: events and autoscalers.

At rest they have the version that `Kind.storage` names. Source: the API reference of both versions of each.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any

from wherry.model import kinds
from wherry.model.kinds import Kind

Object = dict[str, Any]

_EVENT_NAMES = (
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
    ("reportingComponent", "reportingController"),
)
"""What core/v1 and events.k8s.io/v1 call the same field."""


def convert(obj: Object, have: Kind, to: Kind) -> Object:
    """Give `obj`, which is of the kind `have`, in the version of `to`; the same object when these are one.

    Raises KeyError for kinds that are not versions of one another.
    """
    if have == to:
        return obj
    made = _CONVERSIONS[(have, to)](obj)
    made["apiVersion"] = to.api_version
    return made


def _renamed(obj: Object, names: Mapping[str, str]) -> Object:
    return {names.get(name, name): value for name, value in obj.items()}


def _event_to_v1(obj: Object) -> Object:
    return _renamed(obj, dict(_EVENT_NAMES))


def _event_to_core(obj: Object) -> Object:
    return _renamed(obj, {new: old for old, new in _EVENT_NAMES})


_METRICS = "autoscaling.alpha.kubernetes.io/metrics"
_BEHAVIOR = "autoscaling.alpha.kubernetes.io/behavior"
_CONDITIONS = "autoscaling.alpha.kubernetes.io/conditions"
_CURRENT = "autoscaling.alpha.kubernetes.io/current-metrics"


def _is_cpu(metric: Object) -> bool:
    resource = metric.get("resource") or {}
    return metric.get("type") == "Resource" and resource.get("name") == "cpu"


def _autoscaler_to_v2(obj: Object) -> Object:
    """Turn v1 into v2: the one percentage becomes a metric, and annotations give back what v1 has no fields for."""
    metadata, annotations = _metadata(obj)
    spec, status = dict(obj.get("spec") or {}), dict(obj.get("status") or {})
    metrics = _load(annotations.pop(_METRICS, ""), [])
    percent = spec.pop("targetCPUUtilizationPercentage", None)
    if percent is not None:
        target = {"type": "Utilization", "averageUtilization": percent}
        metrics = [{"type": "Resource", "resource": {"name": "cpu", "target": target}}, *metrics]
    if metrics:
        spec["metrics"] = metrics
    behavior = _load(annotations.pop(_BEHAVIOR, ""), None)
    if behavior:
        spec["behavior"] = behavior
    current = _load(annotations.pop(_CURRENT, ""), [])
    seen = status.pop("currentCPUUtilizationPercentage", None)
    if seen is not None:
        now = {"averageUtilization": seen, "averageValue": "0"}
        current = [{"type": "Resource", "resource": {"name": "cpu", "current": now}}, *current]
    if current:
        status["currentMetrics"] = current
    conditions = _load(annotations.pop(_CONDITIONS, ""), [])
    if conditions:
        status["conditions"] = conditions
    return _whole(obj, metadata, annotations, spec, status)


def _autoscaler_to_v1(obj: Object) -> Object:
    """Turn v2 into v1: the CPU percentage is a field; everything else goes into annotations, so that nothing is lost."""
    metadata, annotations = _metadata(obj)
    spec, status = dict(obj.get("spec") or {}), dict(obj.get("status") or {})
    rest: list[Object] = []
    for metric in spec.pop("metrics", None) or ():
        percent = ((metric.get("resource") or {}).get("target") or {}).get("averageUtilization")
        if _is_cpu(metric) and percent is not None and "targetCPUUtilizationPercentage" not in spec:
            spec["targetCPUUtilizationPercentage"] = percent
        else:
            rest.append(metric)
    current: list[Object] = []
    for metric in status.pop("currentMetrics", None) or ():
        percent = ((metric.get("resource") or {}).get("current") or {}).get("averageUtilization")
        if _is_cpu(metric) and percent is not None and "currentCPUUtilizationPercentage" not in status:
            status["currentCPUUtilizationPercentage"] = percent
        else:
            current.append(metric)
    kept = {
        _METRICS: rest,
        _BEHAVIOR: spec.pop("behavior", None),
        _CURRENT: current,
        _CONDITIONS: status.pop("conditions", None),
    }
    annotations |= {name: _dump(value) for name, value in kept.items() if value}
    return _whole(obj, metadata, annotations, spec, status)


def _metadata(obj: Object) -> tuple[Object, dict[str, str]]:
    metadata = dict(obj.get("metadata") or {})
    return metadata, dict(metadata.pop("annotations", None) or {})


def _whole(obj: Object, metadata: Object, annotations: dict[str, str], spec: Object, status: Object) -> Object:
    if annotations:
        metadata["annotations"] = annotations
    return {**obj, "metadata": metadata, "spec": spec, **({"status": status} if "status" in obj or status else {})}


def _load(text: str, otherwise: Any) -> Any:
    try:
        return json.loads(text) if text else otherwise
    except ValueError:
        return otherwise


def _dump(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


_CONVERSIONS: Mapping[tuple[Kind, Kind], Callable[[Object], Object]] = {
    (kinds.EVENTS, kinds.EVENTS_V1): _event_to_v1,
    (kinds.EVENTS_V1, kinds.EVENTS): _event_to_core,
    (kinds.HORIZONTALPODAUTOSCALERS_V1, kinds.HORIZONTALPODAUTOSCALERS): _autoscaler_to_v2,
    (kinds.HORIZONTALPODAUTOSCALERS, kinds.HORIZONTALPODAUTOSCALERS_V1): _autoscaler_to_v1,
}
