"""Tables and partial metadata: what kubectl prints, and what informers of metadata read."""

from collections.abc import Iterable, Mapping
from typing import Any

import orjson

from wherry.api import columns_core, columns_groups
from wherry.api.columns import AGE, NAME, Columns
from wherry.api.negotiate import Form
from wherry.model.kinds import Kind

Json = dict[str, Any]

_DEFAULT: Columns = (NAME, AGE)
COLUMNS: Mapping[str, Columns] = {
    name.lower(): value
    for module in (columns_core, columns_groups)
    for name, value in vars(module).items()
    if name.isupper() and isinstance(value, tuple)
}
"""The columns of every kind that has its own, by `Kind.columns`."""

_SHARED: Mapping[str, str] = {"clusterroles": "roles", "clusterrolebindings": "rolebindings"}


def columns_of(kind: Kind) -> Columns:
    """The columns of a kind; NAME and AGE for one that has none of its own."""
    return COLUMNS.get(_SHARED.get(kind.columns, kind.columns), _DEFAULT)


def table(
    kind: Kind, objects: Iterable[bytes], form: Form, now: float, metadata: Json, *, header: bool = True
) -> bytes:
    """A Table of objects (their JSON with resourceVersion). Without `header` it has no column definitions.

    Rows carry the object, its metadata or nothing, as `form.include` asks.
    """
    columns = columns_of(kind)
    rows: list[Json] = []
    for data in objects:
        obj: Json = orjson.loads(data)
        row: Json = {"cells": [column.cell(obj, now) for column in columns]}
        match form.include:
            case "Object":
                row["object"] = orjson.Fragment(data)
            case "Metadata":
                row["object"] = _partial(obj, form.version)
            case _:
                pass
        rows.append(row)
    return orjson.dumps(
        {
            "kind": "Table",
            "apiVersion": f"meta.k8s.io/{form.version}",
            "metadata": metadata,
            "columnDefinitions": [column.definition() for column in columns] if header else [],
            "rows": rows,
        }
    )


def partial(data: bytes, form: Form) -> bytes:
    """One object's metadata alone."""
    return orjson.dumps(_partial(orjson.loads(data), form.version))


def partial_list(objects: Iterable[bytes], form: Form, metadata: Json) -> bytes:
    """A list of objects' metadata."""
    items = [_partial(orjson.loads(data), form.version) for data in objects]
    head = {"kind": "PartialObjectMetadataList", "apiVersion": f"meta.k8s.io/{form.version}"}
    return orjson.dumps({**head, "metadata": metadata, "items": items})


def _partial(obj: Json, version: str) -> Json:
    return {
        "kind": "PartialObjectMetadata",
        "apiVersion": f"meta.k8s.io/{version}",
        "metadata": obj.get("metadata") or {},
    }
