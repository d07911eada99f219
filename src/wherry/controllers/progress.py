"""A deployment's status, pure: its counts, and whether it is available and gets ahead.

Source: Kubernetes, "Deployments", "Deployment status"; the reasons and messages are those that `kubectl rollout` and
other tools look for.
"""

from collections.abc import Sequence

import msgspec

from wherry.clock import parse_rfc3339, rfc3339
from wherry.controllers.objects import Condition, Deployment, DeploymentStatus, ReplicaSet
from wherry.controllers.rollout import bounds
from wherry.controllers.status import condition, find, merge_condition, without

NO_DEADLINE = 2**31 - 1

NEW_CREATED = "NewReplicaSetCreated"
NEW_FOUND = "FoundNewReplicaSet"
UPDATED = "ReplicaSetUpdated"
AVAILABLE = "NewReplicaSetAvailable"
TIMED_OUT = "ProgressDeadlineExceeded"
CREATE_FAILED = "ReplicaSetCreateError"
PAUSED = "DeploymentPaused"
RESUMED = "DeploymentResumed"


def has_deadline(deployment: Deployment) -> bool:
    """Whether somebody waits for progress."""
    deadline = deployment.spec.progress_deadline_seconds
    return deadline is not None and deadline < NO_DEADLINE


def counts(deployment: Deployment, new: ReplicaSet | None, old: Sequence[ReplicaSet], now: float) -> DeploymentStatus:
    """Add up what the ReplicaSets say, and judge availability; Progressing stays as it was."""
    everything = [*([new] if new is not None else []), *old]
    total = sum(one.spec.replicas for one in everything)
    available = sum(one.status.available_replicas for one in everything)
    if available >= deployment.spec.replicas - bounds(deployment).unavailable:
        words = ("True", "MinimumReplicasAvailable", "Deployment has minimum availability.")
    else:
        words = ("False", "MinimumReplicasUnavailable", "Deployment does not have minimum availability.")
    conditions = merge_condition(deployment.status.conditions, _condition("Available", *words, now))
    failed = next((found for one in everything if (found := find(one.status.conditions, "ReplicaFailure"))), None)
    if failed is not None:
        conditions = merge_condition(
            conditions, _condition("ReplicaFailure", failed.status, failed.reason, failed.message, now)
        )
    else:
        conditions = without(conditions, "ReplicaFailure")
    return DeploymentStatus(
        replicas=sum(one.status.replicas for one in everything),
        updated_replicas=new.status.replicas if new is not None else 0,
        ready_replicas=sum(one.status.ready_replicas for one in everything),
        available_replicas=available,
        unavailable_replicas=max(0, total - available),
        observed_generation=deployment.metadata.generation,
        collision_count=deployment.status.collision_count,
        conditions=conditions,
    )


def is_complete(deployment: Deployment, status: DeploymentStatus) -> bool:
    """Whether all that is wanted is there, new and available, and nothing else is."""
    wanted = deployment.spec.replicas
    return status.updated_replicas == status.replicas == status.available_replicas == wanted


def with_progress(
    deployment: Deployment, status: DeploymentStatus, new: ReplicaSet | None, now: float
) -> DeploymentStatus:
    """Judge progress: done, under way, or out of time."""
    if not has_deadline(deployment):
        return msgspec.structs.replace(status, conditions=without(status.conditions, "Progressing"))
    current = find(status.conditions, "Progressing")
    settled = status.replicas == status.updated_replicas
    if settled and current is not None and current.reason == AVAILABLE:
        return status
    who = f'ReplicaSet "{new.metadata.name}"' if new is not None else f'Deployment "{deployment.metadata.name}"'
    if is_complete(deployment, status):
        done = progressing("True", AVAILABLE, f"{who} has successfully progressed.", now)
        return _with(status, done)
    if _moved(deployment.status, status):
        moved = progressing("True", UPDATED, f"{who} is progressing.", now)
        if current is not None and current.status == "True":
            moved = msgspec.structs.replace(moved, last_transition_time=current.last_transition_time)
        return _with(status, moved)
    if seconds_left(deployment, current, now) == 0:
        return _with(status, progressing("False", TIMED_OUT, f"{who} has timed out progressing.", now))
    return status


def seconds_left(deployment: Deployment, current: Condition | None, now: float) -> float | None:
    """How long until the deployment is out of time; 0 if it is; None if nobody counts."""
    deadline = deployment.spec.progress_deadline_seconds
    if current is None or deadline is None or deadline >= NO_DEADLINE or deployment.spec.paused:
        return None
    if current.reason == AVAILABLE or not current.last_update_time:
        return None
    if current.reason == TIMED_OUT:
        return 0
    return max(0.0, parse_rfc3339(current.last_update_time) + deadline - now)


def progressing(status: str, reason: str, message: str, now: float) -> Condition:
    """Make a Progressing condition that has just come to be."""
    return _condition("Progressing", status, reason, message, now)


def paused_or_resumed(deployment: Deployment, now: float) -> Condition | None:
    """The condition to set when somebody has paused or resumed the rollout; None if nothing changed.

    Pausing stops the count to the deadline, resuming starts it anew.
    """
    if not has_deadline(deployment):
        return None
    current = find(deployment.status.conditions, "Progressing")
    if current is not None and current.reason == TIMED_OUT:
        return None
    was_paused = current is not None and current.reason == PAUSED
    if deployment.spec.paused and not was_paused:
        return progressing("Unknown", PAUSED, "Deployment is paused", now)
    if not deployment.spec.paused and was_paused:
        return progressing("Unknown", RESUMED, "Deployment is resumed", now)
    return None


def _condition(type: str, status: str, reason: str, message: str, now: float) -> Condition:
    made = condition(type, status, reason, message, now)
    return msgspec.structs.replace(made, last_update_time=rfc3339(now))


def _with(status: DeploymentStatus, new: Condition) -> DeploymentStatus:
    """Put a Progressing condition in, with its update time even if its words are the same: it moved again."""
    old = find(status.conditions, "Progressing")
    if old is not None and old.status == new.status:
        new = msgspec.structs.replace(new, last_transition_time=old.last_transition_time)
    return msgspec.structs.replace(status, conditions=[*without(status.conditions, "Progressing"), new])


def _moved(before: DeploymentStatus, now: DeploymentStatus) -> bool:
    return (
        now.updated_replicas > before.updated_replicas
        or now.replicas - now.updated_replicas < before.replicas - before.updated_replicas
        or now.ready_replicas > before.ready_replicas
        or now.available_replicas > before.available_replicas
    )
