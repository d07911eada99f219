"""Pods that only seem to run: their states come from a script, so that a cluster of any size needs no root.

A pod's annotation `wherry.dev/simulate` is its script, JSON: `{"start_s": 0.1, "run_s": 5, "exit": 1, "ready": true,
"stop_s": 0}`: seconds (cluster time) until a container runs, after which it ends by itself with `exit` (never without
`run_s`), whether probes find it good, and how long it takes to stop. `{}` is the default: runs at once, for good, ready.
"""

import asyncio
import ipaddress
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import msgspec

from wherry.clock import Clock
from wherry.engine.types import ContainerSpec, Exit, LogLine, SandboxSpec, Session
from wherry.errors import Expired, Invalid, NotFound, Unavailable, Unsupported
from wherry.node.runtime import ContainerState, LocalImage, Phase, PodState

ANNOTATION = "wherry.dev/simulate"


class Script(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a simulated container does."""

    start_s: float = 0.0
    run_s: float | None = None
    exit: int = 0
    ready: bool = True
    stop_s: float = 0.0


@dataclass(slots=True)
class _Sim:
    state: PodState
    script: Script


class SimulatedRuntime:
    """A `PodRuntime` without containers. It forgets everything when it goes: simulated pods do not survive their agent."""

    def __init__(self, clock: Clock, *, pod_cidr: str = "10.255.0.0/24") -> None:
        self._clock = clock
        self._pods: dict[str, _Sim] = {}
        self._addresses = ipaddress.ip_network(pod_cidr)
        self._used: set[int] = set()
        self._timers: set[asyncio.Task[None]] = set()
        self._listeners: list[asyncio.Queue[str]] = []
        self._serial = 0

    async def pods(self) -> Sequence[PodState]:
        """List what is here."""
        return [each.state for each in self._pods.values()]

    async def pod(self, uid: str) -> PodState | None:
        """What is here of one pod."""
        return self._pods[uid].state if uid in self._pods else None

    async def ensure_sandbox(self, uid: str, namespace: str, name: str, spec: SandboxSpec) -> PodState:
        """Give the pod an address. Raises Invalid for a script that cannot be read."""
        if uid in self._pods:
            return self._pods[uid].state
        try:
            script = msgspec.json.decode(spec.labels.get(ANNOTATION, "{}"), type=Script)
        except msgspec.MsgspecError as error:
            raise Invalid(f"annotation {ANNOTATION}: {error}") from None
        index = next((n for n in range(2, self._addresses.num_addresses - 1) if n not in self._used), None)
        if index is None:
            raise Unavailable(f"no address is left in {self._addresses}")
        self._used.add(index)
        address = "" if spec.network == "host" else str(self._addresses[index])
        self._pods[uid] = _Sim(PodState(uid, namespace, name, address, self._clock.now()), script)
        return self._pods[uid].state

    async def ensure_image(self, image: str, policy: str) -> LocalImage:
        """Every image is there, but for those whose name says that it is not: `...missing...`."""
        if "missing" in image:
            raise NotFound(f"image {image}: not found (simulated)")
        return LocalImage(f"sha256:{abs(hash(image)):064x}"[:71])

    async def start(self, uid: str, name: str, attempt: int, spec: ContainerSpec) -> ContainerState:
        """Run one attempt, after its script's `start_s`."""
        sim = self._get(uid)
        if sim.script.start_s:
            await self._clock.sleep(sim.script.start_s)
            sim = self._get(uid)
        self._serial += 1
        container = ContainerState(
            f"{self._serial:064x}", name, attempt, Phase.RUNNING, self._clock.now(),
            image=spec.labels.get("io.kubernetes.container.image", spec.image), image_id=spec.image,
        )  # fmt: skip
        sim.state = replace(sim.state, containers=(*sim.state.containers, container))
        if sim.script.run_s is not None:
            timer = asyncio.create_task(self._expire(uid, container.id, sim.script), name=f"simulated:{name}")
            self._timers.add(timer)
            timer.add_done_callback(self._timers.discard)
        return container

    async def _expire(self, uid: str, container_id: str, script: Script) -> None:
        await self._clock.sleep(script.run_s or 0.0)
        self.end(uid, container_id, script.exit)

    def end(self, uid: str, container_id: str, code: int) -> None:
        """End a container as if by itself; tests use it to crash one."""
        sim = self._pods.get(uid)
        if sim is None:
            return
        ended = [
            replace(each, phase=Phase.TERMINATED, exit=Exit(code, self._clock.now()))
            if each.id == container_id and each.phase is Phase.RUNNING
            else each
            for each in sim.state.containers
        ]
        if ended != list(sim.state.containers):
            sim.state = replace(sim.state, containers=tuple(ended))
            self._tell(uid)

    def _tell(self, uid: str) -> None:
        for queue in self._listeners:
            with suppress(asyncio.QueueFull):
                queue.put_nowait(uid)

    async def stop(self, uid: str, container_id: str, grace_s: float) -> None:
        """End a container after its script's `stop_s`, at most the grace."""
        if uid not in self._pods:
            return
        pause_s = min(self._pods[uid].script.stop_s, grace_s)
        if pause_s:
            await self._clock.sleep(pause_s)
        self.end(uid, container_id, 143 if pause_s < grace_s or not grace_s else 137)

    async def remove_container(self, uid: str, container_id: str) -> None:
        """Forget an attempt."""
        if uid in self._pods:
            sim = self._pods[uid]
            sim.state = replace(sim.state, containers=tuple(c for c in sim.state.containers if c.id != container_id))

    async def remove(self, uid: str) -> None:
        """Forget the pod and free its address."""
        sim = self._pods.pop(uid, None)
        if sim is not None and sim.state.address:
            self._used.discard(int(ipaddress.ip_address(sim.state.address)) - int(self._addresses.network_address))

    def _get(self, uid: str) -> _Sim:
        if uid not in self._pods:
            raise NotFound(f"pod {uid}: no sandbox")
        return self._pods[uid]

    async def exec(self, uid: str, container_id: str, argv: Sequence[str], *, tty: bool, stdin: bool) -> Session:
        """Simulated containers have no processes; an exec probe asks `probe_exec` of the script instead."""
        sim = self._get(uid)
        return _Probe(0 if sim.script.ready else 1)

    async def attach(self, uid: str, container_id: str) -> Session:
        """There is nothing to attach to."""
        raise Unsupported(f"pod {uid} is simulated: there is no process to attach to")

    async def logs(
        self, uid: str, container_id: str, *, follow: bool, tail: int | None, since: float
    ) -> AsyncIterator[LogLine]:
        """One line that says what the container is; with `follow`, until it ends."""
        container = next((each for each in self._get(uid).state.containers if each.id == container_id), None)
        if container is None:
            raise NotFound(f"container {container_id}: not here")
        if tail != 0 and container.started >= since:
            yield LogLine(container.started, "stdout", f"simulated container {container.name} started\n".encode())
        if not follow or container.phase is not Phase.RUNNING:
            return
        async for changed in self.changes():
            if changed == uid and not any(
                each.id == container_id and each.phase is Phase.RUNNING for each in self._get(uid).state.containers
            ):
                return

    async def probe_http(
        self, uid: str, *, scheme: str, port: int, path: str, host: str, headers: Sequence[tuple[str, str]],
        timeout_s: float,
    ) -> int:  # fmt: skip
        """200, or 503 where the script says that it is not ready."""
        return 200 if self._get(uid).script.ready else 503

    async def probe_tcp(self, uid: str, *, port: int, host: str, timeout_s: float) -> None:
        """Nothing, or Unavailable where the script says that it is not ready."""
        if not self._get(uid).script.ready:
            raise Unavailable("connection refused (simulated)")

    async def changes(self) -> AsyncIterator[str]:
        """Yield the pods whose containers ended by themselves."""
        queue: asyncio.Queue[str] = asyncio.Queue(10_000)
        self._listeners.append(queue)
        try:
            while True:
                if queue.full():
                    raise Expired("too many changes wait to be read")
                yield await queue.get()
        finally:
            self._listeners.remove(queue)

    async def close(self) -> None:
        """Stop the timers."""
        for timer in list(self._timers):
            timer.cancel()
        await asyncio.gather(*self._timers, return_exceptions=True)


class _Probe:
    """The session of a command in a simulated container: it says what it is and ends at once."""

    def __init__(self, code: int) -> None:
        self._code = code

    async def output(self) -> AsyncIterator[tuple[str, bytes]]:
        """One line."""
        yield "stderr", b"this pod is simulated: no command was run\n"

    async def write(self, data: bytes) -> None:
        """Nobody reads."""

    async def close_stdin(self) -> None:
        """Nobody reads."""

    async def resize(self, rows: int, columns: int) -> None:
        """There is no terminal."""

    async def wait(self) -> int:
        """The script's verdict."""
        return self._code

    async def close(self) -> None:
        """Nothing is open."""
