"""The engine's nouns as plain values: what its callers (node, builder, the Docker door) ask for and get back."""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Protocol

import msgspec

from wherry.engine.nets import Dns, Endpoint, Join, Network, NetworkSpec, Pool
from wherry.host.limits import Limits
from wherry.network.types import PortBinding, PublishedPort

__all__ = [
    "Container", "ContainerSpec", "DeviceMap", "Dns", "Endpoint", "Engine", "EngineEvent", "ExecSpec", "Exit", "Health",
    "HealthState", "Image", "ImageManifest", "Join", "Limits", "LogLine", "Mount", "Network", "NetworkSpec", "Pool", "Probe",
    "Sandbox", "SandboxSpec", "Session", "State", "Ulimit", "Volume",
]  # fmt: skip


class State(Enum):
    """Where a container stands. CREATED: everything is made, its process waits; EXITED: `exit` is set."""

    CREATED = "created"
    RUNNING = "running"
    PAUSED = "paused"
    EXITED = "exited"


@dataclass(frozen=True, slots=True)
class SandboxSpec:
    """What containers share: network, IPC and UTS namespaces, hostname, DNS, a cgroup parent.

    `network`: "pod" (an address on this machine's pod network), "user" (those of `networks`), "host" or "none".
    `cgroup` is a path below the instance's cgroup, such as `pods/POD_UID`. `limits` bound all its containers together.
    `shm_bytes` 0 means 64 MiB of shared memory. `ports` are published while its container runs, with `publish_all`
    those of `exposed` (`80/tcp`) too, each on any free port. `domain` follows the hostname; `host_uts`: both are the
    machine's. `no_shm`: no shared memory at all; `shareable_ipc`: other containers may have it, too. `cgroup_parent`: a
    group above its own, from the machine's root when it begins with /, else below the instance's. `mac` is its hardware
    address on the pod network, "" for any. `userns` "host": the machine's user namespace, whatever the engine's setting
    is.
    """

    id: str
    hostname: str
    network: str = "pod"
    dns: Dns = field(default_factory=Dns)
    hosts: Sequence[tuple[str, str]] = ()
    labels: Mapping[str, str] = field(default_factory=dict[str, str])
    cgroup: str = ""
    limits: Limits = field(default_factory=Limits)
    sysctls: Mapping[str, str] = field(default_factory=dict[str, str])
    host_ipc: bool = False
    shm_bytes: int = 0
    host_pid: bool = False
    share_pid: bool = False
    networks: Sequence[Join] = ()
    ports: Sequence[PortBinding] = ()
    exposed: Sequence[str] = ()
    publish_all: bool = False
    domain: str = ""
    host_uts: bool = False
    no_shm: bool = False
    shareable_ipc: bool = False
    cgroup_parent: str = ""
    mac: str = ""
    userns: str = ""


@dataclass(frozen=True, slots=True)
class Sandbox:
    """A sandbox as it stands. `address` is its IPv4 address ("" for host or none); `netns` the path of its namespace."""

    id: str
    spec: SandboxSpec
    netns: str
    address: str
    created: float
    ready: bool


@dataclass(frozen=True, slots=True)
class Mount:
    """A mount in a container. kind: "bind" (source: a host path), "tmpfs" (size in `options`), "volume" (a name) or "image"
    (a name or digest; read-only).

    A volume without a name gets one of its own. `copy`: an empty volume gets what the image has at `target`. `create`:
    a source that is not there is made, as a directory. `recursive`: with what is mounted below the source. `labels` and
    `driver_options` are of the volume, where it is made for this container. `read_only` holds for what is mounted below
    it too with `read_only_below`. `subpath`: only this directory or file of a volume or image.
    """

    target: str
    source: str = ""
    kind: str = "bind"
    read_only: bool = False
    options: Sequence[str] = ()
    copy: bool = True
    create: bool = False
    recursive: bool = True
    labels: Mapping[str, str] = field(default_factory=dict[str, str])
    driver_options: Mapping[str, str] = field(default_factory=dict[str, str])
    read_only_below: bool = False
    subpath: str = ""


@dataclass(frozen=True, slots=True)
class Volume:
    """A volume of this machine: `place` is its directory. `anonymous`: made for a container that named none."""

    name: str
    place: str
    created: float
    labels: Mapping[str, str] = field(default_factory=dict[str, str])
    options: Mapping[str, str] = field(default_factory=dict[str, str])
    anonymous: bool = False


