"""Nodes come and go: who is silent for too long is not ready, and says so by conditions, taints and its pods' status."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from wherry.client.objects import Key
from wherry.client.taints import NO_EXECUTE, NO_SCHEDULE, NOT_READY, UNREACHABLE, UNSCHEDULABLE, Taint
from wherry.clock import machine, rfc3339
from wherry.controllers.cluster import Cluster, Controller, Watch, itself, together
from wherry.controllers.objects import READY, Condition, Lease, Node, Pod
from wherry.controllers.status import condition, merge_condition
from wherry.errors import NotFound
from wherry.model.kinds import LEASES, NODES, PODS

NODE_LEASES = "kube-node-lease"

SILENT = "NodeStatusUnknown"

JUDGED = (READY, "MemoryPressure", "DiskPressure", "PIDPressure")
"""Conditions that only the node itself can know; a silent node's are Unknown."""

PRESSURES: Mapping[str, str] = {
    "MemoryPressure": "node.kubernetes.io/memory-pressure",
    "DiskPressure": "node.kubernetes.io/disk-pressure",
    "PIDPressure": "node.kubernetes.io/pid-pressure",
    "NetworkUnavailable": "node.kubernetes.io/network-unavailable",
}

OURS = frozenset((NOT_READY, UNREACHABLE, UNSCHEDULABLE, *PRESSURES.values()))
"""The keys of the taints that we alone put on and take off."""

AT_ONCE = 50  # pods of a lost node marked at a time

MARK = "NodeNotReady"
"""The reason that we give in a pod's condition Ready; an agent never does."""

BELIEVE_S = 2.0
"""Cluster seconds that the agent of a node that is back has to say how its pods are."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a node's conditions and taints should be."""

    conditions: Sequence[Condition]
    taints: Sequence[Taint]


def judge(node: Node, silent_s: float, grace_s: float, now: float, *, others_live: bool) -> Judgement:
    """Judge a node that has been silent for `silent_s`.

    When no other node is heard of either, it is more likely that we were cut off (or the machine slept): then nothing
    is to be evicted, so no NoExecute taint is put on for silence. Source: Kubernetes, "Node conditions", "Taint based
    Evictions".
    """
    conditions = list(node.status.conditions)
    if silent_s >= grace_s:
        message = f"The node's agent has not renewed its lease for {grace_s:g} s."
        for type in JUDGED:
            said = node.condition(type)
            unknown = condition(type, "Unknown", SILENT, message, now)
            if said is not None:  # when the node last said so stays: it is a sign of life
                unknown = msgspec.structs.replace(unknown, last_heartbeat_time=said.last_heartbeat_time)
            if said is not None or type == READY:
                conditions = merge_condition(conditions, unknown)
    states = {one.type: one.status for one in conditions}
    wanted = [Taint(UNSCHEDULABLE, NO_SCHEDULE)] if node.spec.unschedulable else []
    wanted += [Taint(key, NO_SCHEDULE) for type, key in PRESSURES.items() if states.get(type) == "True"]
    ready = states.get(READY)
    if ready == "Unknown":
        wanted.append(Taint(UNREACHABLE, NO_SCHEDULE))
        if others_live:
            wanted.append(Taint(UNREACHABLE, NO_EXECUTE))
    elif ready != "True":
        wanted.append(Taint(NOT_READY, NO_SCHEDULE))
        if ready == "False":
            wanted.append(Taint(NOT_READY, NO_EXECUTE))
    return Judgement(conditions, _taints(node.spec.taints, wanted, now))


async def reconcile(key: Key, cluster: Cluster) -> float | None:
    """Judge one node and write what has changed: its conditions, its pods' readiness, its taints."""
    name = key[1]
    node = cluster.get(NODES, Node, key)
    if node is None:
        cluster.memory.forget(name)
        cluster.memory.forget(f"ready {name}")
        return None
    grace_s = cluster.settings.node_grace_s
    now = cluster.now()
    cluster.memory.awake(machine.now(), now)
    silent_s = now - cluster.memory.since(name, sign_of_life(cluster, node), now)
    judgement = judge(node, silent_s, grace_s, now, others_live=_others_live(cluster, node, now))
    try:
        await _write(cluster, node, judgement)
        believe_s = await _believe_pods(cluster, node, now) if silent_s < grace_s else None
    except NotFound:
        return None
    waits = [wait for wait in (believe_s, grace_s - silent_s) if wait is not None and wait > 0]
    return min(waits) if silent_s < grace_s else None


def sign_of_life(cluster: Cluster, node: Node) -> str:
    """What changes when the node's agent lives: its lease's time; by our own clock we note when that changed."""
    lease = cluster.view(LEASES, Lease).get(node.metadata.name, NODE_LEASES)
    ready = node.condition(READY)
    renewed = lease.spec.renew_time if lease is not None else ""
    return f"{renewed} {ready.last_heartbeat_time if ready is not None else ''}"


