"""The documents of an image: manifests, indexes, configs. Pure.

OCI's and Docker's media types are read alike; what we write ourselves is OCI. Source: OCI image-spec 1.1; Docker
"Image Manifest Version 2, Schema 2".
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import msgspec

from wherry.content.digests import parse_digest
from wherry.content.protocol import Digest
from wherry.errors import Cause, Invalid, NotFound, Unsupported

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
OCI_LAYER_GZIP = f"{OCI_LAYER}+gzip"
OCI_LAYER_ZSTD = f"{OCI_LAYER}+zstd"
OCI_EMPTY = "application/vnd.oci.empty.v1+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER_GZIP = "application/vnd.docker.image.rootfs.diff.tar.gzip"
DOCKER_SCHEMA1 = (
    "application/vnd.docker.distribution.manifest.v1+prettyjws",
    "application/vnd.docker.distribution.manifest.v1+json",
)

MANIFEST_TYPES = (OCI_MANIFEST, DOCKER_MANIFEST)
INDEX_TYPES = (OCI_INDEX, DOCKER_INDEX)
DOCUMENT_TYPES = (*MANIFEST_TYPES, *INDEX_TYPES)
CONFIG_TYPES = (OCI_CONFIG, DOCKER_CONFIG)

DOCUMENT_MAX_BYTES = 4 * 1024 * 1024
"""The largest manifest we take: the limit that the distribution-spec asks of registries."""

_ARCHITECTURES = {
    "x86_64": "amd64",
    "aarch64": "arm64",
    "armv7l": "arm",
    "i686": "386",
    "ppc64le": "ppc64le",
    "s390x": "s390x",
    "riscv64": "riscv64",
}


class Platform(
    msgspec.Struct, frozen=True, omit_defaults=True, rename={"os_version": "os.version", "os_features": "os.features"}
):
    """What machine an image is for."""

    architecture: str = ""
    os: str = ""
    variant: str = ""
    os_version: str = ""
    os_features: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)


class Descriptor(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel"):
    """One document's pointer to another blob."""

    media_type: str
    digest: Digest
    size: int
    platform: Platform | None = None
    annotations: dict[str, str] | None = None
    artifact_type: str = ""
    urls: tuple[str, ...] | None = None
    data: str | None = None


