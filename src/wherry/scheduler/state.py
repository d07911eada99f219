"""What the scheduler knows of the cluster: nodes, the pods on them, and those it has just sent there."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from wherry.model.selectors import LabelSelector
from wherry.scheduler.objects import Node, Pod, PodTerm, Service
from wherry.scheduler.resources import PODS, Amounts, allocatable, counted_request, request_of, total

Port = tuple[str, int, str]
"""(protocol, port, address): "" or 0.0.0.0 is every address of the node."""


class PodInfo:
    """A pod with what filters ask of it worked out once."""

    def __init__(self, pod: Pod) -> None:
        self.pod = pod
        self.key = pod.key
        self.uid = pod.metadata.uid
        self.namespace = pod.metadata.namespace
        self.labels = pod.metadata.labels

    @cached_property
    def request(self) -> Amounts:
        """What it asks for; itself counts as one pod."""
        return {**request_of(self.pod.spec), PODS: 1}

    @cached_property
    def counted(self) -> Amounts:
        """What it counts as in scores."""
        return counted_request(self.pod.spec)

    @cached_property
    def ports(self) -> frozenset[Port]:
        """The ports of the node that it takes."""
        return frozenset(
            (port.protocol, port.host_port, port.host_ip)
            for container in (*self.pod.spec.containers, *self.pod.spec.init_containers)
            for port in container.ports
            if port.host_port > 0
        )

    @cached_property
    def anti_terms(self) -> tuple["Term", ...]:
        """The pods it refuses to be near."""
        anti = self.pod.spec.affinity.pod_anti_affinity
        return tuple(Term(term, self) for term in anti.required_during_scheduling_ignored_during_execution)

    @cached_property
    def affinity_terms(self) -> tuple["Term", ...]:
        """The pods it needs to be near."""
        affinity = self.pod.spec.affinity.pod_affinity
        return tuple(Term(term, self) for term in affinity.required_during_scheduling_ignored_during_execution)


class Term:
    """A pod term, read once: which pods it means, seen from its owner."""

    def __init__(self, term: PodTerm, owner: PodInfo) -> None:
        self.topology_key = term.topology_key
        self._selector = LabelSelector.of(with_keys(term.label_selector, term.match_label_keys, owner.labels))
        self._unlike = {key: owner.labels[key] for key in term.mismatch_label_keys if key in owner.labels}
        self._namespaces = frozenset(term.namespaces)
        self._by_labels = None if term.namespace_selector is None else LabelSelector.of(term.namespace_selector)
        if not self._namespaces and self._by_labels is None:
            self._namespaces = frozenset((owner.namespace,))

    def matches(self, pod: PodInfo, namespaces: Mapping[str, Mapping[str, str]]) -> bool:
        """Whether the term means this pod; `namespaces` are the labels of each."""
        named = pod.namespace in self._namespaces
        if not named and (self._by_labels is None or not self._by_labels.matches(namespaces.get(pod.namespace, {}))):
            return False
        if any(pod.labels.get(key) == value for key, value in self._unlike.items()):
            return False
        return self._selector.matches(pod.labels)


def with_keys(
    selector: Mapping[str, object] | None, keys: Iterable[str], labels: Mapping[str, str]
) -> dict[str, object] | None:
    """A selector that also asks for the same values of `keys` as `labels` have (matchLabelKeys)."""
    if selector is None:
        return None
    same: list[object] = [{"key": key, "operator": "In", "values": [labels[key]]} for key in keys if key in labels]
    before = selector.get("matchExpressions")
    return {**selector, "matchExpressions": [*(before if isinstance(before, list) else []), *same]}


class NodeInfo:
    """A node, and the pods that are on it or on their way."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.name = node.metadata.name
        self.labels = node.metadata.labels
        self.free_of = allocatable(node.status.allocatable or node.status.capacity)
        self.pods: dict[str, PodInfo] = {}
        self._used: Amounts | None = None
        self._counted: Amounts | None = None

    @property
    def used(self) -> Amounts:
        """What its pods ask for together. Always summed anew after a change: nothing can be released twice, or never."""
        if self._used is None:
            self._used = total(pod.request for pod in self.pods.values())
        return self._used

    @property
    def counted(self) -> Amounts:
        """What its pods count as in scores."""
        if self._counted is None:
            self._counted = total(pod.counted for pod in self.pods.values())
        return self._counted

    def changed(self) -> None:
        """Its pods have changed."""
        self._used = self._counted = None


