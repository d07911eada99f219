"""A tiny API server for stock clients: discovery and OpenAPI from our tables, and objects kept in a dict.

It stands on the standard library alone, so that what a client takes from it was made by `model/` and nothing else.
"""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from wherry.model import admit, kinds, openapi, patches, protobuf
from wherry.model.kinds import Kind

Json = dict[str, Any]


class Recorder(ThreadingHTTPServer):
    """Listens on a free port; keeps what was asked of it."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.objects: dict[str, Json] = {}
        self.made: list[str] = []
        """The paths of the objects that were created, in order."""
        self.requests: list[tuple[str, str, str]] = []
        """Method, path and media type of each."""
        self.queries: list[dict[str, list[str]]] = []
        self.unknown: list[str] = []
        """Fields that protobuf bodies had and our table has not."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def recording() -> Iterator[Recorder]:
    """A recorder that serves until the end of the block."""
    server = Recorder()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Recorder

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        path = self._note()
        match path.strip("/").split("/"):
            case ["api"]:
                self._answer({"kind": "APIVersions", "versions": ["v1"]})
            case ["apis"]:
                self._answer({"kind": "APIGroupList", "apiVersion": "v1", "groups": _groups()})
            case ["api", version]:
                self._answer(_resources(version))
            case ["apis", group, version]:
                self._answer(_resources(f"{group}/{version}"))
            case ["openapi", "v3"]:
                self._answer(openapi.index())
            case ["openapi", "v3", "api", version]:
                self._answer(openapi.document(version))
            case ["openapi", "v3", "apis", group, version]:
                self._answer(openapi.document(f"{group}/{version}"))
            case ["version"]:
                self._answer({"major": "1", "minor": "37", "gitVersion": "v1.37.0"})
            case _ if path in self.server.objects:
                self._answer(self.server.objects[path])
            case _:
                self._missing()

    def do_POST(self) -> None:
        path = self._note()
        obj = self._body()
        kind = kinds.by_kind(obj["apiVersion"], obj["kind"])
        assert kind is not None
        if kind is kinds.TOKENREQUESTS:
            obj["status"] = {"token": "made-up", "expirationTimestamp": "2026-01-01T00:00:00Z"}
        elif kind.stored:
            found = admit.prune(kind, obj)
            assert not found.strict
            assert not found.wrong
            admit.default(kind, obj)
            assert admit.check(kind, obj) == []
            self.server.made.append(f"{path}/{obj['metadata']['name']}")
            self.server.objects[self.server.made[-1]] = obj
        self._answer(obj, 201)

    def do_PATCH(self) -> None:
        path = self._note()
        old = self.server.objects.get(path)
        if old is None:
            self._missing()
            return
        kind = kinds.by_kind(old["apiVersion"], old["kind"])
        assert kind is not None
        patch = self._body()
        if "strategic" in self.headers["content-type"]:
            new = patches.strategic_merge(kind, old, patch)
        else:
            new = patches.merge_patch(old, patch)
        assert not admit.prune(kind, new).strict
        admit.default(kind, new)
        assert admit.check(kind, new, old) == []
        self.server.objects[path] = new
        self._answer(new)

    def _note(self) -> str:
        split = urlsplit(self.path)
        self.server.requests.append((self.command, split.path, self.headers.get("content-type", "")))
        self.server.queries.append(parse_qs(split.query))
        return split.path

    def _body(self) -> Json:
        data = self.rfile.read(int(self.headers["content-length"]))
        if not data.startswith(protobuf.MAGIC):
            return json.loads(data)
        obj, unknown = protobuf.decode(data)
        self.server.unknown += unknown
        return obj

    def _missing(self) -> None:
        status = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404}
        self._answer({**status, "message": f"{self.path} not found"}, 404)

    def _answer(self, obj: Json, status: int = 200) -> None:
        data = json.dumps(obj).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def _groups() -> list[Json]:
    groups: dict[str, list[Json]] = {}
    for group_version in kinds.group_versions():
        group, _, version = group_version.rpartition("/")
        if group:
            groups.setdefault(group, []).append({"groupVersion": group_version, "version": version})
    return [{"name": name, "versions": versions, "preferredVersion": versions[0]} for name, versions in groups.items()]


def _resources(group_version: str) -> Json:
    served = [kind for kind in kinds.KINDS if kind.api_version == group_version]
    return {
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": group_version,
        "resources": [_resource(kind) for kind in served],
    }


def _resource(kind: Kind) -> Json:
    return {
        "name": kind.plural,
        "singularName": kind.singular,
        "namespaced": kind.namespaced,
        "kind": kind.kind,
        "verbs": list(kind.verbs),
        "shortNames": list(kind.short_names),
        "categories": list(kind.categories),
    }