@dataclass(frozen=True, slots=True)
class Ulimit:
    """A limit of each process; -1 is unlimited. Names as `ulimit` has them: nofile, nproc, core, ..."""

    name: str
    soft: int
    hard: int


@dataclass(frozen=True, slots=True)
class DeviceMap:
    """A device node of the machine (or a directory of them) that a container sees as `target`, with some of r, w, m."""

    source: str
    target: str
    rights: str = "rwm"


@dataclass(frozen=True, slots=True)
class Health:
    """A health check. `test` is ("CMD", word, ...) or ("CMD-SHELL", text)."""

    test: Sequence[str]
    interval_s: float = 30.0
    timeout_s: float = 30.0
    start_period_s: float = 0.0
    start_interval_s: float = 5.0
    retries: int = 3


@dataclass(frozen=True, slots=True)
class Probe:
    """One run of a health check; `code` -1 when it took too long or could not be run."""

    began: float
    ended: float
    code: int
    output: str


@dataclass(frozen=True, slots=True)
class HealthState:
    """What a container's health check says: "starting", "healthy" or "unhealthy"; `streak` failures in a row."""

    status: str
    streak: int = 0
    log: Sequence[Probe] = ()


@dataclass(frozen=True, slots=True)
class ContainerSpec:
    """One container. Empty entrypoint/command/env/workdir/user fall back to the image's; env wins over the image's by name.

    `entrypoint` None means the image's; `command` None means the image's (or none where an entrypoint is given).
    `image` is a name or digest that this engine knows. `sandbox` is the id of an existing one, or "" for one of its
    own, made from `sandbox_spec` and removed with the container. `image_volumes`: where the image names a volume and no
    mount is, an anonymous one is made. `log_driver`: "cri" (file at `log_path`), "none". `restart` is Docker's policy
    name ("no", "always", "unless-stopped", "on-failure:N"): the engine itself restarts; pods use "no", since the node
    decides there. `env_files` are variables whose values are read from files of this machine at each start, and are
    kept in no record: secrets. `log_type` and `log_options` are shown, no more; `log_compress`: rotated files are
    compressed; `log_journal`: the lines go to the machine's journal, too. `init`: a small first process that reaps.
    `device_rules`: such as "c 189:* rwm". `join`: the id of the container whose "network", "pid" or "ipc" it has.
    `links`: containers (ids) that it knows by a name of its own. `groups` are numbers or names of the image's.
    `runtime`: "crun" or "runc", "" for the engine's. `cgroup_namespace`: "private", "host", or "" for what is usual.
    `masked_paths` and `read_only_paths` None mean the usual ones. `apparmor` is a profile of the machine's. `platform`:
    which of the images that the name stands for, "" for the machine's. `asked`: what a door's client wrote, to be shown
    to it again, and for nothing else. `on_unhealthy`:
    what is done when its health check fails: nothing, "stop", or "restart".
    """

    name: str
    image: str
    id: str = ""
    entrypoint: Sequence[str] | None = None
    command: Sequence[str] | None = None
    env: Sequence[str] = ()
    env_files: Mapping[str, str] = field(default_factory=dict[str, str])
    workdir: str = ""
    user: str = ""
    groups: Sequence[int | str] = ()
    sandbox: str = ""
    sandbox_spec: SandboxSpec | None = None
    mounts: Sequence[Mount] = ()
    limits: Limits = field(default_factory=Limits)
    labels: Mapping[str, str] = field(default_factory=dict[str, str])
    cap_add: Sequence[str] = ()
    cap_drop: Sequence[str] = ()
    privileged: bool = False
    read_only_root: bool = False
    no_new_privileges: bool = False
    seccomp: str = "default"
    tty: bool = False
    stdin: bool = False
    stdin_once: bool = False
    stop_signal: str = ""
    stop_grace_s: float = 10.0
    restart: str = "no"
    auto_remove: bool = False
    log_path: str = ""
    log_driver: str = "cri"
    log_max_bytes: int = 10 * 1024 * 1024
    log_max_files: int = 5
    log_compress: bool = False
    log_journal: bool = False
    image_volumes: bool = False
    log_type: str = ""
    log_options: Mapping[str, str] = field(default_factory=dict[str, str])
    init: bool = False
    ulimits: Sequence[Ulimit] = ()
    devices: Sequence[DeviceMap] = ()
    device_rules: Sequence[str] = ()
    oom_score_adj: int = 0
    health: Health | None = None
    join: Mapping[str, str] = field(default_factory=dict[str, str])
    links: Mapping[str, str] = field(default_factory=dict[str, str])
    runtime: str = ""
    cgroup_namespace: str = ""
    annotations: Mapping[str, str] = field(default_factory=dict[str, str])
    masked_paths: Sequence[str] | None = None
    read_only_paths: Sequence[str] | None = None
    apparmor: str = ""
    platform: str = ""
    asked: Mapping[str, Any] = field(default_factory=dict[str, Any])
    on_unhealthy: str = ""


