"""Archives as plain bytes: gzip (by isal), zstd, bzip2, xz or nothing, told apart by their first bytes. Imports each on use.

Frames that zstd:chunked and eStargz append are skipped or read as any decompressor does: their layers are plain ones here.
"""

import os
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import cast

from wherry.errors import Damaged

READ_BYTES = 256 * 1024
MOST_BYTES = 1024 * 1024
"""The largest piece that comes out, whatever goes in: a bomb fills no memory."""
XZ_MEMORY_BYTES = 256 * 1024 * 1024
"""What an xz archive may ask for its dictionary; `xz -9` needs 65 MiB."""
HEAD_BYTES = 6
_MAGIC = ((b"\x1f\x8b", "gzip"), (b"\x28\xb5\x2f\xfd", "zstd"), (b"BZh", "bzip2"), (b"\xfd7zXZ\0", "xz"))
_MODULES = {"gzip": "isal.isal_zlib", "zstd": "zstandard", "bzip2": "bz2", "xz": "lzma"}

Read = Callable[[int], bytes]
"""Gives the next bytes, at most so many; b"" at the end."""


def compression_of(head: bytes) -> str:
    """Say "gzip", "zstd", "bzip2", "xz" or "" by the first six bytes."""
    if head[1:4] == b"\x2a\x4d\x18" and 0x50 <= head[0] <= 0x5F:
        return "zstd"  # a skippable frame may come first
    return next((kind for magic, kind in _MAGIC if head.startswith(magic)), "")


def prepare(fd: int) -> None:
    """Import now what `pieces` will need, while the file system is still in reach."""
    module = _MODULES.get(compression_of(os.pread(fd, HEAD_BYTES, 0)))
    if module is not None:
        import_module(module)


def pieces(fd: int, *, name: str = "layer", read: Read | None = None) -> Iterator[bytes]:
    """Yield the uncompressed bytes of the open file from its start, or of what `read` gives. Raises Damaged."""
    if read is None:
        os.lseek(fd, 0, os.SEEK_SET)

        def read_file(most: int) -> bytes:
            return os.read(fd, most)

        read = read_file
    first = b""
    while len(first) < HEAD_BYTES and (data := read(READ_BYTES)):
        first += data
    match compression_of(first):
        case "gzip":
            return _gzip(first, read, name)
        case "zstd":
            return _zstd(_Ahead(first, read), name)
        case "bzip2" | "xz" as kind:
            return _slow(first, read, name, kind)
        case _:
            return _plain(first, read)


def _plain(data: bytes, read: Read) -> Iterator[bytes]:
    while data:
        yield data
        data = read(MOST_BYTES)


def _gzip(data: bytes, read: Read, name: str) -> Iterator[bytes]:
    from isal import igzip_lib, isal_zlib

    isal_error = cast("type[Exception]", igzip_lib.IsalError)
    while data:  # one turn for each gzip member: parallel compressors write many
        inflater = isal_zlib.decompressobj(wbits=31)
        while not inflater.eof:
            if not data:
                raise Damaged(f"{name}: the gzip data ends too early")
            try:
                out = inflater.decompress(data, MOST_BYTES)
            except isal_error as error:
                raise Damaged(f"{name}: the gzip data is damaged: {error}") from None
            if out:
                yield out
            data = inflater.unconsumed_tail or (b"" if inflater.eof else read(READ_BYTES))
        data = inflater.unused_data or read(READ_BYTES)
        if data and data.count(0) == len(data):  # padding after the end, which gzip allows
            return


def _zstd(file: "_Ahead", name: str) -> Iterator[bytes]:
    import zstandard

    try:
        with zstandard.ZstdDecompressor(max_window_size=1 << 27).stream_reader(
            file,  # pyright: ignore[reportArgumentType]  # whatever has `read` will do
            read_across_frames=True,
            closefd=False,
        ) as reader:
            while data := reader.read(MOST_BYTES):
                yield data
    except zstandard.ZstdError as error:
        raise Damaged(f"{name}: the zstd data is damaged: {error}") from None


def _slow(data: bytes, read: Read, name: str, kind: str) -> Iterator[bytes]:
    """bzip2 and xz, several streams after each other."""
    import bz2
    import lzma

    while data:
        inflater = bz2.BZ2Decompressor() if kind == "bzip2" else lzma.LZMADecompressor(lzma.FORMAT_XZ, XZ_MEMORY_BYTES)
        while not inflater.eof:
            if not data and inflater.needs_input:
                raise Damaged(f"{name}: the {kind} data ends too early")
            try:
                out = inflater.decompress(data, MOST_BYTES)
            except (OSError, ValueError, lzma.LZMAError) as error:
                raise Damaged(f"{name}: the {kind} data is damaged: {error}") from None
            if out:
                yield out
            data = read(READ_BYTES) if inflater.needs_input and not inflater.eof else b""
        data = inflater.unused_data or read(READ_BYTES)
        if data and data.count(0) == len(data):  # xz pads its streams
            return


class _Ahead:
    """A reader whose first bytes have been taken already."""

    def __init__(self, first: bytes, read: Read) -> None:
        self._first = first
        self._read = read

    def read(self, most: int = READ_BYTES) -> bytes:
        if self._first:
            part, self._first = self._first[:most], self._first[most:]
            return part
        return self._read(most)
