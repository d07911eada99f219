"""Images in the shapes of Docker's API, as each version of it has them."""

from collections.abc import Mapping, Sequence
from typing import Any

from wherry.clock import parse_rfc3339
from wherry.doors.docker.answers import ZERO_TIME, Json, familiar
from wherry.engine.types import Image, ImageManifest

Version = tuple[int, int]
_CONFIG: Json = {
    "Hostname": "", "Domainname": "", "User": "", "AttachStdin": False, "AttachStdout": False, "AttachStderr": False,
    "Tty": False, "OpenStdin": False, "StdinOnce": False, "Env": None, "Cmd": None, "Image": "", "Volumes": None,
    "WorkingDir": "", "Entrypoint": None, "OnBuild": None, "Labels": None,
}  # fmt: skip
"""What a configuration has in inspect before API 1.50, whatever the image says."""


def tags_of(image: Image) -> list[str]:
    """RepoTags."""
    return [familiar(name) for name in image.names if "@" not in name]


def digests_of(image: Image) -> list[str]:
    """RepoDigests: of each repository that the image is named after."""
    return [familiar(name) for name in image.digests]


def descriptor(image: Image, media_type: str, size_bytes: int) -> Json:
    """What the image's names hold."""
    return {"mediaType": media_type, "digest": image.root or image.digest, "size": size_bytes}


def summary(
    image: Image,
    version: Version,
    *,
    containers: int = -1,
    shared_bytes: int = -1,
    described: Json | None = None,
    manifests: Sequence[Json] | None = None,
) -> Json:
    """One entry of `GET /images/json`."""
    tags, digests = tags_of(image), digests_of(image)
    if not tags and not digests and version < (1, 43):
        tags, digests = ["<none>:<none>"], ["<none>@<none>"]
    return {
        "Id": image.id,
        "ParentId": "",
        "RepoTags": tags,
        "RepoDigests": digests,
        "Created": int(image.created),
        "Size": image.size_bytes,
        **({"VirtualSize": image.size_bytes} if version < (1, 44) else {}),
        "SharedSize": shared_bytes,
        "Labels": (image.config.get("config") or {}).get("Labels") or None,
        "Containers": containers,
        **({"Descriptor": described} if described and version >= (1, 48) else {}),
        **({"Manifests": list(manifests)} if manifests is not None else {}),
    }


def inspect(
    image: Image, version: Version, *, described: Json | None = None, manifests: Sequence[Json] | None = None
) -> Json:
    """`GET /images/NAME/json`."""
    document = image.config
    said: Mapping[str, Any] = document.get("config") or {}
    config = {**_CONFIG, **said} if version < (1, 50) else dict(said)
    last: Mapping[str, Any] = (document.get("history") or [{}])[-1]
    created = str(document.get("created") or "")
    return {
        "Id": image.id,
        "RepoTags": tags_of(image),
        "RepoDigests": digests_of(image),
        "Parent": "",
        "Comment": str(last.get("comment") or ""),
        **({"Created": created or ZERO_TIME} if created or version < (1, 44) else {}),
        # Gone from Docker's API since 1.45. docker-compose 1.29 asks by the newest version, and fails without it.
        "Container": "",
        "ContainerConfig": config,
        "DockerVersion": str(document.get("docker_version") or ""),
        "Author": str(document.get("author") or ""),
        "Config": config,
        "Architecture": document.get("architecture") or "amd64",
        **({"Variant": document["variant"]} if document.get("variant") else {}),
        "Os": document.get("os") or "linux",
        **({"OsVersion": document["os.version"]} if document.get("os.version") else {}),
        "Size": image.size_bytes,
        **({"VirtualSize": image.size_bytes} if version < (1, 44) else {}),
        "GraphDriver": {"Name": "overlay2", "Data": None},
        "RootFS": {"Type": "layers", "Layers": (document.get("rootfs") or {}).get("diff_ids") or []},
        "Metadata": {"LastTagTime": ZERO_TIME},
        **({"Descriptor": described} if described and version >= (1, 48) else {}),
        **({"Manifests": list(manifests)} if manifests is not None else {}),
    }


def history(image: Image) -> Sequence[Json]:
    """`GET /images/NAME/history`, newest first; the size of a step is that of the files in its layer."""
    entries: list[Mapping[str, Any]] = list(image.config.get("history") or ())
    sizes = list(image.layer_bytes)
    shown: list[Json] = []
    for entry in entries:
        size = sizes.pop(0) if sizes and not entry.get("empty_layer") else 0
        shown.append(
            {
                "Id": "<missing>",
                "Created": _seconds(str(entry.get("created") or "")),
                "CreatedBy": str(entry.get("created_by") or ""),
                "Tags": None,
                "Size": size,
                "Comment": str(entry.get("comment") or ""),
            }
        )
    if shown:
        shown[-1] |= {"Id": image.id, "Tags": tags_of(image) or None}
    return shown[::-1]


def manifest_summary(manifest: ImageManifest, users: Mapping[str, Sequence[str]]) -> Json:
    """One entry of Manifests. `users`: the containers of each image id."""
    named = {"platform": dict(manifest.platform)} if manifest.platform else {}
    shown: Json = {
        "ID": manifest.digest,
        "Descriptor": {
            "mediaType": manifest.media_type, "digest": manifest.digest, "size": manifest.size_bytes, **named,
        },
        "Available": manifest.available,
        "Size": {"Content": manifest.content_bytes, "Total": manifest.content_bytes + manifest.unpacked_bytes},
        "Kind": manifest.kind,
    }  # fmt: skip
    if manifest.kind == "attestation":
        shown["AttestationData"] = {"For": manifest.subject}
    else:
        shown["ImageData"] = {
            "Platform": dict(manifest.platform),
            "Containers": list(users.get(manifest.image_id, ())) if manifest.image_id else [],
            "Size": {"Unpacked": manifest.unpacked_bytes},
        }
    return shown


def _seconds(text: str) -> int:
    try:
        return int(parse_rfc3339(text)) if text else 0
    except ValueError:
        return 0
