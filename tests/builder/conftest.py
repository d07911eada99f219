"""What the builder's tests stand on."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.builder.yard import Yard


@pytest.fixture
async def yard(tmp_path: Path) -> AsyncIterator[Yard]:
    made = Yard(tmp_path)
    await made.builder.start()
    yield made
    await made.builder.close()
    await made.content.close()
