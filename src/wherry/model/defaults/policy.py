"""Defaults of the groups rbac.authorization.k8s.io, scheduling.k8s.io, flowcontrol.apiserver.k8s.io and reviews."""

from collections.abc import Callable, Mapping
from typing import Any

from wherry.model import kinds
from wherry.model.defaults.filling import Object, each, fill, made, part
from wherry.model.kinds import Kind

_RBAC = "rbac.authorization.k8s.io"
_TOKEN_LIFE_S = 3600


def binding(obj: Object) -> None:
    """Fill in a RoleBinding or ClusterRoleBinding: the groups of what it names."""
    fill(made(obj, "roleRef"), "apiGroup", _RBAC)
    for subject in each(obj, "subjects"):
        if subject.get("kind") in ("User", "Group"):
            fill(subject, "apiGroup", _RBAC)


def priority_class(obj: Object) -> None:
    """Fill in a PriorityClass."""
    fill(obj, "preemptionPolicy", "PreemptLowerPriority")


def flow_schema(obj: Object) -> None:
    """Fill in a FlowSchema."""
    spec = made(obj, "spec")
    if not spec.get("matchingPrecedence"):
        spec["matchingPrecedence"] = 1000


def priority_level(obj: Object) -> None:
    """Fill in a PriorityLevelConfiguration."""
    spec = made(obj, "spec")
    if spec.get("type") == "Exempt":
        exempt = made(spec, "exempt")
        fill(exempt, "nominalConcurrencyShares", 0)
        fill(exempt, "lendablePercent", 0)
    limited = part(spec, "limited")
    if isinstance(spec.get("limited"), dict):
        fill(limited, "nominalConcurrencyShares", 30)
        fill(limited, "lendablePercent", 0)
        response = made(limited, "limitResponse")
        if response.get("type") == "Queue":
            queuing = made(response, "queuing")
            for name, value in (("queues", 64), ("handSize", 8), ("queueLengthLimit", 50)):
                if not queuing.get(name):
                    queuing[name] = value


def token_request(obj: Object) -> None:
    """Fill in a TokenRequest: one hour."""
    fill(made(obj, "spec"), "expirationSeconds", _TOKEN_LIFE_S)


TABLE: Mapping[Kind, Callable[[dict[str, Any]], None]] = {
    kinds.ROLEBINDINGS: binding,
    kinds.CLUSTERROLEBINDINGS: binding,
    kinds.PRIORITYCLASSES: priority_class,
    kinds.FLOWSCHEMAS: flow_schema,
    kinds.PRIORITYLEVELCONFIGURATIONS: priority_level,
    kinds.TOKENREQUESTS: token_request,
}
