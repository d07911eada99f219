"""A second registry that answers over a door which can count, wait, cut and refuse; and a client's short way to ask."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec

from wherry.registry.service import Registry
from wherry.wire.client import HttpClient
from wherry.wire.http import Request, Response

API = "/api/registry/v1"


class Far:
    """The upstream. `away` answers 503, `refusing` 429; `gate` holds blobs back halfway; `cut` ends them early."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self.asked: Counter[tuple[str, str]] = Counter()
        self.status = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.cut = 0
        self.spoil = False
        self.address = ""
        self.client: HttpClient

    async def handle(self, request: Request) -> Response:
        kind = next((kind for kind in ("manifests", "blobs", "token") if kind in request.path), "other")
        if self.status:
            return Response.json({"errors": []}, self.status)
        response = await self.registry.handle(request)
        if response.status < 300:
            self.asked[request.method, kind] += 1
        if kind == "blobs" and request.method == "GET" and response.status in (200, 206):
            data = b"".join([part async for part in _body(response)])
            return Response.stream(self._slowly(data), response.headers, status=response.status)
        return response

    async def _slowly(self, data: bytes) -> AsyncIterator[bytes]:
        half = len(data) // 2
        if self.spoil:
            data = bytes([data[0] ^ 1]) + data[1:]
        yield data[:half]
        if self.cut:
            self.cut -= 1
            raise ConnectionResetError("cut")
        await self.gate.wait()
        yield data[half:]


async def _body(response: Response) -> AsyncIterator[bytes]:
    body: Any = response.body
    if isinstance(body, bytes):
        yield body
    elif hasattr(body, "path"):
        yield Path(body.path).read_bytes()[body.start : body.stop]
    else:
        async for part in body.pieces:
            yield part


async def ask(client: HttpClient, method: str, path: str, body: Any = None, **more: Any) -> tuple[int, bytes]:
    data = b"" if body is None else msgspec.json.encode(body)
    answer = await client.request(method, path, body=data, **more)
    return answer.status, await answer.read()
