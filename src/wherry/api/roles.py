"""The roles and bindings that every cluster starts with, as data.

Upstream's user-facing roles (cluster-admin, admin, edit, view), its discovery roles, and a role for each component and
controller, least rights first. Source: Kubernetes, "Using RBAC Authorization", "Default roles and role bindings".
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

_API = "rbac.authorization.k8s.io"
_READ = ("get", "list", "watch")
_WRITE = ("create", "delete", "deletecollection", "patch", "update")
_ALL = (*_READ, *_WRITE)
_STATUS = ("get", "patch", "update")

Rule = dict[str, list[str]]


def _rule(group: str, resources: str, verbs: Sequence[str], names: str = "") -> Rule:
    rule: Rule = {"apiGroups": group.split(","), "resources": resources.split(), "verbs": list(verbs)}
    if names:
        rule["resourceNames"] = names.split()
    return rule


def _urls(urls: str, verbs: Sequence[str]) -> Rule:
    return {"nonResourceURLs": urls.split(), "verbs": list(verbs)}


_EVENTS = _rule(",events.k8s.io", "events", ("create", "patch", "update"))

_VIEW: tuple[Rule, ...] = (
    _rule(
        "",
        "configmaps endpoints persistentvolumeclaims persistentvolumeclaims/status pods replicationcontrollers"
        " replicationcontrollers/scale serviceaccounts services services/status bindings events limitranges"
        " namespaces/status pods/log pods/status replicationcontrollers/status resourcequotas resourcequotas/status"
        " namespaces",
        _READ,
    ),
    _rule("discovery.k8s.io", "endpointslices", _READ),
    _rule("events.k8s.io", "events", _READ),
    _rule(
        "apps",
        "controllerrevisions daemonsets daemonsets/status deployments deployments/scale deployments/status replicasets"
        " replicasets/scale replicasets/status statefulsets statefulsets/scale statefulsets/status",
        _READ,
    ),
    _rule("autoscaling", "horizontalpodautoscalers horizontalpodautoscalers/status", _READ),
    _rule("batch", "cronjobs cronjobs/status jobs jobs/status", _READ),
    _rule("policy", "poddisruptionbudgets poddisruptionbudgets/status", _READ),
    _rule("networking.k8s.io", "ingresses ingresses/status networkpolicies", _READ),
)
_EDIT: tuple[Rule, ...] = (
    *_VIEW,
    _rule("", "pods/attach pods/exec pods/portforward pods/proxy secrets services/proxy", _READ),
    _rule("", "serviceaccounts", ("impersonate",)),
    _rule("", "pods pods/attach pods/exec pods/portforward pods/proxy", _WRITE),
    _rule("", "pods/eviction serviceaccounts/token", ("create",)),
    _rule(
        "",
        "configmaps events persistentvolumeclaims replicationcontrollers replicationcontrollers/scale secrets"
        " serviceaccounts services services/proxy",
        _WRITE,
    ),
    _rule(
        "apps",
        "daemonsets deployments deployments/rollback deployments/scale replicasets replicasets/scale statefulsets"
        " statefulsets/scale",
        _WRITE,
    ),
    _rule("autoscaling", "horizontalpodautoscalers", _WRITE),
    _rule("batch", "cronjobs jobs", _WRITE),
    _rule("policy", "poddisruptionbudgets", _WRITE),
    _rule("networking.k8s.io", "ingresses networkpolicies", _WRITE),
    _rule("coordination.k8s.io", "leases", _ALL),
)
_ADMIN: tuple[Rule, ...] = (
    *_EDIT,
    _rule("authorization.k8s.io", "localsubjectaccessreviews", ("create",)),
    _rule(_API, "rolebindings roles", _ALL),
)

CLUSTER_ROLES: Mapping[str, Sequence[Rule]] = {
    "cluster-admin": (_rule("*", "*", ("*",)), _urls("*", ("*",))),
    "admin": _ADMIN,
    "edit": _EDIT,
    "view": _VIEW,
    "system:discovery": (
        _urls("/api /api/* /apis /apis/* /healthz /livez /openapi /openapi/* /readyz /version /version/", ("get",)),
    ),
    "system:public-info-viewer": (_urls("/healthz /livez /readyz /version /version/", ("get",)),),
    "system:basic-user": (
        _rule("authorization.k8s.io", "selfsubjectaccessreviews selfsubjectrulesreviews", ("create",)),
        _rule("authentication.k8s.io", "selfsubjectreviews", ("create",)),
    ),
    "system:service-account-issuer-discovery": (
        _urls("/.well-known/openid-configuration /.well-known/openid-configuration/ /openid/v1/jwks", ("get",)),
    ),
    "system:auth-delegator": (
        _rule("authentication.k8s.io", "tokenreviews", ("create",)),
        _rule("authorization.k8s.io", "subjectaccessreviews", ("create",)),
    ),
    "system:monitoring": (_urls("/healthz /healthz/* /livez /livez/* /metrics /readyz /readyz/*", ("get",)),),
    # What a node may do is decided by `node_rules`, object by object. The role names it for people to read and is
    # bound to nobody.
    "system:node": (
        _rule("", "nodes nodes/status pods pods/status", (*_READ, "create", "delete", "patch", "update")),
        _rule("", "services endpoints namespaces", _READ),
        _rule("", "configmaps secrets persistentvolumeclaims serviceaccounts", ("get",)),
        _rule("", "serviceaccounts/token pods/eviction", ("create",)),
        _rule("coordination.k8s.io", "leases", ("create", "delete", "get", "patch", "update")),
        _rule("discovery.k8s.io", "endpointslices", _READ),
        _EVENTS,
    ),
    "system:node-proxier": (
        _rule("", "endpoints services nodes", _READ),
        _rule("discovery.k8s.io", "endpointslices", _READ),
        _EVENTS,
    ),
    "system:kube-dns": (_rule("", "endpoints services", ("list", "watch")),),
    "system:kube-scheduler": (
        _EVENTS,
        _rule("coordination.k8s.io", "leases", ("create", "get", "list", "watch", "patch", "update")),
        _rule("", "nodes namespaces", _READ),
        _rule("", "pods", ("delete", *_READ)),
        _rule("", "bindings pods/binding", ("create",)),
        _rule("", "pods/status", ("patch", "update")),
        _rule("", "replicationcontrollers services persistentvolumeclaims persistentvolumes", _READ),
        _rule("apps", "replicasets statefulsets", _READ),
        _rule("policy", "poddisruptionbudgets", _READ),
        _rule("scheduling.k8s.io", "priorityclasses", _READ),
        _rule("storage.k8s.io", "csidrivers csinodes csistoragecapacities storageclasses volumeattachments", _READ),
        _rule("resource.k8s.io", "deviceclasses resourceclaims resourceslices", _READ),
        _rule("authentication.k8s.io", "tokenreviews", ("create",)),
        _rule("authorization.k8s.io", "subjectaccessreviews", ("create",)),
    ),
}

_PODS = _rule("", "pods", (*_READ, "create", "delete", "patch", "update"))
_LEASES = _rule("coordination.k8s.io", "leases", ("create", "delete", "get", "list", "watch", "patch", "update"))
_REVISIONS = _rule("apps", "controllerrevisions", (*_READ, "create", "delete", "patch", "update"))


def _owns(group: str, plural: str) -> tuple[Rule, ...]:
    """What the controller of a workload needs of the workload itself."""
    return (
        _rule(group, plural, (*_READ, "patch", "update")),
        _rule(group, f"{plural}/status", _STATUS),
        _rule(group, f"{plural}/finalizers", ("update",)),
    )


CONTROLLERS: Mapping[str, Sequence[Rule]] = {
    "deployment-controller": (
        *_owns("apps", "deployments"),
        _rule("apps", "replicasets", (*_READ, "create", "delete", "patch", "update")),
        _rule("", "pods", (*_READ, "update")),
    ),
    "replicaset-controller": (*_owns("apps", "replicasets"), _PODS),
    "replication-controller": (*_owns("", "replicationcontrollers"), _PODS),
    "statefulset-controller": (
        *_owns("apps", "statefulsets"),
        _PODS,
        _REVISIONS,
        _rule("", "persistentvolumeclaims", ("create", "get", "list", "watch", "delete", "patch", "update")),
    ),
    "daemon-set-controller": (
        *_owns("apps", "daemonsets"),
        _PODS,
        _REVISIONS,
        _rule("", "nodes", _READ),
        _rule("", "pods/binding", ("create",)),
    ),
    "job-controller": (*_owns("batch", "jobs"), _PODS),
    "cronjob-controller": (
        *_owns("batch", "cronjobs"),
        _rule("batch", "jobs", (*_READ, "create", "delete", "patch", "update")),
        _rule("", "pods", ("list", "delete")),
    ),
    "ttl-after-finished-controller": (_rule("batch", "jobs", (*_READ, "delete")),),
    "endpointslice-controller": (
        _rule("", "services pods nodes", _READ),
        _rule("", "services/finalizers", ("update",)),
        _rule("discovery.k8s.io", "endpointslices", (*_READ, "create", "delete", "patch", "update")),
    ),
    "endpoint-controller": (
        _rule("", "services pods", _READ),
        _rule("", "services/finalizers", ("update",)),
        _rule("", "endpoints", (*_READ, "create", "delete", "patch", "update")),
    ),
    "namespace-controller": (
        _rule("", "namespaces", ("delete", *_READ)),
        _rule("", "namespaces/finalize namespaces/status", ("patch", "update")),
        _rule("*", "*", ("delete", "deletecollection", "get", "list", "watch")),
    ),
    "generic-garbage-collector": (_rule("*", "*", ("delete", "get", "list", "patch", "update", "watch")),),
    "pod-garbage-collector": (
        _rule("", "pods", ("delete", "list", "watch")),
        _rule("", "pods/status", ("patch",)),
        _rule("", "nodes", _READ),
    ),
    "taint-eviction-controller": (
        _rule("", "pods", ("delete", *_READ)),
        _rule("", "pods/status", ("patch",)),
        _rule("", "nodes", _READ),
    ),
    "node-controller": (
        _rule("", "nodes", ("delete", *_READ, "patch", "update")),
        _rule("", "nodes/status", _STATUS),
        _rule("", "pods", ("delete", *_READ)),
        _rule("", "pods/status", ("patch", "update")),
        _rule("coordination.k8s.io", "leases", _READ),
    ),
    "service-account-controller": (
        _rule("", "serviceaccounts", ("create", *_READ)),
        _rule("", "namespaces", _READ),
    ),
    "root-ca-cert-publisher": (
        _rule("", "configmaps", ("create", *_READ, "update", "patch")),
        _rule("", "namespaces", _READ),
    ),
    "service-controller": (
        _rule("", "services", _READ),
        _rule("", "services/status", _STATUS),
        _rule("", "nodes", _READ),
    ),
    "disruption-controller": (
        _rule("policy", "poddisruptionbudgets", _READ),
        _rule("policy", "poddisruptionbudgets/status", _STATUS),
        _rule("apps", "deployments replicasets statefulsets", _READ),
        _rule("", "pods replicationcontrollers", _READ),
        _rule("", "pods/status", ("patch", "update")),
    ),
    "horizontal-pod-autoscaler": (
        _rule("autoscaling", "horizontalpodautoscalers", _READ),
        _rule("autoscaling", "horizontalpodautoscalers/status", _STATUS),
        _rule("*", "*/scale", ("get", "update", "patch")),
        _rule("", "pods", _READ),
        _rule("metrics.k8s.io,custom.metrics.k8s.io,external.metrics.k8s.io", "*", _READ),
    ),
    "resourcequota-controller": (
        _rule("*", "*", ("list", "watch")),
        _rule("", "resourcequotas/status", _STATUS),
    ),
    "clusterrole-aggregation-controller": (_rule(_API, "clusterroles", ("escalate", *_READ, "patch", "update")),),
    "persistent-volume-binder": (
        _rule("", "persistentvolumes", (*_READ, "create", "delete", "patch", "update")),
        _rule("", "persistentvolumes/status persistentvolumeclaims/status", _STATUS),
        _rule("", "persistentvolumeclaims", (*_READ, "patch", "update")),
        _rule("", "pods nodes", _READ),
        _rule("storage.k8s.io", "storageclasses", _READ),
    ),
}
"""Rights of each controller beyond writing events and holding its election lease; the user is `system:controller:NAME`."""

_BINDINGS: Sequence[tuple[str, str, str]] = (
    # role, kind of subject, its name
    ("cluster-admin", "Group", "system:masters"),
    ("system:discovery", "Group", "system:authenticated"),
    ("system:basic-user", "Group", "system:authenticated"),
    ("system:public-info-viewer", "Group", "system:authenticated"),
    ("system:public-info-viewer", "Group", "system:unauthenticated"),
    ("system:service-account-issuer-discovery", "Group", "system:serviceaccounts"),
    ("system:monitoring", "Group", "system:monitoring"),
    ("system:kube-scheduler", "User", "system:kube-scheduler"),
    ("system:node-proxier", "User", "system:kube-proxy"),
)


def objects() -> Iterator[dict[str, Any]]:
    """Every ClusterRole and ClusterRoleBinding, as objects to be created."""
    for name, rules in CLUSTER_ROLES.items():
        yield {"apiVersion": f"{_API}/v1", "kind": "ClusterRole", "metadata": _meta(name), "rules": list(rules)}
    for name, rules in CONTROLLERS.items():
        name = f"system:controller:{name}"
        yield {
            "apiVersion": f"{_API}/v1",
            "kind": "ClusterRole",
            "metadata": _meta(name),
            "rules": [*rules, _EVENTS, _LEASES],
        }
        yield _binding(name, name, [("User", name)])
    bound: dict[str, list[tuple[str, str]]] = {}
    for role, kind, subject in _BINDINGS:
        bound.setdefault(role, []).append((kind, subject))
    for role, subjects in bound.items():
        yield _binding(role, role, subjects)


def _binding(name: str, role: str, subjects: Sequence[tuple[str, str]]) -> dict[str, Any]:
    return {
        "apiVersion": f"{_API}/v1",
        "kind": "ClusterRoleBinding",
        "metadata": _meta(name),
        "roleRef": {"apiGroup": _API, "kind": "ClusterRole", "name": role},
        "subjects": [{"apiGroup": _API, "kind": kind, "name": subject} for kind, subject in subjects],
    }


def _meta(name: str) -> dict[str, Any]:
    return {
        "name": name,
        "labels": {"kubernetes.io/bootstrapping": "rbac-defaults"},
        "annotations": {"rbac.authorization.kubernetes.io/autoupdate": "true"},
    }
