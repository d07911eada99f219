"""Links, addresses, routes and neighbours by raw rtnetlink: many requests in one system call.

A request is a value (`Request`), made by a pure function; `Netlink.send` sends many and reads all answers. A socket
belongs to the network namespace of the thread that opened it (see `namespaces.inside`).
"""

import errno
import os
import socket
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
    ip_address,
    ip_interface,
    ip_network,
)
from types import TracebackType
from typing import Self

from wherry.errors import Broken
from wherry.host import kernel

IFF_UP = 1
_REQUEST, _ACK, _DUMP, _REPLACE, _EXCL, _CREATE = 1, 4, 0x300, 0x100, 0x200, 0x400
_ERROR, _DONE = 2, 3
_NEWLINK, _DELLINK, _GETLINK, _SETLINK = 16, 17, 18, 19
_NEWADDR, _DELADDR, _GETADDR = 20, 21, 22
_NEWROUTE, _DELROUTE, _GETROUTE = 24, 25, 26
_NEWNEIGH = 28
_NESTED = 0x8000
_UNIVERSE, _LINK_SCOPE = 0, 253
_MAIN_TABLE, _LOCAL_TABLE, _PROTOCOL_STATIC, _ONLINK = 254, 255, 4, 4
_PERMANENT = 0x80
_NO_DETECTION = 2
"""An IPv6 address that is ours for sure: it may be used at once."""
_HAIRPIN, _ISOLATED = 4, 33
_LAST_METRIC = 0x7FFF0000
_BATCH_BYTES, _READ_BYTES = 60_000, 1 << 18


@dataclass(frozen=True, slots=True)
class Request:
    """One message to the kernel. An answer in `ignore` (errnos) counts as done."""

    what: str
    kind: int
    flags: int
    body: bytes
    ignore: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Link:
    """A network interface. `master` is the index of its bridge or 0; `kind` is "veth", "bridge", ... or ""."""

    index: int
    name: str
    is_up: bool
    kind: str
    mac: str
    master: int
    mtu: int
    alias: str


@dataclass(frozen=True, slots=True)
class Address:
    """An IPv4 address of a link."""

    index: int
    interface: IPv4Interface


@dataclass(frozen=True, slots=True)
class Address6:
    """An IPv6 address of a link."""

    index: int
    interface: IPv6Interface


@dataclass(frozen=True, slots=True)
class Route:
    """An IPv4 route of the main table. `gateway` and `source` may be None, `index` 0 (no link, or several)."""

    destination: IPv4Network
    gateway: IPv4Address | None
    index: int
    source: IPv4Address | None
    scope: int
    protocol: int
    is_unreachable: bool = False


