"""The OCI documents of a build that is more than one image: manifests, attestations and the index over them.

Source: OCI image-spec 1.1; Docker, "Image attestation storage".
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from wherry.builder.config import Json
from wherry.content import oci
from wherry.content.inflate import compression_of
from wherry.content.oci import Descriptor, Platform
from wherry.content.protocol import Content, Digest
from wherry.errors import NotFound

IN_TOTO = "application/vnd.in-toto+json"
PREDICATE = "in-toto.io/predicate-type"
REFERENCE_TYPE, REFERENCE_DIGEST = "vnd.docker.reference.type", "vnd.docker.reference.digest"
ATTESTATION = "attestation-manifest"
_TYPES = {"gzip": oci.OCI_LAYER_GZIP, "zstd": oci.OCI_LAYER_ZSTD, "": oci.OCI_LAYER}


@dataclass(frozen=True, slots=True)
class Statement:
    """An in-toto statement about an image, without its subject."""

    predicate_type: str
    predicate: Json


async def layer_descriptor(content: Content, digest: Digest) -> Descriptor:
    """Describe a layer that is in the store. Raises NotFound."""
    blob = await content.stat(digest)
    if blob is None:
        raise NotFound(f"layer {digest}: not on this machine")
    with content.path(digest).open("rb") as file:
        kind = compression_of(file.read(16))
    return Descriptor(_TYPES[kind], digest, blob.size_bytes)


async def put_image(
    content: Content,
    config: Json,
    layers: Sequence[str],
    annotations: Mapping[str, str],
    platform: Platform,
    lease: str,
) -> Descriptor:
    """Write an image's config and manifest; return what an index says of it."""
    data = await content.put(msgspec.json.encode(config), lease=lease)
    described = [await layer_descriptor(content, Digest(layer)) for layer in layers]
    whole = oci.manifest_of(Descriptor(oci.OCI_CONFIG, data.digest, data.size_bytes), described, annotations or None)
    manifest = await content.put(whole, lease=lease)
    return Descriptor(oci.OCI_MANIFEST, manifest.digest, manifest.size_bytes, platform)


async def put_attestation(
    content: Content, image: Descriptor, names: Sequence[str], statements: Sequence[Statement], lease: str
) -> Descriptor:
    """Write what is said of an image: one manifest, a layer for each statement; return what an index says of it.

    Its `subject` is the image, so that a registry lists it among the image's referrers, too.
    """
    algorithm, _, value = image.digest.partition(":")
    subjects = [{"name": name, "digest": {algorithm: value}} for name in names or ("_",)]
    layers: list[Descriptor] = []
    for each in statements:
        body: dict[str, Any] = {
            "_type": "https://in-toto.io/Statement/v0.1",
            "predicateType": each.predicate_type,
            "subject": subjects,
            "predicate": each.predicate,
        }
        blob = await content.put(msgspec.json.encode(body), lease=lease)
        layers.append(Descriptor(IN_TOTO, blob.digest, blob.size_bytes, annotations={PREDICATE: each.predicate_type}))
    config = {
        "architecture": "unknown",
        "os": "unknown",
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": [layer.digest for layer in layers]},
    }
    data = await content.put(msgspec.json.encode(config), lease=lease)
    document = {
        "schemaVersion": 2,
        "mediaType": oci.OCI_MANIFEST,
        "config": Descriptor(oci.OCI_CONFIG, data.digest, data.size_bytes),
        "layers": layers,
        "subject": Descriptor(image.media_type, image.digest, image.size),
    }
    manifest = await content.put(msgspec.json.encode(document), lease=lease)
    notes = {REFERENCE_TYPE: ATTESTATION, REFERENCE_DIGEST: image.digest}
    return Descriptor(
        oci.OCI_MANIFEST, manifest.digest, manifest.size_bytes, Platform("unknown", "unknown"), annotations=notes
    )


async def put_index(
    content: Content, manifests: Sequence[Descriptor], annotations: Mapping[str, str], lease: str
) -> Digest:
    """Write the index over images and what is said of them."""
    document: dict[str, Any] = {"schemaVersion": 2, "mediaType": oci.OCI_INDEX, "manifests": list(manifests)}
    if annotations:
        document["annotations"] = dict(annotations)
    return (await content.put(msgspec.json.encode(document), lease=lease)).digest
