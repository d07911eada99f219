"""An engine for each test module, with a busybox image; nothing may be left of it."""

from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio
from tests.engine.boxes import Place, put_image

from wherry.engine.local import LocalEngine


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    made = Place(tmp_path_factory.mktemp("e"))
    yield made
    left = made.leftovers()
    made.clear()
    assert left == [], "the engine left something behind"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(place: Place) -> AsyncIterator[LocalEngine]:
    """It rotates no logs by itself: tests do."""
    content = place.content()
    async with place.engine(content, rotate_every_s=3600.0) as opened:
        await put_image(content, opened, place.base / "source")
        yield opened
        for container in await opened.containers():
            await opened.remove(container.id, force=True)
        for sandbox in await opened.sandboxes():
            await opened.remove_sandbox(sandbox.id)
    await content.close()
