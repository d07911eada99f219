"""What becomes of an object's metadata and status on its way to the store. Pure, but for fresh uids and names."""

import random
import uuid
from typing import Any

import orjson

from wherry.api.errors import invalid, qualified
from wherry.clock import rfc3339
from wherry.errors import BadRequest, Cause, Conflict
from wherry.model import kinds
from wherry.model.kinds import Kind
from wherry.model.quantities import Quantity

Json = dict[str, Any]

_LETTERS = "bcdfghjklmnpqrstvwxz2456789"
_BASE = 58
_FROZEN = (
    "name",
    "namespace",
    "uid",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "generation",
)
_DROPPED = ("selfLink", "managedFields", "resourceVersion")
_KEEPS_STATUS = frozenset({kinds.NODES})
"""Kinds whose creator says the status, too."""
_FIRST_STATUS: dict[Kind, Json] = {
    kinds.PODS: {"phase": "Pending"},
    kinds.NAMESPACES: {"phase": "Active"},
    kinds.SERVICES: {"loadBalancer": {}},
    kinds.PERSISTENTVOLUMES: {"phase": "Pending"},
    kinds.PERSISTENTVOLUMECLAIMS: {"phase": "Pending"},
    kinds.REPLICASETS: {"replicas": 0},
    kinds.REPLICATIONCONTROLLERS: {"replicas": 0},
    kinds.STATEFULSETS: {"replicas": 0, "availableReplicas": 0},
    kinds.DAEMONSETS: {
        "currentNumberScheduled": 0,
        "numberMisscheduled": 0,
        "desiredNumberScheduled": 0,
        "numberReady": 0,
    },
}
_ORDER = ("apiVersion", "kind", "metadata")


def metadata(obj: Json) -> Json:
    """An object's metadata, made where it is missing. Raises BadRequest when it is no object."""
    found = obj.setdefault("metadata", {})
    if found is None:
        found = obj["metadata"] = {}
    if not isinstance(found, dict):
        raise BadRequest(f"metadata: write an object, not {type(found).__name__}")
    return found


def place(kind: Kind, obj: Json, namespace: str) -> None:
    """Put an object into the namespace of its URL. Raises BadRequest when it says another one."""
    meta = metadata(obj)
    given = meta.get("namespace") or ""
    if not kind.namespaced:
        if given:
            raise BadRequest(f"metadata.namespace: {kind.qualified} are not in namespaces; leave out {given!r}")
        meta.pop("namespace", None)
        return
    if given and given != namespace:
        raise BadRequest(
            f"the namespace of the provided object does not match the namespace sent on the request: {given!r}, {namespace!r}"
        )
    meta["namespace"] = namespace


def name(kind: Kind, obj: Json) -> bool:
    """Give an object with generateName a name; say whether it got one. Raises Invalid without either."""
    meta = metadata(obj)
    if meta.get("name"):
        return False
    base = meta.get("generateName")
    if not base:
        raise invalid(
            kind.kind,
            kind.group,
            "",
            [Cause("metadata.name", "FieldValueRequired", "Required value: name or generateName is required")],
        )
    meta["name"] = str(base)[:_BASE] + suffix()
    return True


def suffix() -> str:
    """Five letters that end a generated name; they spell no words."""
    return "".join(random.choices(_LETTERS, k=5))


def begin(kind: Kind, obj: Json, now: float) -> None:
    """Make metadata and status those of a new object."""
    meta = metadata(obj)
    if meta.get("resourceVersion") not in (None, "", "0"):
        raise BadRequest("resourceVersion should not be set on objects to be created")
    for field in (*_DROPPED, "deletionTimestamp", "deletionGracePeriodSeconds", "generation"):
        meta.pop(field, None)
    meta["uid"] = str(uuid.uuid4())
    meta["creationTimestamp"] = rfc3339(now)
    if kind.generation:
        meta["generation"] = 1
    tidy(meta)
    if kind.subresource("status") is not None and kind not in _KEEPS_STATUS:
        obj["status"] = dict(_FIRST_STATUS.get(kind, {}))
    if kind == kinds.NAMESPACES:
        obj["spec"] = {"finalizers": ["kubernetes"]}


def settle(kind: Kind, obj: Json) -> None:
    """Say what follows from a new object's spec, after admission has had its say."""
    if kind == kinds.PODS:
        obj["status"]["qosClass"] = qos_class(obj.get("spec") or {})


