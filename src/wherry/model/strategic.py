"""Strategic merge: a merge patch that knows which lists are sets of named things.

The directives: `$patch: delete|replace|merge` in an object or a list's item; `$retainKeys` (clear the other fields of a
union); `$setElementOrder/LIST` (the order of the result); `$deleteFromPrimitiveList/LIST`. Lists of objects merge by the
merge key of the schema where their strategy is `merge`; all other lists are replaced.
Source: Kubernetes, "Strategic Merge Patch" (sig-api-machinery), "Preserve Order in Strategic Merge Patch".
"""

from collections.abc import Mapping
from typing import Any

from wherry.errors import BadRequest
from wherry.model import schema
from wherry.model.schema import Field, Shape

_PATCH = "$patch"
_RETAIN = "$retainKeys"
_ORDER = "$setElementOrder/"
_DROP = "$deleteFromPrimitiveList/"

Object = dict[str, Any]


def merge(definition: str, document: Object, patch: Object) -> Object:
    """Merge `patch` into `document`, an object of the schema's `definition` ("" merges without a schema)."""
    merged = _merge_object(definition, document, patch)
    return {} if merged is None else merged


def _merge_object(definition: str, document: Object | None, patch: Object) -> Object | None:
    """Merge objects; None says that the patch deletes the object."""
    directive = patch.get(_PATCH)
    if directive is not None:
        rest = {name: value for name, value in patch.items() if name != _PATCH}
        if directive == "replace":
            return _plain(rest)
        if directive == "delete":
            return None
        if directive != "merge":
            raise BadRequest(f'unknown patch directive "{directive}": write delete, replace or merge')
        patch = rest
    merged = dict(document or {})
    if _RETAIN in patch:
        keep = _retained(patch)
        merged = {name: value for name, value in merged.items() if name in keep}
    for name, value in patch.items():
        if name == _RETAIN or name.startswith((_ORDER, _DROP)):
            continue
        _merge_field(merged, name, value, patch, _field(definition, name))
    for name, value in patch.items():
        if name.startswith(_DROP):
            _drop(merged, name.removeprefix(_DROP), value)
    for name, value in patch.items():
        list_name = name.removeprefix(_ORDER)
        live = merged.get(list_name)
        if name.startswith(_ORDER) and list_name not in patch and isinstance(live, list):
            merged[list_name] = _ordered(live, live, _order(name, value) or [], _key(_field(definition, list_name)))
    return merged


def _merge_field(merged: Object, name: str, value: Any, patch: Object, field: Field | None) -> None:
    if value is None:
        merged.pop(name, None)
        return
    old = merged.get(name)
    if isinstance(value, dict):
        replaces = field is not None and field.strategy == "replace"
        inner = _merge_object(_definition(field), old if isinstance(old, dict) and not replaces else None, value)
        if inner is None:
            merged.pop(name, None)
        else:
            merged[name] = inner
    elif isinstance(value, list):
        order = patch.get(_ORDER + name)
        merged[name] = _merge_list(name, old if isinstance(old, list) else [], value, order, field)
    else:
        merged[name] = value


def _merge_list(name: str, old: list[Any], new: list[Any], order: Any, field: Field | None) -> list[Any]:
    if field is None or "merge" not in field.strategy.split(","):
        return _items(new)
    key = _key(field)
    if not key:
        return _merge_values(name, old, new, order)
    definition = _item_definition(field)
    directives = [item for item in new if isinstance(item, dict) and item.get(_PATCH) == "replace"]
    if directives:
        # one item `{"$patch": "replace"}` makes the others the whole list
        return _items([item for item in new if item not in directives or len(item) > 1])
    merged = list(old)
    kept = [item for item in new if not (isinstance(item, dict) and item.get(_PATCH) == "delete")]
    for item in new:
        if not isinstance(item, dict) or key not in item:
            raise BadRequest(f"map: {item} does not contain declared merge key: {key}")
        place = _position(merged, key, item[key])
        made = _merge_object(definition, merged[place] if place is not None else None, item)
        if made is None:
            merged = [one for one in merged if not (isinstance(one, dict) and one.get(key) == item[key])]
        elif place is None:
            merged.append(made)
        else:
            merged[place] = made
    return _in_order(name, merged, old, kept, order, key)


