"""Names that are not ours: asked of the machine's own resolvers, kept for as long as they allow, within a bound."""

import asyncio
import os
import secrets
import struct
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from ipaddress import ip_address

from wherry.clock import machine
from wherry.errors import BadRequest, Unavailable
from wherry.network import dns_wire
from wherry.network.dns_wire import Question

RESOLV_CONF = ("/etc/resolv.conf", "/run/systemd/resolve/resolv.conf")
_KEEP_MOST_S, _DENIAL_MOST_S = 300, 30


@dataclass(frozen=True, slots=True)
class Resolvers:
    """What a machine's resolv.conf says. `servers` are those that pods' questions can go to: no loopback stubs."""

    servers: Sequence[str]
    searches: Sequence[str]
    options: Sequence[str]


@dataclass(frozen=True, slots=True)
class _Kept:
    message: bytes
    places: Sequence[int]
    since: float
    until: float


class Upstream:
    """Asks `servers()` in turn, the one that answered last first. At most `flights` questions are under way.

    `total_s` is less than the 5 s that a container's resolver waits. When nobody has answered anything in that time, further
    questions fail at once for `rest_s`. `port` is 53 but for tests.
    """

    def __init__(
        self,
        servers: Callable[[], Sequence[str]],
        *,
        kept: int = 4096,
        flights: int = 512,
        try_s: float = 2.0,
        total_s: float = 4.0,
        rest_s: float = 1.0,
        port: int = 53,
    ) -> None:
        self._servers, self._port = servers, port
        self._try_s, self._total_s, self._rest_s = try_s, total_s, rest_s
        self._answered, self._resting = 0.0, 0.0
        self._most_kept, self._most_flights = kept, flights
        self._kept: OrderedDict[tuple[str, int, bool, bool], _Kept] = OrderedDict()
        self._flights: dict[tuple[str, int, bool, bool, bool], asyncio.Task[bytes]] = {}
        self._good = ""

    async def ask(self, question: Question, *, tcp: bool = False) -> bytes:
        """Return an answer as it may be sent on. Raises Unavailable when nobody answers in time, or too many ask."""
        key = (question.name, question.kind, question.has_edns, question.wants_dnssec)
        now = machine.monotonic()
        kept = self._kept.get(key)
        if kept is not None and kept.until > now:
            self._kept.move_to_end(key)
            return dns_wire.aged(kept.message, question.id, question, kept.places, int(now - kept.since))
        flight = self._flights.get((*key, tcp))
        if flight is None:
            if now < self._resting:
                raise Unavailable(f"no resolver answers for {question.name}: none did a moment ago")
            if len(self._flights) >= self._most_flights:
                raise Unavailable(f"{len(self._flights)} questions wait for the machine's resolvers already")
            flight = asyncio.create_task(self._fly(question, tcp), name=f"dns {question.name[:60]}")
            self._flights[(*key, tcp)] = flight
            flight.add_done_callback(lambda done: self._landed((*key, tcp), done))
        message = await asyncio.shield(flight)
        return dns_wire.aged(message, question.id, question, (), 0)

    async def close(self) -> None:
        """Give up what is under way."""
        flights = list(self._flights.values())
        for flight in flights:
            flight.cancel()
        await asyncio.gather(*flights, return_exceptions=True)

    def _landed(self, key: tuple[str, int, bool, bool, bool], flight: "asyncio.Task[bytes]") -> None:
        self._flights.pop(key, None)
        if not flight.cancelled():
            flight.exception()  # whoever waited has been told; perhaps nobody waits any more

    async def _fly(self, question: Question, tcp: bool) -> bytes:
        servers = sorted(self._servers(), key=lambda server: server != self._good)
        reasons: list[str] = []
        began = machine.monotonic()
        with suppress(TimeoutError):
            async with machine.timeout(self._total_s):
                for server in [*servers, *servers]:
                    try:
                        async with machine.timeout(self._try_s):
                            message = await self._ask_one(server, question, tcp)
                    except (TimeoutError, OSError, BadRequest, EOFError) as error:
                        reasons.append(f"{server}: {str(error) or 'no answer'}")
                        continue
                    code = message[3] & 0xF
                    if code in (dns_wire.SERVER_FAILURE, dns_wire.REFUSED) and server != servers[-1]:
                        reasons.append(f"{server}: code {code}")
                        continue
                    self._good = server
                    return message
        if self._answered < began:
            self._resting = machine.monotonic() + self._rest_s
        raise Unavailable(f"no resolver answers for {question.name}: {'; '.join(reasons[-3:]) or 'none is configured'}")

    async def _ask_one(self, server: str, question: Question, tcp: bool) -> bytes:
        # A number and a port of our own for each question: answers that somebody made up do not fit.
        mine = replace(question, id=secrets.randbelow(1 << 16))
        query = _query(mine)
        message = await (self._by_tcp if tcp else self._by_udp)(server, query, mine)
        self._answered = machine.monotonic()
        _, keep_s, places = dns_wire.lifetimes(message)
        if keep_s > 0 and not dns_wire.is_truncated(message):
            self._keep(question, message, places, keep_s)
        return message

    def _keep(self, question: Question, message: bytes, places: Sequence[int], keep_s: int) -> None:
        has_answers = message[6:8] != b"\0\0" and message[3] & 0xF == 0
        now = machine.monotonic()
        keep_s = min(keep_s, _KEEP_MOST_S if has_answers else _DENIAL_MOST_S)
        key = (question.name, question.kind, question.has_edns, question.wants_dnssec)
        self._kept[key] = _Kept(message, places, now, now + keep_s)
        self._kept.move_to_end(key)
        while len(self._kept) > self._most_kept:
            self._kept.popitem(last=False)

    async def _by_udp(self, server: str, query: bytes, question: Question) -> bytes:
        loop = asyncio.get_running_loop()
        answered: asyncio.Future[bytes] = loop.create_future()
        transport, _ = await loop.create_datagram_endpoint(
            lambda: _Asker(question, answered), remote_addr=(server, self._port)
        )
        try:
            transport.sendto(query)
            return await answered
        finally:
            transport.close()

    async def _by_tcp(self, server: str, query: bytes, question: Question) -> bytes:
        reader, writer = await asyncio.open_connection(server, self._port)
        try:
            writer.write(struct.pack(">H", len(query)) + query)
            length = int.from_bytes(await reader.readexactly(2), "big")
            message = await reader.readexactly(length)
            if not _fits(message, question):
                raise BadRequest("the answer is to another question")
            return message
        finally:
            writer.close()


