"""Checks of metadata, the same for every kind but for the form of its name."""

import json
from collections.abc import Callable, Mapping
from typing import Any

from wherry.errors import Cause
from wherry.model import kinds, names
from wherry.model.checks.problems import Object, Problems, each, part
from wherry.model.kinds import Kind

_ANNOTATION_BYTES = 256 * 1024
_STANDARD_FINALIZERS = ("kubernetes", "orphan", "foregroundDeletion")
_KEPT = ("name", "namespace", "uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds")


_NAMES: Mapping[Kind, Callable[[str], list[str]]] = {
    kinds.NAMESPACES: names.dns_label,
    kinds.SERVICES: names.dns_label,  # may start with a digit since RelaxedServiceNameValidation
    kinds.ROLES: names.path_segment,
    kinds.ROLEBINDINGS: names.path_segment,
    kinds.CLUSTERROLES: names.path_segment,
    kinds.CLUSTERROLEBINDINGS: names.path_segment,
    kinds.CERTIFICATESIGNINGREQUESTS: names.dns_subdomain,
    kinds.CLUSTERTRUSTBUNDLES: names.path_segment,
    kinds.IPADDRESSES: names.address,
    kinds.APISERVICES: names.path_segment,
}
"""How names are checked where not as DNS subdomains."""


def name_rule(kind: Kind) -> Callable[[str], list[str]]:
    """Give the check of a kind's names."""
    return _NAMES.get(kind, names.dns_subdomain)


def check(kind: Kind, obj: Mapping[str, Any], old: Mapping[str, Any] | None) -> list[Cause]:
    """Check metadata, and that an update keeps what identifies the object."""
    problems = Problems()
    metadata = part(obj, "metadata")
    _check_name(problems, kind, metadata)
    _check_maps(problems, "metadata", metadata)
    _check_owners(problems, metadata)
    for finalizer in metadata.get("finalizers") or ():
        problems.all_invalid("metadata.finalizers", finalizer, names.qualified_name(finalizer))
        if "/" not in finalizer and finalizer not in _STANDARD_FINALIZERS:
            problems.invalid(
                "metadata.finalizers",
                finalizer,
                "name is neither a standard finalizer name nor is it fully qualified",
            )
    if old is not None:
        _check_update(problems, metadata, part(old, "metadata"))
    return problems.causes


def check_template(problems: Problems, path: str, metadata: Mapping[str, Any]) -> None:
    """Check the labels and annotations of a template."""
    _check_maps(problems, path, metadata)


def _check_name(problems: Problems, kind: Kind, metadata: Object) -> None:
    rule = name_rule(kind)
    prefix = metadata.get("generateName") or ""
    if prefix:
        masked = prefix[:-1] + "a" if prefix.endswith("-") else prefix
        problems.all_invalid("metadata.generateName", prefix, rule(masked))
    name = metadata.get("name") or ""
    if name:
        problems.all_invalid("metadata.name", name, rule(name))
    elif kind.stored and not prefix:
        problems.required("metadata.name", "name or generateName is required")
    namespace = metadata.get("namespace") or ""
    if kind.namespaced and namespace:
        problems.all_invalid("metadata.namespace", namespace, names.dns_label(namespace))
    elif namespace and kind.stored:
        problems.forbidden("metadata.namespace", "not allowed on this type")


def _check_maps(problems: Problems, path: str, metadata: Mapping[str, Any]) -> None:
    problems.labels(f"{path}.labels", metadata.get("labels"))
    annotations = metadata.get("annotations") or {}
    for key in annotations:
        problems.all_invalid(f"{path}.annotations", key, names.qualified_name(key.lower()))
    if sum(len(key.encode()) + len(value.encode()) for key, value in annotations.items()) > _ANNOTATION_BYTES:
        problems.too_long(f"{path}.annotations", _ANNOTATION_BYTES)


def _check_owners(problems: Problems, metadata: Object) -> None:
    controller = ""
    for path, owner in each("metadata", metadata, "ownerReferences"):
        if not owner.get("apiVersion"):
            problems.invalid(f"{path}.apiVersion", "", "version must not be empty")
        for field in ("kind", "name", "uid"):
            if not owner.get(field):
                problems.invalid(f"{path}.{field}", "", "must not be empty")
        if owner.get("apiVersion") == "v1" and owner.get("kind") == "Event":
            problems.invalid(path, owner, "/v1, Kind=Event is disallowed from being an owner")
        if owner.get("controller"):
            name = f"{owner.get('kind')}/{owner.get('name')}"
            if controller:
                problems.invalid(
                    "metadata.ownerReferences",
                    metadata["ownerReferences"],
                    'Only one reference can have Controller set to true. Found "true" in references for '
                    f"{controller} and {name}",
                )
            controller = controller or name


def _check_update(problems: Problems, metadata: Object, old: Object) -> None:
    for field in _KEPT:
        if metadata.get(field) != old.get(field):
            problems.invalid(f"metadata.{field}", metadata.get(field) or "", "field is immutable")
    if old.get("deletionTimestamp"):
        new = [one for one in metadata.get("finalizers") or () if one not in (old.get("finalizers") or ())]
        if new:
            said = ", ".join(json.dumps(one) for one in new)
            problems.forbidden(
                "metadata.finalizers",
                "no new finalizers can be added if the object is being deleted, "
                f"found new finalizers []string{{{said}}}",
            )
