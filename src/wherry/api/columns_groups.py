"""Columns of the kinds outside the core group: workloads, networking, access, storage, scheduling."""

from typing import Any

from wherry.api.columns import (
    AGE,
    CREATED,
    NAME,
    NONE,
    UNKNOWN,
    Column,
    Columns,
    Json,
    at,
    containers,
    labels_text,
    number,
    selector_text,
    since,
    text,
    wide,
)
from wherry.api.columns_core import lasted

_SELECTOR = wide("Selector", lambda obj, _: selector_text(at(obj, "spec.selector")))


def _of(ready: str, wanted: str) -> Column:
    return Column("Ready", lambda obj, _: f"{at(obj, ready) or 0}/{at(obj, wanted) or 0}")


DEPLOYMENTS: Columns = (
    NAME,
    _of("status.readyReplicas", "spec.replicas"),
    number("Up-to-date", "status.updatedReplicas"),
    number("Available", "status.availableReplicas"),
    AGE,
    *containers("spec.template.spec"),
    _SELECTOR,
)
REPLICASETS: Columns = (
    NAME,
    number("Desired", "spec.replicas"),
    number("Current", "status.replicas"),
    number("Ready", "status.readyReplicas"),
    AGE,
    *containers("spec.template.spec"),
    _SELECTOR,
)
STATEFULSETS: Columns = (
    NAME,
    _of("status.readyReplicas", "spec.replicas"),
    AGE,
    *containers("spec.template.spec"),
)
DAEMONSETS: Columns = (
    NAME,
    number("Desired", "status.desiredNumberScheduled"),
    number("Current", "status.currentNumberScheduled"),
    number("Ready", "status.numberReady"),
    number("Up-to-date", "status.updatedNumberScheduled"),
    number("Available", "status.numberAvailable"),
    Column("Node Selector", lambda obj, _: labels_text(at(obj, "spec.template.spec.nodeSelector"))),
    AGE,
    *containers("spec.template.spec"),
    _SELECTOR,
)


def _revision_owner(obj: Json, _: float) -> str:
    for owner in at(obj, "metadata.ownerReferences") or ():
        if owner.get("controller"):
            group = str(owner.get("apiVersion", "")).rpartition("/")[0]
            kind = str(owner.get("kind", "")).lower()
            return f"{kind}.{group}/{owner.get('name', '')}" if group else f"{kind}/{owner.get('name', '')}"
    return NONE


CONTROLLERREVISIONS: Columns = (NAME, Column("Controller", _revision_owner), number("Revision", "revision"), AGE)


def _completions(job: Json, _: float) -> str:
    done, wanted = at(job, "status.succeeded") or 0, at(job, "spec.completions")
    if wanted is not None:
        return f"{done}/{wanted}"
    parallel = at(job, "spec.parallelism") or 0
    return f"{done}/1 of {parallel}" if parallel > 1 else f"{done}/1"


def _job_status(job: Json, _: float) -> str:
    true = {c.get("type") for c in at(job, "status.conditions") or () if c.get("status") == "True"}
    for condition, word in (
        ("Complete", "Complete"),
        ("Failed", "Failed"),
    ):
        if condition in true:
            return word
    if at(job, "metadata.deletionTimestamp"):
        return "Terminating"
    for condition, word in (
        ("Suspended", "Suspended"),
        ("FailureTarget", "FailureTarget"),
        ("SuccessCriteriaMet", "SuccessCriteriaMet"),
    ):
        if condition in true:
            return word
    return "Running"


JOBS: Columns = (
    NAME,
    Column("Status", _job_status),
    Column("Completions", _completions),
    Column("Duration", lambda job, now: lasted(at(job, "status.startTime"), at(job, "status.completionTime"), now)),
    AGE,
    *containers("spec.template.spec"),
    _SELECTOR,
)
CRONJOBS: Columns = (
    NAME,
    text("Schedule", "spec.schedule"),
    text("Timezone", "spec.timeZone", NONE),
    Column("Suspend", lambda obj, _: "True" if at(obj, "spec.suspend") else "False", type="boolean"),
    Column("Active", lambda obj, _: len(at(obj, "status.active") or ()), type="integer"),
    Column(
        "Last Schedule",
        lambda obj, now: since(when, now) if (when := at(obj, "status.lastScheduleTime")) else NONE,
    ),
    AGE,
    *containers("spec.jobTemplate.spec.template.spec"),
    wide("Selector", lambda obj, _: selector_text(at(obj, "spec.jobTemplate.spec.selector"))),
)

# --- networking ---------------------------------------------------------------------------------------------------------


def _hosts(ingress: Json, _: float) -> str:
    hosts = [str(rule["host"]) for rule in at(ingress, "spec.rules") or () if rule.get("host")]
    return ",".join(hosts[:3]) + (f" + {len(hosts) - 3} more..." if len(hosts) > 3 else "") if hosts else "*"


def _points(ingress: Json, _: float) -> str:
    points = at(ingress, "status.loadBalancer.ingress") or ()
    return ",".join(str(point.get("ip") or point.get("hostname") or "") for point in points)


INGRESSES: Columns = (
    NAME,
    text("Class", "spec.ingressClassName", NONE),
    Column("Hosts", _hosts),
    Column("Address", _points),
    Column("Ports", lambda obj, _: "80, 443" if at(obj, "spec.tls") else "80"),
    AGE,
)


