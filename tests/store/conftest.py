"""Stores for the tests of this folder."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from wherry.clock import VirtualClock
from wherry.store.settings import Settings
from wherry.store.sqlite import SqliteStore

Open = Callable[..., Awaitable[SqliteStore]]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path


@pytest.fixture
async def reopen() -> AsyncIterator[Open]:
    """Open a store that is closed when the test ends."""
    async with AsyncExitStack() as stack:

        async def open_(path: Path, **settings: int | float) -> SqliteStore:
            store = await SqliteStore.open(
                path,
                clock=VirtualClock(),
                durability="test",
                settings=Settings(**settings),  # type: ignore[arg-type]
            )
            return await stack.enter_async_context(store)

        yield open_


@pytest.fixture
async def store(reopen: Open, tmp_path: Path) -> SqliteStore:
    return await reopen(tmp_path / "store")
