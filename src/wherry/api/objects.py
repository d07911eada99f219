"""Create, update and patch of any kind: read, admit, check, and one compare-and-set.

The order of a write: decode, prune, what the server says itself (uid, status, ...), defaults, admission, checks, write.
A write that changes nothing is none: it takes no revision and wakes nobody.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import orjson

from wherry.api import admission, bodies, deletes, strategy
from wherry.api.bodies import WriteOptions
from wherry.api.cache import Item, splice
from wherry.api.core import Core
from wherry.api.errors import NameTaken, invalid
from wherry.api.shown import at_rest, shown, shown_dict
from wherry.api.target import Target
from wherry.errors import AlreadyExists, BadRequest, Conflict, Unsupported, UnsupportedMediaType
from wherry.model import admit, patches
from wherry.model.kinds import Kind
from wherry.model.users import User
from wherry.store.protocol import Note
from wherry.wire.http import Request, Response

Json = dict[str, Any]
Change = Callable[[Item], Awaitable[Json]]
"""Makes the object wanted (in the request's version) from the one at rest."""

_ATTEMPTS = 10
_NAMES = 8
_PATCHES = {
    "application/json-patch+json": "json",
    "application/merge-patch+json": "merge",
    "application/strategic-merge-patch+json": "strategic",
}
_APPLY = ("application/apply-patch+yaml", "application/apply-patch+cbor")


@dataclass(frozen=True, slots=True)
class Written:
    """The outcome of a write: the object's bytes (with resourceVersion, in the version at rest)."""

    data: bytes
    version: int


def note(core: Core, user: User, method: str, target: Target) -> Note:
    """Who, when, what: `PATCH deployments/scale`."""
    return Note(core.clock.now(), user.name, f"{method} {target.resource}")


async def create(core: Core, user: User, target: Target, request: Request) -> Response:
    """POST of an object to its collection."""
    options = bodies.options_of(request)
    obj = await bodies.read(request, target.kind, options, limit=core.settings.body_bytes)
    written = await make(core, user, target, obj, options, note(core, user, request.method, target))
    return Response.json(shown(target.kind, written.data), 201, options.headers)


async def make(core: Core, user: User, target: Target, obj: Json, options: WriteOptions, note: Note) -> Written:
    """Create an object. Raises AlreadyExists, Invalid, Forbidden and what else admission says."""
    kind = target.kind
    strategy.place(kind, obj, target.namespace)
    generated = strategy.name(kind, obj)
    for attempt in range(_NAMES):
        if attempt:  # a generated name was taken: another one
            obj["metadata"].pop("name")
            strategy.name(kind, obj)
        try:
            return await _create_once(core, user, target, _copy(obj) if generated else obj, options, note)
        except AlreadyExists:
            if not generated or attempt == _NAMES - 1:
                raise
    raise AssertionError("unreachable")


async def _create_once(core: Core, user: User, target: Target, obj: Json, options: WriteOptions, note: Note) -> Written:
    kind = target.kind
    admit.default(kind, obj)
    obj = at_rest(kind, obj)
    kind = kind.storage
    call = admission.Call(
        core, user, "CREATE", kind, target.namespace, obj["metadata"]["name"], "", obj, None, options, note
    )
    await core.cache.present()
    strategy.begin(kind, obj, core.clock.now())
    admission.mutate(call)
    if admission.needs_lock(call):
        async with core.allocating:
            return await _insert(core, call)
    return await _insert(core, call)


async def _insert(core: Core, call: admission.Call) -> Written:
    kind, obj = call.kind, call.obj
    admission.allocate(call)
    admit.default(kind, obj)
    strategy.settle(kind, obj)
    _check(kind, obj, None, call.name)
    admission.validate(call)
    key = kind.key(call.namespace, call.name)
    taken = NameTaken(kind.plural, kind.group, call.name)
    if core.cache.get(kind.root, key) is not None:
        raise taken
    value = strategy.encode(obj)
    if call.options.dry_run:
        return Written(value, 0)
    try:
        version = await core.put(key, value, expect=0, note=call.note)
    except Conflict:
        raise taken from None
    return Written(splice(value, version), version)


async def update(core: Core, user: User, target: Target, request: Request) -> Response:
    """PUT of an object, or of its status."""
    options = bodies.options_of(request)
    body = await bodies.read(request, target.kind, options, limit=core.settings.body_bytes)
    given = strategy.metadata(body).get("name") or target.name
    if given != target.name:
        raise BadRequest(f"the name of the object ({given}) does not match the name on the URL ({target.name})")
    strategy.place(target.kind, body, target.namespace)
    body["metadata"]["name"] = target.name

    async def change(_: Item) -> Json:
        return _copy(body)

    written = await alter(core, user, target, change, options, note(core, user, request.method, target))
    return Response.json(shown(target.kind, written.data), 200, options.headers)


async def patch(core: Core, user: User, target: Target, request: Request) -> Response:
    """PATCH of an object, or of its status, by its media type."""
    options = bodies.options_of(request)
    apply = await read_patch(core, target.kind, request)

    async def change(item: Item) -> Json:
        obj = shown_dict(target.kind, item.document())
        patched = apply(obj)
        bodies.claim(target.kind, patched)
        bodies.clean(target.kind, patched, options)
        meta = strategy.metadata(patched)
        for field, value in (("name", target.name), ("namespace", target.namespace)):
            if value and meta.get(field) != value:
                raise invalid(
                    target.kind.kind,
                    target.kind.group,
                    target.name,
                    [admission.immutable(f"metadata.{field}", meta.get(field))],
                )
        return patched

    written = await alter(core, user, target, change, options, note(core, user, request.method, target))
    return Response.json(shown(target.kind, written.data), 200, options.headers)


async def read_patch(core: Core, kind: Kind, request: Request) -> Callable[[Json], Json]:
    """Read the body of a PATCH as a function on objects. Raises UnsupportedMediaType, BadRequest."""
    media = bodies.media_type(request)
    if media in _APPLY:
        raise UnsupportedMediaType(
            f"server-side apply ({media}) is not supported by this version of wherry: use client-side apply"
            " (kubectl apply without --server-side), or one of " + ", ".join(_PATCHES)
        )
    how = _PATCHES.get(media)
    if how is None or (how == "strategic" and not kind.definition):
        raise UnsupportedMediaType(
            f"the body of the request was in an unknown format - accepted media types include: {', '.join(_PATCHES)};"
            f" it came as {media!r}"
        )
    body: Any = bodies.decode_patch(await request.body(core.settings.body_bytes))
    _must_fit(how, body)

    def apply(obj: Json) -> Json:
        match how:
            case "json":
                patched: Any = patches.json_patch(obj, body)
            case "merge":
                patched = patches.merge_patch(obj, body)
            case _:
                patched = patches.strategic_merge(kind, obj, body)
        if not isinstance(patched, dict):
            raise BadRequest("the patch leaves no object")
        return patched

    return apply


async def alter(core: Core, user: User, target: Target, change: Change, options: WriteOptions, note: Note) -> Written:
    """Change an object: `change` is asked again when somebody else was faster.

    Raises NotFound, Conflict, Invalid and what admission says. An object that loses its last finalizer while it is
    being deleted is removed.
    """
    warned = len(options.warnings)
    try:
        return await _try(core, user, target, change, options, note)
    except _Lost as lost:
        item = lost.item
    # Somebody else was faster. From now on those who lost take turns.
    for _ in range(_ATTEMPTS):
        del options.warnings[warned:]
        async with core.turn(item.key):
            await core.newer(target.kind.storage, item)
            try:
                return await _try(core, user, target, change, options, note)
            except _Lost as lost:
                item = lost.item
    raise strategy.moved(target.kind, target.name)


class _Lost(Exception):
    """Another write came between our reading of `item` and our writing."""

    def __init__(self, item: Item) -> None:
        super().__init__(item.key)
        self.item = item


async def _try(core: Core, user: User, target: Target, change: Change, options: WriteOptions, note: Note) -> Written:
    await core.cache.present()
    item = core.find(target.kind.storage, target.namespace, target.name)
    if item is None:
        raise target.missing()
    obj = await change(item)
    # Who names a version meets this again on the next try, and is told then that the object has moved on.
    strategy.check_version(target.kind, obj, target.name, item.version, item.meta.uid)
    try:
        return await _update_once(core, user, target, item, obj, options, note)
    except Conflict:
        raise _Lost(item) from None


async def _update_once(
    core: Core, user: User, target: Target, item: Item, obj: Json, options: WriteOptions, note: Note
) -> Written:
    admit.default(target.kind, obj)
    obj = at_rest(target.kind, obj)
    kind = target.kind.storage
    old = item.document()
    call = admission.Call(
        core, user, "UPDATE", kind, target.namespace, target.name, target.subresource, obj, old, options, note
    )
    strategy.carry(kind, obj, old, target.subresource)
    admission.mutate(call)
    if admission.needs_lock(call):
        async with core.allocating:
            return await _replace(core, call, item)
    return await _replace(core, call, item)


async def _replace(core: Core, call: admission.Call, item: Item) -> Written:
    kind, obj, old = call.kind, call.obj, item.document()
    admission.allocate(call)
    causes = strategy.finalizer_causes(obj, old)
    if causes:
        raise invalid(kind.kind, kind.group, call.name, causes)
    # A binding sets what nobody else may change, and nothing else: it is checked as a pod that is new.
    _check(kind, obj, None if call.subresource == "binding" else old, call.name)
    admission.validate(call)
    old["metadata"].pop("resourceVersion", None)
    if obj == old:
        return Written(item.data, item.version)
    value = strategy.encode(obj)
    if call.options.dry_run:
        return Written(splice(value, item.version), item.version)
    if deletes.is_finished(kind, obj):
        version = await core.remove(item.key, expect=item.version, note=call.note)
    else:
        version = await core.put(item.key, value, expect=item.version, note=call.note)
    return Written(splice(value, version), version)


def _must_fit(how: str, body: object) -> None:
    if how != "json" and not isinstance(body, dict):
        raise BadRequest(f"a {how} patch is an object, not {type(body).__name__}")


def _check(kind: Kind, obj: Json, old: Json | None, name: str) -> None:
    causes = admit.check(kind, obj, old)
    if causes:
        raise invalid(kind.kind, kind.group, name, causes)


def _copy(obj: Json) -> Json:
    return orjson.loads(orjson.dumps(obj))


def refuse(target: Target, feature: str) -> Unsupported:
    """The error for a known part of the API that wherry does not have."""
    return Unsupported(
        f"{feature} ({target.resource}) is not supported by this version of wherry; SCOPE.md lists what is"
    )
