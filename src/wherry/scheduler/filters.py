"""Filters: each says what stands against putting one pod on one node. Pure; the table's order is the order of reasons.

Source: Kubernetes, "Assigning Pods to Nodes", "Taints and Tolerations", "Pod Topology Spread Constraints". Messages are
upstream's, which people know and tools match.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

from wherry.client.taints import NO_EXECUTE, NO_SCHEDULE, UNSCHEDULABLE, Taint, untolerated
from wherry.scheduler.decision import Code, Refusal
from wherry.scheduler.resources import CPU, MEMORY, PODS, STORAGE, written
from wherry.scheduler.selection import fits_selection
from wherry.scheduler.state import NodeInfo, PodInfo, Port
from wherry.scheduler.topology import Topology

Filter = Callable[[PodInfo, NodeInfo, Topology], Iterator[Refusal]]

AMOUNTS: Mapping[str, tuple[Code, str]] = {
    CPU: (Code.CPU, "Insufficient cpu"),
    MEMORY: (Code.MEMORY, "Insufficient memory"),
    STORAGE: (Code.STORAGE, "Insufficient ephemeral-storage"),
    PODS: (Code.PODS, "Too many pods"),
}

_SWITCH = Taint(UNSCHEDULABLE, NO_SCHEDULE)


def unschedulable(pod: PodInfo, node: NodeInfo, topology: Topology) -> Iterator[Refusal]:
    """A cordoned node takes only pods that tolerate that."""
    if node.node.spec.unschedulable and untolerated((_SWITCH,), pod.pod.spec.tolerations, (NO_SCHEDULE,)):
        yield Refusal(Code.UNSCHEDULABLE, "node(s) were unschedulable", "cordoned: kubectl uncordon lets pods in again")


def node_name(pod: PodInfo, node: NodeInfo, topology: Topology) -> Iterator[Refusal]:
    """A pod that names its node goes nowhere else."""
    if pod.pod.spec.node_name and pod.pod.spec.node_name != node.name:
        yield Refusal(Code.NODE_NAME, "node(s) didn't match the requested node name")


def taints(pod: PodInfo, node: NodeInfo, topology: Topology) -> Iterator[Refusal]:
    """A taint keeps out what does not tolerate it."""
    cordoned = node.node.spec.unschedulable  # which `unschedulable` has told already
    others = [taint for taint in node.node.spec.taints if not (cordoned and taint.key == UNSCHEDULABLE)]
    taint = untolerated(others, pod.pod.spec.tolerations, (NO_SCHEDULE, NO_EXECUTE))
    if taint is not None:
        yield Refusal(Code.TAINT, f"node(s) had untolerated taint {taint}", f"taint {taint.key}:{taint.effect}")


def node_affinity(pod: PodInfo, node: NodeInfo, topology: Topology) -> Iterator[Refusal]:
    """The node's labels must be those that the pod asks for."""
    if not fits_selection(pod.pod.spec, node.node):
        missing = sorted(pod.pod.spec.node_selector.items() - node.labels.items())
        detail = ", ".join(f"{name}={value}" for name, value in missing)
        message = "node(s) didn't match Pod's node affinity/selector"
        yield Refusal(Code.NODE_AFFINITY, message, f"lacks labels {detail}" if detail else "node affinity")


def ports(pod: PodInfo, node: NodeInfo, topology: Topology) -> Iterator[Refusal]:
    """A port of the node can be taken once."""
    if not pod.ports:
        return
    for other in node.pods.values():
        taken = next((port for port in pod.ports if any(_clash(port, held) for held in other.ports)), None)
        if taken is not None:
            message = "node(s) didn't have free ports for the requested pod ports"
            yield Refusal(Code.PORTS, message, f"{taken[0]} {taken[1]} is taken by {'/'.join(other.key)}")
            return


def resources(pod: PodInfo, node: NodeInfo, topology: Topology) -> Iterator[Refusal]:
    """What is asked for must be free; one refusal for each amount that is not."""
    for name, asked in pod.request.items():
        free = node.free_of.get(name, 0) - node.used.get(name, 0)
        if asked <= free or asked == 0:
            continue
        code, message = AMOUNTS.get(name, (Code.RESOURCE, f"Insufficient {name}"))
        detail = f"{name}: asks for {written(name, asked)}, {written(name, max(0, free))} free"
        yield Refusal(code, message, detail, lack=(asked - max(0, free)) / asked)


def spread(pod: PodInfo, node: NodeInfo, topology: Topology) -> Iterator[Refusal]:
    """No domain may have more than maxSkew pods above the emptiest."""
    message = "node(s) didn't match pod topology spread constraints"
    for one in topology.hard:
        key = one.constraint.topology_key
        value = node.labels.get(key)
        if value is None:
            yield Refusal(Code.SPREAD_LABEL, f"{message} (missing required label)", f"lacks label {key}")
        elif one.skew(value) > one.constraint.max_skew:
            detail = f"{key}={value} would be {one.skew(value)} above the emptiest; {one.constraint.max_skew} allowed"
            yield Refusal(Code.SPREAD, message, detail)


def affinity(pod: PodInfo, node: NodeInfo, topology: Topology) -> Iterator[Refusal]:
    """Near what the pod needs, far from what it refuses, and from what refuses it."""
    for key, values, anywhere in topology.wanted:
        value = node.labels.get(key)
        if value is None or (value not in values and not anywhere):
            yield Refusal(Code.AFFINITY, "node(s) didn't match pod affinity rules", f"no such pod in its {key}")
            break
    if topology.avoided and not topology.avoided.isdisjoint(node.labels.items()):
        yield Refusal(Code.ANTI_AFFINITY, "node(s) didn't match pod anti-affinity rules")
    if topology.refusing and not topology.refusing.isdisjoint(node.labels.items()):
        yield Refusal(Code.REFUSED_BY_PODS, "node(s) didn't satisfy existing pods anti-affinity rules")


FILTERS: Sequence[Filter] = (
    unschedulable,
    node_name,
    taints,
    node_affinity,
    ports,
    resources,
    spread,
    affinity,
)


def fits(pod: PodInfo, node: NodeInfo, topology: Topology) -> bool:
    """Whether nothing stands against it."""
    return all(next(check(pod, node, topology), None) is None for check in FILTERS)


def refusals(pod: PodInfo, node: NodeInfo, topology: Topology) -> Sequence[Refusal]:
    """All that stands against it."""
    return [refusal for check in FILTERS for refusal in check(pod, node, topology)]


def _clash(one: Port, other: Port) -> bool:
    """Same protocol and port, on one address or on any."""
    everywhere = ("", "0.0.0.0", "::")
    if one[:2] != other[:2]:
        return False
    return one[2] == other[2] or one[2] in everywhere or other[2] in everywhere
