"""Published ports: which port of the machine leads to which container, as flat nftables maps.

A port is ours while we listen on it, so other programs and we refuse each other as usual. The kernel leads IPv4
connections past our listener; what it cannot lead (`[::1]`), the listener's relay carries. While no engine runs the
kernel goes on leading, and the next engine takes the listeners up again.
"""

import asyncio
import errno
import logging
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from ipaddress import ip_address

from wherry.errors import Broken, Conflict, Invalid, Unsupported, WherryError
from wherry.host import conntrack
from wherry.host.nftables import Nft
from wherry.network.guard import Guard
from wherry.network.relays import DatagramRelay, Relay
from wherry.network.types import PortBinding, PublishedPort

log = logging.getLogger(__name__)

MAPS: Mapping[str, str] = {
    "published": "map {0} published {{ type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service; }}",
    "everywhere": "map {0} everywhere {{ type inet_proto . inet_service : ipv4_addr . inet_service; }}",
    "gateways": "map {0} gateways {{ type ipv4_addr : ipv4_addr; }}",
    "targets": "set {0} targets {{ type ipv4_addr . inet_proto . inet_service; }}",
    "hairpin": "set {0} hairpin {{ type ipv4_addr . ipv4_addr; }}",
}
"""The maps and sets that carry the ports."""

RULES = (
    "arriving dnat ip to ip daddr . meta l4proto . th dport map @published",
    "arriving fib daddr type local dnat ip to meta l4proto . th dport map @everywhere",
    "own dnat ip to ip daddr . meta l4proto . th dport map @published",
    "own fib daddr type local dnat ip to meta l4proto . th dport map @everywhere",
    # Answers have to come back this way; all others keep their address, whatever the rules for services say later.
    "leaving ct status dnat ip saddr 127.0.0.0/8 snat ip to ip daddr map @gateways",
    "leaving ct status dnat ip saddr . ip daddr @hairpin snat ip to ip daddr map @gateways",
    "leaving ct status dnat ip daddr . meta l4proto . th dport @targets snat ip to ip saddr",
)
_CHAINS = (
    "arriving {0}{{ type nat hook prerouting priority dstnat - 1; }}",
    "own {0}{{ type nat hook output priority -101; }}",
    "leaving {0}{{ type nat hook postrouting priority srcnat - 10; }}",
)
_TRIES = 16
_UDP = 17

Elements = dict[str, dict[str, str]]
Carrier = Relay | DatagramRelay


def table_name(instance: str) -> str:
    """Name the table for published ports."""
    return f"wherry-{instance}-ports"


def frame(instance: str) -> str:
    """Write the table without any port, in place of the one that may be there. Pure."""
    table = f"ip {table_name(instance)}"
    lines = [f"add table {table}", f"delete table {table}", f"add table {table}"]
    lines += [f"add {definition.format(table)}" for definition in MAPS.values()]
    lines += [f"add chain {table} {chain.format('')}" for chain in _CHAINS]
    lines += [f"add rule {table} {rule}" for rule in RULES]
    return "\n".join(lines)


def elements_of(ports: Sequence[PublishedPort]) -> Elements:
    """Say which elements these ports need. Pure."""
    found: Elements = {name: {} for name in MAPS}
    for each in ports:
        target = f"{each.address} . {each.port}"
        if ":" in each.host_address:
            continue  # the relay's alone
        if each.host_address:
            found["published"][f"{each.host_address} . {each.protocol} . {each.host_port}"] = target
        else:
            found["everywhere"][f"{each.protocol} . {each.host_port}"] = target
        found["gateways"][each.address] = each.gateway
        found["targets"][f"{each.address} . {each.protocol} . {each.port}"] = ""
        found["hairpin"][f"{each.address} . {each.address}"] = ""
    return found


def changes(instance: str, old: Elements, new: Elements) -> str:
    """Write the commands that turn `old` into `new`; "" when they are equal. Pure."""
    table = f"ip {table_name(instance)}"
    lines: list[str] = []
    for name in MAPS:
        gone = [key for key, value in old[name].items() if new[name].get(key) != value]
        come = [f"{key} : {value}" if value else key for key, value in new[name].items() if old[name].get(key) != value]
        lines += [f"delete element {table} {name} {{ {', '.join(gone)} }}"] if gone else []
        lines += [f"add element {table} {name} {{ {', '.join(come)} }}"] if come else []
    return "\n".join(lines)


def overlaps(one: str, other: str) -> bool:
    """Say whether two host addresses share a port: "" stands for every address. Pure."""
    return not one or not other or one == other


