"""OCI's error codes, and the one table from our errors to its statuses. Source: distribution-spec 1.1, "Error Codes"."""

from collections.abc import Mapping

from wherry.errors import (
    AlreadyExists,
    BadRequest,
    Cause,
    Conflict,
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
from wherry.wire.envelopes import message_of, oci_error, retry_after_s, status_of
from wherry.wire.http import Response

BLOB_UNKNOWN = "BLOB_UNKNOWN"
BLOB_UPLOAD_INVALID = "BLOB_UPLOAD_INVALID"
BLOB_UPLOAD_UNKNOWN = "BLOB_UPLOAD_UNKNOWN"
DENIED = "DENIED"
DIGEST_INVALID = "DIGEST_INVALID"
MANIFEST_BLOB_UNKNOWN = "MANIFEST_BLOB_UNKNOWN"
MANIFEST_INVALID = "MANIFEST_INVALID"
MANIFEST_UNKNOWN = "MANIFEST_UNKNOWN"
NAME_INVALID = "NAME_INVALID"
NAME_UNKNOWN = "NAME_UNKNOWN"
SIZE_INVALID = "SIZE_INVALID"
TOOMANYREQUESTS = "TOOMANYREQUESTS"
UNAUTHORIZED = "UNAUTHORIZED"
UNSUPPORTED = "UNSUPPORTED"

_CODES = frozenset(
    (
        BLOB_UNKNOWN, BLOB_UPLOAD_INVALID, BLOB_UPLOAD_UNKNOWN, DENIED, DIGEST_INVALID, MANIFEST_BLOB_UNKNOWN,
        MANIFEST_INVALID, MANIFEST_UNKNOWN, NAME_INVALID, NAME_UNKNOWN, SIZE_INVALID, TOOMANYREQUESTS, UNAUTHORIZED,
        UNSUPPORTED,
    )
)  # fmt: skip

STATUS: Mapping[type[WherryError], tuple[int, str]] = {
    Unauthorized: (401, UNAUTHORIZED),
    Forbidden: (403, DENIED),
    NotFound: (404, NAME_UNKNOWN),
    MethodNotAllowed: (405, UNSUPPORTED),
    NotAcceptable: (404, MANIFEST_UNKNOWN),
    Invalid: (400, MANIFEST_INVALID),
    BadRequest: (400, UNSUPPORTED),
    TooLarge: (413, SIZE_INVALID),
    UnsupportedMediaType: (415, MANIFEST_INVALID),
    Unsupported: (405, UNSUPPORTED),
    AlreadyExists: (409, DENIED),
    Conflict: (409, BLOB_UPLOAD_INVALID),
    Expired: (404, BLOB_UPLOAD_UNKNOWN),
    TooManyRequests: (429, TOOMANYREQUESTS),
    Unavailable: (503, "UNAVAILABLE"),
}
"""Statuses and codes that differ from the general table, or have a code of their own."""


class RangeRefused(BadRequest):
    """A chunk or a Range that does not fit: 416. `size_bytes` is what there is."""

    def __init__(self, message: str, *, size_bytes: int, upload: bool) -> None:
        super().__init__(message, causes=[Cause("", BLOB_UPLOAD_INVALID if upload else BLOB_UNKNOWN, message)])
        self.size_bytes = size_bytes
        self.upload = upload


def unknown(code: str, message: str) -> NotFound:
    """A NotFound with its own code."""
    return NotFound(message, causes=[Cause("", code, message)])


def invalid(code: str, message: str) -> Invalid:
    """An Invalid with its own code."""
    return Invalid(message, causes=[Cause("", code, message)])


def answer(error: Exception) -> Response:
    """Write an error as the distribution protocol has it. An error that is not ours says nothing about itself."""
    status, code = 500, "UNKNOWN"
    for kind in type(error).__mro__:
        if kind in STATUS:
            status, code = STATUS[kind]
            break
    else:
        status = status_of(error)[0]
    if isinstance(error, WherryError) and error.causes and error.causes[0].reason in _CODES:
        code = error.causes[0].reason
    response = Response.json(oci_error(code, message_of(error)), status)
    if isinstance(error, RangeRefused):
        response.status = 416
        if error.upload:
            response.headers.add("Range", f"0-{max(0, error.size_bytes - 1)}")
        else:
            response.headers.add("Content-Range", f"bytes */{error.size_bytes}")
    wait_s = retry_after_s(error)
    if wait_s is not None:
        response.headers.add("Retry-After", str(wait_s))
    return response
