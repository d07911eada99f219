"""Request bodies: JSON, YAML or protobuf into JSON-shaped dicts, with what is wrong in them told by path."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import orjson

from wherry.errors import BadRequest, UnsupportedMediaType
from wherry.model import admit, pruning
from wherry.model.kinds import Kind
from wherry.wire.http import Request

Json = dict[str, Any]
Validation = Literal["Strict", "Warn", "Ignore"]

JSON = "application/json"
YAML = "application/yaml"
PROTOBUF = "application/vnd.kubernetes.protobuf"
_MEDIA = {"": JSON, JSON: JSON, YAML: YAML, "application/x-yaml": YAML, "text/yaml": YAML, PROTOBUF: PROTOBUF}


@dataclass(slots=True)
class WriteOptions:
    """The options of a write; `warnings` gathers what the answer's Warning headers say."""

    dry_run: bool = False
    validation: Validation = "Warn"
    asked: bool = False
    """Whether the client said itself how to validate: then a body is also searched for duplicate fields."""
    manager: str = ""
    warnings: list[str] = field(default_factory=list[str])

    @property
    def headers(self) -> list[tuple[str, str]]:
        """The Warning headers of the answer. Source: RFC 7234, section 5.5."""
        return [("Warning", f"299 - {json.dumps(warning, ensure_ascii=True)}") for warning in self.warnings[:32]]


def options_of(request: Request) -> WriteOptions:
    """Read fieldValidation, dryRun and fieldManager. Raises BadRequest."""
    asked = request.first("fieldValidation") or ""
    if asked not in ("", "Strict", "Warn", "Ignore"):
        raise BadRequest(f"fieldValidation: Unsupported value: {asked!r}: supported values: Ignore, Strict, Warn")
    manager = request.first("fieldManager") or ""
    if len(manager) > 128:
        raise BadRequest("fieldManager: Too long: may not be more than 128 bytes")
    validation: Validation = asked or "Warn"  # pyright: ignore[reportAssignmentType]  # one of the three, checked above
    return WriteOptions(dry_run(request.all("dryRun")), validation, asked != "", manager)


def dry_run(values: Sequence[Any]) -> bool:
    """Read dryRun: absent or `All`."""
    wrong = [value for value in values if value != "All"]
    if wrong:
        raise BadRequest(f"dryRun: Unsupported value: {wrong[0]!r}: supported values: All")
    return bool(values)


def media_type(request: Request) -> str:
    """The media type of a body, without parameters; "" when none is named."""
    return (request.headers.get("content-type") or "").partition(";")[0].strip().lower()


def media_of(named: str) -> str | None:
    """Which of the three formats of objects a media type names; None for another one."""
    return _MEDIA.get(named)


async def read(request: Request, kind: Kind, options: WriteOptions, *, limit: int) -> Json:
    """Read an object of a kind, without what its schema does not know.

    Raises BadRequest, UnsupportedMediaType, TooLarge.
    """
    media = _media(request, custom=not kind.definition)
    data = await request.body(limit)
    if not data.strip():
        raise BadRequest(f"the request has no body: send the {kind.kind}")
    obj = decode(data, media)
    claim(kind, obj)
    # Only who says how to validate pays for the search; our own clients do not say, and send no duplicates.
    searched = options.asked and options.validation != "Ignore" and media == JSON
    clean(kind, obj, options, pruning.duplicates(data) if searched else ())
    return obj


def claim(kind: Kind, obj: Json) -> None:
    """Check that an object says it is of a kind, or say it for one that does not."""
    for field_, expected, what in (("apiVersion", kind.api_version, "API version"), ("kind", kind.kind, "kind")):
        given = obj.get(field_)
        if not given:
            obj[field_] = expected
        elif given != expected:
            raise BadRequest(
                f"the {what} in the data ({given}) does not match the expected {what} ({expected}): "
                "send the object to the path of its own resource"
            )


def decode(data: bytes, media: str) -> Json:
    """Decode an object of a media type."""
    if media == PROTOBUF:
        from wherry.model import protobuf

        return protobuf.decode_body(data)
    value = _yaml(data) if media == YAML else _json(data)
    if not isinstance(value, dict):
        raise BadRequest(f"the body is {_named(value)}, not an object: send {{...}} with apiVersion, kind and metadata")
    return value


def clean(kind: Kind, obj: Json, options: WriteOptions, duplicates: Sequence[str] = ()) -> None:
    """Drop what the schema of a kind does not know, in place; refuse it (Strict) or warn of it, and refuse wrong types."""
    found = admit.prune(kind, obj)
    found.duplicate.extend(duplicates)
    if found.wrong or (options.validation == "Strict" and found.strict):
        raise BadRequest(found.refusal(kind.kind, kind.version))
    if options.validation == "Warn":
        options.warnings.extend(found.strict)


def decode_patch(data: bytes) -> Any:
    """Decode the body of a patch: any JSON value."""
    return _json(data)


def _media(request: Request, *, custom: bool) -> str:
    named = media_type(request)
    media = _MEDIA.get(named)
    if media is None or (custom and media == PROTOBUF):
        raise UnsupportedMediaType(
            f"the body of the request was in an unknown format - accepted media types include: {JSON}, {YAML}"
            + ("" if custom else f", {PROTOBUF}")
            + f"; it came as {named!r}"
        )
    return media


def _json(data: bytes) -> Any:
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"the body is not JSON: {error}") from None


def _yaml(data: bytes) -> Any:
    import yaml

    loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        if data.count(b"*") and data.count(b"&"):
            raise BadRequest("the body is YAML with anchors, which are not taken here: write them out")
        value = yaml.load(data, Loader=loader)  # a safe loader, chosen above
        # Dates become texts and keys become strings, as JSON has them.
        return orjson.loads(orjson.dumps(value, default=_plain, option=orjson.OPT_NON_STR_KEYS))
    except yaml.YAMLError as error:
        raise BadRequest(f"the body is not YAML: {' '.join(str(error).split())}") from None
    except (TypeError, RecursionError) as error:
        raise BadRequest(f"the body is YAML that JSON cannot hold: {error}") from None


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        import base64

        return base64.b64encode(value).decode()
    raise TypeError(f"{type(value).__name__} has no JSON form")


def _named(value: Any) -> str:
    names = {list: "a list", str: "a string", int: "a number", float: "a number", bool: "a boolean"}
    return names.get(type(value), "null")
