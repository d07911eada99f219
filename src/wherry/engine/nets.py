"""What networks of people's own are, as plain values; a part of the engine's nouns (types.py has the rest, and these too)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Dns:
    """What /etc/resolv.conf says; empty `servers` means the engine's own DNS address."""

    servers: Sequence[str] = ()
    searches: Sequence[str] = ()
    options: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Join:
    """A sandbox's wish to be on a network (by name or id): known there by `aliases` too; `address` "" means any.

    Of several networks the one with the highest `priority` leads out, then the first by name. `mac` "" means any.
    """

    network: str
    aliases: Sequence[str] = ()
    address: str = ""
    address6: str = ""
    mac: str = ""
    priority: int = 0


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A sandbox's place on a network of people's own. `fixed`, `fixed6`, `mac`: it asked for this very address."""

    network: str
    name: str
    link: str
    interface: str
    address: str
    gateway: str
    prefix: int
    aliases: Sequence[str] = ()
    fixed: bool = False
    address6: str = ""
    gateway6: str = ""
    prefix6: int = 0
    fixed6: bool = False
    mac: str = ""
    priority: int = 0


@dataclass(frozen=True, slots=True)
class Pool:
    """Addresses of one family: "" for subnet and gateway means any; `reserved` ones, by remark, are given to nobody."""

    subnet: str = ""
    gateway: str = ""
    ip_range: str = ""
    reserved: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, slots=True)
class NetworkSpec:
    """A network of people's own: a bridge on this machine. "" for subnet and gateway means any; `mtu` 0 the usual one.

    `options` are the driver's as they were given; `reserved` addresses are given to nobody. `ipv6`: it has addresses of
    `pool6` too. `link` names the bridge; without `icc` neighbours do not meet; `host_address` is where its containers'
    ports are published that name no address; `interface` begins the names of links inside.
    """

    name: str
    subnet: str = ""
    gateway: str = ""
    ip_range: str = ""
    reserved: Mapping[str, str] = field(default_factory=dict[str, str])
    mtu: int = 0
    internal: bool = False
    attachable: bool = False
    masquerade: bool = True
    labels: Mapping[str, str] = field(default_factory=dict[str, str])
    options: Mapping[str, str] = field(default_factory=dict[str, str])
    ipv6: bool = False
    pool6: Pool = field(default_factory=Pool)
    link: str = ""
    icc: bool = True
    host_address: str = ""
    interface: str = "eth"

    @property
    def pool(self) -> Pool:
        """Its IPv4 addresses."""
        return Pool(self.subnet, self.gateway, self.ip_range, self.reserved)


@dataclass(frozen=True, slots=True)
class Network:
    """A network as it stands; `endpoints` by sandbox. `own_subnet`: its maker chose the subnet; `ready`: it was told of."""

    id: str
    spec: NetworkSpec
    created: float
    driver: str = "bridge"
    endpoints: Mapping[str, Endpoint] = field(default_factory=dict[str, Endpoint])
    own_subnet: bool = False
    predefined: bool = False
    ready: bool = False
    own_subnet6: bool = False