class Ports:
    """The published ports of one engine, by owner. `start` once those of before are taken up; `close` it at the end.

    `default_address` is where ports without an address of their own are published ("" means on every address).
    """

    def __init__(self, instance: str, nft: Nft, guard: Guard, *, default_address: str = "") -> None:
        self._instance, self._nft, self._guard = instance, nft, guard
        self._default_address = default_address
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
            table = f"ip {table_name(self._instance)}"
            await self._nft.run(f"add table {table}\ndelete table {table}")
            self._held.clear()
            self._in_kernel = None

    def of(self, owner: str) -> Sequence[PublishedPort]:
        """List what an owner has published."""
        return self._held.get(owner, ())

    async def publish(
        self, owner: str, wishes: Sequence[PortBinding], address: str, gateway: str
    ) -> Sequence[PublishedPort]:
        """Publish all or nothing; what the owner had before is given up. Raises Conflict in Docker's words, Invalid."""
        self._release(owner)
        got: list[PublishedPort] = []
        listeners: list[Carrier] = []
        try:
            for wish in wishes:
                port, sockets = self._take(wish, got, address, gateway)
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
        self, wish: PortBinding, also: Sequence[PublishedPort], address: str, gateway: str
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
                    refused = (
                        f"Error starting userland proxy: listen {wish.protocol}4 {host or '0.0.0.0'}:{number}: "
                        "bind: address already in use"
                    )
                    continue
                words = "cannot assign requested address" if error.errno == errno.EADDRNOTAVAIL else str(error)
                raise Invalid(f"listen {wish.protocol} {host}:{number}: bind: {words}") from error
            found = int(sockets[0].getsockname()[1])
            return PublishedPort(wish.protocol, host, found, address, wish.port, gateway, len(sockets) > 1), sockets
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
            commands = changes(self._instance, self._in_kernel, wanted)
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
        empty: Elements = {name: {} for name in MAPS}
        await self._nft.run(f"{frame(self._instance)}\n{changes(self._instance, empty, wanted)}")
        self._in_kernel = wanted

    async def _check(self) -> bool:
        """Put back what somebody took away."""
        async with self._lock:
            wanted = self._in_kernel
            if wanted is None:
                return False
            if await self._count() == (len(RULES), {name: len(pairs) for name, pairs in wanted.items()}):
                return False
            await self._write_anew(wanted)
            return True

    async def _count(self) -> tuple[int, dict[str, int]]:
        """Count the kernel's rules and elements; none when the table is gone."""
        try:
            items = await self._nft.read(f"list table ip {table_name(self._instance)}")
        except Broken as error:
            if "No such file or directory" in error.message:
                return 0, {}
            raise
        sizes: dict[str, int] = {}
        for item in items:
            held = item.get("map") or item.get("set")
            if held is not None:
                sizes[held["name"]] = len(held.get("elem", ()))
        return sum("rule" in item for item in items), sizes

    async def _forget_udp(self, ports: Sequence[PublishedPort]) -> None:
        """Make flows that began before the port led anywhere find their way."""
        numbers = {port.host_port for port in ports if port.protocol == "udp"}
        if numbers:
            await self._nft.call(
                lambda: conntrack.forget(lambda flow: flow.protocol == _UDP and flow.target[1] in numbers)
            )

    async def _forget_gone(self, old: Elements, new: Elements) -> None:
        """Let no UDP flow go on to where a port led before."""
        gone = {key for key in old["targets"] if key not in new["targets"] and " . udp . " in key}
        if gone:
            await self._nft.call(
                lambda: conntrack.forget(
                    lambda flow: flow.protocol == _UDP and f"{flow.answerer[0]} . udp . {flow.answerer[1]}" in gone
                )
            )


def _host_address(text: str) -> str:
    """Read a host address: "" for every one, IPv6 without brackets. Raises Invalid."""
    text = text.strip("[]")
    if text in ("", "0.0.0.0"):
        return ""
    try:
        return str(ip_address(text))
    except ValueError:
        raise Invalid(f"invalid IP address: {text}") from None


def _carriers(port: PublishedPort, sockets: Sequence[socket.socket]) -> list[Carrier]:
    kind = DatagramRelay if port.protocol == "udp" else Relay
    return [kind(each, port.address, port.port) for each in sockets]


def _bind(protocol: str, host: str, number: int) -> list[socket.socket]:
    """Listen on a port of an address ("": of all, both families where there are both). Raises OSError."""
    kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
    if ":" in host:
        return [_listen(socket.AF_INET6, kind, host, number)]
    for attempt in range(_TRIES):
        first = _listen(socket.AF_INET, kind, host or "0.0.0.0", number)
        if host:
            return [first]
        try:
            return [first, _listen(socket.AF_INET6, kind, "::", int(first.getsockname()[1]))]
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
