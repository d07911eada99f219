"""Garbage collection: what is owned goes when its owners have gone; in which order, the deletion says.

Background: the owner goes at once, its dependents after it. Foreground: the owner waits (finalizer `foregroundDeletion`)
for dependents that block it. Orphan: the dependents lose their reference first (finalizer `orphan`), and stay.
Source: Kubernetes, "Garbage Collection", "Owners and Dependents".
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum

import msgspec

from wherry.client.objects import Key, Meta, OwnerReference, Partial
from wherry.controllers.cluster import Cluster, Controller, Wakes, Watch, together
from wherry.errors import Conflict, NotFound
from wherry.model.kinds import EVENTS, KINDS, Kind, by_kind

FOREGROUND = "foregroundDeletion"
ORPHAN = "orphan"

AT_ONCE = 50  # requests under way at a time for one owner


class Owner(Enum):
    """What an owner means for its dependent."""

    SOLID = "it is there"
    ABSENT = "it has gone"
    WAITING = "it is being deleted and waits for its dependents"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What to do with a dependent: delete it (with a propagation policy), or drop references (by uid), or nothing."""

    delete: str = ""
    drop: frozenset[str] = frozenset()


def judge(dependent: Meta, owners: Sequence[tuple[OwnerReference, Owner]], *, has_dependents: bool) -> Verdict:
    """Say what becomes of an object with these owners: it lives as long as one of them does."""
    if not owners or dependent.is_deleting:
        return Verdict()
    lost = frozenset(reference.uid for reference, state in owners if state is not Owner.SOLID)
    if any(state is Owner.SOLID for _, state in owners):
        return Verdict(drop=lost)
    if any(state is Owner.WAITING for _, state in owners) and has_dependents:
        return Verdict(delete="Foreground")  # the owner waits for all of the tree below it
    if ORPHAN in dependent.finalizers:
        return Verdict(delete="Orphan")
    return Verdict(delete="Foreground" if FOREGROUND in dependent.finalizers else "Background")


def collected() -> Sequence[Kind]:
    """The kinds whose objects are owned, or own."""
    return [
        kind
        for kind in KINDS
        if kind.stored and not kind.stored_as and kind is not EVENTS and {"list", "watch", "delete"} <= set(kind.verbs)
    ]


def key_of(kind: Kind, meta: Meta) -> Key:
    """The queue's key of an object of any kind."""
    return f"{kind.api_version}/{kind.kind}", f"{meta.namespace}/{meta.name}"


async def reconcile(key: Key, cluster: Cluster) -> None:
    """Settle one object: as an owner that is being deleted, or as a dependent whose owners may be gone."""
    api_version, _, name_of_kind = key[0].rpartition("/")
    kind = by_kind(api_version, name_of_kind)
    namespace, _, name = key[1].partition("/")
    one = cluster.view(kind, Partial).get(name, namespace) if kind is not None else None
    if kind is None or one is None:
        return
    if one.metadata.is_deleting:
        if ORPHAN in one.metadata.finalizers:
            await _orphan_dependents(cluster, kind, one)
        elif FOREGROUND in one.metadata.finalizers:
            await _wait_for_dependents(cluster, kind, one)
        return
    await _settle(cluster, kind, one)


async def _settle(cluster: Cluster, kind: Kind, one: Partial) -> None:
    """Delete an object that no owner holds, or drop its references to owners that are gone."""
    owners = [(own, await _state(cluster, kind, one, own)) for own in one.metadata.owner_references]
    has_dependents = bool(next(iter(_dependents(cluster, one.metadata.uid)), None))
    verdict = judge(one.metadata, owners, has_dependents=has_dependents)
    if verdict.delete:
        await cluster.delete(kind, one.metadata, propagation=verdict.delete, guarded=True)
    elif verdict.drop:
        await _drop(cluster, kind, one, verdict.drop)


async def _orphan_dependents(cluster: Cluster, kind: Kind, owner: Partial) -> None:
    dependents = list(_dependents(cluster, owner.metadata.uid))
    for start in range(0, len(dependents), AT_ONCE):
        await together(
            _drop(cluster, other, one, frozenset((owner.metadata.uid,)))
            for other, one in dependents[start : start + AT_ONCE]
        )
    await _remove_finalizer(cluster, kind, owner, ORPHAN)


async def _wait_for_dependents(cluster: Cluster, kind: Kind, owner: Partial) -> None:
    """Delete the owner's dependents; let it go when none that blocks it is left. Each one's end wakes us again."""
    dependents = list(_dependents(cluster, owner.metadata.uid))
    for start in range(0, len(dependents), AT_ONCE):
        await together(
            _settle(cluster, other, one)
            for other, one in dependents[start : start + AT_ONCE]
            if not one.metadata.is_deleting
        )
    if not any(_blocks(one, owner) for _, one in dependents):
        await _remove_finalizer(cluster, kind, owner, FOREGROUND)


