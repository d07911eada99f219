"""Networks of people's own: a bridge with a subnet each, apart from all others, on one machine.

Neighbours on a bridge talk directly. What leaves a bridge passes the machine: to the world by its address, to another
network only where a published port or a service leads. All bridges share one table for each family (`bridge_rules`), written
anew in one transaction when a bridge comes or goes; containers change nothing in it.
"""

import errno
import hashlib
import logging
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from ipaddress import ip_network

from wherry.errors import Broken, Conflict
from wherry.host import kernel, namespaces, netlink
from wherry.host.nftables import Nft
from wherry.network import ranges
from wherry.network.bridge_rules import FAMILIES, RULES, nets_table, networks_of, table_name
from wherry.network.claims import Claims
from wherry.network.firewalls import Firewalls, Place
from wherry.network.forwarding import forward, forward6
from wherry.network.guard import Guard
from wherry.network.pods import POD_LINK_SETTINGS, mtu_outwards
from wherry.network.types import BridgeNetwork, BridgePort

log = logging.getLogger(__name__)
_NO_ANNOUNCEMENTS = (("accept_ra", "0"), ("disable_ipv6", "0"))
"""Settings of links with IPv6: we say where the way out is, and no neighbour does."""


def bridge_link(instance: str, id: str) -> str:
    """Name the bridge of a network: the first four digits of its id, so two ids of an engine must differ there."""
    return f"{ranges.link_prefix(instance)}b{id[:4]}"


def port_link(instance: str, network: str, owner: str, attempt: int = 0) -> str:
    """Name the machine's end of an owner's link to a network; `attempt` gives others, should that one be taken."""
    digest = hashlib.sha256(f"{network}/{owner}/{attempt}".encode()).hexdigest()
    return f"{ranges.link_prefix(instance)}v{digest[:4]}"


def mark(instance: str) -> str:
    """Return the remark that every bridge of an instance carries: people may choose its name."""
    return f"wherry-{instance}"


