"""What the walks of stock clients share: programs that are run at one engine's socket, and the images they find there."""

import io
import os
import subprocess
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests import images

from wherry.testing import Cluster

DOCKERS = {"docker-20": "/usr/bin/docker", "docker-28": "/usr/local/bin/docker"}
"""The stock clients that the walks know, where they are installed: Debian 12's, and a newer one."""
KINDS = {"container": ("ps", "-aq"), "network": ("network", "ls", "-q"), "volume": ("volume", "ls", "-q")}
USERS = b"root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000::/home/app:/bin/sh\n"
GROUPS = b"root:x:0:\napp:x:1000:\nboats:x:2000:app\n"


@dataclass(frozen=True)
class Done:
    """How a program ended."""

    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Engine:
    """One engine's socket, and the environment in which clients find it. `home` keeps their configuration."""

    cluster: Cluster
    home: str
    more: dict[str, str] = field(default_factory=dict[str, str])

    @property
    def host(self) -> str:
        return self.cluster.docker_host

    @property
    def environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("DOCKER_", "COMPOSE_"))}
        return {**kept, **self.cluster.environment, "HOME": self.home, "DOCKER_BUILDKIT": "0", **self.more}

    def run(
        self, *argv: str, input: str = "", code: int | None = 0, timeout_s: float = 30.0, cwd: Path | None = None
    ) -> Done:
        """Run a program to its end, and compare its exit code with `code` (None: whatever)."""
        done = subprocess.run(
            argv, env=self.environment, input=input, capture_output=True, text=True, errors="replace",
            timeout=timeout_s, check=False, cwd=cwd,
        )  # fmt: skip
        assert code is None or done.returncode == code, (argv, done.returncode, done.stdout, done.stderr)
        return Done(done.returncode, done.stdout, done.stderr)

    def docker(self, *words: str, input: str = "", code: int | None = 0) -> str:
        """Run the newest stock docker; return what it printed."""
        return self.run(newest(), *words, input=input, code=code).out

    def left(self, label: str) -> Sequence[str]:
        """Say which containers, networks and volumes carry a label."""
        return [
            f"{kind} {each}"
            for kind, words in KINDS.items()
            for each in self.docker(*words, "--filter", f"label={label}").split()
        ]  # fmt: skip


def newest() -> str:
    """The newest stock docker of this machine."""
    return [path for path in DOCKERS.values() if os.path.exists(path)][-1]


def rootfs() -> bytes:
    """A root directory of busybox, with users, as a tar: what `docker import` reads."""
    whole = io.BytesIO(images.tree())
    with tarfile.open(fileobj=whole, mode="a") as archive:
        for name, data in (("etc/passwd", USERS), ("etc/group", GROUPS)):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
        for name in ("root", "home", "home/app", "var", "srv"):
            folder = tarfile.TarInfo(name)
            folder.type, folder.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(folder)
    return whole.getvalue()
