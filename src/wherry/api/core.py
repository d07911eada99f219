"""What every part of the API server works with, in one value."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from wherry.api.authorize import Authorizer
from wherry.api.cache import Cache, Item, Shelf
from wherry.api.pki import Authority
from wherry.api.settings import Settings
from wherry.api.tokens import Tokens
from wherry.clock import Clock
from wherry.model.kinds import Kind
from wherry.store.protocol import Note, Store, Write
from wherry.wire.http import Request, Response

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

    def shelf(self, kind: Kind) -> Shelf:
        """All objects of a kind."""
        return self.cache.shelf(kind.root)

    def find(self, kind: Kind, namespace: str, name: str) -> Item | None:
        """One object as it is, or None."""
        return self.cache.get(kind.root, kind.key(namespace, name))

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
