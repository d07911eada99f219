"""OpenAPI: the v3 documents that kubectl explains and validates by, and a v2 stub for its older versions."""

import hashlib
from collections import OrderedDict

import orjson

from wherry.errors import NotAcceptable, NotFound
from wherry.model import openapi
from wherry.model.kinds import group_versions
from wherry.wire.http import Request, Response

_V2_TYPE = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf"
_V2_ACCEPT = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf"
_FOREVER = "public, immutable, max-age=31536000"
_KEPT = 4


class OpenApi:
    """Makes the documents when they are first asked for, and keeps the few last ones: each is some megabytes."""

    def __init__(self, version: str) -> None:
        self._version = version
        self._documents: OrderedDict[str, bytes] = OrderedDict()

    def index(self) -> Response:
        """GET /openapi/v3: where the document of each group-version is, by a URL that changes with our version."""
        return Response.json(orjson.dumps(openapi.index()))

    def document(self, request: Request, path: str) -> Response:
        """GET /openapi/v3/apis/apps/v1."""
        group_version = next((gv for gv in group_versions() if openapi.key(gv) == path), None)
        if group_version is None:
            raise NotFound(f"there is no OpenAPI document {path}")
        accept = request.headers.get("accept") or "*/*"
        if not any(word in accept for word in ("application/json", "*/*", "application/*")):
            raise NotAcceptable("only the following media types are accepted: application/json")
        data = self._documents.get(group_version)
        if data is None:
            data = self._documents[group_version] = orjson.dumps(openapi.document(group_version))
            if len(self._documents) > _KEPT:
                self._documents.popitem(last=False)
        headers = [("ETag", f'"{hashlib.sha256(data).hexdigest()[:32].upper()}"')]
        if request.first("hash"):
            headers.append(("Cache-Control", _FOREVER))
        return Response.json(data, 200, headers, compress=True)

    def v2(self, request: Request) -> Response:
        """GET /openapi/v2: an empty document, by which older kubectl goes on to v3."""
        accept = request.headers.get("accept") or ""
        if _V2_ACCEPT in accept or _V2_TYPE in accept:
            return Response(200, [("Content-Type", _V2_TYPE), ("Vary", "Accept")], openapi.v2_stub())
        info = {"title": "Kubernetes", "version": self._version}
        return Response.json(orjson.dumps({"swagger": "2.0", "info": info, "paths": {}, "definitions": {}}))
