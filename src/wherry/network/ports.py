"""Published ports: which port of the machine leads to which container, as flat nftables maps.

A port is ours while we listen on it, so other programs and we refuse each other as usual. The kernel leads connections
past our listener; what it cannot lead (`[::1]`, and IPv6 to a container that has none), the listener's relay carries.
While no engine runs the kernel goes on leading, and the next engine takes the listeners up again.
"""

import asyncio
import errno
import logging
import socket
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from ipaddress import ip_address

from wherry.errors import Broken, Conflict, Invalid, Unsupported, WherryError
from wherry.host import conntrack
from wherry.host.nftables import Nft
from wherry.network import port_rules
from wherry.network.guard import Guard
from wherry.network.port_rules import ANY4, ANY6, FAMILIES, RULES, Elements, elements_of, overlaps, table_name
from wherry.network.relays import DatagramRelay, Relay
from wherry.network.types import PortBinding, PortTarget, PublishedPort

log = logging.getLogger(__name__)

_TRIES = 16
_UDP = 17

Carrier = Relay | DatagramRelay


class Ports:
    """The published ports of one engine, by owner. `start` once those of before are taken up; `close` it at the end.

    `default_address` is where ports without an address of their own are published ("" means on every address).
    """

    def __init__(self, instance: str, nft: Nft, guard: Guard, *, default_address: str = "") -> None:
        self._instance, self._nft, self._guard = instance, nft, guard
        self._default_address = "" if default_address == ANY4 else default_address
        self._held: dict[str, Sequence[PublishedPort]] = {}
        self._listeners: dict[str, list[Carrier]] = {}
        self._in_kernel: Elements | None = None
        self._lock = asyncio.Lock()
        self._behind: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Make the kernel's table equal to the ports that were taken up, and look after it."""
        await self._sync()
        self._guard.add("ports", self._check)

    async def close(self, *, remove: bool = False) -> None:
        """Let go of the listeners; with `remove` take the rules away too."""
        self._guard.drop("ports")
        await self.settled()
        for owner in tuple(self._listeners):
            self._free(owner)
        if remove:
            for family in FAMILIES:
                table = f"{family} {table_name(self._instance)}"
                await self._nft.run(f"add table {table}\ndelete table {table}")
            self._held.clear()
            self._in_kernel = None

    def of(self, owner: str) -> Sequence[PublishedPort]:
        """List what an owner has published."""
        return self._held.get(owner, ())

    async def publish(self, owner: str, wishes: Sequence[PortBinding], target: PortTarget) -> Sequence[PublishedPort]:
        """Publish all or nothing; what the owner had before is given up. Raises Conflict in Docker's words, Invalid."""
        self._release(owner)
        got: list[PublishedPort] = []
        listeners: list[Carrier] = []
        try:
            for wish in wishes:
                port, sockets = self._take(wish, got, target)
                got.append(port)
                listeners += _carriers(port, sockets)
            for each in listeners:
                await each.start()
        except BaseException:
            for each in listeners:
                each.close()
            raise
        await self._hold(owner, got, listeners)
        return got

    async def retarget(self, owner: str, target: PortTarget) -> Sequence[PublishedPort]:
        """Lead an owner's ports to another place from now on; return them."""
        ports = [_aimed(each, target) for each in self._held.get(owner, ())]
        if not ports or list(self._held[owner]) == ports:
            return ports
        self._held[owner] = tuple(ports)
        for each in self._listeners.get(owner, ()):
            each.lead_to(_relayed_to(target, six=each.is_six))
        await self._sync()
        await self._forget_udp(ports)
        return ports

    async def adopt(self, owner: str, ports: Sequence[PublishedPort]) -> None:
        """Take up what an engine before us has published, before `start`; a port that somebody else listens on is kept."""
        listeners: list[Carrier] = []
        for port in ports:
            try:
                sockets = _bind(port.protocol, port.host_address, port.host_port)
            except OSError as error:
                log.warning("port %d is led to a container, but cannot be listened on: %s", port.host_port, error)
                continue
            carriers = _carriers(port, sockets)
            for each in carriers:
                await each.start()
            listeners += carriers
        self._held[owner] = tuple(ports)
        self._listeners[owner] = listeners

    def unpublish(self, owner: str) -> None:
        """Give an owner's ports back: free for others on return, the kernel's rules go behind."""
        if not self._release(owner):
            return
        task = asyncio.create_task(self._sync_behind(), name="unpublish ports")
        self._behind.add(task)
        task.add_done_callback(self._behind.discard)

    async def settled(self) -> None:
        """Wait until the rules of what was given back are gone."""
        await asyncio.gather(*self._behind, return_exceptions=True)

    # inside -----------------------------------------------------------------------------------------------------------
    async def _hold(self, owner: str, ports: Sequence[PublishedPort], listeners: list[Carrier]) -> None:
        self._held[owner] = tuple(ports)
        self._listeners[owner] = listeners
        try:
            await self._sync()
            await self._forget_udp(ports)
        except BaseException:
            self.unpublish(owner)
            raise

    def _release(self, owner: str) -> bool:
        self._free(owner)
        return bool(self._held.pop(owner, ()))

    def _free(self, owner: str) -> None:
        for each in self._listeners.pop(owner, ()):
            each.close()

    def _take(
        self, wish: PortBinding, also: Sequence[PublishedPort], target: PortTarget
    ) -> tuple[PublishedPort, list[socket.socket]]:
        """Choose a port and listen on it."""
        if wish.protocol not in ("tcp", "udp"):
            raise Unsupported(f"port {wish.port}/{wish.protocol}: only tcp and udp can be published")
        host = _host_address(wish.host_address or self._default_address)
        taken = [each for ports in (*self._held.values(), also) for each in ports]
        numbers = range(wish.host_first, max(wish.host_first, wish.host_last) + 1) if wish.host_first else [0] * _TRIES
        refused = ""
        for number in numbers:
            if number and any(
                (each.protocol, each.host_port) == (wish.protocol, number) and overlaps(each.host_address, host)
                for each in taken
            ):
                refused = f"Bind for {host or '0.0.0.0'}:{number} failed: port is already allocated"
                continue
            try:
                sockets = _bind(wish.protocol, host, number)
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    kind = f"{wish.protocol}{6 if ':' in host else 4}"
                    place = f"listen {kind} {host or ANY4}:{number}"
                    refused = f"Error starting userland proxy: {place}: bind: address already in use"
                    continue
                words = "cannot assign requested address" if error.errno == errno.EADDRNOTAVAIL else str(error)
                raise Invalid(f"listen {wish.protocol} {host}:{number}: bind: {words}") from error
            found = int(sockets[0].getsockname()[1])
            port = PublishedPort(wish.protocol, host, found, "", wish.port, "", len(sockets) > 1)
            return _aimed(port, target), sockets
        raise Conflict(refused)

    async def _sync_behind(self) -> None:
        with suppress(WherryError):  # the guard tries again
            await self._sync()

    async def _sync(self) -> None:
        async with self._lock:
            wanted = elements_of([port for ports in self._held.values() for port in ports])
            if self._in_kernel is None:
                await self._write_anew(wanted)
                return
            commands = port_rules.changes(self._instance, self._in_kernel, wanted)
            if not commands:
                return
            before = self._in_kernel
            try:
                async with self._guard.own_change():
                    await self._nft.run(commands)
            except Broken as error:
                log.info("the table of ports was changed by somebody else, so it is written anew: %s", error.message)
                await self._write_anew(wanted)
            self._in_kernel = wanted
            await self._forget_gone(before, wanted)

    async def _write_anew(self, wanted: Elements) -> None:
        await self._nft.run(port_rules.anew(self._instance, wanted))
        self._in_kernel = wanted

    async def _check(self) -> bool:
        """Put back what somebody took away."""
        async with self._lock:
            wanted = self._in_kernel
            if wanted is None:
                return False
            families = [family for family in FAMILIES if port_rules.has(wanted, family)]
            rules = sum(len(RULES[family]) for family in families)
            sizes = {name: len(pairs) for name, pairs in wanted.items() if port_rules.MAPS[name] in families}
            if await self._count(families) == (rules, sizes):
                return False
            await self._write_anew(wanted)
            return True

    async def _count(self, families: Sequence[str]) -> tuple[int, dict[str, int]]:
        """Count the kernel's rules and elements; none when a table is gone."""
        rules, sizes = 0, dict[str, int]()
        for family in families:
            try:
                items = await self._nft.read(f"list table {family} {table_name(self._instance)}")
            except Broken as error:
                if "No such file or directory" in error.message:
                    return 0, {}
                raise
            for item in items:
                held = item.get("map") or item.get("set")
                if held is not None:
                    sizes[held["name"]] = len(held.get("elem", ()))
            rules += sum("rule" in item for item in items)
        return rules, sizes

    async def _forget_udp(self, ports: Sequence[PublishedPort]) -> None:
        """Make flows that began before the port led anywhere find their way."""
        numbers = {port.host_port for port in ports if port.protocol == "udp"}
        if numbers:
            await self._nft.call(
                lambda: conntrack.forget(lambda flow: flow.protocol == _UDP and flow.target[1] in numbers)
            )

    async def _forget_gone(self, old: Elements, new: Elements) -> None:
        """Let no UDP flow go on to where a port led before."""
        gone = {
            key for name in ("targets", "targets6") for key in old[name] if key not in new[name] and " . udp . " in key
        }
        if gone:
            await self._nft.call(
                lambda: conntrack.forget(
                    lambda flow: flow.protocol == _UDP and f"{flow.answerer[0]} . udp . {flow.answerer[1]}" in gone
                )
            )


