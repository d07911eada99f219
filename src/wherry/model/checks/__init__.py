"""What an object must keep to beyond its types: by hand, with upstream's sentences. It changes nothing.

Checks that need other objects or the cluster's settings (a namespace that exists, an address that is free, a quota) belong
to admission in `api/`. Source: the API reference, and the messages that a real cluster (1.33 to 1.37) gives.
"""

from collections.abc import Callable, Mapping
from typing import Any

from wherry.errors import Cause
from wherry.model import kinds
from wherry.model.checks import batch, cluster, config, networking, pods, policy, rbac, services, storage, workloads
from wherry.model.kinds import Kind

Check = Callable[[dict[str, Any], dict[str, Any] | None], list[Cause]]
"""Takes an object and what it replaces (None when it is new)."""

TABLE: Mapping[Kind, Check] = {
    kinds.PODS: pods.check,
    kinds.SERVICES: services.service,
    kinds.ENDPOINTS: services.endpoints,
    kinds.ENDPOINTSLICES: services.endpoint_slice,
    kinds.CONFIGMAPS: config.config_map,
    kinds.SECRETS: config.secret,
    kinds.NAMESPACES: cluster.namespace,
    kinds.NODES: cluster.node,
    kinds.EVENTS: cluster.event,
    kinds.EVENTS_V1: cluster.event_v1,
    kinds.LEASES: cluster.lease,
    kinds.BINDINGS: cluster.binding,
    kinds.SCALES: cluster.scale,
    kinds.TOKENREQUESTS: cluster.token_request,
    kinds.CERTIFICATESIGNINGREQUESTS: cluster.certificate_request,
    kinds.CUSTOMRESOURCEDEFINITIONS: cluster.custom_resource,
    kinds.VALIDATINGWEBHOOKCONFIGURATIONS: cluster.webhooks,
    kinds.MUTATINGWEBHOOKCONFIGURATIONS: cluster.webhooks,
    kinds.REPLICATIONCONTROLLERS: workloads.replication_controller,
    kinds.DEPLOYMENTS: workloads.deployment,
    kinds.REPLICASETS: workloads.replica_set,
    kinds.DAEMONSETS: workloads.daemon_set,
    kinds.STATEFULSETS: workloads.stateful_set,
    kinds.JOBS: batch.job,
    kinds.CRONJOBS: batch.cron_job,
    kinds.ROLES: rbac.role,
    kinds.CLUSTERROLES: rbac.cluster_role,
    kinds.ROLEBINDINGS: rbac.role_binding,
    kinds.CLUSTERROLEBINDINGS: rbac.cluster_role_binding,
    kinds.INGRESSES: networking.ingress,
    kinds.INGRESSCLASSES: networking.ingress_class,
    kinds.NETWORKPOLICIES: networking.network_policy,
    kinds.PERSISTENTVOLUMES: storage.persistent_volume,
    kinds.PERSISTENTVOLUMECLAIMS: storage.claim,
    kinds.STORAGECLASSES: storage.storage_class,
    kinds.PODDISRUPTIONBUDGETS: policy.disruption_budget,
    kinds.HORIZONTALPODAUTOSCALERS: policy.autoscaler,
    kinds.HORIZONTALPODAUTOSCALERS_V1: policy.autoscaler,
    kinds.PRIORITYCLASSES: policy.priority_class,
    kinds.LIMITRANGES: policy.limit_range,
    kinds.RESOURCEQUOTAS: policy.resource_quota,
}
"""For each kind that has rules of its own, the function that checks them; metadata is checked for all."""
