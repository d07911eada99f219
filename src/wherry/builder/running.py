"""RUN: one container on the layers so far, its output as it comes, its changes as a layer."""

import asyncio
import secrets
from collections.abc import AsyncGenerator, Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from wherry.builder.config import document
from wherry.builder.mounting import Prepared
from wherry.builder.operations import Run
from wherry.clock import machine
from wherry.content.oci import Platform
from wherry.content.protocol import Digest
from wherry.content.remote import Remote
from wherry.engine.types import ContainerSpec, Engine, Exit, Image, Join, Limits, SandboxSpec, Ulimit
from wherry.errors import Broken, DeadlineExceeded, Invalid, NotFound, WherryError

LABEL = "wherry.build"
"""Marks containers and images of running builds; what a killed build left is found by it."""
RUN_S = 6 * 3600.0
LAST_WORDS_S = 10.0
_EPOCH = "1970-01-01T00:00:00Z"

Output = Callable[[str, bytes], None]


class BuildEngine(Engine, Protocol):
    """What a build needs of the engine beyond its protocol."""

    async def image(self, ref: str, *, platform: str = "") -> Image:
        """See Engine. `platform`: of an image that is here for several."""
        ...

    async def pull(
        self, ref: str, *, auth: Mapping[str, str] | None = None, progress: Any = None, platform: str = ""
    ) -> Image:
        """See Engine."""
        ...

    async def name_root(self, root: Digest, names: Sequence[str]) -> Image:
        """Name an index that is in the store, here and in the cluster's registry, as `commit_image` names an image."""
        ...

    def registry(self, ref: str, auth: Mapping[str, str] | None) -> AbstractAsyncContextManager[tuple[Remote, str]]:
        """Give the registry that a name says, and the repository there."""
        ...

    async def diff_layer(self, ref: str, *, lease: str = "") -> tuple[Digest, str, int]:
        """Pack what a container has changed as a layer blob: (digest, diff id, size). Only the lease covers it."""
        ...

    async def adopt_layer(self, ref: str, diff_id: str) -> bool:
        """Keep what a dead container changed as that layer, unpacked; it can only be removed then."""
        ...

    def keeping(self, diff_ids: Collection[str]) -> AbstractContextManager[None]:
        """Keep unpacked layers that no image has yet."""
        ...


class CommandFailed(Exception):
    """The command of a RUN ended badly; the message says how."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the containers of RUN find round them; none of it is part of a step's key, as with Docker.

    `networks` are names or ids of networks that they are on, `hosts` names with addresses of their own.
    """

    networks: Sequence[str] = ()
    hosts: Mapping[str, str] = field(default_factory=dict[str, str])
    shm_bytes: int = 0
    limits: Limits = field(default_factory=Limits)
    ulimits: Sequence[Ulimit] = ()


