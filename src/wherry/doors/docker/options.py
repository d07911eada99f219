"""Options of a new container beyond its command, mounts and network: ulimits, devices, health checks."""

from collections.abc import Mapping, Sequence
from typing import Any

from wherry.engine.types import DeviceMap, Health, Ulimit
from wherry.errors import BadRequest

Json = Mapping[str, Any]


def read_ulimits(host: Json) -> Sequence[Ulimit]:
    """Read `Ulimits`. Raises BadRequest."""
    try:
        return [Ulimit(str(each["Name"]), int(each["Soft"]), int(each["Hard"])) for each in host.get("Ulimits") or ()]
    except (KeyError, TypeError, ValueError):
        raise BadRequest("HostConfig.Ulimits: each needs Name, Soft and Hard") from None


def read_devices(host: Json) -> Sequence[DeviceMap]:
    """Read `Devices`. Raises BadRequest."""
    found: list[DeviceMap] = []
    for each in host.get("Devices") or ():
        source = str(each.get("PathOnHost") or "")
        target = str(each.get("PathInContainer") or source)
        if not source.startswith("/") or not target.startswith("/"):
            raise BadRequest(f"HostConfig.Devices: {source!r} to {target!r}: absolute paths are wanted")
        found.append(DeviceMap(source, target, str(each.get("CgroupPermissions") or "rwm")))
    return found


def read_health(own: Json | None, image: Json | None) -> Health | None:
    """Read `Healthcheck`: the container's, field by field over the image's; None for none. Raises BadRequest."""
    own, image = own or {}, image or {}
    test = own.get("Test") or image.get("Test") or []
    if not isinstance(test, list) or not all(isinstance(word, str) for word in test):
        raise BadRequest("Healthcheck.Test: a list of strings is wanted")
    words: list[str] = [str(word) for word in test]
    if not words or words[0] == "NONE":
        return None
    if words[0] not in ("CMD", "CMD-SHELL") or len(words) < 2:
        raise BadRequest(f"Unknown healthcheck type in {words!r}: use CMD, CMD-SHELL or NONE, with a command")

    def seconds(name: str, default: float) -> float:
        value = own.get(name) or image.get(name) or 0
        if not isinstance(value, int | float) or value < 0 or 0 < value < 1_000_000:
            raise BadRequest(f"{name} in Healthcheck cannot be less than 1ms")
        return value / 1e9 or default

    retries = own.get("Retries") or image.get("Retries") or 3
    if not isinstance(retries, int) or retries < 0:
        raise BadRequest("Retries in Healthcheck cannot be negative")
    return Health(
        words,
        interval_s=seconds("Interval", 30.0),
        timeout_s=seconds("Timeout", 30.0),
        start_period_s=seconds("StartPeriod", 0.0),
        start_interval_s=seconds("StartInterval", 5.0),
        retries=retries,
    )


def show_health(health: Health) -> dict[str, Any]:
    """A health check in Docker's shape."""
    return {
        "Test": list(health.test), "Interval": int(health.interval_s * 1e9), "Timeout": int(health.timeout_s * 1e9),
        "StartPeriod": int(health.start_period_s * 1e9), "StartInterval": int(health.start_interval_s * 1e9),
        "Retries": health.retries,
    }  # fmt: skip
