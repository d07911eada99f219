"""Deployments: a ReplicaSet for each version of the pod template, and the way from one to the next."""

import logging
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from wherry.client.objects import Key
from wherry.client.protocol import Json
from wherry.controllers import progress, rollout
from wherry.controllers.cluster import Cluster, Controller, Watch, by_owner, its_controller, itself, together
from wherry.controllers.objects import Condition, Deployment, DeploymentStatus, Pod, ReplicaSet
from wherry.controllers.rollout import Scale
from wherry.controllers.status import find, merge_condition
from wherry.errors import AlreadyExists, Conflict, NotFound
from wherry.model.kinds import DEPLOYMENTS, PODS, REPLICASETS
from wherry.model.selectors import LabelSelector

log = logging.getLogger(__name__)


async def reconcile(key: Key, cluster: Cluster) -> float | None:
    """Bring one deployment's ReplicaSets one step nearer to its spec, and say in its status how far it is."""
    deployment = cluster.get(DEPLOYMENTS, Deployment, key)
    if deployment is None:
        return None
    if not (deployment.spec.selector.get("matchLabels") or deployment.spec.selector.get("matchExpressions")):
        message = "This deployment is selecting all pods. A non-empty selector is required."
        cluster.event(DEPLOYMENTS, deployment.metadata, "SelectingAll", message, warning=True)
        return None
    owned = await _claim(cluster, deployment)
    new = rollout.find_new(deployment, owned)
    old = [one for one in owned if one is not new]
    if deployment.metadata.is_deleting:
        return await _report(cluster, deployment, new, old)
    if (change := progress.paused_or_resumed(deployment, cluster.now())) is not None:
        await _set_condition(cluster, deployment, change)
        return None  # its own change wakes us
    if deployment.spec.paused or rollout.is_resized(deployment, owned):
        return await _resize(cluster, deployment, new, old)
    if deployment.spec.strategy.type == "Recreate":
        return await _recreate(cluster, deployment, new, old)
    return await _roll(cluster, deployment, new, old)


async def _roll(
    cluster: Cluster, deployment: Deployment, new: ReplicaSet | None, old: Sequence[ReplicaSet]
) -> float | None:
    if new is None:
        await _create_new(cluster, deployment, old)
        return await _report(cluster, deployment, None, old)
    if await _keep_annotations(cluster, deployment, new, old):
        return None
    scales = rollout.roll(deployment, new, old)
    await _scale(cluster, deployment, scales)
    if not scales:
        await _clean_up(cluster, deployment, new, old)
    return await _report(cluster, deployment, new, old)


async def _recreate(
    cluster: Cluster, deployment: Deployment, new: ReplicaSet | None, old: Sequence[ReplicaSet]
) -> float | None:
    """End every old pod before the first new one starts."""
    scales = [Scale(one, 0) for one in old if one.spec.replicas > 0]
    if scales:
        await _scale(cluster, deployment, scales)
        return await _report(cluster, deployment, new, old)
    pods = cluster.view(PODS, Pod)
    if any(not pod.is_finished for one in old for pod in pods.by_index("owner", one.metadata.uid)):
        return await _report(cluster, deployment, new, old)
    if new is None:
        await _create_new(cluster, deployment, old)
        return await _report(cluster, deployment, None, old)
    if await _keep_annotations(cluster, deployment, new, old):
        return None
    if new.spec.replicas != deployment.spec.replicas:
        await _scale(cluster, deployment, [Scale(new, deployment.spec.replicas)])
    else:
        await _clean_up(cluster, deployment, new, old)
    return await _report(cluster, deployment, new, old)


async def _resize(
    cluster: Cluster, deployment: Deployment, new: ReplicaSet | None, old: Sequence[ReplicaSet]
) -> float | None:
    """Follow `replicas`, and nothing else: the rollout is paused, or goes on in the next reconcile."""
    scales = {scale.replica_set.metadata.name: scale for scale in rollout.rescale(deployment, new, old)}
    for one in [*([new] if new is not None else []), *old]:
        if one.spec.replicas > 0 and one.metadata.name not in scales and _sizes(deployment, one):
            scales[one.metadata.name] = Scale(one, one.spec.replicas)  # only its annotations
    await _scale(cluster, deployment, list(scales.values()))
    if deployment.spec.paused:
        await _clean_up(cluster, deployment, new, old)
    return await _report(cluster, deployment, new, old)


