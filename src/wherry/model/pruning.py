"""Read an object by its schema: drop what the schema does not know, find what has the wrong type.

For each definition a closure is compiled on first use, so that a pod costs tens of microseconds. The words are those of
upstream's strict decoder (`unknown field "spec.foo"`) and of Go's JSON package for wrong types.
Source: Kubernetes, "Field validation" in the API concepts; sigs.k8s.io/json.
"""

import binascii
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from wherry.clock import parse_rfc3339, rfc3339, rfc3339_micro
from wherry.errors import Invalid
from wherry.model import schema
from wherry.model.quantities import Quantity
from wherry.model.schema import Shape

_INT32 = range(-(2**31), 2**31)
_INT64 = range(-(2**63), 2**63)
_PROPS = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps"
_TIME = re.compile(
    r"\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])T([01]\d|2[0-3]):[0-5]\d:[0-5]\d(\.\d+)?(Z|[+-]\d\d:\d\d)"
)

Where = tuple[Any, ...]
"""A place in an object: () is the whole, (above, "spec") a field, (above, 3) an item; a chain, so that a step is cheap."""
Walk = Callable[[Any, Where, "Findings"], Any]
"""Reads a value that is not null; gives what to keep instead of it (nearly always itself)."""


@dataclass(slots=True)
class Findings:
    """What was wrong: paths of unknown fields (dropped), paths of duplicates, sentences about wrong types."""

    unknown: list[str] = field(default_factory=list[str])
    duplicate: list[str] = field(default_factory=list[str])
    wrong: list[str] = field(default_factory=list[str])

    @property
    def strict(self) -> list[str]:
        """The sentences that `fieldValidation` Strict refuses and Warn warns of."""
        return [
            *(f'unknown field "{path}"' for path in self.unknown),
            *(f'duplicate field "{path}"' for path in self.duplicate),
        ]

    def refusal(self, kind: str, version: str) -> str:
        """The message of a 400 for a wrong type, or for strict errors where there is none; "" when all is well."""
        head = f'{kind} in version "{version}" cannot be handled as a {kind}: '
        if self.wrong:
            return head + self.wrong[0]
        return head + "strict decoding error: " + ", ".join(self.strict) if self.strict else ""


def prune(definition: str, obj: dict[str, Any]) -> Findings:
    """Read an object in place: unknown fields and nulls are dropped, wrong types are told and left."""
    found = Findings()
    _walker(definition)(obj, (), found)
    return found


def duplicates(data: bytes) -> list[str]:
    """Find the paths of members that a JSON text gives more than once in one object."""
    found: list[str] = []
    _search(json.loads(data, object_pairs_hook=_Pairs), "", found)
    return found


class _Pairs(list[tuple[str, Any]]):
    """A JSON object with every member that the text gives."""


def _search(value: Any, path: str, found: list[str]) -> None:
    if isinstance(value, _Pairs):
        seen: set[str] = set()
        for name, part in value:
            below = f"{path}.{name}" if path else name
            if name in seen:
                found.append(below)
            seen.add(name)
            _search(part, below, found)
    elif isinstance(value, list):
        for at, part in enumerate(value):
            _search(part, f"{path}[{at}]", found)


_walkers: dict[str, Walk] = {}


def _walker(definition: str) -> Walk:
    found = _walkers.get(definition)
    if found is None:
        found = _walkers[definition] = _compile_definition(definition)
    return found


def _compile_definition(name: str) -> Walk:
    definition = schema.load().get(name)
    base = definition.shape.base
    if base != "object":
        return _SPECIAL[base]
    fields: dict[str, tuple[type | None, Walk]] = {}
    struct = name.rpartition(".")[2]
    for one in definition.fields:
        fields[one.name] = _compile(one.shape, struct)

    def walk(value: Any, where: Where, found: Findings) -> Any:
        drop: list[str] | None = None
        for member, part in value.items():
            known = fields.get(member)
            if known is not None:
                plain, check = known
                if type(part) is plain:
                    continue
                if part is not None:
                    kept = check(part, (where, member), found)
                    if kept is not part:
                        value[member] = kept
                    continue
            else:
                found.unknown.append(_path((where, member)))
            if drop is None:
                drop = [member]
            else:
                drop.append(member)
        if drop is not None:
            for member in drop:
                del value[member]
        return value

    return walk


