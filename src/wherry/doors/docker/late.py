"""An attachment made before there is anything to attach to, as `docker start -a` makes it.

Clients attach first and start then. Where a container has no process yet (it has ended before, or its command could not
be run), its output is read from its log from the moment of attaching on, so nothing is missed.
"""

import asyncio
from collections.abc import AsyncIterator

from wherry.doors.docker.engine import DockerEngine
from wherry.engine.types import Container, Session
from wherry.errors import Conflict, NotFound


class LateSession:
    """engine/types.Session of a container that is to be started soon."""

    def __init__(self, engine: DockerEngine, container: Container, began: float) -> None:
        self._engine = engine
        self._id = container.id
        self._began = began
        self._happened = engine.events()
        self._started = asyncio.Event()
        self._over = False
        self._session: Session | None = None

    async def output(self) -> AsyncIterator[tuple[str, bytes]]:
        """Yield what it writes once it has been started, until it ends; nothing when its start fails."""
        async for event in self._happened:
            if event.id == self._id and event.action in ("start", "die", "destroy"):
                self._over = event.action != "start"
                break
        self._started.set()
        if self._over:
            return
        try:
            async for line in self._engine.logs(self._id, follow=True, since=self._began):
                yield line.stream, line.data
        except NotFound:
            return  # removed meanwhile

    async def _attached(self) -> Session:
        await self._started.wait()
        if self._session is None:
            if self._over:
                raise Conflict("the container could not be started")
            self._session = await self._engine.attach(self._id)
        return self._session

    async def write(self, data: bytes) -> None:
        """Send to stdin, once it runs."""
        await (await self._attached()).write(data)

    async def close_stdin(self) -> None:
        """End stdin, once it runs."""
        await (await self._attached()).close_stdin()

    async def resize(self, rows: int, columns: int) -> None:
        """Set the terminal's size."""
        await self._engine.resize(self._id, rows, columns)

    async def wait(self) -> int:
        """Wait for its end."""
        await self._started.wait()
        return (await self._engine.wait(self._id)).code

    async def close(self) -> None:
        """Detach."""
        self._over = True
        self._started.set()
        if self._session is not None:
            await self._session.close()
