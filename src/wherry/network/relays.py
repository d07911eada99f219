"""Connections carried by hand: for a published port what nftables cannot lead, such as `[::1]`.

All others are led by the kernel and pass here only in the second in which somebody has flushed its rules.
"""

import asyncio
import logging
import socket
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, cast

from wherry.clock import machine

log = logging.getLogger(__name__)
MOST_CONNECTIONS = 512
MOST_FLOWS = 256
CONNECT_S = 5.0
FLOW_IDLE_S = 60.0
_PIECE_BYTES = 1 << 16


class Relay:
    """Carries what arrives at one listening socket to a port of `addresses`, the first that answers.

    `close` ends it with its connections.
    """

    def __init__(self, listener: socket.socket, addresses: Sequence[str], port: int) -> None:
        self._listener, self._addresses, self._port = listener, list(addresses), port
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    @property
    def is_six(self) -> bool:
        """Whether it listens on IPv6 addresses."""
        return self._listener.family == socket.AF_INET6

    def lead_to(self, addresses: Sequence[str]) -> None:
        """Carry what is new to other addresses from now on."""
        self._addresses = list(addresses)

    async def start(self) -> None:
        """Begin to listen."""
        self._server = await asyncio.start_server(self._serve, sock=self._listener, limit=_PIECE_BYTES)

    def close(self) -> None:
        """Free the port at once; connections that stand are cut."""
        if self._server is not None:
            self._server.close()
        self._listener.close()
        for task in tuple(self._connections):
            task.cancel()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        for address in self._addresses[:-1]:
            with suppress(OSError):
                return await asyncio.open_connection(address, self._port, limit=_PIECE_BYTES)
        if not self._addresses:
            raise OSError("the container is on no network")
        return await asyncio.open_connection(self._addresses[-1], self._port, limit=_PIECE_BYTES)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = cast("asyncio.Task[None]", asyncio.current_task())
        if len(self._connections) >= MOST_CONNECTIONS:
            writer.transport.abort()
            return
        self._connections.add(task)
        try:
            async with machine.timeout(CONNECT_S):
                far_reader, far_writer = await self._connect()
        except (OSError, TimeoutError) as error:
            log.debug("relay to %s port %d: %s", self._addresses, self._port, error)
            writer.transport.abort()
            self._connections.discard(task)
            return
        except BaseException:
            writer.transport.abort()
            raise
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(_carry(reader, far_writer), name="relay in")
                group.create_task(_carry(far_reader, writer), name="relay out")
        except* OSError:
            pass  # one side was cut: so is the other
        finally:
            self._connections.discard(task)
            for each in (writer, far_writer):
                each.close()


@dataclass(slots=True)
class _Flow:
    channel: socket.socket
    used: float


class DatagramRelay:
    """Carries datagrams from one socket to a port of the first of `addresses`, and the answers back.

    A flow ends when it is silent.
    """

    def __init__(self, listener: socket.socket, addresses: Sequence[str], port: int) -> None:
        self._listener, self._addresses, self._port = listener, list(addresses), port
        self._flows: OrderedDict[Any, _Flow] = OrderedDict()
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def is_six(self) -> bool:
        """Whether it listens on IPv6 addresses."""
        return self._listener.family == socket.AF_INET6

    def lead_to(self, addresses: Sequence[str]) -> None:
        """Carry what is new to other addresses from now on."""
        self._addresses = list(addresses)
        for client in tuple(self._flows):
            self._end(client)

    async def start(self) -> None:
        """Begin to carry."""
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._listener, self._arrived)

    def close(self) -> None:
        """Free the port at once."""
        if self._loop is not None:
            self._loop.remove_reader(self._listener)
        for client in tuple(self._flows):
            self._end(client)
        self._listener.close()

    def _arrived(self) -> None:
        with suppress(OSError):  # nothing there, or it cannot be sent on: a datagram may be lost
            data, client = self._listener.recvfrom(1 << 16)
            self._flow(client).channel.send(data)

    def _flow(self, client: Any) -> _Flow:
        now = machine.monotonic()
        for other, flow in tuple(self._flows.items()):  # the longest silent first
            if now - flow.used < FLOW_IDLE_S and len(self._flows) < MOST_FLOWS:
                break
            self._end(other)
        flow = self._flows.get(client)
        if flow is None:
            if not self._addresses:
                raise OSError("the container is on no network")
            address = self._addresses[0]
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            channel = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
            channel.connect((address, self._port))
            flow = self._flows[client] = _Flow(channel, now)
            asyncio.get_running_loop().add_reader(channel, self._answered, client)
        flow.used = now
        self._flows.move_to_end(client)
        return flow

    def _answered(self, client: Any) -> None:
        try:
            data = self._flows[client].channel.recv(1 << 16)
        except BlockingIOError:
            return
        except OSError:  # nobody listens there
            self._end(client)
            return
        with suppress(OSError):
            self._listener.sendto(data, client)

    def _end(self, client: Any) -> None:
        flow = self._flows.pop(client, None)
        if flow is not None and self._loop is not None:
            self._loop.remove_reader(flow.channel)
            flow.channel.close()


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Copy until the end, and pass the end on."""
    while piece := await reader.read(_PIECE_BYTES):
        writer.write(piece)
        await writer.drain()
    with suppress(OSError):
        writer.write_eof()
