"""What the controllers read of API objects: small frozen projections, one for each kind."""

from typing import Any

import msgspec

from wherry.client.election import Lease
from wherry.client.objects import Meta, Object, OwnerReference, Partial, Projected
from wherry.client.taints import Taint, Toleration
from wherry.clock import parse_rfc3339

__all__ = ["Lease", "Meta", "Object", "OwnerReference", "Partial", "Taint", "Toleration"]

READY = "Ready"


class Condition(Projected, frozen=True):
    """One entry of status.conditions."""

    type: str
    status: str
    reason: str = ""
    message: str = ""
    last_transition_time: str | None = None
    last_update_time: str | None = None
    last_heartbeat_time: str | None = None


class ContainerPort(Projected, frozen=True):
    """A port that a container names."""

    container_port: int
    name: str = ""
    protocol: str = "TCP"


class Container(Projected, frozen=True):
    """A container of a pod: only its ports."""

    ports: list[ContainerPort] = []


class PodIP(Projected, frozen=True):
    """One address of a pod."""

    ip: str = ""


class PodSpec(Projected, frozen=True):
    """spec of a pod."""

    node_name: str = ""
    hostname: str = ""
    subdomain: str = ""
    containers: list[Container] = []
    tolerations: list[Toleration] = []


class PodStatus(Projected, frozen=True):
    """status of a pod."""

    phase: str = "Pending"
    conditions: list[Condition] = []
    pod_ip: str = msgspec.field(default="", name="podIP")
    pod_ips: list[PodIP] = msgspec.field(default_factory=list[PodIP], name="podIPs")


class Pod(Object, frozen=True):
    """A pod, as every controller reads it."""

    spec: PodSpec = PodSpec()
    status: PodStatus = PodStatus()

    @property
    def is_deleting(self) -> bool:
        """Whether its deletion was asked for."""
        return self.metadata.is_deleting

    @property
    def is_finished(self) -> bool:
        """Whether it has ended and will not start again."""
        return self.status.phase in ("Succeeded", "Failed")

    @property
    def is_active(self) -> bool:
        """Whether it counts as a replica."""
        return not self.is_finished and not self.is_deleting

    @property
    def is_scheduled(self) -> bool:
        """Whether it has a node."""
        return bool(self.spec.node_name)

    @property
    def ready_condition(self) -> Condition | None:
        """The condition Ready, if the node has said it."""
        return next((condition for condition in self.status.conditions if condition.type == READY), None)

    @property
    def is_ready(self) -> bool:
        """Whether it takes requests."""
        condition = self.ready_condition
        return condition is not None and condition.status == "True"

    @property
    def ready_since(self) -> float:
        """When it became ready, unix seconds; 0 if it does not say."""
        condition = self.ready_condition
        if condition is None or not condition.last_transition_time:
            return 0.0
        return parse_rfc3339(condition.last_transition_time)

    def is_available(self, now: float, min_ready_s: int) -> bool:
        """Whether it has been ready for `min_ready_s`."""
        return self.is_ready and (min_ready_s == 0 or self.ready_since + min_ready_s <= now)


class NodeSpec(Projected, frozen=True):
    """spec of a node."""

    unschedulable: bool = False
    taints: list[Taint] = []


class NodeStatus(Projected, frozen=True):
    """status of a node."""

    conditions: list[Condition] = []


class Node(Object, frozen=True):
    """A node."""

    spec: NodeSpec = NodeSpec()
    status: NodeStatus = NodeStatus()

    def condition(self, type: str) -> Condition | None:
        """Find a condition by type."""
        return next((condition for condition in self.status.conditions if condition.type == type), None)

    @property
    def is_ready(self) -> bool:
        """Whether the node says that it can run pods, and we believe it."""
        condition = self.condition(READY)
        return condition is not None and condition.status == "True"


class ReplicaSetSpec(Projected, frozen=True):
    """spec of a ReplicaSet. `template` is its JSON."""

    replicas: int = 1
    min_ready_seconds: int = 0
    selector: dict[str, Any] = {}
    template: msgspec.Raw = msgspec.Raw(b"{}")


