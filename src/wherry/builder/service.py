"""Building images on this machine: the builder that doors and commands call."""

import asyncio
import secrets
import shutil
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from wherry.builder.cache import BUDGET_BYTES, Cache
from wherry.builder.context import Context, opened
from wherry.builder.graph import Plan, images, plan
from wherry.builder.instructions import Dockerfile, parse
from wherry.builder.layers import Listings
from wherry.builder.progress import BuildEvent, Progress, silent
from wherry.builder.running import BuildEngine, Runner, clean_up
from wherry.builder.solver import Solver
from wherry.builder.source import Line, read
from wherry.clock import Clock
from wherry.content.names import parse_name
from wherry.content.oci import Platform, this_platform
from wherry.content.protocol import Content
from wherry.engine.types import Image
from wherry.errors import Cause, Invalid, NotFound, Unauthorized, Unavailable

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
        self._clock = clock
        self._platform = platform or this_platform()
        self._network = network
        self._scratch = root / "tmp"
        self._cache = Cache(root / "cache.db", content, clock, budget_bytes=budget_bytes)
        self._listings = Listings(content, root / "layers")
        self._slots = asyncio.Semaphore(PARALLEL)

    async def start(self) -> None:
        """Put right what killed builds left: containers, images, holds, files."""
        await clean_up(self._engine)
        await self._cache.reconcile()
        await asyncio.to_thread(shutil.rmtree, self._scratch, ignore_errors=True)

    async def close(self) -> None:
        """Close the cache."""
        await self._cache.close()

    async def prune(self, budget_bytes: int = 0) -> int:
        """Let go of cached layers until the rest fits; return the bytes that went."""
        return await self._cache.trim(budget_bytes)

    async def build(
        self,
        context: Path | AsyncIterator[bytes],
        dockerfile: str = "Dockerfile",
        *,
        tags: Sequence[str] = (),
        args: Mapping[str, str] | None = None,
        target: str = "",
        no_cache: bool = False,
        labels: Mapping[str, str] | None = None,
        auth: Mapping[str, str] | None = None,
        pull: bool = False,
        progress: Progress | None = None,
    ) -> Image:
        """Build an image from a directory or a tar stream and give it the names `tags`.

        `pull` asks registries for newer base images. Raises Invalid or Unsupported with file, line and caret for the
        Dockerfile, and for a command that failed; NotFound, Unavailable for a base image.
        """
        names = [_tag(text) for text in tags]
        tell = progress or silent
        args = dict(args or {})
        epoch = _epoch(args)
        self._scratch.mkdir(exist_ok=True)
        async with self._slots, opened(context, dockerfile, self._scratch) as files:
            lease = await self._content.lease(seconds=LEASE_S)
            scratch = Path(tempfile.mkdtemp(prefix="build-", dir=self._scratch))
            try:
                parsed = parse(read(files.dockerfile, files.name))
                bases = await self._bases(parsed, args, target, auth, pull)
                made = plan(
                    parsed,
                    args=args,
                    target=target,
                    platform=self._platform,
                    bases={name: image.config for name, image in bases.items()},
                )
                solver = self._solver(made, files, bases, lease, scratch, tell, no_cache, epoch)
                config, layers = await solver.run()
                if labels:
                    body = config["config"]
                    body["Labels"] = {**(body.get("Labels") or {}), **labels}
                image = await self._engine.commit_image(config, layers, names)
            finally:
                await asyncio.to_thread(shutil.rmtree, scratch, ignore_errors=True)
                await self._content.end_lease(lease)
        tell(BuildEvent("done", made.steps, made.steps, image.id))
        return image

    def _solver(
        self,
        made: Plan,
        files: Context,
        bases: Mapping[str, Image],
        lease: str,
        scratch: Path,
        tell: Progress,
        no_cache: bool,
        epoch: int | None,
    ) -> Solver:
        return Solver(
            plan=made,
            context=files,
            images=bases,
            content=self._content,
            cache=self._cache,
            listings=self._listings,
            runner=Runner(self._engine, self._platform, scratch, secrets.token_hex(8), self._network),
            platform=self._platform,
            clock=self._clock,
            lease=lease,
            scratch=scratch,
            progress=tell,
            no_cache=no_cache,
            epoch=epoch,
        )

    async def _bases(
        self, parsed: Dockerfile, args: Mapping[str, str], target: str, auth: Mapping[str, str] | None, pull: bool
    ) -> Mapping[str, Image]:
        """Get the images that the plan stands on: this machine's own first, then pulled."""
        found: dict[str, Image] = {}
        for name in images(parsed, args=args, target=target, platform=self._platform):
            if not pull:
                with suppress(NotFound):
                    found[name] = await self._engine.image(name)
                    continue
            try:
                found[name] = await self._engine.pull(name, auth=auth)
            except (NotFound, Unauthorized, Unavailable) as error:
                line = _line_of(parsed, name)
                place, text = parsed.source.pointed(line, f"the image {name} cannot be had: {error.message}")
                raise type(error)(text, causes=[Cause(place, type(error).__name__, error.message)]) from error
        return found


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


def _epoch(args: Mapping[str, str]) -> int | None:
    text = args.get("SOURCE_DATE_EPOCH")
    if text is None or text == "":
        return None
    if not text.isdigit():
        message = f"SOURCE_DATE_EPOCH={text!r}: seconds since 1970 are a whole number"
        raise Invalid(message, causes=[Cause("buildargs.SOURCE_DATE_EPOCH", "Invalid", message)])
    return int(text)
