"""The pod network of one node: an address and a link of its own for each pod, routed by the machine.

There is no bridge between pods: each has a point-to-point link, a /32 address, and the node's gateway address as its
router, so every packet passes the machine's IP layer, and service addresses and rules work between neighbours too.

Who has which address is kept as a file for each address in `directory`: after a crash of ours the pods are still there
and so are the files. They are not synced to disk, since a reboot ends all pods: files of another boot count as nothing.
"""

import asyncio
import errno
import logging
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from ipaddress import IPv4Network
from types import TracebackType
from typing import Self

import msgspec

from wherry.errors import Broken, Unavailable
from wherry.host import kernel, namespaces, netlink, processes
from wherry.host.nftables import Nft
from wherry.network import firewalls, ranges
from wherry.network.firewalls import Firewalls, Place
from wherry.network.forwarding import forward
from wherry.network.guard import Guard
from wherry.network.ranges import Ranges
from wherry.network.types import Attachment

log = logging.getLogger(__name__)

POD_LINK_SETTINGS = (("rp_filter", "1"), ("forwarding", "1"), ("route_localnet", "1"), ("send_redirects", "0"))
"""A pod may send from its own address only; node ports answer on 127.0.0.1 too (`pods_table` keeps pods off that)."""


class Record(msgspec.Struct, frozen=True):
    """What one file says. `netns_id`: device and inode of the namespace that the link leads into; `ready`: it does."""

    boot_id: str

    owner: str
    address: str
    netns: str
    netns_id: tuple[int, int]
    ready: bool = False