def _host_address(text: str) -> str:
    """Read a host address: "" for every one, IPv6 without brackets. Raises Invalid."""
    text = text.strip("[]")
    if not text:
        return ""
    try:
        return str(ip_address(text))
    except ValueError:
        raise Invalid(f"invalid IP address: {text}") from None


def _aimed(port: PublishedPort, target: PortTarget) -> PublishedPort:
    return replace(
        port, address=target.address, gateway=target.gateway, address6=target.address6, gateway6=target.gateway6
    )  # fmt: skip


def _relayed_to(target: PortTarget | PublishedPort, *, six: bool) -> list[str]:
    """Name the addresses that a relay tries, in order."""
    return [each for each in (target.address6 if six else "", target.address) if each]


def _carriers(port: PublishedPort, sockets: Sequence[socket.socket]) -> list[Carrier]:
    kind = DatagramRelay if port.protocol == "udp" else Relay
    return [kind(each, _relayed_to(port, six=each.family == socket.AF_INET6), port.port) for each in sockets]


def _bind(protocol: str, host: str, number: int) -> list[socket.socket]:
    """Listen on a port of an address ("": of all, both families where there are both). Raises OSError."""
    kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
    if host:
        return [_listen(socket.AF_INET6 if ":" in host else socket.AF_INET, kind, host, number)]
    for attempt in range(_TRIES):
        first = _listen(socket.AF_INET, kind, ANY4, number)
        try:
            return [first, _listen(socket.AF_INET6, kind, ANY6, int(first.getsockname()[1]))]
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                return [first]  # a machine without IPv6
            first.close()
            if number or attempt == _TRIES - 1:
                raise
    raise OSError(errno.EADDRINUSE, "no port is free")


def _listen(family: socket.AddressFamily, kind: socket.SocketKind, host: str, number: int) -> socket.socket:
    made = socket.socket(family, kind | socket.SOCK_CLOEXEC)
    try:
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if kind == socket.SOCK_STREAM:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((host, number))
        if kind == socket.SOCK_STREAM:
            made.listen(128)
        made.setblocking(False)
    except BaseException:
        made.close()
        raise
    return made
