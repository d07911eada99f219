"""Nodes that live in a network namespace of this machine, with a link to it: several machines on one."""

import errno
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Interface

from wherry.errors import Broken
from wherry.host import kernel, namespaces, netlink
from wherry.host.nftables import Nft
from wherry.network import firewalls, ranges
from wherry.network.bridges import mark
from wherry.network.firewalls import Firewalls, Place
from wherry.network.forwarding import forward
from wherry.network.pods import table_name
from wherry.network.services import table_name as services_table_name

SETTINGS = (("rp_filter", "0"), ("forwarding", "1"), ("route_localnet", "1"), ("send_redirects", "0"))
"""Of the host's end: other nodes' pods come in by it, so the way back need not be the same."""


@dataclass(frozen=True, slots=True)
class NodeLink:
    """A node's namespace and its link: addresses with prefix, such as 10.127.239.2/30."""

    netns: str
    link: str
    host_address: str
    node_address: str

    @property
    def address(self) -> str:
        """The node's address without prefix: its InternalIP."""
        return str(IPv4Interface(self.node_address).ip)

    @property
    def host(self) -> str:
        """The host's address on this link without prefix: the node's router."""
        return str(IPv4Interface(self.host_address).ip)


class NodeNamespace:
    """A network namespace for the processes of node `number`, pinned in `directory`.

    The host routes for it and masks it towards the world; its own pods' network it sets up itself, from inside.
    `create` may be repeated; `remove` takes everything away, also what a killed process left.
    """

    def __init__(
        self, instance: str, number: int, directory: str, nft: Nft, *, addresses: tuple[str, str], local: str
    ) -> None:
        """`addresses`: (host's, node's) with prefix, see `Claim.link_pair`; `local`: ranges never masked, as nft set."""
        self._instance, self._number, self._directory, self._nft = instance, number, directory, nft
        self._addresses, self._local = addresses, local

    async def create(self) -> NodeLink:
        """Make the namespace and its link, or find them. Raises Broken."""
        name = ranges.node_link(self._instance, self._number)
        netns = (await namespaces.create_async(self._directory, ("net",)))["net"]
        made = NodeLink(netns, name, *self._addresses)
        try:
            await namespaces.in_thread_async(lambda: _connect(made), f"node {self._number}")
            await self._nft.run(nodes_table(self._instance, self._number, self._addresses[1], self._local))
            await self._let_through()
        except BaseException:
            await self.remove()
            raise
        return made

    async def check(self) -> bool:
        """Put the table and Docker's rules back where somebody flushed them (for a `Guard`); True when it was so."""
        name = f"ip {nodes_table_name(self._instance, self._number)}"
        is_there = name in await _tables_of(self._instance, self._nft)
        if not is_there:
            await self._nft.run(nodes_table(self._instance, self._number, self._addresses[1], self._local))
        return await self._let_through() or not is_there

    async def _let_through(self) -> bool:
        """Let the node's packets pass other tools' firewalls; True when something was missing."""
        host = IPv4Interface(self._addresses[0])
        return await Firewalls(self._nft, self._instance).ensure([Place(str(host.network), str(host.ip))])

    async def remove(self) -> None:
        """Take the link, its rules and the namespace away. Processes inside keep a namespace without links."""
        name = ranges.node_link(self._instance, self._number)
        await namespaces.in_thread_async(lambda: _delete_link(name), f"remove {name}")
        table = nodes_table_name(self._instance, self._number)
        await self._nft.run(f"add table ip {table}\ndelete table ip {table}")
        namespaces.remove(self._directory)


async def cut(instance: str, number: int) -> None:
    """Take only the link of a node in a namespace away, as a pulled cable would; nothing if it is not there."""
    name = ranges.node_link(instance, number)
    await namespaces.in_thread_async(lambda: _delete_link(name), f"cut {name}")


def nodes_table_name(instance: str, number: int) -> str:
    """Name the table that masks a node in a namespace towards the world."""
    return f"wherry-{instance}-node{number}"