class LocalPodNetwork:
    """`types.PodNetwork` by links, routes and nftables of this network namespace. A context manager: entering starts it.

    `number` tells the nodes of one instance apart (its gateway link is `wh<id>g<number>`). Leaving the context keeps the
    pods connected; `close(remove=True)` takes everything away. `mtu` 0 means that of the way to the world.
    `turned_on` names the machine-wide settings that `start` changed, with their old values (see `Claims.note_before`).
    """

    def __init__(
        self, instance: str, number: int, node: Ranges, directory: str, nft: Nft, guard: Guard, *, mtu: int = 0
    ) -> None:
        self._instance, self._ranges, self._directory, self._mtu = instance, node, directory, mtu
        self._nft, self._guard = nft, guard
        self._link = ranges.gateway_link(instance, number)
        self._link_index = 0
        self._boot_id = processes.boot_id()
        self._firewalls = Firewalls(nft, instance)
        self._places = [Place(node.node, node.gateway)]
        self._records: dict[str, Record] = {}
        self._by_address: dict[str, str] = {}
        self._usable = ranges.usable(node.node)
        self._next = 0
        self._locks: dict[str, asyncio.Lock] = {}
        self._routes: dict[str, str] = {}
        self.turned_on: dict[str, str] = {}

    @property
    def gateway(self) -> str:
        """See PodNetwork."""
        return self._ranges.gateway

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()

    async def start(self) -> None:
        """Make the gateway, routes and rules, or find those of before; take up the pods that are attached."""
        os.makedirs(self._directory, mode=0o700, exist_ok=True)
        self._records = {record.owner: record for record in _load(self._directory, self._boot_id)}
        self._by_address = {record.address: record.owner for record in self._records.values()}
        await self._nft.call(self._set_up)
        await self._nft.run(pods_table(self._instance, self._ranges))
        await self._firewalls.ensure(self._places)
        self._guard.add("pods", self._check)
        self._guard.add_regular("pods' links", self._check_links)

    async def close(self, *, remove: bool = False) -> None:
        """Stop looking after it; with `remove` take every pod's link, the gateway, routes and rules away."""
        for name in ("pods", "pods' links"):
            self._guard.drop(name)
        if not remove:
            return
        await firewalls.remove(self._nft, self._instance, [self._ranges.node])
        await self._nft.run(f"add table ip {table_name(self._instance)}\ndelete table ip {table_name(self._instance)}")
        await self._nft.call(self._tear_down)
        for record in self._records.values():
            _forget(self._directory, record.address)
        with suppress(OSError):
            os.rmdir(self._directory)
        self._records.clear()
        self._by_address.clear()

    async def attach(self, owner: str, netns: str, *, mac: str = "") -> Attachment:
        """See PodNetwork. Raises Unavailable when every address is taken, Broken with the kernel's words."""
        async with self._locks.setdefault(owner, asyncio.Lock()):
            identity = namespaces.identity(netns)
            record = self._records.get(owner)
            if record is not None and record.ready and record.netns_id == identity and self._is_linked(record):
                return self._attachment(record)
            begun = Record(self._boot_id, owner, record.address if record else self._free_address(), netns, identity)
            self._keep(begun)  # before the link is made: after a crash we know what to look for
            try:
                await namespaces.in_thread_async(lambda: self._connect(begun, mac), f"attach {begun.address}")
            except Broken:
                await self._drop(begun)
                raise
            self._keep(msgspec.structs.replace(begun, ready=True))
            return self._attachment(begun)

    async def detach(self, owner: str) -> None:
        """See PodNetwork."""
        async with self._locks.setdefault(owner, asyncio.Lock()):
            record = self._records.get(owner)
            if record is not None:
                await self._drop(record)
        self._locks.pop(owner, None)

    async def attachments(self) -> Sequence[tuple[str, Attachment]]:
        """See PodNetwork."""
        return [(record.owner, self._attachment(record)) for record in self._records.values()]

    async def sync_routes(self, wanted: Mapping[str, str]) -> None:
        """Reach other nodes' pods: `wanted` has the node's address by its pod range. Ours is left out by itself.

        A node must be a neighbour on some link of ours: there is no tunnel. From the first call on, what goes to pods
        of nodes that are not in `wanted` is refused at once; without one it follows the default route (a node in a
        namespace of this machine sends everything to the machine). Raises Broken after setting all others.
        """
        mine = IPv4Network(self._ranges.node)
        target = {cidr: address for cidr, address in wanted.items() if IPv4Network(cidr) != mine}
        failures = await self._nft.call(lambda: self._set_routes(target))
        if failures:
            raise Broken(f"{'; '.join(failures)}: the other node must be on a network that this one is on too")

    # in threads -------------------------------------------------------------------------------------------------------
    def _set_up(self) -> None:
        self.turned_on = forward()
        with netlink.Netlink() as net:
            self._mtu = self._mtu or mtu_outwards(net)
            net.send([netlink.add_bridge(self._link, mac=ranges.mac_of(self.gateway, inside=False))])
            self._link_index = netlink.index_of(self._link)
            net.send(
                [
                    netlink.add_address(self._link_index, f"{self.gateway}/32"),
                    netlink.add_route(self._ranges.services, self._link_index, source=self.gateway),
                    netlink.add_unreachable(self._ranges.node),
                ]
            )
            mine = {ranges.pod_link(self._instance, record.address) for record in self._records.values()}
            prefix = f"{ranges.link_prefix(self._instance)}p"
            strays = [link.name for link in net.links() if link.name.startswith(prefix) and link.name not in mine]
            net.send([netlink.delete_link(name) for name in strays])
            self._routes = {
                str(route.destination): str(route.gateway)
                for route in net.routes()
                if route.gateway and route.destination.subnet_of(IPv4Network(self._ranges.pods))
            }

    def _tear_down(self) -> None:
        with netlink.Netlink() as net:
            prefix = f"{ranges.link_prefix(self._instance)}p"
            net.send([netlink.delete_route(cidr) for cidr in self._routes])
            net.send([netlink.delete_link(link.name) for link in net.links() if link.name.startswith(prefix)])
            net.send([netlink.delete_link(self._link)])
            net.send([netlink.delete_unreachable(cidr) for cidr in (self._ranges.node, self._ranges.pods)])
        self._routes = {}

    def _set_routes(self, target: Mapping[str, str]) -> list[str]:
        failures: list[str] = []
        with netlink.Netlink() as net:
            net.send([netlink.add_unreachable(self._ranges.pods)])
            for cidr in [cidr for cidr in self._routes if cidr not in target]:
                net.send([netlink.delete_route(cidr)])
                del self._routes[cidr]
            for cidr, address in target.items():
                if self._routes.get(cidr) == address:
                    continue
                try:
                    net.send([netlink.add_route(cidr, 0, gateway=address)])
                    self._routes[cidr] = address
                except Broken as error:
                    failures.append(f"node {address}: {error}")
        return failures

    def _connect(self, record: Record, own_mac: str) -> None:
        """Make the pair of links and set both ends up. Runs in a thread that ends inside the pod's namespace."""
        name = ranges.pod_link(self._instance, record.address)
        mac, peer_mac = (ranges.mac_of(record.address, inside=inside) for inside in (False, True))
        peer_mac = own_mac or peer_mac
        netns = os.open(record.netns, os.O_RDONLY | os.O_CLOEXEC)
        try:
            with netlink.Netlink() as net:
                make = netlink.add_veth(
                    name, mac=mac, peer="eth0", peer_mac=peer_mac, peer_netns_fd=netns, mtu=self._mtu
                )
                try:
                    net.send([make])
                except Broken as error:
                    if kernel.errno_of(error) != errno.EEXIST:
                        raise
                    net.send([netlink.delete_link(name), make])  # left by an attempt that was cut short
                netlink.set_for_link(name, POD_LINK_SETTINGS)
                index = netlink.index_of(name)
                net.send([netlink.add_neighbour(index, record.address, peer_mac), self._way_to(record, index)])
            kernel.setns(netns, kernel.CLONE_NEWNET, f"network namespace {record.netns}")
            with netlink.Netlink() as net:
                index = netlink.index_of("eth0")
                net.send(
                    [
                        netlink.set_link("eth0", up=True),
                        netlink.add_address(index, f"{record.address}/32"),
                        netlink.add_neighbour(index, self.gateway, mac),
                        netlink.add_route("0.0.0.0/0", index, gateway=self.gateway, onlink=True),
                    ]
                )
        finally:
            os.close(netns)

    def _way_to(self, record: Record, index: int) -> netlink.Request:
        return netlink.add_route(f"{record.address}/32", index, source=self.gateway)

    def _disconnect(self, address: str) -> None:
        with netlink.Netlink() as net:
            net.send([netlink.delete_link(ranges.pod_link(self._instance, address))])

    # on the loop ------------------------------------------------------------------------------------------------------
    async def _check(self) -> bool:
        """Put our table, and our places in other firewalls, back where somebody flushed them."""
        tables = await self._nft.read("list tables ip")
        is_there = any(item["table"]["name"] == table_name(self._instance) for item in tables if "table" in item)
        if not is_there or not await self._has_rules():
            await self._nft.run(pods_table(self._instance, self._ranges))
            is_there = False
        return await self._firewalls.ensure(self._places) or not is_there

    async def _check_links(self) -> bool:
        """Put back what somebody took away and nftables does not count: links, addresses, rules of the old iptables."""
        changed, gone = await self._nft.call(self._reconcile)
        for record in gone:
            await self.attach(record.owner, record.netns)
        return bool(await self._firewalls.ensure(self._places) or changed or gone)

    def _reconcile(self) -> tuple[bool, list[Record]]:
        """Say whether something was put back, and whose links have to be made anew."""
        changed = bool(forward())
        with netlink.Netlink() as net:
            there = {link.name: link for link in net.links()}
            held = {(each.index, str(each.interface.ip)) for each in net.addresses()}
        link = there.get(self._link)
        if link is None or not link.is_up or (link.index, self.gateway) not in held:
            self._set_up()
            changed = True
        records = [each for each in tuple(self._records.values()) if each.ready and os.path.exists(each.netns)]
        links = [(each, there.get(ranges.pod_link(self._instance, each.address))) for each in records]
        if changed:  # the ways to pods have our address for their source, and went with it
            with netlink.Netlink() as net:
                net.send([self._way_to(each, link.index) for each, link in links if link is not None])
        return changed, [each for each, link in links if link is None]

    async def _has_rules(self) -> bool:
        items = await self._nft.read(f"list table ip {table_name(self._instance)}")
        return sum("rule" in item for item in items) == pods_table(self._instance, self._ranges).count("rule ip ")

    async def _drop(self, record: Record) -> None:
        await namespaces.in_thread_async(lambda: self._disconnect(record.address), f"detach {record.address}")
        self._records.pop(record.owner, None)
        self._by_address.pop(record.address, None)
        _forget(self._directory, record.address)

    def _keep(self, record: Record) -> None:
        try:
            path = f"{self._directory}/{record.address}"
            with open(f"{path}.new", "wb") as file:
                file.write(msgspec.json.encode(record))
            os.replace(f"{path}.new", path)
        except OSError as error:
            raise kernel.refused(f"note {record.address} for {record.owner}", error.errno or 0) from error
        self._records[record.owner] = record
        self._by_address[record.address] = record.owner

    def _free_address(self) -> str:
        """Take the next free one: one just given back comes last, since others may still talk to it."""
        for step in range(len(self._usable)):
            address = self._usable[(self._next + step) % len(self._usable)]
            if address not in self._by_address:
                self._next = (self._next + step + 1) % len(self._usable)
                return address
        raise Unavailable(f"all {len(self._usable)} pod addresses of {self._ranges.node} are taken")

    def _is_linked(self, record: Record) -> bool:
        with suppress(Broken):
            return netlink.index_of(ranges.pod_link(self._instance, record.address)) > 0
        return False

    def _attachment(self, record: Record) -> Attachment:
        return Attachment(record.address, self.gateway, ranges.pod_link(self._instance, record.address))