def _others_live(cluster: Cluster, node: Node, now: float) -> bool:
    """Whether some other node was heard of within the grace."""
    for other in cluster.view(NODES, Node).list():
        if other.metadata.name != node.metadata.name and other.is_ready:
            seen = cluster.memory.since(other.metadata.name, sign_of_life(cluster, other), now)
            if now - seen < cluster.settings.node_grace_s:
                return True
    return False


async def _write(cluster: Cluster, node: Node, judgement: Judgement) -> None:
    if list(judgement.conditions) != node.status.conditions:
        status = {"status": {"conditions": msgspec.to_builtins(judgement.conditions)}}
        await cluster.patch(NODES, node.metadata, status, subresource="status")
        if node.is_ready:
            message = f"Node {node.metadata.name} status is now: NodeNotReady"
            cluster.event(NODES, node.metadata, "NodeNotReady", message)
    ready = next((one for one in judgement.conditions if one.type == READY), None)
    if ready is not None and ready.status != "True":
        await _mark_pods(cluster, node)
    if list(judgement.taints) != node.spec.taints:
        taints = msgspec.to_builtins(judgement.taints)
        await cluster.patch(NODES, node.metadata, {"spec": {"taints": taints or None}})


async def _mark_pods(cluster: Cluster, node: Node) -> None:
    """Say of each pod there that it is not ready, so that no requests go to it."""
    ready = [pod for pod in cluster.view(PODS, Pod).by_index("node", node.metadata.name) if pod.is_ready]
    for start in range(0, len(ready), AT_ONCE):
        await together(_mark_pod(cluster, pod) for pod in ready[start : start + AT_ONCE])


async def _mark_pod(cluster: Cluster, pod: Pod) -> None:
    time = rfc3339(cluster.now())
    unready = {"type": READY, "status": "False", "reason": MARK, "lastTransitionTime": time}
    try:
        patch = {"status": {"conditions": [unready]}}
        await cluster.patch(PODS, pod.metadata, patch, subresource="status", type="strategic")
    except NotFound:
        return
    cluster.event(PODS, pod.metadata, "NodeNotReady", "Node is not ready", warning=True)


async def _believe_pods(cluster: Cluster, node: Node, now: float) -> float | None:
    """Take our mark off the pods of a node that is back, unless its agent has said something else of them meanwhile.

    The agent gets `BELIEVE_S` to do so: it tells only what changes, and for it nothing may have changed. Returns the
    seconds until then, if there are such pods.
    """
    marked = [pod for pod in cluster.view(PODS, Pod).by_index("node", node.metadata.name) if _is_marked(pod)]
    back_s = now - cluster.memory.since(f"ready {node.metadata.name}", str(node.is_ready), now)
    if not marked or not node.is_ready:
        return None
    if back_s < BELIEVE_S:
        return BELIEVE_S - back_s
    ready = {"type": READY, "status": "True", "reason": None, "lastTransitionTime": rfc3339(now)}
    for start in range(0, len(marked), AT_ONCE):
        await together(
            cluster.patch(
                PODS,
                pod.metadata,
                {"status": {"conditions": [ready]}},
                subresource="status",
                type="strategic",
                guarded=True,
            )
            for pod in marked[start : start + AT_ONCE]
        )
    return None


def _is_marked(pod: Pod) -> bool:
    condition = pod.ready_condition
    return condition is not None and condition.status == "False" and condition.reason == MARK and pod.is_active


def _taints(have: Sequence[Taint], wanted: Sequence[Taint], now: float) -> list[Taint]:
    """Others' taints as they are, ours as wanted; a taint that stays keeps its time."""
    kept = [taint for taint in have if taint.key not in OURS or _find(wanted, taint) is not None]
    new = [taint for taint in wanted if _find(have, taint) is None]
    return [*kept, *(Taint(taint.key, taint.effect, taint.value, rfc3339(now)) for taint in new)]


def _find(taints: Sequence[Taint], wanted: Taint) -> Taint | None:
    return next((taint for taint in taints if (taint.key, taint.effect) == (wanted.key, wanted.effect)), None)


def by_node(pod: Pod) -> Iterable[str]:
    """Index: the node that a pod is bound to."""
    return (pod.spec.node_name,) if pod.spec.node_name else ()


def _wakes_of_lease(cluster: Cluster, before: Lease | None, now: Lease | None) -> Iterable[Key]:
    lease = now or before
    if lease is not None and lease.metadata.namespace == NODE_LEASES:
        yield "", lease.metadata.name


def _wakes_of_pod(cluster: Cluster, before: Pod | None, now: Pod | None) -> Iterable[Key]:
    """A pod that says it is ready on a node that we take for lost is marked again."""
    if now is not None and now.is_ready and now.spec.node_name and (before is None or not before.is_ready):
        node = cluster.view(NODES, Node).get(now.spec.node_name)
        if node is not None and not node.is_ready:
            yield "", now.spec.node_name


CONTROLLER = Controller(
    "node-controller",
    (
        Watch(NODES, Node, itself),
        Watch(LEASES, Lease, _wakes_of_lease),
        Watch(PODS, Pod, _wakes_of_pod, {"node": by_node}),
    ),
    reconcile,
    workers=4,
)
