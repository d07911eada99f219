"""Building images on this machine: the builder that doors and commands call."""

import asyncio
import os
import secrets as random
import shutil
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from wherry.builder.cache import BUDGET_BYTES, Built, Cache
from wherry.builder.context import Context, named, opened
from wherry.builder.exchange import export, imports
from wherry.builder.flights import Flights
from wherry.builder.graph import Plan, images, plan
from wherry.builder.instructions import Dockerfile, parse
from wherry.builder.layers import Listings
from wherry.builder.mounting import CACHES_BUDGET_BYTES, Mounts
from wherry.builder.operations import Copy, From, Run, is_url
from wherry.builder.outputs import files_of, rootfs_directory, rootfs_tar
from wherry.builder.progress import BuildEvent, Progress, silent
from wherry.builder.running import BuildEngine, Runner, clean_up
from wherry.builder.solver import Job, Solver, Workshop
from wherry.builder.source import Line, read
from wherry.builder.squeezing import Compression, squeezed
from wherry.clock import Clock
from wherry.content.names import parse_name
from wherry.content.oci import Platform, this_platform
from wherry.content.protocol import Content, Digest
from wherry.engine.types import Image
from wherry.errors import Cause, Invalid, NotFound, Unauthorized, Unavailable

LEASE_S = 24 * 3600.0
PARALLEL = 4
"""Builds at once; more wait."""
SECRET_MAX_BYTES = 500 * 1024


@dataclass(frozen=True, slots=True)
class Wanted:
    """How to build. `contexts` are named contexts: a directory, or a whole image name.

    `secrets` are values by id: they reach the steps that mount them, and nothing that is kept. `fresh_stages` are built
    without the cache, `cache_from` and `cache_to` are directories of exported caches. `network` is that of
    RUNs that name none ("": the builder's).
    """

    tags: Sequence[str] = ()
    args: Mapping[str, str] = field(default_factory=dict[str, str])
    target: str = ""
    no_cache: bool = False
    fresh_stages: Sequence[str] = ()
    labels: Mapping[str, str] = field(default_factory=dict[str, str])
    annotations: Mapping[str, str] = field(default_factory=dict[str, str])
    auth: Mapping[str, str] | None = None
    pull: bool = False
    contexts: Mapping[str, Path | str] = field(default_factory=dict[str, Path | str])
    secrets: Mapping[str, bytes] = field(default_factory=dict[str, bytes])
    network: str = ""
    cache_from: Sequence[Path] = ()
    cache_to: Path | None = None
    compression: Compression | None = None


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

    async def build(
        self,
        context: Path | AsyncIterator[bytes],
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
        """Build an image from a directory or a tar stream, as `wanted` says; without it, as the other words say.

        Raises Invalid or Unsupported with file, line and caret for the Dockerfile, and for a command that failed; NotFound,
        Unavailable for a base image.
        """
        ask = wanted or Wanted(
            tags=tags, args=dict(args or {}), target=target, no_cache=no_cache, labels=dict(labels or {})
        )
        names = [_tag(text) for text in ask.tags]
        tell = progress or silent
        _check_secrets(ask.secrets)
        async with self._slots, self._bench() as scratch, opened(context, dockerfile, scratch) as files:
            lease = await self._content.lease(seconds=LEASE_S)
            try:
                return await self._build(ask, names, files, lease, scratch, tell)
            finally:
                await self._content.end_lease(lease)

    async def check(
        self, context: Path | AsyncIterator[bytes], dockerfile: str = "Dockerfile", *, wanted: Wanted | None = None
    ) -> Sequence[str]:
        """Read the Dockerfile and its base images, and say the build checks' findings; nothing is built."""
        ask = wanted or Wanted()
        async with self._slots, self._bench() as scratch, opened(context, dockerfile, scratch) as files:
            made, _, _ = await self._planned(ask, files)
            return made.warnings

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
        self, ask: Wanted, names: Sequence[str], files: Context, lease: str, scratch: Path, tell: Progress
    ) -> Image:
        made, bases, contexts = await self._planned(ask, files)
        epoch = _epoch(ask.args)
        network = ask.network or self._network
        brought = await imports(self._content, self._cache, ask.cache_from) if ask.cache_from else None
        job = Job(
            plan=made,
            context=files,
            images=bases,
            runner=Runner(self._engine, self._platform, scratch, random.token_hex(8), network),
            platform=self._platform,
            lease=lease,
            scratch=scratch,
            progress=tell,
            contexts=contexts,
            secrets=ask.secrets,
            fresh=None if ask.no_cache else frozenset(name.lower() for name in ask.fresh_stages),
            epoch=epoch,
            imports=brought,
        )
        solver = Solver(self._shop, job)
        config, layers = await solver.run()
        if ask.labels:
            body = config["config"]
            body["Labels"] = {**(body.get("Labels") or {}), **ask.labels}
        if ask.compression is not None:
            own = _base_layers(made, bases)
            layers = [
                layer if layer in own else await self._squeezed(layer, ask.compression, lease) for layer in layers
            ]
        image = await self._engine.commit_image(config, layers, names, annotations=ask.annotations or None)
        if ask.cache_to is not None:
            await export(self._content, self._cache, solver.keys, ask.cache_to, lease)
        if any(mount.kind == "cache" for stage in made.stages for one in stage.operations if isinstance(one, Run)
               for mount in one.mounts):  # fmt: skip
            await self._mounts.trim(CACHES_BUDGET_BYTES)
        tell(BuildEvent("done", made.steps, made.steps, image.id))
        return image

    async def _planned(self, ask: Wanted, files: Context) -> tuple[Plan, Mapping[str, Image], Mapping[str, Context]]:
        parsed = parse(read(files.dockerfile, files.name))
        contexts = {
            name: await asyncio.to_thread(named, place, name)
            for name, place in ask.contexts.items()
            if isinstance(place, Path)
        }
        names = {name: "" if isinstance(place, Path) else _image(name, place) for name, place in ask.contexts.items()}
        bases = await self._bases(parsed, ask, names)
        made = plan(
            parsed,
            args=ask.args,
            target=ask.target,
            platform=self._platform,
            contexts=names,
            bases={name: image.config for name, image in bases.items()},
        )
        return _with_ignored(made, files), bases, contexts

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

    async def _bases(self, parsed: Dockerfile, ask: Wanted, contexts: Mapping[str, str]) -> Mapping[str, Image]:
        """Get the images that the plan stands on, those that their triggers name too: this machine's own first."""
        found: dict[str, Image] = {}
        while True:
            names = images(
                parsed,
                args=ask.args,
                target=ask.target,
                platform=self._platform,
                contexts=contexts,
                bases={name: image.config for name, image in found.items()},
            )
            missing = [name for name in names if name not in found]
            if not missing:
                return found
            for name in missing:
                found[name] = await self._base(parsed, name, ask)

    async def _base(self, parsed: Dockerfile, name: str, ask: Wanted) -> Image:
        if not ask.pull:
            with suppress(NotFound):
                return await self._engine.image(name)
        try:
            return await self._engine.pull(name, auth=ask.auth)
        except (NotFound, Unauthorized, Unavailable) as error:
            line = _line_of(parsed, name)
            place, text = parsed.source.pointed(line, f"the image {name} cannot be had: {error.message}")
            raise type(error)(text, causes=[Cause(place, type(error).__name__, error.message)]) from error


