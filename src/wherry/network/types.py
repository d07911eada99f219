"""What the network is told and asked, as plain values."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Port:
    """One port of a service: `endpoints` are (address, port) of ready backends on any node."""

    protocol: str
    port: int
    endpoints: Sequence[tuple[str, int]]
    node_port: int = 0


@dataclass(frozen=True, slots=True)
class Service:
    """A service with cluster addresses. `affinity_s`: 0, or seconds of ClientIP session affinity."""

    key: str
    addresses: Sequence[str]
    ports: Sequence[Port]
    affinity_s: int = 0


@dataclass(frozen=True, slots=True)
class Attachment:
    """A namespace's place on the pod network."""

    address: str
    gateway: str
    link: str


class PodNetwork(Protocol):
    """Addresses and links of this machine's pods."""

    @property
    def gateway(self) -> str:
        """The machine's own address on the pod network; DNS listens on it."""
        ...

    async def attach(self, owner: str, netns: str, *, mac: str = "") -> Attachment:
        """Give the namespace at path `netns` an interface eth0, an address and a default route. Repeatable by `owner`.

        `mac` is its hardware address, "" for one that is made of its address.
        """
        ...

    async def detach(self, owner: str) -> None:
        """Take the link away and free the address; nothing if there is none."""
        ...

    async def attachments(self) -> Sequence[tuple[str, Attachment]]:
        """List (owner, attachment)."""
        ...


class Services(Protocol):
    """The machine's service table in nftables."""

    async def sync(self, services: Sequence[Service]) -> None:
        """Make the kernel's table equal to `services`, changing only what differs."""
        ...


@dataclass(frozen=True, slots=True)
class PortBinding:
    """A container's port that the machine is to answer for, on `host_address` ("" means on every one).

    `host_first` to `host_last` are the machine's ports to choose from; 0 means any free one.
    """

    port: int
    protocol: str = "tcp"
    host_address: str = ""
    host_first: int = 0
    host_last: int = 0


@dataclass(frozen=True, slots=True)
class PublishedPort:
    """A port of the machine that leads to (`address`, `port`) of a container; `gateway` is the machine's own address there.

    `both`: it answers on the machine's IPv6 addresses too, by nftables where the container has an `address6`.
    """

    protocol: str
    host_address: str
    host_port: int
    address: str
    port: int
    gateway: str
    both: bool = False
    address6: str = ""
    gateway6: str = ""


@dataclass(frozen=True, slots=True)
class PortTarget:
    """Where an owner's published ports lead: the container's addresses, and the machine's own beside them; "" for none."""

    address: str
    gateway: str
    address6: str = ""
    gateway6: str = ""


@dataclass(frozen=True, slots=True)
class BridgeNetwork:
    """A bridge of this machine with a subnet, and perhaps an IPv6 one (`subnet6`, `gateway6`).

    `internal`: nothing goes in or out; `mtu` 0 means that of the way out; without `icc` neighbours do not meet.
    """

    id: str
    link: str
    subnet: str
    gateway: str
    mtu: int = 0
    internal: bool = False
    masquerade: bool = True
    subnet6: str = ""
    gateway6: str = ""
    icc: bool = True


@dataclass(frozen=True, slots=True)
class BridgePort:
    """A namespace's place on a bridge: `link` is the machine's end, `interface` the namespace's.

    `mac` "" means one that is made of the address.
    """

    link: str
    interface: str
    address: str
    address6: str = ""
    mac: str = ""