class Netlink:
    """A socket to the kernel's network of one namespace. Not for several threads at once. A context manager."""

    def __init__(self) -> None:
        try:
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
            self._socket.settimeout(10.0)
            self._socket.bind((0, 0))
        except OSError as error:
            raise kernel.refused("open a netlink socket", error.errno or 0) from error
        self._sequence = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def send(self, requests: Sequence[Request]) -> None:
        """Have the requests done, in order. Raises Broken for the first that failed; later ones were still tried."""
        waiting: dict[int, Request] = {}
        batch = bytearray()
        for request in requests:
            message = self._message(request.kind, request.flags | _ACK, request.body)
            if batch and len(batch) + len(message) > _BATCH_BYTES:
                self._flush(batch, waiting)
            waiting[self._sequence] = request
            batch += message
        if batch:
            self._flush(batch, waiting)

    def links(self) -> list[Link]:
        """List the links."""
        return [_read_link(body) for body in self._dump(_GETLINK, _NEWLINK, struct.pack("=BxHiII", 0, 0, 0, 0, 0))]

    def link(self, name: str) -> Link | None:
        """Find a link by name."""
        body = struct.pack("=BxHiII", 0, 0, 0, 0, 0) + _text(3, name)
        try:
            for answer in self._ask(f"find link {name}", _GETLINK, _NEWLINK, body):
                return _read_link(answer)
        except Broken as error:
            if kernel.errno_of(error) != errno.ENODEV:
                raise
        return None

    def addresses(self) -> list[Address]:
        """List the IPv4 addresses."""
        found: list[Address] = []
        for body in self._dump(_GETADDR, _NEWADDR, struct.pack("=BBBBI", socket.AF_INET, 0, 0, 0, 0)):
            family, length, _flags, _scope, index = struct.unpack_from("=BBBBI", body)
            attributes = dict(_attributes(body, 8))
            local = attributes.get(2) or attributes.get(1)
            if family == socket.AF_INET and local is not None:
                found.append(Address(index, IPv4Interface((local, length))))
        return found

    def addresses6(self) -> list[Address6]:
        """List the IPv6 addresses."""
        found: list[Address6] = []
        for body in self._dump(_GETADDR, _NEWADDR, struct.pack("=BBBBI", socket.AF_INET6, 0, 0, 0, 0)):
            family, length, _flags, _scope, index = struct.unpack_from("=BBBBI", body)
            attributes = dict(_attributes(body, 8))
            local = attributes.get(2) or attributes.get(1)
            if family == socket.AF_INET6 and local is not None:
                found.append(Address6(index, IPv6Interface((local, length))))
        return found

    def networks6(self) -> list[IPv6Network]:
        """List the destinations of the IPv6 routes of the main table, without those of each link to itself."""
        found: list[IPv6Network] = []
        for body in self._dump(_GETROUTE, _NEWROUTE, struct.pack("=BBBBBBBBI", socket.AF_INET6, *[0] * 8)):
            family, length, _, _, table, *_ = struct.unpack_from("=BBBBBBBBI", body)
            attributes = dict(_attributes(body, 12))
            if 15 in attributes:
                table = struct.unpack("=I", attributes[15])[0]
            network = IPv6Network((attributes.get(1, bytes(16)), length))
            if family == socket.AF_INET6 and table == _MAIN_TABLE and not network.is_link_local:
                found.append(network)
        return found

    def routes(self) -> list[Route]:
        """List the IPv4 routes of the main table."""
        found: list[Route] = []
        for body in self._dump(_GETROUTE, _NEWROUTE, struct.pack("=BBBBBBBBI", socket.AF_INET, *[0] * 8)):
            family, length, _, _, table, protocol, scope, kind, _ = struct.unpack_from("=BBBBBBBBI", body)
            attributes = dict(_attributes(body, 12))
            if 15 in attributes:
                table = struct.unpack("=I", attributes[15])[0]
            if family != socket.AF_INET or table != _MAIN_TABLE:
                continue
            gateway, source = attributes.get(5), attributes.get(7)
            found.append(
                Route(
                    destination=IPv4Network((attributes.get(1, bytes(4)), length)),
                    gateway=IPv4Address(gateway) if gateway else None,
                    index=struct.unpack("=I", attributes[4])[0] if 4 in attributes else 0,
                    source=IPv4Address(source) if source else None,
                    scope=scope,
                    protocol=protocol,
                    is_unreachable=kind == 7,
                )
            )
        return found

    def _message(self, kind: int, flags: int, body: bytes) -> bytes:
        self._sequence += 1
        return struct.pack("=IHHII", 16 + len(body), kind, flags | _REQUEST, self._sequence, 0) + body

    def _flush(self, batch: bytearray, waiting: dict[int, Request]) -> None:
        first: Broken | None = None
        try:
            self._socket.send(batch)
            batch.clear()
            while waiting:
                for _kind, sequence, body in self._read():
                    request = waiting.pop(sequence, None)
                    if request is None or _kind != _ERROR:
                        continue
                    number = -struct.unpack_from("=i", body)[0]
                    if number and number not in request.ignore and first is None:
                        first = kernel.refused(request.what, number)
        except OSError as error:
            raise kernel.refused("ask the kernel by netlink", error.errno or errno.ETIMEDOUT) from error
        if first is not None:
            raise first

    def _dump(self, kind: int, answer: int, body: bytes) -> Iterator[bytes]:
        return self._ask("list by netlink", kind, answer, body, flags=_DUMP)

    def _ask(self, what: str, kind: int, answer: int, body: bytes, flags: int = 0) -> Iterator[bytes]:
        """Yield the answers to one question; a dump that changed underway may miss or repeat an item."""
        found: list[bytes] = []
        try:
            self._socket.send(self._message(kind, flags, body))
            asked, open_ended = self._sequence, True
            while open_ended:
                for got, sequence, data in self._read():
                    if sequence != asked:
                        continue
                    if got == _DONE:
                        open_ended = False
                    elif got == _ERROR:
                        number = -struct.unpack_from("=i", data)[0]
                        if number:
                            raise kernel.refused(what, number)
                        open_ended = False
                    elif got == answer:
                        found.append(data)
                        open_ended = flags & _DUMP == _DUMP
        except OSError as error:
            raise kernel.refused(what, error.errno or errno.ETIMEDOUT) from error
        return iter(found)

    def _read(self) -> Iterator[tuple[int, int, bytes]]:
        data = self._socket.recv(_READ_BYTES)
        at = 0
        while at + 16 <= len(data):
            length, kind, _flags, sequence, _ = struct.unpack_from("=IHHII", data, at)
            if length < 16:
                raise Broken("netlink: a message that is too short")
            yield kind, sequence, data[at + 16 : at + length]
            at += (length + 3) & ~3