@dataclass(frozen=True, slots=True)
class Runner:
    """Runs commands of one build. `logs` is a directory for their output.

    `kept` keeps what the steps wrote unpacked, until the image that has it is named.
    """

    engine: BuildEngine
    platform: Platform
    logs: Path
    build: str
    network: str
    kept: ExitStack
    around: Surroundings = field(default_factory=Surroundings)
    leaving: list[asyncio.Task[None]] = field(default_factory=list[asyncio.Task[None]])

    async def run(
        self,
        operation: Run,
        layers: Sequence[tuple[str, str]],
        output: Output,
        *,
        prepared: Prepared,
        lease: str,
        platform: Platform | None = None,
        timeout_s: float = RUN_S,
    ) -> tuple[Digest, str, int]:
        """Run it on `layers` (digest, diff id) as `platform` (None: the machine's); return the new layer, covered by `lease`.

        Raises CommandFailed, Broken, DeadlineExceeded.
        """
        id = secrets.token_hex(32)
        platform = platform or self.platform
        config = {
            "Env": list(operation.env),
            "WorkingDir": operation.workdir,
            "User": operation.user,
            "Labels": {LABEL: self.build, f"{LABEL}.step": id},  # one image for each step: each removes its own
        }
        made = document(
            config,
            platform=platform,
            created=_EPOCH,
            diff_ids=[diff_id for _, diff_id in layers],
            history=[{"created_by": "wherry: layers so far"} for _ in layers],
        )
        self.kept.enter_context(self.engine.keeping([diff_id for _, diff_id in layers]))
        image = await self.engine.commit_image(made, [digest for digest, _ in layers], [])
        try:
            return await self._in_container(id, image.id, operation, output, prepared, lease, platform, timeout_s)
        finally:
            self.leaving.append(asyncio.create_task(self._clean(id, image.id), name=f"clean after build {id[:12]}"))

    @asynccontextmanager
    async def working(self) -> AsyncGenerator[None]:
        """Run within this: what steps leave is taken away behind them, and all of it is gone at the end."""
        try:
            yield
        finally:
            while self.leaving:
                await asyncio.shield(asyncio.wait([self.leaving.pop()]))

    async def _in_container(
        self,
        id: str,
        image: str,
        operation: Run,
        output: Output,
        prepared: Prepared,
        lease: str,
        platform: Platform,
        timeout_s: float,
    ) -> tuple[Digest, str, int]:
        log = self.logs / f"{id[:16]}.log"
        spec = ContainerSpec(
            name=f"build-{id[:16]}",
            id=id,
            image=image,
            entrypoint=list(operation.argv),
            env=[*operation.proxies, *prepared.env],
            privileged=operation.insecure,
            platform="" if platform == self.platform else str(platform),
            env_files=prepared.env_files,
            mounts=prepared.mounts,
            sandbox_spec=self._sandbox(operation),
            limits=self.around.limits,
            ulimits=self.around.ulimits,
            labels={LABEL: self.build},
            log_path=str(log),
        )
        await self.engine.create(spec)
        try:
            await self.engine.start(id)
        except (Broken, Invalid) as error:
            raise CommandFailed(f"{operation.argv[0]} cannot be run: {error.message}") from error
        reading = asyncio.create_task(self._tell(id, output), name=f"output of build {id[:12]}")
        try:
            try:
                async with machine.timeout(timeout_s):
                    ended = await self.engine.wait(id)
            except TimeoutError:
                raise DeadlineExceeded(f"the command was not done after {timeout_s:g} s") from None
            with suppress(TimeoutError):
                async with machine.timeout(LAST_WORDS_S):
                    await reading
        finally:
            reading.cancel()
        if ended.code != 0:
            raise CommandFailed(_how(ended, operation.argv))
        layer, diff_id, size = await self.engine.diff_layer(id, lease=lease)
        self.kept.enter_context(self.engine.keeping([diff_id]))
        await self.engine.adopt_layer(id, diff_id)
        return layer, diff_id, size

    def _sandbox(self, operation: Run) -> SandboxSpec:
        joins = () if operation.network else [Join(name) for name in self.around.networks]
        return SandboxSpec(
            id=secrets.token_hex(32),
            hostname="build",
            network="user" if joins else operation.network or self.network,
            networks=joins,
            hosts=list(self.around.hosts.items()),
            shm_bytes=self.around.shm_bytes,
        )

    async def _tell(self, id: str, output: Output) -> None:
        async for line in self.engine.logs(id, follow=True):
            output(line.stream, line.data)

    async def _clean(self, id: str, image: str) -> None:
        with suppress(WherryError):
            await self.engine.remove(id, force=True)
        with suppress(WherryError):
            await self.engine.remove_image(image, force=True)
        (self.logs / f"{id[:16]}.log").unlink(missing_ok=True)


async def clean_up(engine: Engine, keep: str = "") -> int:
    """Remove containers and images that builds left when they were killed; return how many. `keep` is a live build."""
    gone = 0
    for container in await engine.containers():
        if container.spec.labels.get(LABEL, keep) != keep:
            with suppress(NotFound):
                await engine.remove(container.id, force=True)
                gone += 1
    for image in await engine.images():
        labels = (image.config.get("config") or {}).get("Labels") or {}
        if labels.get(LABEL, keep) != keep and not image.names:
            with suppress(WherryError):
                await engine.remove_image(image.id, force=True)
                gone += 1
    return gone


def _how(ended: Exit, argv: Sequence[str]) -> str:
    if ended.oom:
        return "the command was killed: it used more memory than it may"
    if ended.error:
        return f"the command could not be run: {ended.error}"
    if ended.code > 128:
        return f"the command was killed by signal {ended.code - 128} (exit code {ended.code})"
    return f"The command '{' '.join(argv)}' returned a non-zero code: {ended.code}"  # clients look for these words
