"""The builder as the Docker door asks for it: a tar stream in, progress as text out.

Most nodes never build: the builder is imported and opened at the first build, or at start where there was one before.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from wherry.clock import Clock
from wherry.content.protocol import Content
from wherry.doors.docker.builds import BuildOptions
from wherry.doors.docker.cache import Cached
from wherry.engine.local import LocalEngine
from wherry.engine.types import Image
from wherry.errors import NotFound

if TYPE_CHECKING:
    from wherry.builder.progress import BuildEvent
    from wherry.builder.service import Builder


class TarBuild:
    """doors.docker.builds.Build over the builder of this machine."""

    def __init__(self, engine: LocalEngine, content: Content, root: Path, *, clock: Clock) -> None:
        self._engine, self._content, self._root, self._clock = engine, content, root, clock
        self._builder: Builder | None = None
        self._opening = asyncio.Lock()

    async def start(self) -> None:
        """Put right what killed builds left, where there were builds."""
        if self._root.exists():
            await self._opened()

    async def close(self) -> None:
        """Close the builder, where it was opened."""
        if self._builder is not None:
            await self._builder.close()

    async def _opened(self) -> "Builder":
        async with self._opening:
            if self._builder is None:
                from wherry.builder.service import Builder

                builder = Builder(self._engine, self._content, self._root, clock=self._clock)
                try:
                    await builder.start()
                except BaseException:
                    await builder.close()
                    raise
                self._builder = builder
            return self._builder

    async def __call__(
        self,
        context: AsyncIterator[bytes],
        *,
        dockerfile: str,
        tags: list[str],
        args: Mapping[str, str],
        target: str,
        no_cache: bool,
        labels: Mapping[str, str],
        options: BuildOptions,
        say: Callable[[str], None],
    ) -> Image | None:
        """Build; see doors.docker.builds.Build."""
        builder = await self._opened()
        from wherry.builder.exchange import parse_place
        from wherry.builder.running import Surroundings
        from wherry.builder.service import Wanted
        from wherry.builder.squeezing import parse_compression
        from wherry.builder.wanted import Attest
        from wherry.content.oci import parse_platform

        wanted = Wanted(
            tags=tags,
            args=args,
            target=target,
            no_cache=no_cache,
            fresh_stages=options.fresh_stages,
            labels=labels,
            annotations=options.annotations,
            pull=options.pull,
            contexts={name: _context(place) for name, place in options.contexts.items()},
            secrets=options.secrets,
            network=options.network,
            agents=options.agents,
            platforms=[parse_platform(text) for text in options.platforms],
            cache_from=[parse_place(text, "cache-from") for text in options.cache_from],
            cache_to=[parse_place(text, "cache-to") for text in options.cache_to],
            alike=await self._here(options.alike),
            attest=Attest(options.sbom, options.provenance, options.provenance_version or "v0.2", options.builder_id),
            allow=frozenset(options.allow),
            auths=options.auths,
            compression=parse_compression(options.compression, options.compression_level)
            if options.compression
            else None,
            around=Surroundings(options.networks, options.hosts, options.shm_bytes, options.limits, options.ulimits),
        )

        def tell(event: "BuildEvent") -> None:
            text = json_of(event) if options.events else words_of(event)
            if text:
                say(text)

        source = options.remote or (Path(options.directory) if options.directory else context)
        if options.check:
            found = await builder.check(source, dockerfile, wanted=wanted)
            say("".join(f"{text}\n" for text in found) or "no warnings\n")
            return None
        return await builder.build(source, dockerfile, wanted=wanted, progress=tell)

    async def _here(self, names: Sequence[str]) -> list[str]:
        """Those of some images that are here; docker passes over the others, too."""
        found: list[str] = []
        for name in names:
            with suppress(NotFound):
                found.append((await self._engine.image(name)).id)
        return found

    async def cached(self) -> Sequence[Cached]:
        """List what builds keep; see doors.docker.cache.BuildCache."""
        if not self._root.exists():
            return []
        layers, mounts = await (await self._opened()).cached()
        of_images = {layer for image in await self._engine.images() for layer in image.layers}
        return [
            *(
                Cached(
                    each.key,
                    "regular",
                    each.size_bytes,
                    each.created,
                    each.used,
                    shared=bool({each.digest, each.diff_id} & of_images),
                )
                for each in layers
            ),
            *(Cached(name, "exec.cachemount", size, used, used, shared=False) for name, size, used in mounts),
        ]

    async def forget(self, ids: Sequence[str]) -> Sequence[str]:
        """Let go of some of it; see doors.docker.cache.BuildCache."""
        gone = await (await self._opened()).forget(ids) if ids else []
        await self._content.collect()
        await self._engine.collect()
        return gone

    async def rootfs(self, name: str) -> AsyncIterator[bytes]:
        """Yield an image's files as a tar."""
        builder = await self._opened()
        async with builder.export(name) as parts:
            async for part in parts:
                yield part


def _context(place: str) -> "Path | str":
    """A named context: a directory, or an image."""
    return Path(place) if place.startswith("/") else place


def json_of(event: "BuildEvent") -> str:
    """A piece of news as JSON, a line."""
    import msgspec

    return msgspec.json.encode({key: value for key, value in asdict(event).items() if value}).decode() + "\n"


def words_of(event: "BuildEvent") -> str:
    """A piece of news as docker's classic builder says it."""
    match event.kind:
        case "step":
            return f"Step {event.step}/{event.total} : {event.text}\n"
        case "cached":
            return " ---> Using cache\n"
        case "output":
            return f"\x1b[91m{event.text}\x1b[0m" if event.stream == "stderr" else event.text
        case "warning":
            return f"warning: {event.text}\n"
        case _:
            return ""
