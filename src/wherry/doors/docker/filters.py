"""Docker's filters: `{"label": ["a=b"]}` or `{"label": {"a=b": true}}`, and what each means for a container or an image."""

import fnmatch
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

import msgspec

from wherry.doors.docker.answers import familiar, state_word
from wherry.doors.docker.endpoints import exposed_map, networks_map, read_port
from wherry.engine.types import Container, EngineEvent, Image
from wherry.errors import BadRequest

Filters = Mapping[str, Sequence[str]]


def parse(text: str | None, known: Sequence[str]) -> Filters:
    """Read the `filters` parameter. Raises BadRequest for what is not JSON of this form, or a filter that we do not know."""
    if not text:
        return {}
    try:
        raw = msgspec.json.decode(text, type=dict[str, dict[str, bool] | list[str]])
    except (msgspec.MsgspecError, UnicodeError) as error:
        raise BadRequest(f"invalid filter: {error}") from None
    for name in raw:
        if name not in known:
            raise BadRequest(f"invalid filter '{name}'")
    return {
        name: [each for each, on in values.items() if on] if isinstance(values, dict) else values
        for name, values in raw.items()
    }


def has_labels(labels: Mapping[str, str], wanted: Sequence[str]) -> bool:
    """Whether all `KEY` or `KEY=VALUE` hold."""
    for each in wanted:
        key, equals, value = each.partition("=")
        if key not in labels or (equals and labels[key] != value):
            return False
    return True


CONTAINER = ("health", "volume", "id", "name", "label", "status", "ancestor", "exited", "network", "publish", "expose")


def matches_container(container: Container, filters: Filters, image_names: Sequence[str]) -> bool:
    """Whether a container passes."""
    end = container.exit
    tests = {
        "id": lambda values: any(container.id.startswith(each) for each in values),
        "name": lambda values: any(_name_matches(each, container.name) for each in values),
        "label": lambda values: has_labels(container.spec.labels, values),
        "status": lambda values: state_word(container) in values,
        "ancestor": lambda values: any(
            each in (container.image_id, container.spec.image)
            or container.image_id.removeprefix("sha256:").startswith(each)
            or each in image_names
            or f"{each}:latest" in image_names
            for each in values
        ),
        "health": lambda values: (container.health.status if container.health else "none") in values,
        "volume": lambda values: any(
            value in (mount.source, mount.target) for mount in container.spec.mounts for value in values
        ),
        "exited": lambda values: end is not None and str(end.code) in values,
        "network": lambda values: any(
            each == name or str(place["NetworkID"]).startswith(each)
            for name, place in networks_map(container).items()
            for each in values
        ),
        "publish": lambda values: has_port([(port.host_port, port.protocol) for port in container.ports], values),
        "expose": lambda values: has_port([read_port(each) for each in exposed_map(container) or ()], values),
    }
    return all(tests[name](values) for name, values in filters.items())


def has_port(ports: Sequence[tuple[int, str]], wanted: Sequence[str]) -> bool:
    """Whether one of `80`, `80/udp`, `8000-8010/tcp` is among the ports. Raises BadRequest."""
    for text in wanted:
        numbers, _, protocol = text.partition("/")
        first, _, last = numbers.partition("-")
        if not first.isdigit() or (last and not last.isdigit()):
            raise BadRequest(f"invalid filter: {text!r} is no port or range of ports")
        if any(int(first) <= port <= int(last or first) and kind == (protocol or "tcp") for port, kind in ports):
            return True
    return False


STATUSES = ("created", "restarting", "running", "removing", "paused", "exited", "dead")


def check_statuses(filters: Filters) -> None:
    """Raise BadRequest for a status that no container ever has."""
    for value in filters.get("status", ()):
        if value not in STATUSES:
            raise BadRequest(f"invalid filter 'status={value}': one of {', '.join(STATUSES)}")


def _name_matches(pattern: str, name: str) -> bool:
    """Docker takes a regular expression, with or without the leading slash; what is none is taken literally."""
    try:
        return bool(re.search(pattern, name) or re.search(pattern, f"/{name}"))
    except re.error:
        return pattern in name


IMAGE = ("label", "reference", "dangling")


def matches_image(image: Image, filters: Filters) -> bool:
    """Whether an image passes."""
    names = [familiar(name) for name in image.names]
    labels = (image.config.get("config") or {}).get("Labels") or {}
    for name, values in filters.items():
        if name == "label" and not has_labels(labels, values):
            return False
        if name == "dangling" and any((not names) != (value in ("true", "1")) for value in values):
            return False
        if name == "reference" and not any(
            fnmatch.fnmatchcase(each, pattern) or fnmatch.fnmatchcase(each.rpartition(":")[0], pattern)
            for each in names
            for pattern in values
        ):
            return False
    return True


EVENT = (
    "type", "event", "container", "image", "label", "volume", "network", "daemon", "scope", "plugin", "node", "service",
    "secret", "config",
)  # fmt: skip


def matches_event(event: EngineEvent, filters: Filters) -> bool:
    """Whether an event passes; nothing here is of a daemon, plugin, node, service, secret or config."""
    said = event.attributes
    tests = {
        "type": lambda values: event.kind in values,
        "event": lambda values: event.action in values or event.action.partition(":")[0] in values,
        "volume": lambda values: event.kind == "volume" and event.id in values,
        "network": lambda values: event.kind == "network" and bool({event.id, said.get("name")} & set(values)),
        "scope": lambda values: "local" in values,
        "container": lambda values: (
            event.kind == "container" and any(event.id.startswith(each) or said.get("name") == each for each in values)
        ),
        "image": lambda values: bool({familiar(said.get("image", event.id)), event.id} & set(values)),
        "label": lambda values: has_labels(said, values),
    }
    return all(name in tests and tests[name](values) for name, values in filters.items())


def names_shown(image: Image, filters: Filters) -> Image:
    """The image with only those names that a `reference` filter asks for, as Docker lists it."""
    if "reference" not in filters:
        return image
    only = {"reference": filters["reference"]}
    return replace(image, names=[name for name in image.names if matches_image(replace(image, names=[name]), only)])