class Manifest(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel"):
    """One image for one platform."""

    config: Descriptor
    layers: tuple[Descriptor, ...]
    schema_version: int = msgspec.field(default=0)
    media_type: str = ""
    artifact_type: str = ""
    subject: Descriptor | None = None
    annotations: dict[str, str] | None = None

    @property
    def children(self) -> Sequence[Descriptor]:
        """All that it refers to, the config first."""
        return (self.config, *self.layers)


class Index(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel"):
    """One image for several platforms."""

    manifests: tuple[Descriptor, ...]
    schema_version: int = msgspec.field(default=0)
    media_type: str = ""
    artifact_type: str = ""
    subject: Descriptor | None = None
    annotations: dict[str, str] | None = None

    @property
    def children(self) -> Sequence[Descriptor]:
        """The manifests of its platforms."""
        return self.manifests


Document = Manifest | Index
T = TypeVar("T")


class RootFs(msgspec.Struct, frozen=True):
    """The layers as uncompressed tars, lowest first."""

    type: str = "layers"
    diff_ids: tuple[str, ...] = ()


class Config(msgspec.Struct, frozen=True):
    """What we read of an image's config. The whole document stays a dict wherever it is passed on."""

    architecture: str = ""
    os: str = "linux"
    variant: str = ""
    created: str | None = None
    config: dict[str, Any] | None = None
    rootfs: RootFs = RootFs()
    history: tuple[dict[str, Any], ...] | None = None

    @property
    def platform(self) -> Platform:
        """What it runs on."""
        return Platform(self.architecture, self.os, self.variant)


class _Head(msgspec.Struct, rename="camel"):
    schema_version: int = 0
    media_type: str = ""
    manifests: Any = None


def document_type(data: bytes, media_type: str = "") -> str:
    """Say which of DOCUMENT_TYPES the bytes are, by `media_type`, their own word, or their shape. Raises Invalid."""
    head = _decode(data, _Head, "manifest")
    own = head.media_type
    if media_type in DOCKER_SCHEMA1 or head.schema_version == 1:
        raise Unsupported("manifest schema 1 is not supported: push the image with schema 2 or OCI")
    if own and media_type and own != media_type:
        raise _invalid(
            "mediaType", f"manifest says mediaType {own!r}, the request Content-Type {media_type!r}: send the same"
        )
    kind = own or media_type or (OCI_INDEX if head.manifests is not None else OCI_MANIFEST)
    if kind not in DOCUMENT_TYPES:
        raise _invalid("mediaType", f"manifest media type {kind!r}: we take {', '.join(DOCUMENT_TYPES)}")
    if head.schema_version != 2:
        raise _invalid("schemaVersion", f"manifest schemaVersion is {head.schema_version}: it must be 2")
    return kind


def parse_document(data: bytes, media_type: str = "") -> Document:
    """Read and check a manifest or an index. Raises Invalid with the field, Unsupported for schema 1."""
    kind = document_type(data, media_type)
    document: Document
    document = _decode(data, Index if kind in INDEX_TYPES else Manifest, "manifest")
    for place, child in _descriptors(document):
        parse_digest(child.digest, f"{place}.digest")
        if child.size < 0:
            raise _invalid(f"{place}.size", f"manifest {place}.size is {child.size}: a size is not negative")
        if not child.media_type:
            raise _invalid(f"{place}.mediaType", f"manifest {place}.mediaType is empty")
    return msgspec.structs.replace(document, media_type=kind)


def parse_config(data: bytes) -> Config:
    """Read an image config. Raises Invalid with the field."""
    config = _decode(data, Config, "image config")
    for index, diff_id in enumerate(config.rootfs.diff_ids):
        parse_digest(diff_id, f"rootfs.diff_ids[{index}]")
    return config


def references(data: bytes) -> Sequence[Digest]:
    """Say which blobs a manifest or an index refers to; nothing for any other bytes. Never raises."""
    if data[:1] not in (b"{", b" ", b"\n", b"\t", b"\r") or len(data) > DOCUMENT_MAX_BYTES:
        return ()
    try:
        return tuple(dict.fromkeys(child.digest for child in parse_document(data).children))
    except (Invalid, Unsupported):
        return ()


def this_platform() -> Platform:
    """The platform of this machine, in the words of Go that images use."""
    machine = os.uname().machine
    return Platform(_ARCHITECTURES.get(machine, machine), "linux", "v7" if machine == "armv7l" else "")


def parse_platform(text: str) -> Platform:
    """Read `linux/arm64`, `linux/arm/v7` or `arm64`. Raises Invalid."""
    parts = text.split("/")
    if len(parts) > 3 or not all(parts):
        raise _invalid(
            "platform", f"platform {text!r}: write os/architecture or os/architecture/variant, as linux/arm64"
        )
    if len(parts) == 1:
        parts = ["linux", parts[0]]
    architecture = _ARCHITECTURES.get(parts[1], parts[1])
    return Platform(architecture, parts[0], parts[2] if len(parts) > 2 else "")


def fits(has: Platform, wanted: Platform) -> bool:
    """Say whether an image for one platform is what was asked for; without a variant any will do."""
    if (has.os, has.architecture) != (wanted.os, wanted.architecture):
        return False
    return not wanted.variant or _variant_rank(has, wanted) < 2


def choose(index: Index, wanted: Platform) -> Descriptor:
    """Pick the manifest for a platform: the exact variant first, then any. Raises NotFound that lists what there is."""
    fitting = [
        child
        for child in index.manifests
        if child.platform and (child.platform.os, child.platform.architecture) == (wanted.os, wanted.architecture)
    ]
    best = sorted(fitting, key=lambda child: _variant_rank(child.platform, wanted))
    if best and (not wanted.variant or _variant_rank(best[0].platform, wanted) < 2):
        return best[0]
    offered = sorted(
        {str(child.platform) for child in index.manifests if child.platform and child.platform.os != "unknown"}
    )
    raise NotFound(
        f"no matching manifest for {wanted} in the manifest list entries: it has {', '.join(offered) or 'nothing'}"
    )


def encode(document: msgspec.Struct | Mapping[str, Any]) -> bytes:
    """Write a document: fixed field order, no spaces, so that the same document has the same digest."""
    return msgspec.json.encode(document)


def manifest_of(
    config: Descriptor, layers: Sequence[Descriptor], annotations: Mapping[str, str] | None = None
) -> bytes:
    """Write an OCI manifest."""
    body: dict[str, Any] = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": list(layers)}
    if annotations:
        body["annotations"] = dict(annotations)
    return msgspec.json.encode(body)


def _variant_rank(platform: Platform | None, wanted: Platform) -> int:
    variant = platform.variant if platform else ""
    if variant == wanted.variant:
        return 0
    default = {"arm64": "v8", "arm": "v7"}.get(wanted.architecture, "")
    return 1 if {variant, wanted.variant} <= {"", default} else 2


def _descriptors(document: Document) -> Sequence[tuple[str, Descriptor]]:
    subject = [("subject", document.subject)] if document.subject else []
    match document:
        case Manifest():
            return [
                ("config", document.config),
                *((f"layers[{i}]", layer) for i, layer in enumerate(document.layers)),
                *subject,
            ]
        case Index():
            return [*((f"manifests[{i}]", child) for i, child in enumerate(document.manifests)), *subject]


def _decode(data: bytes, kind: type[T], what: str) -> T:
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.ValidationError as error:
        reason, _, path = str(error).partition(" - at `$")
        field = path.rstrip("`").lstrip(".")
        raise _invalid(field or what, f"{what}: {field + ': ' if field else ''}{reason}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _invalid(what, f"{what} is not JSON: {error}") from None


def _invalid(field: str, message: str) -> Invalid:
    return Invalid(message, causes=[Cause(field, "Invalid", message)])