class ReplicaSetStatus(Projected, frozen=True):
    """status of a ReplicaSet."""

    replicas: int = 0
    fully_labeled_replicas: int = 0
    ready_replicas: int = 0
    available_replicas: int = 0
    observed_generation: int = 0
    conditions: list[Condition] = []


class ReplicaSet(Object, frozen=True):
    """A ReplicaSet."""

    spec: ReplicaSetSpec = ReplicaSetSpec()
    status: ReplicaSetStatus = ReplicaSetStatus()


class RollingUpdate(Projected, frozen=True):
    """How far a rolling update may go beyond and below the wanted number: a count or a percentage."""

    max_surge: int | str = "25%"
    max_unavailable: int | str = "25%"


class Strategy(Projected, frozen=True):
    """How a deployment replaces pods."""

    type: str = "RollingUpdate"
    rolling_update: RollingUpdate | None = None


class DeploymentSpec(Projected, frozen=True):
    """spec of a Deployment. `template` is its JSON."""

    replicas: int = 1
    paused: bool = False
    min_ready_seconds: int = 0
    progress_deadline_seconds: int | None = None
    revision_history_limit: int | None = None
    selector: dict[str, Any] = {}
    strategy: Strategy = Strategy()
    template: msgspec.Raw = msgspec.Raw(b"{}")


class DeploymentStatus(Projected, frozen=True):
    """status of a Deployment."""

    replicas: int = 0
    updated_replicas: int = 0
    ready_replicas: int = 0
    available_replicas: int = 0
    unavailable_replicas: int = 0
    observed_generation: int = 0
    collision_count: int | None = None
    conditions: list[Condition] = []


class Deployment(Object, frozen=True):
    """A Deployment."""

    spec: DeploymentSpec = DeploymentSpec()
    status: DeploymentStatus = DeploymentStatus()


class ServicePort(Projected, frozen=True):
    """A port of a service; `target_port` is a number, or a name that containers give theirs."""

    port: int
    name: str = ""
    protocol: str = "TCP"
    target_port: int | str | None = None
    app_protocol: str | None = None


class ServiceSpec(Projected, frozen=True):
    """spec of a Service."""

    type: str = "ClusterIP"
    selector: dict[str, str] = {}
    ports: list[ServicePort] = []
    cluster_ip: str = msgspec.field(default="", name="clusterIP")
    publish_not_ready_addresses: bool = False
    ip_families: list[str] = []


class Service(Object, frozen=True):
    """A Service."""

    spec: ServiceSpec = ServiceSpec()


class EndpointPort(Projected, frozen=True):
    """A port of an EndpointSlice."""

    name: str = ""
    protocol: str = "TCP"
    port: int | None = None
    app_protocol: str | None = None


class EndpointConditions(Projected, frozen=True):
    """What a backend is fit for."""

    ready: bool | None = None
    serving: bool | None = None
    terminating: bool | None = None


class TargetRef(Projected, frozen=True):
    """The pod behind an endpoint."""

    kind: str = ""
    namespace: str = ""
    name: str = ""
    uid: str = ""


class Endpoint(Projected, frozen=True):
    """One backend."""

    addresses: list[str]
    conditions: EndpointConditions = EndpointConditions()
    hostname: str | None = None
    node_name: str | None = None
    zone: str | None = None
    target_ref: TargetRef | None = None


class EndpointSlice(Object, frozen=True):
    """An EndpointSlice."""

    address_type: str = "IPv4"
    endpoints: list[Endpoint] | None = None
    ports: list[EndpointPort] | None = None


class NamespaceSpec(Projected, frozen=True):
    """spec of a namespace."""

    finalizers: list[str] = []


class NamespaceStatus(Projected, frozen=True):
    """status of a namespace."""

    phase: str = "Active"
    conditions: list[Condition] = []


class Namespace(Object, frozen=True):
    """A namespace."""

    spec: NamespaceSpec = NamespaceSpec()
    status: NamespaceStatus = NamespaceStatus()


class RootCa(Projected, frozen=True):
    """The one field of a ConfigMap's data that we read."""

    certificate: str = msgspec.field(default="", name="ca.crt")


class ConfigMap(Object, frozen=True):
    """A ConfigMap, and of its data only the certificate authority that every namespace has."""

    data: RootCa = RootCa()
