"""The names that containers have on their networks, and the DNS servers that tell them.

A server listens on each network's gateway address only. Who asks is known by its address, and learns the names of every
network that it is on; all else is asked of the machine's resolvers, unless there is no way out.
"""

import random
from collections.abc import Callable, Sequence
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address

from wherry.network import dns_wire
from wherry.network.dns import DnsServer
from wherry.network.dns_wire import NAME_ERROR, Record
from wherry.network.zone import TTL_S, Found, Zone

_REVERSES = (".in-addr.arpa", ".ip6.arpa")


class Names(Zone):
    """What one asker may know. `addresses_of` finds a name, `name_of` an address; `inside`: it has no way out.

    `servers` are asked for the names of the world instead of the machine's own.
    """

    def __init__(
        self,
        addresses_of: Callable[[str], Sequence[str]],
        name_of: Callable[[str], str],
        *,
        inside: bool,
        servers: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.servers = servers
        self._addresses_of, self._named, self._inside_only = addresses_of, name_of, inside

    def lookup(self, name: str, kind: int) -> Found | None:
        """See Zone."""
        records: list[Record] = []
        if name.endswith(_REVERSES):
            target = self._named(address_in(name))
            records = [dns_wire.ptr(name, target, TTL_S)] if target else []
        else:
            found = list(self._addresses_of(name))
            random.shuffle(found)  # clients take the first
            records = [dns_wire.address(name, each, TTL_S) for each in found]
        if records:
            return Found(records=[each for each in records if kind in (each.kind, dns_wire.ANY)])
        return Found(NAME_ERROR) if self._inside_only else None

    def denial(self, name: str) -> Sequence[Record]:
        """See Zone: names come and go at once, so nothing is said of how long this holds."""
        del name
        return ()


class NameServers:
    """A DNS server for each network, by network id."""

    def __init__(self, zone_of: Callable[[str], Zone]) -> None:
        self._zone_of = zone_of
        self._servers: dict[str, DnsServer] = {}

    async def add(self, network: str, gateway: str, *, internal: bool) -> None:
        """Listen on a network's gateway. Raises Broken when somebody else does, on every address."""
        if network in self._servers:
            return
        server = DnsServer([gateway], zone_of=self._zone_of, upstreams=() if internal else None)
        self._servers[network] = await server.__aenter__()

    async def remove(self, network: str) -> None:
        """Stop listening."""
        server = self._servers.pop(network, None)
        if server is not None:
            await server.__aexit__(None, None, None)

    async def close(self) -> None:
        """Stop all."""
        for network in tuple(self._servers):
            await self.remove(network)


def address_in(name: str) -> str:
    """Read the address that a reverse name asks for; "" for none."""
    with suppress(ValueError):
        if name.endswith(_REVERSES[0]):
            return str(IPv4Address(".".join(reversed(name.removesuffix(_REVERSES[0]).split(".")))))
        digits = "".join(reversed(name.removesuffix(_REVERSES[1]).split(".")))
        if len(digits) == 32:
            return str(IPv6Address(int(digits, 16)))
    return ""
