"""Watches: what happens to a selection of objects, line by line, from a revision on.

Every watcher of a kind reads the same happenings, encoded once. A watcher that selects sees an object that enters its
selection as ADDED and one that leaves as DELETED. Source: Kubernetes API concepts, "Efficient detection of changes".
"""

import random
from collections.abc import AsyncIterator, Callable, Sequence

import orjson

from wherry.api import tables
from wherry.api.cache import Happening, Item, Shelf, frame, resplice
from wherry.api.core import Core
from wherry.api.errors import failure_bytes
from wherry.api.negotiate import Form, form_of
from wherry.api.reads import fresh
from wherry.api.selection import Options, Selection, options_of, selection_of
from wherry.api.shown import shown
from wherry.api.target import Target
from wherry.clock import machine
from wherry.errors import Expired, WherryError
from wherry.model.kinds import Kind
from wherry.wire.http import Request, Response

DEFAULT_S = (300.0, 600.0)
"""How long a watch lasts that does not say: somewhere between, so that not all come back at once."""
_GATHER_S = 0.01
_BURST = 20.0
_PER_SECOND = 100.0
"""A watcher is sent to at once for so many times in a row, and so often a second; beyond that, changes are gathered."""
_CHUNK = 500
_INITIAL_END = "k8s.io/initial-events-end"

Render = Callable[[str, bytes], bytes]


async def watch(core: Core, target: Target, request: Request) -> Response:
    """Answer with a stream of watch events (one JSON object a line) until the time is over or the client goes."""
    form = form_of(request.headers.get("accept"), request.first("includeObject"))
    options = options_of(request, watch=True)
    selection = selection_of(target.kind, target.namespace, target.name, request)
    headers = {"Content-Type": "application/json", "Cache-Control": "no-cache, private"}
    shelf = core.shelf(target.kind)
    version = int(options.version or 0)
    initial = options.initial if options.initial is not None else version == 0
    if options.initial or not options.version:
        await fresh(core, options.version)
    if initial or (version == 0 and options.initial is False):
        position = shelf.end
    else:
        if version > core.cache.revision:
            await core.cache.reached(version)
        try:
            position = shelf.position_after(version)
        except Expired as error:
            return Response.stream(_one(frame("ERROR", failure_bytes(error))), headers)
    # The present is taken here, in the same turn of the loop as the position: nothing falls between the two.
    items = [item for item in shelf.all(selection.prefix) if selection.matches(item)] if initial else []
    walk = _Walk(core, selection, options, shelf, position, _renderer(core, target.kind, form))
    return Response.stream(walk.run(items), headers, live=True)


class _Walk:
    """One watcher, on its way along the happenings of a shelf."""

    def __init__(
        self, core: Core, selection: Selection, options: Options, shelf: Shelf, position: int, render: Render | None
    ) -> None:
        self._core = core
        self._selection = selection
        self._options = options
        self._shelf = shelf
        self._position = position
        self._render = render
        self._all = selection.everything and selection.prefix == shelf.root
        self._revision = core.cache.revision

    async def run(self, items: Sequence[Item]) -> AsyncIterator[bytes]:
        """The initial objects, then what happens, with bookmarks when the client takes them."""
        ends = machine.monotonic() + (self._options.timeout_s or random.uniform(*DEFAULT_S))
        for start in range(0, len(items), _CHUNK):
            yield b"".join([self._frame("ADDED", item.data) for item in items[start : start + _CHUNK]])
        if self._options.bookmarks and self._options.initial:
            yield self._bookmark(self._revision, initial_end=True)
        bookmark_s = self._core.settings.bookmark_s
        credit, sent = _BURST, machine.monotonic()
        marks = machine.monotonic() + bookmark_s
        while True:
            now = machine.monotonic()
            if now >= ends or self._shelf.closed:
                break
            try:
                async with machine.timeout(min(ends, marks) - now):
                    await self._shelf.more(self._position)
            except TimeoutError:
                if machine.monotonic() >= marks:
                    marks = machine.monotonic() + bookmark_s
                    if self._options.bookmarks:
                        yield self._bookmark(self._core.cache.revision)
                continue
            try:
                lines = self._next()
            except Expired as error:
                yield frame("ERROR", failure_bytes(error))
                return
            if lines:
                yield lines
                now = machine.monotonic()
                credit = min(_BURST, credit + (now - sent) * _PER_SECOND) - 1
                sent = now
                if credit < 0:
                    await machine.sleep(_GATHER_S)
        lines = self._next_or_nothing()
        yield lines + (self._bookmark(self._core.cache.revision) if self._options.bookmarks else b"")

    def _next(self) -> bytes:
        happenings = self._shelf.since(self._position)
        self._position += len(happenings)
        if self._all and self._render is None:
            return b"".join([happening.frame for happening in happenings])
        return b"".join([self._seen(happening) for happening in happenings])

    def _next_or_nothing(self) -> bytes:
        try:
            return self._next()
        except WherryError:
            return b""

    def _seen(self, happening: Happening) -> bytes:
        """A happening as this watcher sees it: b"" for what is none of its business."""
        if not happening.last.key.startswith(self._selection.prefix):
            return b""
        matches = self._selection.matches
        was = happening.before is not None and matches(happening.before)
        is_ = happening.after is not None and matches(happening.after)
        if is_ and happening.after is not None:
            if was is (happening.before is not None) and self._render is None:
                return happening.frame
            return self._frame("MODIFIED" if was else "ADDED", happening.after.data)
        if not was or happening.before is None:
            return b""
        if happening.after is None:
            return self._frame("DELETED", happening.last.data)
        return self._frame("DELETED", resplice(happening.before, happening.revision))

    def _frame(self, type_: str, data: bytes) -> bytes:
        return frame(type_, data) if self._render is None else self._render(type_, data)

    def _bookmark(self, revision: int, *, initial_end: bool = False) -> bytes:
        kind = self._selection.kind
        metadata: dict[str, object] = {"resourceVersion": str(revision), "creationTimestamp": None}
        if initial_end:
            metadata["annotations"] = {_INITIAL_END: "true"}
        data = orjson.dumps({"kind": kind.kind, "apiVersion": kind.api_version, "metadata": metadata})
        return frame("BOOKMARK", data) if self._render is None else self._render("BOOKMARK", data)


def _renderer(core: Core, kind: Kind, form: Form) -> Render | None:
    """What makes a line of an object's bytes; None where they go out as they are."""
    if form.is_object:
        if not kind.stored_as:
            return None
        return lambda type_, data: frame(type_, data if type_ == "BOOKMARK" else shown(kind, data))
    first = True

    def render(type_: str, data: bytes) -> bytes:
        nonlocal first
        if type_ != "BOOKMARK":
            data = shown(kind, data)
        if form.name == "partial":
            return frame(type_, tables.partial(data, form))
        if type_ == "BOOKMARK":
            metadata = orjson.loads(data)["metadata"]
            return frame(type_, tables.table(kind, [], form, core.clock.now(), metadata, header=False))
        version = orjson.loads(data)["metadata"]["resourceVersion"]
        line = tables.table(kind, [data], form, core.clock.now(), {"resourceVersion": version}, header=first)
        first = False
        return frame(type_, line)

    return render


async def _one(line: bytes) -> AsyncIterator[bytes]:
    yield line
