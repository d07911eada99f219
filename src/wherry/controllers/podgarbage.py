"""Pods that nobody else will remove: of nodes that are no more, ending without a node, finished and too many."""

from collections.abc import Iterable

from wherry.client.objects import Key
from wherry.controllers.cluster import Cluster, Controller, Watch, itself, together
from wherry.controllers.nodelife import by_node
from wherry.controllers.objects import Node, Pod
from wherry.errors import NotFound
from wherry.model.kinds import NODES, PODS

OUT_OF_SERVICE = "node.kubernetes.io/out-of-service"
"""A taint by which a person says: this node is off, its pods run nowhere."""

FINISHED = "finished"

AT_ONCE = 50  # finished pods removed in one go; the next one that finishes brings on the next


async def reconcile(key: Key, cluster: Cluster) -> float | None:
    """Remove one pod if it is garbage."""
    pod = cluster.get(PODS, Pod, key)
    if pod is None:
        cluster.memory.forget("/".join(key))
        return None
    if not pod.is_scheduled:
        if pod.is_deleting:
            await cluster.delete(PODS, pod.metadata, grace_s=0)  # no agent will say that it has ended
        return None
    node = cluster.view(NODES, Node).get(pod.spec.node_name)
    if node is None:
        return await _of_vanished_node(key, cluster, pod)
    cluster.memory.forget("/".join(key))
    if pod.is_deleting and not node.is_ready and any(taint.key == OUT_OF_SERVICE for taint in node.spec.taints):
        await _remove(cluster, pod)
    elif pod.is_finished:
        await _too_many(cluster)
    return None


async def _of_vanished_node(key: Key, cluster: Cluster, pod: Pod) -> float | None:
    """Wait for a while whether the node comes, ask the server itself, then remove the pod."""
    now = cluster.now()
    missing_s = now - cluster.memory.since("/".join(key), pod.spec.node_name, now)
    if missing_s < cluster.settings.vanished_grace_s:
        return cluster.settings.vanished_grace_s - missing_s
    if await cluster.read(NODES, Node, ("", pod.spec.node_name)) is None:
        await _remove(cluster, pod)
    return None


async def _remove(cluster: Cluster, pod: Pod) -> None:
    """Say that the pod failed, as its agent would have, and remove it."""
    if not pod.is_finished:
        try:
            await cluster.patch(PODS, pod.metadata, {"status": {"phase": "Failed"}}, subresource="status")
        except NotFound:
            return
    await cluster.delete(PODS, pod.metadata, grace_s=0)


async def _too_many(cluster: Cluster) -> None:
    """Remove the oldest finished pods if there are more than are kept."""
    finished = cluster.view(PODS, Pod).by_index(FINISHED, "")
    excess = len(finished) - cluster.settings.finished_pods
    if excess > 0:
        by_age = sorted(finished, key=lambda one: (one.metadata.created, one.metadata.name))
        await together(cluster.delete(PODS, one.metadata, grace_s=0) for one in by_age[: min(excess, AT_ONCE)])


def _wakes_of_node(cluster: Cluster, before: Node | None, now: Node | None) -> Iterable[Key]:
    """All pods of a node that went, or that a person took out of service; of one that came, those that missed it."""
    if before is not None and now is not None and before.spec.taints == now.spec.taints:
        return
    found = now or before
    for pod in cluster.view(PODS, Pod).by_index("node", found.metadata.name) if found is not None else ():
        yield pod.key


def _by_finished(pod: Pod) -> Iterable[str]:
    """Index: all finished pods under ""."""
    return ("",) if pod.is_finished else ()


CONTROLLER = Controller(
    "pod-garbage-collector",
    (
        Watch(PODS, Pod, itself, {"node": by_node, FINISHED: _by_finished}),
        Watch(NODES, Node, _wakes_of_node),
    ),
    reconcile,
    workers=2,
)