def _merge_values(name: str, old: list[Any], new: list[Any], order: Any) -> list[Any]:
    """Merge lists of plain values: a set that keeps its order."""
    merged = [*old, *new]
    unique = [value for at, value in enumerate(merged) if value not in merged[:at]]
    return _in_order(name, unique, old, new, order, "")


def _in_order(name: str, merged: list[Any], live: list[Any], patched: list[Any], order: Any, key: str) -> list[Any]:
    """Order a merged list as the patch says, or as its own items stand in it."""
    wanted = _order(name, order)
    if wanted is None:
        return _ordered(merged, live, patched, key)
    _check_order(name, wanted, patched, key)
    return _ordered(merged, live, wanted, key)


def _ordered(items: list[Any], live: list[Any], order: list[Any], key: str) -> list[Any]:
    """Put the items that `order` names in that order, and weave the others in as they stood in the `live` list.

    Where that does not say (an item is new), the others come first.
    """

    def name(item: Any) -> Any:
        return item.get(key) if key and isinstance(item, dict) else item

    ranks, places = [name(item) for item in order], [name(item) for item in live]
    ranked = sorted((item for item in items if name(item) in ranks), key=lambda item: ranks.index(name(item)))
    others = [item for item in items if name(item) not in ranks]
    result: list[Any] = []
    while ranked and others:
        first, other = name(ranked[0]), name(others[0])
        is_before = first in places and other in places and places.index(first) < places.index(other)
        result.append((ranked if is_before else others).pop(0))
    return result + ranked + others


def _check_order(name: str, order: list[Any], patched: list[Any], key: str) -> None:
    """See that the patch's order names everything that the patch sets."""
    ranks = [value.get(key) if key and isinstance(value, dict) else value for value in order]
    for item in patched:
        value = item.get(key) if key and isinstance(item, dict) else item
        if value not in ranks:
            raise BadRequest(f"{_ORDER}{name} does not name {value!r}, which the patch sets: name it there")


def _drop(merged: Object, name: str, values: Any) -> None:
    if not isinstance(values, list):
        raise BadRequest(f"{_DROP}{name} takes a list of values, not {values!r}")
    if isinstance(merged.get(name), list):
        merged[name] = [value for value in merged[name] if value not in values]


def _retained(patch: Object) -> list[str]:
    keep = patch[_RETAIN]
    if not isinstance(keep, list):
        raise BadRequest(f"{_RETAIN} takes a list of field names, not {keep!r}")
    extra = [name for name in patch if not name.startswith("$") and patch[name] is not None and name not in keep]
    if extra:
        raise BadRequest(f"{_RETAIN} does not name {extra[0]!r}, which the patch sets: name it there")
    return keep


def _order(name: str, value: Any) -> list[Any] | None:
    if value is None:
        return None
    if not isinstance(value, list):
        raise BadRequest(f"the order of {name} is a list, not {value!r}")
    return value


def _position(items: list[Any], key: str, value: Any) -> int | None:
    return next((at for at, item in enumerate(items) if isinstance(item, dict) and item.get(key) == value), None)


def _plain(value: Any) -> Any:
    """Take directives and nulls out of what is new, as nothing is there for them to act on."""
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items() if part is not None and not name.startswith("$")}
    if isinstance(value, list):
        return _items(value)
    return value


def _items(values: list[Any]) -> list[Any]:
    return [_plain(value) for value in values if not (isinstance(value, dict) and value.get(_PATCH) == "delete")]


def _field(definition: str, name: str) -> Field | None:
    return _fields(definition).get(name) if definition else None


_known: dict[str, Mapping[str, Field]] = {}


def _fields(definition: str) -> Mapping[str, Field]:
    found = _known.get(definition)
    if found is None:
        found = _known[definition] = {field.name: field for field in schema.load().get(definition).fields}
    return found


def _definition(field: Field | None) -> str:
    return "" if field is None else _object(field.shape)


def _item_definition(field: Field) -> str:
    return _object(field.shape.item) if field.shape.item is not None else ""


def _object(shape: Shape) -> str:
    if shape.base == "ref" and schema.load().get(shape.ref).shape.base == "object":
        return shape.ref
    return ""


def _key(field: Field | None) -> str:
    return field.merge_key if field is not None else ""
