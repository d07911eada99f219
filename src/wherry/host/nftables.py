"""nftables through libnftables: text commands in, JSON out, each call one transaction, in a thread of its own.

What a transaction says is done whole or not at all. A `Nft` acts in the network namespace that its process is in, or in
the one it was given. The library reads a table's chains and rules before each change: keep their number small.
"""

import asyncio
import ctypes
import os
import socket
import struct
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeVar

import orjson

from wherry.errors import Broken, Unsupported
from wherry.host import kernel

T = TypeVar("T")
_LIBRARY = "libnftables.so.1"
_JSON, _NUMERIC_PROTOCOL, _TERSE = 1 << 4, 1 << 7, 1 << 11
_NETLINK_NETFILTER = 12
_NFT_GETGEN, _REQUEST = (10 << 8) | 16, 1
_GENERATION_ID = 1


class Nft:
    """A way into nftables. Calls wait for each other. `close` it, or use it as a context manager.

    `netns` is the path of a network namespace; None means our own. Raises Unsupported without the library.
    """

    def __init__(self, netns: str | None = None) -> None:
        self._netns = netns
        self._thread = ThreadPoolExecutor(1, "nft")
        self._library: ctypes.CDLL | None = None
        self._context: int | None = None

    def __enter__(self) -> "Nft":
        return self

    def __exit__(self, *what: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the library's context and end the thread. May be repeated."""
        with suppress(RuntimeError):  # the thread has ended
            self._thread.submit(self._free).result()
        self._thread.shutdown(wait=True)

    async def run(self, commands: str) -> None:
        """Do the commands as one transaction. Raises Broken with nft's own words; then nothing of it was done."""
        if commands:
            await self.call(lambda: self._run(commands, 0))

    async def read(self, command: str) -> list[Mapping[str, Any]]:
        """Ask (`list table ip x`); return the items of nft's JSON answer without its header."""
        text = await self.call(lambda: self._run(command, _JSON | _NUMERIC_PROTOCOL))
        items: Sequence[Mapping[str, Any]] = orjson.loads(text or b'{"nftables":[]}')["nftables"]
        return [item for item in items if "metainfo" not in item]

    async def read_text(self, command: str) -> str:
        """Ask in nft's own language, without the elements of sets. Some rules have no JSON form."""
        return (await self.call(lambda: self._run(command, _TERSE))).decode(errors="replace")

    async def generation(self) -> int:
        """Return the number that every change of any table, by anybody, moves on. Costs some 10 us."""
        return await self.call(_generation)

    async def call(self, function: Callable[[], T]) -> T:
        """Run any function in this one's thread, so in its network namespace."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._ready_and, function)

    def _ready_and(self, function: Callable[[], T]) -> T:
        """Enter the namespace and load the library on first use; then do the work."""
        if self._context is None:
            if self._netns is not None:
                fd = os.open(self._netns, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    kernel.setns(fd, kernel.CLONE_NEWNET, f"network namespace {self._netns}")
                finally:
                    os.close(fd)
                self._netns = None
            self._library = _load()
            self._context = self._library.nft_ctx_new(0)
            if not self._context:
                self._context = None
                raise Broken("libnftables gives no context: this needs root in the network namespace")
            self._library.nft_ctx_buffer_output(self._context)
            self._library.nft_ctx_buffer_error(self._context)
        return function()

    def _run(self, commands: str, flags: int) -> bytes:
        library, context = self._library, self._context
        assert library is not None
        library.nft_ctx_output_set_flags(context, flags)
        code = library.nft_run_cmd_from_buffer(context, commands.encode())
        out = library.nft_ctx_get_output_buffer(context) or b""
        words = library.nft_ctx_get_error_buffer(context) or b""
        if code != 0:
            said = " ".join(words.decode(errors="replace").split())
            raise Broken(f"nft: {said[:1000] or 'refused without a word'}")
        return bytes(out)

    def _free(self) -> None:
        if self._context is not None and self._library is not None:
            self._library.nft_ctx_free(self._context)
            self._context = None


def is_there() -> bool:
    """Say whether the library can be loaded."""
    try:
        _load()
    except Unsupported:
        return False
    return True


def _load() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(_LIBRARY)
    except OSError as error:
        raise Unsupported(f"{_LIBRARY} is not there ({error}): install nftables (apt install nftables)") from error
    library.nft_ctx_new.argtypes = (ctypes.c_uint32,)
    library.nft_ctx_new.restype = ctypes.c_void_p
    library.nft_ctx_free.argtypes = (ctypes.c_void_p,)
    library.nft_ctx_free.restype = None
    for name in ("nft_ctx_buffer_output", "nft_ctx_buffer_error"):
        getattr(library, name).argtypes = (ctypes.c_void_p,)
    for name in ("nft_ctx_get_output_buffer", "nft_ctx_get_error_buffer"):
        getattr(library, name).argtypes = (ctypes.c_void_p,)
        getattr(library, name).restype = ctypes.c_char_p
    library.nft_ctx_output_set_flags.argtypes = (ctypes.c_void_p, ctypes.c_uint)
    library.nft_ctx_output_set_flags.restype = None
    library.nft_run_cmd_from_buffer.argtypes = (ctypes.c_void_p, ctypes.c_char_p)
    return library


def _generation() -> int:
    """Ask nf_tables for its generation, in the calling thread's network namespace."""
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER) as asker:
            asker.settimeout(5.0)
            asker.bind((0, 0))
            asker.send(struct.pack("=IHHIIBBH", 20, _NFT_GETGEN, _REQUEST, 1, 0, socket.AF_UNSPEC, 0, 0))
            answer = asker.recv(4096)
    except OSError as error:
        raise kernel.refused("ask nftables for its generation", error.errno or 0) from error
    at = 20
    while at + 4 <= len(answer):
        length, kind = struct.unpack_from("=HH", answer, at)
        if kind & 0x3FFF == _GENERATION_ID:
            return int(struct.unpack_from(">I", answer, at + 4)[0])
        at += max(4, (length + 3) & ~3)
    raise Broken("nftables does not say its generation")
