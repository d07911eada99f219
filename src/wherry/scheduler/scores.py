"""Scores: which of the nodes that are fit is best. Pure; each gives 0 to 100, the table weighs them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from wherry.client.taints import PREFER_NO_SCHEDULE
from wherry.scheduler.resources import CPU, MEMORY
from wherry.scheduler.selection import preference
from wherry.scheduler.state import NodeInfo, PodInfo, State
from wherry.scheduler.topology import Topology

BEST = 100.0

ZONE = "topology.kubernetes.io/zone"


@dataclass(frozen=True, slots=True)
class Siblings:
    """How many pods of the same owner, or behind the same services, are on each node and in each zone."""

    by_node: Mapping[str, int]
    by_zone: Mapping[str, int]


Score = Callable[[PodInfo, Sequence[NodeInfo], Topology, Siblings], Mapping[str, float]]


def least_allocated(
    pod: PodInfo, nodes: Sequence[NodeInfo], topology: Topology, siblings: Siblings
) -> Mapping[str, float]:
    """The emptier the better: the mean share of CPU and memory that would stay free."""
    return {node.name: BEST * sum(1 - used for used in _shares(pod, node)) / 2 for node in nodes}


def balanced(pod: PodInfo, nodes: Sequence[NodeInfo], topology: Topology, siblings: Siblings) -> Mapping[str, float]:
    """CPU and memory used alike: nodes that run out of one leave the other idle."""
    scores: dict[str, float] = {}
    for node in nodes:
        cpu, memory = _shares(pod, node)
        scores[node.name] = BEST * (1 - abs(cpu - memory) / 2)
    return scores


def apart(pod: PodInfo, nodes: Sequence[NodeInfo], topology: Topology, siblings: Siblings) -> Mapping[str, float]:
    """Away from its siblings, on other nodes and, for two thirds, in other zones: one loss should not take all."""
    by_node = _inverse({node.name: siblings.by_node.get(node.name, 0) for node in nodes})
    if not siblings.by_zone:
        return by_node
    by_zone = _inverse({node.name: siblings.by_zone.get(node.labels.get(ZONE, ""), 0) for node in nodes})
    return {name: by_node[name] / 3 + 2 * by_zone[name] / 3 for name in by_node}


def liked_nodes(pod: PodInfo, nodes: Sequence[NodeInfo], topology: Topology, siblings: Siblings) -> Mapping[str, float]:
    """Nodes that meet preferred node affinity, by weight."""
    return _normal({node.name: preference(pod.pod.spec, node.node) for node in nodes})


def disliked_taints(
    pod: PodInfo, nodes: Sequence[NodeInfo], topology: Topology, siblings: Siblings
) -> Mapping[str, float]:
    """Nodes with few PreferNoSchedule taints that the pod does not tolerate."""
    tolerations = pod.pod.spec.tolerations

    def count(node: NodeInfo) -> int:
        taints = [taint for taint in node.node.spec.taints if taint.effect == PREFER_NO_SCHEDULE]
        return sum(not any(one.tolerates(taint) for one in tolerations) for taint in taints)

    return _inverse({node.name: count(node) for node in nodes})


def soft_spread(pod: PodInfo, nodes: Sequence[NodeInfo], topology: Topology, siblings: Siblings) -> Mapping[str, float]:
    """Domains with few pods of each soft spread constraint."""
    counts = {
        node.name: sum(one.counts.get(node.labels.get(one.constraint.topology_key, ""), 0) for one in topology.soft)
        for node in nodes
    }
    return _inverse(counts)


def liked_pods(pod: PodInfo, nodes: Sequence[NodeInfo], topology: Topology, siblings: Siblings) -> Mapping[str, float]:
    """Near the pods that it prefers, far from those that it would rather not meet."""
    liked = topology.liked
    return _normal({node.name: sum(liked.get(label, 0) for label in node.labels.items()) for node in nodes})


SCORES: Sequence[tuple[Score, float]] = (
    (least_allocated, 1),
    (balanced, 1),
    (apart, 2),
    (liked_nodes, 2),
    (disliked_taints, 3),
    (soft_spread, 2),
    (liked_pods, 2),
)


def rank(pod: PodInfo, nodes: Sequence[NodeInfo], topology: Topology, siblings: Siblings) -> Mapping[str, float]:
    """The weighed sum for each node."""
    result = {node.name: 0.0 for node in nodes}
    for score, weight in SCORES:
        for name, points in score(pod, nodes, topology, siblings).items():
            result[name] += weight * points
    return result


def siblings_of(pod: PodInfo, state: State) -> Siblings:
    """Count the pods of the pod's owner, and those behind its services."""
    owner = pod.pod.metadata.controller
    selectors = [
        service.spec.selector.items()
        for service in state.services.get(pod.namespace, {}).values()
        if service.spec.selector and service.spec.selector.items() <= pod.labels.items()
    ]
    by_node: dict[str, int] = {}
    by_zone: dict[str, int] = {}
    if owner is None and not selectors:
        return Siblings(by_node, by_zone)
    for node in state.nodes.values():
        count = 0
        for other in node.pods.values():
            if other.namespace != pod.namespace or other.pod.metadata.deletion_timestamp is not None:
                continue
            theirs = other.pod.metadata.controller
            same = owner is not None and theirs is not None and theirs.uid == owner.uid
            count += same or any(selector <= other.labels.items() for selector in selectors)
        if count:
            by_node[node.name] = count
            zone = node.labels.get(ZONE)
            if zone:
                by_zone[zone] = by_zone.get(zone, 0) + count
    return Siblings(by_node, by_zone)


def _shares(pod: PodInfo, node: NodeInfo) -> tuple[float, float]:
    """The shares of CPU and memory that would be used, each at most 1."""

    def share(name: str) -> float:
        whole = node.free_of.get(name, 0)
        used = node.counted.get(name, 0) + pod.counted.get(name, 0)
        return min(1.0, used / whole) if whole > 0 else 1.0

    return share(CPU), share(MEMORY)


def _normal(points: Mapping[str, int]) -> Mapping[str, float]:
    """Stretch to 0..100; all equal is 0."""
    low, high = min(points.values(), default=0), max(points.values(), default=0)
    if low == high:
        return dict.fromkeys(points, 0.0)
    return {name: BEST * (value - low) / (high - low) for name, value in points.items()}


def _inverse(counts: Mapping[str, int]) -> Mapping[str, float]:
    """The fewer the better: 100 for none, 0 for the most."""
    most = max(counts.values(), default=0)
    if most == 0:
        return dict.fromkeys(counts, BEST)
    return {name: BEST * (most - count) / most for name, count in counts.items()}
