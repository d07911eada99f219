"""A machine of the test's own: a network namespace that stands for the host, and others for pods.

The code under test acts in the namespace of the thread that calls the kernel, so the loop's thread itself is moved for
the length of a test, and back. Nothing here touches the machine's own links, routes or rules.
"""

import asyncio
import secrets
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.netns import moved_into_one
from wherry.host import namespaces, netlink
from wherry.host.nftables import Nft
from wherry.network.guard import Guard
from wherry.network.pods import LocalPodNetwork
from wherry.network.ranges import Ranges
from wherry.network.services import NftServices

RANGES = Ranges(pods="10.64.0.0/16", services="10.112.0.0/20", node="10.64.1.0/24")


@pytest.fixture
def host(tmp_path: Path) -> Iterator[str]:
    """Move this thread into a new network namespace; give its path."""
    with moved_into_one(tmp_path) as path:
        yield path


@dataclass
class Node:
    """One node's network in the test's host namespace."""

    directory: Path
    instance: str
    nft: Nft
    guard: Guard
    pods: LocalPodNetwork
    services: NftServices
    netns: dict[str, str] = field(default_factory=dict[str, str])

    async def pod(self, name: str) -> str:
        """Make a pod with an address; return the address."""
        self.netns[name] = namespaces.create(str(self.directory / "ns" / name), ("net",))["net"]
        return (await self.pods.attach(name, self.netns[name])).address


@pytest.fixture
async def node(host: str, tmp_path: Path) -> AsyncIterator[Node]:
    instance = secrets.token_hex(4)
    nft = Nft()
    guard = Guard(nft, period_s=0.05)
    pods = LocalPodNetwork(instance, 0, RANGES, str(tmp_path / "pods"), nft, guard)
    made = Node(tmp_path, instance, nft, guard, pods, NftServices(instance, RANGES, nft, guard))
    async with pods:
        yield made
    nft.close()
    for name in made.netns:
        namespaces.remove(str(tmp_path / "ns" / name))


class Server:
    """A server inside a pod that answers each connection or datagram with its name; `hits` are its clients' addresses."""

    def __init__(self, netns: str, name: str, port: int, *, udp: bool = False, address: str = "0.0.0.0") -> None:
        self.name, self.hits = name, list[str]()
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._socket = namespaces.socket_inside(netns, family, socket.SOCK_DGRAM if udp else socket.SOCK_STREAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind((address, port))
        self._socket.setblocking(False)
        loop = asyncio.get_running_loop()
        if udp:
            loop.add_reader(self._socket, self._datagram)
        else:
            self._socket.listen(64)
            loop.add_reader(self._socket, self._connection)

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._socket)
        self._socket.close()

    def _connection(self) -> None:
        connection, (address, *_) = self._socket.accept()
        self.hits.append(address.removeprefix("::ffff:"))
        connection.send(self.name.encode())
        connection.close()

    def _datagram(self) -> None:
        _, client = self._socket.recvfrom(100)
        self.hits.append(client[0].removeprefix("::ffff:"))
        self._socket.sendto(self.name.encode(), client)


async def ask(netns: str | None, address: str, port: int, *, timeout_s: float = 5.0) -> str:
    """Connect from inside a namespace (None: the host's) and return what the server says."""
    client = make(netns, socket.SOCK_STREAM, address)
    client.setblocking(False)
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(timeout_s):
            await loop.sock_connect(client, (address, port))
            return (await loop.sock_recv(client, 100)).decode()
    finally:
        client.close()


def make(netns: str | None, kind: int, target: str = "") -> socket.socket:
    """Make a socket in a namespace (None: the host's) of the family of `target`."""
    family = socket.AF_INET6 if ":" in target else socket.AF_INET
    if netns is None:
        return socket.socket(family, kind)
    return namespaces.socket_inside(netns, family, kind)


def outsider(directory: Path) -> str:
    """Make a machine beside the host: 192.0.2.2 and 2001:db8::2; the host is .1 and ::1 there. Return its namespace."""
    netns = namespaces.create(str(directory), ("net",))["net"]
    link = f"o{secrets.token_hex(4)}"
    with open(netns) as file, netlink.Netlink() as net:
        net.send(
            [netlink.add_veth(link, mac="0a:00:00:00:00:01", peer="eth0", peer_mac="0a:00:00:00:00:02",
                              peer_netns_fd=file.fileno())]
        )  # fmt: skip
        index = netlink.index_of(link)
        net.send([netlink.add_address(index, each) for each in ("192.0.2.1/24", "2001:db8::1/64")])

    def inside() -> None:
        with netlink.Netlink() as net:
            index = netlink.index_of("eth0")
            net.send([netlink.set_link("eth0", up=True)])
            net.send([netlink.add_address(index, each) for each in ("192.0.2.2/24", "2001:db8::2/64")])

    namespaces.inside(netns, inside)
    return netns


async def until(is_so: Callable[[], bool], timeout_s: float = 10.0) -> None:
    """Wait for a state."""
    async with asyncio.timeout(timeout_s):
        while not is_so():  # noqa: ASYNC110 (a state of the kernel: nothing tells us)
            await asyncio.sleep(0.01)
