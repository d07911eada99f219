"""An instance: one root directory, its id, its places in the file system and what was decided when it was made."""

import fcntl
import hashlib
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec

from wherry.errors import Conflict, Invalid, NotFound

Profile = Literal["default", "fast-failover"]
DEFAULT_ROOT = "/var/lib/wherry"


class NodePlan(msgspec.Struct, frozen=True):
    """One node of the instance. `index` numbers its subnet; `apart`: in a network namespace of its own, with its own root."""

    name: str
    index: int
    real: bool
    apart: bool
    pod_cidr: str
    address: str = ""


class Plan(msgspec.Struct, frozen=True):
    """What was decided when the instance was made; kept in `ROOT/instance.json`. Ports of 0 are chosen at the first start.

    `kind` says whether it is a cluster, or an engine that stands alone: that has one node, and no API and registry.
    """

    id: str
    profile: Profile
    nodes: tuple[NodePlan, ...]
    service_cidr: str
    pod_cidr: str
    server_uid: int
    api_port: int
    registry_port: int
    durability: Literal["full", "test"] = "full"
    publish_address: str = "0.0.0.0"
    userns_remap: str = ""
    kind: Literal["cluster", "engine"] = "cluster"


@dataclass(frozen=True, slots=True)
class Instance:
    """Where everything of an instance is. State below `root`; sockets, pids and namespaces below `run`."""

    root: Path
    run: Path
    id: str

    @classmethod
    def at(cls, root: str | Path, run: str | Path | None = None) -> "Instance":
        """Name the instance of a root directory; nothing is made.

        `run` is told to the processes of an instance: the server's has another user, and so would look elsewhere.
        """
        path = Path(os.path.realpath(root))
        identity = hashlib.sha256(str(path).encode()).hexdigest()[:8]
        if run is not None:
            return cls(path, Path(run), identity)
        if os.geteuid() == 0:
            run = Path("/run/wherry")
        else:
            run = Path(os.environ.get("XDG_RUNTIME_DIR") or f"/tmp/wherry-{os.geteuid()}") / "wherry"
        return cls(path, run / identity, identity)

    @property
    def plan_path(self) -> Path:
        """The file that holds the plan."""
        return self.root / "instance.json"

    @property
    def server(self) -> Path:
        """State of the API server, the history and the registry's metadata; owned by the server's user."""
        return self.root / "server"

    @property
    def content(self) -> Path:
        """The machine's blobs."""
        return self.root / "content"

    @property
    def kubeconfig(self) -> Path:
        """Where the server writes the administrator's kubeconfig (0600)."""
        return self.server / "kubeconfig"

    @property
    def api_socket(self) -> Path:
        """The API server's unix socket."""
        return self.run / "server" / "api.sock"

    @property
    def registry_socket(self) -> Path:
        """The registry's unix socket."""
        return self.run / "server" / "registry.sock"

    @property
    def warden_socket(self) -> Path:
        """The warden's control socket."""
        return self.run / "warden.sock"

    @property
    def engine_record(self) -> Path:
        """What an engine that stands alone says of its process, for who looks for it (see daemon/alone.py)."""
        return self.run / "engine.json"

    @property
    def engine_pki(self) -> Path:
        """The certificate authority of the Docker API's TCP address."""
        return self.root / "pki"

    def log(self, role: str) -> Path:
        """The log file of a role."""
        return self.root / "log" / f"{role}.log"

    def node_root(self, node: NodePlan) -> Path:
        """State of a node's engine and agent."""
        return self.root / "nodes" / node.name

    def node_content(self, node: NodePlan) -> Path:
        """The blobs a node uses: the machine's, or its own where it stands apart (as another machine would)."""
        return self.node_root(node) / "content" if node.apart else self.content

    def node_run(self, name: str) -> Path:
        """Sockets and namespaces of a node."""
        return self.run / "nodes" / name

    def docker_socket(self, node: str) -> Path:
        """A node's Docker Engine API."""
        return self.node_run(node) / "docker.sock"

    def agent_socket(self, node: str) -> Path:
        """A node's agent: logs, exec, attach."""
        return self.node_run(node) / "agent.sock"

    def heartbeat(self, node: str) -> Path:
        """Touched by the agent each time its lease was renewed; the warden watches its age."""
        return self.node_run(node) / "heartbeat"

    def load(self) -> Plan:
        """Read the plan. Raises NotFound when no instance was made here, Invalid when the file is damaged."""
        try:
            return msgspec.json.decode(self.plan_path.read_bytes(), type=Plan)
        except FileNotFoundError:
            raise NotFound(f"no wherry instance in {self.root}: `wherry up --root {self.root}` makes one") from None
        except PermissionError:
            raise Invalid(f"{self.plan_path}: this user may not read it; try as root or with another --root") from None
        except msgspec.MsgspecError as error:
            raise Invalid(f"{self.plan_path}: {error}") from None

    def save(self, plan: Plan) -> None:
        """Write the plan, whole or not at all."""
        temporary = self.plan_path.with_suffix(".new")
        with temporary.open("wb") as file:
            file.write(msgspec.json.format(msgspec.json.encode(plan)) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(self.plan_path)

    def lock(self) -> int:
        """Take the instance's lock and return its descriptor. Raises Conflict when another process holds it."""
        self.root.mkdir(parents=True, exist_ok=True)
        fd = os.open(self.root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            raise Conflict(f"{self.root}: another wherry command is at work on this instance; wait for it") from None
        return fd


def unprivileged_uid(instance_id: str) -> int:
    """Choose the numeric user that the server of an instance runs as: its own, in systemd's range for dynamic users."""
    return 61184 + int(instance_id, 16) % 4000


def reachable_by(uid: int, path: str | Path) -> bool:
    """Say whether a user may come to and read a path, by the mode bits of it and of every directory above."""
    target = Path(os.path.realpath(path))
    for place in (target, *target.parents):
        with suppress(OSError):
            status = place.stat()
            shift = 6 if status.st_uid == uid else 0
            needed = 0o5 if place.is_dir() else 0o4
            if (status.st_mode >> shift) & needed & (0o1 if place != target and place.is_dir() else 0o7) == 0:
                return False
    return True


def environment(extra: dict[str, str] | None = None) -> dict[str, str]:
    """The environment of a role: a path, a locale, WHERRY_* settings and proxies; nothing else of the caller's."""
    keep = (
        "PATH",
        "LANG",
        "LC_ALL",
        "TMPDIR",
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "NO_PROXY",
        "http_proxy",
        "https_proxy",
        "no_proxy",
    )
    env = {name: value for name, value in os.environ.items() if name in keep or name.startswith("WHERRY_")}
    env.setdefault("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
    env["PYTHONDONTWRITEBYTECODE"] = "1" if os.environ.get("PYTHONDONTWRITEBYTECODE") else ""
    env["MALLOC_ARENA_MAX"] = "1"
    env.update(extra or {})
    return {name: value for name, value in env.items() if value}


def ask(path: Path, request: dict[str, Any], timeout_s: float = 5.0) -> dict[str, Any]:
    """Send the warden one request. Raises NotFound when no warden listens."""
    import socket

    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as client:
        client.settimeout(timeout_s)
        try:
            client.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            raise NotFound(f"no warden listens at {path}: the instance is not up") from None
        client.sendall(msgspec.json.encode(request) + b"\n")
        answer = b""
        while part := client.recv(65536):
            answer += part
    return msgspec.json.decode(answer, type=dict[str, Any])
