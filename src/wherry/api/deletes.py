"""DELETE: preconditions, grace for pods, finalizers, and what shall become of dependents.

An object goes at once, or is marked with a deletionTimestamp and goes when its last finalizer does; a pod also waits for
its node. Source: Kubernetes, "Garbage Collection", "Finalizers", "Termination of Pods".
"""

from dataclasses import dataclass, replace
from typing import Any

import msgspec
import orjson

from wherry.api import admission, bodies, strategy
from wherry.api.bodies import WriteOptions
from wherry.api.cache import Item, splice
from wherry.api.core import Core
from wherry.api.errors import About, invalid, success
from wherry.api.reads import find, fresh
from wherry.api.selection import options_of, selection_of
from wherry.api.shown import shown
from wherry.api.target import Target
from wherry.clock import parse_rfc3339, rfc3339
from wherry.errors import BadRequest, Cause, Conflict, Forbidden, UnsupportedMediaType
from wherry.model import kinds
from wherry.model.kinds import Kind
from wherry.model.users import User
from wherry.store.protocol import Note
from wherry.wire.http import Request, Response

Json = dict[str, Any]

FOREGROUND = "foregroundDeletion"
ORPHAN = "orphan"
_ATTEMPTS = 10
_DEFAULT_GRACE_S = 30
_POLICIES = ("Background", "Foreground", "Orphan")
_IMMORTAL = frozenset({"default", "kube-system", "kube-public"})
_GIVES_OBJECT = frozenset(
    {
        # kinds whose DELETE answers with the object where others answer with a Status
        kinds.PODS,
        kinds.SERVICES,
        kinds.SERVICEACCOUNTS,
        kinds.PODTEMPLATES,
        kinds.RESOURCEQUOTAS,
        kinds.PERSISTENTVOLUMES,
        kinds.PERSISTENTVOLUMECLAIMS,
        kinds.STORAGECLASSES,
        kinds.CSIDRIVERS,
        kinds.CSINODES,
        kinds.VOLUMEATTACHMENTS,
    }
)


class _Preconditions(msgspec.Struct, frozen=True, rename="camel"):
    uid: str | None = None
    resource_version: str | None = None


class _Body(msgspec.Struct, frozen=True, rename="camel"):
    kind: str = "DeleteOptions"
    grace_period_seconds: int | None = None
    propagation_policy: str | None = None
    orphan_dependents: bool | None = None
    dry_run: list[str] | None = None
    preconditions: _Preconditions | None = None


@dataclass(frozen=True, slots=True)
class DeleteOptions:
    """How to delete. `policy` is "" for the kind's default; `grace_s` None for the object's own."""

    uid: str = ""
    version: str = ""
    grace_s: int | None = None
    policy: str = ""
    dry_run: bool = False


async def read_options(core: Core, request: Request) -> DeleteOptions:
    """Read DeleteOptions from the body (JSON, YAML or protobuf), or from the query. Raises BadRequest, Invalid."""
    data = await request.body(core.settings.body_bytes)
    body = _Body()
    if data.strip():
        media = bodies.media_of(bodies.media_type(request))
        if media is None:
            raise UnsupportedMediaType(f"DeleteOptions: {bodies.media_type(request)!r} is not understood: send JSON")
        return delete_options(bodies.decode(data, media))
    grace = request.first("gracePeriodSeconds")
    if grace is not None and not grace.removeprefix("-").isdecimal():
        raise BadRequest(f"gracePeriodSeconds={grace!r}: write whole seconds")
    orphan = request.first("orphanDependents")
    body = _Body(
        grace_period_seconds=int(grace) if grace is not None else None,
        propagation_policy=request.first("propagationPolicy"),
        orphan_dependents=None if orphan is None else orphan == "true",
        dry_run=request.all("dryRun"),
    )
    return _checked(body)


def delete_options(obj: Json) -> DeleteOptions:
    """Read a DeleteOptions object."""
    if obj.get("kind", "DeleteOptions") != "DeleteOptions":
        raise BadRequest(f"the body of a DELETE is DeleteOptions, not {obj['kind']}")
    try:
        return _checked(msgspec.convert(obj, _Body))
    except msgspec.ValidationError as error:
        raise BadRequest(f"DeleteOptions: {error}") from None


