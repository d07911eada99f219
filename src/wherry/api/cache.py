"""The present in memory: every object's bytes, sorted by key, and a window of what happened to each kind.

One task follows the store; gets, lists and watches read here and never touch the store. Bytes already carry their
resourceVersion, spliced in once. A `Happening` is encoded once, whoever watches.
"""

import asyncio
import logging
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import msgspec
import orjson

from wherry.api.errors import WrongVersion
from wherry.clock import machine
from wherry.errors import Expired, Unavailable
from wherry.model import fields
from wherry.model.kinds import KINDS, Kind
from wherry.store.protocol import Event, Store

log = logging.getLogger(__name__)

T = TypeVar("T")
_METADATA = b'"metadata":{'
_ROOTS = frozenset(kind.root for kind in KINDS if kind.stored)
_CATCH_UP_S = 3.0
_RETRY_S = 0.5


class Owner(msgspec.Struct, frozen=True, rename="camel"):
    """An owner reference."""

    api_version: str = ""
    kind: str = ""
    name: str = ""
    uid: str = ""
    controller: bool | None = None


class Meta(msgspec.Struct, frozen=True, rename="camel"):
    """The metadata that the API server itself reads of any object."""

    name: str = ""
    namespace: str = ""
    uid: str = ""
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None
    finalizers: tuple[str, ...] | None = None
    deletion_timestamp: str | None = None
    deletion_grace_period_seconds: int | None = None
    owner_references: tuple[Owner, ...] | None = None


class _HasMeta(msgspec.Struct, frozen=True):
    metadata: Meta


_decode_meta = msgspec.json.Decoder(_HasMeta).decode


def splice(data: bytes, version: int) -> bytes:
    """Put metadata.resourceVersion into an object's bytes at rest."""
    at = data.index(_METADATA) + len(_METADATA)
    comma = b"" if data[at : at + 1] == b"}" else b","
    return b'%b"resourceVersion":"%d"%b%b' % (data[:at], version, comma, data[at:])


class Item:
    """One object as it stands at `version`. `data` is its JSON with that resourceVersion; what is read of it is kept."""

    __slots__ = ("_fields", "_meta", "_views", "data", "key", "version")

    def __init__(self, key: str, version: int, data: bytes) -> None:
        self.key = key
        self.version = version
        self.data = data
        self._meta: Meta | None = None
        self._views: dict[type[Any], Any] | None = None
        self._fields: dict[str, str] | None = None

    @property
    def meta(self) -> Meta:
        """Its metadata, decoded on first use."""
        if self._meta is None:
            self._meta = _decode_meta(self.data).metadata
        return self._meta

    @property
    def labels(self) -> dict[str, str]:
        """Its labels."""
        return self.meta.labels or {}

    def document(self) -> dict[str, Any]:
        """A fresh dict of it, free to be changed."""
        return orjson.loads(self.data)

    def fields(self, kind: Kind) -> dict[str, str]:
        """The texts that field selectors of a kind compare, read once."""
        if self._fields is None:
            document = self.document()
            self._fields = {name: fields.text(kind, document, name) for name in fields.supported(kind)}
        return self._fields

    def view(self, shape: type[T]) -> T:
        """It as a small frozen Struct, decoded once for each shape."""
        if self._views is None:
            self._views = {}
        found = self._views.get(shape)
        if found is None:
            found = self._views[shape] = _decoder(shape).decode(self.data)
        return found


class Happening:
    """One change of one object. `before` is None for a creation, `after` for a deletion.

    `last` is the object to show: after the change, or as it was last, with the change's revision.
    """

    __slots__ = ("_frame", "after", "before", "last", "revision")

    def __init__(self, revision: int, before: Item | None, after: Item | None, last: Item) -> None:
        self.revision = revision
        self.before = before
        self.after = after
        self.last = last
        self._frame: bytes | None = None

    @property
    def type(self) -> str:
        """ADDED, MODIFIED or DELETED, as an unselective watcher sees it."""
        if self.after is None:
            return "DELETED"
        return "ADDED" if self.before is None else "MODIFIED"

    @property
    def frame(self) -> bytes:
        """The line of a watch, made once for all watchers."""
        if self._frame is None:
            self._frame = frame(self.type, self.last.data)
        return self._frame


