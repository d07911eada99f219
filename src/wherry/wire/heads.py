"""The head of a message as bytes: status lines, fields, the Date line."""

from collections.abc import Sequence
from datetime import UTC, datetime
from http import HTTPStatus

_STATUS_LINES = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n" for status in HTTPStatus}
_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


def status_line(status: int) -> str:
    """Return `HTTP/1.1 200 OK` with its line end."""
    return _STATUS_LINES.get(status) or f"HTTP/1.1 {status} Status {status}\r\n"


def fields(items: Sequence[tuple[str, str]]) -> str:
    """Write header fields, each with its line end. Raises ValueError for a line break or NUL in one of them."""
    if not items:
        return ""
    text = "".join([f"{name}: {value}\r\n" for name, value in items])
    if text.count("\n") != len(items) or text.count("\r") != len(items) or "\0" in text:
        names = [name for name, value in items if any(mark in name + value for mark in "\r\n\0")]
        raise ValueError(f"header fields {names} hold a line break or NUL")
    return text


def date_line(seconds: float) -> str:
    """Write the Date field of a time (unix seconds). Source: RFC 9110, section 5.6.7."""
    at = datetime.fromtimestamp(int(seconds), UTC)
    return (
        f"Date: {_DAYS[at.weekday()]}, {at.day:02d} {_MONTHS[at.month - 1]} {at.year}"
        f" {at.hour:02d}:{at.minute:02d}:{at.second:02d} GMT\r\n"
    )
