"""The build hook that puts `model/schema.bin` into a wheel; an editable install makes it by itself on first use."""

import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class SchemaHook(BuildHookInterface):  # type: ignore[type-arg]  # hatchling has no stubs for its parameter
    """Makes the schema before the wheel's files are collected."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Make it, but for an editable install."""
        if version == "editable":
            return
        sys.path.insert(0, str(Path(self.root, "src")))
        from wherry.model import build, schema

        build.build(schema.PATH)
        build_data.setdefault("artifacts", []).append("src/wherry/model/schema.bin")
