"""Rollouts, pure: how many pods each ReplicaSet of a deployment should have next.

Source: Kubernetes, "Deployments", for what is promised: never more than `replicas + maxSurge` pods asked for, never
fewer than `replicas - maxUnavailable` available on our account, and scaling in the middle of a rollout spreads over
the ReplicaSets in proportion to their size.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import orjson

from wherry.controllers.objects import Deployment, ReplicaSet, RollingUpdate

HASH_LABEL = "pod-template-hash"
REVISION = "deployment.kubernetes.io/revision"
REVISION_HISTORY = "deployment.kubernetes.io/revision-history"
DESIRED = "deployment.kubernetes.io/desired-replicas"
MAXIMUM = "deployment.kubernetes.io/max-replicas"
LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"
ROLLBACK_TO = "deprecated.deployment.rollback.to"

OWN_ANNOTATIONS = (REVISION, REVISION_HISTORY, DESIRED, MAXIMUM, LAST_APPLIED, ROLLBACK_TO)
"""Annotations that are not copied between a deployment and its ReplicaSets."""

SWITCHES = frozenset(
    ("hostIPC", "hostNetwork", "hostPID", "hostPort", "readOnly", "stdin", "stdinOnce", "tty")
)  # fmt: skip
"""Fields of a pod template for which false (or 0) and absent are the same. Others, such as runAsUser, are not here."""

ALPHABET = "bcdfghjklmnpqrstvwxz2456789"  # no vowels, no digits that look like letters: no words come out


@dataclass(frozen=True, slots=True)
class Scale:
    """One ReplicaSet's next number of pods."""

    replica_set: ReplicaSet
    replicas: int


@dataclass(frozen=True, slots=True)
class Bounds:
    """How many pods more, and how many fewer, than wanted a rollout may have at any moment."""

    surge: int
    unavailable: int


def bounds(deployment: Deployment) -> Bounds:
    """Read maxSurge (rounded up) and maxUnavailable (rounded down); both zero becomes one unavailable, or it stalls."""
    if deployment.spec.strategy.type != "RollingUpdate":
        return Bounds(0, 0)
    rolling = deployment.spec.strategy.rolling_update or RollingUpdate()
    wanted = deployment.spec.replicas
    surge = _share(rolling.max_surge, wanted, math.ceil)
    unavailable = _share(rolling.max_unavailable, wanted, math.floor)
    if surge == 0 and unavailable == 0:
        unavailable = 1
    return Bounds(surge, min(unavailable, wanted))


def template_of(owner: Deployment | ReplicaSet) -> dict[str, Any]:
    """The pod template without the hash label, for comparing and for making pods."""
    template: dict[str, Any] = msgspec.json.decode(owner.spec.template)
    labels: Mapping[str, str] | None = template.get("metadata", {}).get("labels")
    if labels and HASH_LABEL in labels:
        rest = {name: value for name, value in labels.items() if name != HASH_LABEL}
        template["metadata"] = {**template["metadata"], "labels": rest}
    return template


def comparable(value: Any) -> Any:
    """A template in which what means the same is written the same: nulls, and switches that are off, are left out.

    Bodies in protobuf always carry such switches, bodies in JSON seldom do: without this a rollback by `kubectl`, which
    reads the one and writes the other, would not find the ReplicaSet that it goes back to.
    """
    if isinstance(value, dict):
        return {
            name: comparable(part)
            for name, part in value.items()
            if part is not None and not (name in SWITCHES and part in (False, 0))
        }
    return [comparable(part) for part in value] if isinstance(value, list) else value


def template_hash(template: Mapping[str, Any], collisions: int) -> str:
    """Ten characters that tell pod templates apart; `collisions` gives another name to the same template."""
    data = orjson.dumps(comparable(template), option=orjson.OPT_SORT_KEYS) + b"#%d" % collisions
    number = int.from_bytes(hashlib.sha256(data).digest()[:8])
    text = ""
    for _ in range(10):
        number, digit = divmod(number, len(ALPHABET))
        text += ALPHABET[digit]
    return text


def find_new(deployment: Deployment, replica_sets: Sequence[ReplicaSet]) -> ReplicaSet | None:
    """The ReplicaSet of the deployment's present template: the oldest, should there be several."""
    same = [one for one in replica_sets if has_same_template(deployment, one)]
    return min(same, key=lambda one: (one.metadata.created, one.metadata.name), default=None)


def has_same_template(deployment: Deployment, one: ReplicaSet) -> bool:
    """Whether a ReplicaSet makes the pods that the deployment wants now."""
    return one.spec.template == deployment.spec.template or (
        comparable(template_of(one)) == comparable(template_of(deployment))
    )


def revision_of(owner: Deployment | ReplicaSet) -> int:
    """The revision annotation; 0 when it is missing or no number."""
    text = owner.metadata.annotations.get(REVISION, "0")
    return int(text) if text.isdigit() else 0


def first_size(deployment: Deployment, others: Sequence[ReplicaSet]) -> int:
    """With how many pods a new ReplicaSet starts: all at once under Recreate, else what the surge leaves room for."""
    return _grown(deployment, 0, sum(one.spec.replicas for one in others))