def nodes_table(instance: str, number: int, node_address: str, local: str) -> str:
    """Write the table: what the node sends anywhere but to the cluster goes out by the host's address."""
    table = f"ip {nodes_table_name(instance, number)}"
    network = IPv4Interface(node_address).network
    return "\n".join(
        [
            f"add table {table}",
            f"delete table {table}",
            f"add table {table}",
            f"add chain {table} outgoing {{ type nat hook postrouting priority srcnat; }}",
            f"add rule {table} outgoing ip saddr {network} ip daddr != {{ {local} }} masquerade",
        ]
    )


async def leftovers(instance: str, nft: Nft) -> list[str]:
    """Name what an instance still has in this network namespace: links, routes' links and tables."""
    links = await nft.call(lambda: _links_of(instance))
    return [f"link {name}" for name in links] + [f"table {name}" for name in await _tables_of(instance, nft)]


async def sweep(instance: str, nft: Nft, ranges: Sequence[str] = ()) -> None:
    """Take away everything that an instance has in this network namespace, whoever made it: links, tables, rules.

    `ranges` are its addresses: those that a firewall was told of are taken back.
    """
    await firewalls.remove(nft, instance, ranges)
    for table in await _tables_of(instance, nft):
        await nft.run(f"add table {table}\ndelete table {table}")
    await nft.call(lambda: _sweep_links(instance))


async def _tables_of(instance: str, nft: Nft) -> list[str]:
    """Name them with their families."""
    mine = {table_name(instance), services_table_name(instance)}
    tables = [item["table"] for item in await nft.read("list tables") if "table" in item]
    return [
        f"{each['family']} {each['name']}"
        for each in tables
        if each["name"] in mine or each["name"].startswith(f"wherry-{instance}-")
    ]


def _links_of(instance: str) -> Sequence[str]:
    with netlink.Netlink() as net:
        return [link.name for link in net.links() if _is_of(instance, link)]


def _is_of(instance: str, link: netlink.Link) -> bool:
    return link.name.startswith(ranges.link_prefix(instance)) or link.alias == mark(instance)


def _sweep_links(instance: str) -> None:
    with netlink.Netlink() as net:
        own = {link.index for link in net.links() if _is_of(instance, link)}
        pods = [address.interface for address in net.addresses() if address.index in own]
        net.send([netlink.delete_link(name) for name in _links_of(instance)])
        routes = net.routes()
        for around in routes:  # "unreachable" is on no link; ours is the one round our gateway's address
            if around.is_unreachable and any(address.ip in around.destination for address in pods):
                inner = [one for one in routes if one.gateway and one.destination.subnet_of(around.destination)]
                net.send([netlink.delete_route(str(one.destination)) for one in inner])
                net.send([netlink.delete_unreachable(str(around.destination))])


def _delete_link(name: str) -> None:
    with netlink.Netlink() as net:
        net.send([netlink.delete_link(name)])


def _connect(node: NodeLink) -> None:
    """Make the link and set both ends up. Runs in a thread that ends inside the node's namespace."""
    forward()
    fd = os.open(node.netns, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with netlink.Netlink() as net:
            macs = [
                ranges.mac_of(address, inside=inside) for address, inside in ((node.host, False), (node.address, True))
            ]
            try:
                net.send([netlink.add_veth(node.link, mac=macs[0], peer="eth0", peer_mac=macs[1], peer_netns_fd=fd)])
            except Broken as error:
                if kernel.errno_of(error) != errno.EEXIST:
                    raise
            netlink.set_for_link(node.link, SETTINGS)
            net.send([netlink.add_address(netlink.index_of(node.link), node.host_address)])
        kernel.setns(fd, kernel.CLONE_NEWNET, f"network namespace {node.netns}")
        with netlink.Netlink() as net:
            index = netlink.index_of("eth0")
            net.send([netlink.set_link("eth0", up=True), netlink.add_address(index, node.node_address)])
            net.send([netlink.add_route("0.0.0.0/0", index, gateway=node.host)])
        with suppress(Broken):  # not every kernel has them
            namespaces.sysctl("net.ipv4.conf.eth0.rp_filter", "0")
        namespaces.sysctl("net.ipv4.conf.eth0.route_localnet", "1")
    finally:
        os.close(fd)
