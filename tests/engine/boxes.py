"""Where an engine of a test lives, its busybox image, and a look at what it leaves behind."""

import os
import secrets
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wherry.clock import Clock, RealClock
from wherry.content.local import LocalContent
from wherry.content.pack import pack_directory
from wherry.engine.local import LocalEngine
from wherry.engine.settings import EngineSettings
from wherry.engine.types import ContainerSpec, Limits, SandboxSpec
from wherry.errors import Broken
from wherry.host import cgroups, mounts, processes
from wherry.network.types import Attachment

BUSYBOX = next((path for path in ("/bin/busybox", "/usr/bin/busybox") if os.path.exists(path)), "/bin/busybox")
APPLETS = (
    *("sh", "true", "false", "sleep", "usleep", "cat", "echo", "printf", "id", "ls", "env", "pwd", "hostname", "kill"),
    *("mount", "umount", "unshare", "mknod", "chroot", "date", "touch", "mkdir", "rm", "mv", "ln", "dd", "tty", "stty"),
    *("yes", "head", "tr", "wc", "grep", "test", "seq", "nc"),
)
IMAGE = "box:1"
NAME = "docker.io/library/box:1"


class NoNetwork:
    """A pod network for machines and tests without one: it refuses."""

    gateway = "10.255.255.1"

    async def attach(self, owner: str, netns: str, *, mac: str = "") -> Attachment:
        raise Broken(f"{owner}: this test has no pod network for {netns}")

    async def detach(self, owner: str) -> None:
        del owner

    async def attachments(self) -> Sequence[tuple[str, Attachment]]:
        return []


class Place:
    """Where an engine of a test lives, and how it is opened."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.instance = secrets.token_hex(4)
        self.root, self.run = base / "root", base / "run"

    @property
    def cgroup(self) -> str:
        return f"wherry/{self.instance}/t"

    def content(self, clock: Clock | None = None) -> LocalContent:
        return LocalContent.open(self.base / "content", clock=clock or RealClock())

    def engine(self, content: LocalContent, *, clock: Clock | None = None, **settings: Any) -> LocalEngine:
        return LocalEngine(
            self.root,
            self.run,
            instance=self.instance,
            node="t",
            content=content,
            network=NoNetwork(),
            clock=clock or RealClock(),
            settings=EngineSettings(**settings),
        )

    def leftovers(self) -> list[str]:
        """Name what is left on the machine: mounts, processes, cgroups."""
        here = os.path.realpath(self.base)
        found = [f"mount {point.target}" for point in mounts.table() if point.target.startswith(here)]
        for pid in processes.pids():
            words = processes.command(pid)
            if any(here in word for word in words) and "pytest" not in " ".join(words):
                found.append(f"process {pid}: {' '.join(words)[:200]}")
        groups = cgroups.find(f"wherry/{self.instance}")
        found += [f"cgroup {name}" for name in groups.children("")]
        found += [f"process {pid} in our cgroup" for pid in groups.processes("")]
        return found

    def clear(self) -> None:
        """Take away whatever a failed test left."""
        for pid in processes.pids():
            words = processes.command(pid)
            if words and words[0].endswith("conmon") and any(str(self.base) in word for word in words):
                os.kill(pid, signal.SIGKILL)
        groups = cgroups.find(f"wherry/{self.instance}")
        groups.kill("")
        groups.remove("")
        mounts.unmount_below(str(self.base))


def spec(*command: str, name: str = "", **further: Any) -> ContainerSpec:
    """A container of the busybox image without a network."""
    sandbox = further.pop("sandbox_spec", None) or SandboxSpec(id="", hostname="box", network="none")
    limits = further.pop("limits", Limits())
    return ContainerSpec(
        name=name or f"t-{secrets.token_hex(4)}",
        image=IMAGE,
        command=list(command) or None,
        sandbox_spec=None if further.get("sandbox") else sandbox,
        limits=limits,
        **further,
    )


def config(diff_ids: Sequence[str], **further: Any) -> dict[str, Any]:
    """An image config."""
    return {
        "architecture": "amd64",
        "os": "linux",
        "created": "2026-01-01T00:00:00Z",
        "config": {"Env": ["PATH=/bin", "COLOUR=blue"], "Cmd": ["/bin/true"], **further},
        "rootfs": {"type": "layers", "diff_ids": list(diff_ids)},
    }


def fill_root(root: Path) -> None:
    """Write the files of the busybox image."""
    for name in ("bin", "etc", "home/ann", "tmp"):
        (root / name).mkdir(parents=True, exist_ok=True)
    shutil.copy(BUSYBOX, root / "bin/busybox")
    for name in APPLETS:
        (root / "bin" / name).symlink_to("busybox")
    (root / "tmp").chmod(0o1777)
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\nann:x:1000:1001:Ann:/home/ann:/bin/sh\n")
    (root / "etc/group").write_text("root:x:0:\nann:x:1001:\naudio:x:29:ann\nstaff:x:50:\n")
    (root / "etc/not-a-program").write_text("hello\n")


async def put_image(content: LocalContent, engine: LocalEngine, source: Path) -> None:
    """Make the busybox image in the engine."""
    if not source.exists():
        fill_root(source)
    lease = await content.lease(seconds=600)
    layer = await pack_directory(content, source, lease=lease, mtime=0)
    await engine.commit_image(config([layer.diff_id]), [layer.digest], [IMAGE])
    await content.end_lease(lease)


async def text_of(engine: LocalEngine, ref: str, **further: Any) -> str:
    """The log of a container as text."""
    return b"".join([line.data async for line in engine.logs(ref, **further)]).decode()


async def run(engine: LocalEngine, made: ContainerSpec) -> tuple[int, str]:
    """Run to the end; return the exit code and the log."""
    container = await engine.create(made)
    await engine.start(container.id)
    exit = await engine.wait(container.id)
    text = await text_of(engine, container.id)
    await engine.remove(container.id)
    return exit.code, text
