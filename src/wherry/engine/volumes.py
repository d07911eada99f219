"""Named volumes: directories that outlive containers."""

import re
from pathlib import Path

from wherry.engine.paths import Paths
from wherry.errors import Invalid

_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,254}")


def path_of(paths: Paths, name: str) -> Path:
    """Return the directory of a volume, made on first use. Raises Invalid for a name that cannot be one."""
    if _NAME.fullmatch(name) is None:
        raise Invalid(f"volume {name!r}: letters, digits, '_', '.' and '-', beginning with a letter or digit")
    directory = paths.volumes / name / "_data"
    directory.mkdir(mode=0o755, parents=True, exist_ok=True)
    return directory
