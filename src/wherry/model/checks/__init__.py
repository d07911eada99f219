"""What an object must keep to beyond its types: by hand, with upstream's sentences. It changes nothing."""

from collections.abc import Callable, Mapping
from typing import Any

from wherry.errors import Cause
from wherry.model.kinds import Kind

Check = Callable[[dict[str, Any], dict[str, Any] | None], list[Cause]]
TABLE: Mapping[Kind, Check] = {}
