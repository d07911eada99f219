"""A content store in a temporary directory."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from wherry.clock import VirtualClock
from wherry.content.local import LocalContent


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
async def content(tmp_path: Path, clock: VirtualClock) -> AsyncIterator[LocalContent]:
    store = LocalContent.open(tmp_path / "content", clock=clock)
    yield store
    await store.close()
