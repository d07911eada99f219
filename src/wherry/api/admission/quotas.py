"""ResourceQuotas: a write that would take a namespace over its quota is refused.

Usage is counted from the objects at the moment of the write, under a lock; nothing is kept, so nothing drifts. Their
status is a controller's work. Source: Kubernetes, "Resource Quotas".
"""

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from wherry.api.admission.call import Call, forbidden
from wherry.api.core import Core
from wherry.model import kinds
from wherry.model.kinds import PERSISTENTVOLUMECLAIMS, PODS, RESOURCEQUOTAS, SERVICES, Kind
from wherry.model.quantities import Quantity

Json = dict[str, Any]
Usage = dict[str, int]
"""Amounts in nano units by the name of a quota's resource."""

_ONE = 10**9
_COUNTED = {
    kinds.PODS: "pods",
    kinds.SERVICES: "services",
    kinds.CONFIGMAPS: "configmaps",
    kinds.SECRETS: "secrets",
    kinds.PERSISTENTVOLUMECLAIMS: "persistentvolumeclaims",
    kinds.REPLICATIONCONTROLLERS: "replicationcontrollers",
    kinds.RESOURCEQUOTAS: "resourcequotas",
}
_COMPUTE = ("cpu", "memory", "ephemeral-storage")


class _Spec(msgspec.Struct, frozen=True):
    hard: dict[str, Any] | None = None


class _Quota(msgspec.Struct, frozen=True):
    spec: _Spec = _Spec()


def any_in(call: Call) -> bool:
    """Say whether the namespace of a write has a quota."""
    shelf = call.core.shelf(RESOURCEQUOTAS)
    return bool(shelf.keys) and call.kind.namespaced and bool(shelf.under(RESOURCEQUOTAS.prefix(call.namespace)))


def check(call: Call) -> None:
    """Raises Forbidden, naming the quota and the amounts, for a creation beyond it."""
    if call.operation != "CREATE" or not any_in(call):
        return
    adds = usage_of(call.kind, call.obj)
    for item in call.core.shelf(RESOURCEQUOTAS).all(RESOURCEQUOTAS.prefix(call.namespace)):
        hard = {name: Quantity.parse(amount) for name, amount in (item.view(_Quota).spec.hard or {}).items()}
        _must_say(call, item.meta.name, hard)
        touched = {name: amount for name, amount in adds.items() if name in hard}
        if not touched:
            continue
        used = _used(call.core, call.kind, call.namespace)
        over = [name for name, amount in touched.items() if used.get(name, 0) + amount > hard[name].nano]
        if over:
            raise forbidden(
                call,
                f"exceeded quota: {item.meta.name}, requested: {_text(touched, over)}, used: {_text(used, over)}, "
                f"limited: {','.join(f'{name}={hard[name]}' for name in over)}",
            )


def usage_of(kind: Kind, obj: Json) -> Usage:
    """What one object counts for, by every name that a quota can limit."""
    found: Usage = {f"count/{kind.qualified}": _ONE}
    if kind in _COUNTED:
        found[_COUNTED[kind]] = _ONE
    spec: Json = obj.get("spec") or {}
    if kind == PODS:
        if (obj.get("status") or {}).get("phase") in ("Succeeded", "Failed"):
            return {f"count/{kind.qualified}": _ONE}
        for field in ("requests", "limits"):
            for name, nano in _pod_amounts(spec, field).items():
                found[f"{field}.{name}"] = nano
                if field == "requests":
                    found[name] = nano
    elif kind == SERVICES:
        if spec.get("type") == "LoadBalancer":
            found["services.loadbalancers"] = _ONE
        if spec.get("type") in ("NodePort", "LoadBalancer"):
            found["services.nodeports"] = _ONE * sum(1 for port in spec.get("ports") or () if port.get("nodePort"))
    elif kind == PERSISTENTVOLUMECLAIMS:
        amount = ((spec.get("resources") or {}).get("requests") or {}).get("storage")
        if amount is not None:
            found["requests.storage"] = Quantity.parse(amount).nano
            name = spec.get("storageClassName")
            if name:
                prefix = f"{name}.storageclass.storage.k8s.io/"
                found[f"{prefix}requests.storage"] = found["requests.storage"]
                found[f"{prefix}persistentvolumeclaims"] = _ONE
    return found


def _used(core: Core, kind: Kind, namespace: str) -> Usage:
    total: Usage = {}
    for item in core.shelf(kind).all(kind.prefix(namespace)):
        for name, amount in usage_of(kind, item.document()).items():
            total[name] = total.get(name, 0) + amount
    return total


def _must_say(call: Call, quota: str, hard: Mapping[str, Quantity]) -> None:
    """A quota of a compute resource asks every container to say how much of it it wants."""
    if call.kind != PODS:
        return
    lacking: list[str] = []
    for name in hard:
        field, _, resource = name.rpartition(".")
        if resource not in _COMPUTE[:2] or field not in ("", "requests", "limits"):
            continue
        silent = [
            str(container.get("name", ""))
            for container in call.spec.get("containers") or ()
            if resource not in ((container.get("resources") or {}).get(field or "requests") or {})
        ]
        if silent:
            lacking.append(f"{name} for: {','.join(silent)}")
    if lacking:
        raise forbidden(call, f"failed quota: {quota}: must specify {'; '.join(sorted(lacking))}")


def _pod_amounts(spec: Json, field: str) -> Usage:
    found: Usage = {}
    for amounts in _amounts(spec.get("containers"), field):
        for name, nano in amounts:
            found[name] = found.get(name, 0) + nano
    for amounts in _amounts(spec.get("initContainers"), field):
        for name, nano in amounts:
            found[name] = max(found.get(name, 0), nano)
    for name, amount in (spec.get("overhead") or {}).items():
        found[name] = found.get(name, 0) + Quantity.parse(amount).nano
    return found


def _amounts(containers: list[Json] | None, field: str) -> Iterator[list[tuple[str, int]]]:
    for container in containers or ():
        amounts: Json = (container.get("resources") or {}).get(field) or {}
        yield [(name, Quantity.parse(amount).nano) for name, amount in amounts.items()]


def _text(usage: Usage, names: list[str]) -> str:
    return ",".join(f"{name}={Quantity(usage.get(name, 0))}" for name in names)
