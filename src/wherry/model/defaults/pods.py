"""Defaults of a pod's spec, wherever one stands: in a Pod or in a template."""

from collections.abc import Mapping
from typing import Any

from wherry.model.defaults.filling import Object, amounts, each, fill, made, part

_CONTAINERS = ("containers", "initContainers", "ephemeralContainers")
_MODE = 0o644
_HOUR_S = 3600
_SOURCELESS = ("name",)

_VOLUME_FIELDS: Mapping[str, Mapping[str, Any]] = {
    "secret": {"defaultMode": _MODE},
    "configMap": {"defaultMode": _MODE},
    "downwardAPI": {"defaultMode": _MODE},
    "projected": {"defaultMode": _MODE},
    "hostPath": {"type": ""},
    "iscsi": {"iscsiInterface": "default"},
    "rbd": {"pool": "rbd", "user": "admin", "keyring": "/etc/ceph/keyring"},
    "azureDisk": {"cachingMode": "ReadWrite", "kind": "Shared", "fsType": "ext4", "readOnly": False},
    "scaleIO": {"storageMode": "ThinProvisioned", "fsType": "xfs"},
}


def pod(obj: Object) -> None:
    """Fill in a Pod: what a template's spec gets, and what only a pod does."""
    spec = made(obj, "spec")
    pod_spec(spec)
    for container in each(spec, "containers", "initContainers"):
        resources = part(container, "resources")
        if resources.get("limits"):
            requests = made(resources, "requests")
            for name, amount in resources["limits"].items():
                requests.setdefault(name, amount)
    fill(spec, "enableServiceLinks", True)
    if spec.get("hostNetwork"):
        for container in each(spec, "containers", "initContainers"):
            for port in each(container, "ports"):
                if not port.get("hostPort"):
                    port["hostPort"] = port.get("containerPort")
    status = part(obj, "status")
    for one in each(status, "containerStatuses", "initContainerStatuses", "ephemeralContainerStatuses"):
        amounts(one, "allocatedResources")


def template(obj: Object) -> None:
    """Fill in a pod template: `obj` holds `metadata` and `spec`."""
    fill(obj, "metadata", {})
    pod_spec(made(obj, "spec"))


def pod_spec(spec: Object) -> None:
    """Fill in the spec of a pod or of a template."""
    fill(spec, "dnsPolicy", "ClusterFirst")
    fill(spec, "restartPolicy", "Always")
    fill(spec, "securityContext", {})
    fill(spec, "terminationGracePeriodSeconds", 30)
    fill(spec, "schedulerName", "default-scheduler")
    account = spec.get("serviceAccountName") or spec.get("serviceAccount")
    if account:  # the old name of the field is kept the same
        spec["serviceAccountName"] = spec["serviceAccount"] = account
    for volume in each(spec, "volumes"):
        _volume(volume)
    for one in each(spec, *_CONTAINERS):
        container(one)
    amounts(spec, "overhead")
    amounts(part(spec, "resources"), "limits", "requests")


def container(obj: Object) -> None:
    """Fill in a container."""
    fill(obj, "imagePullPolicy", pull_policy(obj.get("image") or ""))
    fill(obj, "terminationMessagePath", "/dev/termination-log")
    fill(obj, "terminationMessagePolicy", "File")
    fill(obj, "resources", {})
    amounts(obj["resources"], "limits", "requests")
    for port in each(obj, "ports"):
        fill(port, "protocol", "TCP")
    for variable in each(obj, "env"):
        _value_from(part(variable, "valueFrom"))
    for name in ("livenessProbe", "readinessProbe", "startupProbe"):
        if isinstance(obj.get(name), dict):
            _probe(obj[name])
    for name in ("postStart", "preStop"):
        _http_get(part(part(obj, "lifecycle"), name))


def pull_policy(image: str) -> str:
    """Say when an image is pulled: always for the tag `latest` (said or meant), else if it is not there."""
    name, at, _ = image.partition("@")
    if at:
        return "IfNotPresent"
    tag = name.rpartition("/")[2].partition(":")[2]
    return "Always" if tag in ("", "latest") else "IfNotPresent"


def _probe(probe: Object) -> None:
    for name, value in (("timeoutSeconds", 1), ("periodSeconds", 10), ("successThreshold", 1), ("failureThreshold", 3)):
        if not probe.get(name):
            probe[name] = value
    _http_get(probe)
    if isinstance(probe.get("grpc"), dict):
        probe["grpc"].setdefault("service", "")


def _http_get(handler: Object) -> None:
    if isinstance(handler.get("httpGet"), dict):
        fill(handler["httpGet"], "path", "/")
        fill(handler["httpGet"], "scheme", "HTTP")


def _value_from(source: Object) -> None:
    if isinstance(source.get("fieldRef"), dict):
        fill(source["fieldRef"], "apiVersion", "v1")
    if isinstance(source.get("resourceFieldRef"), dict):
        fill(source["resourceFieldRef"], "divisor", "0")


def _volume(volume: Object) -> None:
    if not any(name not in _SOURCELESS for name in volume):
        volume["emptyDir"] = {}
    for source, fields in _VOLUME_FIELDS.items():
        if isinstance(volume.get(source), dict):
            for name, value in fields.items():
                if volume[source].get(name) is None:
                    volume[source][name] = value
    for item in each(part(volume, "downwardAPI"), "items"):
        _value_from(item)
    for source in each(part(volume, "projected"), "sources"):
        for item in each(part(source, "downwardAPI"), "items"):
            _value_from(item)
        if isinstance(source.get("serviceAccountToken"), dict):
            fill(source["serviceAccountToken"], "expirationSeconds", _HOUR_S)
    if isinstance(volume.get("image"), dict):
        fill(volume["image"], "pullPolicy", pull_policy(volume["image"].get("reference") or ""))
    claim = part(part(part(volume, "ephemeral"), "volumeClaimTemplate"), "spec")
    if claim:
        claim_spec(claim)


def claim_spec(spec: Object) -> None:
    """Fill in the spec of a claim of a persistent volume."""
    fill(spec, "volumeMode", "Filesystem")
    amounts(part(spec, "resources"), "limits", "requests")