async def _state(cluster: Cluster, kind: Kind, dependent: Partial, own: OwnerReference) -> Owner:
    """Find out whether an owner is there: in our view, or, before anything is deleted, from the server itself."""
    owner_kind = by_kind(own.api_version, own.kind)
    if owner_kind is None or not owner_kind.stored or EVENTS.kind == own.kind:
        return Owner.SOLID  # we cannot know; what we do not know we do not delete
    if owner_kind.namespaced and not dependent.metadata.namespace:
        message = f"ownerRef [{own.api_version}/{own.kind}, name: {own.name}] is namespaced, and this object is not"
        cluster.event(kind, dependent.metadata, "OwnerRefInvalidNamespace", message, warning=True)
        return Owner.SOLID
    where = dependent.metadata.namespace if owner_kind.namespaced else ""
    found = cluster.view(owner_kind.storage, Partial).get(own.name, where)
    if found is None or found.metadata.uid != own.uid:
        found = await cluster.read(owner_kind, Partial, (where, own.name))
    if found is None or found.metadata.uid != own.uid:
        return Owner.ABSENT
    waits = found.metadata.is_deleting and FOREGROUND in found.metadata.finalizers
    return Owner.WAITING if waits else Owner.SOLID


def _dependents(cluster: Cluster, uid: str) -> Iterable[tuple[Kind, Partial]]:
    for kind in collected():
        for one in cluster.view(kind, Partial).by_index("owners", uid):
            yield kind, one


def _blocks(dependent: Partial, owner: Partial) -> bool:
    references = dependent.metadata.owner_references
    return any(own.uid == owner.metadata.uid and own.block_owner_deletion for own in references)


async def _drop(cluster: Cluster, kind: Kind, one: Partial, uids: frozenset[str]) -> None:
    """Take references out. One that has changed meanwhile is tried again (Conflict)."""
    rest = [msgspec.to_builtins(own) for own in one.metadata.owner_references if own.uid not in uids]
    try:
        await cluster.patch(kind, one.metadata, {"metadata": {"ownerReferences": rest or None}}, guarded=True)
    except NotFound:
        return


async def _remove_finalizer(cluster: Cluster, kind: Kind, one: Partial, finalizer: str) -> None:
    rest = [name for name in one.metadata.finalizers if name != finalizer]
    try:
        await cluster.patch(kind, one.metadata, {"metadata": {"finalizers": rest or None}}, guarded=True)
    except NotFound:
        return
    except Conflict:
        raise Conflict(f"{kind.qualified} {one.metadata.name} has changed while {finalizer} was taken off") from None


def _by_owners(one: Partial) -> Iterable[str]:
    """Index: the uid of every owner."""
    return {own.uid for own in one.metadata.owner_references}


def _wakes(kind: Kind) -> Wakes:
    def wakes(cluster: Cluster, before: Partial | None, now: Partial | None) -> Iterable[Key]:
        """Itself when its owners or its deletion changed; its dependents when it went; owners that wait for it."""
        if now is None:
            assert before is not None
            for other, one in _dependents(cluster, before.metadata.uid):
                yield key_of(other, one.metadata)
            yield from _waiting_owners(cluster, before)
            return
        meta = now.metadata
        if before is None or before.metadata.owner_references != meta.owner_references:
            if meta.owner_references:
                yield key_of(kind, meta)
            if before is not None:
                yield from _waiting_owners(cluster, before)
        if meta.is_deleting and (FOREGROUND in meta.finalizers or ORPHAN in meta.finalizers):
            yield key_of(kind, meta)

    return wakes


def _waiting_owners(cluster: Cluster, one: Partial) -> Iterable[Key]:
    for own in one.metadata.owner_references:
        kind = by_kind(own.api_version, own.kind)
        if kind is None or not kind.stored or kind.kind == EVENTS.kind:
            continue
        where = one.metadata.namespace if kind.namespaced else ""
        owner = cluster.view(kind.storage, Partial).get(own.name, where)
        if owner is not None and owner.metadata.is_deleting and FOREGROUND in owner.metadata.finalizers:
            yield key_of(kind.storage, owner.metadata)


CONTROLLER = Controller(
    "generic-garbage-collector",
    tuple(Watch(kind, Partial, _wakes(kind), {"owners": _by_owners}) for kind in collected()),
    reconcile,
    workers=4,
)
