"""What can go wrong, told so that the person who asked can act.

This is the one family of errors that crosses rooms. Each wire format has a table that turns a class into
its own status and envelope; nothing here knows any wire format.
"""

from collections.abc import Sequence
from typing import NamedTuple


class Cause(NamedTuple):
    """One reason among several: `field` is a path such as `spec.replicas`, `reason` a stable CamelCase code."""

    field: str
    reason: str
    message: str


class WherryError(Exception):
    """An outcome the caller can act on. The message names the object, what we saw and what helps."""

    def __init__(self, message: str, *, causes: Sequence[Cause] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.causes = tuple(causes)


class BadRequest(WherryError):
    """The request cannot be read: its syntax, an option, a header."""


class Unauthorized(WherryError):
    """We do not know who asks."""


class Forbidden(WherryError):
    """We know who asks, and they may not."""


class NotFound(WherryError):
    """The thing named does not exist."""


class MethodNotAllowed(WherryError):
    """The thing exists and cannot do that."""


class NotAcceptable(WherryError):
    """None of the formats that the client accepts can be made."""


class AlreadyExists(WherryError):
    """The name is taken."""


class Conflict(WherryError):
    """The object has moved on since it was read."""


class Expired(WherryError):
    """The revision asked for has been compacted away."""


class TooLarge(WherryError):
    """The body, header or object is larger than we take."""


class UnsupportedMediaType(WherryError):
    """The body comes in a format that we do not read."""


class Invalid(WherryError):
    """The caller's words can be read and ask for nothing we can do; `causes` name the fields."""


class TooManyRequests(WherryError):
    """Ask again later."""

    def __init__(self, message: str, *, retry_after_s: int = 1, causes: Sequence[Cause] = ()) -> None:
        super().__init__(message, causes=causes)
        self.retry_after_s = retry_after_s


class Unsupported(WherryError):
    """A known feature that wherry does not have; the message names it. SCOPE.md lists it."""


class Unavailable(WherryError):
    """A part that is needed is away for now; asking again may help."""


class DeadlineExceeded(WherryError):
    """It took longer than the caller allowed."""


class Damaged(WherryError):
    """What is stored does not match its digest or its format; it is never served."""


class Broken(WherryError):
    """A part of the machine did not do its work (the kernel, an OCI runtime, a full disk); the message has its words."""
