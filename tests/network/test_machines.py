"""Two nodes on one machine: packets between their pods, services over both, nothing left behind."""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace

import pytest

from wherry.errors import Broken
from wherry.host import kernel, namespaces, netlink
from wherry.host.nftables import Nft
from wherry.network.guard import Guard
from wherry.network.machines import NodeLink, NodeNamespace, leftovers, sweep
from wherry.network.pods import LocalPodNetwork
from wherry.network.services import NftServices
from wherry.network.types import Port, Service

from .conftest import RANGES, Node, Server, ask

pytestmark = pytest.mark.root
SECOND = replace(RANGES, node="10.64.2.0/24")
VIP = "10.112.0.10"


@pytest.fixture
async def link(node: Node) -> AsyncIterator[NodeLink]:
    """The second node's namespace, with routes on both sides and one pod `far` in it."""
    place = NodeNamespace(
        node.instance,
        1,
        str(node.directory / "second"),
        node.nft,
        addresses=("10.127.0.5/30", "10.127.0.6/30"),
        local=f"{RANGES.pods}, {RANGES.services}",
    )
    try:
        made = await place.create()
        assert await place.create() == made
        await node.pods.sync_routes({SECOND.node: made.address, RANGES.node: "192.0.2.1"})
        netns = namespaces.create(str(node.directory / "ns" / "far"), ("net",))["net"]
        node.netns["far"] = netns

        async def second(pods: LocalPodNetwork, services: NftServices) -> None:
            assert (await pods.attach("far", netns)).address == "10.64.2.2"
            await services.sync([web("10.64.1.2", "10.64.2.2")])

        await on_second(node, made, second)
        yield made
    finally:
        await place.remove()
        await place.remove()


async def on_second(
    node: Node, link: NodeLink, work: Callable[[LocalPodNetwork, NftServices], Awaitable[None]]
) -> None:
    """Do something as the second node's own process would: from inside its namespace."""

    async def body() -> None:
        with Nft() as nft:
            guard = Guard(nft)
            pods = LocalPodNetwork(node.instance, 1, SECOND, str(node.directory / "pods2"), nft, guard)
            async with pods:
                await work(pods, NftServices(node.instance, SECOND, nft, guard))

    await namespaces.inside_async(link.netns, lambda: asyncio.run(body()))


def web(*addresses: str) -> Service:
    return Service("default/web", [VIP], [Port("TCP", 80, [(address, 8080) for address in addresses], 30_080)])


async def test_pods_of_two_nodes_talk_as_themselves(node: Node, link: NodeLink) -> None:
    near = await node.pod("near")
    servers = [Server(node.netns["near"], "near", 8080), Server(node.netns["far"], "far", 8080)]
    assert await ask(node.netns["near"], "10.64.2.2", 8080) == "far"
    assert await ask(node.netns["far"], near, 8080) == "near"
    assert await ask(None, "10.64.2.2", 8080) == "far"
    assert await ask(link.netns, near, 8080) == "near"
    assert servers[0].hits == ["10.64.2.2", link.address]
    assert servers[1].hits[0] == near
    for server in servers:
        server.close()


async def test_a_service_spreads_over_both_nodes_from_everywhere(node: Node, link: NodeLink) -> None:
    near = await node.pod("near")
    servers = [Server(node.netns["near"], "near", 8080), Server(node.netns["far"], "far", 8080)]
    await node.services.sync([web(near, "10.64.2.2")])
    for netns, address, port in (
        (node.netns["near"], VIP, 80),
        (node.netns["far"], VIP, 80),
        (None, VIP, 80),
        (link.netns, VIP, 80),
        (None, "127.0.0.1", 30_080),
        (None, link.address, 30_080),
        (link.netns, "127.0.0.1", 30_080),
        (link.netns, link.host, 30_080),
    ):
        answers = {await ask(netns, address, port) for _ in range(24)}
        assert answers == {"near", "far"}, (netns, address)
    for server in servers:
        server.close()


async def test_the_second_nodes_pods_reach_the_world_by_the_hosts_address(node: Node, link: NodeLink) -> None:
    outside = namespaces.create(str(node.directory / "ns" / "outside"), ("net",))["net"]
    node.netns["outside"] = outside
    with open(outside, "rb") as other, netlink.Netlink() as net:
        macs = {"mac": "0a:00:00:00:00:01", "peer_mac": "0a:00:00:00:00:02"}
        net.send([netlink.add_veth("wan", peer="eth0", peer_netns_fd=other.fileno(), **macs)])
        net.send([netlink.add_address(netlink.index_of("wan"), "192.0.2.1/24")])

    def inside() -> None:
        with netlink.Netlink() as net:
            net.send([netlink.set_link("eth0", up=True)])
            net.send([netlink.add_address(netlink.index_of("eth0"), "192.0.2.2/24")])

    namespaces.inside(outside, inside)
    server = Server(outside, "world", 80)
    for netns in (node.netns["far"], link.netns):
        assert await ask(netns, "192.0.2.2", 80) == "world"
    assert server.hits == ["192.0.2.1"] * 2
    server.close()


async def test_a_lost_nodes_routes_go(node: Node, link: NodeLink) -> None:
    await node.pods.sync_routes({})
    await node.pod("near")
    with pytest.raises(OSError, match="Errno 113"):  # unreachable at once, and not by the default route
        await ask(node.netns["near"], "10.64.2.2", 8080)


async def test_sweep_leaves_nothing_of_an_instance(node: Node, link: NodeLink) -> None:
    await node.pod("near")
    await node.services.sync([web("10.64.1.2")])
    with netlink.Netlink() as net:
        net.send([netlink.add_bridge("innocent")])
    assert len(await leftovers(node.instance, node.nft)) == 6
    for _ in range(2):
        await sweep(node.instance, node.nft)
    assert await leftovers(node.instance, node.nft) == []
    with netlink.Netlink() as net:
        assert net.routes() == []
        assert {one.name for one in net.links()} == {"lo", "innocent"}


async def test_a_nodes_table_is_put_back(node: Node, link: NodeLink) -> None:
    addresses = (link.host_address, link.node_address)
    place = NodeNamespace(
        node.instance, 1, str(node.directory / "second"), node.nft, addresses=addresses, local=RANGES.pods
    )
    assert not await place.check()
    await node.nft.run("flush ruleset")
    assert await place.check()
    assert not await place.check()


async def test_two_nodes_know_the_way_to_each_other_when_told(node: Node, link: NodeLink) -> None:
    async def second(pods: LocalPodNetwork, services: NftServices) -> None:
        await pods.sync_routes({RANGES.node: link.host})
        await pods.sync_routes({RANGES.node: link.host})

    await on_second(node, link, second)
    near = await node.pod("near")
    server = Server(node.netns["near"], "near", 8080)
    assert await ask(node.netns["far"], near, 8080) == "near"
    server.close()
    with pytest.raises(Broken, match=r"node 192\.0\.2\.9: add route to 10\.64\.3\.0/24: Network"):
        await node.pods.sync_routes({"10.64.3.0/24": "192.0.2.9", SECOND.node: link.address})


async def test_the_loop_stays_in_its_namespace(node: Node, link: NodeLink, host: str) -> None:
    assert os.stat("/proc/thread-self/ns/net").st_ino == os.stat(host).st_ino
    assert namespaces.KINDS["net"] == kernel.CLONE_NEWNET
