"""Evictions: pods leave nodes whose NoExecute taints they do not tolerate, and lost nodes whose fence has cut them off.

A fence is a promise of the node itself (label or annotation `wherry.dev/fence-seconds`): so many seconds after its agent last
renewed its lease, its warden cuts its pods off the network. From then on a pod there can serve nobody, and may be
replaced under the same name. Without a fence a lost node's pods are only asked to go, as upstream does.
"""

from collections.abc import Iterable, Sequence

from wherry.client.objects import Key
from wherry.client.taints import NO_EXECUTE, Taint, Toleration
from wherry.clock import machine, parse_rfc3339
from wherry.controllers.cluster import Cluster, Controller, Watch, itself
from wherry.controllers.nodelife import SILENT, by_node, sign_of_life
from wherry.controllers.objects import READY, Lease, Node, Pod
from wherry.model.kinds import LEASES, NODES, PODS

FENCE = "wherry.dev/fence-seconds"


def due(taints: Sequence[tuple[Taint, float]], tolerations: Sequence[Toleration]) -> float | None:
    """When a pod must leave: at once (0), at a time, or never (None). `taints` are those that evict, with since when.

    A taint that nothing tolerates evicts at once; one tolerated for some seconds evicts after them, the shortest
    counting. Source: Kubernetes, "Taint based Evictions".
    """
    times: list[float] = []
    for taint, since in taints:
        matching = [one for one in tolerations if one.tolerates(taint)]
        if not matching:
            return 0.0
        seconds = [one.toleration_seconds for one in matching if one.toleration_seconds is not None]
        if seconds:
            times.append(since + max(0, min(seconds)))
    return min(times) if times else None


def fence_s(node: Node) -> float | None:
    """After how many seconds of silence the node's pods are surely cut off; None if nothing promises that."""
    text = node.metadata.annotations.get(FENCE) or node.metadata.labels.get(FENCE, "")
    try:
        return float(text) or None
    except ValueError:
        return None


async def reconcile(key: Key, cluster: Cluster) -> float | None:
    """Evict one pod if it must leave; else say when to look again."""
    pod = cluster.get(PODS, Pod, key)
    node = cluster.view(NODES, Node).get(pod.spec.node_name) if pod is not None and pod.is_scheduled else None
    if pod is None or node is None:
        return None
    now = cluster.now()
    cluster.memory.awake(machine.now(), now)
    cut = _cut_off(cluster, node, now)
    if cut is not None and cut <= now:
        message = f"Node {node.metadata.name} is lost and its fence has cut this pod off"
        cluster.event(PODS, pod.metadata, "FencedEviction", message, warning=True)
        await cluster.delete(PODS, pod.metadata, grace_s=0)
        return None
    if pod.is_deleting or pod.is_finished:
        return cut - now if cut is not None else None
    leave = due(_evicting(cluster, node, now), pod.spec.tolerations)
    if leave is not None and leave <= now:
        cluster.event(PODS, pod.metadata, "TaintManagerEviction", f"Marking for deletion Pod {'/'.join(key)}")
        await cluster.delete(PODS, pod.metadata)
        return cut - now if cut is not None else None
    times = [time for time in (leave, cut) if time is not None]
    return min(times) - now if times else None


def _evicting(cluster: Cluster, node: Node, now: float) -> list[tuple[Taint, float]]:
    """The node's NoExecute taints, each with since when: its own time, or when we first saw it."""
    found: list[tuple[Taint, float]] = []
    for taint in node.spec.taints:
        if taint.effect == NO_EXECUTE:
            seen = cluster.memory.since(f"{node.metadata.uid} {taint.key}", taint.value, now)
            found.append((taint, parse_rfc3339(taint.time_added) if taint.time_added else seen))
    return found


def _cut_off(cluster: Cluster, node: Node, now: float) -> float | None:
    """When the fence of a silent node has surely cut its pods off; None if it lives, or makes no such promise."""
    seen = cluster.memory.since(node.metadata.name, sign_of_life(cluster, node), now)
    ready = node.condition(READY)
    promised = fence_s(node)
    lost = ready is not None and ready.status == "Unknown" and ready.reason == SILENT
    if not cluster.settings.fenced_eviction or promised is None or not lost:
        return None
    if not any(taint.effect == NO_EXECUTE for taint in node.spec.taints):
        return None  # all nodes are silent: it may be we who are cut off
    return seen + promised + cluster.settings.fence_margin_s


def _wakes_of_node(cluster: Cluster, before: Node | None, now: Node | None) -> Iterable[Key]:
    """All pods of a node whose taints or readiness changed."""
    same = before is not None and now is not None and before.spec.taints == now.spec.taints
    if same and before is not None and now is not None and before.condition(READY) == now.condition(READY):
        return
    if now is None:
        if before is not None:
            cluster.memory.forget(before.metadata.name)
            for taint in before.spec.taints:
                cluster.memory.forget(f"{before.metadata.uid} {taint.key}")
        return
    for pod in cluster.view(PODS, Pod).by_index("node", now.metadata.name):
        yield pod.key


def _notes_lease(cluster: Cluster, before: Lease | None, now: Lease | None) -> Iterable[Key]:
    """Nothing wakes by a lease; but when a node was last heard of counts from when we saw it."""
    if now is not None:
        node = cluster.view(NODES, Node).get(now.metadata.name)
        if node is not None:
            cluster.memory.since(node.metadata.name, sign_of_life(cluster, node), cluster.now())
    return ()


CONTROLLER = Controller(
    "taint-eviction-controller",
    (
        Watch(PODS, Pod, itself, {"node": by_node}),
        Watch(NODES, Node, _wakes_of_node),
        Watch(LEASES, Lease, _notes_lease),
    ),
    reconcile,
    workers=4,
    acts_as="node-controller",
)
