"""Objects that tests start from."""

import copy
from typing import Any

from wherry.model import admit, kinds
from wherry.model.kinds import Kind

_POD_SPEC: dict[str, Any] = {"containers": [{"name": "web", "image": "nginx:1"}]}
_LABELS = {"app": "web"}
_TEMPLATE: dict[str, Any] = {"metadata": {"labels": _LABELS}, "spec": _POD_SPEC}
_META = {"name": "web", "namespace": "shop"}

_BODIES: dict[Kind, dict[str, Any]] = {
    kinds.PODS: {"spec": _POD_SPEC},
    kinds.DEPLOYMENTS: {"spec": {"selector": {"matchLabels": _LABELS}, "template": _TEMPLATE}},
    kinds.REPLICASETS: {"spec": {"selector": {"matchLabels": _LABELS}, "template": _TEMPLATE}},
    kinds.DAEMONSETS: {"spec": {"selector": {"matchLabels": _LABELS}, "template": _TEMPLATE}},
    kinds.STATEFULSETS: {
        "spec": {
            "serviceName": "web",
            "selector": {"matchLabels": _LABELS},
            "template": _TEMPLATE,
            "volumeClaimTemplates": [
                {
                    "metadata": {"name": "data"},
                    "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
                }
            ],
        }
    },
    kinds.REPLICATIONCONTROLLERS: {"spec": {"template": _TEMPLATE}},
    kinds.JOBS: {"spec": {"template": {"spec": {**_POD_SPEC, "restartPolicy": "Never"}}}},
    kinds.CRONJOBS: {
        "spec": {
            "schedule": "*/5 * * * *",
            "jobTemplate": {"spec": {"template": {"spec": {**_POD_SPEC, "restartPolicy": "OnFailure"}}}},
        }
    },
    kinds.SERVICES: {"spec": {"selector": _LABELS, "ports": [{"port": 80}]}},
    kinds.ENDPOINTS: {"subsets": [{"addresses": [{"ip": "10.0.0.1"}], "ports": [{"port": 80}]}]},
    kinds.ENDPOINTSLICES: {
        "addressType": "IPv4",
        "endpoints": [{"addresses": ["10.0.0.1"]}],
        "ports": [{"port": 80}],
    },
    kinds.CONFIGMAPS: {"data": {"a.txt": "b"}},
    kinds.SECRETS: {"data": {"a": "Yg=="}},
    kinds.NAMESPACES: {},
    kinds.NODES: {"status": {"capacity": {"cpu": "2", "memory": "1024Mi"}}},
    kinds.SERVICEACCOUNTS: {},
    kinds.LEASES: {"spec": {"leaseDurationSeconds": 40}},
    kinds.EVENTS: {"involvedObject": {"kind": "Pod", "name": "web", "namespace": "shop"}},
    kinds.ROLES: {"rules": [{"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}]},
    kinds.CLUSTERROLES: {"rules": [{"verbs": ["get"], "nonResourceURLs": ["/healthz"]}]},
    kinds.ROLEBINDINGS: {
        "roleRef": {"kind": "Role", "name": "web"},
        "subjects": [{"kind": "User", "name": "ann"}, {"kind": "ServiceAccount", "name": "web", "namespace": "shop"}],
    },
    kinds.CLUSTERROLEBINDINGS: {"roleRef": {"kind": "ClusterRole", "name": "web"}},
    kinds.PODDISRUPTIONBUDGETS: {"spec": {"minAvailable": 1, "selector": {"matchLabels": _LABELS}}},
    kinds.HORIZONTALPODAUTOSCALERS: {
        "spec": {"maxReplicas": 3, "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"}}
    },
    kinds.INGRESSES: {
        "spec": {
            "rules": [
                {
                    "host": "web.example.com",
                    "http": {
                        "paths": [
                            {
                                "path": "/",
                                "pathType": "Prefix",
                                "backend": {"service": {"name": "web", "port": {"number": 80}}},
                            }
                        ]
                    },
                }
            ]
        }
    },
    kinds.INGRESSCLASSES: {"spec": {"controller": "example.com/ingress"}},
    kinds.NETWORKPOLICIES: {"spec": {"podSelector": {}, "ingress": [{"ports": [{"port": 80}]}]}},
    kinds.PERSISTENTVOLUMES: {
        "spec": {"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"], "hostPath": {"path": "/data"}}
    },
    kinds.PERSISTENTVOLUMECLAIMS: {
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1024Mi"}}}
    },
    kinds.STORAGECLASSES: {"provisioner": "wherry.dev/local"},
    kinds.PRIORITYCLASSES: {"value": 100},
    kinds.LIMITRANGES: {"spec": {"limits": [{"type": "Container", "max": {"cpu": "2"}, "min": {"cpu": "100m"}}]}},
    kinds.RESOURCEQUOTAS: {"spec": {"hard": {"pods": "10", "requests.cpu": "4"}}},
    kinds.CUSTOMRESOURCEDEFINITIONS: {
        "spec": {
            "group": "example.com",
            "names": {"kind": "Boat", "plural": "boats"},
            "scope": "Namespaced",
            "versions": [
                {
                    "name": "v1",
                    "served": True,
                    "storage": True,
                    "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": {"type": "object"}}}},
                }
            ],
        }
    },
}


def sample(kind: Kind) -> dict[str, Any]:
    """A small right object of a kind, as a person writes it."""
    metadata: dict[str, Any] = {"name": "web", **({"namespace": "shop"} if kind.namespaced else {})}
    if kind is kinds.CUSTOMRESOURCEDEFINITIONS:
        metadata["name"] = "boats.example.com"
    body = copy.deepcopy(_BODIES[kind])
    return {"apiVersion": kind.api_version, "kind": kind.kind, "metadata": metadata, **body}


def admitted(kind: Kind) -> dict[str, Any]:
    """The same, pruned and filled in."""
    obj = sample(kind)
    admit.prune(kind, obj)
    admit.default(kind, obj)
    return obj


SAMPLED = tuple(_BODIES)


def put(obj: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """Set (or with `...` remove) what stands at a path such as `spec.ports.0.name`, in place."""
    *above, last = path.split(".")
    holder: Any = obj
    for step in above:
        if isinstance(holder, list):
            holder = holder[int(step)]
        else:
            holder = holder.setdefault(step, {})
    at: Any = int(last) if isinstance(holder, list) else last
    if value is ...:
        holder.pop(at, None)
    elif isinstance(holder, list) and at == len(holder):
        holder.append(value)
    else:
        holder[at] = value
    return obj
