"""Docker's filters: `{"label": ["a=b"]}` or `{"label": {"a=b": true}}`, and what each means for a container or an image."""

import re
from collections.abc import Mapping, Sequence

import msgspec

from wherry.doors.docker.answers import familiar, state_word
from wherry.doors.docker.endpoints import exposed_map, networks_map, read_port
from wherry.engine.types import Container, EngineEvent
from wherry.errors import BadRequest

Filters = Mapping[str, Sequence[str]]
TRUTHS = ("dangling", "is-task", "all")
"""Filters whose values are true or false."""


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
    found = {
        name: [each for each, on in values.items() if on] if isinstance(values, dict) else values
        for name, values in raw.items()
    }
    return {
        name: [_truth(name, each) for each in values] if name in TRUTHS else values for name, values in found.items()
    }


def _truth(name: str, text: str) -> str:
    """Write a truth value in one way. Raises BadRequest for what is none."""
    if text in ("1", "true", "True", "TRUE", "t", "T"):
        return "true"
    if text in ("0", "false", "False", "FALSE", "f", "F"):
        return "false"
    raise BadRequest(f"invalid filter '{name}={text}'")


def has_labels(labels: Mapping[str, str], wanted: Sequence[str]) -> bool:
    """Whether all `KEY` or `KEY=VALUE` hold."""
    for each in wanted:
        key, equals, value = each.partition("=")
        if key not in labels or (equals and labels[key] != value):
            return False
    return True


CONTAINER = (
    "health", "volume", "id", "name", "label", "status", "ancestor", "exited", "network", "publish", "expose", "before",
    "since", "is-task", "isolation",
)  # fmt: skip


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
        "is-task": lambda values: any(value.lower() in ("0", "false") for value in values),
        "exited": lambda values: end is not None and str(end.code) in values,
        "network": lambda values: any(
            each == name or str(place["NetworkID"]).startswith(each)
            for name, place in networks_map(container).items()
            for each in values
        ),
        "publish": lambda values: has_port([(port.host_port, port.protocol) for port in container.ports], values),
        "expose": lambda values: has_port([read_port(each) for each in exposed_map(container) or ()], values),
    }
    return all(tests[name](values) for name, values in filters.items() if values and name in tests)


def has_port(ports: Sequence[tuple[int, str]], wanted: Sequence[str]) -> bool:
    """Whether one of `80`, `80/udp`, `8000-8010/tcp` is among the ports. Raises BadRequest."""
    for text in wanted:
        numbers, _, protocol = text.partition("/")
        first, _, last = numbers.partition("-")
        if any(int(first) <= port <= int(last or first) and kind == (protocol or "tcp") for port, kind in ports):
            return True
    return False


STATUSES = ("created", "restarting", "running", "removing", "paused", "exited", "dead")


HEALTHS = ("none", "starting", "healthy", "unhealthy")


def check_container(filters: Filters) -> None:
    """Raise BadRequest for a value that nothing can have."""
    for value in filters.get("status", ()):
        if value not in STATUSES:
            raise BadRequest(f"invalid filter 'status={value}': one of {', '.join(STATUSES)}")
    for value in filters.get("health", ()):
        if value not in HEALTHS:
            raise BadRequest(f"Unrecognised filter value for health: {value}")
    for value in filters.get("exited", ()):
        if not re.fullmatch(r"-?\d+", value, re.ASCII):
            raise BadRequest(f"invalid filter 'exited={value}': not a number")
    for value in filters.get("is-task", ()):
        if value.lower() not in ("0", "1", "true", "false"):
            raise BadRequest(f"invalid filter 'is-task={value}'")
    for name in ("publish", "expose"):
        for text in filters.get(name, ()):
            numbers, _, protocol = text.partition("/")
            found = re.fullmatch(r"(\d{1,5})(?:-(\d{1,5}))?", numbers, re.ASCII)
            if (
                found is None
                or protocol not in ("", "tcp", "udp", "sctp")
                or max(int(n or 0) for n in found.groups()) > 65535
            ):
                raise BadRequest(f"error while looking up for {name} {text}: no port or range of ports")


def _name_matches(pattern: str, name: str) -> bool:
    """Docker takes a regular expression, with or without the leading slash; what is none is taken literally."""
    try:
        return bool(re.search(pattern, name) or re.search(pattern, f"/{name}"))
    except re.error:
        return pattern in name


EVENT = (
    "type", "event", "container", "image", "label", "volume", "network", "daemon", "scope", "plugin", "node", "service",
    "secret", "config",
)  # fmt: skip


def matches_event(event: EngineEvent, filters: Filters) -> bool:
    """Whether an event passes; nothing here is of a plugin, node, service, secret or config."""
    said = event.attributes

    def names(kind: str, values: Sequence[str]) -> bool:
        """Whether it is about one of the `kind` that has an id that begins so, or this name."""
        return event.kind == kind and any(event.id.startswith(each) or said.get("name") == each for each in values)

    tests = {
        "type": lambda values: event.kind in values,
        "event": lambda values: event.action in values or event.action.partition(":")[0] in values,
        "volume": lambda values: names("volume", values),
        "network": lambda values: names("network", values),
        "daemon": lambda values: names("daemon", values),
        "scope": lambda values: "local" in values,
        "container": lambda values: names("container", values),
        "image": lambda values: _of_image(event, values),
        "label": lambda values: has_labels(said, values),
    }
    return all(name in tests and tests[name](values) for name, values in filters.items())


def _of_image(event: EngineEvent, values: Sequence[str]) -> bool:
    """Whether an event is of one of the images, or of a container made from one; a name without a tag means any tag."""
    said = event.attributes
    names = {familiar(said.get("image", "")) if event.kind == "container" else familiar(said.get("name", ""))}
    if event.kind == "image":
        names |= {event.id, event.id.removeprefix("sha256:")}
    elif event.kind != "container":
        return False
    names |= {name.rpartition(":")[0] for name in names if ":" in name and "/" not in name.rpartition(":")[2]}
    return bool((names - {""}) & {familiar(value) for value in values})
