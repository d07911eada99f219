"""Kubernetes' protobuf, written: the other direction of `model/protobuf.py`, from the same table of numbers."""

import base64
import json
import struct
from typing import Any

from wherry.clock import parse_rfc3339
from wherry.model import kinds, protobuf

_MACHINERY = "io.k8s.apimachinery.pkg."
_PREFIXES = {
    "api/": "io.k8s.api.",
    "machinery/": _MACHINERY,
    "extensions/": "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.",
    "aggregator/": "io.k8s.kube-aggregator.pkg.apis.apiregistration.",
}
_PROPS = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps"


def body(obj: dict[str, Any]) -> bytes:
    """A request body: magic, envelope, object."""
    kind = kinds.by_kind(obj["apiVersion"], obj["kind"])
    assert kind is not None
    meta = field(1, obj["apiVersion"].encode()) + field(2, obj["kind"].encode())
    return protobuf.MAGIC + field(1, meta) + field(2, message(kind.definition, obj)) + field(3, b"") + field(4, b"")


def varint(number: int) -> bytes:
    number &= 2**64 - 1
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def field(number: int, data: bytes | int) -> bytes:
    """One field: bytes with their length, an int as a varint."""
    if isinstance(data, int):
        return varint(number << 3) + varint(data)
    return varint(number << 3 | 2) + varint(len(data)) + data


def message(definition: str, obj: Any) -> bytes:
    """A message without its tag; embedded messages are written once for each of their fields, which is allowed."""
    special = _special(definition, obj)
    if special is not None:
        return special
    out = b""
    for name, text in protobuf.messages()[definition].items():
        path, _, kind = text.partition(" ")
        if isinstance(obj, list):
            obj = {"items": obj}
        if name not in obj:
            continue
        numbers = [int(number) for number in path.split(".")]
        value = obj[name]
        if kind.startswith("[]"):
            data = b"".join(one(numbers[-1], _long(kind[2:]), item) for item in value)
        elif kind.startswith("{}"):
            data = b"".join(
                field(numbers[-1], field(1, key.encode()) + one(2, _long(kind[2:]), item))
                for key, item in value.items()
            )
        else:
            data = one(numbers[-1], _long(kind), value)
        for number in reversed(numbers[:-1]):
            data = field(number, data)
        out += data
    return out


def one(number: int, kind: str, value: Any) -> bytes:
    if kind == "string":
        return field(number, value.encode())
    if kind == "bytes":
        return field(number, base64.b64decode(value))
    if kind == "double":
        return varint(number << 3 | 1) + struct.pack("<d", value)
    if kind in ("int32", "int64", "bool"):
        return field(number, int(value))
    return field(number, message(kind, value))


def _special(definition: str, value: Any) -> bytes | None:
    match definition.removeprefix(_MACHINERY):
        case "apis.meta.v1.Time" | "apis.meta.v1.MicroTime":
            seconds = parse_rfc3339(value)
            return field(1, int(seconds)) + field(2, round(seconds % 1 * 1e6) * 1000)
        case "apis.meta.v1.FieldsV1" | "runtime.RawExtension":
            return field(1, json.dumps(value).encode())
        case "api.resource.Quantity":
            return field(1, str(value).encode())
        case "util.intstr.IntOrString":
            if isinstance(value, str):
                return field(1, 1) + field(2, 0) + field(3, value.encode())
            return field(1, 0) + field(2, value) + field(3, b"")
        case _:
            pass
    if definition.endswith(".JSON"):
        return field(1, json.dumps(value).encode())
    if definition.endswith(("PropsOrArray", "PropsOrBool", "PropsOrStringArray")):
        number = 2 if definition.endswith("PropsOrBool") else 1
        if isinstance(value, bool):
            return field(1, int(value))
        if isinstance(value, dict):
            return field(number, message(_PROPS, value))
        return b"".join(one(2, "string" if isinstance(item, str) else _PROPS, item) for item in value)
    return None


def _long(name: str) -> str:
    for short, full in _PREFIXES.items():
        if name.startswith(short):
            return full + name.removeprefix(short)
    return name
