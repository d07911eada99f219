"""A real cluster with one image, and the stock Docker clients of this machine."""

import io
import json
import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from wherry.testing import Cluster

APPLETS = (
    "sh",
    "sleep",
    "true",
    "echo",
    "cat",
    "ls",
    "id",
    "env",
    "mount",
    "touch",
    "dd",
    "pwd",
    "stty",
    "head",
    "wc",
    "seq",
)
CLIENTS = {"docker-20": "/usr/bin/docker", "docker-28": "/usr/local/bin/docker"}


@dataclass(frozen=True)
class Done:
    """How a client's call ended."""

    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Docker:
    """One stock client at the cluster's socket."""

    program: str
    environment: dict[str, str]

    def __call__(self, *argv: str, input: str = "", code: int | None = 0, timeout_s: float = 15.0) -> Done:
        """Run it, and compare its exit code with `code` (None: whatever)."""
        done = subprocess.run(
            [self.program, *argv], env=self.environment, input=input, capture_output=True, text=True, timeout=timeout_s,
            check=False,
        )  # fmt: skip
        assert code is None or done.returncode == code, (argv, done.returncode, done.stdout, done.stderr)
        return Done(done.returncode, done.stdout, done.stderr)

    def popen(self, *argv: str, stdout: Any = subprocess.PIPE) -> "subprocess.Popen[str]":
        """Start it with pipes."""
        pipe = subprocess.PIPE
        return subprocess.Popen(
            [self.program, *argv], env=self.environment, stdin=pipe, stdout=stdout, stderr=pipe, text=True
        )


def busybox_archive() -> bytes:
    """An OCI layout of one image, `web:1`, as a tar: what `docker load` reads."""
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        for name in ("bin", "etc", "tmp"):
            folder = tarfile.TarInfo(name)
            folder.type, folder.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(folder)
        data = Path("/bin/busybox").read_bytes()
        program = tarfile.TarInfo("bin/busybox")
        program.size, program.mode = len(data), 0o755
        tar.addfile(program, io.BytesIO(data))
        for applet in APPLETS:
            link = tarfile.TarInfo(f"bin/{applet}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(link)
        users = b"root:x:0:0::/:/bin/sh\napp:x:1000:1000::/:/bin/sh\n"
        passwd = tarfile.TarInfo("etc/passwd")
        passwd.size = len(users)
        tar.addfile(passwd, io.BytesIO(users))
    blobs: dict[str, bytes] = {}

    def put(data: bytes, media_type: str) -> dict[str, object]:
        digest = sha256(data).hexdigest()
        blobs[digest] = data
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}

    oci = "application/vnd.oci.image"
    packed = put(layer.getvalue(), f"{oci}.layer.v1.tar")
    config = {
        "architecture": {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine], "os": "linux",
        "created": "2026-01-01T00:00:00Z", "rootfs": {"type": "layers", "diff_ids": [packed["digest"]]},
        "config": {"Env": ["PATH=/bin"], "Cmd": ["/bin/sh"], "Labels": {"team": "boats"}},
        "history": [{"created_by": "tests"}],
    }  # fmt: skip
    manifest = {
        "schemaVersion": 2, "mediaType": f"{oci}.manifest.v1+json", "layers": [packed],
        "config": put(json.dumps(config).encode(), f"{oci}.config.v1+json"),
    }  # fmt: skip
    named = put(json.dumps(manifest).encode(), f"{oci}.manifest.v1+json")
    named["annotations"] = {
        "io.containerd.image.name": "docker.io/library/web:1",
        "org.opencontainers.image.ref.name": "1",
    }
    files = {
        "oci-layout": b'{"imageLayoutVersion": "1.0.0"}',
        "index.json": json.dumps({"schemaVersion": 2, "manifests": [named]}).encode(),
        **{f"blobs/sha256/{digest}": data for digest, data in blobs.items()},
    }
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return whole.getvalue()


@pytest.fixture(scope="session")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("image") / "web.tar"
    path.write_bytes(busybox_archive())
    return path


def made(cluster: Cluster, program: str) -> Docker:
    return Docker(program, {**os.environ, **cluster.environment, "DOCKER_BUILDKIT": "0", "HOME": cluster.root})


@pytest.fixture(scope="session")
def loaded(cluster: Cluster, archive: Path) -> Cluster:
    """The cluster with `web:1` on it, from a `docker load`."""
    from wherry.wire.blocking import request

    answer = request(cluster.docker_host.removeprefix("unix://"), "POST", "/images/load", body=archive.read_bytes())
    text = answer.read().decode()
    answer.close()
    assert "Loaded image: web:1" in text
    return cluster


@pytest.fixture(params=[pytest.param(path, id=name) for name, path in CLIENTS.items() if os.path.exists(path)])
def docker(request: pytest.FixtureRequest, loaded: Cluster) -> Iterator[Docker]:
    """Each stock client in turn; what a test has left running is removed."""
    client = made(loaded, request.param)
    yield client
    if left := client("ps", "-aq").out.split():
        client("rm", "-f", *left)


@pytest.fixture
def newest(loaded: Cluster) -> Iterator[Docker]:
    """The newest stock client."""
    client = made(loaded, [path for path in CLIENTS.values() if shutil.which(path)][-1])
    yield client
    if left := client("ps", "-aq").out.split():
        client("rm", "-f", *left)
