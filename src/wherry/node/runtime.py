"""What a node does with a pod, as a protocol: really (by the engine) or simulated (states from a script)."""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

from wherry.engine.types import ContainerSpec, Exit, LogLine, SandboxSpec, Session


class Phase(Enum):
    """Where one container of a pod stands."""

    WAITING = "waiting"
    RUNNING = "running"
    TERMINATED = "terminated"


@dataclass(frozen=True, slots=True)
class ContainerState:
    """One attempt of one container of a pod, newest attempt last. Times are unix seconds."""

    id: str
    name: str
    attempt: int
    phase: Phase
    started: float = 0.0
    exit: Exit | None = None
    image: str = ""
    image_id: str = ""


@dataclass(frozen=True, slots=True)
class PodState:
    """What this machine has of a pod, from the runtime's own records: it survives a restart of the agent."""

    uid: str
    namespace: str
    name: str
    address: str
    created: float
    containers: Sequence[ContainerState] = ()
    labels: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, slots=True)
class LocalImage:
    """An image of this machine: its id (the config's digest) and the user it says it runs as."""

    id: str
    user: str = ""


class PodRuntime(Protocol):
    """Pods of one node. `uid` is the pod's. Every call may be repeated safely."""

    async def pods(self) -> Sequence[PodState]:
        """List what is here, also of an agent that died."""
        ...

    async def pod(self, uid: str) -> PodState | None:
        """What is here of one pod; None when there is nothing."""
        ...

    async def ensure_sandbox(self, uid: str, namespace: str, name: str, spec: SandboxSpec) -> PodState:
        """Make the pod's sandbox if it is not there."""
        ...

    async def ensure_image(self, image: str, policy: str) -> LocalImage:
        """Have an image by pull policy Always, IfNotPresent or Never. Raises NotFound or Unavailable."""
        ...

    async def start(self, uid: str, name: str, attempt: int, spec: ContainerSpec) -> ContainerState:
        """Create and start one attempt of a container in the pod's sandbox."""
        ...

    async def stop(self, uid: str, container_id: str, grace_s: float) -> None:
        """End a container in order; returns when it is gone."""
        ...

    async def remove_container(self, uid: str, container_id: str) -> None:
        """Remove a finished attempt and its log."""
        ...

    async def remove(self, uid: str) -> None:
        """Remove all that is left of the pod."""
        ...

    async def exec(self, uid: str, container_id: str, argv: Sequence[str], *, tty: bool, stdin: bool) -> Session:
        """Run a command in a container."""
        ...

    async def attach(self, uid: str, container_id: str) -> Session:
        """Attach to a container's streams."""
        ...

    def logs(
        self, uid: str, container_id: str, *, follow: bool, tail: int | None, since: float
    ) -> AsyncIterator[LogLine]:
        """Yield a container's log."""
        ...

    async def probe_http(
        self, uid: str, *, scheme: str, port: int, path: str, host: str,
        headers: Sequence[tuple[str, str]], timeout_s: float,
    ) -> int:  # fmt: skip
        """GET from the pod's address (or `host`); return the status. Raises Unavailable when nothing answers."""
        ...

    async def probe_tcp(self, uid: str, *, port: int, host: str, timeout_s: float) -> None:
        """Connect. Raises Unavailable."""
        ...

    def changes(self) -> AsyncIterator[str]:
        """Yield the uid of each pod whose state changed by itself (a container exited)."""
        ...
