"""Which fields each kind can be selected by, and their text."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from wherry.model import kinds
from wherry.model.kinds import Kind

_NAME = ("metadata.name",)
_NAMED = ("metadata.name", "metadata.namespace")
_EVENT_PARTS = ("kind", "namespace", "name", "uid", "apiVersion", "resourceVersion", "fieldPath")

_FIELDS: Mapping[Kind, tuple[str, ...]] = {
    kinds.PODS: (
        *_NAMED,
        "spec.nodeName",
        "spec.restartPolicy",
        "spec.schedulerName",
        "spec.serviceAccountName",
        "spec.hostNetwork",
        "status.phase",
        "status.podIP",
        "status.podIPs",
        "status.nominatedNodeName",
    ),
    kinds.NODES: (*_NAME, "spec.unschedulable"),
    kinds.NAMESPACES: (*_NAME, "status.phase"),
    kinds.SECRETS: (*_NAMED, "type"),
    kinds.SERVICES: (*_NAMED, "spec.clusterIP", "spec.type"),
    kinds.REPLICATIONCONTROLLERS: (*_NAMED, "status.replicas"),
    kinds.REPLICASETS: (*_NAMED, "status.replicas"),
    kinds.EVENTS: (
        *_NAMED,
        *(f"involvedObject.{part}" for part in _EVENT_PARTS),
        "reason",
        "reportingComponent",
        "source",
        "type",
    ),
    kinds.EVENTS_V1: (
        *_NAMED,
        *(f"regarding.{part}" for part in _EVENT_PARTS),
        "reason",
        "reportingController",
        "type",
    ),
    kinds.JOBS: (*_NAMED, "status.successful"),
    kinds.CERTIFICATESIGNINGREQUESTS: (*_NAME, "spec.signerName"),
    kinds.CLUSTERTRUSTBUNDLES: (*_NAME, "spec.signerName"),
    kinds.PODCERTIFICATEREQUESTS: (*_NAMED, "spec.signerName", "spec.podName", "spec.nodeName"),
    kinds.RESOURCESLICES: (*_NAME, "spec.nodeName", "spec.driver"),
    kinds.IPADDRESSES: (*_NAME, "spec.parentRef.name"),
}

_ABSENT: Mapping[str, str] = {"spec.unschedulable": "false", "spec.hostNetwork": "false", "status.replicas": "0"}
"""The text of a field that an object leaves out, where that is not the empty one."""


def supported(kind: Kind, extra: Sequence[str] = ()) -> Sequence[str]:
    """The fields that a selector may name for a kind; `extra` are a custom resource's own selectable fields."""
    return (*_FIELDS.get(kind, _NAMED), *extra)


def getter(kind: Kind, obj: Mapping[str, Any]) -> Callable[[str], str]:
    """Give what `FieldSelector.matches` needs: the text of a field of this object."""

    def get(field: str) -> str:
        return text(kind, obj, field)

    return get


def text(kind: Kind, obj: Mapping[str, Any], field: str) -> str:
    """The text of one field: "true" or "false" for a boolean, "" for what is not set."""
    if field == "source" and kind.kind == "Event":
        return (obj.get("source") or {}).get("component") or obj.get("reportingComponent") or ""
    if field == "status.podIPs":
        return ",".join(one.get("ip", "") for one in (obj.get("status") or {}).get("podIPs") or ())
    if field == "status.successful":
        return str((obj.get("status") or {}).get("succeeded") or 0)
    value: Any = obj
    for part in field.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    if value is None:
        return _ABSENT.get(field, "")
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)
