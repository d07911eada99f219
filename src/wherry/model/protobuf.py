"""Request bodies in Kubernetes' protobuf, as newer clients send them, read into the JSON-shaped dict they stand for.

The field numbers are in `protobuf_fields.json`, our own compact table. Go writes every field that is no pointer, so bodies
hold empty strings and messages that JSON would leave out; those are dropped. Zeros and `false` are kept, as nothing tells
a meant zero from an absent one. Fields newer than the table are passed over, as upstream does.
Source: Kubernetes API concepts, "Kubernetes Protobuf encoding"; protobuf.dev, "Encoding".
"""

import base64
import struct
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import msgspec

from wherry.clock import rfc3339, rfc3339_micro
from wherry.errors import BadRequest, UnsupportedMediaType
from wherry.model import kinds

MAGIC = b"k8s\0"
CONTENT_TYPE = "application/vnd.kubernetes.protobuf"

_DEEPEST = 100
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_SHORT = {
    "api/": "io.k8s.api.",
    "machinery/": "io.k8s.apimachinery.pkg.",
    "extensions/": "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.",
    "aggregator/": "io.k8s.kube-aggregator.pkg.apis.apiregistration.",
}
_DROPPED_EMPTY = frozenset(("status", "strategy", "updateStrategy", "loadBalancer", "resources"))
"""Messages that are no pointers in Go: an empty one says nothing. (An empty `emptyDir` says a lot, so others are kept.)"""
_DROPPED_ZERO = frozenset(("nodePort", "hostPort", "healthCheckNodePort", "generation", "observedGeneration"))
"""Numbers that are no pointers in Go, and of which 0 says nothing."""
_KEPT_EMPTY = frozenset(("storageClassName", "ingressClassName", "volumeAttributesClassName"))
"""Strings that are pointers in Go, and mean something when they are empty."""


class Leaf(msgspec.Struct, frozen=True):
    """A field: its JSON name, its type (a scalar's name or a message's), and whether it repeats or is a map."""

    name: str
    type: str
    repeated: bool = False
    mapped: bool = False


Tree = dict[int, "Leaf | Tree"]
"""Fields by number; a number with a tree below it is an embedded message whose fields stand in JSON as the outer one's."""


class _Table(msgspec.Struct):
    note: str
    messages: dict[str, dict[str, str]]


def decode_body(data: bytes) -> dict[str, Any]:
    """Read a body: the magic, then the envelope that names the kind, then the object.

    Raises BadRequest for bytes that are not that, UnsupportedMediaType for an envelope with an encoding of its own.
    """
    return decode(data)[0]


def decode(data: bytes) -> tuple[dict[str, Any], list[str]]:
    """Read a body; give also the fields passed over because the table does not know them (`Pod.spec.99`)."""
    if not data.startswith(MAGIC):
        raise BadRequest("the body does not start with the four bytes of Kubernetes' protobuf encoding (k8s and NUL)")
    api_version = kind = ""
    raw = b""
    for number, value in _fields(memoryview(data)[len(MAGIC) :]):
        if number == 1 and isinstance(value, memoryview):
            meta = {inner: _text(part) for inner, part in _fields(value) if isinstance(part, memoryview)}
            api_version, kind = meta.get(1, ""), meta.get(2, "")
        elif number == 2 and isinstance(value, memoryview):
            raw = value
        elif number == 3 and value:
            raise UnsupportedMediaType("protobuf bodies with a contentEncoding of their own are not read")
    unknown: list[str] = []
    obj = _message(_definition(api_version, kind), memoryview(raw), kind, unknown, 0)
    return {"apiVersion": api_version, "kind": kind, **obj}, unknown


def has(definition: str) -> bool:
    """Say whether the table has a message for a definition of the schema."""
    return definition in messages()


@cache
def messages() -> Mapping[str, Mapping[str, str]]:
    """The table: for each message its JSON fields as `PATH TYPE`."""
    path = Path(__file__).with_name("protobuf_fields.json")
    table = msgspec.json.decode(path.read_bytes(), type=_Table)
    return {_long(name): fields for name, fields in table.messages.items()}


def _definition(api_version: str, kind: str) -> str:
    if kind == "DeleteOptions":  # sent with the group-version of whatever is deleted
        return kinds.DELETEOPTIONS.definition
    found = kinds.by_kind(api_version, kind)
    if found is None or not has(found.definition):
        raise BadRequest(f'no kind "{kind}" is registered for version "{api_version}" in protobuf: send it as JSON')
    return found.definition


def _long(name: str) -> str:
    for short, full in _SHORT.items():
        if name.startswith(short):
            return full + name.removeprefix(short)
    return name


