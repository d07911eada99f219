"""One decision: filter, score, choose. Pure."""

from collections.abc import Mapping, Sequence

from wherry.scheduler.decision import Decision, explain
from wherry.scheduler.filters import fits, refusals
from wherry.scheduler.scores import rank, siblings_of
from wherry.scheduler.state import NodeInfo, PodInfo, State
from wherry.scheduler.topology import topology_of

ALL_BELOW = 100
"""Clusters up to so many nodes are searched whole."""


def enough(nodes: int) -> int:
    """How many fit nodes are enough to choose from: fewer of many, so that a decision's cost grows slowly."""
    if nodes <= ALL_BELOW:
        return nodes
    return max(ALL_BELOW, nodes * max(5, 50 - nodes // 125) // 100)


def decide(pod: PodInfo, state: State, now: float, *, start: int = 0) -> Decision:
    """Choose a node for a pod, or say of every node why not.

    The search begins at the node numbered `start`, so that in large clusters each has its turn. Among equally good
    nodes the one with fewer pods is taken, then the first by name: the same state gives the same answer.
    """
    nodes = list(state.nodes.values())
    topology = topology_of(pod, state)
    fit: list[NodeInfo] = []
    wanted = enough(len(nodes))
    offset = start % len(nodes) if nodes else 0
    for node in (*nodes[offset:], *nodes[:offset]):
        if fits(pod, node, topology):
            fit.append(node)
            if len(fit) >= wanted:
                break
    namespace, name = pod.key
    if not fit:
        why = {node.name: refusals(pod, node, topology) for node in nodes}
        return Decision(namespace, name, now, refusals=why, message=explain(why))
    scores = rank(pod, fit, topology, siblings_of(pod, state)) if len(fit) > 1 else {fit[0].name: 0.0}
    best = _best(fit, scores)
    message = f"Successfully assigned {namespace}/{name} to {best.name}"
    return Decision(namespace, name, now, node=best.name, scores=scores, message=message)


def _best(fit: Sequence[NodeInfo], scores: Mapping[str, float]) -> NodeInfo:
    return min(fit, key=lambda node: (-round(scores[node.name], 6), len(node.pods), node.name))