@dataclass(slots=True)
class State:
    """Nodes by name with their pods; the labels of namespaces; services by namespace.

    A pod that we `assume` on a node counts there from that moment, until a view shows it bound, or we `forget` it.
    """

    nodes: dict[str, NodeInfo] = field(default_factory=dict[str, NodeInfo])
    namespaces: dict[str, Mapping[str, str]] = field(default_factory=dict[str, Mapping[str, str]])
    services: dict[str, dict[str, Service]] = field(default_factory=dict[str, dict[str, Service]])
    anti: dict[str, PodInfo] = field(default_factory=dict[str, PodInfo])
    _where: dict[str, str] = field(default_factory=dict[str, str])
    _homeless: dict[str, dict[str, PodInfo]] = field(default_factory=dict[str, dict[str, PodInfo]])
    _assumed: set[str] = field(default_factory=set[str])

    def set_node(self, node: Node) -> None:
        """A node is there, or has changed."""
        before = self.nodes.get(node.metadata.name)
        after = NodeInfo(node)
        after.pods = before.pods if before is not None else self._homeless.pop(node.metadata.name, {})
        self.nodes[node.metadata.name] = after

    def remove_node(self, name: str) -> None:
        """A node is gone; its pods are remembered, should it come back."""
        gone = self.nodes.pop(name, None)
        if gone is not None and gone.pods:
            self._homeless[name] = gone.pods

    def set_pod(self, pod: Pod) -> None:
        """A view shows a pod. One not bound yet stays where we have assumed it."""
        uid = pod.metadata.uid
        if pod.is_finished:
            self.remove_pod(uid)
        elif pod.spec.node_name:
            self._assumed.discard(uid)
            self._put(PodInfo(pod), pod.spec.node_name)

    def remove_pod(self, uid: str) -> None:
        """A pod is gone, or has ended."""
        self._assumed.discard(uid)
        self._take(uid)

    def assume(self, pod: PodInfo, node: str) -> None:
        """Count the pod on the node from now on: it is being bound."""
        self._assumed.add(pod.uid)
        self._put(pod, node)

    def forget(self, uid: str) -> None:
        """The pod could not be bound. Nothing if a view has shown it bound meanwhile."""
        if uid in self._assumed:
            self._assumed.discard(uid)
            self._take(uid)

    def is_placed(self, uid: str) -> bool:
        """Whether the pod is on a node, or on its way."""
        return uid in self._where

    def placed(self) -> Iterator[tuple[PodInfo, NodeInfo]]:
        """Every pod on a node that is there."""
        for node in self.nodes.values():
            for pod in node.pods.values():
                yield pod, node

    def node_of(self, uid: str) -> NodeInfo | None:
        """The node of a placed pod, if it is there."""
        return self.nodes.get(self._where.get(uid, ""))

    def _put(self, pod: PodInfo, name: str) -> None:
        self._take(pod.uid)
        self._where[pod.uid] = name
        if pod.anti_terms:
            self.anti[pod.uid] = pod
        node = self.nodes.get(name)
        if node is None:
            self._homeless.setdefault(name, {})[pod.uid] = pod
        else:
            node.pods[pod.uid] = pod
            node.changed()

    def _take(self, uid: str) -> None:
        name = self._where.pop(uid, None)
        self.anti.pop(uid, None)
        if name is None:
            return
        node = self.nodes.get(name)
        if node is not None:
            node.pods.pop(uid, None)
            node.changed()
        elif name in self._homeless:
            self._homeless[name].pop(uid, None)
            if not self._homeless[name]:
                del self._homeless[name]
