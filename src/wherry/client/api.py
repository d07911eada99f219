"""Requests to the API server as plain method calls."""

import random
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import msgspec
import orjson

from wherry.client.protocol import Answer, Change, Json, Listing, Transport
from wherry.client.status import error_in_watch, error_of
from wherry.clock import machine
from wherry.errors import DeadlineExceeded
from wherry.model.kinds import PODS, Kind

Query = Sequence[tuple[str, str]]

PATCH_TYPES: Mapping[str, str] = {
    "merge": "application/merge-patch+json",
    "strategic": "application/strategic-merge-patch+json",
    "json": "application/json-patch+json",
}

REQUEST_S = 60.0
"""Machine seconds that one request may take, its body included; a watch's or a log's body may go on."""

WATCH_S = (300, 600)
"""Seconds after which we ask the server to end a watch: spread, so that not all clients come back at once."""

PAGE = 2000
"""Objects asked for at once; longer lists come in pages of one revision."""


class _ListMeta(msgspec.Struct, frozen=True, rename="camel"):
    resource_version: str = ""
    continue_: str = msgspec.field(default="", name="continue")


class _List(msgspec.Struct, frozen=True):
    metadata: _ListMeta = _ListMeta()
    items: list[msgspec.Raw] | None = None


class _Event(msgspec.Struct, frozen=True):
    type: str
    object: msgspec.Raw


_LIST = msgspec.json.Decoder(_List)
_EVENT = msgspec.json.Decoder(_Event)