class Bridges:
    """The bridges of one engine. `start` once the networks of before are known. Raises Broken with the kernel's words.

    `subnets` cuts subnets that nobody on this machine has, and remembers them under the instance, and there under `holder`,
    this engine's own name among the instance's.
    """

    def __init__(self, instance: str, nft: Nft, guard: Guard, *, subnets: Claims, holder: str = "") -> None:
        self._instance, self._nft, self._guard, self._subnets = instance, nft, guard, subnets
        self._holder = holder
        self._firewalls = Firewalls(nft, instance)
        self._networks: dict[str, BridgeNetwork] = {}
        self._links: dict[str, str] = {}
        self._again: Callable[[str], Awaitable[None]] | None = None
        self._made: set[str] = set()

    async def start(
        self,
        networks: Sequence[BridgeNetwork],
        links: Mapping[str, str],
        *,
        again: Callable[[str], Awaitable[None]] | None = None,
    ) -> None:
        """Make what is missing of `networks`; take away bridges and links that belong to none.

        `links` are those of before, with the id of their network; from now on all are looked after. `again` makes one
        anew that somebody took away, by its name.
        """
        self._networks, self._links, self._again = {}, dict(links), again
        known = [subnet for each in networks for subnet in (each.subnet, each.subnet6)]
        await self._nft.call(lambda: self._subnets.keep_networks(self._instance, known, holder=self._holder))
        for each in networks:
            try:
                for subnet in filter(None, (each.subnet, each.subnet6)):
                    await self._claim(subnet)
                self._networks[each.id] = each
            except Conflict as error:  # while we were down somebody else has come
                log.warning("network %s stays away: %s", each.id[:12], error.message)
        mine = list(self._networks.values())
        await self._nft.call(lambda: self._set_up(mine, set(links)))
        await self._write()
        self._guard.add("networks", self._check)
        self._guard.add_regular("bridges", self._check_links)

    async def close(self, *, remove: bool = False) -> None:
        """Stop looking after them; with `remove` take all bridges, links and rules away."""
        for name in ("networks", "bridges"):
            self._guard.drop(name)
        if remove:
            for each in tuple(self._networks.values()):
                await self.remove(each.id)
            await self._nft.call(lambda: self._set_up((), set()))

    async def subnet(self, wanted: str = "", *, six: bool = False) -> str:
        """Claim a subnet: `wanted`, or any (`six`: of IPv6). Raises Conflict when somebody has it, Unavailable."""
        return await self._claim(wanted, six=six)

    async def give_back(self, subnet: str) -> None:
        """Give a claimed subnet back."""
        await self._nft.call(lambda: self._subnets.release_network(self._instance, subnet))

    async def add(self, network: BridgeNetwork) -> None:
        """Make a network's bridge; its subnets were claimed before. Repeatable. Raises Conflict for a link of others."""
        self._networks[network.id] = network
        try:
            await self._nft.call(lambda: self._set_up_one(network))
            await self._write()
        except Conflict:  # the link is somebody else's, and stays
            self._networks.pop(network.id, None)
            raise
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
        await self._firewalls.drop(_places(network), "" if network.link.startswith(self._prefixes) else network.link)
        for subnet in filter(None, (network.subnet, network.subnet6)):
            await self.give_back(subnet)

    async def attach(
        self, network: BridgeNetwork, port: BridgePort, netns: str, *, is_way_out: bool, is_way_out6: bool = False
    ) -> None:
        """Give the namespace at path `netns` an interface on the network's bridge, perhaps its way out. Repeatable.

        Raises Conflict when the network stays away, since somebody else has its subnet by now.
        """
        if network.id not in self._networks:
            raise Conflict(
                f"network {network.id[:12]}: its subnet {network.subnet} is somebody else's by now: remove the network, "
                "and make it again"
            )
        self._links[port.link] = network.id
        try:
            await namespaces.in_thread_async(
                lambda: _connect(network, port, netns, is_way_out=is_way_out, is_way_out6=is_way_out6),
                f"attach {port.address}",
            )
        except BaseException:
            self._links.pop(port.link, None)
            raise

    async def detach(self, link: str) -> None:
        """Take a link away; nothing if it is not there."""
        self._links.pop(link, None)
        await namespaces.in_thread_async(lambda: _delete(link), f"detach {link}")

    async def set_way_out(self, netns: str, interface: str, gateway: str) -> None:
        """Make `gateway` behind `interface` the namespace's way to everywhere."""

        def change() -> None:
            with netlink.Netlink() as net:
                index = netlink.index_of(interface)
                net.send([netlink.add_route(_everywhere(gateway), index, gateway=gateway, onlink=True)])

        await namespaces.inside_async(netns, change)

    def links(self) -> Sequence[str]:
        """Name all bridges and links of networks that the machine has, of this instance."""
        with netlink.Netlink() as net:
            return [
                link.name
                for link in net.links()
                if link.name.startswith(self._prefixes) or link.alias == mark(self._instance)
            ]

    # inside -----------------------------------------------------------------------------------------------------------
    @property
    def _prefixes(self) -> tuple[str, str]:
        prefix = ranges.link_prefix(self._instance)
        return f"{prefix}b", f"{prefix}v"

    async def _claim(self, wanted: str, *, six: bool = False) -> str:
        return await self._nft.call(
            lambda: self._subnets.claim_network(self._instance, wanted, six=six, holder=self._holder)
        )

    def _set_up(self, networks: Sequence[BridgeNetwork], links: set[str]) -> None:
        for each in networks:
            self._set_up_one(each)
        mine = {each.link for each in networks} | links
        strays = [name for name in self.links() if name not in mine]
        with netlink.Netlink() as net:
            net.send([netlink.delete_link(name) for name in strays])

    def _set_up_one(self, network: BridgeNetwork) -> None:
        forward()
        if network.subnet6:
            before = forward6()
            if _is_machines_own():  # a node that stands apart changes its own namespace, which goes with it
                for setting, value in before.items():
                    self._subnets.note_before(self._instance, setting, value)
        with netlink.Netlink() as net:
            there = net.link(network.link)
            chosen = not network.link.startswith(self._prefixes)
            if chosen and there is not None and there.alias != mark(self._instance):
                raise Conflict(f"network with name {network.link} already exists: that link is not wherry's")
            net.send(
                [
                    netlink.add_bridge(network.link, mac=ranges.mac_of(network.gateway, inside=False)),
                    netlink.set_link(network.link, alias=mark(self._instance)),
                ]
            )
            netlink.set_for_link(network.link, POD_LINK_SETTINGS)
            if network.subnet6:
                netlink.set_for_link(network.link, _NO_ANNOUNCEMENTS, "ipv6")
            addresses = _addresses(network)
            index = netlink.index_of(network.link)
            net.send(
                [netlink.set_link(network.link, up=True), *(netlink.add_address(index, each) for each in addresses)]
            )

    async def _write(self) -> None:
        """Write the tables, or take them away with the last network."""
        networks = list(self._networks.values())
        if networks:
            await self._ensure_others()
        families = [family for family in FAMILIES if family in self._made or networks_of(family, networks)]
        if families:
            await self._nft.run("\n".join(nets_table(self._instance, networks, family) for family in families))
        self._made = {family for family in families if networks_of(family, networks)}

    async def _ensure_others(self) -> bool:
        """Let all networks through other tools' firewalls; True when something was missing."""
        networks = list(self._networks.values())
        links = [each.link for each in networks if not each.link.startswith(self._prefixes)]
        return bool(networks) and await self._firewalls.ensure(
            [place for each in networks for place in _places(each)], links
        )

    async def _check(self) -> bool:
        if all([await self._is_whole(family) for family in sorted(self._made)]):
            return await self._ensure_others()
        await self._write()
        return True

    async def _check_links(self) -> bool:
        """Put bridges, their addresses and links back where somebody took them away; take strays away."""
        changed, gone = await self._nft.call(self._reconcile)
        for link in gone:
            if self._again is not None and link in self._links:
                await self._again(link)
        return bool(await self._ensure_others() or changed or gone)

    def _reconcile(self) -> tuple[bool, list[str]]:
        """Say whether something was put back, and which links have to be made anew."""
        changed = bool(self._networks) and bool(forward())
        with netlink.Netlink() as net:
            there = {link.name: link for link in net.links()}
            held = {(each.index, str(each.interface)) for each in (*net.addresses(), *net.addresses6())}
            for network in tuple(self._networks.values()):
                link = there.get(network.link)
                wanted = _addresses(network)
                if link is None or not link.is_up or any((link.index, each) not in held for each in wanted):
                    self._set_up_one(network)
                    changed = True
            gone: list[str] = []
            for name, id in tuple(self._links.items()):
                network, link = self._networks.get(id), there.get(name)
                if network is None:
                    continue
                if link is None:
                    gone.append(name)
                elif link.master != netlink.index_of(network.link):
                    net.send([netlink.set_link(name, master=netlink.index_of(network.link), up=True)])
                    net.send([netlink.set_bridge_port(name, isolated=not network.icc)])
                    changed = True
            mine = {each.link for each in self._networks.values()} | set(self._links)
            strays = [name for name in there if name.startswith(self._prefixes) and name not in mine]
            net.send([netlink.delete_link(name) for name in strays])
        return changed or bool(strays), gone

    async def _is_whole(self, family: str) -> bool:
        try:
            items = await self._nft.read(f"list table {family} {table_name(self._instance)}")
        except Broken as error:
            if "No such file or directory" in error.message:
                return False
            raise
        sets = {item["set"]["name"]: len(item["set"].get("elem", ())) for item in items if "set" in item}
        rules = sum("rule" in item for item in items)
        return (rules, sets["bridges"]) == (len(RULES[family]), len(self._networks))


