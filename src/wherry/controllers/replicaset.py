"""ReplicaSets: as many pods of one template as asked for."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import msgspec

from wherry.client.objects import Key, Meta
from wherry.client.protocol import Json
from wherry.controllers.cluster import Cluster, Controller, Watch, by_owner, its_controller, itself, together
from wherry.controllers.objects import Pod, ReplicaSet, ReplicaSetStatus
from wherry.controllers.status import condition, merge_condition
from wherry.errors import Conflict, Forbidden, NotFound, WherryError
from wherry.model.kinds import PODS, REPLICASETS
from wherry.model.selectors import LabelSelector

BURST = 500
"""Pods created or deleted in one reconcile; the rest follow in the next."""

DELETION_COST = "controller.kubernetes.io/pod-deletion-cost"


@dataclass(frozen=True, slots=True)
class Change:
    """What is wrong with the number of pods: so many missing, or these too many."""

    missing: int = 0
    surplus: Sequence[Pod] = ()


def plan(wanted: int, pods: Sequence[Pod]) -> Change:
    """Say how many pods are missing, or which are surplus: first those whose loss hurts least.

    That is: without a node before with one, waiting before running, unready before ready, low deletion cost, crowded on
    one node before alone, ready for a short time before a long one, young before old. Source: Kubernetes, "ReplicaSet",
    "Scaling a ReplicaSet".
    """
    live = [pod for pod in pods if pod.is_active]
    if len(live) <= wanted:
        return Change(missing=wanted - len(live))
    neighbours = Counter(pod.spec.node_name for pod in live)
    by_cost = sorted(live, key=lambda pod: _value(pod, neighbours[pod.spec.node_name]))
    return Change(surplus=by_cost[: len(live) - wanted])


def status_of(owner: ReplicaSet, pods: Sequence[Pod], now: float) -> ReplicaSetStatus:
    """Count the live pods: all, with every label of the template, ready, and ready for long enough."""
    live = [pod for pod in pods if pod.is_active]
    labels = _template(owner).get("metadata", {}).get("labels", {}).items()
    return ReplicaSetStatus(
        replicas=len(live),
        fully_labeled_replicas=sum(labels <= pod.metadata.labels.items() for pod in live),
        ready_replicas=sum(pod.is_ready for pod in live),
        available_replicas=sum(pod.is_available(now, owner.spec.min_ready_seconds) for pod in live),
        observed_generation=owner.metadata.generation,
        conditions=owner.status.conditions,
    )


def pod_from(owner: ReplicaSet) -> Json:
    """Make a pod of the owner's template, controlled by the owner."""
    template = _template(owner)
    meta = template.get("metadata", {})
    return {
        "apiVersion": PODS.api_version,
        "kind": PODS.kind,
        "metadata": {
            "generateName": f"{owner.metadata.name}-",
            "namespace": owner.metadata.namespace,
            "labels": meta.get("labels", {}),
            "annotations": meta.get("annotations", {}),
            "finalizers": meta.get("finalizers", []),
            "ownerReferences": [owner_reference(owner)],
        },
        "spec": template.get("spec", {}),
    }


def owner_reference(owner: ReplicaSet) -> Json:
    """The reference by which a ReplicaSet controls a pod."""
    return {
        "apiVersion": REPLICASETS.api_version,
        "kind": REPLICASETS.kind,
        "name": owner.metadata.name,
        "uid": owner.metadata.uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }


async def reconcile(key: Key, cluster: Cluster) -> float | None:
    """Bring the number of one ReplicaSet's pods nearer to its spec."""
    owner = cluster.get(REPLICASETS, ReplicaSet, key)
    if owner is None:
        return None  # its pods go through their owner references
    pods = await claim(owner, cluster)
    failure: WherryError | None = None
    change = Change()
    if not owner.metadata.is_deleting:
        change = plan(owner.spec.replicas, pods)
        try:
            await together(_delete(cluster, owner, pod) for pod in change.surplus[:BURST])
            await _create(cluster, owner, min(BURST, change.missing))
        except WherryError as error:
            failure = error
    now = cluster.now()
    status = status_of(owner, pods, now)
    await _write_status(cluster, owner, _with_failure(status, change, failure, now))
    if failure is not None:
        raise failure
    if change.missing > BURST or len(change.surplus) > BURST:
        return 0.0
    return _soonest_available(owner, pods, now)


async def claim(owner: ReplicaSet, cluster: Cluster) -> Sequence[Pod]:
    """The owner's pods: those it controls and still selects, and orphans that it selects, which it adopts.

    A pod that it controls and no longer selects is released.
    """
    selector = LabelSelector.of(owner.spec.selector)
    view = cluster.view(PODS, Pod)
    mine: list[Pod] = []
    for pod in view.by_index("owner", owner.metadata.uid):
        if selector.matches(pod.metadata.labels):
            mine.append(pod)
        elif not pod.is_deleting:
            await _release(cluster, owner, pod)
    if not owner.metadata.is_deleting:
        orphans = [pod for pod in view.by_index("orphans", owner.metadata.namespace) if pod.is_active]
        wanted = [pod for pod in orphans if selector.matches(pod.metadata.labels)]
        if wanted and await _still_wants(cluster, owner):
            for pod in wanted:
                if await _adopt(cluster, owner, pod):
                    mine.append(pod)
    return mine


def _orphans(pod: Pod) -> Iterable[str]:
    return () if pod.metadata.controller is not None else (pod.metadata.namespace,)