@dataclass(frozen=True, slots=True)
class Exit:
    """How a container ended: `code` is 128+n for signal n; `oom` when the kernel's OOM killer did it; `time` unix seconds."""

    code: int
    time: float
    oom: bool = False
    error: str = ""


@dataclass(frozen=True, slots=True)
class Container:
    """A container as it stands. `image_id` is the image config's digest; times are unix seconds, 0 for not yet.

    `restarting`: it has ended, and starts again in a while. `volumes` are its directories, by name. `ports` are
    published now; `endpoints` are its places on networks of people's own; `gateway` is the machine's address on the pod
    network, where it is on that. `files` are those that it sees below /etc, by their place there; `netns` is its network
    namespace, "" for the machine's.
    """

    id: str
    name: str
    spec: ContainerSpec
    image_id: str
    state: State
    created: float
    started: float = 0.0
    exit: Exit | None = None
    pid: int = 0
    restarts: int = 0
    sandbox: str = ""
    address: str = ""
    argv: Sequence[str] = ()
    volumes: Mapping[str, str] = field(default_factory=dict[str, str])
    restarting: bool = False
    health: HealthState | None = None
    ports: Sequence[PublishedPort] = ()
    endpoints: Sequence[Endpoint] = ()
    gateway: str = ""
    files: Mapping[str, str] = field(default_factory=dict[str, str])
    netns: str = ""


@dataclass(frozen=True, slots=True)
class Image:
    """An image of this machine. `id` is the config's digest, `digest` the manifest's; `config` the OCI image config.

    `root` is what its names hold: an index, or the manifest itself. `digests` are its names by digest
    (`repository@digest`). `layer_bytes` are the bytes of the files in its layers, `size_bytes` their sum; a layer that has
    not been unpacked counts as its blob does.
    """

    id: str
    digest: str
    names: Sequence[str]
    config: Mapping[str, Any]
    size_bytes: int
    created: float
    layers: Sequence[str]
    root: str = ""
    digests: Sequence[str] = ()
    layer_bytes: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class ImageManifest:
    """One of the manifests that an image's name stands for. `available`: it is here with all its blobs.

    `kind`: "image" or "attestation" (of the manifest `subject`). `platform` as OCI writes it.
    """

    digest: str
    media_type: str
    size_bytes: int
    platform: Mapping[str, Any]
    kind: str
    available: bool
    content_bytes: int
    image_id: str
    subject: str = ""
    unpacked_bytes: int = 0


@dataclass(frozen=True, slots=True)
class ExecSpec:
    """A process to run in a running container; empty env/workdir/user are the container's.

    `detached`: nobody reads what it writes, and it outlives the engine. `size` of its terminal: rows, columns.
    """

    argv: Sequence[str]
    env: Sequence[str] = ()
    workdir: str = ""
    user: str = ""
    tty: bool = False
    stdin: bool = False
    privileged: bool = False
    detached: bool = False
    size: tuple[int, int] | None = None


class LogLine(msgspec.Struct, frozen=True):
    """One piece of output. `stream` is "stdout" or "stderr"; `data` includes the newline unless the line is `partial`.

    `stamp` is its time in RFC 3339 with nine digits: a float has no room for them.
    """

    time: float
    stream: str
    data: bytes
    partial: bool = False
    stamp: str = ""


@dataclass(frozen=True, slots=True)
class EngineEvent:
    """What happened. `kind`: container, image, sandbox; `action`: create, start, die, oom, destroy, tag, pull, ..."""

    time: float
    kind: str
    action: str
    id: str
    attributes: Mapping[str, str] = field(default_factory=dict[str, str])


class Session(Protocol):
    """An attached or exec'ed process's streams. Closing it detaches; it never kills the process."""

    def output(self) -> AsyncIterator[tuple[str, bytes]]:
        """Yield ("stdout"|"stderr", data) until both end; with a tty everything is stdout."""
        ...

    async def write(self, data: bytes) -> None:
        """Send to stdin; waits while the process does not read."""
        ...

    async def close_stdin(self) -> None:
        """End stdin."""
        ...

    async def resize(self, rows: int, columns: int) -> None:
        """Set the terminal's size; nothing without a tty."""
        ...

    async def wait(self) -> int:
        """Return the exit code of the process."""
        ...

    async def close(self) -> None:
        """Let go of the streams."""
        ...