def _compile(shape: Shape, struct: str) -> tuple[type | None, Walk]:
    """Give the type that needs no further look (strings, booleans), and the walk for everything else."""
    match shape.base:
        case "ref":
            return None, _later(shape.ref, struct)
        case "array" if shape.item is not None:
            return None, _compile_array(shape.item, struct)
        case "map" if shape.item is not None:
            return None, _compile_map(shape.item, struct)
        case "string" if shape.format != "byte":
            return str, _plain(struct, "string")
        case "string":
            return None, _bytes(struct)
        case "boolean":
            return bool, _plain(struct, "bool")
        case "integer":
            return None, _integer(struct, shape.format)
        case "number":
            return float, _number(struct)
        case _:
            return None, _SPECIAL[shape.base]


def _later(name: str, struct: str) -> Walk:
    """Compile a definition when a value of it comes; definitions may hold themselves."""
    compiled: list[Walk] = []
    is_object = schema.load().get(name).shape.base == "object"

    def walk(value: Any, where: Where, found: Findings) -> Any:
        if is_object and type(value) is not dict:
            found.wrong.append(_mismatch(value, where, struct, _go_type(name)))
            return value
        if not compiled:
            compiled.append(_walker(name))
        return compiled[0](value, where, found)

    return walk


def _compile_array(item: Shape, struct: str) -> Walk:
    plain, check = _compile(item, struct)
    empty = _zero(item)

    def walk(value: Any, where: Where, found: Findings) -> Any:
        if type(value) is not list:
            found.wrong.append(_mismatch(value, where, struct, "[]" + _go_shape(item)))
            return value
        for at, part in enumerate(value):
            if type(part) is plain:
                continue
            if part is None:
                value[at] = empty()
                continue
            kept = check(part, (where, at), found)
            if kept is not part:
                value[at] = kept
        return value

    return walk


def _compile_map(item: Shape, struct: str) -> Walk:
    plain, check = _compile(item, struct)
    empty = _zero(item)

    def walk(value: Any, where: Where, found: Findings) -> Any:
        if type(value) is not dict:
            found.wrong.append(_mismatch(value, where, struct, "map[string]" + _go_shape(item)))
            return value
        for member, part in value.items():
            if type(part) is plain:
                continue
            if part is None:
                value[member] = empty()
                continue
            kept = check(part, (where, member), found)
            if kept is not part:
                value[member] = kept
        return value

    return walk


def _zero(item: Shape) -> Callable[[], Any]:
    """What Go's decoder makes of a null in a list or a map: the type's zero."""
    zeros: Mapping[str, Callable[[], Any]] = {
        "string": str,
        "integer": int,
        "number": float,
        "boolean": bool,
        "array": list[Any],
        "map": dict[str, Any],
    }
    if item.base == "ref":
        base = schema.load().get(item.ref).shape.base
        return (lambda: "0") if base == "quantity" else dict[str, Any]
    return zeros.get(item.base, dict[str, Any])


def _plain(struct: str, go_type: str) -> Walk:
    def walk(value: Any, where: Where, found: Findings) -> Any:
        found.wrong.append(_mismatch(value, where, struct, go_type))
        return value

    return walk


def _integer(struct: str, go_type: str) -> Walk:
    bounds = _INT32 if go_type == "int32" else _INT64

    def walk(value: Any, where: Where, found: Findings) -> Any:
        if type(value) is not int or value not in bounds:
            found.wrong.append(_mismatch(value, where, struct, go_type or "int64"))
        return value

    return walk


def _number(struct: str) -> Walk:
    def walk(value: Any, where: Where, found: Findings) -> Any:
        if type(value) is not int:
            found.wrong.append(_mismatch(value, where, struct, "float64"))
        return value

    return walk


def _bytes(struct: str) -> Walk:
    def walk(value: Any, where: Where, found: Findings) -> Any:
        if type(value) is not str:
            found.wrong.append(_mismatch(value, where, struct, "[]uint8"))
            return value
        try:
            binascii.a2b_base64(value.replace("\n", "").replace("\r", ""), strict_mode=True)
        except (ValueError, binascii.Error):
            found.wrong.append(f"illegal base64 data at input byte {_first_wrong(value)}")
        return value

    return walk


