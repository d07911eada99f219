"""Defaults of the groups storage.k8s.io and resource.k8s.io."""

from collections.abc import Callable, Mapping
from typing import Any

from wherry.model import kinds
from wherry.model.defaults.filling import Object, each, fill, made, part
from wherry.model.kinds import Kind


def storage_class(obj: Object) -> None:
    """Fill in a StorageClass."""
    fill(obj, "reclaimPolicy", "Delete")
    fill(obj, "volumeBindingMode", "Immediate")


def csi_driver(obj: Object) -> None:
    """Fill in a CSIDriver."""
    spec = made(obj, "spec")
    fill(spec, "attachRequired", True)
    fill(spec, "podInfoOnMount", False)
    fill(spec, "storageCapacity", False)
    fill(spec, "fsGroupPolicy", "ReadWriteOnceWithFSType")
    fill(spec, "volumeLifecycleModes", ["Persistent"])
    fill(spec, "requiresRepublish", False)
    fill(spec, "seLinuxMount", False)


def claim(obj: Object) -> None:
    """Fill in a ResourceClaim."""
    _claim_spec(made(obj, "spec"))


def claim_template(obj: Object) -> None:
    """Fill in a ResourceClaimTemplate."""
    _claim_spec(made(made(obj, "spec"), "spec"))


def _claim_spec(spec: Object) -> None:
    for request in each(part(spec, "devices"), "requests"):
        asked = [request["exactly"]] if isinstance(request.get("exactly"), dict) else []
        for one in (*asked, *each(request, "firstAvailable")):
            fill(one, "allocationMode", "ExactCount")
            if one["allocationMode"] == "ExactCount" and not one.get("count"):
                one["count"] = 1
            for toleration in each(one, "tolerations"):
                fill(toleration, "operator", "Equal")


TABLE: Mapping[Kind, Callable[[dict[str, Any]], None]] = {
    kinds.STORAGECLASSES: storage_class,
    kinds.CSIDRIVERS: csi_driver,
    kinds.RESOURCECLAIMS: claim,
    kinds.RESOURCECLAIMTEMPLATES: claim_template,
}