class Engine(Protocol):
    """Containers of this machine. Ids are 64 hex digits; every `ref` may be an id, a unique id prefix or a name.

    Raises NotFound for a ref that is not there, AlreadyExists for a taken name, Conflict for the wrong state,
    Invalid for a spec that cannot be, Broken when the runtime or kernel refuses.
    """

    # images -----------------------------------------------------------------------------------------------------------
    async def image(self, ref: str) -> Image:
        """Find an image by name (`web:1`, normalised as Docker does), digest or id prefix."""
        ...

    async def images(self) -> Sequence[Image]:
        """List the images."""
        ...

    async def pull(self, ref: str, *, auth: Mapping[str, str] | None = None, progress: Any = None) -> Image:
        """Get an image: the cluster's registry where one is joined, then the registry that the name says."""
        ...

    async def push(self, ref: str, *, auth: Mapping[str, str] | None = None, progress: Any = None) -> str:
        """Send an image to the registry that its name says; return the manifest's digest."""
        ...

    async def tag(self, ref: str, name: str) -> None:
        """Give an image one more name (and tag it in the cluster's registry where one is joined)."""
        ...

    async def commit_image(
        self,
        config: Mapping[str, Any],
        layers: Sequence[str],
        names: Sequence[str],
        *,
        annotations: Mapping[str, str] | None = None,
    ) -> Image:
        """Make an image of an OCI config and layer blobs that are in the content store (digests, lowest first).

        `annotations` are the manifest's.
        """
        ...

    async def remove_image(self, ref: str, *, force: bool = False) -> Sequence[str]:
        """Take a name away, and the image with its last name; return lines such as `Untagged: ...`, `Deleted: ...`."""
        ...

    # sandboxes --------------------------------------------------------------------------------------------------------
    async def create_sandbox(self, spec: SandboxSpec) -> Sandbox:
        """Make one; its namespaces and address are ready on return. Creating it again with the same id returns it."""
        ...

    async def sandbox(self, id: str) -> Sandbox:
        """Find one by id."""
        ...

    async def sandboxes(self) -> Sequence[Sandbox]:
        """List them."""
        ...

    async def remove_sandbox(self, id: str) -> None:
        """Remove its containers (killed), namespaces, address and cgroup; nothing if it is not there."""
        ...

    # containers -------------------------------------------------------------------------------------------------------
    async def create(self, spec: ContainerSpec) -> Container:
        """Make a container, not started."""
        ...

    async def start(self, ref: str) -> None:
        """Start it; raises Broken with the runtime's words (126/127 in Exit) when its command cannot be run."""
        ...

    async def container(self, ref: str) -> Container:
        """Find one."""
        ...

    async def containers(self) -> Sequence[Container]:
        """List all, running or not."""
        ...

    async def stop(self, ref: str, *, grace_s: float | None = None) -> None:
        """Send the stop signal, wait `grace_s` (None: the spec's), kill; returns when it has exited."""
        ...

    async def kill(self, ref: str, signal: str = "SIGKILL") -> None:
        """Send a signal by name or number; Conflict when it does not run."""
        ...

    async def wait(self, ref: str) -> Exit:
        """Wait for its (next) exit; at once when it has exited."""
        ...

    async def remove(self, ref: str, *, force: bool = False, volumes: bool = False) -> None:
        """Remove it with its files (and anonymous volumes); Conflict when it runs and `force` is not set."""
        ...

    async def exec(self, ref: str, spec: ExecSpec) -> Session:
        """Run one more process in it."""
        ...

    async def attach(self, ref: str) -> Session:
        """Attach to its main process's streams, from now on."""
        ...

    def logs(
        self, ref: str, *, follow: bool = False, tail: int | None = None, since: float = 0.0
    ) -> AsyncIterator[LogLine]:
        """Yield its log, across rotated files; with `follow`, until it has exited and all is read."""
        ...

    async def stats(self, ref: str) -> Mapping[str, int]:
        """Usage now: cpu_usage_ns, memory_usage_bytes, memory_working_set_bytes, pids."""
        ...

    def events(self) -> AsyncIterator[EngineEvent]:
        """Yield what happens from now on; a reader that is too slow gets Expired."""
        ...