def add_veth(
    name: str, *, mac: str, peer: str, peer_mac: str, peer_netns_fd: int, mtu: int = 0, alias: str = ""
) -> Request:
    """Make a pair of links: `name` here, up, and `peer`, still down, in the namespace behind the descriptor."""
    common = _attribute(4, struct.pack("=I", mtu)) if mtu else b""
    # The kernel refuses (ENOTCONN) to make the other end up: it has no peer yet at that moment.
    other = struct.pack("=BxHiII", 0, 0, 0, 0, 0) + _text(3, peer) + _attribute(1, _mac(peer_mac)) + common
    other += _attribute(28, struct.pack("=i", peer_netns_fd))
    info = _text(1, "veth") + _attribute(2 | _NESTED, _attribute(1 | _NESTED, other))
    body = struct.pack("=BxHiII", 0, 0, 0, IFF_UP, IFF_UP) + _text(3, name) + _attribute(1, _mac(mac)) + common
    body += _attribute(18 | _NESTED, info)
    return Request(f"make veth {name}", _NEWLINK, _CREATE | _EXCL, body)


def add_bridge(name: str, *, mac: str = "") -> Request:
    """Make a bridge, up; it stays as it is where there is one already. Without ports it serves to hold addresses."""
    body = struct.pack("=BxHiII", 0, 0, 0, IFF_UP, IFF_UP) + _text(3, name)
    body += (_attribute(1, _mac(mac)) if mac else b"") + _attribute(18 | _NESTED, _text(1, "bridge"))
    return Request(f"make bridge {name}", _NEWLINK, _CREATE | _EXCL, body, frozenset({errno.EEXIST}))


def add_dummy(name: str) -> Request:
    """Make a dummy link, up. Not every kernel has them (EOPNOTSUPP)."""
    body = struct.pack("=BxHiII", 0, 0, 0, IFF_UP, IFF_UP) + _text(3, name)
    return Request(f"make link {name}", _NEWLINK, _CREATE | _EXCL, body + _attribute(18 | _NESTED, _text(1, "dummy")))


