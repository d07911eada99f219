"""The builder as the Docker door asks for it: a tar stream in, progress as text out.

Most nodes never build: the builder is imported and opened at the first build, or at start where there was one before.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from wherry.clock import Clock
from wherry.content.protocol import Content
from wherry.engine.local import LocalEngine
from wherry.engine.types import Image

if TYPE_CHECKING:
    from wherry.builder.progress import BuildEvent
    from wherry.builder.service import Builder


class TarBuild:
    """doors.docker.images.Build over the builder of this machine."""

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
        say: Callable[[str], None],
    ) -> Image:
        """Build; see doors.docker.images.Build."""
        builder = await self._opened()

        def tell(event: "BuildEvent") -> None:
            text = words_of(event)
            if text:
                say(text)

        return await builder.build(
            context, dockerfile, tags=tags, args=args, target=target, no_cache=no_cache, labels=labels, progress=tell
        )


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
