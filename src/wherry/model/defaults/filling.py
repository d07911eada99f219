"""The few moves that all defaults are made of."""

from collections.abc import Iterator
from typing import Any

from wherry.model.quantities import Quantity

Object = dict[str, Any]

_MILLI = -3


def fill(obj: Object, name: str, value: Any) -> None:
    """Set a field that is absent, null or the empty string (which is how Go writes an absent one)."""
    if obj.get(name) in (None, ""):
        obj[name] = value


def part(obj: Object, name: str) -> Object:
    """Give the object under `name`; an empty one, not put into its place, where there is none."""
    value = obj.get(name)
    return value if isinstance(value, dict) else {}


def made(obj: Object, name: str) -> Object:
    """Give the object under `name`, putting an empty one there first where there is none."""
    value = obj.get(name)
    if not isinstance(value, dict):
        value = obj[name] = {}
    return value


def each(obj: Object, *names: str) -> Iterator[Object]:
    """Go through the objects of one or more lists."""
    for name in names:
        for item in obj.get(name) or ():
            if isinstance(item, dict):
                yield item


def amounts(obj: Object, *names: str) -> None:
    """Put the quantities of resource lists into the form the API keeps: rounded up to thousandths, canonical."""
    for name in names:
        resources = obj.get(name)
        if isinstance(resources, dict):
            for resource, text in resources.items():
                resources[resource] = str(Quantity.parse(text).round_up(_MILLI))
