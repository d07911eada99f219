"""What the agent of a node may not write, beyond what authorisation can see from a path."""

from wherry.api import node_rules
from wherry.api.admission.call import Call, forbidden
from wherry.model.kinds import LEASES, NODES, PODS

_RESERVED = "node-restriction.kubernetes.io/"


def restrict(call: Call) -> None:
    """Raises Forbidden for a write of a node's agent to what is not its own."""
    node = node_rules.node_of(call.user)
    if not node:
        return
    if call.kind == NODES and call.name != node:
        raise forbidden(call, f"node {node!r} is not allowed to modify node {call.name!r}")
    if call.kind == LEASES and call.name != node:
        raise forbidden(call, f"node {node!r} may only use the lease {node!r}")
    if call.kind == PODS and call.operation == "CREATE":
        raise forbidden(call, f"node {node!r} may not create pods")
    if call.kind == NODES and call.operation != "DELETE":
        old = call.old or {}
        if call.old is not None and call.spec.get("taints") != (old.get("spec") or {}).get("taints"):
            raise forbidden(call, f"node {node!r} is not allowed to modify taints")
        labels = call.obj["metadata"].get("labels") or {}
        before = (old.get("metadata") or {}).get("labels") or {}
        changed = sorted(k for k in {*labels, *before} if _RESERVED in k and labels.get(k) != before.get(k))
        if changed:
            raise forbidden(call, f"node {node!r} is not allowed to modify labels: {', '.join(changed)}")
