"""What a controller sees of the cluster and does to it; what wakes it."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import msgspec

from wherry.client.events import About, Recorder
from wherry.client.informer import Informer
from wherry.client.objects import Key, Meta, Object
from wherry.client.protocol import Client, Json
from wherry.clock import Clock
from wherry.controllers.settings import Settings
from wherry.errors import NotFound
from wherry.model.kinds import Kind

log = logging.getLogger(__name__)

T = TypeVar("T", bound=Object)

SHOWN_S = 10.0  # machine seconds that the view may need to show our own write

Views = Mapping[tuple[Kind, type[Any]], Informer[Any]]


class _Written(msgspec.Struct, frozen=True):
    metadata: Meta = Meta()


_WRITTEN = msgspec.json.Decoder(_Written)


PAUSE_S = 3.0
"""Machine seconds without a sign of our own life that count as a pause: the machine slept, or we were stopped."""


@dataclass(slots=True)
class Memory:
    """What an identity remembers between reconciles: since when it has seen what. Lost with the process."""

    seen: dict[str, tuple[str, float]] = field(default_factory=dict[str, tuple[str, float]])
    _awake: tuple[float, float] | None = None

    def awake(self, machine_now: float, now: float) -> None:
        """Note that we live. After a pause nobody else has been silent on that account: all times move on with us."""
        if self._awake is not None and machine_now - self._awake[0] > PAUSE_S:
            missed_s = max(0.0, now - self._awake[1])
            self.seen = {subject: (value, since + missed_s) for subject, (value, since) in self.seen.items()}
        self._awake = (machine_now, now)

    def since(self, subject: str, value: str, now: float) -> float:
        """Say since when `subject` has had this `value`, as far as we have seen."""
        known = self.seen.get(subject)
        if known is None or known[0] != value:
            known = self.seen[subject] = (value, now)
        return known[1]

    def forget(self, subject: str) -> None:
        """The subject is gone."""
        self.seen.pop(subject, None)


class Cluster:
    """The cluster as one controller sees it and acts on it, during one reconcile.

    Reads come from views that lag by milliseconds. Writes go at once; `shown` waits until the views show them, and the
    runner calls it before the same key is worked on again, so that no plan is made twice from one state.
    """

    def __init__(
        self,
        client: Client,
        views: Views,
        *,
        clock: Clock,
        settings: Settings,
        recorder: Recorder,
        memory: Memory,
    ) -> None:
        self.client, self.clock, self.settings, self.memory = client, clock, settings, memory
        self._views, self._recorder = views, recorder
        self._by_kind: dict[Kind, list[Informer[Any]]] = {}
        for (kind, _), view in views.items():
            self._by_kind.setdefault(kind, []).append(view)
        self._writes: dict[Kind, int] = {}
        self._deletes: list[tuple[Kind, Key, str]] = []

    def during(self) -> "Cluster":
        """The same cluster for another reconcile, with no writes to wait for."""
        twin = object.__new__(Cluster)
        twin.__dict__.update(self.__dict__)
        twin._writes, twin._deletes = {}, []
        return twin

    def now(self) -> float:
        """Cluster time."""
        return self.clock.now()

    def view(self, kind: Kind, struct: type[T]) -> Informer[T]:
        """The view of a kind that one of the controller's watches asked for."""
        return self._views[(kind, struct)]

    def get(self, kind: Kind, struct: type[T], key: Key) -> T | None:
        """Find one object in the view."""
        return self.view(kind, struct).get(key[1], key[0])

    def event(self, kind: Kind, meta: Meta, reason: str, message: str, *, warning: bool = False) -> None:
        """Tell people about an object."""
        self._recorder.event(About.of(kind, meta), reason, message, warning=warning)

    async def read(self, kind: Kind, struct: type[T], key: Key) -> T | None:
        """Read one object from the server itself; None if it is not there."""
        try:
            return msgspec.json.decode(await self.client.get(kind, key[1], key[0]), type=struct)
        except NotFound:
            return None

    async def create(self, kind: Kind, body: Json, namespace: str = "") -> bytes:
        """Create an object. Raises AlreadyExists."""
        return self._wrote(kind, await self.client.create(kind, body, namespace))

    async def update(self, kind: Kind, body: Json, *, subresource: str = "") -> bytes:
        """Replace an object. Raises Conflict."""
        return self._wrote(kind, await self.client.update(kind, body, subresource=subresource))

    async def patch(
        self,
        kind: Kind,
        meta: Meta,
        patch: Json,
        *,
        subresource: str = "",
        type: str = "merge",
        guarded: bool = False,
    ) -> bytes:
        """Patch the object that has `meta`; `guarded` only if nobody has written it since (Conflict)."""
        guard: Json = {"uid": meta.uid} if meta.uid else {}
        if guarded:
            guard["resourceVersion"] = meta.resource_version
        if guard:
            patch = {**patch, "metadata": {**patch.get("metadata", {}), **guard}}
        done = await self.client.patch(kind, meta.name, meta.namespace, patch, subresource=subresource, type=type)
        return self._wrote(kind, done)

    async def delete(
        self, kind: Kind, meta: Meta, *, grace_s: int | None = None, propagation: str = "", guarded: bool = False
    ) -> None:
        """Delete the object that has `meta`, never a namesake; nothing if it is gone."""
        try:
            await self.client.delete(
                kind,
                meta.name,
                meta.namespace,
                uid=meta.uid,
                version=meta.resource_version if guarded else "",
                grace_s=grace_s,
                propagation=propagation,
            )
        except NotFound:
            return
        self._deletes.append((kind, meta.key, meta.uid))

    async def shown(self) -> None:
        """Wait until the views show what was written. Raises DeadlineExceeded."""
        for kind, version in self._writes.items():
            for view in self._by_kind.get(kind, ()):
                await view.wait_for(version, SHOWN_S)
        for kind, key, uid in self._deletes:
            for view in self._by_kind.get(kind, ()):
                await view.wait_until(lambda view=view, key=key, uid=uid: _is_gone(view, key, uid), SHOWN_S)
        self._writes.clear()
        self._deletes.clear()

    def _wrote(self, kind: Kind, data: bytes) -> bytes:
        meta = _WRITTEN.decode(data).metadata
        if meta.resource_version.isdigit():
            self._writes[kind] = max(self._writes.get(kind, 0), int(meta.resource_version))
        return data