def _checked(body: _Body) -> DeleteOptions:
    policy = body.propagation_policy or ""
    causes: list[Cause] = []
    if policy and policy not in _POLICIES:
        words = ", ".join(f'"{word}"' for word in _POLICIES)
        message = f'Unsupported value: "{policy}": supported values: {words}'
        causes.append(Cause("propagationPolicy", "FieldValueNotSupported", message))
    if policy and body.orphan_dependents is not None:
        message = "Invalid value: orphanDependents and deletionPropagation cannot be both set"
        causes.append(Cause("propagationPolicy", "FieldValueInvalid", message))
    if body.grace_period_seconds is not None and body.grace_period_seconds < 0:
        message = f"Invalid value: {body.grace_period_seconds}: must be greater than or equal to 0"
        causes.append(Cause("gracePeriodSeconds", "FieldValueInvalid", message))
    if causes:
        raise invalid("DeleteOptions", "meta.k8s.io", "", causes)
    if body.orphan_dependents is not None:
        policy = "Orphan" if body.orphan_dependents else "Background"
    only = body.preconditions or _Preconditions()
    return DeleteOptions(
        only.uid or "",
        only.resource_version or "",
        body.grace_period_seconds,
        policy,
        bodies.dry_run(body.dry_run or ()),
    )


async def delete(core: Core, user: User, target: Target, request: Request) -> Response:
    """DELETE of one object: a Status, or the object where it stays for a while (and for some kinds always)."""
    options = await read_options(core, request)
    note = Note(core.clock.now(), user.name, f"{request.method} {target.resource}")
    data, gone, uid = await remove(core, user, target, options, note)
    if gone and target.kind not in _GIVES_OBJECT:
        return Response.json(success(About(target.kind.group, target.kind.plural, target.name, uid)))
    return Response.json(shown(target.kind, data))


async def delete_collection(core: Core, user: User, target: Target, request: Request) -> Response:
    """DELETE of everything that selectors mean; the answer is the list of what was deleted."""
    options = await read_options(core, request)
    selection = selection_of(target.kind, target.namespace, "", request)
    await fresh(core, "")
    found = await find(core, selection, options_of(request, watch=False))
    note = Note(core.clock.now(), user.name, f"{request.method} {target.resource}")
    data: list[bytes] = []
    for item in found.items:
        one = replace(target, verb="delete", namespace=item.meta.namespace, name=item.meta.name)
        # A version meant for one object makes no sense for many; an object that went meanwhile is as asked for.
        limits = replace(options, uid=item.meta.uid, version="")
        try:
            data.append(shown(target.kind, (await remove(core, user, one, limits, note))[0]))
        except (Conflict, type(one.missing())):
            continue
    head = {
        "kind": target.kind.list_kind,
        "apiVersion": target.kind.api_version,
        "metadata": {"resourceVersion": str(core.cache.revision)},
        "items": [orjson.Fragment(one) for one in data],
    }
    return Response.json(orjson.dumps(head))


async def remove(core: Core, user: User, target: Target, options: DeleteOptions, note: Note) -> tuple[bytes, bool, str]:
    """Delete an object, or mark it; return its last bytes, whether it is gone, and its uid.

    Raises NotFound, Conflict (a precondition), Forbidden.
    """
    kind = target.kind.storage
    for attempt in range(_ATTEMPTS):
        await core.cache.present()
        item = core.find(kind, target.namespace, target.name)
        if item is None:
            raise target.missing()
        _preconditions(kind, item, options)
        if kind == kinds.NAMESPACES and target.name in _IMMORTAL:
            raise Forbidden(f'namespaces "{target.name}" is forbidden: this namespace may not be deleted')
        write = WriteOptions(dry_run=options.dry_run)
        old = item.document()
        call = admission.Call(core, user, "DELETE", kind, target.namespace, target.name, "", old, old, write, note)
        admission.validate(call)
        try:
            data, gone = await _remove_once(core, kind, item, options, note)
            return data, gone, item.meta.uid
        except Conflict:
            if attempt == _ATTEMPTS - 1:
                raise
            await core.newer(kind, item)
    raise AssertionError("unreachable")


