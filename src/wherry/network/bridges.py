"""Networks of people's own: a bridge with a subnet each, apart from all others, on one machine.

Neighbours on a bridge talk directly. What leaves a bridge passes the machine: to the world by its address, to another
network only where a published port or a service leads. All bridges share one table, written anew in one transaction
when a bridge comes or goes; containers change nothing in it.
"""

import errno
import hashlib
import logging
import os
from collections.abc import Sequence
from ipaddress import IPv4Network

from wherry.errors import Broken, Conflict
from wherry.host import kernel, namespaces, netlink
from wherry.host.nftables import Nft
from wherry.network import ranges
from wherry.network.claims import Claims
from wherry.network.docker import DockerUser
from wherry.network.guard import Guard
from wherry.network.pods import POD_LINK_SETTINGS, forward, mtu_outwards
from wherry.network.types import BridgeNetwork, BridgePort

log = logging.getLogger(__name__)


def table_name(instance: str) -> str:
    """Name the table for bridges."""
    return f"wherry-{instance}-nets"


def bridge_link(instance: str, id: str) -> str:
    """Name the bridge of a network: the first four digits of its id, so two ids of an engine must differ there."""
    return f"{ranges.link_prefix(instance)}b{id[:4]}"


def port_link(instance: str, network: str, owner: str, attempt: int = 0) -> str:
    """Name the machine's end of an owner's link to a network; `attempt` gives others, should that one be taken."""
    digest = hashlib.sha256(f"{network}/{owner}/{attempt}".encode()).hexdigest()
    return f"{ranges.link_prefix(instance)}v{digest[:4]}"


def nets_table(instance: str, networks: Sequence[BridgeNetwork]) -> str:
    """Write the table, in place of the one that may be there. Pure."""
    table = f"ip {table_name(instance)}"
    links = [f'"{each.link}"' for each in networks]
    same = [f"{link} . {link}" for link in links]
    internal = [f'"{each.link}"' for each in networks if each.internal]
    masked = [each.subnet for each in networks if each.masquerade and not each.internal]

    def elements(name: str, items: Sequence[str]) -> list[str]:
        return [f"add element {table} {name} {{ {', '.join(items)} }}"] if items else []

    return "\n".join(
        [
            f"add table {table}",
            f"delete table {table}",
            f"add table {table}",
            f"add set {table} bridges {{ type ifname; }}",
            f"add set {table} internal {{ type ifname; }}",
            f"add set {table} same {{ type ifname . ifname; }}",
            f"add set {table} subnets {{ type ipv4_addr; flags interval; }}",
            f"add set {table} masked {{ type ipv4_addr; flags interval; }}",
            *elements("bridges", links),
            *elements("internal", internal),
            *elements("same", same),
            *elements("subnets", [each.subnet for each in networks]),
            *elements("masked", masked),
            f"add chain {table} guard {{ type filter hook prerouting priority raw; }}",
            f"add chain {table} between {{ type filter hook forward priority filter - 1; }}",
            f"add chain {table} leaving {{ type nat hook postrouting priority srcnat - 20; }}",
            f"add chain {table} outgoing {{ type nat hook postrouting priority srcnat; }}",
            *(f"add rule {table} {rule}" for rule in RULES),
        ]
    )


RULES = (
    # Links of ours have route_localnet for published ports: nobody else shall use it.
    'guard iifname != "lo" ip daddr 127.0.0.0/8 drop',
    "between iifname . oifname @same accept",
    "between iifname @internal drop",
    "between oifname @internal drop",
    "between ct state established,related accept",
    "between oifname @bridges ct status dnat accept",
    "between oifname @bridges drop",
    # Neighbours that meet by a published port must answer by way of us.
    "leaving ct status dnat ip saddr @subnets oifname @bridges masquerade",
    "outgoing ip saddr @masked oifname != @bridges masquerade",
)


