"""RUN: one container on the layers so far, its output as it comes, its changes as a layer."""

import asyncio
import secrets
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from wherry.builder.config import document
from wherry.builder.mounting import Prepared
from wherry.builder.operations import Run
from wherry.clock import machine
from wherry.content.oci import Platform
from wherry.content.protocol import Digest
from wherry.engine.types import ContainerSpec, Engine, Exit, SandboxSpec
from wherry.errors import Broken, DeadlineExceeded, Invalid, NotFound, WherryError

LABEL = "wherry.build"
"""Marks containers and images of running builds; what a killed build left is found by it."""
RUN_S = 6 * 3600.0
LAST_WORDS_S = 10.0
_EPOCH = "1970-01-01T00:00:00Z"

Output = Callable[[str, bytes], None]


class BuildEngine(Engine, Protocol):
    """What a build needs of the engine beyond its protocol."""

    async def diff_layer(self, ref: str) -> tuple[Digest, str, int]:
        """Pack what a container has changed as a layer blob: (digest, diff id, size). Only a lease covers it."""
        ...


class CommandFailed(Exception):
    """The command of a RUN ended badly; the message says how."""


@dataclass(frozen=True, slots=True)
class Runner:
    """Runs commands of one build. `logs` is a directory for their output."""

    engine: BuildEngine
    platform: Platform
    logs: Path
    build: str
    network: str

    async def run(
        self,
        operation: Run,
        layers: Sequence[tuple[str, str]],
        output: Output,
        *,
        prepared: Prepared,
        timeout_s: float = RUN_S,
    ) -> tuple[Digest, str, int]:
        """Run it on `layers` (digest, diff id); return the new layer. Raises CommandFailed, Broken, DeadlineExceeded."""
        id = secrets.token_hex(32)
        config = {
            "Env": list(operation.env),
            "WorkingDir": operation.workdir,
            "User": operation.user,
            "Labels": {LABEL: self.build, f"{LABEL}.step": id},  # one image for each step: each removes its own
        }
        made = document(
            config,
            platform=self.platform,
            created=_EPOCH,
            diff_ids=[diff_id for _, diff_id in layers],
            history=[{"created_by": "wherry: layers so far"} for _ in layers],
        )
        image = await self.engine.commit_image(made, [digest for digest, _ in layers], [])
        try:
            return await self._in_container(id, image.id, operation, output, prepared, timeout_s)
        finally:
            await asyncio.shield(self._clean(id, image.id))

    async def _in_container(
        self, id: str, image: str, operation: Run, output: Output, prepared: Prepared, timeout_s: float
    ) -> tuple[Digest, str, int]:
        log = self.logs / f"{id[:16]}.log"
        spec = ContainerSpec(
            name=f"build-{id[:16]}",
            id=id,
            image=image,
            entrypoint=list(operation.argv),
            env=list(operation.proxies),
            env_files=prepared.env_files,
            mounts=prepared.mounts,
            sandbox_spec=SandboxSpec(
                id=secrets.token_hex(32), hostname="build", network=operation.network or self.network
            ),
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
            raise CommandFailed(_how(ended))
        return await self.engine.diff_layer(id)

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


def _how(ended: Exit) -> str:
    if ended.oom:
        return "the command was killed: it used more memory than it may"
    if ended.error:
        return f"the command could not be run: {ended.error}"
    if ended.code > 128:
        return f"the command was killed by signal {ended.code - 128} (exit code {ended.code})"
    return f"the command returned a non-zero exit code: {ended.code}"