async def _claim(cluster: Cluster, deployment: Deployment) -> Sequence[ReplicaSet]:
    """The deployment's ReplicaSets: those it controls and selects, and orphans that it selects, which it adopts."""
    selector = LabelSelector.of(deployment.spec.selector)
    view = cluster.view(REPLICASETS, ReplicaSet)
    mine: list[ReplicaSet] = []
    for one in view.by_index("owner", deployment.metadata.uid):
        if selector.matches(one.metadata.labels):
            mine.append(one)
        elif not one.metadata.is_deleting:
            await _own(cluster, one, [own for own in one.metadata.owner_references if not own.controller], None)
    if deployment.metadata.is_deleting:
        return mine
    for one in view.by_index("orphans", deployment.metadata.namespace):
        if selector.matches(one.metadata.labels) and not one.metadata.is_deleting:
            fresh = await cluster.read(DEPLOYMENTS, Deployment, deployment.key)
            if fresh is None or fresh.metadata.uid != deployment.metadata.uid or fresh.metadata.is_deleting:
                break
            if await _own(cluster, one, one.metadata.owner_references, deployment):
                mine.append(one)
    return mine


async def _own(cluster: Cluster, one: ReplicaSet, others: Sequence[object], owner: Deployment | None) -> bool:
    """Write a ReplicaSet's owners: the others', and ours if we adopt it. Says whether it could be written."""
    references = [msgspec.to_builtins(other) for other in others]
    if owner is not None:
        references.append(_reference(owner))
    try:
        await cluster.patch(REPLICASETS, one.metadata, {"metadata": {"ownerReferences": references}}, guarded=True)
    except (NotFound, Conflict):
        return False
    return True


def _reference(owner: Deployment) -> Json:
    return {
        "apiVersion": DEPLOYMENTS.api_version,
        "kind": DEPLOYMENTS.kind,
        "name": owner.metadata.name,
        "uid": owner.metadata.uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }


async def _create_new(cluster: Cluster, deployment: Deployment, old: Sequence[ReplicaSet]) -> None:
    """Create the ReplicaSet of the present template, named after it, so that to do it twice is to do it once."""
    template = rollout.template_of(deployment)
    label = rollout.template_hash(template, deployment.status.collision_count or 0)
    meta = template.get("metadata", {})
    labels = {**meta.get("labels", {}), rollout.HASH_LABEL: label}
    selector = deployment.spec.selector
    size = rollout.first_size(deployment, old)
    revision = max((rollout.revision_of(one) for one in old), default=0) + 1
    name = f"{deployment.metadata.name}-{label}"
    body: Json = {
        "apiVersion": REPLICASETS.api_version,
        "kind": REPLICASETS.kind,
        "metadata": {
            "name": name,
            "namespace": deployment.metadata.namespace,
            "labels": labels,
            "annotations": _copied(deployment) | _sized(deployment) | {rollout.REVISION: str(revision)},
            "ownerReferences": [_reference(deployment)],
        },
        "spec": {
            "replicas": size,
            "minReadySeconds": deployment.spec.min_ready_seconds,
            "selector": {**selector, "matchLabels": {**selector.get("matchLabels", {}), rollout.HASH_LABEL: label}},
            "template": {**template, "metadata": {**meta, "labels": labels}},
        },
    }
    try:
        await cluster.create(REPLICASETS, body, deployment.metadata.namespace)
    except AlreadyExists:
        await _collided(cluster, deployment, name)
        return
    await _set_revision(cluster, deployment, revision)
    if size > 0:
        _tell_scaled(cluster, deployment, name, 0, size)
    if progress.has_deadline(deployment):
        message = f'Created new replica set "{name}"'
        found = progress.progressing("True", progress.NEW_CREATED, message, cluster.now())
        await _set_condition(cluster, deployment, found)


