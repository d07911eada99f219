"""OpenAPI documents of the built-in group-versions, made from the schema and the table of kinds.

They carry the markers that kubectl asks for: which kind a schema and an operation are about, that writes take
`fieldValidation`, that a patch may be strategic, and how lists merge. Source: Kubernetes, "The Kubernetes API", OpenAPI v3;
what clients read of it was measured.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from wherry.errors import NotFound
from wherry.model import kinds, schema
from wherry.model.kinds import Kind, Subresource
from wherry.model.schema import Field, Shape

VERSION = "v1.37.0"

_STRATEGIC = "application/strategic-merge-patch+json"
_PATCHES = (
    "application/apply-patch+yaml",
    "application/json-patch+json",
    "application/merge-patch+json",
    _STRATEGIC,
)
_DELETE_OPTIONS = schema.META + "DeleteOptions"
_STATUS = schema.META + "Status"
_PATCH = schema.META + "Patch"

Object = dict[str, Any]

_FORMS: Mapping[str, Object] = {
    "quantity": {"oneOf": [{"type": "string"}, {"type": "number"}]},
    "int-or-string": {"format": "int-or-string", "oneOf": [{"type": "integer"}, {"type": "string"}]},
    "time": {"type": "string", "format": "date-time"},
    "micro-time": {"type": "string", "format": "date-time"},
    "any": {},
    "any-object": {"type": "object"},
    "schema-or-else": {},
}
_ACTIONS: Mapping[str, tuple[str, str]] = {
    "create": ("post", "post"),
    "update": ("put", "put"),
    "patch": ("patch", "patch"),
    "get": ("get", "get"),
    "list": ("get", "list"),
    "delete": ("delete", "delete"),
    "deletecollection": ("delete", "deletecollection"),
}
"""For each verb the HTTP method and the action that operations are marked with."""
_COLLECTION_VERBS = ("list", "create", "deletecollection")
_CONNECTED = ("attach", "exec", "portforward", "proxy")


def key(group_version: str) -> str:
    """The name of a group-version below /openapi/v3: `api/v1`, `apis/apps/v1`."""
    return f"apis/{group_version}" if "/" in group_version else f"api/{group_version}"


def index(more: Mapping[str, str] | None = None) -> Object:
    """What GET /openapi/v3 answers: where each document is, with a hash that changes when the document does.

    `more` are documents of custom resources: their keys (`apis/example.com/v1`) and hashes.
    """
    fixed = schema.fingerprint().decode().strip()[:16].upper()
    hashes = {key(group_version): fixed for group_version in kinds.group_versions()} | dict(more or {})
    return {
        "paths": {name: {"serverRelativeURL": f"/openapi/v3/{name}?hash={hashes[name]}"} for name in sorted(hashes)}
    }


def document(group_version: str) -> Object:
    """Make the document of `v1` or `apps/v1`; it takes some ten milliseconds, so keep its bytes. Raises NotFound."""
    served = [kind for kind in kinds.KINDS if kind.api_version == group_version]
    if not served:
        raise NotFound(f"there is no OpenAPI document of {group_version!r}")
    schemas: Object = {}
    waiting = [_DELETE_OPTIONS, _STATUS, _PATCH]
    paths: Object = {}
    for kind in served:
        waiting += [kind.definition, kind.definition + "List"]
        waiting += [definition for part in kind.subresources if (definition := _body(kind, part))]
        _add_paths(paths, kind)
    opened = schema.load()
    while waiting:
        name = waiting.pop()
        if name in schemas or not opened.has(name):
            continue
        schemas[name] = _schema(name)
        waiting += _referred(name)
    group, _, version = group_version.rpartition("/")
    schemas[_DELETE_OPTIONS]["x-kubernetes-group-version-kind"] = [_gvk(group, version, "DeleteOptions")]
    return {
        "openapi": "3.0.0",
        "info": {"title": "Kubernetes", "version": VERSION},
        "paths": dict(sorted(paths.items())),
        "components": {"schemas": dict(sorted(schemas.items()))},
    }


def v2_stub() -> bytes:
    """The OpenAPI v2 document in protobuf that older clients insist on: valid, and empty.

    Fields of gnostic's Document: 1 swagger, 2 info (1 title, 2 version), 8 paths, 9 definitions.
    """

    def field(number: int, data: bytes) -> bytes:
        return bytes((number << 3 | 2, len(data))) + data

    info = field(1, b"Kubernetes") + field(2, VERSION.encode())
    return field(1, b"2.0") + field(2, info) + field(8, b"") + field(9, b"")


def _schema(name: str) -> Object:
    definition = schema.load().get(name)
    told = schema.load().descriptions(name)
    made: Object = {"description": told[""]} if told[""] else {}
    if definition.shape.base != "object":
        return made | _FORMS[definition.shape.base]
    made["type"] = "object"
    required = [field.name for field in definition.fields if field.required]
    if required:
        made["required"] = required
    if definition.fields:
        made["properties"] = {field.name: _property(field, told.get(field.name, "")) for field in definition.fields}
    if definition.map_type:
        made["x-kubernetes-map-type"] = definition.map_type
    if definition.kinds:
        made["x-kubernetes-group-version-kind"] = [_gvk(*gvk) for gvk in definition.kinds]
    return made


def _property(field: Field, description: str) -> Object:
    made = _shape(field.shape)
    if description:
        made = {"description": description, **({"allOf": [made]} if "$ref" in made else made)}
    markers = {
        "x-kubernetes-list-type": field.list_type,
        "x-kubernetes-list-map-keys": list(field.map_keys),
        "x-kubernetes-map-type": field.map_type,
        "x-kubernetes-patch-strategy": field.strategy,
        "x-kubernetes-patch-merge-key": field.merge_key,
    }
    return made | {name: value for name, value in markers.items() if value}


def _shape(shape: Shape) -> Object:
    match shape.base:
        case "ref":
            return {"$ref": f"#/components/schemas/{shape.ref}"}
        case "array" if shape.item is not None:
            return {"type": "array", "items": _shape(shape.item)}
        case "map" if shape.item is not None:
            return {"type": "object", "additionalProperties": _shape(shape.item)}
        case "any-object":
            return {"type": "object"}
        case base:
            return {"type": base, "format": shape.format} if shape.format else {"type": base}


def _referred(name: str) -> list[str]:
    found: list[str] = []
    for field in schema.load().get(name).fields:
        shape: Shape | None = field.shape
        while shape is not None:
            if shape.ref:
                found.append(shape.ref)
            shape = shape.item
    return found


def _body(kind: Kind, part: Subresource) -> str:
    """The definition of what a sub-resource takes and gives, "" when it has none (logs, streams)."""
    if part.name in _CONNECTED or part.name == "log":
        return ""
    if part.kind == kind.kind:
        return kind.definition
    found = kinds.by_kind(part.api_version, part.kind)
    return found.definition if found is not None else ""


def _add_paths(paths: Object, kind: Kind) -> None:
    where = "{namespace}" if kind.namespaced else ""
    gvk = _gvk(kind.group, kind.version, kind.kind)
    collection = _item(kind, [verb for verb in kind.verbs if verb in _COLLECTION_VERBS], gvk, kind.definition)
    paths[kind.path(where)] = {**collection, "parameters": list(_parameters(kind, named=False))}
    if kind.namespaced and "list" in kind.verbs:
        paths[kind.path()] = _item(kind, ["list"], gvk, kind.definition, suffix="ForAllNamespaces")
    single = [verb for verb in kind.verbs if verb in _ACTIONS and verb not in _COLLECTION_VERBS]
    if single:
        named = list(_parameters(kind, named=True))
        paths[kind.path(where, "{name}")] = {**_item(kind, single, gvk, kind.definition), "parameters": named}
        for part in kind.subresources:
            group, _, version = part.api_version.rpartition("/")
            item = _item(kind, list(part.verbs), _gvk(group, version, part.kind), _body(kind, part), part)
            paths[kind.path(where, "{name}", part.name)] = {**item, "parameters": named}


def _item(
    kind: Kind, verbs: list[str], gvk: Object, body: str, part: Subresource | None = None, suffix: str = ""
) -> Object:
    made: Object = {}
    for verb in verbs:
        method, action = _ACTIONS[verb]
        if part is not None and part.name in _CONNECTED:
            action = "connect"
        made[method] = _operation(kind, verb, action, gvk, body, part.name.capitalize() if part is not None else suffix)
    return made


def _operation(kind: Kind, verb: str, action: str, gvk: Object, body: str, suffix: str) -> Object:
    answer = _STATUS if action in ("delete", "deletecollection") else body + ("List" if action == "list" else "")
    made: Object = {
        "operationId": f"{verb}{kind.group.partition('.')[0].capitalize() or 'Core'}"
        f"{kind.version.capitalize()}{kind.kind}{suffix}",
        "responses": {
            "200": {"description": "OK", **({"content": _content(answer, "application/json")} if answer else {})}
        },
        "x-kubernetes-action": action,
        "x-kubernetes-group-version-kind": gvk,
    }
    queries = ["pretty"]
    if action in ("post", "put", "patch"):
        queries += ["dryRun", "fieldManager", "fieldValidation"]
        made["requestBody"] = {"required": True, "content": _content(body, "application/json")}
    if action == "patch":
        queries.append("force")
        made["requestBody"]["content"] = _content(_PATCH, *_PATCHES)
    if action in ("delete", "deletecollection"):
        queries += ["dryRun", "gracePeriodSeconds", "propagationPolicy"]
        made["requestBody"] = {"content": _content(_DELETE_OPTIONS, "application/json")}
    if action in ("list", "deletecollection"):
        queries += ["continue", "fieldSelector", "labelSelector", "limit", "resourceVersion", "watch"]
    made["parameters"] = [_query(name) for name in queries]
    return made


def _content(definition: str, *media_types: str) -> Object:
    return {media: {"schema": {"$ref": f"#/components/schemas/{definition}"}} for media in media_types}


_WHOLE = ("gracePeriodSeconds", "limit")
_FLAGS = ("force", "watch")


def _query(name: str) -> Object:
    kind = "integer" if name in _WHOLE else "boolean" if name in _FLAGS else "string"
    return {"name": name, "in": "query", "schema": {"type": kind, "uniqueItems": True}}


def _parameters(kind: Kind, *, named: bool) -> Iterator[Object]:
    for name in (("name",) if named else ()) + (("namespace",) if kind.namespaced else ()):
        yield {"name": name, "in": "path", "required": True, "schema": {"type": "string", "uniqueItems": True}}


def _gvk(group: str, version: str, kind: str) -> Object:
    return {"group": group, "kind": kind, "version": version}
