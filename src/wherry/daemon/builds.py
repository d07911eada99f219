"""The builder as the Docker door asks for it: a tar stream in, progress as text out."""

from collections.abc import AsyncIterator, Callable, Mapping

from wherry.builder.progress import BuildEvent
from wherry.builder.service import Builder
from wherry.engine.types import Image


class TarBuild:
    """doors.docker.images.Build over the builder of this machine."""

    def __init__(self, builder: Builder) -> None:
        self._builder = builder

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

        def tell(event: BuildEvent) -> None:
            text = words_of(event)
            if text:
                say(text)

        return await self._builder.build(
            context, dockerfile, tags=tags, args=args, target=target, no_cache=no_cache, labels=labels, progress=tell
        )


def words_of(event: BuildEvent) -> str:
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
