"""Writing tar archives: the same entries always give the same bytes.

ustar where it suffices, a pax header before what it cannot say (long or non-ASCII names, large numbers, attributes).
Source: POSIX.1-2017, "pax".
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

BLOCK = 512
END = bytes(2 * BLOCK)
_TYPES = {"file": b"0", "link": b"1", "symlink": b"2", "char": b"3", "block": b"4", "dir": b"5", "fifo": b"6"}


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry to write. `path` has no leading slash; `kind` as in tars.KINDS; `source` has the bytes of a file."""

    path: str
    kind: str
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    mtime: int = 0
    link: str = ""
    size: int = 0
    source: Path | bytes | None = None
    device: tuple[int, int] = (0, 0)
    xattrs: Mapping[str, bytes] = field(default_factory=dict[str, bytes])


def header(entry: Entry) -> bytes:
    """Write an entry's header, with a pax header before it if one is needed."""
    records: list[tuple[bytes, bytes]] = []
    path = _bytes(entry.path) + (b"/" if entry.kind == "dir" and not entry.path.endswith("/") else b"")
    link = _bytes(entry.link)
    prefix, name = _split(path)
    if not name or not path.isascii():
        records.append((b"path", path))
        prefix, name = b"", path[:100]
    if len(link) > 100 or not link.isascii():
        records.append((b"linkpath", link))
    size = entry.size if entry.kind == "file" else 0
    for key, value, most in ((b"size", size, 8**11), (b"uid", entry.uid, 8**7), (b"gid", entry.gid, 8**7)):
        if value >= most:
            records.append((key, b"%d" % value))
    mtime = max(0, entry.mtime)
    if mtime >= 8**11:
        records.append((b"mtime", b"%d" % mtime))
    records += [(b"SCHILY.xattr." + _bytes(key), entry.xattrs[key]) for key in sorted(entry.xattrs)]
    block = _ustar(
        name,
        prefix,
        _TYPES[entry.kind],
        entry.mode & 0o7777,
        0 if entry.uid >= 8**7 else entry.uid,
        0 if entry.gid >= 8**7 else entry.gid,
        0 if size >= 8**11 else size,
        0 if mtime >= 8**11 else mtime,
        link[:100],
        entry.device,
    )
    if not records:
        return block
    data = b"".join(_record(key, value) for key, value in records)
    pax = _ustar(b"PaxHeaders/" + name[-80:].rstrip(b"/"), b"", b"x", 0o644, 0, 0, len(data), 0, b"", (0, 0))
    return pax + data + padding(len(data)) + block


def padding(size: int) -> bytes:
    """The zeros after `size` bytes of data."""
    return bytes(-size % BLOCK)


def _ustar(
    name: bytes,
    prefix: bytes,
    kind: bytes,
    mode: int,
    uid: int,
    gid: int,
    size: int,
    mtime: int,
    link: bytes,
    device: tuple[int, int],
) -> bytes:
    block = b"".join(
        (
            name.ljust(100, b"\0"),
            b"%07o\0%07o\0%07o\0%011o\0%011o\0" % (mode, uid, gid, size, mtime),
            b"        ",
            kind,
            link.ljust(100, b"\0"),
            b"ustar\x0000",
            bytes(64),  # no user or group names: numbers are what counts
            b"%07o\0%07o\0" % device,
            prefix.ljust(155, b"\0"),
            bytes(12),
        )
    )
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


def _split(path: bytes) -> tuple[bytes, bytes]:
    """Cut a long path at a slash into ustar's prefix and name; an empty name when it cannot be."""
    if len(path) <= 100:
        return b"", path
    cut = path.find(b"/", len(path) - 101, len(path) - 1)
    if 0 < cut <= 155:
        return path[:cut], path[cut + 1 :]
    return b"", b""


def _record(key: bytes, value: bytes) -> bytes:
    size = len(key) + len(value) + 3
    total = size + len(str(size))
    total = size + len(str(total))
    return b"%d %s=%s\n" % (total, key, value)


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
