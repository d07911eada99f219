"""A live view of one kind: every object as the reader's own small Struct, kept by list and watch."""

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from typing import Generic, TypeVar

import msgspec

from wherry.client.backoff import Backoff
from wherry.client.objects import Key, Projection, revision
from wherry.client.protocol import Change, Client
from wherry.clock import machine
from wherry.errors import BadRequest, DeadlineExceeded, Expired, Invalid, Unsupported, WherryError
from wherry.model.kinds import Kind

log = logging.getLogger(__name__)

T = TypeVar("T", bound=Projection)

Handler = Callable[[T | None, T | None], None]
"""Called with (before, now) of each change: (None, x) when it appears, (x, None) when it goes, else both."""

Index = Callable[[T], Iterable[str]]
"""Says under which values an object is found."""

INITIAL_EVENTS_END = "k8s.io/initial-events-end"
SHORT_WATCH_S = 1.0  # a watch that ends sooner than this counts as a failure, so that we never spin


class _BookmarkMeta(msgspec.Struct, frozen=True, rename="camel"):
    resource_version: str = ""
    annotations: dict[str, str] = {}


class _Bookmark(msgspec.Struct, frozen=True):
    metadata: _BookmarkMeta = _BookmarkMeta()


_BOOKMARK = msgspec.json.Decoder(_Bookmark)