def is_finished(kind: Kind, obj: Json) -> bool:
    """Say whether an object that was marked for deletion has nothing left to wait for."""
    meta: Json = obj["metadata"]
    if not meta.get("deletionTimestamp") or meta.get("finalizers"):
        return False
    if kind == kinds.NAMESPACES and (obj.get("spec") or {}).get("finalizers"):
        return False
    return not meta.get("deletionGracePeriodSeconds")


async def _remove_once(core: Core, kind: Kind, item: Item, options: DeleteOptions, note: Note) -> tuple[bytes, bool]:
    obj = item.document()
    obj["metadata"].pop("resourceVersion", None)
    before = orjson.dumps(obj)
    meta: Json = obj["metadata"]
    meta["finalizers"] = _finalizers(meta.get("finalizers") or [], options.policy)
    _mark(kind, obj, _grace(kind, obj, options), core.clock.now())
    if not meta["finalizers"]:
        del meta["finalizers"]
    if is_finished(kind, obj):
        if options.dry_run:
            return item.data, True
        # What is deleted is shown as it was, and with its deletionTimestamp only where it waited.
        version = await core.remove(item.key, expect=item.version, note=note)
        return splice(before, version), True
    if orjson.dumps(obj) == before or options.dry_run:
        return splice(orjson.dumps(obj), item.version), False
    value = strategy.encode(obj)
    version = await core.put(item.key, value, expect=item.version, note=note)
    return splice(value, version), False


def _mark(kind: Kind, obj: Json, grace_s: int, now: float) -> None:
    """Set when the object is to be gone; a later deletion can only shorten the time."""
    meta: Json = obj["metadata"]
    deadline = meta.get("deletionTimestamp")
    if deadline is None:
        meta["deletionTimestamp"] = rfc3339(now + grace_s)
        meta["deletionGracePeriodSeconds"] = grace_s
        if kind.generation:
            meta["generation"] = int(meta.get("generation") or 0) + 1
    elif grace_s < int(meta.get("deletionGracePeriodSeconds") or 0):
        left = parse_rfc3339(deadline) - int(meta["deletionGracePeriodSeconds"])
        meta["deletionTimestamp"] = rfc3339(max(left + grace_s, now) if grace_s else now)
        meta["deletionGracePeriodSeconds"] = grace_s
    if kind == kinds.NAMESPACES:
        meta["deletionGracePeriodSeconds"] = 0
        status: Json = obj.setdefault("status", {})
        status["phase"] = "Terminating"


def _grace(kind: Kind, obj: Json, options: DeleteOptions) -> int:
    """Seconds of cluster time: only pods on a node, that have not ended, get any."""
    if kind != kinds.PODS:
        return 0
    spec: Json = obj.get("spec") or {}
    ended = (obj.get("status") or {}).get("phase") in ("Succeeded", "Failed")
    if not spec.get("nodeName") or ended:
        return 0
    if options.grace_s is not None:
        return options.grace_s
    if "deletionGracePeriodSeconds" in obj["metadata"]:
        return int(obj["metadata"]["deletionGracePeriodSeconds"])
    own = spec.get("terminationGracePeriodSeconds")
    return int(own) if own is not None and own >= 0 else _DEFAULT_GRACE_S


def _finalizers(present: list[str], policy: str) -> list[str]:
    """The finalizers that a propagation policy asks for beside the object's own."""
    match policy:
        case "Foreground":
            return [*(f for f in present if f not in (ORPHAN, FOREGROUND)), FOREGROUND]
        case "Orphan":
            return [*(f for f in present if f not in (ORPHAN, FOREGROUND)), ORPHAN]
        case "Background":
            return [f for f in present if f not in (ORPHAN, FOREGROUND)]
        case _:
            return list(present)


def _preconditions(kind: Kind, item: Item, options: DeleteOptions) -> None:
    meta = item.meta
    for what, wanted, seen in (
        ("UID", options.uid, meta.uid),
        ("ResourceVersion", options.version, str(item.version)),
    ):
        if wanted and wanted != seen:
            raise Conflict(
                f'Operation cannot be fulfilled on {kind.qualified} "{meta.name}": the {what} in the precondition '
                f"({wanted}) does not match the {what} in record ({seen}). "
                "The object might have been deleted and then recreated"
            )
