"""Defaults of the group autoscaling."""

from collections.abc import Callable, Mapping
from typing import Any

from wherry.model import kinds
from wherry.model.defaults.filling import Object, fill, made
from wherry.model.kinds import Kind

_CPU_PERCENT = 80


def autoscaler(obj: Object) -> None:
    """Fill in a HorizontalPodAutoscaler (v2): 80 % of the CPU asked for, where it names no metric."""
    spec = made(obj, "spec")
    fill(spec, "minReplicas", 1)
    if not spec.get("metrics"):
        target = {"type": "Utilization", "averageUtilization": _CPU_PERCENT}
        spec["metrics"] = [{"type": "Resource", "resource": {"name": "cpu", "target": target}}]
    behavior = spec.get("behavior")
    if isinstance(behavior, dict):
        percent = {"type": "Percent", "value": 100, "periodSeconds": 15}
        up = made(behavior, "scaleUp")
        fill(up, "selectPolicy", "Max")
        fill(up, "stabilizationWindowSeconds", 0)
        fill(up, "policies", [{"type": "Pods", "value": 4, "periodSeconds": 15}, dict(percent)])
        down = made(behavior, "scaleDown")
        fill(down, "selectPolicy", "Max")
        fill(down, "policies", [dict(percent)])


def autoscaler_v1(obj: Object) -> None:
    """Fill in a HorizontalPodAutoscaler (v1)."""
    fill(made(obj, "spec"), "minReplicas", 1)


TABLE: Mapping[Kind, Callable[[dict[str, Any]], None]] = {
    kinds.HORIZONTALPODAUTOSCALERS: autoscaler,
    kinds.HORIZONTALPODAUTOSCALERS_V1: autoscaler_v1,
}
