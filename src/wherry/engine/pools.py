"""Addresses of a network of people's own: whether what was asked for fits together, and who gets which. Pure."""

import re
from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from wherry.engine.types import Network, NetworkSpec, Pool
from wherry.errors import Forbidden, Invalid

_LINK = re.compile(r"[a-zA-Z0-9_.-]{1,15}")
_PREFIX = re.compile(r"[a-zA-Z0-9_.-]{1,10}")
_MAC = re.compile(r"[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}")
_SIZES = {4: (8, 30), 6: (8, 126)}

Subnet = IPv4Network | IPv6Network
Address = IPv4Address | IPv6Address


def check(spec: NetworkSpec) -> None:
    """Refuse addresses and names that do not fit together. Raises Invalid."""
    _check_pool(spec.name, spec.pool, 4)
    _check_pool(spec.name, spec.pool6, 6)
    if spec.pool6 != Pool() and not spec.ipv6:
        raise Invalid(f"network {spec.name}: subnet {spec.pool6.subnet} needs IPv6 to be enabled (--ipv6)")
    if spec.link and (_LINK.fullmatch(spec.link) is None or spec.link in (".", "..")):
        raise Invalid(
            f"network {spec.name}: {spec.link!r} is no name of a link: 1 to 15 letters, digits, '_', '.', '-'"
        )
    if _PREFIX.fullmatch(spec.interface) is None:
        raise Invalid(
            f"network {spec.name}: {spec.interface!r} cannot begin the name of a link: 1 to 10 letters or digits"
        )
    if spec.host_address and _address(spec.host_address).version != 4:
        raise Invalid(f"network {spec.name}: {spec.host_address} is no IPv4 address to publish ports on")


def check_mac(text: str) -> str:
    """Read a hardware address of a single host; "" means any. Raises Invalid."""
    if not text:
        return ""
    if _MAC.fullmatch(text) is None or int(text[:2], 16) & 1 or set(text) <= {"0", ":"}:
        raise Invalid(f"invalid MAC address {text!r}: six bytes such as 02:42:ac:11:00:02, the first of them even")
    return text.lower()


def choose(network: Network, wanted: str, *, six: bool = False) -> str:
    """Choose an address for one more: `wanted`, or the first free one; "" on a network without IPv6 (`six`).

    Raises Invalid for one that cannot be, Forbidden for one that somebody has.
    """
    pool = network.spec.pool6 if six else network.spec.pool
    own_subnet = network.own_subnet6 if six else network.own_subnet
    places = network.endpoints.values()
    taken = {each.address6 if six else each.address for each in places} | {pool.gateway, *pool.reserved.values()}
    if not wanted:
        return first_free(pool, taken, network) if pool.subnet else ""
    if not own_subnet:
        raise Invalid(
            "user specified IP address is supported only when connecting to networks with user configured subnets"
        )
    address = _address(wanted)
    if address not in ip_network(pool.subnet):
        raise Invalid(f"Invalid address {wanted}: It does not belong to any of this network's subnets")
    if str(address) in taken:
        raise Forbidden("Address already in use")
    return str(address)


def first_free(pool: Pool, taken: Iterable[str], network: Network) -> str:
    """Find the first address that nobody has. Raises Forbidden."""
    subnet, busy = ip_network(pool.subnet), set(taken)
    first, last = (ip_network(pool.ip_range) if pool.ip_range else subnet)[0], subnet[-1]
    size = ip_network(pool.ip_range or pool.subnet).num_addresses
    for number in range(min(size, len(busy) + 3)):  # at most so many of them are not free
        address = first + number
        if address in (subnet[0], last if subnet.version == 4 else None) or str(address) in busy:
            continue
        return str(address)
    family = f"IPv{subnet.version}"
    raise Forbidden(
        f"no available {family} addresses on this network's address pools: {network.spec.name} ({network.id})"
    )


def first_host(subnet: str) -> str:
    """Return a subnet's first address: its gateway, unless another one is named."""
    return str(ip_network(subnet)[1])


def tidy(pool: Pool) -> Pool:
    """Write a pool's addresses in one way, so that they can be compared."""
    return Pool(
        str(ip_network(pool.subnet)) if pool.subnet else "",
        str(ip_address(pool.gateway)) if pool.gateway else "",
        str(ip_network(pool.ip_range)) if pool.ip_range else "",
        {key: str(ip_address(text)) for key, text in pool.reserved.items()},
    )


def _check_pool(name: str, pool: Pool, version: int) -> None:
    if not pool.subnet:
        if pool != Pool():
            raise Invalid(f"network {name}: a gateway, range or reserved address needs a subnet")
        return
    network = _network("subnet", pool.subnet, version)
    least, most = _SIZES[version]
    if not least <= network.prefixlen <= most:
        raise Invalid(f"invalid subnet {pool.subnet}: a prefix from {least} to {most} is supported")
    named: Mapping[str, str] = {"gateway": pool.gateway, **pool.reserved}
    for what, text in named.items():
        if text and _address(text) not in network:
            raise Invalid(f"no matching subnet for {what} {text}")
    if pool.ip_range and not _is_within(_network("range", pool.ip_range, version), network):
        raise Invalid(f"no matching subnet for range {pool.ip_range}")


def _network(what: str, text: str, version: int) -> Subnet:
    try:
        network = ip_network(text, strict=False)
    except ValueError as error:
        raise Invalid(f"invalid {what} {text}: {error}") from error
    if network.version != version:
        raise Invalid(f"invalid {what} {text}: it is not of IPv{version}")
    try:
        return ip_network(text)
    except ValueError:
        raise Invalid(f"invalid {what} {text}: it should be {network}") from None


def _is_within(inner: Subnet, outer: Subnet) -> bool:
    if isinstance(inner, IPv4Network):
        return isinstance(outer, IPv4Network) and inner.subnet_of(outer)
    return isinstance(outer, IPv6Network) and inner.subnet_of(outer)


def _address(text: str) -> Address:
    try:
        return ip_address(text)
    except ValueError:
        raise Invalid(f"invalid IP address: {text}") from None
