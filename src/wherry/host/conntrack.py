"""Connections that the kernel's tracker knows: listed, and forgotten one by one, by raw netlink.

A UDP flow has no end of its own, so one that was sent to a backend keeps going there after the backend has gone, until
its entry is forgotten.
"""

import errno
import socket
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from ipaddress import ip_address

from wherry.host import kernel

_NETLINK_NETFILTER = 12
_GET, _DELETE = (1 << 8) | 1, (1 << 8) | 2
_REQUEST, _ACK, _DUMP = 1, 4, 0x300
_ERROR, _DONE = 2, 3
_ORIGINAL, _REPLY = 1, 2


@dataclass(frozen=True, slots=True)
class Flow:
    """One tracked connection: as its first packet came (`source` to `target`), and who answers (`answerer`)."""

    protocol: int
    source: tuple[str, int]
    target: tuple[str, int]
    answerer: tuple[str, int]
    original: bytes


def flows() -> list[Flow]:
    """List the connections of the calling thread's network namespace. Raises Broken."""
    with _socket() as asker:
        asker.send(_message(_GET, _REQUEST | _DUMP, b"", socket.AF_UNSPEC))
        found: list[Flow] = []
        while True:
            for kind, body in _answers(asker):
                if kind == _DONE:
                    return found
                if kind == _ERROR:
                    raise kernel.refused("list connections", -struct.unpack_from("=i", body)[0])
                flow = _read(body[4:])
                if flow is not None:
                    found.append(flow)


def forget(chosen: Callable[[Flow], bool]) -> int:
    """Forget the connections that `chosen` picks; return how many there were. Raises Broken."""
    count = 0
    with _socket() as asker:
        for flow in filter(chosen, flows()):
            family = socket.AF_INET6 if ":" in flow.source[0] else socket.AF_INET
            asker.send(_message(_DELETE, _REQUEST | _ACK, flow.original, family))
            for _kind, body in _answers(asker):
                number = -struct.unpack_from("=i", body)[0]
                if number not in (0, errno.ENOENT):
                    raise kernel.refused("forget a connection", number)
                count += number == 0
    return count


def _socket() -> socket.socket:
    try:
        made = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER)
        made.settimeout(10.0)
        made.bind((0, 0))
    except OSError as error:
        raise kernel.refused("open a netlink socket", error.errno or 0) from error
    return made


def _message(kind: int, flags: int, body: bytes, family: int) -> bytes:
    return struct.pack("=IHHIIBBH", 20 + len(body), kind, flags, 1, 0, family, 0, 0) + body


def _answers(asker: socket.socket) -> Iterator[tuple[int, bytes]]:
    try:
        data = asker.recv(1 << 18)
    except OSError as error:
        raise kernel.refused("ask the connection tracker", error.errno or errno.ETIMEDOUT) from error
    at = 0
    while at + 16 <= len(data):
        length, kind = struct.unpack_from("=IH", data, at)
        yield kind, data[at + 16 : at + length]
        at += max(16, (length + 3) & ~3)


def _read(body: bytes) -> Flow | None:
    attributes = _attributes(body)
    if _ORIGINAL not in attributes or _REPLY not in attributes:
        return None
    original, reply = _tuple(attributes[_ORIGINAL]), _tuple(attributes[_REPLY])
    if original is None or reply is None:
        return None
    raw = attributes[_ORIGINAL]
    packed = struct.pack("=HH", 4 + len(raw), _ORIGINAL | 0x8000) + raw + bytes(-len(raw) % 4)
    return Flow(original[0], original[1], original[2], reply[1], packed)


def _tuple(body: bytes) -> tuple[int, tuple[str, int], tuple[str, int]] | None:
    """Read (protocol, source, target)."""
    parts = _attributes(body)
    addresses, protocol = _attributes(parts.get(1, b"")), _attributes(parts.get(2, b""))
    source, target = (addresses.get(four, addresses.get(six)) for four, six in ((1, 3), (2, 4)))
    if source is None or target is None or 1 not in protocol:
        return None
    ports = [int.from_bytes(protocol.get(kind, b"\0\0"), "big") for kind in (2, 3)]
    return protocol[1][0], (str(ip_address(source)), ports[0]), (str(ip_address(target)), ports[1])


def _attributes(body: bytes) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    at = 0
    while at + 4 <= len(body):
        length, kind = struct.unpack_from("=HH", body, at)
        found[kind & 0x3FFF] = body[at + 4 : at + length]
        at += max(4, (length + 3) & ~3)
    return found