class ApiClient:
    """A `Client` over any `Transport`, which also says who we are. Every error is a WherryError."""

    def __init__(self, transport: Transport, *, agent: str = "wherry", timeout_s: float = REQUEST_S) -> None:
        self._transport = transport
        self._agent = agent
        self._timeout_s = timeout_s

    async def request(
        self,
        method: str,
        path: str,
        *,
        query: Query = (),
        body: bytes = b"",
        content_type: str = "application/json",
        headers: Mapping[str, str] | None = None,
    ) -> bytes:
        """Send one request and read the whole answer. Raises the error that the server's Status tells of."""
        try:
            async with machine.timeout(self._timeout_s):
                answer = await self._send(method, path, query, body, content_type, headers)
                try:
                    data = await answer.read()
                finally:
                    await answer.close()
        except TimeoutError:
            raise DeadlineExceeded(f"{method} {path}: no answer within {self._timeout_s:g} s") from None
        if answer.status >= 400:
            raise error_of(answer.status, data)
        return data

    async def get(self, kind: Kind, name: str, namespace: str = "") -> bytes:
        """Read one object's JSON. Raises NotFound."""
        return await self.request("GET", kind.path(namespace, name))

    async def list(self, kind: Kind, namespace: str = "", *, labels: str = "", fields: str = "") -> Listing:
        """Read all objects of a kind (in one namespace), page by page, all as of one revision."""
        selectors = _selectors(labels, fields)
        items: list[bytes] = []
        after = ""
        while True:
            query = [*selectors, ("limit", str(PAGE))]
            if after:
                query.append(("continue", after))
            page = _LIST.decode(await self.request("GET", kind.path(namespace), query=query))
            items.extend(bytes(item) for item in page.items or ())
            after = page.metadata.continue_
            if not after:
                return Listing(items, page.metadata.resource_version)

    async def watch(
        self,
        kind: Kind,
        namespace: str = "",
        *,
        version: str,
        labels: str = "",
        fields: str = "",
        initial: bool = False,
    ) -> AsyncIterator[Change]:
        """Yield changes later than `version` until the server ends the watch; see `Client.watch`."""
        watch_s = random.randint(*WATCH_S)
        query = [
            ("watch", "true"),
            ("allowWatchBookmarks", "true"),
            ("timeoutSeconds", str(watch_s)),
            *([("resourceVersion", version)] if version else []),
            *([("sendInitialEvents", "true"), ("resourceVersionMatch", "NotOlderThan")] if initial else []),
            *_selectors(labels, fields),
        ]
        answer = await self._open("GET", kind.path(namespace), query)
        try:
            async for line in _lines(answer, within_s=watch_s + 60):
                event = _EVENT.decode(line)
                if event.type == "ERROR":
                    raise error_in_watch(bytes(event.object))
                yield Change(event.type, bytes(event.object))
        finally:
            await answer.close()

    async def create(self, kind: Kind, body: Json, namespace: str = "") -> bytes:
        """Create; return the object as stored. Raises AlreadyExists, Invalid, Forbidden."""
        namespace = namespace or str(body.get("metadata", {}).get("namespace", ""))
        return await self.request("POST", kind.path(namespace), body=orjson.dumps(body))

    async def update(self, kind: Kind, body: Json, *, subresource: str = "") -> bytes:
        """Replace; `metadata.resourceVersion` in the body guards against others' writes (Conflict)."""
        meta: Json = body["metadata"]
        path = kind.path(meta.get("namespace", ""), meta["name"], subresource)
        return await self.request("PUT", path, body=orjson.dumps(body))

    async def patch(
        self,
        kind: Kind,
        name: str,
        namespace: str,
        patch: Json | Sequence[Json],
        *,
        subresource: str = "",
        type: str = "merge",
    ) -> bytes:
        """Patch. `type`: "merge", "strategic" or "json" (a list of operations)."""
        path = kind.path(namespace, name, subresource)
        return await self.request("PATCH", path, body=orjson.dumps(patch), content_type=PATCH_TYPES[type])

    async def delete(
        self,
        kind: Kind,
        name: str,
        namespace: str = "",
        *,
        uid: str = "",
        version: str = "",
        grace_s: int | None = None,
        propagation: str = "",
    ) -> None:
        """Delete, with preconditions. Raises NotFound, Conflict."""
        options: Json = {"kind": "DeleteOptions", "apiVersion": "v1"}
        preconditions = {"uid": uid, "resourceVersion": version}
        if uid or version:
            options["preconditions"] = {field: value for field, value in preconditions.items() if value}
        if grace_s is not None:
            options["gracePeriodSeconds"] = grace_s
        if propagation:
            options["propagationPolicy"] = propagation
        await self.request("DELETE", kind.path(namespace, name), body=orjson.dumps(options))

    async def post(self, kind: Kind, name: str, namespace: str, subresource: str, body: Json) -> bytes:
        """POST to a sub-resource (binding, eviction, token)."""
        return await self.request("POST", kind.path(namespace, name, subresource), body=orjson.dumps(body))

    async def logs(
        self,
        pod: str,
        namespace: str,
        *,
        container: str = "",
        follow: bool = False,
        previous: bool = False,
        timestamps: bool = False,
        tail: int | None = None,
        since_s: int | None = None,
        limit_bytes: int | None = None,
    ) -> AsyncIterator[bytes]:
        """Yield a container's log in pieces as they come; with `follow` until the container ends."""
        options: dict[str, Any] = {
            "container": container or None,
            "follow": "true" if follow else None,
            "previous": "true" if previous else None,
            "timestamps": "true" if timestamps else None,
            "tailLines": tail,
            "sinceSeconds": since_s,
            "limitBytes": limit_bytes,
        }
        query = [(name, str(value)) for name, value in options.items() if value is not None]
        answer = await self._open("GET", PODS.path(namespace, pod, "log"), query)
        try:
            async for chunk in answer.chunks():
                yield chunk
        finally:
            await answer.close()

    async def close(self) -> None:
        """Close idle connections."""
        await self._transport.close()

    async def __aenter__(self) -> "ApiClient":
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    async def _open(self, method: str, path: str, query: Query) -> Answer:
        """Send a request whose answer is read in pieces; the caller closes it. Raises the server's error."""
        try:
            async with machine.timeout(self._timeout_s):
                answer = await self._send(method, path, query, b"", "", None)
                if answer.status < 400:
                    return answer
                try:
                    raise error_of(answer.status, await answer.read())
                finally:
                    await answer.close()
        except TimeoutError:
            raise DeadlineExceeded(f"{method} {path}: no answer within {self._timeout_s:g} s") from None

    async def _send(
        self,
        method: str,
        path: str,
        query: Query,
        body: bytes,
        content_type: str,
        headers: Mapping[str, str] | None,
    ) -> Answer:
        head = {"accept": "application/json", "user-agent": self._agent}
        if body:
            head["content-type"] = content_type
        head.update(headers or {})
        return await self._transport.send(method, path, query=query, headers=head, body=body)


def _selectors(labels: str, fields: str) -> list[tuple[str, str]]:
    pairs = (("labelSelector", labels), ("fieldSelector", fields))
    return [(name, value) for name, value in pairs if value]


async def _lines(answer: Answer, within_s: float) -> AsyncIterator[bytes]:
    """Yield the lines of a body; raises DeadlineExceeded when nothing at all comes for `within_s` machine seconds."""
    pieces: list[bytes] = []
    chunks = aiter(answer.chunks())
    while True:
        try:
            async with machine.timeout(within_s):
                chunk = await anext(chunks, None)
        except TimeoutError:
            raise DeadlineExceeded(f"the watch was silent for {within_s:g} s: its connection is dead") from None
        if chunk is None:
            break
        if b"\n" not in chunk:
            pieces.append(chunk)
            continue
        *lines, rest = b"".join((*pieces, chunk)).split(b"\n")
        pieces = [rest]
        for line in lines:
            if line:
                yield line
    if rest := b"".join(pieces).strip():
        yield rest
