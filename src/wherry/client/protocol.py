"""The API as its clients see it, bound to one identity; in process and by HTTP are two `Transport`s below one class."""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from wherry.model.kinds import Kind

Json = dict[str, Any]


class Answer(Protocol):
    """An HTTP answer: status, headers (lower-case names) and a body to be read once, whole or in pieces."""

    @property
    def status(self) -> int:
        """The HTTP status."""
        ...

    @property
    def headers(self) -> Mapping[str, str]:
        """Headers by lower-case name."""
        ...

    async def read(self) -> bytes:
        """The whole body."""
        ...

    def chunks(self) -> AsyncIterator[bytes]:
        """The body in pieces, as they come."""
        ...

    async def close(self) -> None:
        """Let go, also in the middle of the body."""
        ...


class Transport(Protocol):
    """Carries one request to the API server as one identity."""

    async def send(
        self,
        method: str,
        path: str,
        *,
        query: Sequence[tuple[str, str]] = (),
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
    ) -> Answer:
        """Send; return when the answer's head is there. Raises Unavailable when nobody answers."""
        ...

    async def close(self) -> None:
        """Close idle connections."""
        ...


@dataclass(frozen=True, slots=True)
class Listing:
    """A list: each item is one object's JSON bytes; `version` is the list's resourceVersion."""

    items: Sequence[bytes]
    version: str


@dataclass(frozen=True, slots=True)
class Change:
    """One watch event. `type` is ADDED, MODIFIED, DELETED or BOOKMARK; `object` its JSON bytes."""

    type: str
    object: bytes


class Client(Protocol):
    """Read and write objects. Every error is a WherryError made from the server's Status."""

    async def get(self, kind: Kind, name: str, namespace: str = "") -> bytes:
        """Read one object's JSON."""
        ...

    async def list(self, kind: Kind, namespace: str = "", *, labels: str = "", fields: str = "") -> Listing:
        """Read all objects of a kind (in one namespace), by label and field selector."""
        ...

    def watch(
        self,
        kind: Kind,
        namespace: str = "",
        *,
        version: str,
        labels: str = "",
        fields: str = "",
        initial: bool = False,
    ) -> AsyncIterator[Change]:
        """Yield changes later than `version` until the server ends the watch. Raises Expired: list again.

        With `initial` what exists comes first, each object as ADDED, then a BOOKMARK with the annotation
        `k8s.io/initial-events-end` (a WatchList). Raises Invalid or BadRequest when the server does not do that.
        """
        ...

    async def create(self, kind: Kind, body: Json, namespace: str = "") -> bytes:
        """Create; return the object as stored."""
        ...

    async def update(self, kind: Kind, body: Json, *, subresource: str = "") -> bytes:
        """Replace; `metadata.resourceVersion` in the body guards against others' writes."""
        ...

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
        ...

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
        ...

    async def post(self, kind: Kind, name: str, namespace: str, subresource: str, body: Json) -> bytes:
        """POST to a sub-resource (binding, eviction, token)."""
        ...
