"""Topology: how pods lie over domains (nodes, zones), for spreading, affinity and anti-affinity. Pure.

A `Topology` is worked out once for one pod against the state; each node then asks it by its labels.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from wherry.client.taints import NO_EXECUTE, NO_SCHEDULE, untolerated
from wherry.model.selectors import LabelSelector
from wherry.scheduler.objects import SpreadConstraint
from wherry.scheduler.selection import fits_selection
from wherry.scheduler.state import NodeInfo, PodInfo, State, Term, with_keys

Domain = tuple[str, str]
"""(label, value): one node or one zone, as its label says."""


@dataclass(frozen=True, slots=True)
class Spread:
    """One spread constraint with the counts of its domains. `own` is 1 if the pod itself is counted."""

    constraint: SpreadConstraint
    counts: Mapping[str, int]
    own: int
    fewest: int

    def skew(self, value: str) -> int:
        """By how much the domain would have more than the emptiest, were the pod put there."""
        return self.counts.get(value, 0) + self.own - self.fewest


@dataclass(frozen=True, slots=True)
class Topology:
    """What a pod's placement must look at beyond the node itself."""

    hard: Sequence[Spread] = ()
    soft: Sequence[Spread] = ()
    wanted: Sequence[tuple[str, frozenset[str], bool]] = ()
    """For each affinity term: its label, the values of domains with matching pods, whether any domain will do."""
    avoided: frozenset[Domain] = frozenset()
    """Domains with pods that the pod refuses to be near."""
    refusing: frozenset[Domain] = frozenset()
    """Domains with pods that refuse to be near the pod."""
    liked: Mapping[Domain, int] = field(default_factory=dict[Domain, int])
    """Weights of preferred affinity, negative for anti-affinity, by domain."""


def topology_of(pod: PodInfo, state: State) -> Topology:
    """Work out a pod's topology; cheap for pods without constraints, and where no pod has anti-affinity."""
    spec = pod.pod.spec
    spreads = [_spread(one, pod, state) for one in spec.topology_spread_constraints]
    return Topology(
        hard=[one for one in spreads if one.constraint.when_unsatisfiable == "DoNotSchedule"],
        soft=[one for one in spreads if one.constraint.when_unsatisfiable != "DoNotSchedule"],
        wanted=_wanted(pod, state),
        avoided=_avoided(pod, state),
        refusing=_refusing(pod, state),
        liked=_liked(pod, state),
    )


def _spread(constraint: SpreadConstraint, pod: PodInfo, state: State) -> Spread:
    keys = with_keys(constraint.label_selector, constraint.match_label_keys, pod.labels)
    selector = LabelSelector.of(keys)
    counts: dict[str, int] = {}
    needed = {
        one.topology_key
        for one in pod.pod.spec.topology_spread_constraints
        if one.when_unsatisfiable == constraint.when_unsatisfiable
    }
    for node in state.nodes.values():
        if not needed <= node.labels.keys() or not _counts(constraint, pod, node):
            continue
        value = node.labels[constraint.topology_key]
        counts[value] = counts.get(value, 0) + sum(
            other.namespace == pod.namespace
            and other.pod.metadata.deletion_timestamp is None
            and selector.matches(other.labels)
            for other in node.pods.values()
        )
    enough = constraint.min_domains is None or len(counts) >= constraint.min_domains
    fewest = min(counts.values(), default=0) if enough else 0
    return Spread(constraint, counts, int(selector.matches(pod.labels)), fewest)


def _counts(constraint: SpreadConstraint, pod: PodInfo, node: NodeInfo) -> bool:
    """Whether a node's domain is one that the pod could be in at all, by the constraint's policies."""
    if constraint.node_affinity_policy != "Ignore" and not fits_selection(pod.pod.spec, node.node):
        return False
    if constraint.node_taints_policy != "Honor":
        return True
    taints, tolerations = node.node.spec.taints, pod.pod.spec.tolerations
    return untolerated(taints, tolerations, (NO_SCHEDULE, NO_EXECUTE)) is None


def _wanted(pod: PodInfo, state: State) -> Sequence[tuple[str, frozenset[str], bool]]:
    """For required affinity. The first pod of a group that wants to be near itself may start anywhere."""
    terms = pod.affinity_terms
    if not terms:
        return ()
    found: list[set[str]] = [set() for _ in terms]
    for other, node in state.placed():
        if all(term.matches(other, state.namespaces) for term in terms):
            for values, term in zip(found, terms, strict=True):
                if term.topology_key in node.labels:
                    values.add(node.labels[term.topology_key])
    alone = not any(found) and all(term.matches(pod, state.namespaces) for term in terms)
    return [(term.topology_key, frozenset(values), alone) for values, term in zip(found, terms, strict=True)]


def _avoided(pod: PodInfo, state: State) -> frozenset[Domain]:
    if not pod.anti_terms:
        return frozenset()
    return frozenset(
        (term.topology_key, node.labels[term.topology_key])
        for other, node in state.placed()
        for term in pod.anti_terms
        if term.topology_key in node.labels and term.matches(other, state.namespaces)
    )


def _refusing(pod: PodInfo, state: State) -> frozenset[Domain]:
    found: set[Domain] = set()
    for other in state.anti.values():
        node = state.node_of(other.uid)
        for term in other.anti_terms if node is not None else ():
            if node is not None and term.topology_key in node.labels and term.matches(pod, state.namespaces):
                found.add((term.topology_key, node.labels[term.topology_key]))
    return frozenset(found)


def _liked(pod: PodInfo, state: State) -> Mapping[Domain, int]:
    affinity = pod.pod.spec.affinity
    near = affinity.pod_affinity.preferred_during_scheduling_ignored_during_execution
    far = affinity.pod_anti_affinity.preferred_during_scheduling_ignored_during_execution
    terms = [(Term(one.pod_affinity_term, pod), one.weight) for one in near]
    terms += [(Term(one.pod_affinity_term, pod), -one.weight) for one in far]
    liked: Counter[Domain] = Counter()
    for other, node in state.placed() if terms else ():
        for term, weight in terms:
            if term.topology_key in node.labels and term.matches(other, state.namespaces):
                liked[term.topology_key, node.labels[term.topology_key]] += weight
    return liked