async def _collided(cluster: Cluster, deployment: Deployment, name: str) -> None:
    """The name is taken: by our own earlier try, which is fine; else count it, which changes the name."""
    found = await cluster.read(REPLICASETS, ReplicaSet, (deployment.metadata.namespace, name))
    owner = found.metadata.controller if found is not None else None
    mine = owner is not None and owner.uid == deployment.metadata.uid
    if found is None or (mine and rollout.has_same_template(deployment, found)):
        raise Conflict(f"replica set {name}: our view does not show it yet")
    count = (deployment.status.collision_count or 0) + 1
    log.info("deployment %s/%s: replica set name %s is taken, counting %d", *deployment.key, name, count)
    patch = {"status": {"collisionCount": count}}
    await cluster.patch(DEPLOYMENTS, deployment.metadata, patch, subresource="status", guarded=True)


async def _keep_annotations(
    cluster: Cluster, deployment: Deployment, new: ReplicaSet, old: Sequence[ReplicaSet]
) -> bool:
    """Make the new ReplicaSet the newest revision, with the deployment's annotations; says whether it had to change."""
    annotations = new.metadata.annotations
    wanted: dict[str, str | None] = dict(_copied(deployment) | _sized(deployment))
    wanted |= {name: None for name in annotations if name not in wanted and name not in rollout.OWN_ANNOTATIONS}
    revision = max((rollout.revision_of(one) for one in old), default=0) + 1
    if rollout.revision_of(new) < revision:
        wanted[rollout.REVISION] = str(revision)
        earlier = annotations.get(rollout.REVISION)
        if earlier:
            history = [part for part in annotations.get(rollout.REVISION_HISTORY, "").split(",") if part]
            wanted[rollout.REVISION_HISTORY] = ",".join([*history, earlier])
    changed = {name: value for name, value in wanted.items() if annotations.get(name) != value}
    patch: Json = {"metadata": {"annotations": changed}} if changed else {}
    if new.spec.min_ready_seconds != deployment.spec.min_ready_seconds:
        patch["spec"] = {"minReadySeconds": deployment.spec.min_ready_seconds}
    if patch:
        await cluster.patch(REPLICASETS, new.metadata, patch, guarded=True)
    await _set_revision(cluster, deployment, max(revision, rollout.revision_of(new)))
    if progress.has_deadline(deployment) and find(deployment.status.conditions, "Progressing") is None:
        message = f'Found new replica set "{new.metadata.name}"'
        found = progress.progressing("True", progress.NEW_FOUND, message, cluster.now())
        await _set_condition(cluster, deployment, found)
        return True
    return bool(patch)


async def _set_revision(cluster: Cluster, deployment: Deployment, revision: int) -> None:
    if rollout.revision_of(deployment) != revision:
        patch = {"metadata": {"annotations": {rollout.REVISION: str(revision)}}}
        await cluster.patch(DEPLOYMENTS, deployment.metadata, patch)


def _copied(deployment: Deployment) -> dict[str, str]:
    """The deployment's annotations that its ReplicaSet gets, such as the cause of the change."""
    annotations = deployment.metadata.annotations
    return {name: value for name, value in annotations.items() if name not in rollout.OWN_ANNOTATIONS}


def _sized(deployment: Deployment) -> dict[str, str]:
    wanted = deployment.spec.replicas
    return {
        rollout.DESIRED: str(wanted),
        rollout.MAXIMUM: str(wanted + rollout.bounds(deployment).surge),
    }


def _sizes(deployment: Deployment, one: ReplicaSet) -> Mapping[str, str]:
    """The size annotations that differ from what they should be."""
    annotations = one.metadata.annotations
    return {name: value for name, value in _sized(deployment).items() if annotations.get(name) != value}


async def _scale(cluster: Cluster, deployment: Deployment, scales: Sequence[Scale]) -> None:
    await together(_scale_one(cluster, deployment, scale) for scale in scales)


async def _scale_one(cluster: Cluster, deployment: Deployment, scale: Scale) -> None:
    one = scale.replica_set
    patch: Json = {"metadata": {"annotations": _sized(deployment)}}
    if scale.replicas != one.spec.replicas:
        patch["spec"] = {"replicas": scale.replicas}
    await cluster.patch(REPLICASETS, one.metadata, patch, guarded=True)
    if scale.replicas != one.spec.replicas:
        _tell_scaled(cluster, deployment, one.metadata.name, one.spec.replicas, scale.replicas)