def _first_wrong(text: str) -> int:
    """The offset that Go's base64 decoder complains of: the first letter outside the alphabet, or the cut-off end."""
    alphabet = re.match("[A-Za-z0-9+/\r\n]*", text)
    end = alphabet.end() if alphabet is not None else 0
    return end if end < len(text) else len(text) - len(text) % 4


def _quantity(value: Any, where: Where, found: Findings) -> Any:
    if type(value) not in (str, int, float):
        found.wrong.append(
            "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"
        )
        return value
    try:
        return _canonical(value.strip() if isinstance(value, str) else value)
    except Invalid as error:
        found.wrong.append(error.message)
        return value


@lru_cache(4096)
def _canonical(text: str | int | float) -> str:
    return str(Quantity.parse(text))


def _int_or_string(value: Any, where: Where, found: Findings) -> Any:
    if type(value) is str or (type(value) is int and value in _INT32):
        return value
    found.wrong.append(_mismatch(value, where, "", "int32" if type(value) in (int, float) else "string"))
    return value


def _time(value: Any, where: Where, found: Findings) -> Any:
    if not _is_time(value, where, found) or (len(value) == 20 and value[-1] == "Z"):
        return value
    return rfc3339(parse_rfc3339(value))


def _micro_time(value: Any, where: Where, found: Findings) -> Any:
    if not _is_time(value, where, found) or (len(value) == 27 and value[-1] == "Z"):
        return value
    return rfc3339_micro(parse_rfc3339(value))


def _is_time(value: Any, where: Where, found: Findings) -> bool:
    if type(value) is not str:
        found.wrong.append(_mismatch(value, where, "", "string"))
        return False
    if _TIME.fullmatch(value):
        return True
    layout = "2006-01-02T15:04:05Z07:00"
    found.wrong.append(f'parsing time "{value}" as "{layout}": cannot parse "{value}" as "{layout}"')
    return False


def _any(value: Any, where: Where, found: Findings) -> Any:
    return value


def _any_object(value: Any, where: Where, found: Findings) -> Any:
    if type(value) is not dict:
        found.wrong.append(_mismatch(value, where, "", "map[string]interface {}"))
    return value


def _schema_or_else(value: Any, where: Where, found: Findings) -> Any:
    """A JSON schema, or a list of them or of names, or a boolean."""
    if type(value) is dict:
        return _walker(_PROPS)(value, where, found)
    if type(value) is list:
        for at, part in enumerate(value):
            if type(part) is dict:
                _walker(_PROPS)(part, (where, at), found)
    return value


_SPECIAL: Mapping[str, Walk] = {
    "quantity": _quantity,
    "int-or-string": _int_or_string,
    "time": _time,
    "micro-time": _micro_time,
    "any": _any,
    "any-object": _any_object,
    "schema-or-else": _schema_or_else,
}


def _path(where: Where) -> str:
    parts: list[str] = []
    while where:
        where, step = where
        parts.append(f"[{step}]" if isinstance(step, int) else f".{step}")
    return "".join(reversed(parts)).removeprefix(".")


def _mismatch(value: Any, where: Where, struct: str, go_type: str) -> str:
    """Go's sentence for a value of the wrong type; the struct named is the one that has the field."""
    steps: list[str] = []
    while where:
        where, step = where
        if isinstance(step, str):
            steps.append(step)
    path = ".".join(reversed(steps))
    at = f"struct field {struct}.{path}" if struct and path else "value"
    return f"json: cannot unmarshal {_seen(value, go_type)} into Go {at} of type {go_type}"


def _seen(value: Any, go_type: str) -> str:
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int | float):
        return f"number {value}" if go_type.startswith(("int", "float")) else "number"
    if isinstance(value, str):
        return "string"
    return "array" if isinstance(value, list) else "object"


def _go_type(definition: str) -> str:
    return ".".join(definition.split(".")[-2:])


def _go_shape(shape: Shape) -> str:
    if shape.base == "ref":
        return _go_type(shape.ref)
    if shape.base in ("array", "map") and shape.item is not None:
        return ("[]" if shape.base == "array" else "map[string]") + _go_shape(shape.item)
    return {"boolean": "bool", "integer": shape.format or "int64", "number": "float64"}.get(shape.base, "string")