def roll(deployment: Deployment, new: ReplicaSet, old: Sequence[ReplicaSet]) -> Sequence[Scale]:
    """Take the next step of a rolling update: grow the new one as far as the surge allows, else shrink old ones.

    Old ones lose unavailable pods first; then available ones as long as enough stay available. An available pod counts
    only while its ReplicaSet still wants it, so that a status that lags never takes the same pod twice.
    """
    wanted = deployment.spec.replicas
    everything = [new, *old]
    total = sum(one.spec.replicas for one in everything)
    size = _grown(deployment, new.spec.replicas, total - new.spec.replicas)
    if size != new.spec.replicas:
        return [Scale(new, size)]
    minimum = wanted - bounds(deployment).unavailable
    unavailable = new.spec.replicas - _available(new)
    room = total - minimum - unavailable
    scales: dict[str, Scale] = {}
    by_age = sorted(old, key=lambda one: (one.metadata.created, one.metadata.name))
    for one in by_age:  # pods that serve nobody
        idle = min(room, one.spec.replicas - _available(one))
        if idle > 0:
            scales[one.metadata.name] = Scale(one, one.spec.replicas - idle)
            room -= idle
    spare = min(room, sum(_available(one) for one in everything) - minimum)
    for one in by_age:
        size = scales[one.metadata.name].replicas if one.metadata.name in scales else one.spec.replicas
        fewer = min(spare, size)
        if fewer > 0:
            scales[one.metadata.name] = Scale(one, size - fewer)
            spare -= fewer
    return list(scales.values())


def rescale(deployment: Deployment, new: ReplicaSet | None, old: Sequence[ReplicaSet]) -> Sequence[Scale]:
    """Follow a change of `replicas` without taking the rollout further: in proportion over those that have pods."""
    wanted = deployment.spec.replicas
    active = [one for one in (*((new,) if new else ()), *old) if one.spec.replicas > 0]
    if len(active) <= 1:
        only = active[0] if active else new or max(old, key=lambda one: one.metadata.created, default=None)
        return [Scale(only, wanted)] if only is not None and only.spec.replicas != wanted else []
    if new is not None and _is_saturated(deployment, new):
        return [Scale(one, 0) for one in old if one.spec.replicas > 0]
    if deployment.spec.strategy.type != "RollingUpdate":
        return []
    allowed = wanted + bounds(deployment).surge if wanted > 0 else 0
    to_add = allowed - sum(one.spec.replicas for one in active)
    age = -1 if to_add > 0 else 1  # grow the youngest first, shrink the oldest first, among those of one size
    active.sort(key=lambda one: (-one.spec.replicas, age * one.metadata.created, one.metadata.name))
    sizes = {one.metadata.name: one.spec.replicas for one in active}
    added = 0
    for one in active:
        share = _proportion(deployment, one, allowed, to_add, added)
        sizes[one.metadata.name] += share
        added += share
    for one in active:  # what rounding left over goes to the largest, and to the next when that has no more
        rest = max(to_add - added, -sizes[one.metadata.name])
        sizes[one.metadata.name] += rest
        added += rest
    return [Scale(one, sizes[one.metadata.name]) for one in active if sizes[one.metadata.name] != one.spec.replicas]


def is_resized(deployment: Deployment, replica_sets: Sequence[ReplicaSet]) -> bool:
    """Whether `replicas` has changed since the ReplicaSets were last scaled for it."""
    wanted = str(deployment.spec.replicas)
    active = [one for one in replica_sets if one.spec.replicas > 0]
    return any(one.metadata.annotations.get(DESIRED, wanted) != wanted for one in active)


def surplus_history(deployment: Deployment, old: Sequence[ReplicaSet]) -> Sequence[ReplicaSet]:
    """Old ReplicaSets beyond the history limit, the oldest revisions, that are empty and known to be."""
    limit = deployment.spec.revision_history_limit
    if limit is None or limit >= 2**31 - 1:
        return ()
    empty = [
        one
        for one in old
        if one.spec.replicas == 0
        and one.status.replicas == 0
        and one.metadata.generation <= one.status.observed_generation
        and not one.metadata.is_deleting
    ]
    excess = len([one for one in old if not one.metadata.is_deleting]) - limit
    by_revision = sorted(empty, key=lambda one: (revision_of(one), one.metadata.created))
    return by_revision[: max(0, excess)]


def _share(value: int | str, of: int, rounded: Any) -> int:
    if isinstance(value, int):
        return max(0, value)
    return int(rounded(int(value.removesuffix("%")) * of / 100))


def _available(one: ReplicaSet) -> int:
    return min(one.status.available_replicas, one.spec.replicas)


def _grown(deployment: Deployment, size: int, others: int) -> int:
    """How many pods the new ReplicaSet of `size` should have, next to `others` pods of old ones."""
    wanted = deployment.spec.replicas
    if size >= wanted or deployment.spec.strategy.type != "RollingUpdate":
        return wanted
    room = wanted + bounds(deployment).surge - size - others
    return size + max(0, min(room, wanted - size))


def _is_saturated(deployment: Deployment, new: ReplicaSet) -> bool:
    wanted = deployment.spec.replicas
    desired = new.metadata.annotations.get(DESIRED)
    return new.spec.replicas == wanted and desired == str(wanted) and new.status.available_replicas == wanted


def _proportion(deployment: Deployment, one: ReplicaSet, allowed: int, to_add: int, added: int) -> int:
    """How many of the pods `to_add` this ReplicaSet takes, `added` of which others have taken (all may be negative)."""
    size = one.spec.replicas
    if size == 0 or to_add in (0, added):
        return 0
    before = one.metadata.annotations.get(MAXIMUM, "")
    whole = int(before) if before.isdigit() and int(before) > 0 else max(1, deployment.status.replicas)
    share = -size if deployment.spec.replicas == 0 else math.floor(size * allowed / whole + 0.5) - size
    return min(share, to_add - added) if to_add > 0 else max(share, to_add - added)
