"""Building images on this machine: the builder that doors and commands call."""

import asyncio
import os
import secrets as random
import shutil
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path

from wherry.builder.alike import Alikes
from wherry.builder.cache import BUDGET_BYTES, Built, Cache, Layer
from wherry.builder.context import Context, opened
from wherry.builder.exchange import Imports, export, imported, inline, rows_of_keys
from wherry.builder.finishing import Finisher, Made
from wherry.builder.flights import Flights
from wherry.builder.git import GitAccess
from wherry.builder.layers import Listings
from wherry.builder.mounting import CACHES_BUDGET_BYTES, Mounts
from wherry.builder.operations import Run
from wherry.builder.outputs import files_of, rootfs_directory, rootfs_tar
from wherry.builder.planning import Planned, Planner
from wherry.builder.progress import BuildEvent, Progress, silent
from wherry.builder.running import BuildEngine, Runner, clean_up
from wherry.builder.solver import Job, Solver, Workshop, first_of
from wherry.builder.squeezing import Compression, squeezed
from wherry.builder.wanted import Wanted, check, epoch_of, tag_of
from wherry.clock import Clock
from wherry.content.oci import Platform, this_platform
from wherry.content.protocol import Content, Digest
from wherry.engine.types import Image

__all__ = ["Builder", "Wanted"]

LEASE_S = 24 * 3600.0
PARALLEL = 4
"""Builds at once; more wait."""


