"""Digests: names of bytes that prove themselves."""

import hashlib
import re
from typing import Protocol

from wherry.content.protocol import Digest
from wherry.errors import Cause, Invalid

HEX_DIGITS = {"sha256": 64, "sha512": 128}
_HEX = re.compile(r"[0-9a-f]+")


class Hasher(Protocol):
    """What hashlib gives: bytes go in, a hex digest comes out."""

    def update(self, data: bytes | memoryview, /) -> None:
        """Take more bytes."""
        ...

    def hexdigest(self) -> str:
        """Say the digest of all bytes so far."""
        ...


def parse_digest(text: str, field: str = "digest") -> Digest:
    """Read `sha256:HEX` or `sha512:HEX`. Raises Invalid that names `field`. Source: OCI image-spec 1.1, "Digests"."""
    algorithm, colon, value = text.partition(":")
    wanted = HEX_DIGITS.get(algorithm)
    if not colon or wanted is None:
        message = f"{field} {text!r}: a digest is sha256:HEX or sha512:HEX"
    elif len(value) != wanted or _HEX.fullmatch(value) is None:
        message = f"{field} {text!r}: {algorithm} has {wanted} lower-case hex digits"
    else:
        return Digest(text)
    raise Invalid(message, causes=[Cause(field, "InvalidDigest", message)])


def hasher(algorithm: str = "sha256") -> Hasher:
    """Begin a digest."""
    return hashlib.sha512() if algorithm == "sha512" else hashlib.sha256()


def digest_of(data: bytes | memoryview, algorithm: str = "sha256") -> Digest:
    """Say the digest of bytes at hand."""
    state = hasher(algorithm)
    state.update(data)
    return Digest(f"{algorithm}:{state.hexdigest()}")


def algorithm_of(digest: Digest) -> str:
    """`sha256` or `sha512`."""
    return digest.partition(":")[0]