def set_link(name: str, *, up: bool | None = None, master: int | None = None, alias: str | None = None) -> Request:
    """Change a link: up or down, into the bridge with index `master` (0: out of it), its remark for people."""
    change, flags = (0, 0) if up is None else (IFF_UP, IFF_UP if up else 0)
    body = struct.pack("=BxHiII", 0, 0, 0, flags, change) + _text(3, name)
    if master is not None:
        body += _attribute(10, struct.pack("=I", master))
    if alias is not None:
        body += _text(20, alias)
    return Request(f"change link {name}", _SETLINK, 0, body)


def set_bridge_port(name: str, *, isolated: bool = False) -> Request:
    """Let a bridge send frames back by the port `name` that they came from; `isolated`: to no other isolated port."""
    body = struct.pack("=BxHiII", socket.AF_BRIDGE, 0, index_of(name), 0, 0)
    settings = _attribute(_HAIRPIN, b"\1") + _attribute(_ISOLATED, bytes([isolated]))
    return Request(f"set up bridge port {name}", _SETLINK, 0, body + _attribute(12 | _NESTED, settings))


def delete_link(name: str) -> Request:
    """Remove a link (a veth with its other end); fine when it is not there. Waits for RCU: tens of milliseconds."""
    body = struct.pack("=BxHiII", 0, 0, 0, 0, 0) + _text(3, name)
    return Request(f"remove link {name}", _DELLINK, 0, body, frozenset({errno.ENODEV}))


def add_address(index: int, interface: str) -> Request:
    """Give a link an address such as `10.64.0.1/24` or `fd00::1/64`; fine when it has it."""
    value = ip_interface(interface)
    flags = _NO_DETECTION if value.version == 6 else 0
    body = struct.pack("=BBBBI", _family(value), value.network.prefixlen, flags, _UNIVERSE, index)
    body += _attribute(2, value.ip.packed) + _attribute(1, value.ip.packed)
    return Request(f"add address {interface}", _NEWADDR, _CREATE | _REPLACE, body)


def delete_address(index: int, interface: str) -> Request:
    """Take an address from a link; fine when it is not there."""
    value = ip_interface(interface)
    body = struct.pack("=BBBBI", _family(value), value.network.prefixlen, 0, 0, index) + _attribute(2, value.ip.packed)
    return Request(f"remove address {interface}", _DELADDR, 0, body, frozenset({errno.EADDRNOTAVAIL, errno.ENODEV}))


def add_unreachable(destination: str) -> Request:
    """Refuse at once (EHOSTUNREACH) what goes to a network and has no better route."""
    network = IPv4Network(destination)
    body = struct.pack("=BBBBBBBBI", socket.AF_INET, network.prefixlen, 0, 0, _MAIN_TABLE, _PROTOCOL_STATIC, 0, 7, 0)
    body += _attribute(1, network.network_address.packed) + _attribute(6, struct.pack("=I", _LAST_METRIC))
    return Request(f"make {destination} unreachable", _NEWROUTE, _CREATE | _REPLACE, body)


def delete_unreachable(destination: str) -> Request:
    """Take back what `add_unreachable` did; fine when it was not there."""
    network = IPv4Network(destination)
    body = struct.pack("=BBBBBBBBI", socket.AF_INET, network.prefixlen, 0, 0, _MAIN_TABLE, 0, 0, 7, 0)
    body += _attribute(1, network.network_address.packed) + _attribute(6, struct.pack("=I", _LAST_METRIC))
    return Request(f"remove route to {destination}", _DELROUTE, 0, body, frozenset({errno.ESRCH}))


