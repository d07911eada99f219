"""The three steps that every written object takes: prune by the schema, fill in defaults, check.

The API server calls them in this order, on the JSON-shaped dict of one write. Custom resources bring their own schema;
here only their metadata is read.
"""

from typing import Any

from wherry.errors import Cause
from wherry.model import checks, defaults, pruning, schema
from wherry.model.checks import metadata, pods
from wherry.model.kinds import Kind
from wherry.model.pruning import Findings

_METADATA = schema.META + "ObjectMeta"


def prune(kind: Kind, obj: dict[str, Any]) -> Findings:
    """Drop, in place, unknown fields and nulls; tell them and every value of a wrong type.

    Times and quantities get their canonical form. With a value of a wrong type (`Findings.wrong`) the object must be
    refused: defaults and checks trust the types.
    """
    if kind.definition:
        return pruning.prune(kind.definition, obj)
    if isinstance(obj.get("metadata"), dict):
        found = pruning.prune(_METADATA, obj["metadata"])
        found.unknown = [f"metadata.{path}" for path in found.unknown]
        return found
    return Findings()


def default(kind: Kind, obj: dict[str, Any]) -> None:
    """Fill in, in place, what the object leaves out; doing it twice changes nothing more."""
    fill = defaults.TABLE.get(kind)
    if fill is not None:
        fill(obj)


def check(kind: Kind, obj: dict[str, Any], old: dict[str, Any] | None = None, subresource: str = "") -> list[Cause]:
    """Say all that is wrong with an object that has been pruned and filled in; `old` is what it replaces.

    `subresource` says which part is written: of `status` and `binding` only metadata is checked, as the server keeps
    the spec; `ephemeralcontainers` may add what an update of a Pod may not.
    """
    causes = metadata.check(kind, obj, old)
    if subresource in ("status", "binding", "approval", "finalize"):
        return causes
    if subresource in ("ephemeralcontainers", "resize") and old is not None:
        return causes + (
            pods.check_ephemeral(obj, old) if subresource == "ephemeralcontainers" else pods.check(obj, None)
        )
    own = checks.TABLE.get(kind)
    if own is not None:
        causes += own(obj, old)
    return causes