class Bridges:
    """The bridges of one engine. `start` once the networks of before are known. Raises Broken with the kernel's words.

    `subnets` cuts subnets that nobody on this machine has, and remembers them under the instance.
    """

    def __init__(self, instance: str, nft: Nft, guard: Guard, *, subnets: Claims) -> None:
        self._instance, self._nft, self._guard, self._subnets = instance, nft, guard, subnets
        self._docker = DockerUser(nft, instance)
        self._networks: dict[str, BridgeNetwork] = {}
        self._is_made = False

    async def start(self, networks: Sequence[BridgeNetwork], links: Sequence[str]) -> None:
        """Make what is missing of `networks`; take away bridges and links (but `links`) that belong to none."""
        self._networks = {}
        for each in networks:
            try:
                await self._claim(each.subnet)
                self._networks[each.id] = each
            except Conflict as error:  # while we were down somebody else has come
                log.warning("network %s stays away: %s", each.id[:12], error.message)
        mine = list(self._networks.values())
        await self._nft.call(lambda: self._set_up(mine, set(links)))
        await self._write()
        self._guard.add("networks", self._check)

    async def close(self, *, remove: bool = False) -> None:
        """Stop looking after them; with `remove` take all bridges, links and rules away."""
        self._guard.drop("networks")
        if remove:
            for each in tuple(self._networks.values()):
                await self.remove(each.id)
            await self._nft.call(lambda: self._set_up((), set()))

    async def subnet(self, wanted: str = "") -> str:
        """Claim a subnet: `wanted`, or any. Raises Conflict when somebody has it, Unavailable when none is left."""
        return await self._claim(wanted)

    async def give_back(self, subnet: str) -> None:
        """Give a claimed subnet back."""
        await self._nft.call(lambda: self._subnets.release_network(self._instance, subnet))

    async def add(self, network: BridgeNetwork) -> None:
        """Make a network's bridge; its subnet was claimed before. Repeatable."""
        await self._nft.call(lambda: self._set_up_one(network))
        self._networks[network.id] = network
        try:
            await self._write()
        except Broken:
            await self.remove(network.id)
            raise

    async def remove(self, id: str) -> None:
        """Take a network's bridge away and give its subnet back; nothing if it is not there."""
        network = self._networks.pop(id, None)
        if network is None:
            return
        await self._nft.call(lambda: _delete(network.link))
        await self._write()
        await self.give_back(network.subnet)

    async def attach(self, network: BridgeNetwork, port: BridgePort, netns: str, *, is_way_out: bool) -> None:
        """Give the namespace at path `netns` an interface on the network's bridge. Repeatable.

        Raises Conflict when the network stays away, since somebody else has its subnet by now.
        """
        if network.id not in self._networks:
            raise Conflict(
                f"network {network.id[:12]}: its subnet {network.subnet} is somebody else's by now: remove the network, "
                "and make it again"
            )
        await namespaces.in_thread_async(
            lambda: _connect(network, port, netns, is_way_out=is_way_out), f"attach {port.address}"
        )

    async def detach(self, link: str) -> None:
        """Take a link away; nothing if it is not there."""
        await namespaces.in_thread_async(lambda: _delete(link), f"detach {link}")

    async def set_way_out(self, netns: str, interface: str, gateway: str) -> None:
        """Make `gateway` behind `interface` the namespace's way to everywhere."""

        def change() -> None:
            with netlink.Netlink() as net:
                index = netlink.index_of(interface)
                net.send([netlink.add_route("0.0.0.0/0", index, gateway=gateway, onlink=True)])

        await namespaces.inside_async(netns, change)

    def links(self) -> Sequence[str]:
        """Name all bridges and links of networks that the machine has, of this instance."""
        with netlink.Netlink() as net:
            return [link.name for link in net.links() if link.name.startswith(self._prefixes)]

    # inside -----------------------------------------------------------------------------------------------------------
    @property
    def _prefixes(self) -> tuple[str, str]:
        prefix = ranges.link_prefix(self._instance)
        return f"{prefix}b", f"{prefix}v"

    async def _claim(self, wanted: str) -> str:
        return await self._nft.call(lambda: self._subnets.claim_network(self._instance, wanted))

    def _set_up(self, networks: Sequence[BridgeNetwork], links: set[str]) -> None:
        for each in networks:
            self._set_up_one(each)
        mine = {each.link for each in networks} | links
        strays = [name for name in self.links() if name not in mine]
        with netlink.Netlink() as net:
            net.send([netlink.delete_link(name) for name in strays])

    def _set_up_one(self, network: BridgeNetwork) -> None:
        forward()
        prefix = IPv4Network(network.subnet).prefixlen
        with netlink.Netlink() as net:
            net.send([netlink.add_bridge(network.link, mac=ranges.mac_of(network.gateway, inside=False))])
            netlink.set_for_link(network.link, POD_LINK_SETTINGS)
            index = netlink.index_of(network.link)
            net.send(
                [
                    netlink.set_link(network.link, up=True),
                    netlink.add_address(index, f"{network.gateway}/{prefix}"),
                ]
            )

    async def _write(self) -> None:
        """Write the table, or take it away with the last network."""
        table = f"ip {table_name(self._instance)}"
        networks = list(self._networks.values())
        if networks:
            await self._docker.ensure()
            await self._nft.run(nets_table(self._instance, networks))
        elif self._is_made:
            await self._nft.run(f"add table {table}\ndelete table {table}")
        self._is_made = bool(networks)

    async def _check(self) -> bool:
        if not self._is_made or await self._is_whole():
            return False
        await self._write()
        return True

    async def _is_whole(self) -> bool:
        try:
            items = await self._nft.read(f"list table ip {table_name(self._instance)}")
        except Broken as error:
            if "No such file or directory" in error.message:
                return False
            raise
        sets = {item["set"]["name"]: len(item["set"].get("elem", ())) for item in items if "set" in item}
        count = len(self._networks)
        return sum("rule" in item for item in items) == len(RULES) and (sets["bridges"], sets["same"]) == (count, count)


