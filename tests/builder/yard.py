"""A builder with its engine, store and a context to fill."""

import sqlite3
from pathlib import Path
from typing import Any, cast

from tests.builder.fakes import FakeEngine

from wherry.builder.cache import BUDGET_BYTES, Built
from wherry.builder.progress import BuildEvent
from wherry.builder.running import BuildEngine
from wherry.builder.service import Builder, Wanted
from wherry.clock import VirtualClock
from wherry.content.inflate import pieces
from wherry.content.local import LocalContent
from wherry.content.protocol import Digest
from wherry.content.tars import Member, Tar
from wherry.engine.types import Image


class Yard:
    """A builder on an engine that runs no containers."""

    def __init__(self, root: Path, *, exist_ok: bool = False) -> None:
        self.root = root
        self.clock = VirtualClock()
        self.content = LocalContent.open(root / "content", clock=self.clock)
        self.engine = FakeEngine(self.content, self.clock)
        self.context = root / "context"
        self.context.mkdir(exist_ok=exist_ok)
        self.events: list[BuildEvent] = []
        self.builder = self.open()

    def open(self, budget_bytes: int = BUDGET_BYTES) -> Builder:
        engine = cast(BuildEngine, self.engine)
        return Builder(engine, self.content, self.root / "builder", clock=self.clock, budget_bytes=budget_bytes)

    def file(self, path: str, text: str | bytes = "x", mode: int = 0o644) -> Path:
        place = self.context / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(text.encode() if isinstance(text, str) else text)
        place.chmod(mode)
        return place

    async def build(self, dockerfile: str, **more: object) -> Image:
        self.events.clear()
        self.file("Dockerfile", dockerfile)
        return await self.builder.build(self.context, tags=["web:1"], progress=self.events.append, **more)  # type: ignore[arg-type]

    async def want(self, dockerfile: str, **wanted: Any) -> Image:
        """Build with the words of `Wanted`."""
        self.events.clear()
        self.file("Dockerfile", dockerfile)
        words: dict[str, Any] = {"tags": ["web:1"], **wanted}
        return await self.builder.build(self.context, wanted=Wanted(**words), progress=self.events.append)

    async def rows_of_cache(self) -> list[Built]:
        """What the cache believes."""
        with sqlite3.connect(self.root / "builder/cache.db") as db:
            rows = db.execute("SELECT digest, diff_id, size, created FROM layers").fetchall()
        return [Built(*row) for row in rows]

    @property
    def cached(self) -> list[str]:
        """The steps that came from the cache."""
        steps = {event.step: event.text for event in self.events if event.kind == "step"}
        return [steps[event.step] for event in self.events if event.kind == "cached"]

    @property
    def warnings(self) -> list[str]:
        """What was warned of."""
        return [event.text for event in self.events if event.kind == "warning"]

    def rows(self, layer: str) -> dict[str, Member]:
        with self.content.path(Digest(layer)).open("rb") as file:
            return {member.path: member for member in Tar(pieces(file.fileno()))}

    def read(self, image: Image, path: str) -> bytes:
        """A file of the image: the topmost layer that has it."""
        for layer in reversed(image.layers):
            with self.content.path(Digest(layer)).open("rb") as file:
                tar = Tar(pieces(file.fileno()))
                for member in tar:
                    if member.path == path:
                        return b"".join(bytes(part) for part in tar.data())
        raise AssertionError(f"{path} is in no layer")
