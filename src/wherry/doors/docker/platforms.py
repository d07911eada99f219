"""Platforms as Docker's clients write them: `linux/arm64`, or since API 1.46 a JSON object."""

from typing import Any

import msgspec

from wherry.content.oci import Platform, parse_platform
from wherry.errors import BadRequest


def platform_text(text: str | None) -> str:
    """Read a `platform` parameter in either form; "" for none. Raises BadRequest, Invalid."""
    if not text:
        return ""
    if not text.lstrip().startswith("{"):
        return "" if text.strip("/").lower() == "linux" else str(parse_platform(text.lower().strip("/")))
    try:
        said = msgspec.json.decode(text, type=dict[str, Any])
    except msgspec.MsgspecError as error:
        raise BadRequest(f"failed to parse platform: {error}") from None
    parts = [str(said.get(name) or "") for name in ("os", "architecture", "variant")]
    if not parts[0] or not parts[1]:
        raise BadRequest("failed to parse platform: both OS and Architecture must be provided")
    return str(parse_platform("/".join(part for part in parts if part)))


def shown(platform: Platform) -> dict[str, Any]:
    """A platform as OCI writes it."""
    return msgspec.to_builtins(platform)
