"""Make `schema.bin`: run as `python -m wherry.model.build [PATH]`; see `model/schema.py` for what it is."""

import hashlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

import msgspec

from wherry.errors import Broken
from wherry.model import schema
from wherry.model.schema import Definition, Field, Shape

_SOURCE = "kubernetes-json-schema/v1.37.0-local/_definitions.json"
_REF = "#/$defs/"
_EXTENSIONS = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1."

_SPECIAL: dict[str, str] = {
    "io.k8s.apimachinery.pkg.api.resource.Quantity": "quantity",
    "io.k8s.apimachinery.pkg.util.intstr.IntOrString": "int-or-string",
    schema.META + "Time": "time",
    schema.META + "MicroTime": "micro-time",
    schema.META + "FieldsV1": "any-object",
    schema.META + "Patch": "any-object",
    "io.k8s.apimachinery.pkg.runtime.RawExtension": "any-object",
    _EXTENSIONS + "JSON": "any",
    _EXTENSIONS + "JSONSchemaPropsOrArray": "schema-or-else",
    _EXTENSIONS + "JSONSchemaPropsOrBool": "schema-or-else",
    _EXTENSIONS + "JSONSchemaPropsOrStringArray": "schema-or-else",
}
"""Definitions whose JSON the source does not describe (or only roughly), and our own name for their form."""


def build(path: Path) -> None:
    """Make the schema file at `path`. Raises Broken when the source is not installed or is not the one we know."""
    source = _read_source()
    definitions: dict[str, Definition] = {}
    descriptions: dict[str, dict[str, str]] = {}
    waiting = [name for root in schema.roots() for name in (root, root + "List") if name in source]
    while waiting:
        name = waiting.pop()
        if name in definitions:
            continue
        definitions[name] = _definition(name, source[name])
        descriptions[name] = _descriptions(source[name])
        for field in definitions[name].fields:
            waiting.extend(_referred(field.shape))
        if definitions[name].shape.base == "schema-or-else":
            waiting.append(_EXTENSIONS + "JSONSchemaProps")
    schema.write(path, definitions, descriptions)


def _read_source() -> dict[str, Any]:
    package = importlib.util.find_spec("kubernetes_validate")
    if package is None or package.origin is None:
        raise Broken(
            f"{schema.PATH} is missing and cannot be made: install kubernetes-validate==1.37.0 (it is in wherry[dev])"
        )
    path = Path(package.origin).parent / _SOURCE
    try:
        data = path.read_bytes()
    except OSError as error:
        raise Broken(f"the schema's source cannot be read ({error}): install kubernetes-validate==1.37.0") from None
    seen = hashlib.sha256(data).hexdigest()
    if seen != schema.SOURCE_SHA256:
        raise Broken(f"{path} has SHA-256 {seen}, not {schema.SOURCE_SHA256}: install kubernetes-validate==1.37.0")
    return msgspec.json.decode(data)["$defs"]


def _definition(name: str, source: dict[str, Any]) -> Definition:
    gvks = source.get("x-kubernetes-group-version-kind", ())
    required = frozenset(source.get("required", ()))
    fields = tuple(
        Field(
            field,
            _shape(text),
            field in required,
            text.get("x-kubernetes-patch-strategy", ""),
            text.get("x-kubernetes-patch-merge-key", ""),
            text.get("x-kubernetes-list-type", ""),
            tuple(text.get("x-kubernetes-list-map-keys", ())),
            text.get("x-kubernetes-map-type", ""),
        )
        for field, text in sorted(source.get("properties", {}).items())
    )
    return Definition(
        Shape(_SPECIAL.get(name, "object")),
        fields,
        source.get("x-kubernetes-map-type", ""),
        # options and watch events stand for every group there is; that tells nobody anything
        tuple((gvk["group"], gvk["version"], gvk["kind"]) for gvk in gvks) if len(gvks) < 5 else (),
    )


def _shape(source: dict[str, Any]) -> Shape:
    if "$ref" in source:
        name = source["$ref"].removeprefix(_REF)
        return Shape("ref", name)
    kinds = source.get("type", "object")
    base = kinds if isinstance(kinds, str) else next(kind for kind in kinds if kind != "null")
    if base == "array":
        return Shape("array", item=_shape(source["items"]))
    if base == "object" and "additionalProperties" in source:
        return Shape("map", item=_shape(source["additionalProperties"]))
    if base == "object":
        return Shape("any-object")
    return Shape(base, format=source.get("format", ""))


def _referred(shape: Shape | None) -> list[str]:
    names: list[str] = []
    while shape is not None:
        if shape.ref:
            names.append(shape.ref)
        shape = shape.item
    return names


def _descriptions(source: dict[str, Any]) -> dict[str, str]:
    told = {field: text["description"] for field, text in source.get("properties", {}).items() if "description" in text}
    return {"": source.get("description", "")} | told


if __name__ == "__main__":
    build(Path(sys.argv[1]) if len(sys.argv) > 1 else schema.PATH)