def frame(type_: str, data: bytes) -> bytes:
    """One line of a watch."""
    return b'{"type":"%b","object":%b}\n' % (type_.encode(), data)


class Shelf:
    """All objects of one resource, and the window of what happened to them.

    Happenings are numbered by `position`: the first kept is `first`, the next to come `end`.
    """

    def __init__(self, root: str, revision: int, window: int) -> None:
        self.root = root
        self.items: dict[str, Item] = {}
        self.keys: list[str] = []
        self.happenings: deque[Happening] = deque()
        self.window = window
        self.first = 0
        self.dropped = revision
        """The revision up to which happenings are not kept: a watch can start here, or later."""
        self.revision = 0
        """The revision of the last change of this resource that we saw; 0 for none."""
        self.closed = False
        """Whether nobody follows the store any more: watches end."""
        self._changed = asyncio.Event()

    @property
    def end(self) -> int:
        """The position after the last happening."""
        return self.first + len(self.happenings)

    def under(self, prefix: str, after: str = "") -> Sequence[str]:
        """The keys under a prefix (which ends in `/`), in order; those later than the key `after`."""
        start = bisect_left(self.keys, prefix) if not after else bisect_left(self.keys, after + "\0")
        stop = len(self.keys) if prefix == self.root else bisect_left(self.keys, prefix[:-1] + "0")
        return self.keys[start:stop]

    def all(self, prefix: str = "") -> Iterator[Item]:
        """The objects under a prefix, in order."""
        return (self.items[key] for key in self.under(prefix or self.root))

    def position_after(self, revision: int) -> int:
        """Where to read on to see everything later than `revision`. Raises Expired when it is no longer kept."""
        if revision < self.dropped:
            raise Expired(f"too old resource version: {revision} ({self.dropped})")
        position = self.end
        for happening in reversed(self.happenings):
            if happening.revision <= revision:
                break
            position -= 1
        return position

    def since(self, position: int) -> Sequence[Happening]:
        """The happenings from a position on. Raises Expired for a reader who was too slow."""
        if position < self.first:
            raise Expired(f"too old resource version: the watcher fell behind by over {self.window} events")
        count = self.end - position
        if count == 0:
            return ()
        if count < 16:
            found = [self.happenings[index] for index in range(-count, 0)]
        else:
            found = list(self.happenings)[-count:]
        return found

    async def more(self, position: int) -> None:
        """Wait until something has happened at a position, or the shelf is closed."""
        while self.end <= position and not self.closed:
            await self._changed.wait()

    def apply(self, event: Event) -> None:
        """Take one write in."""
        before = self.items.get(event.key)
        if event.value is None:
            if before is None:
                return
            del self.items[event.key]
            del self.keys[bisect_left(self.keys, event.key)]
            gone = Item(event.key, event.revision, resplice(before, event.revision))
            self.note(Happening(event.revision, before, None, gone))
        else:
            item = Item(event.key, event.revision, splice(event.value, event.revision))
            if before is None:
                insort(self.keys, event.key)
            self.items[event.key] = item
            self.note(Happening(event.revision, before, item, item))

    def note(self, happening: Happening) -> None:
        """Keep a happening and forget the oldest beyond the window."""
        self.happenings.append(happening)
        self.revision = happening.revision
        if len(self.happenings) > self.window:
            self.dropped = self.happenings.popleft().revision
            self.first += 1

    def wake(self) -> None:
        """Let those who wait look again."""
        self._changed.set()
        self._changed = asyncio.Event()

    def lose(self, revision: int) -> None:
        """Forget the window: whoever reads on gets Expired."""
        self.first = self.end + 1
        self.happenings.clear()
        self.dropped = self.revision = revision


def resplice(item: Item, version: int) -> bytes:
    """An item's bytes with another resourceVersion."""
    old = b'"resourceVersion":"%d"' % item.version
    return item.data.replace(old, b'"resourceVersion":"%d"' % version, 1)