class Informer(Generic[T]):
    """Keeps a `struct` for each object of `kind` (in one namespace, or matching selectors), as the server tells.

    Enter it as a context manager to start. Before `wait_synced` it is empty; after that it shows every object as of
    some revision, `version`, that only grows, and lags the server by milliseconds. It recovers by itself: from Expired
    by listing again, from a server that is away by trying again, later each time. An object that does not fit `struct`
    is left out and logged. Handlers run in the order of writes, must not block, and see the view already changed.
    """

    def __init__(
        self,
        client: Client,
        kind: Kind,
        struct: type[T],
        namespace: str = "",
        *,
        labels: str = "",
        fields: str = "",
        indices: Mapping[str, Index[T]] | None = None,
    ) -> None:
        self.kind = kind
        self._client = client
        self._decoder = msgspec.json.Decoder(struct)
        self._scope = (namespace, labels, fields)
        self._objects: dict[Key, T] = {}
        self._indices: dict[str, tuple[Index[T], dict[str, dict[Key, T]]]] = {}
        for name, index in (indices or {}).items():
            self.add_index(name, index)
        self._handlers: list[Handler[T]] = []
        self._waiters: list[tuple[Callable[[], bool], asyncio.Future[None]]] = []
        self._watch_list = True
        self._synced = asyncio.Event()
        self._revision = 0
        self._task: asyncio.Task[None] | None = None

    @property
    def version(self) -> int:
        """The revision that the view shows: every write of this kind up to it is in."""
        return self._revision

    @property
    def is_synced(self) -> bool:
        """Whether the first listing is in."""
        return self._synced.is_set()

    def get(self, name: str, namespace: str = "") -> T | None:
        """Find one object."""
        return self._objects.get((namespace, name))

    def list(self, namespace: str = "") -> Sequence[T]:
        """All objects (of one namespace), in no order."""
        if not namespace:
            return list(self._objects.values())
        return [found for (where, _), found in self._objects.items() if where == namespace]

    def by_index(self, index: str, value: str) -> Sequence[T]:
        """The objects that the named index puts under `value`."""
        return list(self._indices[index][1].get(value, {}).values())

    def add_index(self, name: str, index: Index[T]) -> None:
        """Add an index; objects already here are put into it."""
        self._indices[name] = (index, {})
        for key, found in self._objects.items():
            self._into_index(name, key, found)

    def on_change(self, handler: Handler[T]) -> None:
        """Call `handler` at each change from now on, and at once for what is here."""
        self._handlers.append(handler)
        for found in list(self._objects.values()):
            handler(None, found)

    async def wait_synced(self, timeout_s: float = 60.0) -> None:
        """Wait for the first listing. Raises DeadlineExceeded."""
        try:
            async with machine.timeout(timeout_s):
                await self._synced.wait()
        except TimeoutError:
            raise DeadlineExceeded(f"{self.kind.qualified}: no first listing within {timeout_s:g} s") from None

    async def wait_for(self, version: str | int, timeout_s: float = 10.0) -> None:
        """Wait until the view shows the write (of an object in this view) that made `version`. Or DeadlineExceeded."""
        wanted = version if isinstance(version, int) else revision(version)
        await self.wait_until(lambda: self._revision >= wanted, timeout_s)

    async def wait_until(self, holds: Callable[[], bool], timeout_s: float = 10.0) -> None:
        """Wait until `holds` is true of the view; it is asked again after each change. Raises DeadlineExceeded."""
        if holds():
            return
        waiter = (holds, asyncio.get_running_loop().create_future())
        self._waiters.append(waiter)
        try:
            async with machine.timeout(timeout_s):
                await waiter[1]
        except TimeoutError:
            raise DeadlineExceeded(
                f"{self.kind.qualified}: the view (at revision {self._revision}) did not show what was waited for "
                f"within {timeout_s:g} s"
            ) from None
        finally:
            if waiter in self._waiters:
                self._waiters.remove(waiter)

    async def __aenter__(self) -> "Informer[T]":
        self._task = asyncio.create_task(self._run(), name=f"informer:{self.kind.qualified}")
        return self

    async def __aexit__(self, *error: object) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        """List and watch, for ever."""
        backoff = Backoff()
        while True:
            started = machine.monotonic()
            try:
                if not self._revision:
                    await self._relist()
                else:
                    await self._follow()
            except Expired as error:
                log.info("%s: %s; listing again", self.kind.qualified, error.message)
                self._revision = 0
            except WherryError as error:
                level = logging.DEBUG if backoff.failures < 3 else logging.WARNING
                log.log(level, "%s: %s: %s", self.kind.qualified, type(error).__name__, error.message)
            except Exception:
                log.exception("%s: the watch failed", self.kind.qualified)
            else:
                if machine.monotonic() - started > SHORT_WATCH_S:
                    backoff.reset()
                    continue
            if machine.monotonic() - started > 10 * SHORT_WATCH_S:
                backoff.reset()
            await machine.sleep(backoff.next_s())

    async def _relist(self) -> None:
        """Read everything, then follow; in one request where the server does that."""
        namespace, labels, fields = self._scope
        if self._watch_list:
            try:
                await self._follow(initial=True)
                return
            except (Invalid, BadRequest, Unsupported):
                log.debug("%s: the server does no WatchList; listing", self.kind.qualified)
                self._watch_list = False
        listing = await self._client.list(self.kind, namespace, labels=labels, fields=fields)
        self._replace(listing.items, revision(listing.version))
        await self._follow()

    async def _follow(self, *, initial: bool = False) -> None:
        """Watch from `version`, or from the beginning, until the server ends it."""
        namespace, labels, fields = self._scope
        first: list[bytes] | None = [] if initial else None
        version = "" if initial else str(self._revision)
        changes = self._client.watch(
            self.kind, namespace, version=version, labels=labels, fields=fields, initial=initial
        )
        async with aclosing(changes) as stream:  # pyright: ignore[reportArgumentType]: every `watch` is a generator
            async for change in stream:
                if change.type == "BOOKMARK":
                    meta = _BOOKMARK.decode(change.object).metadata
                    if first is not None and meta.annotations.get(INITIAL_EVENTS_END) == "true":
                        self._replace(first, revision(meta.resource_version))
                        first = None
                    elif first is None:
                        self._progress(revision(meta.resource_version))
                elif first is not None:
                    first.append(change.object)
                else:
                    self._apply(change)

    def _apply(self, change: Change) -> None:
        found = self._decode(change.object)
        if found is not None:
            gone = change.type == "DELETED"
            key = (found.metadata.namespace, found.metadata.name)
            self._set(key, None if gone else found)
            self._progress(revision(found.metadata.resource_version))

    def _replace(self, items: Sequence[bytes], version: int) -> None:
        """Take a whole listing; handlers hear only of what differs."""
        seen: set[Key] = set()
        for item in items:
            found = self._decode(item)
            if found is not None:
                key = (found.metadata.namespace, found.metadata.name)
                seen.add(key)
                self._set(key, found)
        for key in [key for key in self._objects if key not in seen]:
            self._set(key, None)
        self._revision = 0  # a restored or replaced server may count lower than before
        self._synced.set()
        self._progress(max(version, 1))  # 0 would ask for everything again

    def _set(self, key: Key, now: T | None) -> None:
        before = self._objects.get(key)
        if before is None and now is None:
            return
        if before is not None and now is not None and before.metadata.resource_version == now.metadata.resource_version:
            return
        if before is not None:
            for index, values in self._indices.values():
                for value in index(before):
                    if found := values.get(value):
                        found.pop(key, None)
                        if not found:
                            del values[value]
        if now is None:
            del self._objects[key]
        else:
            self._objects[key] = now
            for name in self._indices:
                self._into_index(name, key, now)
        for handler in self._handlers:
            try:
                handler(before, now)
            except Exception:
                log.exception("%s: a handler failed on %s", self.kind.qualified, "/".join(key))

    def _into_index(self, name: str, key: Key, found: T) -> None:
        index, values = self._indices[name]
        for value in index(found):
            values.setdefault(value, {})[key] = found

    def _progress(self, version: int) -> None:
        self._revision = max(self._revision, version)
        for waiter in [waiter for waiter in self._waiters if waiter[0]()]:
            self._waiters.remove(waiter)
            if not waiter[1].done():
                waiter[1].set_result(None)

    def _decode(self, data: bytes) -> T | None:
        try:
            return self._decoder.decode(data)
        except (msgspec.DecodeError, msgspec.ValidationError) as error:
            log.warning("%s: an object does not fit our view: %s: %.200r", self.kind.qualified, error, data)
            return None