def _is_gone(view: Informer[Any], key: Key, uid: str) -> bool:
    """Whether the view shows a deletion: the object is away, ends, or is another of the same name."""
    found = view.get(key[1], key[0])
    return found is None or found.metadata.uid != uid or found.metadata.is_deleting


Wakes = Callable[[Cluster, Any, Any], Iterable[Key]]
"""Says which keys a change (before, now) concerns; one of the two is None when the object appears or goes."""

Reconcile = Callable[[Key, Cluster], Awaitable[float | None]]
"""Brings one object nearer to its spec. Safe at any time, and twice. Returns after how many cluster seconds to look
again, or None: when something changes."""


@dataclass(frozen=True)
class Watch(Generic[T]):
    """A kind that a controller reads, as `struct`, and which keys a change of it wakes."""

    kind: Kind
    struct: type[T]
    wakes: Wakes | None = None
    indices: Mapping[str, Callable[[T], Iterable[str]]] = field(default_factory=dict[str, Any])


@dataclass(frozen=True)
class Controller:
    """One controller. It acts as `system:controller:NAME`; `acts_as` is that name where it is not its own."""

    name: str
    watches: tuple[Watch[Any], ...]
    reconcile: Reconcile
    workers: int = 4
    acts_as: str = ""


def itself(cluster: Cluster, before: Object | None, now: Object | None) -> Iterable[Key]:
    """Wake the object that changed."""
    found = now or before
    return (found.key,) if found is not None else ()


def its_controller(kind: Kind) -> Wakes:
    """Wake the object of `kind` that controls, or did control, what changed."""

    def wakes(cluster: Cluster, before: Object | None, now: Object | None) -> Iterable[Key]:
        for found in (before, now):
            owner = found.metadata.controller if found is not None else None
            if found is not None and owner is not None and owner.kind == kind.kind:
                yield found.metadata.namespace, owner.name

    return wakes


def by_owner(found: Object) -> Iterable[str]:
    """Index: the uid of the controller."""
    owner = found.metadata.controller
    return (owner.uid,) if owner is not None else ()


def by_namespace(found: Object) -> Iterable[str]:
    """Index: the namespace."""
    return (found.metadata.namespace,)


async def together(calls: Iterable[Awaitable[object]]) -> None:
    """Do all calls at once, all of them to the end; then raise the first error."""
    results = await asyncio.gather(*calls, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