class Cache:
    """Follows a store. `revision` is how far; a reader who must see a write waits with `reached`."""

    def __init__(self, store: Store, *, window: int = 4096) -> None:
        self.store = store
        self.revision = 0
        self._window = window
        self._start = 0
        self._shelves: dict[str, Shelf] = {}
        self._waiting: list[tuple[int, asyncio.Future[None]]] = []
        self._task: asyncio.Task[None] | None = None

    def shelf(self, root: str) -> Shelf:
        """The shelf of a resource (`Kind.root`), made when it is first asked for."""
        found = self._shelves.get(root)
        if found is None:
            found = self._shelves[root] = Shelf(root, self._start, self._window)
        return found

    def get(self, root: str, key: str) -> Item | None:
        """One object, or None."""
        shelf = self._shelves.get(root)
        return None if shelf is None else shelf.items.get(key)

    async def start(self) -> None:
        """Load the present and follow the store from then on, until `close`."""
        await self._load()
        self._task = asyncio.create_task(self._follow(), name="api: cache follows the store")

    async def close(self) -> None:
        """Stop following; whoever waits gets Unavailable."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        for shelf in self._shelves.values():
            shelf.closed = True
            shelf.wake()
        for _, future in self._waiting:
            if not future.done():
                future.set_exception(Unavailable("the API server is stopping: ask another, or again"))
        self._waiting.clear()

    def problem(self) -> str:
        """What keeps the cache from following the store; "" when nothing does."""
        if self._task is None:
            return "it does not follow the store"
        return "it has stopped following the store" if self._task.done() else ""

    async def reached(self, revision: int, timeout_s: float = _CATCH_UP_S) -> None:
        """Wait until everything up to a revision shows here. Raises WrongVersion when it does not in time."""
        if self.revision >= revision:
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((revision, future))
        try:
            async with machine.timeout(timeout_s):
                await future
        except TimeoutError:
            raise WrongVersion(revision, self.revision) from None
        finally:
            if not future.done() or future.cancelled():
                self._waiting = [pair for pair in self._waiting if pair[1] is not future]

    async def present(self) -> None:
        """Wait until all that was written before this call shows, whoever wrote it."""
        revision = await self.store.revision()
        if revision > self.revision:
            await self.reached(revision)

    async def _load(self) -> None:
        page = await self.store.list("")
        shelves: dict[str, dict[str, Item]] = {}
        for entry in page.entries:
            if _root(entry.key) not in _ROOTS:
                continue  # not an API object: somebody else's key in the same store
            item = Item(entry.key, entry.version, splice(entry.value, entry.version))
            shelves.setdefault(_root(entry.key), {})[entry.key] = item
        self._start = page.revision
        for root in {*shelves, *self._shelves}:
            shelf = self.shelf(root)
            shelf.items = shelves.get(root, {})
            shelf.keys = sorted(shelf.items)
            shelf.lose(page.revision)
            shelf.closed = False
            shelf.wake()
        self._advance(page.revision)

    async def _follow(self) -> None:
        while True:
            try:
                async for batch in self.store.watch("", after=self.revision):
                    self._take(batch)
            except Expired:
                log.warning("cache: the store has moved on beyond revision %d: loading it again", self.revision)
                await self._load()
            except Unavailable as error:
                log.warning("cache: %s; trying again", error.message)
                await machine.sleep(_RETRY_S)
            except Exception:
                log.exception("cache: it stops following the store; /livez says so")
                raise

    def _take(self, batch: Sequence[Event]) -> None:
        touched: set[Shelf] = set()
        for event in batch:
            root = _root(event.key)
            if root not in _ROOTS:
                continue
            shelf = self.shelf(root)
            shelf.apply(event)
            touched.add(shelf)
        if batch:
            self._advance(batch[-1].revision)
        for shelf in touched:
            shelf.wake()

    def _advance(self, revision: int) -> None:
        self.revision = revision
        if not self._waiting:
            return
        still: list[tuple[int, asyncio.Future[None]]] = []
        for wanted, future in self._waiting:
            if wanted > revision:
                still.append((wanted, future))
            elif not future.done():
                future.set_result(None)
        self._waiting = still


def _root(key: str) -> str:
    """`/apps/deployments/` of `/apps/deployments/x/y`; "" where there is none."""
    return key[: key.find("/", key.find("/", 1) + 1) + 1]


_decoders: dict[type[Any], msgspec.json.Decoder[Any]] = {}


def _decoder(shape: type[T]) -> "msgspec.json.Decoder[T]":
    found = _decoders.get(shape)
    if found is None:
        found = _decoders[shape] = msgspec.json.Decoder(shape)
    return found
