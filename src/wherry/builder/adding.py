"""What ADD does beyond COPY: local archives are unpacked, URLs are fetched."""

import asyncio
import hashlib
import lzma
import os
import posixpath
import re
import shutil
from bz2 import BZ2File
from collections.abc import Iterator, Sequence
from contextlib import suppress
from email.utils import parsedate_to_datetime
from pathlib import Path
from urllib.parse import unquote, urlsplit

from wherry.builder.selection import CopyError, Source
from wherry.builder.tree import Node, Tree
from wherry.clock import machine
from wherry.content.inflate import pieces
from wherry.content.tars import BLOCK, Tar
from wherry.errors import Damaged, Invalid, Unsupported

FETCH_S = 1800.0
STALL_S = 60.0
MOST_BYTES = 20 * 1024**3
"""The largest file that is fetched, and the most that an archive may unpack to."""
_XZ, _BZ2 = b"\xfd7zXZ\x00", b"BZh"


def is_archive(path: Path) -> bool:
    """Say whether a file is a tar, plain or by gzip, bzip2, xz or zstd: by its bytes, not its name."""
    try:
        with path.open("rb") as file:
            head = file.read(8)
            if head[:6] == _XZ or head[:3] == _BZ2:
                with _opened(path, head) as plain:
                    return _is_header(plain.read(BLOCK))
            return _is_header(next(pieces(file.fileno(), name=path.name), b"")[:BLOCK])
    except (OSError, EOFError, lzma.LZMAError, Damaged):
        return False


async def unpacked(path: Path, name: str, scratch: Path) -> Source:
    """Unpack an archive's files below `scratch`; return it as a directory. Raises CopyError.

    Files are kept under numbers, so that no name in the archive is ever a name on this machine.
    """
    scratch.mkdir(parents=True)
    try:
        tree = await asyncio.to_thread(_unpack, path, name, scratch)
    except (Damaged, Invalid, Unsupported) as error:
        raise CopyError(f"ADD {name}: {error.message}") from error
    except (EOFError, lzma.LZMAError, OSError) as error:
        raise CopyError(f"ADD {name}: the archive cannot be read: {error}") from error
    return Source("", Node("dir"), list(tree.walk("")))


def _unpack(path: Path, name: str, scratch: Path) -> Tree:
    source = plain_tar(path, f"ADD {name}", scratch)
    tree = Tree()
    total = 0
    with source.open("rb") as file:
        tar = Tar(pieces(file.fileno(), name=name), name=name)
        for number, member in enumerate(tar):
            inner = posixpath.normpath("/" + member.path).lstrip("/")
            if ".." in member.path.split("/"):
                raise CopyError(f"ADD {name}: an entry has '..' in its path: {member.path!r}")
            if not inner:
                continue
            if member.kind == "link":
                first = tree.get(posixpath.normpath("/" + member.link).lstrip("/"))
                if first is None:
                    raise CopyError(f"ADD {name}: {member.path!r} is a link to {member.link!r}, which is not before it")
                tree.put(inner, first)
                continue
            origin: Path | None = None
            if member.kind == "file":
                total += member.size
                if total > MOST_BYTES:
                    raise CopyError(f"ADD {name}: it unpacks to more than {MOST_BYTES} bytes")
                origin = scratch / str(number)
                with origin.open("wb") as out:
                    for part in tar.data():
                        out.write(part)
            tree.put(
                inner,
                Node(
                    *(member.kind, member.mode & 0o7777, member.uid, member.gid, int(member.mtime), member.size),
                    *(member.link, member.device, member.xattrs, origin),
                ),
            )
    return tree


def plain_tar(path: Path, what: str, scratch: Path) -> Path:
    """Take bzip2 and xz off an archive, below `scratch`; the archive itself where it has neither. Raises CopyError."""
    with path.open("rb") as file:
        head = file.read(8)
    if head[:6] != _XZ and head[:3] != _BZ2:
        return path
    source = scratch / "plain"
    with _opened(path, head) as packed, source.open("wb") as plain:
        while data := packed.read(1 << 20):
            plain.write(data)
            if plain.tell() > MOST_BYTES:
                raise CopyError(f"{what}: it unpacks to more than {MOST_BYTES} bytes")
    return source


def _opened(path: Path, head: bytes) -> lzma.LZMAFile | BZ2File:
    return lzma.open(path, "rb") if head[:6] == _XZ else BZ2File(path, "rb")


