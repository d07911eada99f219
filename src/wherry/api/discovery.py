"""Discovery: what this server serves, aggregated (v2) and by group-version, with ETags.

A client that knows only the aggregated v2beta1 gets the plain lists, never v2 in the wrong dress.
Source: Kubernetes API concepts, "Discovery API"; shared measurements in `facts/kubectl.md`, section 2.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import orjson

from wherry.errors import NotFound
from wherry.model.kinds import KINDS, Kind, Subresource, group_versions
from wherry.wire.http import Request, Response

Json = dict[str, Any]

_V2 = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"


class Discovery:
    """The documents of one set of kinds, made once. `server` says at which address clients reach this API."""

    def __init__(self, server: Callable[[], str]) -> None:
        self._server = server
        self._made: dict[str, tuple[bytes, str]] = {}

    def core(self, request: Request) -> Response:
        """GET /api."""
        if _wants_v2(request):
            return self._answer(request, "v2 core", lambda: _aggregated([""]), _V2)
        return self._answer(request, f"api {self._server()}", self._versions)

    def groups(self, request: Request) -> Response:
        """GET /apis."""
        named = [group for group in _groups() if group]
        if _wants_v2(request):
            return self._answer(request, "v2 groups", lambda: _aggregated(named), _V2)
        return self._answer(request, "apis", lambda: _group_list(named))

    def group(self, request: Request, name: str) -> Response:
        """GET /apis/GROUP."""
        if name not in _groups() or not name:
            raise NotFound("the server could not find the requested resource")
        return self._answer(request, f"group {name}", lambda: {"kind": "APIGroup", "apiVersion": "v1", **_group(name)})

    def resources(self, request: Request, group_version: str) -> Response:
        """GET /api/v1 or /apis/GROUP/VERSION."""
        if group_version not in group_versions():
            raise NotFound("the server could not find the requested resource")
        return self._answer(request, f"resources {group_version}", lambda: _resource_list(group_version))

    def _versions(self) -> Json:
        return {
            "kind": "APIVersions",
            "versions": ["v1"],
            "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": self._server()}],
        }

    def _answer(
        self, request: Request, key: str, make: Callable[[], Json], content_type: str = "application/json"
    ) -> Response:
        found = self._made.get(key)
        if found is None:
            data = orjson.dumps(make())
            found = self._made[key] = data, f'"{hashlib.sha256(data).hexdigest().upper()}"'
        data, etag = found
        headers = [("ETag", etag), ("Vary", "Accept"), ("Cache-Control", "public")]
        if request.headers.get("if-none-match") == etag:
            return Response(304, headers)
        return Response(200, [*headers, ("Content-Type", content_type)], data)


def _wants_v2(request: Request) -> bool:
    """Say whether the first form in Accept that we can make is the aggregated v2."""
    for entry in (request.headers.get("accept") or "").split(","):
        media, *pairs = (part.strip() for part in entry.split(";"))
        if media != "application/json":
            continue
        params = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
        if params.get("as") is None:
            return False
        wanted = (params.get("g"), params.get("v"), params.get("as"))
        # A `profile` asks for a variant that we do not have; clients that send it ask plainly as well.
        if wanted == ("apidiscovery.k8s.io", "v2", "APIGroupDiscoveryList") and "profile" not in params:
            return True
    return False


def _groups() -> list[str]:
    return list(dict.fromkeys(kind.group for kind in KINDS))


def _of(group_version: str) -> Sequence[Kind]:
    return [kind for kind in KINDS if kind.api_version == group_version]


def _versions_of(group: str) -> list[str]:
    return list(dict.fromkeys(kind.api_version for kind in KINDS if kind.group == group))


def _aggregated(groups: Sequence[str]) -> Json:
    items: list[Json] = []
    for group in groups:
        versions = [
            {
                "version": group_version.rpartition("/")[2],
                "resources": [_discovered(kind) for kind in _of(group_version)],
                "freshness": "Current",
            }
            for group_version in _versions_of(group)
        ]
        metadata: Json = {"name": group, "creationTimestamp": None} if group else {"creationTimestamp": None}
        items.append({"metadata": metadata, "versions": versions})
    return {
        "kind": "APIGroupDiscoveryList",
        "apiVersion": "apidiscovery.k8s.io/v2",
        "metadata": {},
        "items": items,
    }


def _discovered(kind: Kind) -> Json:
    found: Json = {
        "resource": kind.plural,
        "responseKind": _gvk(kind.api_version, kind.kind),
        "scope": "Namespaced" if kind.namespaced else "Cluster",
        "singularResource": kind.singular,
        "verbs": list(kind.verbs),
    }
    if kind.short_names:
        found["shortNames"] = list(kind.short_names)
    if kind.categories:
        found["categories"] = list(kind.categories)
    if kind.subresources:
        found["subresources"] = [
            {
                "subresource": part.name,
                "responseKind": _gvk(part.api_version, part.kind),
                "verbs": list(part.verbs),
            }
            for part in kind.subresources
        ]
    return found


def _gvk(api_version: str, kind: str) -> Mapping[str, str]:
    group, _, version = api_version.rpartition("/")
    return {"group": group, "version": version, "kind": kind}


def _group_list(groups: Sequence[str]) -> Json:
    return {"kind": "APIGroupList", "apiVersion": "v1", "groups": [_group(name) for name in groups]}


def _group(name: str) -> Json:
    versions = [{"groupVersion": gv, "version": gv.rpartition("/")[2]} for gv in _versions_of(name)]
    return {"name": name, "versions": versions, "preferredVersion": versions[0]}


def _resource_list(group_version: str) -> Json:
    resources: list[Json] = []
    for kind in _of(group_version):
        resource: Json = {
            "name": kind.plural,
            "singularName": kind.singular,
            "namespaced": kind.namespaced,
            "kind": kind.kind,
            "verbs": list(kind.verbs),
        }
        if kind.short_names:
            resource["shortNames"] = list(kind.short_names)
        if kind.categories:
            resource["categories"] = list(kind.categories)
        resources.append(resource)
        resources += [_part(kind, part) for part in kind.subresources]
    return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": resources}


def _part(kind: Kind, part: Subresource) -> Json:
    resource: Json = {
        "name": f"{kind.plural}/{part.name}",
        "singularName": "",
        "namespaced": kind.namespaced,
        "kind": part.kind,
        "verbs": list(part.verbs),
    }
    if part.api_version != kind.api_version:
        group, _, version = part.api_version.rpartition("/")
        resource["group"], resource["version"] = group, version
    return resource
