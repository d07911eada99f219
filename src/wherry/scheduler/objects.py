"""What the scheduler reads of API objects: frozen projections of pods, nodes, services and namespaces."""

from typing import Any

import msgspec

from wherry.client.objects import Object, Projected
from wherry.client.taints import Taint, Toleration

Quantities = dict[str, str | int | float]
"""Amounts by resource name, as they stand in objects."""


class Resources(Projected, frozen=True):
    """What a container asks for and may use."""

    requests: Quantities = {}
    limits: Quantities = {}


class HostPort(Projected, frozen=True):
    """A port of a container; with `host_port` it takes that port of the node."""

    host_port: int = 0
    host_ip: str = msgspec.field(default="", name="hostIP")
    protocol: str = "TCP"


class Container(Projected, frozen=True):
    """A container; an init container with restart policy Always is a sidecar."""

    resources: Resources = Resources()
    ports: list[HostPort] = []
    restart_policy: str = ""


class NodeSelectorRequirement(Projected, frozen=True):
    """One condition on a node's labels or fields."""

    key: str
    operator: str
    values: list[str] = []


class NodeSelectorTerm(Projected, frozen=True):
    """Conditions that must all hold; a term without any holds for no node."""

    match_expressions: list[NodeSelectorRequirement] = []
    match_fields: list[NodeSelectorRequirement] = []


class NodeSelector(Projected, frozen=True):
    """Terms of which one must hold."""

    node_selector_terms: list[NodeSelectorTerm] = []


class PreferredNodeTerm(Projected, frozen=True):
    """A term that is worth `weight` (1 to 100)."""

    weight: int
    preference: NodeSelectorTerm = NodeSelectorTerm()


class NodeAffinity(Projected, frozen=True):
    """Which nodes a pod needs, and which it likes."""

    required_during_scheduling_ignored_during_execution: NodeSelector | None = None
    preferred_during_scheduling_ignored_during_execution: list[PreferredNodeTerm] = []


class PodTerm(Projected, frozen=True):
    """Pods by labels and namespaces, seen from one domain of `topology_key`."""

    topology_key: str
    label_selector: dict[str, Any] | None = None
    namespaces: list[str] = []
    namespace_selector: dict[str, Any] | None = None
    match_label_keys: list[str] = []
    mismatch_label_keys: list[str] = []


class PreferredPodTerm(Projected, frozen=True):
    """A pod term that is worth `weight` (1 to 100)."""

    weight: int
    pod_affinity_term: PodTerm


class PodAffinity(Projected, frozen=True):
    """Which pods a pod needs near it (or, as anti-affinity, far from it), and which it likes so."""

    required_during_scheduling_ignored_during_execution: list[PodTerm] = []
    preferred_during_scheduling_ignored_during_execution: list[PreferredPodTerm] = []


class Affinity(Projected, frozen=True):
    """spec.affinity of a pod."""

    node_affinity: NodeAffinity = NodeAffinity()
    pod_affinity: PodAffinity = PodAffinity()
    pod_anti_affinity: PodAffinity = PodAffinity()


class SpreadConstraint(Projected, frozen=True):
    """How evenly pods of one selector lie over the domains of a label."""

    max_skew: int
    topology_key: str
    when_unsatisfiable: str = "DoNotSchedule"
    label_selector: dict[str, Any] | None = None
    min_domains: int | None = None
    node_affinity_policy: str = "Honor"
    node_taints_policy: str = "Ignore"
    match_label_keys: list[str] = []


class SchedulingGate(Projected, frozen=True):
    """A pod with gates waits for others to take them off."""

    name: str = ""


class PodSpec(Projected, frozen=True):
    """spec of a pod, as far as it says where the pod may go."""

    node_name: str = ""
    scheduler_name: str = "default-scheduler"
    priority: int = 0
    node_selector: dict[str, str] = {}
    affinity: Affinity = Affinity()
    tolerations: list[Toleration] = []
    topology_spread_constraints: list[SpreadConstraint] = []
    scheduling_gates: list[SchedulingGate] = []
    containers: list[Container] = []
    init_containers: list[Container] = []
    overhead: Quantities = {}


class Condition(Projected, frozen=True):
    """One entry of status.conditions."""

    type: str
    status: str = ""
    reason: str = ""
    message: str = ""


class PodStatus(Projected, frozen=True):
    """status of a pod."""

    phase: str = "Pending"
    conditions: list[Condition] = []


class Pod(Object, frozen=True):
    """A pod."""

    spec: PodSpec = PodSpec()
    status: PodStatus = PodStatus()

    @property
    def is_finished(self) -> bool:
        """Whether it has ended and holds no resources."""
        return self.status.phase in ("Succeeded", "Failed")


class NodeSpec(Projected, frozen=True):
    """spec of a node."""

    unschedulable: bool = False
    taints: list[Taint] = []


class NodeStatus(Projected, frozen=True):
    """status of a node: what it has, and what of that pods may take."""

    allocatable: Quantities = {}
    capacity: Quantities = {}


class Node(Object, frozen=True):
    """A node."""

    spec: NodeSpec = NodeSpec()
    status: NodeStatus = NodeStatus()


class ServiceSpec(Projected, frozen=True):
    """spec of a service."""

    selector: dict[str, str] = {}


class Service(Object, frozen=True):
    """A service: its pods are spread."""

    spec: ServiceSpec = ServiceSpec()
