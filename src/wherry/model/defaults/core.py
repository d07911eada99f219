"""Defaults of the core group, but for pods."""

import base64
from collections.abc import Callable, Mapping
from typing import Any

from wherry.model import kinds
from wherry.model.defaults import pods
from wherry.model.defaults.filling import Object, amounts, each, fill, made, part
from wherry.model.kinds import Kind

_AFFINITY_S = 10_800
_OPEN_TYPES = ("ClusterIP", "NodePort", "LoadBalancer")


def service(obj: Object) -> None:
    """Fill in a Service; addresses and node ports are given by the API server."""
    spec = made(obj, "spec")
    fill(spec, "sessionAffinity", "None")
    fill(spec, "type", "ClusterIP")
    if spec["sessionAffinity"] == "None":
        spec.pop("sessionAffinityConfig", None)
    elif spec["sessionAffinity"] == "ClientIP":
        made(made(spec, "sessionAffinityConfig"), "clientIP").setdefault("timeoutSeconds", _AFFINITY_S)
    for port in each(spec, "ports"):
        fill(port, "protocol", "TCP")
        if not port.get("targetPort") and port.get("port") is not None:
            port["targetPort"] = port["port"]
    is_external = spec["type"] in ("NodePort", "LoadBalancer") or bool(
        spec["type"] == "ClusterIP" and spec.get("externalIPs")
    )
    if is_external:
        fill(spec, "externalTrafficPolicy", "Cluster")
    if spec["type"] in _OPEN_TYPES:
        fill(spec, "internalTrafficPolicy", "Cluster")
    if spec["type"] == "LoadBalancer":
        fill(spec, "allocateLoadBalancerNodePorts", True)
        for ingress in each(part(part(obj, "status"), "loadBalancer"), "ingress"):
            if ingress.get("ip"):
                fill(ingress, "ipMode", "VIP")


def secret(obj: Object) -> None:
    """Fill in a Secret's type, and move `stringData`, which is never kept, into `data`."""
    fill(obj, "type", "Opaque")
    plain = obj.pop("stringData", None)
    if isinstance(plain, dict) and plain:
        made(obj, "data").update({name: base64.b64encode(text.encode()).decode() for name, text in plain.items()})


def namespace(obj: Object) -> None:
    """Fill in a Namespace: a label with its own name, so that selectors can say it."""
    metadata = made(obj, "metadata")
    if metadata.get("name"):
        made(metadata, "labels")["kubernetes.io/metadata.name"] = metadata["name"]
    fill(made(obj, "status"), "phase", "Active")


def node(obj: Object) -> None:
    """Fill in a Node: all of it may be allocated unless it says otherwise."""
    status = part(obj, "status")
    amounts(status, "capacity", "allocatable")
    if status.get("capacity") and status.get("allocatable") is None:
        status["allocatable"] = dict(status["capacity"])


def volume(obj: Object) -> None:
    """Fill in a PersistentVolume."""
    spec = made(obj, "spec")
    fill(spec, "persistentVolumeReclaimPolicy", "Retain")
    fill(spec, "volumeMode", "Filesystem")
    fill(made(obj, "status"), "phase", "Pending")
    amounts(spec, "capacity")
    if isinstance(spec.get("hostPath"), dict):
        spec["hostPath"].setdefault("type", "")
    if isinstance(spec.get("iscsi"), dict):
        fill(spec["iscsi"], "iscsiInterface", "default")


def claim(obj: Object) -> None:
    """Fill in a PersistentVolumeClaim."""
    pods.claim_spec(made(obj, "spec"))
    status = made(obj, "status")
    fill(status, "phase", "Pending")
    amounts(status, "capacity", "allocatedResources")


def endpoints(obj: Object) -> None:
    """Fill in Endpoints."""
    for subset in each(obj, "subsets"):
        for port in each(subset, "ports"):
            fill(port, "protocol", "TCP")


def replication_controller(obj: Object) -> None:
    """Fill in a ReplicationController: selector and labels from the template's labels."""
    spec = made(obj, "spec")
    fill(spec, "replicas", 1)
    labels = part(part(part(spec, "template"), "metadata"), "labels")
    if labels:
        if not spec.get("selector"):
            spec["selector"] = dict(labels)
        metadata = made(obj, "metadata")
        if not metadata.get("labels"):
            metadata["labels"] = dict(labels)
    if isinstance(spec.get("template"), dict):
        pods.template(spec["template"])


def limit_range(obj: Object) -> None:
    """Fill in a LimitRange: a container's default limit from its maximum, its request from that or the minimum."""
    for item in each(part(obj, "spec"), "limits"):
        amounts(item, "max", "min", "default", "defaultRequest", "maxLimitRequestRatio")
        if item.get("type") != "Container":
            continue
        limits, requests = dict(part(item, "default")), dict(part(item, "defaultRequest"))
        for name, amount in part(item, "max").items():
            limits.setdefault(name, amount)
        for name, amount in (*limits.items(), *part(item, "min").items()):
            requests.setdefault(name, amount)
        if limits:
            item["default"] = limits
        if requests:
            item["defaultRequest"] = requests


def resource_quota(obj: Object) -> None:
    """Put a ResourceQuota's amounts into canonical form."""
    amounts(part(obj, "spec"), "hard")
    amounts(part(obj, "status"), "hard", "used")


def pod_template(obj: Object) -> None:
    """Fill in a PodTemplate."""
    if isinstance(obj.get("template"), dict):
        pods.template(obj["template"])


TABLE: Mapping[Kind, Callable[[dict[str, Any]], None]] = {
    kinds.PODS: pods.pod,
    kinds.SERVICES: service,
    kinds.SECRETS: secret,
    kinds.NAMESPACES: namespace,
    kinds.NODES: node,
    kinds.PERSISTENTVOLUMES: volume,
    kinds.PERSISTENTVOLUMECLAIMS: claim,
    kinds.ENDPOINTS: endpoints,
    kinds.REPLICATIONCONTROLLERS: replication_controller,
    kinds.LIMITRANGES: limit_range,
    kinds.RESOURCEQUOTAS: resource_quota,
    kinds.PODTEMPLATES: pod_template,
}
