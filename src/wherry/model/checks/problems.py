"""How a wrong field is told: the reasons and sentences of upstream's `field.Error`."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from wherry.errors import Cause, Invalid
from wherry.model import names
from wherry.model.quantities import Quantity

Object = dict[str, Any]

IMMUTABLE = "field is immutable"
NOT_NEGATIVE = "must be greater than or equal to 0"
POSITIVE = "must be greater than 0"


class Problems:
    """Collects what is wrong with one object; every path is written as upstream writes it (`spec.ports[0].name`)."""

    def __init__(self) -> None:
        self.causes: list[Cause] = []

    def invalid(self, path: str, value: Any, message: str) -> None:
        """The value cannot be."""
        self._add(path, "FieldValueInvalid", f"Invalid value: {show(value)}: {message}")

    def required(self, path: str, message: str = "") -> None:
        """There must be a value."""
        self._add(path, "FieldValueRequired", f"Required value: {message}" if message else "Required value")

    def duplicate(self, path: str, value: Any) -> None:
        """Another one has this value, and there can be only one."""
        self._add(path, "FieldValueDuplicate", f"Duplicate value: {show(value)}")

    def unsupported(self, path: str, value: Any, supported: Iterable[str]) -> None:
        """The value is none of those that there are."""
        said = ", ".join(f'"{one}"' for one in sorted(supported))
        self._add(path, "FieldValueNotSupported", f"Unsupported value: {show(value)}: supported values: {said}")

    def forbidden(self, path: str, message: str) -> None:
        """The field may not be set, or not now."""
        self._add(path, "FieldValueForbidden", f"Forbidden: {message}")

    def too_long(self, path: str, most: int) -> None:
        """More bytes than are allowed."""
        self._add(path, "FieldValueTooLong", f"Too long: may not be more than {most} bytes")

    def too_many(self, path: str, count: int, most: int) -> None:
        """More items than are allowed."""
        self._add(path, "FieldValueTooMany", f"Too many: {count}: must have at most {most} items")

    def missing(self, path: str, value: Any) -> None:
        """What the value names is not there."""
        self._add(path, "FieldValueNotFound", f"Not found: {show(value)}")

    def all_invalid(self, path: str, value: Any, messages: Iterable[str]) -> None:
        """The value cannot be, for each of these reasons."""
        for message in messages:
            self.invalid(path, value, message)

    def _add(self, path: str, reason: str, message: str) -> None:
        self.causes.append(Cause(path, reason, message))

    # What is checked alike in many places.

    def not_negative(self, path: str, obj: Mapping[str, Any], *fields: str) -> None:
        """Numbers that are 0 or more."""
        for field in fields:
            number = obj.get(field)
            if number is not None and number < 0:
                self.invalid(f"{path}.{field}", number, NOT_NEGATIVE)

    def one_of(self, path: str, value: Any, supported: Sequence[str], *, required: bool = True) -> None:
        """A word out of a list."""
        if not value:
            if required:
                self.required(path)
        elif value not in supported:
            self.unsupported(path, value, supported)

    def labels(self, path: str, labels: Mapping[str, str] | None) -> None:
        """Keys and values of labels."""
        for key, value in (labels or {}).items():
            self.all_invalid(path, key, names.qualified_name(key))
            self.all_invalid(path, value, names.label_value(value))

    def selector(self, path: str, selector: Mapping[str, Any] | None) -> None:
        """A label selector."""
        if selector is None:
            return
        self.labels(f"{path}.matchLabels", selector.get("matchLabels"))
        for at, one in enumerate(selector.get("matchExpressions") or ()):
            here = f"{path}.matchExpressions[{at}]"
            operator, values = one.get("operator"), one.get("values") or ()
            if operator in ("In", "NotIn"):
                if not values:
                    self.required(f"{here}.values", "must be specified when `operator` is 'In' or 'NotIn'")
            elif operator in ("Exists", "DoesNotExist"):
                if values:
                    self.forbidden(
                        f"{here}.values", "may not be specified when `operator` is 'Exists' or 'DoesNotExist'"
                    )
            else:
                self.invalid(f"{here}.operator", operator or "", "not a valid selector operator")
            self.all_invalid(f"{here}.key", one.get("key") or "", names.qualified_name(one.get("key") or ""))
            for place, value in enumerate(values):
                self.all_invalid(f"{here}.values[{place}]", value, names.label_value(value))

    def port(self, path: str, port: Any) -> None:
        """A port by number or by name."""
        if isinstance(port, int):
            self.all_invalid(path, port, names.port_number(port))
        else:
            self.all_invalid(path, port, names.port_name(port))

    def int_or_percent(self, path: str, value: Any) -> None:
        """A count or a percentage, not negative."""
        if isinstance(value, str):
            self.all_invalid(path, value, names.percent(value))
        elif isinstance(value, int) and value < 0:
            self.invalid(path, value, NOT_NEGATIVE)

    def amount(self, path: str, text: Any) -> Quantity | None:
        """A quantity that is 0 or more; gives it when it can be read."""
        try:
            amount = Quantity.parse(text)
        except Invalid as error:
            self.invalid(path, text, error.message)
            return None
        if amount.nano < 0:
            self.invalid(path, text, NOT_NEGATIVE)
        return amount

    def unchanged(self, path: str, new: Any, old: Any, message: str = IMMUTABLE) -> None:
        """A field that keeps its first value."""
        if new != old:
            self.invalid(path, new, message)


def show(value: Any) -> str:
    """Write a value as messages do: strings quoted, everything else as JSON."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if value is None:
        return "null"
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, sort_keys=True)


def part(obj: Mapping[str, Any] | None, name: str) -> Object:
    """Give the object under `name`, or an empty one."""
    value = obj.get(name) if obj else None
    return value if isinstance(value, dict) else {}


def each(path: str, obj: Mapping[str, Any] | None, name: str) -> Iterator[tuple[str, Object]]:
    """Go through a list of objects with the path of each."""
    items: list[Any] = (obj.get(name) if obj else None) or []
    for at, item in enumerate(items):
        if isinstance(item, dict):
            yield (f"{path}.{name}[{at}]" if path else f"{name}[{at}]"), item
