"""The address ranges of a cluster as one node sees them, and the names of the things that carry them."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Network

from wherry.errors import Invalid, Unavailable

DEFAULT_POOL = "10.64.0.0/10"


@dataclass(frozen=True, slots=True)
class Ranges:
    """`pods`: of the whole cluster; `node`: this node's share of it; `services`: addresses that no link has."""

    pods: str
    services: str
    node: str

    def __post_init__(self) -> None:
        """Raise Invalid for ranges that are none, or do not fit each other."""
        pods, services, node = (_network(text) for text in (self.pods, self.services, self.node))
        if not node.subnet_of(pods):
            raise Invalid(f"the node's pod range {node} is not in the cluster's {pods}")
        if pods.overlaps(services):
            raise Invalid(f"the ranges of pods {pods} and services {services} overlap")
        if not 16 <= node.prefixlen <= 30:
            raise Invalid(f"the node's pod range {node} must have a prefix of 16 to 30")

    @property
    def gateway(self) -> str:
        """The node's own address among its pods: the first."""
        return str(IPv4Network(self.node)[1])


def node_ranges(pods: str, prefix: int = 24) -> Iterator[str]:
    """Cut a cluster's pod range into one for each node, in order, leaving out the first: its zeros confuse people."""
    subnets = iter(_network(pods).subnets(new_prefix=prefix))
    next(subnets)
    return (str(subnet) for subnet in subnets)


def first_free(
    pool: str, prefix: int, taken: Iterable[IPv4Network], *, from_end: bool = False, preferred: str = ""
) -> str:
    """Find a subnet of `prefix` in `pool` that overlaps nothing of `taken`: `preferred` if it is free, else the first.

    Raises Unavailable when there is none.
    """
    busy = list(taken)
    if preferred:
        wish = _network(preferred)
        if not any(wish.overlaps(other) for other in busy):
            return str(wish)
    network = _network(pool)
    count, size = 1 << (prefix - network.prefixlen), 1 << (32 - prefix)
    first = int(network.network_address)
    for number in reversed(range(count)) if from_end else range(count):
        subnet = IPv4Network((first + number * size, prefix))
        if not any(subnet.overlaps(other) for other in busy):
            return str(subnet)
    raise Unavailable(f"no /{prefix} is free in {pool}: take an instance down, or give another pool")


def unique_local(instance: str) -> str:
    """Return the IPv6 range (/48) of an instance's networks: made of its id, so hardly anybody else's. Source: RFC 4193."""
    digest = hashlib.sha256(f"wherry/{instance}".encode()).digest()
    return str(IPv6Network((b"\xfd" + digest[:5] + bytes(10), 48)))


def first_free6(pool: str, taken: Iterable[IPv4Network | IPv6Network]) -> str:
    """Find the first /64 of `pool` that overlaps nothing of `taken`. Raises Unavailable when there is none."""
    busy = [each for each in taken if isinstance(each, IPv6Network)]
    for subnet in IPv6Network(pool).subnets(new_prefix=64):
        if not any(subnet.overlaps(other) for other in busy):
            return str(subnet)
    raise Unavailable(f"no /64 is free in {pool}: take a network away, or give a subnet")


def link_prefix(instance: str) -> str:
    """Return what the names of all links of an instance begin with."""
    return f"wh{instance}"


def gateway_link(instance: str, number: int) -> str:
    """Name the link that holds a node's gateway address."""
    return f"wh{instance}g{number}"


def pod_link(instance: str, address: str) -> str:
    """Name the host's end of a pod's link: by the last two bytes of its address, so no two of a node are the same."""
    return f"wh{instance}p{int(IPv4Address(address)) & 0xFFFF:04x}"


def node_link(instance: str, number: int) -> str:
    """Name the host's end of the link to a node that lives in a namespace of this machine."""
    return f"wh{instance}n{number}"


def mac_of(address: str, *, inside: bool) -> str:
    """Return the hardware address of a pod's end (`inside`) or the host's end of its link; locally administered."""
    return f"0a:{0x58 if inside else 0x57:02x}:" + IPv4Address(address).packed.hex(":")


def usable(node: str) -> Sequence[str]:
    """List the addresses of a node's range that pods may have: not the first two (network, gateway), not the last."""
    network = _network(node)
    return [str(network[number]) for number in range(2, network.num_addresses - 1)]


def _network(text: str) -> IPv4Network:
    try:
        return IPv4Network(text)
    except ValueError as error:
        raise Invalid(f"{text!r} is no IPv4 network such as 10.64.0.0/16: {error}") from error
