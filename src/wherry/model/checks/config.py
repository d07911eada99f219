"""Checks of ConfigMaps and Secrets."""

import base64
import binascii
import json
from collections.abc import Mapping

from wherry.errors import Cause
from wherry.model import names
from wherry.model.checks.problems import Object, Problems, part

_MOST_BYTES = 1024 * 1024
_SEALED = "field is immutable when `immutable` is set"
_ACCOUNT = "kubernetes.io/service-account.name"
_HIDDEN = "<secret contents redacted>"

_NEEDS: Mapping[str, tuple[str, ...]] = {
    "kubernetes.io/dockercfg": (".dockercfg",),
    "kubernetes.io/dockerconfigjson": (".dockerconfigjson",),
    "kubernetes.io/ssh-auth": ("ssh-privatekey",),
    "kubernetes.io/tls": ("tls.crt", "tls.key"),
}
"""Keys that a Secret of a type must hold."""


def config_map(obj: Object, old: Object | None) -> list[Cause]:
    """Check a ConfigMap: keys, size, and that an immutable one stays as it is."""
    found = Problems()
    data, binary = part(obj, "data"), part(obj, "binaryData")
    size_bytes = 0
    for key, value in data.items():
        found.all_invalid(f"data[{key}]", key, names.config_key(key))
        if key in binary:
            found.invalid(f"data[{key}]", key, "duplicate of key present in binaryData")
        size_bytes += len(value.encode())
    for key, value in binary.items():
        found.all_invalid(f"binaryData[{key}]", key, names.config_key(key))
        size_bytes += len(_decoded(value))
    if size_bytes > _MOST_BYTES:
        found.too_long("", _MOST_BYTES)
    if old is not None and old.get("immutable"):
        _check_sealed(found, obj, old, ("data", "binaryData"))
    return found.causes


def secret(obj: Object, old: Object | None) -> list[Cause]:
    """Check a Secret: keys, size, what its type needs, and that type and an immutable one's data stay."""
    found = Problems()
    data = part(obj, "data")
    for key in data:
        found.all_invalid(f"data[{key}]", key, names.config_key(key))
    if sum(len(_decoded(value)) for value in data.values()) > _MOST_BYTES:
        found.too_long("data", _MOST_BYTES)
    kind = obj.get("type") or ""
    if kind == "kubernetes.io/service-account-token":
        if not part(part(obj, "metadata"), "annotations").get(_ACCOUNT):
            found.required(f"metadata.annotations[{_ACCOUNT}]")
    elif kind == "kubernetes.io/basic-auth" and "username" not in data and "password" not in data:
        found.required("data[username]")
        found.required("data[password]")
    for key in _NEEDS.get(kind, ()):
        if key not in data:
            found.required(f"data[{key}]")
        elif key.startswith(".docker"):
            _check_json(found, key, data[key])
    if old is not None:
        found.unchanged("type", kind, old.get("type") or "")
        if old.get("immutable"):
            _check_sealed(found, obj, old, ("data",))
    return found.causes


def _check_sealed(found: Problems, obj: Object, old: Object, fields: tuple[str, ...]) -> None:
    if not obj.get("immutable"):
        found.forbidden("immutable", _SEALED)
    for field in fields:
        if part(obj, field) != part(old, field):
            found.forbidden(field, _SEALED)


def _check_json(found: Problems, key: str, value: str) -> None:
    try:
        json.loads(_decoded(value))
    except ValueError as error:
        found.invalid(f"data[{key}]", _HIDDEN, str(error))


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text)
    except (ValueError, binascii.Error):
        return b""
