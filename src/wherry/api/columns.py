"""What a Table's columns are made of: a column, and the small texts that many kinds share."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from wherry.clock import parse_rfc3339

Json = dict[str, Any]
NONE = "<none>"
UNKNOWN = "<unknown>"


@dataclass(frozen=True, slots=True)
class Column:
    """One column: `cell` makes its value from an object and the cluster's time. `wide` shows only with -o wide."""

    name: str
    cell: Callable[[Json, float], Any]
    type: str = "string"
    format: str = ""
    wide: bool = False
    description: str = ""

    def definition(self) -> Json:
        """The column as a TableColumnDefinition."""
        return {
            "name": self.name,
            "type": self.type,
            "format": self.format,
            "description": self.description or f"{self.name} of the object",
            "priority": 1 if self.wide else 0,
        }


Columns = Sequence[Column]


def wide(name: str, cell: Callable[[Json, float], Any]) -> Column:
    """A column that only -o wide shows."""
    return Column(name, cell, wide=True)


def number(name: str, path: str) -> Column:
    """A column of a number at a path; 0 when it is not there."""
    return Column(name, lambda obj, _: at(obj, path) or 0, type="integer")


def text(name: str, path: str, absent: str = "") -> Column:
    """A column of the text at a path."""
    return Column(name, lambda obj, _: str(found) if (found := at(obj, path)) not in (None, "") else absent)


def at(obj: Mapping[str, Any], path: str) -> Any:
    """What is at a path such as `spec.replicas`, or None."""
    value: Any = obj
    for part in path.split("."):
        value = value.get(part) if isinstance(value, dict) else None
        if value is None:
            return None
    return value


def duration(seconds: float) -> str:
    """A length of time as kubectl's users read it: 90s, 5m3s, 2h, 3d."""
    whole = int(seconds)
    if whole < -1:
        return "<invalid>"
    if whole < 0:
        return "0s"
    if whole < 120:
        return f"{whole}s"
    minutes = whole // 60
    if minutes < 10:
        return _pair(minutes, "m", whole % 60, "s")
    if minutes < 180:
        return f"{minutes}m"
    hours = whole // 3600
    if hours < 8:
        return _pair(hours, "h", minutes % 60, "m")
    if hours < 48:
        return f"{hours}h"
    days = hours // 24
    if days < 8:
        return _pair(days, "d", hours % 24, "h")
    if days < 730:
        return f"{days}d"
    years = days // 365
    if years < 8:
        return _pair(years, "y", days % 365, "d")
    return f"{years}y"


def since(when: Any, now: float) -> str:
    """How long ago a time on the wire was; `<unknown>` for none."""
    if not when:
        return UNKNOWN
    try:
        return duration(now - parse_rfc3339(str(when)))
    except ValueError:
        return "<invalid>"


def labels_text(labels: Mapping[str, Any] | None) -> str:
    """Labels as `a=b,c=d`."""
    return ",".join(f"{key}={labels[key]}" for key in sorted(labels)) if labels else NONE


def selector_text(selector: Mapping[str, Any] | None) -> str:
    """A LabelSelector as text."""
    if not selector:
        return NONE
    words = [f"{key}={value}" for key, value in sorted((selector.get("matchLabels") or {}).items())]
    for expression in selector.get("matchExpressions") or ():
        key, operator = expression.get("key", ""), expression.get("operator", "")
        values = ",".join(sorted(expression.get("values") or ()))
        match operator:
            case "Exists":
                words.append(key)
            case "DoesNotExist":
                words.append(f"!{key}")
            case _:
                words.append(f"{key} {operator.lower()} ({values})")
    return ",".join(words) or NONE


def joined(values: Iterable[str]) -> str:
    """Texts with commas, or `<none>`."""
    return ",".join(values) or NONE


NAME = Column(
    "Name",
    lambda obj, _: at(obj, "metadata.name") or "",
    format="name",
    description="Name of the object, unique in its place",
)
AGE = Column(
    "Age",
    lambda obj, now: since(at(obj, "metadata.creationTimestamp"), now),
    description="Cluster time since its creation",
)
CREATED = Column("Created At", lambda obj, _: at(obj, "metadata.creationTimestamp") or UNKNOWN, type="date")


def containers(path: str) -> Columns:
    """The wide columns of a workload's pod template at a path."""
    return (
        wide("Containers", lambda obj, _: joined(c.get("name", "") for c in at(obj, f"{path}.containers") or ())),
        wide("Images", lambda obj, _: joined(c.get("image", "") for c in at(obj, f"{path}.containers") or ())),
    )


def _pair(big: int, big_unit: str, small: int, small_unit: str) -> str:
    return f"{big}{big_unit}{small}{small_unit}" if small else f"{big}{big_unit}"
