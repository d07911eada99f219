"""Errors from the server's `Status` objects: the way back from the wire to the classes of wherry.errors."""

from collections.abc import Mapping

import msgspec

from wherry.errors import (
    AlreadyExists,
    BadRequest,
    Broken,
    Cause,
    Conflict,
    DeadlineExceeded,
    Expired,
    Forbidden,
    Invalid,
    MethodNotAllowed,
    NotAcceptable,
    NotFound,
    TooLarge,
    TooManyRequests,
    Unauthorized,
    Unavailable,
    Unsupported,
    UnsupportedMediaType,
    WherryError,
)

REASONS: Mapping[str, type[WherryError]] = {
    "BadRequest": BadRequest,
    "Unauthorized": Unauthorized,
    "Forbidden": Forbidden,
    "NotFound": NotFound,
    "MethodNotAllowed": MethodNotAllowed,
    "NotAcceptable": NotAcceptable,
    "AlreadyExists": AlreadyExists,
    "Conflict": Conflict,
    "Gone": Expired,
    "Expired": Expired,
    "RequestEntityTooLarge": TooLarge,
    "UnsupportedMediaType": UnsupportedMediaType,
    "Invalid": Invalid,
    "TooManyRequests": TooManyRequests,
    "NotImplemented": Unsupported,
    "ServiceUnavailable": Unavailable,
    "ServerTimeout": Unavailable,
    "Timeout": DeadlineExceeded,
    "InternalError": Broken,
}
"""The class for each `reason` of a Status. Source: Kubernetes API conventions, "Response Status Kind"."""

CODES: Mapping[int, type[WherryError]] = {
    400: BadRequest,
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
    405: MethodNotAllowed,
    406: NotAcceptable,
    408: DeadlineExceeded,
    409: Conflict,
    410: Expired,
    413: TooLarge,
    415: UnsupportedMediaType,
    422: Invalid,
    429: TooManyRequests,
    501: Unsupported,
    502: Unavailable,
    503: Unavailable,
    504: DeadlineExceeded,
}
"""The class for an answer that says no reason we know."""


class _Cause(msgspec.Struct, frozen=True):
    field: str | None = None
    reason: str | None = None
    message: str | None = None


class _Details(msgspec.Struct, frozen=True, rename="camel"):
    causes: list[_Cause] | None = None
    retry_after_seconds: int | None = None


class _Status(msgspec.Struct, frozen=True):
    reason: str | None = None
    message: str | None = None
    code: int | None = None
    details: _Details | None = None


_DECODER = msgspec.json.Decoder(_Status)


def error_of(code: int, body: bytes) -> WherryError:
    """Make the error that an answer with HTTP status `code` (400 and up) tells of; `body` may be any bytes."""
    try:
        status = _DECODER.decode(body)
    except msgspec.DecodeError:
        status = _Status(message=body[:500].decode("utf-8", "replace").strip())
    code = code or status.code or 500
    error_type = REASONS.get(status.reason or "") or CODES.get(code, Broken)
    message = status.message or f"the API server answered with status {code} and no message"
    details = status.details or _Details()
    causes = [Cause(cause.field or "", cause.reason or "", cause.message or "") for cause in details.causes or ()]
    if error_type is TooManyRequests:
        return TooManyRequests(message, retry_after_s=details.retry_after_seconds or 1, causes=causes)
    return error_type(message, causes=causes)


def error_in_watch(status: bytes) -> WherryError:
    """Make the error of a watch event of type ERROR, whose object is a Status with its own code."""
    return error_of(0, status)
