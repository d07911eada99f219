"""The DNS server of a node: its pods' names of services, and the rest of the world by the machine's resolvers."""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from types import TracebackType
from typing import Any, Self, cast

from wherry.clock import machine
from wherry.errors import BadRequest, Unavailable, WherryError
from wherry.host import kernel
from wherry.network import dns_wire
from wherry.network.dns_wire import Question
from wherry.network.upstream import Upstream, WatchedResolvers
from wherry.network.zone import DnsEndpoint, DnsPort, DnsService, Zone

__all__ = ["DnsEndpoint", "DnsPort", "DnsServer", "DnsService", "Zone"]
log = logging.getLogger(__name__)
_TCP_CLIENTS, _TCP_IDLE_S, _UDP_WAITING, _OTHERS = 64, 10.0, 1024, 64


class DnsServer:
    """Answers on `addresses` by UDP and TCP. A context manager: entering it binds, leaving it stops.

    Names below the zone's domain are never asked of anybody else. `upstreams` None means the machine's resolv.conf,
    followed when it changes. `zone_of` gives each client, by its address, the names that it may know; without it all
    know `zone`. Raises Broken when an address cannot be bound.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        *,
        port: int = 53,
        zone: Zone | None = None,
        zone_of: Callable[[str], Zone] | None = None,
        upstreams: Sequence[str] | None = None,
        upstream_port: int = 53,
    ) -> None:
        self.zone = zone or Zone()
        self._zone_of = zone_of or (lambda client: self.zone)
        self.port = port
        self._addresses = list(addresses)
        servers = WatchedResolvers(exclude=self._addresses) if upstreams is None else lambda: upstreams
        self._upstream = Upstream(servers, port=upstream_port)
        self._upstream_port = upstream_port
        self._others: OrderedDict[tuple[str, ...], Upstream] = OrderedDict()
        self._stack = AsyncExitStack()
        self._waiting: set[asyncio.Task[None]] = set()
        self._clients: set[asyncio.Task[None]] = set()
        self._failing = False

    def sync(self, services: Iterable[DnsService], hosts: Mapping[str, Sequence[str]] | None = None) -> None:
        """Serve the names of exactly these services (and hosts) from now on."""
        self.zone.sync(services, hosts)

    async def __aenter__(self) -> Self:
        try:
            for address in self._addresses:
                await self._listen(address)
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self._stack.aclose()
        tasks = [*self._waiting, *self._clients]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for each in (self._upstream, *self._others.values()):
            await each.close()

    async def _listen(self, address: str) -> None:
        loop = asyncio.get_running_loop()
        try:
            server = await asyncio.start_server(self._serve_tcp, address, self.port, backlog=64)
            self._stack.callback(server.close)
            self.port = int(server.sockets[0].getsockname()[1])  # 0 means any free one
            transport, _ = await loop.create_datagram_endpoint(lambda: _Udp(self), local_addr=(address, self.port))
            self._stack.callback(transport.close)
        except OSError as error:
            raise kernel.refused(f"listen for DNS on {address} port {self.port}", error.errno or 0) from error

    def from_udp(self, data: bytes, client: Any, transport: asyncio.DatagramTransport) -> None:
        """Answer a datagram: our own names at once, others in a task; past the bound they are refused."""
        zone = self._zone_of(str(client[0]))
        known = self._answer_here(data, zone, udp=True)
        if isinstance(known, bytes):
            if known:
                transport.sendto(known, client)
            return
        if len(self._waiting) >= _UDP_WAITING:
            transport.sendto(_failure(known), client)
            return

        async def wait() -> None:
            message = await self._ask_others(known, zone, udp=True)
            if not transport.is_closing():
                transport.sendto(message, client)

        task = asyncio.create_task(wait(), name="dns answer")
        self._waiting.add(task)
        task.add_done_callback(self._waiting.discard)

    def _answer_here(self, data: bytes, zone: Zone, *, udp: bool) -> bytes | Question:
        """Answer from the zone; b"" for what deserves no answer; the question itself when others have to be asked."""
        if dns_wire.opcode(data) != 0:
            return dns_wire.refusal(data, dns_wire.NOT_IMPLEMENTED)
        try:
            question = dns_wire.parse(data)
        except BadRequest as error:
            code = dns_wire.REFUSED if "class" in error.message else dns_wire.FORMAT_ERROR
            return dns_wire.refusal(data, code)
        found = zone.lookup(question.name, question.kind)
        if found is None or found.follow:
            return question
        limit = question.room_bytes if udp else 65535
        authority = () if found.records else zone.denial(question.name)
        return dns_wire.answer(
            question,
            found.records,
            code=found.code,
            authority=authority,
            additional=found.additional,
            limit_bytes=limit,
        )

    async def _ask_others(self, question: Question, zone: Zone, *, udp: bool) -> bytes:
        """Forward a question; for another name of something outside, answer with that name and what it leads to."""
        try:
            found = zone.lookup(question.name, question.kind)
            if found is not None and found.follow:
                return await self._follow(question, found.follow, zone, udp=udp)
            message = await self._upstream_of(zone).ask(question, tcp=not udp)
            self._failing = False
            if udp and len(message) > question.room_bytes:
                return dns_wire.answer(question, [_too_long(question)], authoritative=False, limit_bytes=64)
            return message
        except Unavailable as error:
            if not self._failing:
                log.warning("dns: %s", error)
            self._failing = True
            return _failure(question)
        except WherryError as error:
            log.debug("dns: %s", error)
            return _failure(question)

    def _upstream_of(self, zone: Zone) -> Upstream:
        """Find whom to ask for a zone's clients. What others said is kept apart."""
        if not zone.servers:
            return self._upstream
        servers = tuple(zone.servers)
        if servers not in self._others:
            while len(self._others) >= _OTHERS:
                self._others.popitem(last=False)  # what is under way there goes on
            self._others[servers] = Upstream(lambda: servers, port=self._upstream_port)
        self._others.move_to_end(servers)
        return self._others[servers]

    async def _follow(self, question: Question, target: str, zone: Zone, *, udp: bool) -> bytes:
        """Answer CNAME `target` and, as far as we get them, the target's own records."""
        alias = dns_wire.cname(question.name, target, 5)
        records = [alias]
        inner = dns_wire.parse(_question_bytes(target, question.kind))
        own = zone.lookup(target, question.kind)
        if own is not None:
            records += own.records
        else:
            with suppress(Unavailable):
                message = await self._upstream_of(zone).ask(inner)
                records += dns_wire.answers(message, question.kind)
        limit = question.room_bytes if udp else 65535
        return dns_wire.answer(question, records, limit_bytes=limit)

    async def _serve_tcp(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = cast("asyncio.Task[None]", asyncio.current_task())
        if len(self._clients) >= _TCP_CLIENTS:
            writer.close()
            return
        self._clients.add(task)
        zone = self._zone_of(str(writer.get_extra_info("peername")[0]))
        try:
            while True:
                async with machine.timeout(_TCP_IDLE_S):
                    length = int.from_bytes(await reader.readexactly(2), "big")
                    data = await reader.readexactly(length)
                    known = self._answer_here(data, zone, udp=False)
                    message = known if isinstance(known, bytes) else await self._ask_others(known, zone, udp=False)
                    if not message:
                        return
                    writer.write(len(message).to_bytes(2, "big") + message)
                    await writer.drain()
        except (TimeoutError, OSError, asyncio.IncompleteReadError):
            return
        finally:
            self._clients.discard(task)
            writer.close()


class _Udp(asyncio.DatagramProtocol):
    def __init__(self, server: DnsServer) -> None:
        self._server = server
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: Any) -> None:
        if self._transport is not None:
            self._server.from_udp(data, addr, self._transport)


def _failure(question: Question) -> bytes:
    return dns_wire.answer(question, code=dns_wire.SERVER_FAILURE, authoritative=False)


def _too_long(question: Question) -> dns_wire.Record:
    """A record that fits nowhere: its answer says no more than "ask by TCP"."""
    return dns_wire.Record(question.name, question.kind, 0, bytes(200))


def _question_bytes(name: str, kind: int) -> bytes:
    head = (0).to_bytes(2, "big") + b"\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00"
    return head + dns_wire.encode_name(name) + kind.to_bytes(2, "big") + b"\x00\x01"