def _connect(network: BridgeNetwork, port: BridgePort, netns: str, *, is_way_out: bool, is_way_out6: bool) -> None:
    """Make the pair of links and set both ends up. Runs in a thread that ends inside the namespace."""
    mac, peer_mac = (ranges.mac_of(port.address, inside=inside) for inside in (False, True))
    fd = os.open(netns, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with netlink.Netlink() as net:
            mtu = network.mtu or mtu_outwards(net)
            make = netlink.add_veth(
                port.link, mac=mac, peer=port.interface, peer_mac=port.mac or peer_mac, peer_netns_fd=fd, mtu=mtu
            )
            try:
                net.send([make])
            except Broken as error:
                if kernel.errno_of(error) != errno.EEXIST:
                    raise
                net.send([netlink.delete_link(port.link), make])  # left by an attempt that was cut short
            net.send([netlink.set_link(port.link, master=netlink.index_of(network.link))])
            # Where br_netfilter is on, who reaches itself by a published port never leaves the bridge.
            net.send([netlink.set_bridge_port(port.link, isolated=not network.icc)])
        kernel.setns(fd, kernel.CLONE_NEWNET, f"network namespace {netns}")
        with netlink.Netlink() as net:
            index = netlink.index_of(port.interface)
            requests = [netlink.set_link(port.interface, up=True)]
            requests.append(netlink.add_address(index, _with_prefix(port.address, network.subnet)))
            if is_way_out and not network.internal:
                requests.append(netlink.add_route("0.0.0.0/0", index, gateway=network.gateway))
            if port.address6:
                netlink.set_for_link(port.interface, _NO_ANNOUNCEMENTS, "ipv6")
                requests.append(netlink.add_address(index, _with_prefix(port.address6, network.subnet6)))
                if is_way_out6 and not network.internal:
                    requests.append(netlink.add_route("::/0", index, gateway=network.gateway6))
            net.send(requests)
    finally:
        os.close(fd)


def _is_machines_own() -> bool:
    """Whether the calling thread is in the network namespace of the machine's first process."""
    with suppress(Broken):
        return namespaces.identity("/proc/thread-self/ns/net") == namespaces.identity("/proc/1/ns/net")
    return False


def _addresses(network: BridgeNetwork) -> list[str]:
    """List our addresses on a bridge, with their prefixes."""
    pairs = ((network.gateway, network.subnet), (network.gateway6, network.subnet6))
    return [_with_prefix(gateway, subnet) for gateway, subnet in pairs if subnet]


def _places(network: BridgeNetwork) -> list[Place]:
    pairs = ((network.subnet, network.gateway), (network.subnet6, network.gateway6))
    return [Place(subnet, gateway, network.internal) for subnet, gateway in pairs if subnet]


def _with_prefix(address: str, subnet: str) -> str:
    return f"{address}/{ip_network(subnet).prefixlen}"


def _everywhere(gateway: str) -> str:
    return "::/0" if ":" in gateway else "0.0.0.0/0"


def _delete(link: str) -> None:
    with netlink.Netlink() as net:
        net.send([netlink.delete_link(link)])
