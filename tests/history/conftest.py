"""A store, an archive that follows it, and a hand to write objects with."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import orjson
import pytest

from wherry.clock import VirtualClock
from wherry.history.archive import Archive, Budget
from wherry.model.kinds import Kind
from wherry.store.protocol import Note
from wherry.store.settings import Settings
from wherry.store.sqlite import SqliteStore


@dataclass
class World:
    """A cluster's store and archive; both can be stopped and started again."""

    root: Path
    clock: VirtualClock
    store: SqliteStore
    archive: Archive

    @classmethod
    async def start(cls, root: Path, *, budget: Budget | None = None, settings: Settings | None = None) -> "World":
        clock = VirtualClock()
        store = await SqliteStore.open(root / "store", clock=clock, durability="test", settings=settings)
        archive = await Archive.open(root / "history", store, clock=clock, budget=budget)
        await archive.__aenter__()
        return cls(root, clock, store, archive)

    async def stop_archive(self) -> None:
        await self.archive.close()

    async def start_archive(self) -> None:
        self.archive = await Archive.open(self.root / "history", self.store, clock=self.clock)
        await self.archive.__aenter__()

    async def stop(self) -> None:
        await self.archive.close()
        await self.store.close()

    async def write(
        self,
        kind: Kind,
        name: str,
        data: object,
        namespace: str = "default",
        actor: str = "ann",
        operation: str = "PUT",
    ) -> int:
        """Create or change an object; None deletes it."""
        key = kind.key(namespace, name)
        entry = await self.store.get(key)
        note = Note(self.clock.now(), actor, operation)
        version = entry.version if entry else 0
        if data is None:
            return await self.store.delete(key, expect=version, note=note)
        body = {"kind": kind.kind, "metadata": {"name": name, "labels": {"app": str(data)}}, "data": data}
        return await self.store.put(key, orjson.dumps(body), expect=version, note=note)


def data(value: bytes | None) -> object:
    """What `write` was given."""
    return None if value is None else orjson.loads(value)["data"]


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = await World.start(tmp_path)
    yield made
    await made.stop()