class Builder:
    """Builds Dockerfiles on an engine. `root` keeps the cache's records; layers are in the content store.

    `network` is the network mode of RUN's containers (engine/types.SandboxSpec).
    """

    def __init__(
        self,
        engine: BuildEngine,
        content: Content,
        root: Path,
        *,
        clock: Clock,
        platform: Platform | None = None,
        budget_bytes: int = BUDGET_BYTES,
        network: str = "pod",
    ) -> None:
        root.mkdir(parents=True, exist_ok=True)
        self._engine = engine
        self._content = content
        self._platform = platform or this_platform()
        self._network = network
        self._scratch = root / "tmp"
        self._cache = Cache(root / "cache.db", content, clock, budget_bytes=budget_bytes)
        self._listings = Listings(content, root / "layers")
        self._mounts = Mounts(root / "mounts")
        self._slots = asyncio.Semaphore(PARALLEL)
        cores = asyncio.Semaphore(max(2, os.cpu_count() or 2))
        self._shop = Workshop(content, self._cache, self._listings, self._mounts, Flights(), cores, clock)

    async def start(self) -> None:
        """Put right what killed builds left: containers, images, holds, files, secrets."""
        await clean_up(self._engine)
        await self._cache.reconcile()
        await asyncio.to_thread(self._mounts.start)
        await asyncio.to_thread(shutil.rmtree, self._scratch, ignore_errors=True)

    async def close(self) -> None:
        """Close the cache."""
        await self._cache.close()

    async def prune(self, budget_bytes: int = 0) -> int:
        """Let go of cached layers and cache mounts until the rest of each fits; return the bytes that went."""
        return await self._cache.trim(budget_bytes) + await self._mounts.trim(budget_bytes)

    async def cached(self) -> tuple[Sequence[Layer], Sequence[tuple[str, int, float]]]:
        """List the cached layers, and the cache mounts: (name, bytes, last use)."""
        return await self._cache.layers(), await self._mounts.kept()

    async def forget(self, names: Sequence[str]) -> Sequence[str]:
        """Let go of layers by key and of cache mounts by name; return what went."""
        layers = {each.key for each in await self._cache.layers()} & set(names)
        await self._cache.forget(sorted(layers))
        return [*sorted(layers), *await self._mounts.forget([name for name in names if name not in layers])]

    async def build(
        self,
        context: Path | AsyncIterator[bytes] | str,
        dockerfile: str = "Dockerfile",
        *,
        wanted: Wanted | None = None,
        tags: Sequence[str] = (),
        args: Mapping[str, str] | None = None,
        target: str = "",
        no_cache: bool = False,
        labels: Mapping[str, str] | None = None,
        progress: Progress | None = None,
    ) -> Image:
        """Build an image from a directory, a tar stream or an address, as `wanted` says; without it, as the other words say.

        Raises Invalid or Unsupported with file, line and caret for the Dockerfile, and for a command that failed; NotFound,
        Unavailable for a base image.
        """
        ask = wanted or Wanted(
            tags=tags, args=dict(args or {}), target=target, no_cache=no_cache, labels=dict(labels or {})
        )
        names = [tag_of(text) for text in ask.tags]
        check(ask)
        async with (
            self._slots,
            self._bench() as scratch,
            opened(context, dockerfile, scratch, self._access(ask)) as files,
        ):
            lease = await self._content.lease(seconds=LEASE_S)
            try:
                with ExitStack() as kept:
                    return await self._build(ask, names, files, lease, scratch, progress or silent, kept)
            finally:
                await self._content.end_lease(lease)

    async def check(
        self,
        context: Path | AsyncIterator[bytes] | str,
        dockerfile: str = "Dockerfile",
        *,
        wanted: Wanted | None = None,
    ) -> Sequence[str]:
        """Read the Dockerfile and its base images, and say the build checks' findings; nothing is built."""
        ask = wanted or Wanted()
        check(ask)
        async with (
            self._slots,
            self._bench() as scratch,
            opened(context, dockerfile, scratch, self._access(ask)) as files,
        ):
            lease = await self._content.lease(seconds=LEASE_S)
            try:
                planner = self._planner(ask, lease, scratch)
                contexts = await planner.contexts(ask)
                found = [
                    (await planner.plan(ask, files, contexts, each)).plan.warnings
                    for each in ask.platforms or (self._platform,)
                ]
                return list(dict.fromkeys(text for warnings in found for text in warnings))
            finally:
                await self._content.end_lease(lease)

    @asynccontextmanager
    async def export(self, ref: str) -> AsyncGenerator[AsyncIterator[bytes]]:
        """Give an image's root file system as a tar stream."""
        image = await self._engine.image(ref)
        async with self._bench() as scratch:
            yield rootfs_tar(await files_of(self._content, self._listings, image.layers, scratch))

    async def export_to(self, ref: str, dest: Path) -> None:
        """Write an image's root file system into an empty directory."""
        image = await self._engine.image(ref)
        async with self._bench() as scratch:
            await rootfs_directory(await files_of(self._content, self._listings, image.layers, scratch), dest)

    async def _build(
        self,
        ask: Wanted,
        names: Sequence[str],
        files: Context,
        lease: str,
        scratch: Path,
        tell: Progress,
        kept: ExitStack,
    ) -> Image:
        planner = self._planner(ask, lease, scratch)
        contexts = await planner.contexts(ask)
        platforms = list(dict.fromkeys(ask.platforms)) or [self._platform]
        planned = [await planner.plan(ask, files, contexts, each) for each in platforms]  # all, before anything runs
        began = self._shop.clock.now()

        def warn(text: str) -> None:
            tell(BuildEvent("warning", text=text))

        cached = imported(
            self._content, self._cache, self._engine, ask.cache_from, auth=ask.auth, platform=self._platform, warn=warn
        )
        async with cached as brought:
            try:
                async with asyncio.TaskGroup() as group:
                    tasks = [
                        group.create_task(
                            self._solve(
                                ask,
                                each,
                                files,
                                lease,
                                scratch / str(number),
                                _named(tell, each, platforms),
                                brought,
                                kept,
                            )
                        )
                        for number, each in enumerate(planned)
                    ]
            except BaseExceptionGroup as failed:
                raise first_of(failed) from None
        made = [task.result() for task in tasks]
        finisher = Finisher(
            self._engine, self._content, self._listings, self._shop.clock, ask, files, lease, scratch, began
        )
        image = await finisher.image(made, names)
        for place in ask.cache_to:
            if place.kind != "inline":
                rows = [row for each in made for row in (each.rows if place.whole else each.target_rows)]
                unique = list({row.key: row for row in rows}.values())
                await export(self._content, self._engine, place, unique, auth=ask.auth, lease=lease)
        if any(mount.kind == "cache" for each in planned for stage in each.plan.stages for one in stage.operations
               if isinstance(one, Run) for mount in one.mounts):  # fmt: skip
            await self._mounts.trim(CACHES_BUDGET_BYTES)
        steps = planned[-1].plan.steps
        tell(BuildEvent("done", steps, steps, image.id))
        return image

    async def _solve(
        self,
        ask: Wanted,
        planned: Planned,
        files: Context,
        lease: str,
        scratch: Path,
        tell: Progress,
        brought: Imports | None,
        kept: ExitStack,
    ) -> Made:
        """Do the steps for one platform."""
        scratch.mkdir(exist_ok=True)
        alike = Alikes(self._content, self._listings, [await self._engine.image(name) for name in ask.alike])
        job = Job(
            plan=planned.plan,
            context=files,
            images=planned.images,
            runner=Runner(
                self._engine,
                self._platform,
                scratch,
                random.token_hex(8),
                ask.network or self._network,
                kept,
                ask.around,
            ),
            platform=self._platform,
            lease=lease,
            scratch=scratch,
            progress=tell,
            contexts=planned.contexts,
            secrets=ask.secrets,
            agents=ask.agents,
            fresh=None if ask.no_cache else frozenset(name.lower() for name in ask.fresh_stages),
            epoch=epoch_of(ask.args),
            imports=brought,
            alike=alike if ask.alike else None,
            access=self._access(ask, local=False),
        )
        solver = Solver(self._shop, job)
        config, layers = await solver.run()
        rows = await rows_of_keys(self._cache, solver.keys(), lease) if ask.cache_to or ask.is_inline else ()
        target = frozenset(solver.keys(whole=False))
        target_rows = [row for row in rows if row.key in target]
        if ask.labels:
            body = config["config"]
            body["Labels"] = {**(body.get("Labels") or {}), **ask.labels}
        if ask.is_inline:
            config |= inline(target_rows)
        if ask.compression is not None:
            own = _base_layers(planned)
            layers = [
                layer if layer in own else await self._squeezed(layer, ask.compression, lease) for layer in layers
            ]
        return Made(planned, config, layers, rows, target_rows, solver.sourcing.commits)

    def _access(self, ask: Wanted, *, local: bool = True) -> GitAccess:
        agent = ask.agents.get("default", "")
        return GitAccess(ask.secrets, agent, self._scratch.parent / "known_hosts", local)

    def _planner(self, ask: Wanted, lease: str, scratch: Path) -> Planner:
        return Planner(self._engine, self._content, self._platform, self._access(ask), lease, scratch)

    async def _squeezed(self, layer: str, wanted: Compression, lease: str) -> str:
        """A layer compressed as is wanted, from the cache where it was made before."""
        key = f"squeezed/{wanted.kind}/{wanted.level}/{layer}"
        known = await self._cache.find(key, lease)
        if known is None:
            made = await squeezed(self._content, Digest(layer), wanted, lease=lease)
            known = Built(made.digest, made.diff_id, made.size_bytes, self._shop.clock.now())
            await self._cache.put(key, known)
        return known.digest

    @asynccontextmanager
    async def _bench(self) -> AsyncGenerator[Path]:
        """A directory for one piece of work, gone at its end."""
        self._scratch.mkdir(exist_ok=True)
        place = Path(tempfile.mkdtemp(prefix="build-", dir=self._scratch))
        try:
            yield place
        finally:
            await asyncio.to_thread(shutil.rmtree, place, ignore_errors=True)


def _base_layers(planned: Planned) -> frozenset[str]:
    return frozenset(
        layer for stage in planned.plan.stages if stage.image for layer in planned.images[stage.image].layers
    )


def _named(tell: Progress, planned: Planned, platforms: Sequence[Platform]) -> Progress:
    """News with the platform, where there are several."""
    if len(platforms) == 1:
        return tell
    name = str(planned.platform)
    return lambda event: tell(replace(event, stage=f"{name} {event.stage}".strip(), platform=name))