def carry(kind: Kind, obj: Json, old: Json, subresource: str = "") -> None:
    """Make what an update may not change be as it was; count the generation."""
    meta, was = metadata(obj), metadata(old)
    for field in _FROZEN:
        if field in was:
            meta[field] = was[field]
        else:
            meta.pop(field, None)
    for field in _DROPPED:
        meta.pop(field, None)
    tidy(meta)
    if kind.subresource("status") is not None:
        kept = {"status": _except_status, "": _except_spec}.get(subresource)
        if kept is not None:
            kept(obj, old)
    if subresource == "status" and was.get("ownerReferences") is not None:
        meta["ownerReferences"] = was["ownerReferences"]
    if kind == kinds.NAMESPACES and subresource != "finalize":
        _keep(obj, old, "spec")
    if kind.generation and subresource != "status" and _changed(obj, old):
        meta["generation"] = int(was.get("generation") or 0) + 1


def check_version(kind: Kind, obj: Json, name: str, version: int, uid: str) -> None:
    """Compare the resourceVersion and uid that a body names, if it does, with the object's. Raises Conflict."""
    meta = metadata(obj)
    given = str(meta.get("resourceVersion") or "")
    if given not in ("", "0", str(version)):
        raise moved(kind, name)
    said = str(meta.get("uid") or "")
    if said and said != uid:
        raise Conflict(
            f'Operation cannot be fulfilled on {kind.qualified} "{name}": Precondition failed: '
            f"UID in precondition: {said}, UID in object meta: {uid}"
        )


def moved(kind: Kind, name: str) -> Conflict:
    """The error for a write that was made from an older version."""
    return Conflict(
        f'Operation cannot be fulfilled on {qualified(kind.plural, kind.group)} "{name}": the object has been modified; '
        "please apply your changes to the latest version and try again"
    )


def finalizer_causes(obj: Json, old: Json) -> list[Cause]:
    """No finalizer may be added to what is being deleted."""
    if not metadata(old).get("deletionTimestamp"):
        return []
    extra = [f for f in metadata(obj).get("finalizers") or () if f not in (metadata(old).get("finalizers") or ())]
    if not extra:
        return []
    message = f"Forbidden: no new finalizers can be added if the object is being deleted, found new finalizers {extra}"
    return [Cause("metadata.finalizers", "FieldValueForbidden", message.replace("'", '"'))]


def in_order(obj: Json) -> Json:
    """The object with apiVersion, kind and metadata first, as bytes at rest have it."""
    return {**{key: obj[key] for key in _ORDER}, **{key: value for key, value in obj.items() if key not in _ORDER}}


def encode(obj: Json) -> bytes:
    """An object's bytes at rest."""
    return orjson.dumps(in_order(obj))


def tidy(meta: Json) -> None:
    """Leave out empty parts of metadata."""
    for field in ("labels", "annotations", "finalizers", "ownerReferences", "generateName", "namespace"):
        if field in meta and not meta[field]:
            del meta[field]


def qos_class(spec: Json) -> str:
    """A pod's quality of service by its requests and limits. Source: Kubernetes, "Pod Quality of Service Classes"."""
    everything = [*(spec.get("containers") or ()), *(spec.get("initContainers") or ())]
    guaranteed, some = True, False
    for container in everything:
        resources: Json = container.get("resources") or {}
        requests = {k: v for k, v in (resources.get("requests") or {}).items() if k in ("cpu", "memory") and _some(v)}
        limits = {k: v for k, v in (resources.get("limits") or {}).items() if k in ("cpu", "memory") and _some(v)}
        some = some or bool(requests or limits)
        equal = all(Quantity.parse(requests.get(k, v)).nano == Quantity.parse(v).nano for k, v in limits.items())
        guaranteed = guaranteed and len(limits) == 2 and equal
    if not some:
        return "BestEffort"
    return "Guaranteed" if guaranteed else "Burstable"


def _some(quantity: Any) -> bool:
    return Quantity.parse(quantity).nano != 0


def _except_status(obj: Json, old: Json) -> None:
    """A write of the status: all but it and the metadata stays."""
    status = obj.get("status")
    for field in [key for key in obj if key not in _ORDER]:
        del obj[field]
    obj.update({key: value for key, value in old.items() if key not in _ORDER and key != "status"})
    if status is not None:
        obj["status"] = status


def _except_spec(obj: Json, old: Json) -> None:
    _keep(obj, old, "status")


def _keep(obj: Json, old: Json, field: str) -> None:
    if field in old:
        obj[field] = old[field]
    else:
        obj.pop(field, None)


def _changed(obj: Json, old: Json) -> bool:
    def body(value: Json) -> Json:
        return {key: part for key, part in value.items() if key not in (*_ORDER, "status")}

    return body(obj) != body(old)
