"""Error envelopes of the wire formats, and the one table from our errors to an HTTP status and a Kubernetes reason."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from wherry.errors import (
    AlreadyExists,
    BadRequest,
    Broken,
    Conflict,
    Damaged,
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

Json = dict[str, Any]

# Source of the reasons: Kubernetes API machinery, `metav1.StatusReason`. Unsupported is 501, which no client retries.
STATUS: Mapping[type[WherryError], tuple[int, str]] = {
    WherryError: (500, "InternalError"),
    BadRequest: (400, "BadRequest"),
    Unauthorized: (401, "Unauthorized"),
    Forbidden: (403, "Forbidden"),
    NotFound: (404, "NotFound"),
    MethodNotAllowed: (405, "MethodNotAllowed"),
    NotAcceptable: (406, "NotAcceptable"),
    AlreadyExists: (409, "AlreadyExists"),
    Conflict: (409, "Conflict"),
    Expired: (410, "Expired"),
    TooLarge: (413, "RequestEntityTooLarge"),
    UnsupportedMediaType: (415, "UnsupportedMediaType"),
    Invalid: (422, "Invalid"),
    TooManyRequests: (429, "TooManyRequests"),
    Damaged: (500, "InternalError"),
    Broken: (500, "InternalError"),
    Unsupported: (501, "NotImplemented"),
    Unavailable: (503, "ServiceUnavailable"),
    DeadlineExceeded: (504, "Timeout"),
}


def status_of(error: BaseException) -> tuple[int, str]:
    """Return the HTTP status and the Kubernetes reason of an error; 500 InternalError for one that is not ours."""
    for kind in type(error).__mro__:
        found = STATUS.get(kind)
        if found is not None:
            return found
    return 500, "InternalError"


def retry_after_s(error: BaseException) -> int | None:
    """Return the seconds for a Retry-After header, or None."""
    return error.retry_after_s if isinstance(error, TooManyRequests) else None


def message_of(error: BaseException) -> str:
    """Return what may be told to the caller: our own errors' words; nothing of any other error's."""
    return error.message if isinstance(error, WherryError) else "an internal error; the server's log has the details"


def status_object(code: int, reason: str, message: str, details: Json | None = None) -> Json:
    """Make Kubernetes' Status object of a failure."""
    status: Json = {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": message,
        "reason": reason,
    }
    if details:
        status["details"] = details
    status["code"] = code
    return status


def status_for(error: BaseException, *, group: str = "", kind: str = "", name: str = "", uid: str = "") -> Json:
    """Make the Status of an error: its causes and Retry-After go into details, beside the object it is about."""
    code, reason = status_of(error)
    details: Json = {
        key: value for key, value in (("name", name), ("group", group), ("kind", kind), ("uid", uid)) if value
    }
    if isinstance(error, WherryError) and error.causes:
        details["causes"] = [
            {"reason": cause.reason, "message": cause.message, "field": cause.field} for cause in error.causes
        ]
    seconds = retry_after_s(error)
    if seconds is not None:
        details["retryAfterSeconds"] = seconds
    return status_object(code, reason, message_of(error), details)


def docker_error(message: str) -> Json:
    """Make Docker's error object."""
    return {"message": message}


def oci_error(code: str, message: str, detail: Any = None) -> Json:
    """Make OCI distribution's error object with one error. Source: distribution-spec 1.1, "Error Codes"."""
    return oci_errors([(code, message, detail)])


def oci_errors(errors: Sequence[tuple[str, str, Any]]) -> Json:
    """Make OCI distribution's error object of (code, message, detail); a detail of None is left out."""
    made: list[Json] = []
    for code, message, detail in errors:
        error: Json = {"code": code, "message": message}
        if detail is not None:
            error["detail"] = detail
        made.append(error)
    return {"errors": made}


def error_from(status: int, body: bytes, about: str) -> WherryError:
    """Turn an error answer back into one of our errors: by the reason of a Kubernetes Status, else by the HTTP status.

    `about` says what was asked; it leads the message. An answer that says less than that is told by its status alone.
    """
    reason, message = "", ""
    try:
        said = msgspec.json.decode(body, type=_Said)
        reason, message = said.reason, said.message
    except msgspec.MsgspecError:
        message = body[:200].decode(errors="replace").strip()
    text = f"{about}: {message or f'HTTP status {status}'}"
    by_reason = [kind for kind, (code, word) in STATUS.items() if word == reason and code == status]
    by_status = [kind for kind, (code, _) in STATUS.items() if code == status]
    kind = (by_reason or by_status or [Broken if status >= 500 else BadRequest])[0]
    return kind(text) if kind is not WherryError else Broken(text)


class _Said(msgspec.Struct):
    reason: str = ""
    message: str = ""
