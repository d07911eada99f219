"""Checks of volumes and their claims, and of classes of storage."""

from typing import Any

from wherry.errors import Cause
from wherry.model import names
from wherry.model.checks import pods, volumes
from wherry.model.checks.problems import Object, Problems, part

_MODES = ("ReadWriteOnce", "ReadOnlyMany", "ReadWriteMany", "ReadWriteOncePod")
_RECLAIM = ("Delete", "Recycle", "Retain")
_VOLUME_MODES = ("Block", "Filesystem")
_BINDING = ("Immediate", "WaitForFirstConsumer")
_SOURCES = (*volumes.SOURCES, "local")


def persistent_volume(obj: Object, old: Object | None) -> list[Cause]:
    """Check a PersistentVolume; what it stands for never changes."""
    found = Problems()
    spec = part(obj, "spec")
    _check_modes(found, spec, "spec")
    if not spec.get("capacity"):
        found.required("spec.capacity")
    elif set(spec["capacity"]) != {"storage"}:
        found.unsupported("spec.capacity", list(spec["capacity"]), ("storage",))
    for name, text in part(spec, "capacity").items():
        amount = found.amount(f"spec.capacity[{name}]", text)
        if amount is not None and amount.nano == 0:
            found.invalid(f"spec.capacity[{name}]", text, "must be greater than zero")
    sources = [name for name in _SOURCES if isinstance(spec.get(name), dict)]
    if not sources:
        found.required("spec", "must specify a volume type")
    for name in sources[1:]:
        found.forbidden(f"spec.{name}", "may not specify more than 1 volume type")
    found.one_of(
        "spec.persistentVolumeReclaimPolicy", spec.get("persistentVolumeReclaimPolicy"), _RECLAIM, required=False
    )
    found.one_of("spec.volumeMode", spec.get("volumeMode"), _VOLUME_MODES, required=False)
    required = part(spec, "nodeAffinity").get("required")
    if isinstance(required, dict):
        pods.check_node_selector(found, "spec.nodeAffinity.required", required)
    elif isinstance(spec.get("local"), dict):
        found.required("spec.nodeAffinity", "Local volume requires node affinity")
    if old is not None:
        before = part(old, "spec")
        if {name: spec.get(name) for name in _SOURCES} != {name: before.get(name) for name in _SOURCES}:
            found.forbidden("spec.persistentvolumesource", "spec.persistentvolumesource is immutable after creation")
        found.unchanged("spec.volumeMode", spec.get("volumeMode"), before.get("volumeMode"))
    return found.causes


def claim(obj: Object, old: Object | None) -> list[Cause]:
    """Check a PersistentVolumeClaim; of a bound one only the size may grow."""
    found = Problems()
    spec = part(obj, "spec")
    _check_modes(found, spec, "spec")
    text = part(part(spec, "resources"), "requests").get("storage")
    if text is None:
        found.required("spec.resources[storage]")
    else:
        amount = found.amount("spec.resources[storage]", text)
        if amount is not None and amount.nano == 0:
            found.invalid("spec.resources[storage]", text, "must be greater than zero")
    found.selector("spec.selector", spec.get("selector"))
    name = spec.get("storageClassName")
    if name:
        found.all_invalid("spec.storageClassName", name, names.dns_subdomain(name))
    found.one_of("spec.volumeMode", spec.get("volumeMode"), _VOLUME_MODES, required=False)
    if old is not None:
        _check_claim_update(found, spec, part(old, "spec"))
    return found.causes


def _check_claim_update(found: Problems, spec: Object, old: Object) -> None:
    def fixed(one: Object) -> dict[str, Any]:
        rest = {name: value for name, value in one.items() if name not in ("resources", "volumeAttributesClassName")}
        if not old.get("volumeName"):
            rest.pop("volumeName", None)
        if not old.get("storageClassName"):
            rest.pop("storageClassName", None)
        return rest

    if fixed(spec) != fixed(old):
        found.forbidden(
            "spec",
            "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims",
        )
    new, before = (part(part(one, "resources"), "requests").get("storage") for one in (spec, old))
    if new is not None and before is not None:
        wanted, had = found.amount("spec.resources.requests.storage", new), found.amount("spec", before)
        if wanted is not None and had is not None and wanted < had:
            found.forbidden("spec.resources.requests.storage", "field can not be less than status.capacity")


def _check_modes(found: Problems, spec: Object, path: str) -> None:
    modes = spec.get("accessModes") or ()
    if not modes:
        found.required(f"{path}.accessModes", "at least 1 access mode is required")
    for mode in modes:
        if mode not in _MODES:
            found.unsupported(f"{path}.accessModes", mode, _MODES)
    if "ReadWriteOncePod" in modes and len(modes) > 1:
        found.forbidden(f"{path}.accessModes", "may not use ReadWriteOncePod with other access modes")


def storage_class(obj: Object, old: Object | None) -> list[Cause]:
    """Check a StorageClass; next to nothing of it may change."""
    found = Problems()
    provisioner = obj.get("provisioner") or ""
    if not provisioner:
        found.required("provisioner")
    else:
        found.all_invalid("provisioner", provisioner, names.qualified_name(provisioner.lower()))
    found.one_of("reclaimPolicy", obj.get("reclaimPolicy"), ("Delete", "Retain"), required=False)
    found.one_of("volumeBindingMode", obj.get("volumeBindingMode"), _BINDING)
    if old is not None:
        for field in ("parameters", "provisioner", "reclaimPolicy"):
            if (obj.get(field) or None) != (old.get(field) or None):
                found.forbidden(field, f"updates to {field} are forbidden.")
        found.unchanged("volumeBindingMode", obj.get("volumeBindingMode"), old.get("volumeBindingMode"))
    return found.causes
