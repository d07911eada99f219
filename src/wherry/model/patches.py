"""The three patches that the API takes: JSON patch (RFC 6902), merge patch (RFC 7386) and strategic merge.

Each gives a new document that shares nothing with its inputs, so that the caller may change it in place.
"""

import math
from collections.abc import Sequence
from typing import Any

from wherry.errors import BadRequest, Invalid
from wherry.model import strategic
from wherry.model.kinds import Kind

Json = Any  # what JSON can hold: dict, list, str, int, float, bool, None

_OPERATIONS = ("add", "remove", "replace", "move", "copy", "test")
_MOST_OPERATIONS = 10_000


def merge_patch(document: Json, patch: Json) -> Json:
    """Merge objects, replace everything else; null removes."""
    return _copy(_merge(document, patch))


def strategic_merge(kind: Kind, document: dict[str, Any], patch: dict[str, Any]) -> dict[str, Any]:
    """Merge as the schema of a built-in kind says: lists by their merge keys, with `$patch` and its like.

    Raises BadRequest for a directive that makes no sense, or an item without its merge key.
    """
    return _copy(strategic.merge(kind.definition, document, patch))


def json_patch(document: Json, operations: Sequence[Any]) -> Json:
    """Do operations in order, all or none.

    Raises BadRequest for a patch that cannot be read, Invalid for one that does not fit the document.
    """
    if not isinstance(operations, list | tuple):
        raise BadRequest("a JSON patch is an array of operations")
    if len(operations) > _MOST_OPERATIONS:
        raise BadRequest(f"a JSON patch has at most {_MOST_OPERATIONS} operations, this one has {len(operations)}")
    root: list[Any] = [_copy(document)]
    for operation in operations:
        _do(root, operation)
    return root[0]


def _merge(document: Json, patch: Json) -> Json:
    if not isinstance(patch, dict):
        return patch
    merged: dict[str, Any] = dict(document) if isinstance(document, dict) else {}
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = _merge(merged.get(name), value)
    return merged


def _do(root: list[Any], operation: Any) -> None:
    if not isinstance(operation, dict) or operation.get("op") not in _OPERATIONS:
        shown = operation.get("op") if isinstance(operation, dict) else operation
        raise BadRequest(f"JSON patch: {shown!r} is not one of the operations {', '.join(_OPERATIONS)}")
    name = operation["op"]
    path = _pointer(operation, "path")
    match name:
        case "add":
            _add(root, path, _copy(_value(operation)))
        case "remove":
            _remove(root, path)
        case "replace":
            value = _value(operation)
            _remove(root, path)
            _add(root, path, _copy(value))
        case "move":
            source = _pointer(operation, "from")
            if path[: len(source)] == source and path != source:
                raise Invalid(f"JSON patch: cannot move {_text(source)} into itself")
            value = _find(root, source)
            _remove(root, source)
            _add(root, path, value)
        case "copy":
            _add(root, path, _copy(_find(root, _pointer(operation, "from"))))
        case _:
            if not _same(_find(root, path), _value(operation)):
                raise Invalid(f"testing value {_text(path)} failed")


def _value(operation: dict[str, Any]) -> Any:
    if "value" not in operation:
        raise BadRequest(f"JSON patch: the operation {operation['op']} of {operation.get('path')} has no value")
    return operation["value"]


def _pointer(operation: dict[str, Any], member: str) -> tuple[str, ...]:
    text = operation.get(member)
    if not isinstance(text, str) or (text and not text.startswith("/")):
        raise BadRequest(f"JSON patch: the operation {operation['op']} needs a JSON pointer as {member}, not {text!r}")
    return tuple(part.replace("~1", "/").replace("~0", "~") for part in text.split("/")[1:])


def _text(path: Sequence[str]) -> str:
    return "".join("/" + part.replace("~", "~0").replace("/", "~1") for part in path)


def _missing(path: Sequence[str]) -> Invalid:
    return Invalid(f"JSON patch: there is no {_text(path)} in the document")


def _step(holder: Any, part: str, path: Sequence[str]) -> Any:
    if isinstance(holder, dict) and part in holder:
        return holder[part]
    if isinstance(holder, list):
        return holder[_index(part, len(holder) - 1, path)]
    raise _missing(path)


def _index(part: str, most: int, path: Sequence[str]) -> int:
    if not (part.isascii() and part.isdecimal()) or (len(part) > 1 and part[0] == "0") or len(part) > 9:
        raise _missing(path)
    if int(part) > most:
        raise _missing(path)
    return int(part)


def _find(root: list[Any], path: Sequence[str]) -> Any:
    value = root[0]
    for depth, part in enumerate(path):
        value = _step(value, part, path[: depth + 1])
    return value


def _add(root: list[Any], path: Sequence[str], value: Any) -> None:
    if not path:
        root[0] = value
        return
    holder, last = _find(root, path[:-1]), path[-1]
    if isinstance(holder, dict):
        holder[last] = value
    elif isinstance(holder, list):
        holder.insert(len(holder) if last == "-" else _index(last, len(holder), path), value)
    else:
        raise _missing(path)


def _remove(root: list[Any], path: Sequence[str]) -> None:
    if not path:
        root[0] = None
        return
    holder, last = _find(root, path[:-1]), path[-1]
    if isinstance(holder, dict) and last in holder:
        del holder[last]
    elif isinstance(holder, list):
        del holder[_index(last, len(holder) - 1, path)]
    else:
        raise _missing(path)


def _same(one: Any, other: Any) -> bool:
    """Equality as RFC 6902 means it: numbers by value, and `true` is not 1."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(value, other[name]) for name, value in one.items())
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, float) and isinstance(other, float):
        return one == other or (math.isnan(one) and math.isnan(other))
    return bool(one == other)


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _copy(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_copy(part) for part in value]
    return value
