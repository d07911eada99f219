"""Checks of what makes pods from a template: the group apps, and replication controllers."""

from typing import Any

from wherry.errors import Cause
from wherry.model import names
from wherry.model.checks import pods
from wherry.model.checks.problems import Object, Problems, each, part
from wherry.model.selectors import LabelSelector

_STATEFUL_FIELDS = (
    "replicas",
    "ordinals",
    "template",
    "updateStrategy",
    "revisionHistoryLimit",
    "persistentVolumeClaimRetentionPolicy",
    "minReadySeconds",
)


def deployment(obj: Object, old: Object | None) -> list[Cause]:
    """Check a Deployment."""
    found = Problems()
    spec = part(obj, "spec")
    found.not_negative("spec", spec, "replicas", "minReadySeconds", "revisionHistoryLimit", "progressDeadlineSeconds")
    _check_pods(found, spec, "deployment")
    _check_rollout(found, "spec.strategy", part(spec, "strategy"))
    deadline_s = spec.get("progressDeadlineSeconds")
    if deadline_s is not None and deadline_s <= (spec.get("minReadySeconds") or 0):
        found.invalid("spec.progressDeadlineSeconds", deadline_s, "must be greater than minReadySeconds")
    _keep_selector(found, spec, old)
    return found.causes


def replica_set(obj: Object, old: Object | None) -> list[Cause]:
    """Check a ReplicaSet."""
    found = Problems()
    spec = part(obj, "spec")
    found.not_negative("spec", spec, "replicas", "minReadySeconds")
    _check_pods(found, spec, "replicaset")
    _keep_selector(found, spec, old)
    return found.causes


def daemon_set(obj: Object, old: Object | None) -> list[Cause]:
    """Check a DaemonSet."""
    found = Problems()
    spec = part(obj, "spec")
    found.not_negative("spec", spec, "minReadySeconds", "revisionHistoryLimit")
    _check_pods(found, spec, "daemonset")
    strategy = part(spec, "updateStrategy")
    found.one_of("spec.updateStrategy.type", strategy.get("type"), ("RollingUpdate", "OnDelete"))
    if strategy.get("type") == "RollingUpdate":
        rolling = part(strategy, "rollingUpdate")
        _check_bounds(found, "spec.updateStrategy.rollingUpdate", rolling)
        if _is_zero(rolling.get("maxSurge")) and _is_zero(rolling.get("maxUnavailable")):
            found.required("spec.updateStrategy.rollingUpdate.maxUnavailable", "cannot be 0 when maxSurge is 0")
    _keep_selector(found, spec, old)
    return found.causes


def stateful_set(obj: Object, old: Object | None) -> list[Cause]:
    """Check a StatefulSet."""
    found = Problems()
    spec = part(obj, "spec")
    found.one_of("spec.podManagementPolicy", spec.get("podManagementPolicy"), ("OrderedReady", "Parallel"))
    strategy = part(spec, "updateStrategy")
    found.one_of("spec.updateStrategy.type", strategy.get("type"), ("RollingUpdate", "OnDelete"))
    rolling = part(strategy, "rollingUpdate")
    if strategy.get("type") == "OnDelete" and rolling:
        found.invalid("spec.updateStrategy.rollingUpdate", rolling, "only allowed for updateStrategy 'RollingUpdate'")
    found.not_negative("spec.updateStrategy.rollingUpdate", rolling, "partition")
    found.not_negative("spec", spec, "replicas", "minReadySeconds", "revisionHistoryLimit")
    found.not_negative("spec.ordinals", part(spec, "ordinals"), "start")
    for field in ("whenDeleted", "whenScaled"):
        policy = part(spec, "persistentVolumeClaimRetentionPolicy").get(field)
        found.one_of(f"spec.persistentVolumeClaimRetentionPolicy.{field}", policy, ("Delete", "Retain"))
    _check_pods(found, spec, "statefulset", claims=[part(one, "metadata").get("name") for _, one in _claims(spec)])
    if spec.get("serviceName"):
        found.all_invalid("spec.serviceName", spec["serviceName"], names.dns_subdomain(spec["serviceName"]))
    if old is not None:
        before = part(old, "spec")
        if {**spec, **dict.fromkeys(_STATEFUL_FIELDS)} != {**before, **dict.fromkeys(_STATEFUL_FIELDS)}:
            said = ", ".join(f"'{field}'" for field in _STATEFUL_FIELDS[:-1])
            found.forbidden(
                "spec",
                f"updates to statefulset spec for fields other than {said} and '{_STATEFUL_FIELDS[-1]}' are forbidden",
            )
    return found.causes


