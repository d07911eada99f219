"""Images for benchmarks: busybox as an archive, and a layer of this Debian that is new each time."""

import gzip
import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

from engine_start import BUSYBOX
from peers.daemons import BASE, LIMIT_S

IMAGE = "bench:1"
LARGEST_FILE_BYTES = 4_000_000


def box_archive() -> Path:
    """What `docker load` reads: busybox as one layer, tagged bench:1."""
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        for folder in ("bin", "etc", "proc", "sys", "dev", "tmp"):
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(entry)
        data = Path(BUSYBOX).read_bytes()
        entry = tarfile.TarInfo("bin/busybox")
        entry.size, entry.mode = len(data), 0o755
        tar.addfile(entry, io.BytesIO(data))
        for applet in ("true", "sleep", "sh", "echo"):
            entry = tarfile.TarInfo(f"bin/{applet}")
            entry.type, entry.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(entry)
    config = json.dumps(
        {
            "architecture": {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine], "os": "linux",
            "config": {"Env": ["PATH=/bin"], "Cmd": ["/bin/sh"]},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer.getvalue()).hexdigest()}"]},
        }
    ).encode()  # fmt: skip
    manifest = [{"Config": "config.json", "RepoTags": [IMAGE], "Layers": ["layer.tar"]}]
    files = {"config.json": config, "layer.tar": layer.getvalue(), "manifest.json": json.dumps(manifest).encode()}
    path = BASE / "box.tar"
    with tarfile.open(path, mode="w") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return path


class Debian:
    """A layer of this Debian's own files, `size_bytes` packed; each `put` makes a new one of it at a registry."""

    def __init__(self, size_bytes: int) -> None:
        raw, packed = io.BytesIO(), io.BytesIO()
        squeeze = gzip.GzipFile(fileobj=packed, mode="wb", compresslevel=6, mtime=0)
        tar = tarfile.TarFile(fileobj=raw, mode="w", format=tarfile.GNU_FORMAT)
        self.files, self.unpacked_bytes = 0, 0
        found = [path for path in Path("/usr").rglob("*") if path.is_symlink() or path.is_file()]
        for path in sorted(found, key=lambda path: hashlib.sha256(bytes(path)).digest()):  # of everything a part
            if path.lstat().st_size > LARGEST_FILE_BYTES:
                continue
            tar.add(path, recursive=False)
            self.files += 1
            data = raw.getvalue()
            raw.seek(0)
            raw.truncate()
            self.unpacked_bytes += len(data)
            squeeze.write(data)
            if packed.tell() >= size_bytes:
                break
        squeeze.write(bytes(1024))
        squeeze.close()
        self._packed = packed.getvalue()
        self._count = 0

    @property
    def size_bytes(self) -> int:
        """Packed."""
        return len(self._packed)

    def put(self, address: str) -> str:
        """Make a layer that nobody has had yet (one small file is new), push it; the image's name there."""
        self._count += 1
        first = io.BytesIO()
        with tarfile.open(fileobj=first, mode="w") as tar:
            entry = tarfile.TarInfo(f"round-{self._count}-{os.getpid()}")
            tar.addfile(entry, io.BytesIO())
        head = first.getvalue()[:512]  # without the zeros that end an archive: the others' files follow
        layer = gzip.compress(head, mtime=0) + self._packed
        whole = hashlib.sha256(head)
        for piece in _unzipped(self._packed):
            whole.update(piece)
        name = f"deb-{self._count}"
        place = BASE / "layout"
        shutil.rmtree(place, ignore_errors=True)
        _layout(place, layer, whole.hexdigest())
        target = f"docker://{address}/{name}:1"
        done = subprocess.run(
            ["skopeo", "copy", "-q", "--dest-tls-verify=false", "--insecure-policy", f"oci:{place}:1", target],
            capture_output=True, text=True, timeout=LIMIT_S, check=False,
        )  # fmt: skip
        if done.returncode:
            raise SystemExit(f"engine: skopeo: {done.stderr}")
        shutil.rmtree(place)
        return f"{address}/{name}:1"


def _unzipped(data: bytes) -> Iterator[bytes]:
    with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
        while piece := file.read(1 << 20):
            yield piece


def _layout(place: Path, layer: bytes, diff_id: str) -> None:
    """Write an OCI layout of one image of one layer."""
    oci = "application/vnd.oci.image"
    (place / "blobs/sha256").mkdir(parents=True)

    def put(data: bytes, kind: str) -> dict[str, object]:
        digest = hashlib.sha256(data).hexdigest()
        (place / "blobs/sha256" / digest).write_bytes(data)
        return {"mediaType": f"{oci}.{kind}", "digest": f"sha256:{digest}", "size": len(data)}

    config = {
        "architecture": {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine], "os": "linux", "config": {},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{diff_id}"]},
    }  # fmt: skip
    manifest = {
        "schemaVersion": 2, "mediaType": f"{oci}.manifest.v1+json",
        "config": put(json.dumps(config).encode(), "config.v1+json"), "layers": [put(layer, "layer.v1.tar+gzip")],
    }  # fmt: skip
    named = put(json.dumps(manifest).encode(), "manifest.v1+json")
    named["annotations"] = {"org.opencontainers.image.ref.name": "1"}
    (place / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    (place / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [named]}))
