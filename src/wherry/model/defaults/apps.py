"""Defaults of the group apps."""

from collections.abc import Callable, Mapping
from typing import Any

from wherry.model import kinds
from wherry.model.defaults import core, pods
from wherry.model.defaults.filling import Object, each, fill, made
from wherry.model.kinds import Kind


def deployment(obj: Object) -> None:
    """Fill in a Deployment."""
    spec = made(obj, "spec")
    fill(spec, "replicas", 1)
    strategy = made(spec, "strategy")
    fill(strategy, "type", "RollingUpdate")
    if strategy["type"] == "RollingUpdate":
        rolling = made(strategy, "rollingUpdate")
        fill(rolling, "maxUnavailable", "25%")
        fill(rolling, "maxSurge", "25%")
    fill(spec, "revisionHistoryLimit", 10)
    fill(spec, "progressDeadlineSeconds", 600)
    pods.template(made(spec, "template"))


def replica_set(obj: Object) -> None:
    """Fill in a ReplicaSet."""
    spec = made(obj, "spec")
    fill(spec, "replicas", 1)
    pods.template(made(spec, "template"))


def daemon_set(obj: Object) -> None:
    """Fill in a DaemonSet."""
    spec = made(obj, "spec")
    strategy = made(spec, "updateStrategy")
    fill(strategy, "type", "RollingUpdate")
    if strategy["type"] == "RollingUpdate":
        rolling = made(strategy, "rollingUpdate")
        fill(rolling, "maxUnavailable", 1)
        fill(rolling, "maxSurge", 0)
    fill(spec, "revisionHistoryLimit", 10)
    pods.template(made(spec, "template"))


def stateful_set(obj: Object) -> None:
    """Fill in a StatefulSet."""
    spec = made(obj, "spec")
    fill(spec, "podManagementPolicy", "OrderedReady")
    strategy = made(spec, "updateStrategy")
    fill(strategy, "type", "RollingUpdate")
    if strategy["type"] == "RollingUpdate":
        rolling = made(strategy, "rollingUpdate")
        fill(rolling, "partition", 0)
        fill(rolling, "maxUnavailable", 1)
    retention = made(spec, "persistentVolumeClaimRetentionPolicy")
    fill(retention, "whenDeleted", "Retain")
    fill(retention, "whenScaled", "Retain")
    fill(spec, "replicas", 1)
    fill(spec, "revisionHistoryLimit", 10)
    pods.template(made(spec, "template"))
    for claim in each(spec, "volumeClaimTemplates"):
        claim["apiVersion"], claim["kind"] = "v1", "PersistentVolumeClaim"
        core.claim(claim)


TABLE: Mapping[Kind, Callable[[dict[str, Any]], None]] = {
    kinds.DEPLOYMENTS: deployment,
    kinds.REPLICASETS: replica_set,
    kinds.DAEMONSETS: daemon_set,
    kinds.STATEFULSETS: stateful_set,
}
