"""What a new pod gets by name: its priority, its runtime's overhead, and how long it outlives a lost node."""

from typing import Any

import msgspec

from wherry.api.admission.call import Call, forbidden
from wherry.model.kinds import PODS, PRIORITYCLASSES, RUNTIMECLASSES

Json = dict[str, Any]

_LOST = ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable")


class _PriorityClass(msgspec.Struct, frozen=True, rename="camel"):
    value: int = 0
    global_default: bool = False
    preemption_policy: str = "PreemptLowerPriority"


class _Overhead(msgspec.Struct, frozen=True, rename="camel"):
    pod_fixed: dict[str, str] | None = None


class _RuntimeClass(msgspec.Struct, frozen=True):
    overhead: _Overhead | None = None


def resolve_priority(call: Call) -> None:
    """Set the number and the preemption policy of a pod's priority class. Raises Forbidden for an unknown class."""
    if call.kind != PODS or call.operation != "CREATE":
        return
    spec = call.spec
    name = spec.get("priorityClassName")
    if name:
        item = call.core.find(PRIORITYCLASSES, "", name)
        if item is None:
            raise forbidden(call, f"no PriorityClass with name {name} was found")
        chosen = item.view(_PriorityClass)
    else:
        chosen = _PriorityClass()
        for item in call.core.shelf(PRIORITYCLASSES).all():
            found = item.view(_PriorityClass)
            if found.global_default:
                chosen, spec["priorityClassName"] = found, item.meta.name
    given = spec.get("priority")
    if given is not None and given != chosen.value:
        raise forbidden(
            call,
            f"the integer value of priority ({given}) must not be provided in pod spec; "
            f"priority admission controller computed {chosen.value} from the given PriorityClass name",
        )
    spec["priority"] = chosen.value
    spec.setdefault("preemptionPolicy", chosen.preemption_policy)


def resolve_runtime(call: Call) -> None:
    """Set the overhead of a pod's runtime class. Raises Forbidden for an unknown class."""
    if call.kind != PODS or call.operation != "CREATE":
        return
    name = call.spec.get("runtimeClassName")
    if not name:
        return
    item = call.core.find(RUNTIMECLASSES, "", name)
    if item is None:
        raise forbidden(call, f'pod rejected: RuntimeClass "{name}" not found')
    overhead = item.view(_RuntimeClass).overhead
    if overhead is not None and overhead.pod_fixed:
        call.spec["overhead"] = dict(overhead.pod_fixed)


def add_tolerations(call: Call) -> None:
    """Let a pod outlive a lost node by the cluster's number of seconds, unless it says so itself."""
    seconds = call.core.settings.toleration_s
    if call.kind != PODS or call.operation != "CREATE" or seconds is None:
        return
    tolerations: list[Json] = list(call.spec.get("tolerations") or ())
    for key in _LOST:
        if not any(_tolerates(toleration, key) for toleration in tolerations):
            tolerations.append({"effect": "NoExecute", "key": key, "operator": "Exists", "tolerationSeconds": seconds})
    call.spec["tolerations"] = tolerations


def _tolerates(toleration: Json, key: str) -> bool:
    return toleration.get("key") in (key, None, "") and toleration.get("effect") in ("NoExecute", None, "")
