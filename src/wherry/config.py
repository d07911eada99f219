"""Settings, from the nearest place that has them: flag, WHERRY_* variable, the user's file, the system's file, default.

Files are YAML whose keys are the flags of `wherry up` without dashes, with a drop-in directory beside each:
`/etc/wherry/config.yaml` and `config.yaml.d/*.yaml`, `$XDG_CONFIG_HOME/wherry/...` for the user. An unknown key is an
error that names the nearest known one. Nothing here reads a file before somebody asks.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wherry.errors import Invalid


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting: its type's reader, its default, the values it may have (empty: any)."""

    name: str
    default: str | int | None
    help: str
    choices: Sequence[str] = ()

    def read(self, text: object, origin: str) -> str | int:
        """Read a value. Raises Invalid naming the setting, the value and where it stood."""
        if isinstance(self.default, int) or self.name in ("nodes",):
            if isinstance(text, bool) or not str(text).isdigit():
                raise Invalid(f"{origin}: {self.name} {text!r}: not a whole number")
            return int(str(text))
        value = str(text)
        if self.choices and value not in self.choices:
            raise Invalid(f"{origin}: {self.name} {value!r}: one of {', '.join(self.choices)}")
        return value


SETTINGS: Sequence[Setting] = (
    Setting("root", "/var/lib/wherry", "directory of the instance's state"),
    Setting("nodes", None, "real nodes"),
    Setting("simulated", 0, "simulated nodes"),
    Setting("profile", "default", "times of failure detection", ("default", "fast-failover")),
    Setting("durability", "full", "what an answered write survives", ("full", "test")),
    Setting("timeout", 60, "seconds to wait for readiness"),
    Setting("publish-address", "0.0.0.0", "where ports are published that name no address of their own"),
    Setting("userns-remap", "", "whose users containers' users are: NAME of /etc/subuid, BASE:SIZE, auto:..."),
)


@dataclass(frozen=True, slots=True)
class Value:
    """A value and where it comes from: `flag`, `WHERRY_ROOT`, a file's path, or `default`."""

    value: str | int | None
    origin: str


def places(environment: Mapping[str, str], etc: str = "/etc") -> Sequence[Path]:
    """The files that may hold settings, the nearest first."""
    home = environment.get("XDG_CONFIG_HOME") or f"{environment.get('HOME', '/root')}/.config"
    result: list[Path] = []
    for base in (Path(home) / "wherry", Path(etc) / "wherry"):
        result += sorted((base / "config.yaml.d").glob("*.yaml"), reverse=True)
        result.append(base / "config.yaml")
    return result


def load(
    flags: Mapping[str, Any], environment: Mapping[str, str] | None = None, files: Sequence[Path] | None = None
) -> dict[str, Value]:
    """Find every setting's value. Raises Invalid for a file that cannot be read, an unknown key, a wrong value."""
    environment = os.environ if environment is None else environment
    files = places(environment) if files is None else files
    documents = [(path, _document(path)) for path in files if path.exists()]
    return {setting.name: _find(setting, flags, environment, documents) for setting in SETTINGS}


def _find(
    setting: Setting,
    flags: Mapping[str, Any],
    environment: Mapping[str, str],
    documents: Sequence[tuple[Path, Mapping[str, object]]],
) -> Value:
    if flags.get(setting.name) is not None:
        return Value(setting.read(flags[setting.name], "flag"), "flag")
    variable = "WHERRY_" + setting.name.upper().replace("-", "_")
    if environment.get(variable):
        return Value(setting.read(environment[variable], variable), variable)
    for path, document in documents:
        if setting.name in document:
            return Value(setting.read(document[setting.name], str(path)), str(path))
    return Value(setting.default, "default")


def _document(path: Path) -> Mapping[str, object]:
    import yaml

    try:
        found = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise Invalid(f"{path}: {error}") from None
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise Invalid(f"{path}: not a mapping of settings")
    known = [setting.name for setting in SETTINGS]
    for key in found:
        if key not in known:
            from difflib import get_close_matches

            close = get_close_matches(str(key), known, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else f"; there are {', '.join(known)}"
            raise Invalid(f"{path}: unknown setting {key!r}{hint}")
    return {str(key): value for key, value in found.items()}
