"""Layers as plain bytes: gzip (by isal), zstd or nothing, told apart by their first bytes. Imports each on use."""

import os
from collections.abc import Iterator
from importlib import import_module
from typing import cast

from wherry.errors import Damaged

READ_BYTES = 256 * 1024
MOST_BYTES = 1024 * 1024
"""The largest piece that comes out, whatever goes in: a bomb fills no memory."""


def compression_of(head: bytes) -> str:
    """Say "gzip", "zstd" or "" by the first four bytes."""
    if head[:2] == b"\x1f\x8b":
        return "gzip"
    return "zstd" if head[:4] == b"\x28\xb5\x2f\xfd" else ""


def prepare(fd: int) -> None:
    """Import now what `pieces` will need, while the file system is still in reach."""
    compression = compression_of(os.pread(fd, 4, 0))
    if compression == "gzip":
        import_module("isal.isal_zlib")
    elif compression == "zstd":
        import_module("zstandard")


def pieces(fd: int, *, name: str = "layer") -> Iterator[bytes]:
    """Yield the uncompressed bytes of the open file from its start. Raises Damaged."""
    compression = compression_of(os.pread(fd, 4, 0))
    os.lseek(fd, 0, os.SEEK_SET)
    if compression == "gzip":
        return _gzip(fd, name)
    return _zstd(fd, name) if compression == "zstd" else _plain(fd)


def _plain(fd: int) -> Iterator[bytes]:
    while data := os.read(fd, MOST_BYTES):
        yield data


def _gzip(fd: int, name: str) -> Iterator[bytes]:
    from isal import igzip_lib, isal_zlib

    isal_error = cast("type[Exception]", igzip_lib.IsalError)
    data = os.read(fd, READ_BYTES)
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
            data = inflater.unconsumed_tail or (b"" if inflater.eof else os.read(fd, READ_BYTES))
        data = inflater.unused_data or os.read(fd, READ_BYTES)
        if data and data.count(0) == len(data):  # padding after the end, which gzip allows
            return


def _zstd(fd: int, name: str) -> Iterator[bytes]:
    import zstandard

    with open(fd, "rb", closefd=False, buffering=0) as file:
        try:
            with zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True, closefd=False) as reader:
                while data := reader.read(MOST_BYTES):
                    yield data
        except zstandard.ZstdError as error:
            raise Damaged(f"{name}: the zstd data is damaged: {error}") from None
