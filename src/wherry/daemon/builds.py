"""The builder as the Docker door asks for it: a tar stream in, progress as text out.

Most nodes never build: the builder is imported and opened at the first build, or at start where there was one before.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from wherry.clock import Clock
from wherry.content.protocol import Content
from wherry.doors.docker.builds import BuildOptions
from wherry.engine.local import LocalEngine
from wherry.engine.types import Image

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
        from wherry.builder.service import Wanted
        from wherry.builder.squeezing import parse_compression

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
            cache_from=[Path(place) for place in options.cache_from],
            cache_to=Path(options.cache_to) if options.cache_to else None,
            compression=parse_compression(options.compression, options.compression_level)
            if options.compression
            else None,
        )

        def tell(event: "BuildEvent") -> None:
            text = words_of(event)
            if text:
                say(text)

        if options.check:
            found = await builder.check(context, dockerfile, wanted=wanted)
            say("".join(f"{text}\n" for text in found) or "no warnings\n")
            return None
        return await builder.build(context, dockerfile, wanted=wanted, progress=tell)

    async def rootfs(self, name: str) -> AsyncIterator[bytes]:
        """Yield an image's files as a tar."""
        builder = await self._opened()
        async with builder.export(name) as parts:
            async for part in parts:
                yield part


def _context(place: str) -> "Path | str":
    """A named context: a directory, or an image."""
    return Path(place) if place.startswith("/") else place


def words_of(event: "BuildEvent") -> str:
    """A piece of news as docker's classic builder says it."""
    match event.kind:
        case "step":
            return f"Step {event.step}/{event.total} : {event.text}\n"
        case "cached":
            return " ---> Using cache\n"
        case "output":
            return event.text
        case "warning":
            return f"warning: {event.text}\n"
        case _:
            return ""