def _parameters(obj: Json, _: float) -> str:
    found: Json = at(obj, "spec.parameters") or {}
    if not found:
        return NONE
    group = f".{found['apiGroup']}" if found.get("apiGroup") else ""
    return f"{found.get('kind', '')}{group}/{found.get('name', '')}"


INGRESSCLASSES: Columns = (NAME, text("Controller", "spec.controller"), Column("Parameters", _parameters), AGE)
NETWORKPOLICIES: Columns = (
    NAME,
    Column("Pod-Selector", lambda obj, _: selector_text(at(obj, "spec.podSelector"))),
    AGE,
)

# --- access -------------------------------------------------------------------------------------------------------------


def _subjects(kind: str) -> Any:
    def cell(obj: Json, _: float) -> str:
        found = [s for s in obj.get("subjects") or () if s.get("kind") == kind]
        if kind == "ServiceAccount":
            return ", ".join(f"{s.get('namespace', '')}/{s.get('name', '')}" for s in found)
        return ", ".join(str(s.get("name", "")) for s in found)

    return cell


ROLES: Columns = (NAME, CREATED)
ROLEBINDINGS: Columns = (
    NAME,
    Column("Role", lambda obj, _: f"{at(obj, 'roleRef.kind')}/{at(obj, 'roleRef.name')}"),
    AGE,
    wide("Users", _subjects("User")),
    wide("Groups", _subjects("Group")),
    wide("ServiceAccounts", _subjects("ServiceAccount")),
)


def _csr_condition(obj: Json, _: float) -> str:
    found = {c.get("type") for c in at(obj, "status.conditions") or ()}
    words = [word for word in ("Approved", "Denied", "Failed") if word in found] or ["Pending"]
    return ",".join([*words, "Issued"] if at(obj, "status.certificate") else words)


CERTIFICATESIGNINGREQUESTS: Columns = (
    NAME,
    AGE,
    text("SignerName", "spec.signerName", NONE),
    text("Requestor", "spec.username", NONE),
    Column("RequestedDuration", lambda obj, _: f"{s}s" if (s := at(obj, "spec.expirationSeconds")) else NONE),
    Column("Condition", _csr_condition),
)

# --- scheduling, scaling, storage, the rest -----------------------------------------------------------------------------


def _metric(spec: Json, current: Json | None) -> str:
    source: Json = spec.get("resource") or {}
    target: Json = source.get("target") or {}
    now: Json = ((current or {}).get("resource") or {}).get("current") or {}
    if target.get("averageUtilization") is not None:
        have = f"{now['averageUtilization']}%" if now.get("averageUtilization") is not None else UNKNOWN
        return f"{source.get('name', '')}: {have}/{target['averageUtilization']}%"
    wanted = target.get("averageValue") or target.get("value") or UNKNOWN
    return f"{source.get('name') or str(spec.get('type', ''))}: {now.get('averageValue') or UNKNOWN}/{wanted}"


def _targets(obj: Json, _: float) -> str:
    percent = at(obj, "spec.targetCPUUtilizationPercentage")
    if percent is not None:  # autoscaling/v1
        have = at(obj, "status.currentCPUUtilizationPercentage")
        return f"cpu: {f'{have}%' if have is not None else UNKNOWN}/{percent}%"
    specs = at(obj, "spec.metrics") or ()
    currents = list(at(obj, "status.currentMetrics") or ())
    return (
        ", ".join(_metric(spec, currents[index] if index < len(currents) else None) for index, spec in enumerate(specs))
        or NONE
    )


HORIZONTALPODAUTOSCALERS: Columns = (
    NAME,
    Column("Reference", lambda o, _: f"{at(o, 'spec.scaleTargetRef.kind')}/{at(o, 'spec.scaleTargetRef.name')}"),
    Column("Targets", _targets),
    text("MinPods", "spec.minReplicas", "<unset>"),
    number("MaxPods", "spec.maxReplicas"),
    number("Replicas", "status.currentReplicas"),
    AGE,
)
PODDISRUPTIONBUDGETS: Columns = (
    NAME,
    text("Min Available", "spec.minAvailable", "N/A"),
    text("Max Unavailable", "spec.maxUnavailable", "N/A"),
    number("Allowed Disruptions", "status.disruptionsAllowed"),
    AGE,
)
PRIORITYCLASSES: Columns = (
    NAME,
    number("Value", "value"),
    Column("Global-Default", lambda obj, _: bool(obj.get("globalDefault")), type="boolean"),
    AGE,
    text("PreemptionPolicy", "preemptionPolicy"),
)
LEASES: Columns = (NAME, text("Holder", "spec.holderIdentity"), AGE)
RUNTIMECLASSES: Columns = (NAME, text("Handler", "handler"), AGE)


def _storage_name(obj: Json, _: float) -> str:
    name = str(at(obj, "metadata.name") or "")
    annotations: Json = at(obj, "metadata.annotations") or {}
    default = annotations.get("storageclass.kubernetes.io/is-default-class") == "true"
    return f"{name} (default)" if default else name


STORAGECLASSES: Columns = (
    Column("Name", _storage_name, format="name"),
    text("Provisioner", "provisioner"),
    text("ReclaimPolicy", "reclaimPolicy", "Delete"),
    text("VolumeBindingMode", "volumeBindingMode", "Immediate"),
    Column("AllowVolumeExpansion", lambda obj, _: bool(obj.get("allowVolumeExpansion")), type="boolean"),
    AGE,
)
CUSTOMRESOURCEDEFINITIONS: Columns = (NAME, CREATED)
