"""An HTTP/1.1 server: where it listens, how it closes. `Connection` does the talking, `Hub` is what they share."""

import asyncio
import contextlib
import errno
import logging
import os
import socket
import ssl
import stat
from functools import partial
from typing import Self

from wherry.clock import machine
from wherry.errors import AlreadyExists, Invalid, Unavailable
from wherry.wire.connection import Connection
from wherry.wire.http import Handler, OnError
from wherry.wire.hub import Hub, Limits, plain_error

__all__ = ["Limits", "Server", "plain_error"]

log = logging.getLogger(__name__)

BACKLOG = 1024
# How long cancelled handlers may clean up at the end of `close`.
CLEAN_UP_S = 2.0
# From <linux/in.h> and <linux/in6.h>; Python's socket module does not name them.
_IP_FREEBIND = 15
_IPV6_FREEBIND = 78


class Server:
    """Serves one handler on any number of addresses; enter it, or call `close` when done.

    `on_error` turns what the handler raised into an answer in the door's own envelope; it must not raise.
    """

    def __init__(self, handler: Handler, *, limits: Limits | None = None, on_error: OnError | None = None) -> None:
        self._hub = Hub(handler, limits or Limits(), on_error)
        self._listeners: list[asyncio.Server] = []
        self._paths: list[tuple[str, int]] = []
        self._watch: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close(0)

    @property
    def connections(self) -> int:
        """How many connections are open."""
        return len(self._hub.connections)

    async def start_unix(self, path: str | os.PathLike[str], mode: int = 0o660, gid: int | None = None) -> None:
        """Listen on a unix socket with this file mode and group; a stale socket file is replaced.

        Owner and mode are set between bind and listen, so nobody connects before they hold. Raises AlreadyExists when
        another process serves there, Invalid for a path that is too long or is no socket.
        """
        name = os.fspath(path)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            _clear_stale(name)
            try:
                sock.bind(name)
            except OSError as error:
                if error.errno is None:  # "AF_UNIX path too long"
                    raise Invalid(f"the socket path {name} has more than the 107 bytes that Linux takes") from None
                raise Invalid(f"cannot make the socket {name}: {error.strerror}") from error
            if gid is not None:
                os.chown(name, -1, gid)
            os.chmod(name, mode)
            await self._listen(sock, None)
        except BaseException:
            sock.close()
            raise
        self._paths.append((name, os.stat(name).st_ino))

    async def start_tcp(
        self,
        host: str,
        port: int,
        ssl_context: ssl.SSLContext | None = None,
        freebind: bool = False,
        half_close: bool = False,
    ) -> tuple[str, int]:
        """Listen on a TCP address; port 0 takes a free one. Returns the address and port as bound.

        `freebind` allows an address that the machine does not have yet. `half_close`: over TLS too either side may end
        while the other goes on (see tls.py). Raises AlreadyExists for a port that is in use, Invalid for an address that
        is not ours.
        """
        try:
            found = await asyncio.get_running_loop().getaddrinfo(
                host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )
        except OSError as error:
            raise Invalid(f"the address {host!r} is not known: {error.strerror}") from error
        family, kind, protocol, _, address = min(found, key=lambda each: each[0] != socket.AF_INET)
        sock = socket.socket(family, kind | socket.SOCK_NONBLOCK, protocol)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1 if host else 0)
            if freebind:
                if family == socket.AF_INET6:
                    sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_FREEBIND, 1)
                else:
                    sock.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)
            try:
                sock.bind(address)
                await self._listen(sock, ssl_context, half_close=half_close)
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    raise AlreadyExists(f"port {port} of {host or 'all addresses'} is in use; choose another") from None
                raise Invalid(f"cannot listen on {host}:{port}: {error.strerror}") from error
        except BaseException:
            sock.close()
            raise
        bound = sock.getsockname()
        return bound[0], bound[1]

    async def close(self, grace_s: float = 10.0) -> None:
        """Stop accepting, close idle connections, end live streams; give running requests `grace_s`, then cancel them."""
        hub = self._hub
        hub.closing = True
        for listener in self._listeners:
            listener.close()
        self._listeners.clear()
        for path, inode in self._paths:
            with contextlib.suppress(OSError):
                if os.stat(path).st_ino == inode:
                    os.unlink(path)
        self._paths.clear()
        for connection in list(hub.connections):
            connection.shut()
        await self._emptied(grace_s)
        tasks = [task for connection in list(hub.connections) if (task := connection.cancel()) is not None]
        if tasks:
            await asyncio.wait(tasks, timeout=CLEAN_UP_S)
        for connection in list(hub.connections):
            connection.transport.abort()
        if hub.connections:
            await machine.sleep(0)  # the transports tell their protocols in the next turn
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.wait([self._watch])
            self._watch = None

    async def _emptied(self, grace_s: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with machine.timeout(grace_s):
                await self._hub.wait_empty()

    async def _listen(self, sock: socket.socket, context: ssl.SSLContext | None, *, half_close: bool = False) -> None:
        if self._hub.closing:
            raise Unavailable("the server is closed")
        loop = asyncio.get_running_loop()
        limits = self._hub.limits
        if self._watch is None:
            self._watch = loop.create_task(self._hub.watch(), name="wire: time-outs")
        make = self._make
        if context is None:
            listener = await loop.create_server(make, sock=sock, backlog=BACKLOG)
        elif half_close:
            from wherry.wire.tls import TlsLayer

            layer = partial(TlsLayer, make, context, limits.handshake_s)
            listener = await loop.create_server(layer, sock=sock, backlog=BACKLOG)
        else:
            listener = await loop.create_server(
                make,
                sock=sock,
                backlog=BACKLOG,
                ssl=context,
                ssl_handshake_timeout=limits.handshake_s,
                ssl_shutdown_timeout=limits.linger_s,
            )
        self._listeners.append(listener)

    def _make(self) -> Connection:
        return Connection(self._hub)


def _clear_stale(path: str) -> None:
    """Remove a socket file that nobody listens on."""
    try:
        found = os.stat(path)
    except OSError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise Invalid(f"{path} exists and is not a socket; remove it or choose another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            return
        except OSError:
            pass
    raise AlreadyExists(f"another process serves on {path}; stop it or choose another path")