class _Asker(asyncio.DatagramProtocol):
    """Waits for the answer that fits the question; others are dropped."""

    def __init__(self, question: Question, answered: "asyncio.Future[bytes]") -> None:
        self._question, self._answered = question, answered

    def datagram_received(self, data: bytes, addr: object) -> None:
        if not self._answered.done() and _fits(data, self._question):
            self._answered.set_result(data)

    def error_received(self, exc: Exception) -> None:
        if not self._answered.done():
            self._answered.set_exception(exc)


def read_resolvers(paths: Sequence[str] = RESOLV_CONF, *, exclude: Sequence[str] = ()) -> Resolvers:
    """Read the first resolv.conf that names a server pods can reach: loopback stubs and `exclude` (us) are left out.

    Search list and options are the first file's. Nothing usable gives no servers: then only our own names are known.
    """
    first: Resolvers | None = None
    for path in paths:
        try:
            with open(path, encoding="utf-8", errors="replace") as file:
                found = parse_resolv_conf(file.read())
        except OSError:
            continue
        usable = [server for server in found.servers if _is_usable(server) and server not in exclude]
        found = replace(found, servers=usable)
        first = first or found
        if usable:
            return replace(first, servers=usable)
    return first or Resolvers((), (), ())


def parse_resolv_conf(text: str) -> Resolvers:
    """Read resolv.conf(5): the last `search` or `domain` counts, and the first three servers."""
    servers: list[str] = []
    searches: list[str] = []
    options: list[str] = []
    for line in text.splitlines():
        words = line.split("#")[0].split(";")[0].split()
        match words:
            case ["nameserver", server, *_]:
                servers.append(server)
            case ["search" | "domain", *names]:
                searches = names
            case ["options", *more]:
                options += more
            case _:
                pass
    return Resolvers(servers[:3], searches, options)


class WatchedResolvers:
    """The machine's resolvers as its files say now: read again when they change."""

    def __init__(self, paths: Sequence[str] = RESOLV_CONF, *, exclude: Sequence[str] = ()) -> None:
        self._paths, self._exclude = paths, exclude
        self._stamp: object = None
        self._servers: Sequence[str] = ()

    def __call__(self) -> Sequence[str]:
        """Return the servers to ask."""
        stamp = tuple(_stamp(path) for path in self._paths)
        if stamp != self._stamp:
            self._stamp = stamp
            self._servers = read_resolvers(self._paths, exclude=self._exclude).servers
        return self._servers


def _stamp(path: str) -> tuple[int, int, int]:
    try:
        found = os.stat(path)
    except OSError:
        return (0, 0, 0)
    return (found.st_ino, found.st_mtime_ns, found.st_size)


def _is_usable(server: str) -> bool:
    try:
        address = ip_address(server.partition("%")[0])
    except ValueError:
        return False
    return not (address.is_loopback or address.is_unspecified or "%" in server)


def _query(question: Question) -> bytes:
    flags = question.flags & 0x110 | 0x100  # recursion is wanted; "checking disabled" is passed on
    head = struct.pack(">HHHHHH", question.id, flags, 1, 0, 0, int(question.has_edns))
    edns = struct.pack(">BHHIH", 0, dns_wire.OPT, dns_wire.EDNS_BYTES, 0x8000 * question.wants_dnssec, 0)
    return head + question.raw + (edns if question.has_edns else b"")


def _fits(message: bytes, question: Question) -> bool:
    """Whether a message is an answer to this very question."""
    if len(message) < 12 + len(question.raw) or not message[2] & 0x80:
        return False
    if int.from_bytes(message[:2], "big") != question.id:
        return False
    try:
        name, at = dns_wire.read_name(message, 12, may_point=False)
    except BadRequest:
        return False
    return name == question.name and message[at : at + 4] == question.raw[-4:]
