"""Checks of a pod's volumes, and of what containers say of them."""

from collections.abc import Mapping
from typing import Any

from wherry.model import names
from wherry.model.checks.problems import Object, Problems, each, part

SOURCES = (
    "awsElasticBlockStore",
    "azureDisk",
    "azureFile",
    "cephfs",
    "cinder",
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "fc",
    "flexVolume",
    "flocker",
    "gcePersistentDisk",
    "gitRepo",
    "glusterfs",
    "hostPath",
    "image",
    "iscsi",
    "nfs",
    "persistentVolumeClaim",
    "photonPersistentDisk",
    "portworxVolume",
    "projected",
    "quobyte",
    "rbd",
    "scaleIO",
    "secret",
    "storageos",
    "vsphereVolume",
)
"""Every kind of volume; the schema's fields are these and the name (a test compares them)."""

_REQUIRED: Mapping[str, tuple[str, ...]] = {
    "secret": ("secretName",),
    "hostPath": ("path",),
    "persistentVolumeClaim": ("claimName",),
    "nfs": ("server", "path"),
    "csi": ("driver",),
    "iscsi": ("targetPortal", "iqn"),
    "gcePersistentDisk": ("pdName",),
    "awsElasticBlockStore": ("volumeID",),
    "glusterfs": ("endpoints", "path"),
    "cephfs": ("monitors",),
    "rbd": ("monitors", "image"),
    "image": ("reference",),
}
_HOST_PATH_TYPES = (
    "",
    "BlockDevice",
    "CharDevice",
    "Directory",
    "DirectoryOrCreate",
    "File",
    "FileOrCreate",
    "Socket",
)
_MEDIUMS = ("", "Memory")
_MOST_MODE = 0o777


def check_volumes(problems: Problems, path: str, spec: Object) -> set[str]:
    """Check the volumes of a pod's spec; give their names."""
    seen: set[str] = set()
    for here, volume in each(path, spec, "volumes"):
        name = volume.get("name") or ""
        if not name:
            problems.required(f"{here}.name")
        else:
            problems.all_invalid(f"{here}.name", name, names.dns_label(name))
        if name in seen:
            problems.duplicate(f"{here}.name", name)
        seen.add(name)
        _check_source(problems, here, volume)
    return seen


def _check_source(problems: Problems, path: str, volume: Object) -> None:
    sources = [source for source in SOURCES if isinstance(volume.get(source), dict)]
    if not sources:
        problems.required(path, "must specify a volume type")
    for source in sources[1:]:
        problems.forbidden(f"{path}.{source}", "may not specify more than 1 volume type")
    for source in sources[:1]:
        here, obj = f"{path}.{source}", volume[source]
        for field in _REQUIRED.get(source, ()):
            if not obj.get(field):
                problems.required(f"{here}.{field}")
        if source in ("secret", "configMap", "downwardAPI", "projected"):
            check_mode(problems, f"{here}.defaultMode", obj.get("defaultMode"))
        if source in ("secret", "configMap"):
            _check_items(problems, here, obj)
        if source == "configMap" and not obj.get("name"):
            problems.required(f"{here}.name")
        if source == "hostPath":
            problems.one_of(f"{here}.type", obj.get("type"), _HOST_PATH_TYPES, required=False)
            _no_backsteps(problems, f"{here}.path", obj.get("path") or "")
        if source == "emptyDir":
            problems.one_of(f"{here}.medium", obj.get("medium"), _MEDIUMS, required=False)
            if obj.get("sizeLimit") is not None:
                problems.amount(f"{here}.sizeLimit", obj["sizeLimit"])
        if source == "downwardAPI":
            _check_downward(problems, here, obj)
        if source == "projected":
            _check_projected(problems, here, obj)
        if source == "ephemeral" and not part(obj, "volumeClaimTemplate"):
            problems.required(f"{here}.volumeClaimTemplate")


