"""GET of one object and of lists: bytes from the cache; only a page of the past asks the store."""

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import orjson

from wherry.api import tables
from wherry.api.cache import Item, Shelf, splice
from wherry.api.core import Core
from wherry.api.errors import ExpiredToken
from wherry.api.negotiate import Form, form_of
from wherry.api.selection import Options, Selection, options_of, selection_of, version_of
from wherry.api.shown import shown
from wherry.api.target import Target
from wherry.errors import BadRequest, Expired
from wherry.wire.http import Request, Response

_COMPRESS_BYTES = 128 * 1024


class Token(msgspec.Struct, frozen=True):
    """Where the next page begins: after the key `start`, at `revision` (0: wherever the cluster is now)."""

    revision: int
    start: str

    def text(self) -> str:
        """It as the opaque text that clients send back."""
        return base64.urlsafe_b64encode(msgspec.json.encode(self)).rstrip(b"=").decode()

    @classmethod
    def parse(cls, text: str, prefix: str) -> "Token":
        """Read a token. Raises BadRequest for one that is not ours, or of another list."""
        try:
            padded = text + "=" * (-len(text) % 4)
            token = msgspec.json.decode(base64.b64decode(padded, altchars=b"-_", validate=True), type=cls)
        except (binascii.Error, msgspec.MsgspecError, ValueError) as error:
            raise BadRequest(f"continue key is not valid: {error}; list again without it") from None
        if not token.start.startswith(prefix):
            raise BadRequest("continue key is not valid: it belongs to another list; list again without it")
        return token


@dataclass(frozen=True, slots=True)
class Found:
    """A part of a list, as of `revision`."""

    items: Sequence[Item]
    revision: int
    token: str = ""
    remaining: int = 0


async def get(core: Core, target: Target, request: Request) -> Response:
    """One object, or its Table or metadata."""
    form = form_of(request.headers.get("accept"), request.first("includeObject"))
    await fresh(core, version_of(request.first("resourceVersion") or ""))
    item = core.find(target.kind, target.namespace, target.name)
    if item is None:
        raise target.missing()
    return Response.json(show(core, target, item.data, item.version, form))


async def list_(core: Core, target: Target, request: Request) -> Response:
    """A list, whole or a page of it."""
    form = form_of(request.headers.get("accept"), request.first("includeObject"))
    options = options_of(request, watch=False)
    selection = selection_of(target.kind, target.namespace, "", request)
    found = await find(core, selection, options)
    body = _body(core, target, found, form)
    return Response.json(body, compress=len(body) > _COMPRESS_BYTES)


def show(core: Core, target: Target, data: bytes, version: int, form: Form) -> bytes:
    """One object (its bytes with resourceVersion) in the form asked for."""
    data = shown(target.kind, data)
    match form.name:
        case "object":
            return data
        case "partial":
            return tables.partial(data, form)
        case "table":
            return tables.table(target.kind, [data], form, core.clock.now(), {"resourceVersion": str(version)})


async def fresh(core: Core, version: str) -> None:
    """Wait until the cache is as new as a read wants: "" the latest of all, "0" any, else at least that."""
    if not version:
        await core.cache.present()
    elif version != "0":
        await core.cache.reached(int(version))


async def find(core: Core, selection: Selection, options: Options) -> Found:
    """The objects that a list means, with its revision and its continue token.

    Raises ExpiredToken and Expired for a past that is compacted away.
    """
    shelf = core.shelf(selection.kind)
    if options.token:
        token = Token.parse(options.token, selection.prefix)
        if token.revision == 0 or shelf.revision <= token.revision <= core.cache.revision:
            return _page(selection, shelf, options.limit, token.revision or core.cache.revision, token.start)
        return await _past(core, selection, options.limit, token.revision, token.start)
    await fresh(core, options.version)
    if options.match == "Exact":
        revision = int(options.version)
        if shelf.revision <= revision:
            return _page(selection, shelf, options.limit, revision)
        return await _past(core, selection, options.limit, revision)
    return _page(selection, shelf, options.limit, core.cache.revision)


def _page(selection: Selection, shelf: Shelf, limit: int, revision: int, after: str = "") -> Found:
    keys = shelf.under(selection.prefix, after)
    if selection.everything:
        part = keys[:limit] if limit else keys
        left = len(keys) - len(part)
        token = Token(revision, part[-1]).text() if left else ""
        return Found([shelf.items[key] for key in part], revision, token, left)
    items: list[Item] = []
    for key in keys:
        item = shelf.items[key]
        if not selection.matches(item):
            continue
        if limit and len(items) == limit:
            return Found(items, revision, Token(revision, items[-1].key).text())
        items.append(item)
    return Found(items, revision)


async def _past(core: Core, selection: Selection, limit: int, revision: int, after: str = "") -> Found:
    items: list[Item] = []
    start = after
    while True:
        try:
            # One more than asked for says whether a further page would be empty.
            page = await core.store.list(selection.prefix, after=start, limit=limit and limit + 1, at=revision)
        except Expired as error:
            if not after:
                raise Expired(f"too old resource version: {revision}") from error
            raise ExpiredToken(
                "The provided continue parameter is too old to display a consistent list result. You can start a new"
                " list without the continue parameter, or use the continue token in this response to retrieve the"
                " remainder of the results.",
                Token(0, after).text(),
            ) from error
        for entry in page.entries:
            item = Item(entry.key, entry.version, splice(entry.value, entry.version))
            if not selection.everything and not selection.matches(item):
                continue
            if limit and len(items) == limit:
                return Found(items, revision, Token(revision, items[-1].key).text(), _left(selection, page.remaining))
            items.append(item)
        if not page.more or not page.entries:
            return Found(items, revision)
        start = page.entries[-1].key


def _left(selection: Selection, remaining: int) -> int:
    return remaining + 1 if selection.everything else 0


def _body(core: Core, target: Target, found: Found, form: Form) -> bytes:
    metadata: dict[str, str | int] = {"resourceVersion": str(found.revision)}
    if found.token:
        metadata["continue"] = found.token
        if found.remaining:
            metadata["remainingItemCount"] = found.remaining
    kind = target.kind
    data = [shown(kind, item.data) for item in found.items] if kind.stored_as else [item.data for item in found.items]
    match form.name:
        case "object":
            head = b'{"kind":"%b","apiVersion":"%b","metadata":%b,"items":[' % (
                kind.list_kind.encode(),
                kind.api_version.encode(),
                orjson.dumps(metadata),
            )
            return b"".join((head, b",".join(data), b"]}"))
        case "partial":
            return tables.partial_list(data, form, metadata)
        case "table":
            return tables.table(kind, data, form, core.clock.now(), metadata)
