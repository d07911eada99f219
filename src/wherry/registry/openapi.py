"""OpenAPI 3.1 of the administration, written from its table of operations."""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from wherry.registry.admin import Operation

_PARAMETER = re.compile(r"\{([a-z_]+)(?::path)?\}")
_ERROR = {
    "description": "refused",
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "required": ["errors"],
                "properties": {
                    "errors": {
                        "type": "array",
                        "items": {
                            "type": "object",
                            "required": ["code", "message"],
                            "properties": {"code": {"type": "string"}, "message": {"type": "string"}},
                        },
                    }
                },
            }
        }
    },
}


def document(operations: Sequence["Operation"], prefix: str) -> dict[str, Any]:
    """Write the document."""
    kinds = list(dict.fromkeys(one.body for one in operations if one.body is not None))
    schemas, components = msgspec.json.schema_components(kinds, ref_template="#/components/schemas/{name}")
    by_kind = dict(zip(map(str, kinds), schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for one in operations:
        path = prefix + _PARAMETER.sub(r"{\1}", one.path)
        names = _PARAMETER.findall(one.path)
        said: dict[str, Any] = {
            "operationId": re.sub(r"[^a-z]+", "-", f"{one.method.lower()} {one.path}").strip("-"),
            "summary": one.summary,
            "parameters": [
                *({"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names),
                *({"name": name, "in": "query", "schema": {"type": "string"}} for name in one.query),
            ],
            "responses": {
                str(one.status): {"description": "done", "content": {"application/json": {"schema": {}}}},
                "default": _ERROR,
            },
        }
        if one.body is not None:
            content = {"application/json": {"schema": by_kind[str(one.body)]}}
            said["requestBody"] = {"required": True, "content": content}
        paths.setdefault(path, {})[one.method.lower()] = said
    return {
        "openapi": "3.1.0",
        "info": {"title": "wherry registry", "version": "1"},
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {
                "basic": {"type": "http", "scheme": "basic"},
                "bearer": {"type": "http", "scheme": "bearer"},
            },
        },
        "security": [{"basic": []}, {"bearer": []}],
    }
