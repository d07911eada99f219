"""Small images and hostile tars, made by the standard library: the reference that our own code is held against."""

import io
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec

from wherry.content.digests import digest_of
from wherry.content.oci import OCI_CONFIG, OCI_LAYER, Descriptor, manifest_of
from wherry.content.protocol import Content, Digest

FILE, DIR, LINK, SYMLINK = tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.LNKTYPE, tarfile.SYMTYPE
Row = tuple[str, bytes, bytes | str]


def tar(
    rows: Sequence[Row], *, mode: str = "w", format: int = tarfile.PAX_FORMAT, pax: Mapping[str, str] | None = None
) -> bytes:
    """Make a tar of (name, type, data or link target)."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode, format=format) as archive:
        for name, kind, data in rows:
            info = tarfile.TarInfo(name)
            info.type, info.mtime, info.mode = kind, 1_000_000, 0o755 if kind == DIR else 0o644
            info.pax_headers = dict(pax or {})
            if isinstance(data, str):
                info.linkname = data
                archive.addfile(info)
            else:
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


@dataclass(frozen=True)
class Sample:
    """An image in the store."""

    digest: Digest
    config: Digest
    layers: Sequence[Digest]


async def sample(content: Content, *layers: bytes, lease: str = "", env: Sequence[str] = ()) -> Sample:
    """Put an image of plain tar layers into a store."""
    described = [Descriptor(OCI_LAYER, (await content.put(layer, lease=lease)).digest, len(layer)) for layer in layers]
    config = msgspec.json.encode(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Env": list(env)},
            "rootfs": {"type": "layers", "diff_ids": [digest_of(layer) for layer in layers]},
        }
    )
    blob = await content.put(config, lease=lease)
    manifest = manifest_of(Descriptor(OCI_CONFIG, blob.digest, len(config)), described)
    root = await content.put(manifest, lease=lease)
    return Sample(root.digest, blob.digest, [layer.digest for layer in described])