def _is_header(block: bytes) -> bool:
    """Say whether a block is a tar header: its check sum fits."""
    if len(block) < BLOCK or not block.strip(b"\0"):
        return False
    with suppress(ValueError):
        wanted = int(block[148:156].strip(b" \0") or b"0", 8)
        return wanted == sum(block[:148]) + sum(block[156:]) + 8 * 32
    return False


def file_name(url: str) -> str:
    """The name that a URL gives its file; "" when it gives none."""
    return unquote(urlsplit(url).path).rpartition("/")[2]


async def fetched(url: str, checksum: str, scratch: Path, what: str = "ADD") -> Source:
    """Fetch a URL into `scratch`; return it as a file of mode 0600. `what` begins the words of errors.

    Raises CopyError, also when it is not `checksum`.

    Source: Dockerfile reference, "Adding files from a remote URL".
    """
    import aiohttp

    scratch.mkdir(parents=True)
    place = scratch / "file"
    algorithm = checksum.partition(":")[0] or "sha256"
    seen = hashlib.new(algorithm)
    size = 0
    limits = aiohttp.ClientTimeout(total=None, sock_connect=STALL_S, sock_read=STALL_S)
    try:
        async with (
            machine.timeout(FETCH_S),
            aiohttp.ClientSession(timeout=limits, auto_decompress=False, trust_env=True) as session,
            session.get(url, headers={"Accept-Encoding": "identity", "User-Agent": "wherry"}) as answer,
        ):
            if answer.status != 200:
                raise CopyError(
                    f"{what} {_shown(url)}: the server answered {answer.status} {answer.reason or ''}".rstrip()
                )
            with place.open("wb") as file:
                async for data in answer.content.iter_chunked(1 << 20):
                    size += len(data)
                    if size > MOST_BYTES:
                        raise CopyError(f"{what} {_shown(url)}: it has more than {MOST_BYTES} bytes")
                    seen.update(data)
                    await asyncio.to_thread(file.write, data)
            name = (
                _disposition(answer.headers.get("Content-Disposition", ""))
                or file_name(str(answer.url))
                or file_name(url)
            )
            mtime = 0
            with suppress(ValueError, TypeError):
                mtime = int(parsedate_to_datetime(answer.headers.get("Last-Modified", "")).timestamp())
    except TimeoutError:
        raise CopyError(f"{what} {_shown(url)}: the server is too slow, or silent") from None
    except (aiohttp.ClientError, OSError, ValueError) as error:
        raise CopyError(f"{what} {_shown(url)}: {error or type(error).__name__}") from error
    found = f"{algorithm}:{seen.hexdigest()}"
    if checksum and found != checksum:
        raise CopyError(f"{what} {_shown(url)}: it is {found}, not {checksum}")
    return Source(name, Node("file", 0o600, mtime=max(0, mtime), size=size, origin=place), ())


def materialise(sources: Sequence[Source], target: Path) -> None:
    """Write sources as files below `target`, for a mount: a directory's content, or one file by its name.

    Links stay links; owners are kept where we are root.
    """
    root = os.geteuid() == 0
    for source in sources:
        rows: Iterator[tuple[str, Node]] = iter(source.below)
        if source.node.kind != "dir":
            rows = iter([(source.name, source.node)])
        made: list[tuple[Path, Node]] = []
        for name, node in rows:
            place = target / name
            if node.kind == "dir":
                place.mkdir(exist_ok=True)
                made.append((place, node))
            elif node.kind == "symlink":
                os.symlink(node.link, place)
                if root:
                    os.lchown(place, node.uid, node.gid)
            elif node.kind == "file":
                if isinstance(node.origin, bytes):
                    place.write_bytes(node.origin)
                elif isinstance(node.origin, Path):
                    shutil.copyfile(node.origin, place, follow_symlinks=False)
                made.append((place, node))
        for place, node in reversed(made):
            if root:
                os.chown(place, node.uid, node.gid)
            place.chmod(node.mode)
            os.utime(place, (node.mtime, node.mtime))


def _disposition(text: str) -> str:
    found = re.search(r'filename="?([^";]+)"?', text)
    return posixpath.basename(found[1]) if found else ""


def _shown(url: str) -> str:
    """A URL without what may be secret in it: a password, a query."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname or ''}{f':{parts.port}' if parts.port else ''}{parts.path}"