def _tell_scaled(cluster: Cluster, deployment: Deployment, name: str, before: int, now: int) -> None:
    way = "up" if now > before else "down"
    message = f"Scaled {way} replica set {name} from {before} to {now}"
    cluster.event(DEPLOYMENTS, deployment.metadata, "ScalingReplicaSet", message)


async def _clean_up(
    cluster: Cluster, deployment: Deployment, new: ReplicaSet | None, old: Sequence[ReplicaSet]
) -> None:
    """Delete old ReplicaSets beyond the history limit, once the rollout is complete."""
    status = progress.counts(deployment, new, old, cluster.now())
    if progress.is_complete(deployment, status) or deployment.spec.paused:
        surplus = rollout.surplus_history(deployment, old)
        await together(cluster.delete(REPLICASETS, one.metadata) for one in surplus)


async def _set_condition(cluster: Cluster, deployment: Deployment, new: Condition) -> None:
    conditions = merge_condition(deployment.status.conditions, new)
    patch = {"status": {"conditions": msgspec.to_builtins(conditions)}}
    await cluster.patch(DEPLOYMENTS, deployment.metadata, patch, subresource="status")


async def _report(
    cluster: Cluster, deployment: Deployment, new: ReplicaSet | None, old: Sequence[ReplicaSet]
) -> float | None:
    """Write the status if it differs; say when the deadline for progress is worth a look."""
    now = cluster.now()
    status = progress.counts(deployment, new, old, now)
    if new is not None:
        status = progress.with_progress(deployment, status, new, now)
        if status != deployment.status:
            await _write_status(cluster, deployment, status)
    left = progress.seconds_left(deployment, find(status.conditions, "Progressing"), now)
    return left + 1 if left else None


async def _write_status(cluster: Cluster, deployment: Deployment, status: DeploymentStatus) -> None:
    patch = {
        "replicas": status.replicas or None,
        "updatedReplicas": status.updated_replicas or None,
        "readyReplicas": status.ready_replicas or None,
        "availableReplicas": status.available_replicas or None,
        "unavailableReplicas": status.unavailable_replicas or None,
        "observedGeneration": status.observed_generation,
        "conditions": msgspec.to_builtins(status.conditions) or None,
    }
    try:
        await cluster.patch(DEPLOYMENTS, deployment.metadata, {"status": patch}, subresource="status")
    except NotFound:
        return


def _orphans(one: ReplicaSet) -> Iterable[str]:
    return () if one.metadata.controller is not None else (one.metadata.namespace,)


def _wakes_of_replica_set(cluster: Cluster, before: ReplicaSet | None, now: ReplicaSet | None) -> Iterable[Key]:
    """The ReplicaSet's deployment; for an orphan every deployment that could adopt it."""
    yield from its_controller(DEPLOYMENTS)(cluster, before, now)
    if now is not None and now.metadata.controller is None:
        for deployment in cluster.view(DEPLOYMENTS, Deployment).list(now.metadata.namespace):
            if LabelSelector.of(deployment.spec.selector).matches(now.metadata.labels):
                yield deployment.key


def _wakes_of_pod(cluster: Cluster, before: Pod | None, now: Pod | None) -> Iterable[Key]:
    """A pod that is gone may have been the last old one that a Recreate waits for."""
    if before is None or (now is not None and not now.is_finished):
        return
    owner = before.metadata.controller
    if owner is None or owner.kind != REPLICASETS.kind:
        return
    replica_set = cluster.view(REPLICASETS, ReplicaSet).get(owner.name, before.metadata.namespace)
    if replica_set is not None:
        yield from its_controller(DEPLOYMENTS)(cluster, replica_set, None)


CONTROLLER = Controller(
    "deployment-controller",
    (
        Watch(DEPLOYMENTS, Deployment, itself),
        Watch(REPLICASETS, ReplicaSet, _wakes_of_replica_set, {"owner": by_owner, "orphans": _orphans}),
        Watch(PODS, Pod, _wakes_of_pod, {"owner": by_owner}),
    ),
    reconcile,
    workers=5,
)
