"""Errors as Kubernetes `Status` objects: the one table from outcome to HTTP status and reason."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from wherry.errors import (
    AlreadyExists,
    Broken,
    Cause,
    Damaged,
    DeadlineExceeded,
    Expired,
    Invalid,
    TooManyRequests,
    Unavailable,
    WherryError,
)
from wherry.wire import envelopes

STATUS: Mapping[type[WherryError], tuple[int, str]] = {
    **envelopes.STATUS,
    WherryError: (503, "ServiceUnavailable"),
    Damaged: (503, "ServiceUnavailable"),
    Broken: (503, "ServiceUnavailable"),
}
"""As on every wire, but that a fault of ours is 503 here: Kubernetes clients try again, and it may be mended."""


@dataclass(frozen=True, slots=True)
class About:
    """What a request was about, for the details of a Status: `kind` is the resource's plural or the object's kind."""

    group: str = ""
    kind: str = ""
    name: str = ""
    uid: str = ""


def code_of(error: WherryError) -> int:
    """The HTTP status of an error; subclasses take their nearest parent's."""
    return _row(error)[0]


def failure(error: WherryError, about: About | None = None) -> dict[str, Any]:
    """The Status object of an error. Source: Kubernetes API conventions, "Response Status Kind"."""
    code, reason = _row(error)
    if isinstance(error, InvalidObject | NameTaken):
        about = error.about
    elif isinstance(error, Invalid) and not error.causes:
        about = None  # kubectl shows either the causes or, without details, the message
    details: dict[str, Any] = {}
    if about is not None:
        pairs = (("name", about.name), ("group", about.group), ("kind", about.kind), ("uid", about.uid))
        details = {key: value for key, value in pairs if value}
    if error.causes:
        details["causes"] = [_cause(cause) for cause in error.causes]
    if isinstance(error, TooManyRequests):
        details["retryAfterSeconds"] = error.retry_after_s
    elif isinstance(error, DeadlineExceeded | Unavailable):
        details["retryAfterSeconds"] = 1
    status = envelopes.status_object(code, reason, error.message, details)
    if isinstance(error, ExpiredToken):
        status["metadata"] = {"continue": error.token}
    return status


def failure_bytes(error: WherryError, about: About | None = None) -> bytes:
    """The Status object of an error as JSON."""
    return orjson.dumps(failure(error, about))


def success(about: About) -> dict[str, Any]:
    """The Status that answers a deletion done at once."""
    pairs = (("name", about.name), ("group", about.group), ("kind", about.kind), ("uid", about.uid))
    details = {key: value for key, value in pairs if value}
    return {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details}


class ExpiredToken(Expired):
    """A `continue` token whose revision is compacted; `token` goes on from the same key at the present revision."""

    def __init__(self, message: str, token: str) -> None:
        super().__init__(message)
        self.token = token


class WrongVersion(DeadlineExceeded):
    """A resourceVersion was asked for that this cluster has not reached."""

    def __init__(self, asked: int, current: int) -> None:
        message = f"Too large resource version: {asked}, current: {current}"
        super().__init__(message, causes=(Cause("", "ResourceVersionTooLarge", "Too large resource version"),))


class InvalidObject(Invalid):
    """An Invalid that says itself which object it is about: a path of a creation does not."""

    def __init__(self, message: str, about: About, causes: Sequence[Cause]) -> None:
        super().__init__(message, causes=causes)
        self.about = about


class NameTaken(AlreadyExists):
    """An AlreadyExists that says which object is there."""

    def __init__(self, resource: str, group: str, name: str) -> None:
        super().__init__(f'{qualified(resource, group)} "{name}" already exists')
        self.about = About(group, resource, name)


def invalid(kind: str, group: str, name: str, causes: Sequence[Cause]) -> Invalid:
    """An Invalid as `kubectl` users know it: `Deployment.apps "web" is invalid: spec.x: Required value`."""
    texts = [f"{cause.field}: {cause.message}" if cause.field else cause.message for cause in causes]
    body = texts[0] if len(texts) == 1 else "[" + ", ".join(texts) + "]"
    message = f'{qualified(kind, group)} "{name}" is invalid: {body}'
    return InvalidObject(message, About(group, kind, name), causes)


def qualified(resource: str, group: str) -> str:
    """A resource or kind with its group: `deployments.apps`, `pods`."""
    return f"{resource}.{group}" if group else resource


def _row(error: WherryError) -> tuple[int, str]:
    for parent in type(error).__mro__:
        if parent in STATUS:
            return STATUS[parent]
    return 503, "ServiceUnavailable"


def _cause(cause: Cause) -> dict[str, str]:
    found = {"reason": cause.reason, "message": cause.message, "field": cause.field}
    return {key: value for key, value in found.items() if value}