def replication_controller(obj: Object, old: Object | None) -> list[Cause]:
    """Check a ReplicationController."""
    found = Problems()
    spec = part(obj, "spec")
    found.not_negative("spec", spec, "replicas", "minReadySeconds")
    selector = part(spec, "selector")
    if not selector:
        found.required("spec.selector")
    template = spec.get("template")
    if not isinstance(template, dict):
        found.required("spec.template")
    else:
        labels = part(part(template, "metadata"), "labels")
        if selector and not LabelSelector.equal(selector).matches(labels):
            found.invalid("spec.template.metadata.labels", labels, "`selector` does not match template `labels`")
        pods.check_template(found, "spec.template", template)
        _only_always(found, part(template, "spec"))
    return found.causes


def _claims(spec: Object) -> list[tuple[str, Object]]:
    return list(each("spec", spec, "volumeClaimTemplates"))


def _check_pods(found: Problems, spec: Object, kind: str, claims: list[Any] | None = None) -> None:
    """Check selector and template: the one must choose what the other makes."""
    selector = spec.get("selector")
    if not isinstance(selector, dict):
        found.required("spec.selector")
    else:
        found.selector("spec.selector", selector)
        if not selector.get("matchLabels") and not selector.get("matchExpressions"):
            found.invalid("spec.selector", selector, f"empty selector is invalid for {kind}")
    template = part(spec, "template")
    labels = part(part(template, "metadata"), "labels")
    if isinstance(selector, dict) and not found.causes:
        chosen = LabelSelector.of(selector)
        if not chosen.is_everything and not chosen.matches(labels):
            found.invalid("spec.template.metadata.labels", labels, "`selector` does not match template `labels`")
    if claims:
        # the volumes that claims become are not in the template, and containers mount them
        inner = part(template, "spec")
        own = {one.get("name") for one in inner.get("volumes") or ()}
        more = [{"name": name, "persistentVolumeClaim": {"claimName": name}} for name in claims if name not in own]
        template = {**template, "spec": {**inner, "volumes": [*(inner.get("volumes") or ()), *more]}}
    pods.check_template(found, "spec.template", template)
    _only_always(found, part(template, "spec"))


def _only_always(found: Problems, spec: Object) -> None:
    if spec.get("restartPolicy") not in (None, "Always"):
        found.unsupported("spec.template.spec.restartPolicy", spec["restartPolicy"], ("Always",))
    if spec.get("activeDeadlineSeconds") is not None:
        found.forbidden(
            "spec.template.spec.activeDeadlineSeconds", "activeDeadlineSeconds in ReplicaSet is not Supported"
        )


def _check_rollout(found: Problems, path: str, strategy: Object) -> None:
    kind = strategy.get("type")
    found.one_of(f"{path}.type", kind, ("Recreate", "RollingUpdate"))
    rolling = strategy.get("rollingUpdate")
    if kind == "Recreate" and rolling is not None:
        found.forbidden(f"{path}.rollingUpdate", "may not be specified when strategy `type` is 'Recreate'")
    elif kind == "RollingUpdate" and isinstance(rolling, dict):
        _check_bounds(found, f"{path}.rollingUpdate", rolling)
        if _is_zero(rolling.get("maxUnavailable")) and _is_zero(rolling.get("maxSurge")):
            found.invalid(
                f"{path}.rollingUpdate.maxUnavailable",
                rolling.get("maxUnavailable"),
                "may not be 0 when `maxSurge` is 0",
            )


def _check_bounds(found: Problems, path: str, rolling: Object) -> None:
    for field in ("maxUnavailable", "maxSurge"):
        found.int_or_percent(f"{path}.{field}", rolling.get(field))
    most = rolling.get("maxUnavailable")
    if isinstance(most, str) and most.endswith("%") and most[:-1].isdecimal() and int(most[:-1]) > 100:
        found.invalid(f"{path}.maxUnavailable", most, "must not be greater than 100%")


def _is_zero(value: Any) -> bool:
    return value == 0 or value is None or (isinstance(value, str) and value.rstrip("%").strip("0") == "")


def _keep_selector(found: Problems, spec: Object, old: Object | None) -> None:
    if old is not None:
        found.unchanged("spec.selector", spec.get("selector"), part(old, "spec").get("selector"))
