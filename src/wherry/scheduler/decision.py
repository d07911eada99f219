"""Decisions: where a pod goes, or, for each node, why it cannot go there."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum


class Code(Enum):
    """Why a node is not for a pod. The values are stable: people and programs may rely on them."""

    UNSCHEDULABLE = "NodeUnschedulable"
    NODE_NAME = "NodeNameMismatch"
    TAINT = "UntoleratedTaint"
    NODE_AFFINITY = "NodeAffinityMismatch"
    PORTS = "HostPortTaken"
    CPU = "InsufficientCpu"
    MEMORY = "InsufficientMemory"
    STORAGE = "InsufficientEphemeralStorage"
    PODS = "TooManyPods"
    RESOURCE = "InsufficientResource"
    SPREAD = "TopologySpread"
    SPREAD_LABEL = "TopologyLabelMissing"
    AFFINITY = "PodAffinityMismatch"
    ANTI_AFFINITY = "PodAntiAffinityConflict"
    REFUSED_BY_PODS = "ExistingPodAntiAffinity"
    GATED = "SchedulingGated"
    NO_NODES = "NoNodes"


@dataclass(frozen=True, slots=True)
class Refusal:
    """One reason against one node.

    `message` has upstream's words, without names of nodes, so that equal ones can be counted; `detail` says what this
    node lacks, `lack` how far it is off (0: anything but an amount; 0.5: half of what is asked for is missing).
    """

    code: Code
    message: str
    detail: str = ""
    lack: float = 0.0


@dataclass(frozen=True, slots=True)
class Decision:
    """What became of one attempt. `node` is "" when the pod goes nowhere; then `refusals` has every node's reasons.

    `time` is cluster time; `scores` are those of the nodes that were fit, `message` what people are told.
    """

    namespace: str
    name: str
    time: float
    node: str = ""
    refusals: Mapping[str, Sequence[Refusal]] = field(default_factory=dict[str, Sequence[Refusal]])
    scores: Mapping[str, float] = field(default_factory=dict[str, float])
    message: str = ""

    @property
    def codes(self) -> frozenset[Code]:
        """Every reason that stands against some node."""
        return frozenset(refusal.code for refusals in self.refusals.values() for refusal in refusals)

    @property
    def nearest(self) -> str:
        """The node that is least far from taking the pod: fewest reasons, then the smallest lack. "" without nodes."""
        return min(self.refusals, key=lambda name: (*_distance(self.refusals[name]), name), default="")


def explain(refusals: Mapping[str, Sequence[Refusal]]) -> str:
    """Say why no node takes a pod, in the form that people and tools know: the first reason of each node, counted.

    Several lacking resources of one node count as one reason each.
    """
    if not refusals:
        return "no nodes available to schedule pods"
    counts: Counter[str] = Counter()
    for reasons in refusals.values():
        first = reasons[0].code
        group = _AMOUNTS if first in _AMOUNTS else (first,)
        counts.update({reason.message for reason in reasons if reason.code in group})
    told = ", ".join(sorted(f"{count} {message}" for message, count in counts.items()))
    return f"0/{len(refusals)} nodes are available: {told}."


def compact(decision: Decision, nodes: int = 10) -> str:
    """A decision against a pod as a line of JSON for other programs: the `nodes` nearest, with codes and details.

    `{"at": 1767225600, "of": 3, "nearest": "a", "nodes": {"a": [["InsufficientCpu", "cpu: asks for 2, 500m free"]]}}`
    """
    by_distance = sorted(decision.refusals, key=lambda name: (*_distance(decision.refusals[name]), name))
    return json.dumps(
        {
            "at": int(decision.time),
            "of": len(decision.refusals),
            "nearest": decision.nearest,
            "nodes": {
                name: [[refusal.code.value, refusal.detail] for refusal in decision.refusals[name]]
                for name in by_distance[:nodes]
            },
        },
        separators=(",", ":"),
    )


_AMOUNTS = (Code.CPU, Code.MEMORY, Code.STORAGE, Code.PODS, Code.RESOURCE)


def _distance(refusals: Sequence[Refusal]) -> tuple[int, float]:
    return len(refusals), sum(refusal.lack or 1.0 for refusal in refusals)