def _base_layers(made: Plan, bases: Mapping[str, Image]) -> frozenset[str]:
    return frozenset(layer for stage in made.stages if stage.image for layer in bases[stage.image].layers)


def _with_ignored(made: Plan, files: Context) -> Plan:
    """Add the findings of the rule CopyIgnoredFile."""
    if made.source.checks.skips("CopyIgnoredFile"):
        return made
    found = [
        f"{made.source.name}:{one.line.first}: {text!r} is left out by {files.ignore.name} (CopyIgnoredFile)"
        for stage in made.stages
        for one in stage.operations
        if isinstance(one, Copy) and one.origin == From()
        for text in one.sources
        if text not in one.inline and not is_url(text) and files.ignore.hides(os.path.normpath(text).lstrip("/"))
    ]
    return Plan(made.source, made.stages, [*made.warnings, *found])


def _line_of(parsed: Dockerfile, name: str) -> Line:
    """The line that asks for an image: the first whose words mean it, else the first FROM."""
    for stage in parsed.stages:
        for one in (stage.origin, *stage.instructions):
            text = one.args[0] if one.name == "FROM" else one.flags.get("from", "")
            with suppress(Invalid):
                if text and str(parse_name(text)) == name:
                    return one.line
    return parsed.stages[0].origin.line


def _tag(text: str) -> str:
    name = parse_name(text, "tag")
    if name.digest is not None:
        message = f"tag {text!r}: an image is named by a tag, not by a digest"
        raise Invalid(message, causes=[Cause("tag", "InvalidName", message)])
    return str(name)


def _image(name: str, text: str) -> str:
    """Read a named context that is an image. Raises Invalid."""
    try:
        return str(parse_name(text.removeprefix("docker-image://"), "image"))
    except Invalid as error:
        message = f"build context {name}={text}: {error.message}"
        raise Invalid(message, causes=[Cause("contexts", "Invalid", message)]) from None


def _check_secrets(given: Mapping[str, bytes]) -> None:
    for id, value in given.items():
        if len(value) > SECRET_MAX_BYTES:
            message = f"secret {id}: it has {len(value)} bytes; at most {SECRET_MAX_BYTES} are taken"
            raise Invalid(message, causes=[Cause("secrets", "TooLarge", message)])


def _epoch(args: Mapping[str, str]) -> int | None:
    text = args.get("SOURCE_DATE_EPOCH")
    if text is None or text == "":
        return None
    if not text.isdigit():
        message = f"SOURCE_DATE_EPOCH={text!r}: seconds since 1970 are a whole number"
        raise Invalid(message, causes=[Cause("buildargs.SOURCE_DATE_EPOCH", "Invalid", message)])
    return int(text)
