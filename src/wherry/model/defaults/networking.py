"""Defaults of the groups networking.k8s.io and discovery.k8s.io."""

from collections.abc import Callable, Mapping
from typing import Any

from wherry.model import kinds
from wherry.model.defaults.filling import Object, each, fill, made, part
from wherry.model.kinds import Kind


def network_policy(obj: Object) -> None:
    """Fill in a NetworkPolicy: it is about ingress, and about egress where it has rules for that."""
    spec = made(obj, "spec")
    made(spec, "podSelector")
    for rule in each(spec, "ingress", "egress"):
        for port in each(rule, "ports"):
            fill(port, "protocol", "TCP")
    if not spec.get("policyTypes"):
        spec["policyTypes"] = ["Ingress", "Egress"] if spec.get("egress") else ["Ingress"]


def ingress_class(obj: Object) -> None:
    """Fill in an IngressClass."""
    parameters = part(part(obj, "spec"), "parameters")
    if parameters:
        fill(parameters, "scope", "Cluster")


def endpoint_slice(obj: Object) -> None:
    """Fill in an EndpointSlice: a port without a name has the empty one."""
    for port in each(obj, "ports"):
        fill(port, "name", "")
        fill(port, "protocol", "TCP")


TABLE: Mapping[Kind, Callable[[dict[str, Any]], None]] = {
    kinds.NETWORKPOLICIES: network_policy,
    kinds.INGRESSCLASSES: ingress_class,
    kinds.ENDPOINTSLICES: endpoint_slice,
}