def add_route(destination: str, index: int, *, gateway: str = "", source: str = "", onlink: bool = False) -> Request:
    """Set the route to a network over a link, in place of an equal one. `onlink`: the gateway needs no route itself."""
    network = ip_network(destination)
    scope = _UNIVERSE if gateway or network.version == 6 else _LINK_SCOPE
    flags = _ONLINK if onlink else 0
    body = struct.pack(
        "=BBBBBBBBI", _family(network), network.prefixlen, 0, 0, _MAIN_TABLE, _PROTOCOL_STATIC, scope, 1, flags
    )
    body += _attribute(1, network.network_address.packed) + _attribute(4, struct.pack("=I", index))
    if gateway:
        body += _attribute(5, ip_address(gateway).packed)
    if source:
        body += _attribute(7, ip_address(source).packed)
    return Request(f"add route to {destination}", _NEWROUTE, _CREATE | _REPLACE, body)


def delete_route(destination: str, *, index: int = 0) -> Request:
    """Remove the route to a network (over a link); fine when there is none."""
    network = ip_network(destination)
    scope = _UNIVERSE if network.version == 6 else 255
    body = struct.pack("=BBBBBBBBI", _family(network), network.prefixlen, 0, 0, _MAIN_TABLE, 0, scope, 0, 0)
    body += _attribute(1, network.network_address.packed)
    if index:
        body += _attribute(4, struct.pack("=I", index))
    return Request(f"remove route to {destination}", _DELROUTE, 0, body, frozenset({errno.ESRCH, errno.ENODEV}))


def add_neighbour(index: int, address: str, mac: str) -> Request:
    """Say for ever which hardware address an address on a link has: no ARP is needed."""
    value = ip_address(address)
    body = struct.pack("=BxxxIHBB", _family(value), index, _PERMANENT, 0, 0)
    body += _attribute(1, value.packed) + _attribute(2, _mac(mac))
    return Request(f"set neighbour {address}", _NEWNEIGH, _CREATE | _REPLACE, body)


def index_of(name: str) -> int:
    """Return the index of a link in the calling thread's namespace. Raises Broken when there is none."""
    try:
        return socket.if_nametoindex(name)
    except OSError as error:
        raise kernel.refused(f"link {name}", error.errno or errno.ENODEV) from error


def set_for_link(name: str, settings: Sequence[tuple[str, str]], family: str = "ipv4") -> None:
    """Set settings of a link (`rp_filter`, ...) in the calling thread's namespace; `family`: ipv4 or ipv6."""
    for key, value in settings:
        path = f"/proc/sys/net/{family}/conf/{name}/{key}"
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.write(fd, value.encode())
            finally:
                os.close(fd)
        except OSError as error:
            raise kernel.refused(f"set {key}={value} on {name}", error.errno or 0) from error


def _family(value: IPv4Address | IPv4Network | IPv6Address | IPv6Network) -> int:
    return socket.AF_INET6 if value.version == 6 else socket.AF_INET


def _attribute(kind: int, data: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(data), kind) + data + bytes(-len(data) % 4)


def _text(kind: int, text: str) -> bytes:
    return _attribute(kind, text.encode() + b"\0")


def _mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def _attributes(body: bytes, at: int) -> Iterator[tuple[int, bytes]]:
    while at + 4 <= len(body):
        length, kind = struct.unpack_from("=HH", body, at)
        if length < 4:
            return
        yield kind & 0x3FFF, body[at + 4 : at + length]
        at += (length + 3) & ~3


def _read_link(body: bytes) -> Link:
    _family, _type, index, flags, _ = struct.unpack_from("=BxHiII", body)
    attributes = dict(_attributes(body, 16))
    info = dict(_attributes(attributes.get(18, b""), 0))
    return Link(
        index=index,
        name=attributes.get(3, b"").rstrip(b"\0").decode(errors="replace"),
        is_up=bool(flags & IFF_UP),
        kind=info.get(1, b"").rstrip(b"\0").decode(errors="replace"),
        mac=attributes.get(1, b"").hex(":"),
        master=struct.unpack("=I", attributes[10])[0] if 10 in attributes else 0,
        mtu=struct.unpack("=I", attributes[4])[0] if 4 in attributes else 0,
        alias=attributes.get(20, b"").rstrip(b"\0").decode(errors="replace"),
    )