def mtu_outwards(net: netlink.Netlink) -> int:
    """Find the MTU of the default route's link; 0 (the kernel's default) without one, and never more than that."""
    outwards = {route.index for route in net.routes() if route.destination.prefixlen == 0}
    found = [link.mtu for link in net.links() if link.index in outwards]
    return min(found) if found and min(found) < 1500 else 0


def table_name(instance: str) -> str:
    """Name the table for pods; services have their own, `wherry-<id>`."""
    return f"wherry-{instance}-pods"


def pods_table(instance: str, node: Ranges) -> str:
    """Write the table: pods go out to the world by the node's address, and cannot reach what listens on 127.0.0.1.

    The latter is needed since links of ours have route_localnet, for node ports on 127.0.0.1. Answers to those are not
    meant: they come in with the gateway's address, and get the other one later.
    """
    table = f"ip {table_name(instance)}"
    return "\n".join(
        [
            f"add table {table}",
            f"delete table {table}",
            f"add table {table}",
            f"add chain {table} guard {{ type filter hook prerouting priority raw; }}",
            f'add rule {table} guard iifname != "lo" ip daddr 127.0.0.0/8 drop',
            f"add chain {table} outgoing {{ type nat hook postrouting priority srcnat; }}",
            f"add rule {table} outgoing ip saddr {node.node} ip daddr != {node.pods} masquerade",
        ]
    )


def _load(directory: str, boot_id: str) -> list[Record]:
    """Read the files; one that cannot be read is of no attachment that was ever handed out."""
    found: dict[str, Record] = {}
    for name in sorted(os.listdir(directory)):
        path = f"{directory}/{name}"
        try:
            with open(path, "rb") as file:
                record = msgspec.json.decode(file.read(), type=Record)
        except msgspec.DecodeError as error:
            log.warning("%s cannot be read, so it is dropped: %s", path, error)
            _forget(directory, name)
            continue
        if name != record.address or record.owner in found or record.boot_id != boot_id:
            _forget(directory, name)
            continue
        found[record.owner] = record
    return list(found.values())


def _forget(directory: str, name: str) -> None:
    with suppress(FileNotFoundError):
        os.unlink(f"{directory}/{name}")