def _wakes_of_pod(cluster: Cluster, before: Pod | None, now: Pod | None) -> Iterable[Key]:
    """The pod's controller; for an orphan every ReplicaSet that could adopt it."""
    yield from its_controller(REPLICASETS)(cluster, before, now)
    if now is not None and now.metadata.controller is None and now.is_active:
        for owner in cluster.view(REPLICASETS, ReplicaSet).list(now.metadata.namespace):
            if LabelSelector.of(owner.spec.selector).matches(now.metadata.labels):
                yield owner.key


def _value(pod: Pod, neighbours: int) -> tuple[bool, bool, bool, int, int, float, float]:
    try:
        cost = int(pod.metadata.annotations.get(DELETION_COST, "0"))
    except ValueError:
        cost = 0
    ready_since = pod.ready_since if pod.is_ready else math.inf
    return (
        pod.is_scheduled,
        pod.status.phase == "Running",
        pod.is_ready,
        cost,
        -neighbours,
        -ready_since,
        -pod.metadata.created,
    )


def _template(owner: ReplicaSet) -> Json:
    return msgspec.json.decode(owner.spec.template)


async def _create(cluster: Cluster, owner: ReplicaSet, count: int) -> None:
    """Create pods in batches of 1, 2, 4, ...: when the first fails, so would all, and we have asked but once."""
    body = pod_from(owner)
    batch = 1
    while count > 0:
        batch = min(batch, count)
        await together(_create_one(cluster, owner, body) for _ in range(batch))
        count -= batch
        batch *= 2


async def _create_one(cluster: Cluster, owner: ReplicaSet, body: Json) -> None:
    try:
        created = await cluster.create(PODS, body, owner.metadata.namespace)
    except Forbidden as error:
        if any(cause.reason == "NamespaceTerminating" for cause in error.causes):
            return  # it is no use, and nobody waits for it
        _tell_failure(cluster, owner, error)
        raise
    except WherryError as error:
        _tell_failure(cluster, owner, error)
        raise
    name = msgspec.json.decode(created, type=Pod).metadata.name
    cluster.event(REPLICASETS, owner.metadata, "SuccessfulCreate", f"Created pod: {name}")


def _tell_failure(cluster: Cluster, owner: ReplicaSet, error: WherryError) -> None:
    message = f"Error creating: {error.message}"
    cluster.event(REPLICASETS, owner.metadata, "FailedCreate", message, warning=True)


async def _delete(cluster: Cluster, owner: ReplicaSet, pod: Pod) -> None:
    await cluster.delete(PODS, pod.metadata)
    cluster.event(REPLICASETS, owner.metadata, "SuccessfulDelete", f"Deleted pod: {pod.metadata.name}")


async def _still_wants(cluster: Cluster, owner: ReplicaSet) -> bool:
    """Ask the server itself before adopting: our view may show an owner that is gone or going."""
    fresh = await cluster.read(REPLICASETS, ReplicaSet, owner.key)
    return fresh is not None and fresh.metadata.uid == owner.metadata.uid and not fresh.metadata.is_deleting


async def _adopt(cluster: Cluster, owner: ReplicaSet, pod: Pod) -> bool:
    references = [*_references(pod.metadata), owner_reference(owner)]
    try:
        await cluster.patch(PODS, pod.metadata, {"metadata": {"ownerReferences": references}}, guarded=True)
    except (NotFound, Conflict):
        return False  # gone, or somebody else's now: its change wakes us
    return True


async def _release(cluster: Cluster, owner: ReplicaSet, pod: Pod) -> None:
    references = [reference for reference in _references(pod.metadata) if reference["uid"] != owner.metadata.uid]
    try:
        await cluster.patch(PODS, pod.metadata, {"metadata": {"ownerReferences": references}}, guarded=True)
    except (NotFound, Conflict):
        return


def _references(meta: Meta) -> list[Json]:
    return [msgspec.to_builtins(reference) for reference in meta.owner_references]


def _with_failure(
    status: ReplicaSetStatus, change: Change, failure: WherryError | None, now: float
) -> ReplicaSetStatus:
    rest = [one for one in status.conditions if one.type != "ReplicaFailure"]
    if failure is None:
        return msgspec.structs.replace(status, conditions=rest)
    reason = "FailedCreate" if change.missing else "FailedDelete"
    failed = condition("ReplicaFailure", "True", reason, failure.message, now)
    return msgspec.structs.replace(status, conditions=merge_condition(status.conditions, failed))


async def _write_status(cluster: Cluster, owner: ReplicaSet, status: ReplicaSetStatus) -> None:
    if status == owner.status:
        return
    patch = {
        "replicas": status.replicas,
        "fullyLabeledReplicas": status.fully_labeled_replicas or None,
        "readyReplicas": status.ready_replicas or None,
        "availableReplicas": status.available_replicas or None,
        "observedGeneration": status.observed_generation,
        "conditions": msgspec.to_builtins(status.conditions) or None,
    }
    try:
        await cluster.patch(REPLICASETS, owner.metadata, {"status": patch}, subresource="status")
    except NotFound:
        return


def _soonest_available(owner: ReplicaSet, pods: Sequence[Pod], now: float) -> float | None:
    """In how many seconds the next ready pod will have been ready for long enough."""
    minimum = owner.spec.min_ready_seconds
    waits = [
        pod.ready_since + minimum - now
        for pod in pods
        if pod.is_active and pod.is_ready and not pod.is_available(now, minimum)
    ]
    return min(waits) if waits else None


CONTROLLER = Controller(
    "replicaset-controller",
    (
        Watch(REPLICASETS, ReplicaSet, itself, {"owner": by_owner, "orphans": _orphans}),
        Watch(PODS, Pod, _wakes_of_pod, {"owner": by_owner, "orphans": _orphans}),
    ),
    reconcile,
    workers=5,
)
