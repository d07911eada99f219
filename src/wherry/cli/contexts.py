"""What `wherry build` sends as the context: a directory as a tar, or what comes on the standard input."""

import os
import sys
from collections.abc import Iterator
from typing import IO, Any

from wherry.cli.args import Usage
from wherry.cli.engine import Refused

CHUNK_BYTES = 256 * 1024
SENT = ".wherry.Dockerfile"
"""The name under which a Dockerfile from outside of the context goes along; the builder takes it out again."""


class _Pipe:
    """A file that tarfile writes to and we read from, piece by piece."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []

    def write(self, data: bytes) -> int:
        self.pieces.append(bytes(data))
        return len(data)

    def take(self) -> bytes:
        data, self.pieces = b"".join(self.pieces), []
        return data


def context_tar(root: str, dockerfile: str, text: bytes | None = None) -> Iterator[bytes]:
    """The directory as a tar stream; .dockerignore is applied by the builder, which gets it too.

    `dockerfile` is a file from elsewhere that goes along with its own .dockerignore, `text` what came on the standard input.
    """
    import tarfile
    from typing import cast

    pipe = _Pipe()
    with tarfile.open(
        fileobj=cast("IO[bytes]", pipe), mode="w|", format=tarfile.GNU_FORMAT, bufsize=CHUNK_BYTES
    ) as archive:
        skip = _skipped(root)
        for folder, names, files in os.walk(root):
            relative = os.path.relpath(folder, root)
            names[:] = sorted(name for name in names if not skip(os.path.normpath(os.path.join(relative, name))))
            for name in [*names, *sorted(files)]:
                inside = os.path.normpath(os.path.join(relative, name))
                if not skip(inside):
                    for _ in _packed(archive, os.path.join(folder, name), inside):
                        yield pipe.take()
        if text is not None:
            import io

            info = tarfile.TarInfo(SENT)
            info.size = len(text)
            archive.addfile(info, io.BytesIO(text))
        for path, name in ((dockerfile, SENT), (f"{dockerfile}.dockerignore", f"{SENT}.dockerignore")):
            if dockerfile and os.path.isfile(path):
                for _ in _packed(archive, path, name):
                    yield pipe.take()
    yield pipe.take()


def _packed(archive: Any, path: str, inside: str) -> Iterator[None]:
    """Add one file, link or directory; stops after each piece, so that no file need fit into memory."""
    if _is_socket(path):
        return
    info = archive.gettarinfo(path, arcname=inside)
    archive.addfile(info)
    if not info.isreg():
        return
    with open(path, "rb") as file:
        left = info.size
        while left:
            data = file.read(min(CHUNK_BYTES, left))
            if not data:
                raise Refused(f"{path}: it has become shorter while it was sent", 0)
            left -= len(data)
            archive.fileobj.write(data)
            yield
    fill = -info.size % 512
    archive.fileobj.write(b"\0" * fill)
    archive.offset += info.size + fill


def _is_socket(path: str) -> bool:
    import stat

    return stat.S_ISSOCK(os.lstat(path).st_mode)


def _skipped(root: str) -> Any:
    """What need not be sent: whole directories that .dockerignore names plainly, so that large ones cost nothing."""
    plain: set[str] = set()
    try:
        with open(os.path.join(root, ".dockerignore")) as file:
            lines = [line.strip() for line in file if line.strip() and not line.startswith("#")]
    except OSError:
        lines = []
    if not any(line.startswith("!") for line in lines):
        plain = {os.path.normpath(line.strip("/")) for line in lines if not set(line) & set("*?[\\")}
    plain -= {"Dockerfile", ".dockerignore"}
    return lambda path: path in plain


def is_address(text: str) -> bool:
    """Say whether a context is somewhere else: a URL, or `git@host:path`."""
    scheme, mark, _ = text.partition("://")
    return (bool(mark) and scheme.replace("-", "").isalnum()) or (text.startswith("git@") and ":" in text)


def context_of(place: str, dockerfile: str) -> tuple[Iterator[bytes], str, bool]:
    """The context's tar, the Dockerfile's name in it, and whether it is the directory as it is. Raises Usage, Refused."""
    if place == "-":
        if dockerfile == "-":
            raise Usage("build", "the context and the Dockerfile cannot both come from the standard input")
        return _piped(sys.stdin.buffer), dockerfile or "Dockerfile", False
    if not os.path.isdir(place):
        raise Usage("build", f"{place}: not a directory")
    if dockerfile == "-":
        return context_tar(place, "", sys.stdin.buffer.read()), SENT, False
    if not dockerfile:
        if not os.path.isfile(os.path.join(place, "Dockerfile")):
            raise Refused(f"{place}: no Dockerfile there; -f names another", 0)
        return context_tar(place, ""), "Dockerfile", True
    inside = os.path.relpath(os.path.abspath(dockerfile), os.path.abspath(place))
    if not inside.startswith(".."):
        if not os.path.isfile(os.path.join(place, inside)):
            raise Refused(f"{dockerfile}: no such Dockerfile", 0)
        return context_tar(place, ""), inside, True
    if not os.path.isfile(dockerfile):
        raise Refused(f"{dockerfile}: no such Dockerfile", 0)
    return context_tar(place, dockerfile), SENT, False


def _piped(stream: IO[bytes]) -> Iterator[bytes]:
    """An archive as it comes; any other text is a Dockerfile, with no files beside it."""
    head = stream.read(1024)
    if _is_archive(head):
        yield head
        yield from iter(lambda: stream.read(CHUNK_BYTES), b"")
        return
    import io
    import tarfile

    text = head + stream.read()
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        info = tarfile.TarInfo("Dockerfile")
        info.size = len(text)
        archive.addfile(info, io.BytesIO(text))
    yield out.getvalue()


def _is_archive(head: bytes) -> bool:
    packed = head.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd"))
    return packed or head[257:262] == b"ustar" or head[:1] in (b"", b"\0") or head[100:101] == b"\0"
