"""The daemons that stand beside ours in a benchmark, each with state of its own below BASE, and a client of each."""

import json
import os
import select
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from wherry.clock import machine
from wherry.daemon.instance import Instance

BIN = Path(sys.executable).parent
BASE = Path("/var/tmp/bench-engine")
CLIENT = "/usr/local/bin/docker" if os.path.exists("/usr/local/bin/docker") else "docker"
OURS, OURS_BY_DOCKER, DOCKERD, PODMAN = "wherry", "wherry by docker", "dockerd", "podman"
LIMIT_S = 180


@dataclass
class Side:
    """One client at one daemon. `daemons` lists the processes that are there while nothing runs; what it has beside each
    container is named `beside`, and `mark` is in its command line.
    """

    name: str
    argv: tuple[str, ...]
    daemons: Callable[[], list[int]]
    environment: dict[str, str] = field(default_factory=dict[str, str])
    insecure: tuple[str, ...] = ()
    load: tuple[str, ...] = ()
    beside: tuple[str, ...] = ("conmon",)
    mark: str = ""
    remove: tuple[str, ...] = ("rm", "-f")

    def popen(self, *words: str) -> "subprocess.Popen[bytes]":
        """Start one call; its output goes to a file, so that nothing waits for a reader."""
        with (BASE / "last").open("ab") as out:
            environment = {**os.environ, "HOME": str(BASE), **self.environment}
            return subprocess.Popen(
                [*self.argv, *words], env=environment, stdout=out, stderr=out, stdin=subprocess.DEVNULL
            )

    def __call__(self, *words: str) -> float:
        """Run one call to its end; the seconds it took."""
        begun = machine.monotonic()
        code = ended(self.popen(*words))
        took_s = machine.monotonic() - begun
        if code:
            said = (BASE / "last").read_text(errors="replace")[-1500:]
            raise SystemExit(f"engine: {self.name}: {' '.join(words)}: exit code {code}\n{said}")
        return took_s


def ended(process: "subprocess.Popen[bytes]") -> int:
    """Wait for a client and return its exit code. (`wait` with a time-out looks every 50 ms only.)"""
    pidfd = os.pidfd_open(process.pid)
    try:
        if not select.select([pidfd], [], [], LIMIT_S)[0]:
            process.kill()
    finally:
        os.close(pidfd)
    return process.wait()


# the daemons ----------------------------------------------------------------------------------------------------------
@contextmanager
def wherry() -> Iterator[list[Side]]:
    """An engine alone, as dockerd is; both clients."""
    root = BASE / "wherry"
    environment = {"WHERRY_ROOT": str(root)}
    with (BASE / "wherry.log").open("wb") as log:
        argv = [str(BIN / "wherry"), "engine", "serve", "--root", str(root)]
        process = subprocess.Popen(argv, stdout=log, stderr=log)
    address = f"unix://{Instance.at(root).docker_socket('engine')}"
    own = Side(OURS, (str(BIN / "wherry"),), lambda: [process.pid], environment)
    by_docker = Side(OURS_BY_DOCKER, (CLIENT, "-H", address), own.daemons)
    own.mark = by_docker.mark = Instance.at(root).id
    own.load = by_docker.load = (CLIENT, "-H", address, "load", "-q", "-i")
    try:
        _answers(by_docker, BASE / "wherry.log")
        yield [own, by_docker]
    finally:
        process.terminate()
        process.wait()
        own("down", "--purge")


def _answers(side: Side, log: Path) -> None:
    """Wait until a daemon answers."""
    for _ in range(150):
        if ended(side.popen("version")) == 0:
            return
        machine.pause(0.2)
    raise SystemExit(f"engine: {side.name}: {log.read_text()[-2000:]}")


@contextmanager
def dockerd() -> Iterator[list[Side]]:
    """A dockerd with state, bridge and rules of its own."""
    base = BASE / "dockerd"
    base.mkdir()
    address = f"unix://{base}/docker.sock"
    argv = ["dockerd", "--data-root", f"{base}/data", "--exec-root", f"{base}/exec", "-H", address]
    with (base / "log").open("wb") as log:
        process = subprocess.Popen([*argv, "--pidfile", f"{base}/pid"], stdout=log, stderr=log)
    side = Side(DOCKERD, (CLIENT, "-H", address), lambda: [process.pid, *children(process.pid)])
    side.load = (*side.argv, "load", "-q", "-i")
    side.beside = ("containerd-shim", "docker-proxy")
    try:
        _answers(side, base / "log")
        yield [side]
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(30)
        if process.poll() is None:
            process.kill()
            process.wait()


@contextmanager
def podman() -> Iterator[list[Side]]:
    """podman with storage of its own. On a hybrid of cgroup v1 and v2 its crun refuses to work: runc then."""
    base = BASE / "podman"
    base.mkdir()
    storage = ("--root", f"{base}/root", "--runroot", f"{base}/run", "--storage-driver=overlay")
    kind = ("--cgroup-manager=cgroupfs", "--runtime", "runc")
    ulimits = ["nofile=1024:1024", "nproc=1024:1024"]  # its own are more than we may set on every machine
    (base / "containers.conf").write_text(f"[containers]\ndefault_ulimits = {json.dumps(ulimits)}\n")
    environment = {"CONTAINERS_CONF": f"{base}/containers.conf"}
    side = Side(PODMAN, ("podman", *storage, *kind), list, environment, insecure=("--tls-verify=false",))
    side.load, side.remove = (*side.argv, "load", "-q", "-i"), ("rm", "-f", "-t", "0")  # its `rm -f` waits for SIGTERM
    side.mark = str(base)
    try:
        yield [side]
    finally:
        side.popen("rm", "--all", "--force", "--time=0").wait(LIMIT_S)


@contextmanager
def registry(name: str) -> Iterator[str]:
    """A registry on loopback: Debian's, or ours where it is not there; its address."""
    root = BASE / name
    root.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    if shutil.which("docker-registry"):
        quiet = "log: {level: error, accesslog: {disabled: true}}"
        (BASE / f"{name}.yml").write_text(
            f"version: 0.1\n{quiet}\nstorage: {{filesystem: {{rootdirectory: {root}}}}}\nhttp: {{addr: 127.0.0.1:{port}}}\n"
        )
        argv = ["docker-registry", "serve", str(BASE / f"{name}.yml")]
    else:
        argv = [
            str(BIN / "wherry"),
            "registry",
            "serve",
            "--open",
            "--root",
            str(root),
            "--listen",
            f"127.0.0.1:{port}",
        ]
    environment = {**os.environ, "OTEL_TRACES_EXPORTER": "none"}
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    try:
        for _ in range(200):
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            machine.pause(0.05)
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)


def children(pid: int) -> list[int]:
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(OSError):
            found += [int(each) for each in (task / "children").read_text().split()]
    return [child for child in found if is_daemon(child)]


def is_daemon(pid: int) -> bool:
    with suppress(OSError):
        name = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].decode().rpartition("/")[2]
        return name not in ("conmon", "docker-proxy") and not name.startswith("containerd-shim")
    return False