@cache
def _tree(definition: str) -> Tree:
    tree: Tree = {}
    for name, text in messages()[definition].items():
        path, _, kind = text.partition(" ")
        numbers = [int(number) for number in path.split(".")]
        branch = tree
        for number in numbers[:-1]:
            below = branch.setdefault(number, {})
            assert isinstance(below, dict), f"{definition}.{name} is below a field"
            branch = below
        plain = kind.removeprefix("[]").removeprefix("{}")
        branch[numbers[-1]] = Leaf(name, _long(plain), kind.startswith("[]"), kind.startswith("{}"))
    return tree


def _message(definition: str, data: memoryview, where: str, unknown: list[str], depth: int) -> Any:
    if depth > _DEEPEST:
        raise BadRequest(f"protobuf: {where} is nested deeper than {_DEEPEST} messages")
    special = _SPECIAL.get(definition)
    if special is not None:
        return special(data, where, unknown, depth)
    obj: dict[str, Any] = {}
    _fill(obj, _tree(definition), data, where, unknown, depth)
    if definition.endswith(("ExtraValue", "AttestationValue")):
        return obj.get("items", [])
    return obj


def _fill(obj: dict[str, Any], tree: Tree, data: memoryview, where: str, unknown: list[str], depth: int) -> None:
    for number, value in _fields(data):
        known = tree.get(number)
        if known is None:
            unknown.append(f"{where}.{number}")
        elif isinstance(known, dict):
            if not isinstance(value, memoryview):
                raise BadRequest(f"protobuf: {where}.{number} is not a message")
            _fill(obj, known, value, where, unknown, depth + 1)
        elif known.mapped:
            _fill_map(obj.setdefault(known.name, {}), known, value, where, unknown, depth)
        elif known.repeated:
            obj.setdefault(known.name, []).extend(_repeated(known, value, where, unknown, depth))
        else:
            read = _value(known.type, value, f"{where}.{known.name}", unknown, depth)
            if not _says_nothing(known.name, read):
                obj[known.name] = read


def _says_nothing(name: str, read: Any) -> bool:
    if read is None:
        return True
    if read == "":
        return name not in _KEPT_EMPTY
    if read == {}:
        return name in _DROPPED_EMPTY
    return read == 0 and name in _DROPPED_ZERO


def _fill_map(
    target: dict[str, Any], leaf: Leaf, value: int | memoryview, where: str, unknown: list[str], depth: int
) -> None:
    if not isinstance(value, memoryview):
        raise BadRequest(f"protobuf: {where}.{leaf.name} is not a map entry")
    key, raw = "", None
    for number, part in _fields(value):
        if number == 1 and isinstance(part, memoryview):
            key = _text(part)
        elif number == 2:
            raw = part
    if raw is None:
        raw = memoryview(b"") if leaf.type in ("string", "bytes") or "." in leaf.type else 0
    target[key] = _value(leaf.type, raw, f"{where}.{leaf.name}[{key}]", unknown, depth)


def _repeated(leaf: Leaf, value: int | memoryview, where: str, unknown: list[str], depth: int) -> list[Any]:
    if isinstance(value, memoryview) and leaf.type in ("int32", "int64", "bool"):  # packed
        numbers: list[Any] = []
        at = 0
        while at < len(value):
            number, at = _varint(value, at)
            numbers.append(_value(leaf.type, number, where, unknown, depth))
        return numbers
    return [_value(leaf.type, value, f"{where}.{leaf.name}", unknown, depth)]


def _value(kind: str, value: int | memoryview, where: str, unknown: list[str], depth: int) -> Any:
    if isinstance(value, memoryview):
        match kind:
            case "string":
                return _text(value)
            case "bytes":
                return base64.b64encode(value).decode()
            case "double" if len(value) == 8:
                return struct.unpack("<d", value)[0]
            case _ if "." in kind:
                return _message(kind, value, where, unknown, depth + 1)
            case _:
                pass
    elif kind == "bool":
        return value != 0
    elif kind in ("int32", "int64"):
        return value - 2**64 if value >= 2**63 else value
    raise BadRequest(f"protobuf: {where} is not a {kind.rpartition('.')[2]}")


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Cut a message into field numbers and raw values: an int for a varint, bytes for everything else."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        number, form = tag >> 3, tag & 7
        if form == _VARINT:
            value, at = _varint(data, at)
            yield number, value
            continue
        if form == _BYTES:
            length, at = _varint(data, at)
        elif form in (_FIXED64, _FIXED32):
            length = 8 if form == _FIXED64 else 4
        else:
            raise BadRequest(f"protobuf: field {number} has the wire type {form}, which Kubernetes does not use")
        if at + length > len(data):
            raise BadRequest(f"protobuf: the body ends in the middle of field {number}")
        yield number, data[at : at + length]
        at += length


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise BadRequest("protobuf: the body ends in the middle of a number")
        byte = data[at]
        number |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return number & (2**64 - 1), at
        shift += 7


