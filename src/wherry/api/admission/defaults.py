"""Classes marked as the default one, and who asked for a certificate."""

from wherry.api.admission.call import Call
from wherry.model.kinds import (
    CERTIFICATESIGNINGREQUESTS,
    INGRESSCLASSES,
    INGRESSES,
    PERSISTENTVOLUMECLAIMS,
    STORAGECLASSES,
    Kind,
)

_STORAGE = "storageclass.kubernetes.io/is-default-class"
_INGRESS = "ingressclass.kubernetes.io/is-default-class"
_INGRESS_LEGACY = "kubernetes.io/ingress.class"


def storage_class(call: Call) -> None:
    """A claim that names no storage class gets the default one ("" asks for none)."""
    if call.kind == PERSISTENTVOLUMECLAIMS and call.operation == "CREATE" and "storageClassName" not in call.spec:
        name = _default(call, STORAGECLASSES, _STORAGE)
        if name:
            call.spec["storageClassName"] = name


def ingress_class(call: Call) -> None:
    """An ingress that names no class gets the default one."""
    if call.kind != INGRESSES or call.operation != "CREATE" or call.spec.get("ingressClassName"):
        return
    if _INGRESS_LEGACY in (call.obj["metadata"].get("annotations") or {}):
        return
    name = _default(call, INGRESSCLASSES, _INGRESS)
    if name:
        call.spec["ingressClassName"] = name


def certificate_requester(call: Call) -> None:
    """A certificate request says who made it; nobody can say that for themselves."""
    if call.kind != CERTIFICATESIGNINGREQUESTS:
        return
    if call.operation == "CREATE":
        call.spec["username"] = call.user.name
        call.spec["groups"] = list(call.user.groups)
        call.spec["uid"] = call.user.uid
        call.spec["extra"] = {key: list(values) for key, values in call.user.extra.items()}


def _default(call: Call, kind: Kind, annotation: str) -> str:
    """The newest class with the annotation, or ""."""
    marked = [item for item in call.core.shelf(kind).all() if (item.meta.annotations or {}).get(annotation) == "true"]
    return max(marked, key=lambda item: item.version).meta.name if marked else ""
