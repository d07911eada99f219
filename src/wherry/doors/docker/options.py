"""Options of a new container beyond its command, mounts and network: ulimits, devices, health checks, logs."""

from collections.abc import Mapping, Sequence
from typing import Any

from wherry.engine.types import DeviceMap, Health, Ulimit
from wherry.errors import BadRequest, Unsupported

Json = Mapping[str, Any]

IO_KINDS: Mapping[str, str] = {
    "BlkioDeviceReadBps": "ReadBps", "BlkioDeviceWriteBps": "WriteBps", "BlkioDeviceReadIOps": "ReadIOPS",
    "BlkioDeviceWriteIOps": "WriteIOPS",
}  # fmt: skip
LOG_DRIVERS = ("json-file", "local", "none")
_SIZES = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}


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


def read_io_rates(host: Json) -> Mapping[str, Sequence[tuple[str, int]]]:
    """Read the limits of reading and writing by device. Raises BadRequest."""
    found: dict[str, Sequence[tuple[str, int]]] = {}
    for field, kind in IO_KINDS.items():
        try:
            rates = [(str(each["Path"]), int(each["Rate"])) for each in host.get(field) or ()]
        except (KeyError, TypeError, ValueError):
            raise BadRequest(f"HostConfig.{field}: each needs Path and Rate") from None
        if rates:
            found[kind] = rates
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


def read_log(config: Json) -> dict[str, Any]:
    """Read `LogConfig` as fields of a ContainerSpec. Raises Unsupported, BadRequest."""
    driver = str(config.get("Type") or "json-file")
    if driver not in LOG_DRIVERS:
        raise Unsupported(f"HostConfig.LogConfig.Type {driver!r}: {', '.join(LOG_DRIVERS)} are supported")
    options = config.get("Config") or {}
    if not isinstance(options, dict):
        raise BadRequest("HostConfig.LogConfig.Config: an object is wanted")
    words = {str(key): str(value) for key, value in options.items()}
    made: dict[str, Any] = {
        "log_driver": "none" if driver == "none" else "cri",
        "log_type": driver,
        "log_options": words,
    }
    for name, value in words.items():
        if driver == "none":
            raise BadRequest(f"unknown log opt '{name}' for none log driver")
        if name == "max-size":
            made["log_max_bytes"] = _size(value)
        elif name == "max-file":
            if not value.isdigit() or int(value) < 1:
                raise BadRequest("max-file cannot be less than 1")
            made["log_max_files"] = int(value)
        elif (name, value) not in (("compress", "false"), ("mode", "blocking")):
            raise Unsupported(
                f"HostConfig.LogConfig.Config: option {name}={value} is not supported by wherry: max-size and max-file are"
            )
    return made


def _size(text: str) -> int:
    low = text.lower().removesuffix("b")
    number, unit = (low[:-1], low[-1]) if low[-1:] in _SIZES and low[-1:] else (low, "")
    if text == "-1":
        return 0
    if not number.isdigit() or int(number) == 0:
        raise BadRequest(f"invalid size: '{text}'")
    return int(number) * _SIZES[unit]