def _text(data: memoryview) -> str:
    try:
        return str(data, "utf-8")
    except UnicodeDecodeError:
        raise BadRequest("protobuf: a string is not UTF-8") from None


def _json(data: memoryview) -> Any:
    if not data:
        return None
    try:
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadRequest(f"protobuf: a part that must be JSON is not: {error}") from None


# Messages whose JSON is not an object of their fields.


def _time(data: memoryview, where: str, unknown: list[str], depth: int) -> Any:
    parts = {number: value for number, value in _fields(data) if isinstance(value, int)}
    if not parts:
        return None  # the zero time
    seconds = parts.get(1, 0)
    return _moment(seconds - 2**64 if seconds >= 2**63 else seconds, where, rfc3339)


def _micro_time(data: memoryview, where: str, unknown: list[str], depth: int) -> Any:
    parts = {number: value for number, value in _fields(data) if isinstance(value, int)}
    if not parts:
        return None
    seconds = parts.get(1, 0)
    seconds -= 2**64 if seconds >= 2**63 else 0
    return _moment(seconds + parts.get(2, 0) // 1000 / 1e6, where, rfc3339_micro)


def _moment(seconds: float, where: str, write: Callable[[float], str]) -> str | None:
    try:
        return write(seconds) if seconds > -62_135_596_800 else None  # Go's zero time is the first second of year 1
    except (ValueError, OverflowError, OSError):
        raise BadRequest(f"protobuf: {where} is not a time that can be written") from None


def _quantity(data: memoryview, where: str, unknown: list[str], depth: int) -> Any:
    for number, value in _fields(data):
        if number == 1 and isinstance(value, memoryview):
            return _text(value)
    return "0"


def _int_or_string(data: memoryview, where: str, unknown: list[str], depth: int) -> Any:
    is_text, whole, text = 0, 0, ""
    for number, value in _fields(data):
        if number == 3 and isinstance(value, memoryview):
            text = _text(value)
        elif number == 2 and isinstance(value, int):
            whole = value - 2**64 if value >= 2**63 else value
        elif number == 1 and isinstance(value, int):
            is_text = value
    return text if is_text else whole


def _raw(data: memoryview, where: str, unknown: list[str], depth: int) -> Any:
    for number, value in _fields(data):
        if number == 1 and isinstance(value, memoryview):
            if bytes(value[: len(MAGIC)]) == MAGIC:
                inner, more = decode(bytes(value))
                unknown.extend(more)
                return inner
            return _json(value)
    return None


def _schema_or(other: int, name: str) -> Callable[[memoryview, str, list[str], int], Any]:
    """Read a JSON schema (field `1` or, beside a boolean, `2`), or else what it stands beside."""
    props = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps"

    def read(data: memoryview, where: str, unknown: list[str], depth: int) -> Any:
        schema: Any = None
        others: list[Any] = []
        for number, value in _fields(data):
            if number == other:
                others.append(_value(name or props, value, where, unknown, depth))
            elif isinstance(value, memoryview):
                schema = _message(props, value, where, unknown, depth + 1)
        if schema is not None:
            return schema
        return bool(others and others[-1]) if name == "bool" else others

    return read


_MACHINERY = "io.k8s.apimachinery.pkg."
_EXTENSIONS = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1."
_SPECIAL: Mapping[str, Callable[[memoryview, str, list[str], int], Any]] = {
    _MACHINERY + "apis.meta.v1.Time": _time,
    _MACHINERY + "apis.meta.v1.MicroTime": _micro_time,
    _MACHINERY + "apis.meta.v1.FieldsV1": _raw,
    _MACHINERY + "api.resource.Quantity": _quantity,
    _MACHINERY + "util.intstr.IntOrString": _int_or_string,
    _MACHINERY + "runtime.RawExtension": _raw,
    _EXTENSIONS + "JSON": _raw,
    _EXTENSIONS + "JSONSchemaPropsOrArray": _schema_or(2, ""),
    _EXTENSIONS + "JSONSchemaPropsOrBool": _schema_or(1, "bool"),
    _EXTENSIONS + "JSONSchemaPropsOrStringArray": _schema_or(2, "string"),
}
