"""Names of containers in logs: Docker's templates for `--log-opt tag=`. Pure. Source: Docker, "Customize log driver output"."""

import re
from collections.abc import Mapping, Sequence

DEFAULT = "{{.ID}}"
FIELDS = (".ID", ".FullID", ".Name", ".FullName", ".ImageID", ".ImageFullID", ".ImageName", ".DaemonName", ".Command")
_PLACE = re.compile(r"\{\{\s*(.*?)\s*\}\}")


def places(template: str) -> Sequence[str]:
    """List what a template wants filled in, such as `.Name`."""
    return _PLACE.findall(template)


def write(template: str, *, id: str, name: str, image_id: str, image: str, argv: Sequence[str]) -> str:
    """Fill in a template; what is not among FIELDS becomes nothing."""
    values: Mapping[str, str] = {
        ".ID": id[:12], ".FullID": id, ".Name": name, ".FullName": f"/{name}", ".ImageID": image_id[:12],
        ".ImageFullID": image_id, ".ImageName": image, ".DaemonName": "docker", ".Command": " ".join(argv),
    }  # fmt: skip
    return _PLACE.sub(lambda found: values.get(found[1], ""), template)
