"""What a registry answers: its body in pieces, and the words of its refusals. aiohttp's answers in the shape of our own."""

from collections.abc import AsyncIterator, Mapping
from typing import Any, Protocol

import msgspec

from wherry.errors import Unavailable, WherryError


class Answer(Protocol):
    """An HTTP answer, its body to be read once."""

    @property
    def status(self) -> int:
        """The HTTP status."""
        ...

    @property
    def headers(self) -> Mapping[str, str]:
        """Headers by lower-case name."""
        ...

    async def read(self) -> bytes:
        """The whole body."""
        ...

    def chunks(self) -> AsyncIterator[bytes]:
        """The body in pieces, as they come."""
        ...

    async def close(self) -> None:
        """Let go, also in the middle of the body."""
        ...


class AiohttpAnswer:
    """An answer that came by aiohttp."""

    def __init__(self, answer: Any) -> None:
        self._answer = answer
        self.status: int = answer.status
        self.headers: Mapping[str, str] = {key.lower(): value for key, value in answer.headers.items()}

    async def read(self) -> bytes:
        return b"".join([part async for part in self.chunks()])

    async def chunks(self) -> AsyncIterator[bytes]:
        import aiohttp

        try:
            async for part in self._answer.content.iter_chunked(512 * 1024):
                yield part
        except aiohttp.ClientError as error:
            raise Unavailable(words_of(error)) from error

    async def close(self) -> None:
        self._answer.release() if self._answer.content.at_eof() else self._answer.close()


def envelope(data: bytes) -> str:
    """Read the words of the OCI's error envelope; of anything else its beginning, or nothing."""
    try:
        errors = msgspec.json.decode(data, type=dict[str, Any]).get("errors") or []
        return "; ".join(f"{error.get('code', '')}: {error.get('message', '')}" for error in errors[:3])
    except (msgspec.MsgspecError, AttributeError, TypeError):
        return data[:200].decode(errors="replace").strip()


def words_of(error: BaseException) -> str:
    """Say what broke."""
    if isinstance(error, WherryError):
        return error.message
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return str(error) or type(error).__name__
