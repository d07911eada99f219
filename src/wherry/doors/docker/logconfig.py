"""Log drivers and their options, as `docker run --log-driver --log-opt` names them. Pure.

`json-file` and `local` are one file here, in the format that log collectors call `cri`; what differs are their defaults,
and what Docker lets people write. Source: Docker, "Configure logging drivers", and a dockerd 20.10.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote_plus

from wherry.engine import tags
from wherry.engine.types import Container
from wherry.errors import BadRequest, Unsupported

Json = Mapping[str, Any]

DRIVERS = ("json-file", "local", "journald", "none")
KNOWN_ELSEWHERE = ("syslog", "gelf", "fluentd", "awslogs", "splunk", "gcplogs", "etwlogs", "logentries")
_ANY = ("mode", "max-buffer-size")
_FILE = ("max-size", "max-file", "compress")
_INFO = ("labels", "labels-regex", "env", "env-regex", "tag")
OPTIONS: Mapping[str, Sequence[str]] = {
    "json-file": (*_FILE, *_INFO),
    "local": _FILE,
    "journald": ("tag",),
    "none": (),
}
FAILED = "failed to initialize logging driver: "
_SIZE = re.compile(r"(\d+)(?:\.(\d+))? ?([kKmMgGtTpP]?)(?:i?[bB])?", re.ASCII)
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5}
_FILES = {"json-file": 1, "local": 5}
_BYTES = {"json-file": 10 << 20, "local": 20 << 20}
"""What holds where only the number of files is said; without either it is what ContainerSpec has."""


def read_log(config: Json) -> dict[str, Any]:
    """Read `LogConfig` as fields of a ContainerSpec. Raises Unsupported, BadRequest, in Docker's words."""
    driver = str(config.get("Type") or "json-file")
    if driver in KNOWN_ELSEWHERE:
        raise Unsupported(f"{FAILED}log driver '{driver}' is not supported by wherry: use {', '.join(DRIVERS)}")
    if driver not in DRIVERS:
        raise BadRequest(f'error looking up logging plugin {driver}: plugin "{driver}" not found')
    options = config.get("Config") or {}
    if not isinstance(options, dict):
        raise BadRequest("HostConfig.LogConfig.Config: an object is wanted")
    words = {str(key): str(value) for key, value in options.items()}
    _check_names(driver, words)
    _check_mode(driver, words)
    made: dict[str, Any] = {
        "log_driver": "none" if driver == "none" else "cri",
        "log_type": driver,
        "log_options": words,
    }
    if "max-size" in words or "max-file" in words:
        made["log_max_bytes"] = _max_size(words["max-size"]) if "max-size" in words else _BYTES[driver]
        made["log_max_files"] = _max_file(words["max-file"]) if "max-file" in words else _FILES[driver]
    if driver in ("json-file", "local"):
        made["log_compress"] = _compress(driver, words, made)
    if driver == "journald":
        made["log_journal"] = True
    for place in tags.places(words.get("tag", "")):
        if place not in tags.FIELDS:
            name = place.removeprefix(".")
            raise BadRequest(
                f'{FAILED}template: log-tag:1:2: executing "log-tag" at <{place}>: can\'t evaluate field {name} in type '
                "*logger.Info"
            )
    for name in ("labels-regex", "env-regex"):
        if name in words:
            _pattern(words[name])
    return made


def details(container: Container, image: Mapping[str, Any]) -> str:
    """Write what `docker logs --details` puts before each line: what the options chose, `KEY=VALUE,...`, by key."""
    words = container.spec.log_options
    labels = {**(image.get("Labels") or {}), **container.spec.labels}
    pairs = (each.partition("=") for each in (*(image.get("Env") or ()), *container.spec.env))
    env = {name: value for name, equals, value in pairs if equals}
    found: dict[str, str] = {}
    for kind, values in (("labels", labels), ("env", env)):
        for name in (words.get(kind) or "").split(","):
            if name in values:
                found[name] = values[name]
        if pattern := words.get(f"{kind}-regex"):
            found |= {name: value for name, value in values.items() if _pattern(pattern).search(name)}
    if tag := words.get("tag"):
        found["tag"] = tags.write(
            tag, id=container.id, name=container.name, image_id=container.image_id, image=container.spec.image,
            argv=container.argv,
        )  # fmt: skip
    return ",".join(f"{quote_plus(name)}={quote_plus(value)}" for name, value in sorted(found.items()))


def _check_names(driver: str, words: Mapping[str, str]) -> None:
    for name in words:
        if name in OPTIONS[driver] or (name in _ANY and driver != "none"):
            continue
        if driver == "journald" and name in _INFO:
            raise Unsupported(f"{FAILED}log opt '{name}' of journald is not supported by wherry: tag is")
        kind = f"log driver {driver}" if driver == "local" else f"{driver} log driver"
        raise BadRequest(f"unknown log opt '{name}' for {kind}")


def _check_mode(driver: str, words: Mapping[str, str]) -> None:
    """A process never waits for our log files longer than for the disk's cache, so that both modes are one there."""
    mode = words.get("mode", "blocking")
    if mode not in ("blocking", "non-blocking", ""):
        raise BadRequest(f"logger: logging mode not supported: {mode}")
    if mode == "non-blocking" and driver == "journald":
        raise Unsupported("logger: mode=non-blocking is not supported by wherry for journald")
    if "max-buffer-size" in words:
        if mode != "non-blocking":
            raise BadRequest("logger: max-buffer-size option is only supported with 'mode=non-blocking'")
        if read_size(words["max-buffer-size"]) is None:
            raise BadRequest(f"error parsing option max-buffer-size: invalid size: '{words['max-buffer-size']}'")


def _max_size(text: str) -> int:
    if text == "-1":
        return 0
    size = read_size(text)
    if size is None:
        raise BadRequest(f"{FAILED}invalid size: '{text}'")
    if size <= 0:
        raise BadRequest(f"{FAILED}max-size must be a positive number")
    return size


def _max_file(text: str) -> int:
    if not re.fullmatch(r"-?\d{1,9}", text, re.ASCII):
        raise BadRequest(f'{FAILED}strconv.Atoi: parsing "{text}": invalid syntax')
    if int(text) < 1:
        raise BadRequest(f"{FAILED}max-file cannot be less than 1")
    return int(text)


def _compress(driver: str, words: Mapping[str, str], made: Mapping[str, Any]) -> bool:
    text = words.get("compress", "true" if driver == "local" else "false")
    if text not in ("1", "t", "T", "true", "TRUE", "True", "0", "f", "F", "false", "FALSE", "False"):
        raise BadRequest(f'{FAILED}strconv.ParseBool: parsing "{text}": invalid syntax')
    wanted = text[0] in "1tT"
    alone = made.get("log_max_files", 5) < 2 or made.get("log_max_bytes", 1) <= 0
    if wanted and alone and "compress" in words:
        raise BadRequest(f"{FAILED}compress cannot be true when max-file is less than 2 or max-size is not set")
    return wanted and not alone


def read_size(text: str) -> int | None:
    """Read `10m`, `1.5g`, `512`: bytes, in powers of 1024; None for other text. Source: Docker, go-units."""
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        return None
    whole, fraction, unit = found.groups()
    return int(float(f"{whole}.{fraction or 0}") * 1024 ** _POWERS[unit.lower()])


def _pattern(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        raise BadRequest(f"{FAILED}error parsing regexp: {error}") from None
