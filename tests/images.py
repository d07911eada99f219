"""Small images for walks: a static busybox with all its applets, as an OCI layout, and pushed to a cluster's registry."""

import gzip
import hashlib
import io
import json
import subprocess
import tarfile
from pathlib import Path
from typing import Any

BUSYBOX = Path("/bin/busybox")
WEB = """#!/bin/sh
mkdir -p /www/cgi-bin
printf '#!/bin/sh\\necho "Content-Type: text/plain"\\necho\\necho "$(hostname) version $VERSION"\\n' > /www/cgi-bin/hello
chmod 755 /www/cgi-bin/hello
trap 'exit 0' TERM INT
httpd -f -p 8080 -h /www &
wait
"""
"""`/web`: answers `GET /cgi-bin/hello` with the pod's name and the image's version, until asked to stop."""


def layout(place: Path, version: str, *, entrypoint: tuple[str, ...] = ()) -> Path:
    """Write an OCI layout of busybox to `place`; `$VERSION` says which. Without an entrypoint it needs a command."""
    blobs = place / "blobs" / "sha256"
    blobs.mkdir(parents=True)

    def blob(data: bytes, media_type: str) -> dict[str, Any]:
        digest = hashlib.sha256(data).hexdigest()
        (blobs / digest).write_bytes(data)
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}

    layer = tree()
    config: dict[str, Any] = {"Env": ["PATH=/bin", f"VERSION={version}"]}
    if entrypoint:
        config["Entrypoint"] = list(entrypoint)
    document = {
        "architecture": "amd64" if _machine() == "x86_64" else "arm64",
        "os": "linux",
        "config": config,
        "rootfs": {"type": "layers", "diff_ids": ["sha256:" + hashlib.sha256(layer).hexdigest()]},
        "history": [{"created_by": "tests/images.py"}],
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": blob(json.dumps(document).encode(), "application/vnd.oci.image.config.v1+json"),
        "layers": [blob(gzip.compress(layer, 1, mtime=0), "application/vnd.oci.image.layer.v1.tar+gzip")],
    }
    index = {
        "schemaVersion": 2,
        "manifests": [
            {
                **blob(json.dumps(manifest).encode(), manifest["mediaType"]),
                "annotations": {"org.opencontainers.image.ref.name": "latest"},
            }
        ],
    }
    (place / "index.json").write_text(json.dumps(index))
    (place / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    return place


def _machine() -> str:
    import platform

    return platform.machine()


def tree() -> bytes:
    """The one layer, as a tar."""
    applets = subprocess.run([BUSYBOX, "--list"], capture_output=True, text=True, check=True).stdout.split()
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, mode in (("bin", 0o755), ("etc", 0o755), ("tmp", 0o1777)):
            folder = tarfile.TarInfo(name)
            folder.type, folder.mode = tarfile.DIRTYPE, mode
            archive.addfile(folder)
        for name, data in (("bin/busybox", BUSYBOX.read_bytes()), ("web", WEB.encode())):
            file = tarfile.TarInfo(name)
            file.size, file.mode = len(data), 0o755
            archive.addfile(file, io.BytesIO(data))
        for applet in applets:
            link = tarfile.TarInfo(f"bin/{applet}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            if applet != "busybox":
                archive.addfile(link)
        for name in ("lib", "lib64"):  # with the host's /usr as a volume, its programs run in here too
            link = tarfile.TarInfo(name)
            link.type, link.linkname = tarfile.SYMTYPE, f"usr/{name}"
            archive.addfile(link)
    return buffer.getvalue()


def publish(root: str | Path, registry: str, place: Path, name: str) -> str:
    """Push a layout to the registry of the cluster in `root` by the stock skopeo; return the image's name for pods."""
    token = (Path(root) / "server" / "registry-token").read_text().strip()
    words = ["copy", "--quiet", "--dest-tls-verify=false", "--dest-creds", f"wherry:{token}"]
    done = subprocess.run(
        ["skopeo", *words, f"oci:{place}", f"docker://{registry}/{name}"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return f"{registry}/{name}"
