"""Namespaces that end: everything in them is deleted, then they are let go."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from wherry.client.objects import Key, Partial
from wherry.client.protocol import Json
from wherry.controllers.cluster import Cluster, Controller, Watch, itself, together
from wherry.controllers.objects import Condition, Namespace
from wherry.controllers.status import condition, merge_condition
from wherry.errors import Conflict, MethodNotAllowed, NotFound, WherryError
from wherry.model.kinds import EVENTS, KINDS, NAMESPACES, Kind

FINALIZER = "kubernetes"

LOOK_AGAIN_S = 5.0
"""Cluster seconds after which we look again at what is slow to end, should nothing wake us."""

AT_ONCE = 50  # deletions under way at a time


@dataclass(frozen=True, slots=True)
class Remains:
    """What is left in a namespace: how many of each kind, how many wait for each finalizer, what could not be done."""

    counts: Mapping[str, int]
    finalizers: Mapping[str, int]
    failures: Sequence[str] = ()


def conditions(before: Sequence[Condition], remains: Remains, now: float) -> Sequence[Condition]:
    """Say in status.conditions what keeps a namespace from ending. Source: Kubernetes, "Namespaces"."""
    failed = "; ".join(sorted(remains.failures))
    kinds = ", ".join(f"{name} has {count} resource instances" for name, count in sorted(remains.counts.items()))
    waits = ", ".join(f"{name} in {count} resource instances" for name, count in sorted(remains.finalizers.items()))
    failed_words = ("True", "ContentDeletionFailed", failed)
    fine_words = ("False", "ContentDeleted", "All content successfully deleted, may be waiting on finalization")
    some_words = ("True", "SomeResourcesRemain", f"Some resources are remaining: {kinds}")
    none_words = ("False", "ContentRemoved", "All content successfully removed")
    waits_words = ("True", "SomeFinalizersRemain", f"Some content in the namespace has finalizers remaining: {waits}")
    done_words = ("False", "ContentHasNoFinalizers", "All content-preserving finalizers finished")
    rows = {
        "NamespaceDeletionContentFailure": failed_words if remains.failures else fine_words,
        "NamespaceContentRemaining": some_words if remains.counts else none_words,
        "NamespaceFinalizersRemaining": waits_words if remains.finalizers else done_words,
    }
    result = list(before)
    for type, words in rows.items():
        result = merge_condition(result, condition(type, *words, now))
    return result


def contents() -> Sequence[Kind]:
    """The kinds that a namespace may hold, each object once."""
    return [
        kind
        for kind in KINDS
        if kind.namespaced and kind.stored and not kind.stored_as and {"list", "delete"} <= set(kind.verbs)
    ]


async def reconcile(key: Key, cluster: Cluster) -> float | None:
    """Delete what is in one ending namespace; when nothing is, take our finalizer off."""
    namespace = cluster.get(NAMESPACES, Namespace, key)
    if namespace is None or not namespace.metadata.is_deleting or FINALIZER not in namespace.spec.finalizers:
        return None
    remains = await _empty(cluster, namespace.metadata.name)
    if not remains.counts and not remains.failures:
        await _finalize(cluster, namespace)
        return None
    now = conditions(namespace.status.conditions, remains, cluster.now())
    if now != namespace.status.conditions:
        patch = {"status": {"conditions": msgspec.to_builtins(now)}}
        await cluster.patch(NAMESPACES, namespace.metadata, patch, subresource="status")
    return LOOK_AGAIN_S


async def _empty(cluster: Cluster, namespace: str) -> Remains:
    """Delete what the server itself still lists, and say what is left after that."""
    counts: dict[str, int] = {}
    finalizers: dict[str, int] = {}
    failures: list[str] = []
    for kind in contents():
        try:
            found = await _list(cluster, kind, namespace)
            fresh = [one for one in found if not one.metadata.is_deleting]
            for start in range(0, len(fresh), AT_ONCE):
                await together(
                    cluster.delete(kind, one.metadata, propagation="Background")
                    for one in fresh[start : start + AT_ONCE]
                )
            left = await _list(cluster, kind, namespace) if found else []
        except (MethodNotAllowed, NotFound):
            continue
        except WherryError as error:
            failures.append(f"{kind.qualified}: {error.message}")
            continue
        if left:
            counts[kind.qualified] = len(left)
        for one in left:
            for name in one.metadata.finalizers:
                finalizers[name] = finalizers.get(name, 0) + 1
    return Remains(counts, finalizers, failures)


async def _list(cluster: Cluster, kind: Kind, namespace: str) -> Sequence[Partial]:
    listing = await cluster.client.list(kind, namespace)
    return [msgspec.json.decode(item, type=Partial) for item in listing.items]


async def _finalize(cluster: Cluster, namespace: Namespace) -> None:
    rest = [name for name in namespace.spec.finalizers if name != FINALIZER]
    try:
        body: Json = msgspec.json.decode(await cluster.client.get(NAMESPACES, namespace.metadata.name))
        if body["metadata"]["uid"] != namespace.metadata.uid:
            return
        body["spec"]["finalizers"] = rest
        await cluster.client.update(NAMESPACES, body, subresource="finalize")
    except NotFound:
        return
    except Conflict:
        raise Conflict(f"namespace {namespace.metadata.name} has changed while it was let go") from None


def _wakes_of_content(cluster: Cluster, before: Partial | None, now: Partial | None) -> Iterable[Key]:
    """Something in a namespace is gone: the namespace may be empty now."""
    if now is None and before is not None:
        namespace = cluster.view(NAMESPACES, Namespace).get(before.metadata.namespace)
        if namespace is not None and namespace.metadata.is_deleting:
            yield namespace.key


CONTROLLER = Controller(
    "namespace-controller",
    (
        Watch(NAMESPACES, Namespace, itself),
        *(Watch(kind, Partial, _wakes_of_content) for kind in contents() if kind is not EVENTS),
    ),
    reconcile,
    workers=2,
)
