"""The runner: gives every controller its identity, its views and its workers, and keeps one's fall from the others'."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from typing import Any

from wherry.client.backoff import Backoff
from wherry.client.events import Recorder
from wherry.client.informer import Informer
from wherry.client.objects import Key
from wherry.client.protocol import Client
from wherry.client.queue import WorkQueue
from wherry.clock import Clock, machine
from wherry.controllers import (
    deployment,
    endpointslice,
    eviction,
    garbage,
    namespace,
    nodelife,
    podgarbage,
    replicaset,
    rootca,
    serviceaccount,
)
from wherry.controllers.cluster import Cluster, Controller, Memory
from wherry.controllers.settings import Settings
from wherry.errors import Conflict, WherryError
from wherry.model.kinds import Kind
from wherry.model.users import User, controller

log = logging.getLogger(__name__)

CONTROLLERS: tuple[Controller, ...] = (
    deployment.CONTROLLER,
    replicaset.CONTROLLER,
    endpointslice.CONTROLLER,
    namespace.CONTROLLER,
    garbage.CONTROLLER,
    nodelife.CONTROLLER,
    eviction.CONTROLLER,
    podgarbage.CONTROLLER,
    serviceaccount.CONTROLLER,
    rootca.CONTROLLER,
)

READER = controller("generic-garbage-collector")
"""Who the shared views are read as: the one controller that may read every kind."""

ClientFor = Callable[[User], Client]

QUIET_FAILURES = 3  # a key that fails so often is worth a warning in the log; races settle before


class Controllers:
    """All controllers of a cluster. Enter it to start them; leaving it stops them in the middle of whatever they do.

    That is safe: each reconcile may be cut anywhere and begun anew. `client_for` makes a client that acts as a user.
    """

    def __init__(
        self,
        client_for: ClientFor,
        *,
        clock: Clock,
        settings: Settings | None = None,
        controllers: Sequence[Controller] = CONTROLLERS,
    ) -> None:
        self._client_for, self._clock = client_for, clock
        self._settings = settings or Settings()
        self._controllers = controllers
        self._views: dict[tuple[Kind, type[Any]], Informer[Any]] = {}
        self._queues: dict[str, WorkQueue[Key]] = {}
        self._memories: dict[str, Memory] = {}
        self._stack = AsyncExitStack()
        self._working: set[str] = set()

    @property
    def is_synced(self) -> bool:
        """Whether every view has its first listing and the workers run."""
        return len(self._working) == len(self._controllers)

    @property
    def is_idle(self) -> bool:
        """Whether no controller works, or has work in line (delayed work not counted)."""
        return self.is_synced and all(queue.is_idle for queue in self._queues.values())

    async def wait_synced(self, timeout_s: float = 60.0) -> None:
        """Wait until the controllers work. Raises DeadlineExceeded."""
        for view in self._views.values():
            await view.wait_synced(timeout_s)
        while not self.is_synced:
            await machine.sleep(0)  # their tasks have seen it in a turn or two

    async def __aenter__(self) -> "Controllers":
        async with AsyncExitStack() as stack:
            reader = self._client_for(READER)
            for one in self._controllers:
                for watch in one.watches:
                    view = self._views.get((watch.kind, watch.struct))
                    if view is None:
                        view = self._views[(watch.kind, watch.struct)] = Informer(reader, watch.kind, watch.struct)
                    for name, index in watch.indices.items():
                        view.add_index(name, index)
            for view in self._views.values():
                await stack.enter_async_context(view)
            for one in self._controllers:
                await self._start(one, stack)
            stack.push_async_callback(_end, asyncio.create_task(self._notice_pauses(), name="controllers:pauses"))
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._stack.aclose()

    async def _notice_pauses(self) -> None:
        """Say to every memory, each machine second, that we live."""
        while True:
            for memory in self._memories.values():
                memory.awake(machine.now(), self._clock.now())
            await machine.sleep(1.0)

    async def _start(self, one: Controller, stack: AsyncExitStack) -> None:
        client = self._client_for(controller(one.acts_as or one.name))
        recorder = await stack.enter_async_context(Recorder(client, self._clock, one.name))
        queue = await stack.enter_async_context(WorkQueue[Key](self._clock))
        self._queues[one.name] = queue
        cluster = Cluster(
            client,
            {(watch.kind, watch.struct): self._views[(watch.kind, watch.struct)] for watch in one.watches},
            clock=self._clock,
            settings=self._settings,
            recorder=recorder,
            memory=self._memories.setdefault(one.acts_as or one.name, Memory()),
        )
        task = asyncio.create_task(self._run(one, cluster, queue), name=f"controller:{one.name}")
        stack.push_async_callback(_end, task)

    async def _run(self, one: Controller, cluster: Cluster, queue: WorkQueue[Key]) -> None:
        """Wait for the views, then work for ever. A crash of the workers starts them anew, later each time."""
        for watch in one.watches:
            view = self._views[(watch.kind, watch.struct)]
            while not view.is_synced:
                try:
                    await view.wait_synced()
                except WherryError as error:
                    log.warning("%s waits: %s", one.name, error.message)
        for watch in one.watches:
            if watch.wakes is not None:
                self._listen(watch.kind, watch.struct, watch.wakes, cluster, queue)
        self._working.add(one.name)
        backoff = Backoff(cap_s=60.0)

        async def handle(key: Key) -> None:
            await self._handle(one, key, cluster.during(), queue)

        while True:
            try:
                await queue.work(handle, name=one.name, workers=one.workers)
            except Exception:
                log.exception("%s: its workers failed and are started again", one.name)
            await machine.sleep(backoff.next_s())

    def _listen(
        self, kind: Kind, struct: type[Any], wakes: Callable[..., Any], cluster: Cluster, queue: WorkQueue[Key]
    ) -> None:
        def changed(before: Any, now: Any) -> None:
            for key in wakes(cluster, before, now):
                queue.add(key)

        self._views[(kind, struct)].on_change(changed)

    async def _handle(self, one: Controller, key: Key, cluster: Cluster, queue: WorkQueue[Key]) -> None:
        """Reconcile one key, then wait until the views show what that wrote, so that the next plan counts it."""
        where = "/".join(part for part in key if part)
        try:
            try:
                again_s = await one.reconcile(key, cluster)
            finally:
                await cluster.shown()
        except Conflict as error:
            log.debug("%s: %s: %s", one.name, where, error.message)
            raise
        except WherryError as error:
            level = logging.WARNING if queue.failures(key) >= QUIET_FAILURES else logging.DEBUG
            log.log(level, "%s: %s: %s: %s", one.name, where, type(error).__name__, error.message)
            raise
        except Exception:
            log.exception("%s: %s failed", one.name, where)
            raise
        if again_s is not None:
            queue.add_after(key, again_s)


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
