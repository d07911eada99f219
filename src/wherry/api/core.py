"""What every part of the API server works with, in one value."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from weakref import WeakValueDictionary

from wherry.api.authorize import Authorizer
from wherry.api.cache import Cache, Item, Shelf
from wherry.api.pki import Authority
from wherry.api.settings import Settings
from wherry.api.tokens import Tokens
from wherry.clock import Clock, machine
from wherry.model.kinds import Kind
from wherry.store.protocol import Note, Store, Write
from wherry.wire.http import Request, Response

_NEWER_S = 3.0

Nodes = Callable[[str, Request], Awaitable[Response]]
"""Sends a request to the agent of a node, by the node's name."""


@dataclass(slots=True)
class Core:
    """The store and what is built on it. `allocating` is held while a Service's addresses and ports are chosen."""

    store: Store
    cache: Cache
    clock: Clock
    settings: Settings
    authority: Authority
    tokens: Tokens
    authorizer: Authorizer
    nodes: Nodes
    allocating: asyncio.Lock = field(default_factory=asyncio.Lock)
    turns: WeakValueDictionary[str, asyncio.Lock] = field(default_factory=WeakValueDictionary[str, asyncio.Lock])

    def shelf(self, kind: Kind) -> Shelf:
        """All objects of a kind."""
        return self.cache.shelf(kind.root)

    def find(self, kind: Kind, namespace: str, name: str) -> Item | None:
        """One object as it is, or None."""
        return self.cache.get(kind.root, kind.key(namespace, name))

    async def newer(self, kind: Kind, item: Item) -> None:
        """Wait until the cache shows another version of an object, after a Conflict said that there is one.

        The store refuses a stale write at once, while the write that won may still be on its way to the disk; asking
        again before it shows would only be refused again. Gives up after a few seconds: that write may have failed.
        """
        shelf = self.shelf(kind)
        with suppress(TimeoutError):
            async with machine.timeout(_NEWER_S):
                while shelf.items.get(item.key) is item and not shelf.closed:
                    await shelf.more(shelf.end)

    @asynccontextmanager
    async def turn(self, key: str) -> AsyncGenerator[None]:
        """Queue with the others of this server who lost a race for an object: so that each of them wins one."""
        lock = self.turns.get(key)
        if lock is None:
            lock = self.turns[key] = asyncio.Lock()
        async with lock:
            yield

    async def put(self, key: str, value: bytes, *, expect: int, note: Note) -> int:
        """Write, and wait until it shows in the cache. Raises Conflict."""
        revision = await self.store.put(key, value, expect=expect, note=note)
        await self.cache.reached(revision)
        return revision

    async def remove(self, key: str, *, expect: int, note: Note) -> int:
        """Delete, and wait until it shows in the cache. Raises Conflict."""
        revision = await self.store.delete(key, expect=expect, note=note)
        await self.cache.reached(revision)
        return revision

    async def write_all(self, writes: Sequence[Write], *, note: Note) -> int:
        """Write all or none, and wait until it shows in the cache. Raises Conflict."""
        revision = await self.store.txn(writes, note=note)
        await self.cache.reached(revision)
        return revision