def _check_projected(problems: Problems, path: str, obj: Object) -> None:
    if not obj.get("sources"):
        problems.required(f"{path}.sources")
    for here, source in each(path, obj, "sources"):
        given = [name for name in source if isinstance(source[name], dict)]
        if not given:
            problems.required(here)
        elif len(given) > 1:
            problems.forbidden(here, "may not specify more than 1 volume type per source")
        for name in ("secret", "configMap"):
            if isinstance(source.get(name), dict):
                if not source[name].get("name"):
                    problems.required(f"{here}.{name}.name")
                _check_items(problems, f"{here}.{name}", source[name])
        if isinstance(source.get("downwardAPI"), dict):
            _check_downward(problems, f"{here}.downwardAPI", source["downwardAPI"])
        token = source.get("serviceAccountToken")
        if isinstance(token, dict):
            if not token.get("path"):
                problems.required(f"{here}.serviceAccountToken.path")
            life_s = token.get("expirationSeconds") or 0
            if life_s < 600:
                problems.invalid(
                    f"{here}.serviceAccountToken.expirationSeconds",
                    life_s,
                    "may not specify a duration less than 10 minutes",
                )
            elif life_s > 2**32:
                problems.invalid(
                    f"{here}.serviceAccountToken.expirationSeconds",
                    life_s,
                    "may not specify a duration larger than 2^32 seconds",
                )


def _check_items(problems: Problems, path: str, obj: Object) -> None:
    for here, item in each(path, obj, "items"):
        if not item.get("key"):
            problems.required(f"{here}.key")
        if not item.get("path"):
            problems.required(f"{here}.path")
        else:
            local_path(problems, f"{here}.path", item["path"])
        check_mode(problems, f"{here}.mode", item.get("mode"))


def _check_downward(problems: Problems, path: str, obj: Object) -> None:
    for here, item in each(path, obj, "items"):
        if not item.get("path"):
            problems.required(f"{here}.path")
        else:
            local_path(problems, f"{here}.path", item["path"])
        field, resource = item.get("fieldRef"), item.get("resourceFieldRef")
        if field is None and resource is None:
            problems.required(here, "one of fieldRef and resourceFieldRef is required")
        elif field is not None and resource is not None:
            problems.invalid(here, "resource", "fieldRef and resourceFieldRef can not be specified simultaneously")
        check_mode(problems, f"{here}.mode", item.get("mode"))


def check_mode(problems: Problems, path: str, mode: Any) -> None:
    """Check the permission bits of a file."""
    if isinstance(mode, int) and not 0 <= mode <= _MOST_MODE:
        problems.invalid(path, mode, "must be a number between 0 and 0777 (octal), both inclusive")


def local_path(problems: Problems, path: str, text: str) -> None:
    """Check a path that must stay below where it starts."""
    if text.startswith("/"):
        problems.invalid(path, text, "must be a relative path")
    _no_backsteps(problems, path, text)
    if text.startswith("..") and not text.startswith("../"):
        problems.invalid(path, text, "must not start with '..'")


def _no_backsteps(problems: Problems, path: str, text: str) -> None:
    if ".." in text.split("/"):
        problems.invalid(path, text, "must not contain '..'")


def check_mounts(problems: Problems, path: str, container: Object, volumes: set[str]) -> None:
    """Check the mounts of one container."""
    places: set[str] = set()
    for here, mount in each(path, container, "volumeMounts"):
        name, place = mount.get("name") or "", mount.get("mountPath") or ""
        if not name:
            problems.required(f"{here}.name")
        elif name not in volumes:
            problems.missing(f"{here}.name", name)
        if not place:
            problems.required(f"{here}.mountPath")
        if place in places:
            problems.invalid(f"{here}.mountPath", place, "must be unique")
        places.add(place)
        sub, expression = mount.get("subPath") or "", mount.get("subPathExpr") or ""
        if sub:
            local_path(problems, f"{here}.subPath", sub)
        if sub and expression:
            problems.invalid(f"{here}.subPathExpr", expression, "subPathExpr and subPath are mutually exclusive")
        problems.one_of(
            f"{here}.mountPropagation",
            mount.get("mountPropagation"),
            ("None", "HostToContainer", "Bidirectional"),
            required=False,
        )
    for here, device in each(path, container, "volumeDevices"):
        if not device.get("name"):
            problems.required(f"{here}.name")
        elif device["name"] not in volumes:
            problems.missing(f"{here}.name", device["name"])
        if not device.get("devicePath"):
            problems.required(f"{here}.devicePath")
