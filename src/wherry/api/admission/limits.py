"""LimitRanges: defaults for the resources of containers, and bounds of containers, pods and claims.

Source: Kubernetes, "Limit Ranges".
"""

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from wherry.api.admission.call import Call, forbidden
from wherry.model.kinds import LIMITRANGES, PERSISTENTVOLUMECLAIMS, PODS
from wherry.model.quantities import Quantity

Json = dict[str, Any]
Amounts = dict[str, Any]


class Limit(msgspec.Struct, frozen=True, rename="camel"):
    """One row of a LimitRange; `type` is Container, Pod or PersistentVolumeClaim."""

    type: str = ""
    default: Amounts | None = None
    default_request: Amounts | None = None
    min: Amounts | None = None
    max: Amounts | None = None
    max_limit_request_ratio: Amounts | None = None


class _Spec(msgspec.Struct, frozen=True):
    limits: tuple[Limit, ...] = ()


class _LimitRange(msgspec.Struct, frozen=True):
    spec: _Spec = _Spec()


def add_defaults(call: Call) -> None:
    """Give the containers of a new pod the default limits and requests of its namespace."""
    if call.kind != PODS or call.operation != "CREATE":
        return
    for limit in _limits(call, "Container"):
        for container in _containers(call.spec):
            resources: Json = container.setdefault("resources", {})
            _fill(resources, "limits", limit.default)
            _fill(resources, "requests", limit.default_request)


def check(call: Call) -> None:
    """Raises Forbidden for a pod or claim outside the bounds of its namespace."""
    if call.operation != "CREATE":
        return
    problems: list[str] = []
    if call.kind == PODS:
        for limit in _limits(call, "Container"):
            for container in _containers(call.spec):
                problems += _outside("Container", limit, container.get("resources") or {})
        for limit in _limits(call, "Pod"):
            problems += _outside("Pod", limit, _sum(call.spec))
    elif call.kind == PERSISTENTVOLUMECLAIMS:
        for limit in _limits(call, "PersistentVolumeClaim"):
            problems += _outside("PersistentVolumeClaim", limit, call.spec.get("resources") or {})
    if problems:
        raise forbidden(call, problems[0] if len(problems) == 1 else f"[{', '.join(problems)}]")


def _limits(call: Call, type_: str) -> Iterator[Limit]:
    for item in call.core.shelf(LIMITRANGES).all(LIMITRANGES.prefix(call.namespace)):
        for limit in item.view(_LimitRange).spec.limits:
            if limit.type == type_:
                yield limit


def _containers(spec: Json) -> Iterator[Json]:
    for group in ("containers", "initContainers"):
        yield from spec.get(group) or ()


def _fill(resources: Json, field: str, defaults: Amounts | None) -> None:
    for name, amount in (defaults or {}).items():
        resources.setdefault(field, {}).setdefault(name, amount)


def _sum(spec: Json) -> Json:
    """The resources of a pod: of its containers together, or of its largest init container."""
    totals: Json = {}
    for field in ("requests", "limits"):
        found: dict[str, int] = {}
        for container in spec.get("containers") or ():
            for name, amount in ((container.get("resources") or {}).get(field) or {}).items():
                found[name] = found.get(name, 0) + Quantity.parse(amount).nano
        for container in spec.get("initContainers") or ():
            for name, amount in ((container.get("resources") or {}).get(field) or {}).items():
                found[name] = max(found.get(name, 0), Quantity.parse(amount).nano)
        totals[field] = {name: str(Quantity(nano)) for name, nano in found.items()}
    return totals


def _outside(type_: str, limit: Limit, resources: Mapping[str, Any]) -> list[str]:
    requests: Amounts = resources.get("requests") or {}
    limits: Amounts = resources.get("limits") or {}
    problems: list[str] = []
    for name, bound in (limit.min or {}).items():
        have = requests.get(name, limits.get(name))
        if have is None:
            problems.append(f"minimum {name} usage per {type_} is {bound}.  No request is specified")
        elif Quantity.parse(have).nano < Quantity.parse(bound).nano:
            problems.append(f"minimum {name} usage per {type_} is {bound}, but request is {have}")
    for name, bound in (limit.max or {}).items():
        have = limits.get(name, requests.get(name) if type_ == "PersistentVolumeClaim" else None)
        if have is None:
            problems.append(f"maximum {name} usage per {type_} is {bound}.  No limit is specified")
        elif Quantity.parse(have).nano > Quantity.parse(bound).nano:
            problems.append(f"maximum {name} usage per {type_} is {bound}, but limit is {have}")
    for name, bound in (limit.max_limit_request_ratio or {}).items():
        top, low = limits.get(name), requests.get(name)
        if top is None or low is None or not Quantity.parse(low).nano:
            problems.append(f"{name} max limit to request ratio per {type_} is {bound}, but no request is specified")
        elif Quantity.parse(top).nano * 10**9 > Quantity.parse(bound).nano * Quantity.parse(low).nano:
            problems.append(f"{name} max limit to request ratio per {type_} is {bound}, but provided ratio is larger")
    return problems
