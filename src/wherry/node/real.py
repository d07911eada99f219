"""Pods by the engine of this machine."""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress

from wherry.clock import machine
from wherry.engine.types import Container, ContainerSpec, Engine, ExecSpec, LogLine, SandboxSpec, Session, State
from wherry.errors import Broken, Conflict, NotFound, Unavailable
from wherry.node.plans import sandbox_id
from wherry.node.runtime import ContainerState, LocalImage, Phase, PodState

UID = "io.kubernetes.pod.uid"
NAME = "io.kubernetes.container.name"
ATTEMPT = "io.kubernetes.container.attempt"
IMAGE = "io.kubernetes.container.image"


class EngineRuntime:
    """A `PodRuntime` over the engine. It keeps nothing: the engine's records, found by labels, are the truth."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._pulls: dict[str, asyncio.Lock] = {}

    async def pods(self) -> Sequence[PodState]:
        """List the pods that have a sandbox."""
        containers = await self._engine.containers()
        return [
            PodState(
                uid=each.spec.labels[UID],
                namespace=each.spec.labels.get("io.kubernetes.pod.namespace", ""),
                name=each.spec.labels.get("io.kubernetes.pod.name", ""),
                address=each.address,
                created=each.created,
                containers=[_state(one) for one in containers if one.sandbox == each.id and NAME in one.spec.labels],
                labels=each.spec.labels,
            )
            for each in await self._engine.sandboxes()
            if UID in each.spec.labels and each.ready
        ]

    async def pod(self, uid: str) -> PodState | None:
        """What is here of one pod."""
        try:
            sandbox = await self._engine.sandbox(sandbox_id(uid))
        except NotFound:
            return None
        if not sandbox.ready:
            return None
        containers = await self._engine.containers()
        return PodState(
            uid=uid,
            namespace=sandbox.spec.labels.get("io.kubernetes.pod.namespace", ""),
            name=sandbox.spec.labels.get("io.kubernetes.pod.name", ""),
            address=sandbox.address,
            created=sandbox.created,
            containers=[_state(one) for one in containers if one.sandbox == sandbox.id and NAME in one.spec.labels],
            labels=sandbox.spec.labels,
        )

    async def ensure_sandbox(self, uid: str, namespace: str, name: str, spec: SandboxSpec) -> PodState:
        """Make the pod's sandbox if it is not there."""
        await self._engine.create_sandbox(spec)
        state = await self.pod(uid)
        if state is None:
            raise Broken(f"pod {namespace}/{name}: its sandbox went away while it was made")
        return state

    async def ensure_image(self, image: str, policy: str) -> LocalImage:
        """Have an image by pull policy; pods of one image wait for one pull."""
        lock = self._pulls.setdefault(image, asyncio.Lock())
        async with lock:
            if policy != "Always":
                try:
                    found = await self._engine.image(image)
                    return LocalImage(found.id, _user(found.config))
                except NotFound:
                    if policy == "Never":
                        message = f"image {image!r} is not on this node and its pull policy is Never"
                        raise NotFound(message) from None
            try:
                found = await self._engine.pull(image)
            finally:
                if len(self._pulls) > 1000:
                    self._pulls.clear()
            return LocalImage(found.id, _user(found.config))

    async def start(self, uid: str, name: str, attempt: int, spec: ContainerSpec) -> ContainerState:
        """Create and start one attempt; one that an agent before us had created is started, or taken as it is."""
        container = await self._find(uid, name, attempt)
        if container is None:
            container = await self._engine.create(spec)
        if container.state is State.CREATED:
            try:
                await self._engine.start(container.id)
            except Broken:
                with suppress(NotFound):
                    await self._engine.remove(container.id, force=True)
                raise
        return _state(await self._engine.container(container.id))

    async def _find(self, uid: str, name: str, attempt: int) -> Container | None:
        for each in await self._engine.containers():
            labels = each.spec.labels
            if labels.get(UID) == uid and labels.get(NAME) == name and labels.get(ATTEMPT) == str(attempt):
                return each
        return None

    async def stop(self, uid: str, container_id: str, grace_s: float) -> None:
        """End a container in order."""
        with suppress(NotFound, Conflict):
            await self._engine.stop(container_id, grace_s=grace_s)

    async def remove_container(self, uid: str, container_id: str) -> None:
        """Remove a finished attempt and its log."""
        with suppress(NotFound):
            await self._engine.remove(container_id)

    async def remove(self, uid: str) -> None:
        """Remove all that is left of the pod."""
        await self._engine.remove_sandbox(sandbox_id(uid))

    async def exec(self, uid: str, container_id: str, argv: Sequence[str], *, tty: bool, stdin: bool) -> Session:
        """Run a command in a container."""
        return await self._engine.exec(container_id, ExecSpec(list(argv), tty=tty, stdin=stdin))

    async def attach(self, uid: str, container_id: str) -> Session:
        """Attach to a container's streams."""
        return await self._engine.attach(container_id)

    def logs(
        self, uid: str, container_id: str, *, follow: bool, tail: int | None, since: float
    ) -> AsyncIterator[LogLine]:
        """Yield a container's log."""
        return self._engine.logs(container_id, follow=follow, tail=tail, since=since)

    async def probe_http(
        self, uid: str, *, scheme: str, port: int, path: str, host: str, headers: Sequence[tuple[str, str]],
        timeout_s: float,
    ) -> int:  # fmt: skip
        """GET from the pod's address, which this machine routes to."""
        address = host or await self._address(uid)
        try:
            async with machine.timeout(timeout_s):
                context = None
                if scheme == "https":
                    context = ssl.create_default_context()
                    context.check_hostname, context.verify_mode = (
                        False,
                        ssl.CERT_NONE,
                    )  # as kubelet: a probe is no trust
                reader, writer = await asyncio.open_connection(address, port, ssl=context)
                try:
                    named = {name.lower() for name, _ in headers}
                    lines = [f"GET {path} HTTP/1.1"]
                    lines += [] if "host" in named else [f"Host: {address}:{port}"]
                    lines += [] if "user-agent" in named else ["User-Agent: kube-probe/1.37"]
                    lines += [f"{name}: {value}" for name, value in headers]
                    lines += ["Accept: */*", "Connection: close", "", ""]
                    writer.write("\r\n".join(lines).encode("latin-1", "replace"))
                    answer = await reader.readline()
                    parts = answer.split(b" ", 2)
                    if len(parts) < 2 or not parts[0].startswith(b"HTTP/") or not parts[1][:3].isdigit():
                        raise Unavailable(f"http://{address}:{port}{path}: the answer is not HTTP")
                    return int(parts[1][:3])
                finally:
                    writer.close()
        except TimeoutError:
            raise Unavailable(f"http://{address}:{port}{path}: no answer within {timeout_s:g} s") from None
        except (OSError, ValueError) as error:
            raise Unavailable(f"http://{address}:{port}{path}: {error}") from None

    async def probe_tcp(self, uid: str, *, port: int, host: str, timeout_s: float) -> None:
        """Connect to the pod's address."""
        address = host or await self._address(uid)
        try:
            async with machine.timeout(timeout_s):
                _, writer = await asyncio.open_connection(address, port, family=socket.AF_UNSPEC)
                writer.close()
        except (OSError, TimeoutError) as error:
            raise Unavailable(f"tcp {address}:{port}: {error or 'no answer'}") from None

    async def _address(self, uid: str) -> str:
        sandbox = await self._engine.sandbox(sandbox_id(uid))
        return sandbox.address or "127.0.0.1"

    async def changes(self) -> AsyncIterator[str]:
        """Yield the pods whose containers ended, started or were killed."""
        async for event in self._engine.events():
            uid = event.attributes.get(UID, "")
            if not uid and event.kind == "container" and event.action in ("die", "oom"):
                with suppress(NotFound):
                    uid = (await self._engine.container(event.id)).spec.labels.get(UID, "")
            if uid:
                yield uid


def _user(config: object) -> str:
    inner = config.get("config") if isinstance(config, dict) else None
    return str(inner.get("User") or "") if isinstance(inner, dict) else ""


def _state(container: Container) -> ContainerState:
    phase = {
        State.CREATED: Phase.WAITING,
        State.RUNNING: Phase.RUNNING,
        State.PAUSED: Phase.RUNNING,
        State.EXITED: Phase.TERMINATED,
    }[container.state]
    labels = container.spec.labels
    return ContainerState(
        id=container.id,
        name=labels.get(NAME, ""),
        attempt=int(labels.get(ATTEMPT, "0")),
        phase=phase,
        started=container.started,
        exit=container.exit,
        image=labels.get(IMAGE, container.spec.image),
        image_id=container.image_id,
    )