def _connect(network: BridgeNetwork, port: BridgePort, netns: str, *, is_way_out: bool) -> None:
    """Make the pair of links and set both ends up. Runs in a thread that ends inside the namespace."""
    mac, peer_mac = (ranges.mac_of(port.address, inside=inside) for inside in (False, True))
    prefix = IPv4Network(network.subnet).prefixlen
    fd = os.open(netns, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with netlink.Netlink() as net:
            mtu = network.mtu or mtu_outwards(net)
            make = netlink.add_veth(
                port.link, mac=mac, peer=port.interface, peer_mac=peer_mac, peer_netns_fd=fd, mtu=mtu
            )
            try:
                net.send([make])
            except Broken as error:
                if kernel.errno_of(error) != errno.EEXIST:
                    raise
                net.send([netlink.delete_link(port.link), make])  # left by an attempt that was cut short
            net.send([netlink.set_link(port.link, master=netlink.index_of(network.link))])
            # Where br_netfilter is on, who reaches itself by a published port never leaves the bridge.
            net.send([netlink.set_hairpin(port.link)])
        kernel.setns(fd, kernel.CLONE_NEWNET, f"network namespace {netns}")
        with netlink.Netlink() as net:
            index = netlink.index_of(port.interface)
            net.send(
                [netlink.set_link(port.interface, up=True), netlink.add_address(index, f"{port.address}/{prefix}")]
            )
            if is_way_out and not network.internal:
                net.send([netlink.add_route("0.0.0.0/0", index, gateway=network.gateway)])
    finally:
        os.close(fd)


def _delete(link: str) -> None:
    with netlink.Netlink() as net:
        net.send([netlink.delete_link(link)])
