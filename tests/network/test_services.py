"""Service addresses with real packets: spread, hairpin, refusal, node ports, affinity, repair."""

import asyncio
import socket
from collections import Counter

import pytest

from wherry.host import namespaces, netlink, spawn
from wherry.network.types import Port, Service

from .conftest import Node, Server, ask, make, until

pytestmark = pytest.mark.root
VIP = "10.112.0.10"


def web(*addresses: str, node_port: int = 0, affinity_s: int = 0, protocol: str = "TCP") -> Service:
    endpoints = [(address, 8080) for address in addresses]
    return Service("default/web", [VIP], [Port(protocol, 80, endpoints, node_port)], affinity_s)


async def servers(node: Node, *names: str, udp: bool = False) -> dict[str, Server]:
    made: dict[str, Server] = {}
    for name in names:
        address = await node.pod(name)
        made[address] = Server(node.netns[name], name, 8080, udp=udp)
    return made


async def test_connections_spread_over_backends_from_pods_and_from_the_host(node: Node) -> None:
    made = await servers(node, "a", "b", "c")
    await node.pod("client")
    await node.services.sync([web(*made)])
    for netns in (node.netns["client"], None):
        answers = Counter([await ask(netns, VIP, 80) for _ in range(60)])
        assert set(answers) == {"a", "b", "c"}
        assert min(answers.values()) >= 5
    sources = {source for server in made.values() for source in server.hits}
    assert sources == {"10.64.1.5", node.pods.gateway}  # a pod is seen as itself
    for server in made.values():
        server.close()


async def test_a_pod_reaches_itself_through_the_service(node: Node) -> None:
    made = await servers(node, "a")
    await node.services.sync([web(*made)])
    assert await ask(node.netns["a"], VIP, 80) == "a"
    (server,) = made.values()
    assert server.hits == [node.pods.gateway]
    server.close()


async def test_a_service_without_backends_refuses_at_once(node: Node) -> None:
    await node.pod("client")
    outside = Service("default/lb", ["203.0.113.7"], [Port("TCP", 80, [])])
    await node.services.sync([web(), outside])
    for netns in (node.netns["client"], None):
        for address, port in ((VIP, 80), (VIP, 81), ("10.112.0.99", 80)):
            with pytest.raises(ConnectionRefusedError):
                await ask(netns, address, port)
    outer = namespaces.create(str(node.directory / "ns" / "outside"), ("net",))["net"]
    node.netns["outside"] = outer
    _link("wan", "203.0.113.1/24", outer, "203.0.113.2/24")
    for netns in (node.netns["client"], None):
        with pytest.raises(ConnectionRefusedError):
            await ask(netns, "203.0.113.7", 80)


async def test_established_connections_outlive_their_backends_removal(node: Node) -> None:
    await node.pod("a")
    listener = namespaces.socket_inside(node.netns["a"], socket.AF_INET, socket.SOCK_STREAM)
    listener.bind(("0.0.0.0", 8080))
    listener.listen()
    listener.setblocking(False)
    loop = asyncio.get_running_loop()
    await node.services.sync([web("10.64.1.2")])
    client = make(None, socket.SOCK_STREAM)
    client.setblocking(False)
    await loop.sock_connect(client, (VIP, 80))
    server, _ = await loop.sock_accept(listener)
    server.setblocking(False)
    await node.services.sync([])
    with pytest.raises(ConnectionRefusedError):
        await ask(None, VIP, 80)
    await loop.sock_sendall(client, b"still")
    assert await asyncio.wait_for(loop.sock_recv(server, 10), 5) == b"still"
    await loop.sock_sendall(server, b"there")
    assert await asyncio.wait_for(loop.sock_recv(client, 10), 5) == b"there"
    for each in (client, server, listener):
        each.close()


async def test_node_ports_answer_on_every_address_of_the_node(node: Node) -> None:
    made = await servers(node, "a", "b")
    await node.pod("client")
    await node.services.sync([web(*made, node_port=30_080)])
    outside = namespaces.create(str(node.directory / "ns" / "outside"), ("net",))["net"]
    node.netns["outside"] = outside
    _link("wan", "192.0.2.1/24", outside, "192.0.2.2/24")
    for netns, address in (
        (None, "127.0.0.1"),
        (None, node.pods.gateway),
        (None, "192.0.2.1"),
        (node.netns["client"], "192.0.2.1"),
        (outside, "192.0.2.1"),
    ):
        assert await ask(netns, address, 30_080) in {"a", "b"}, address
    hits = {source for server in made.values() for source in server.hits}
    assert hits == {node.pods.gateway, "10.64.1.4"}  # whoever is outside is answered through this node
    await node.services.sync([web(node_port=30_080)])
    with pytest.raises(ConnectionRefusedError):
        await ask(outside, "192.0.2.1", 30_080)
    for server in made.values():
        server.close()


async def test_pods_go_out_by_the_nodes_address(node: Node) -> None:
    outside = namespaces.create(str(node.directory / "ns" / "outside"), ("net",))["net"]
    node.netns["outside"] = outside
    _link("wan", "192.0.2.1/24", outside, "192.0.2.2/24")
    await node.pod("client")
    server = Server(outside, "world", 80)
    assert await ask(node.netns["client"], "192.0.2.2", 80) == "world"
    assert server.hits == ["192.0.2.1"]
    server.close()


async def test_a_client_with_affinity_stays_until_its_backend_goes(node: Node) -> None:
    made = await servers(node, "a", "b", "c", "d")
    await node.pod("client")
    by_name = {server.name: address for address, server in made.items()}
    await node.services.sync([web(*made, affinity_s=60, node_port=30_080)])
    first = {await ask(node.netns["client"], VIP, 80) for _ in range(12)}
    assert len(first) == 1
    (chosen,) = first
    rest = [address for address in made if address != by_name[chosen]]
    await node.services.sync([web(by_name[chosen], *rest[:1], affinity_s=60, node_port=30_080)])
    assert {await ask(node.netns["client"], VIP, 80) for _ in range(12)} == first
    await node.services.sync([web(*rest, affinity_s=60, node_port=30_080)])
    second = {await ask(node.netns["client"], VIP, 80) for _ in range(12)}
    assert len(second) == 1
    assert second != first
    assert len({await ask(None, "127.0.0.1", 30_080) for _ in range(12)}) == 1
    for server in made.values():
        server.close()


async def test_udp_flows_leave_a_backend_that_is_removed(node: Node) -> None:
    made = await servers(node, "a", "b", udp=True)
    await node.pod("client")
    first, second = made
    loop = asyncio.get_running_loop()
    await node.services.sync([web(first, protocol="UDP")])
    client = make(node.netns["client"], socket.SOCK_DGRAM)
    client.setblocking(False)
    client.connect((VIP, 80))
    for services, answer in (([web(first, protocol="UDP")], b"a"), ([web(second, protocol="UDP")], b"b")):
        await node.services.sync(services)
        await loop.sock_sendall(client, b"x")
        assert await asyncio.wait_for(loop.sock_recv(client, 10), 5) == answer
    client.close()
    for server in made.values():
        server.close()


async def test_a_foreign_flush_is_repaired_within_seconds(node: Node) -> None:
    made = await servers(node, "a")
    await node.pod("client")
    await node.services.sync([web(*made)])
    async with node.guard:
        for damage in (
            "flush ruleset",
            f"delete table ip wherry-{node.instance}",
            f"flush chain ip wherry-{node.instance} arriving",
            f"flush map ip wherry-{node.instance} ports",
            f"flush table ip wherry-{node.instance}-pods",
        ):
            repairs = node.guard.repairs
            await node.nft.run(damage)
            await until(lambda repairs=repairs: node.guard.repairs > repairs)
            assert await ask(node.netns["client"], VIP, 80) == "a"
        assert not await node.services._differs()
        repairs = node.guard.repairs
        await node.nft.run("add table ip somebody_elses")
        await node.services.sync([web()])
        await node.services.sync([web(*made)])
        assert await ask(node.netns["client"], VIP, 80) == "a"
        assert node.guard.repairs == repairs
    for server in made.values():
        server.close()


async def test_a_change_meets_a_table_that_was_just_flushed(node: Node) -> None:
    made = await servers(node, "a", "b")
    first, second = made
    await node.services.sync([web(first)])
    await node.nft.run("flush ruleset")
    await node.services.sync([web(second)])
    assert await ask(None, VIP, 80) == "b"
    for server in made.values():
        server.close()


async def test_beside_docker_pods_are_let_through_its_drop(node: Node) -> None:
    made = await servers(node, "a")
    await node.pod("client")
    await node.services.sync([web(*made)])
    docker = """
        add table ip filter
        add chain ip filter FORWARD { type filter hook forward priority filter; policy drop; }
        add chain ip filter DOCKER-USER
        add rule ip filter DOCKER-USER counter return
        add rule ip filter FORWARD jump DOCKER-USER
    """
    await node.nft.run(docker)
    with pytest.raises(TimeoutError):
        await ask(node.netns["client"], VIP, 80, timeout_s=0.3)
    async with node.guard:
        await until(lambda: node.guard.repairs > 0)
        assert await ask(node.netns["client"], VIP, 80) == "a"
        repairs = node.guard.repairs
        await node.nft.run("flush chain ip filter DOCKER-USER\nadd rule ip filter DOCKER-USER counter return")
        await until(lambda: node.guard.repairs > repairs)
        assert await ask(node.netns["client"], VIP, 80) == "a"
    await node.pods.close(remove=True)
    rules = [item["rule"] for item in await node.nft.read("list chain ip filter DOCKER-USER") if "rule" in item]
    assert len(rules) == 1
    assert "comment" not in rules[0]
    for server in made.values():
        server.close()


def _link(name: str, address: str, netns: str, peer_address: str) -> None:
    """A plain network between this namespace and another."""
    with open(netns, "rb") as other, netlink.Netlink() as net:
        macs = {"mac": "0a:00:00:00:00:01", "peer_mac": "0a:00:00:00:00:02"}
        net.send([netlink.add_veth(name, peer="eth0", peer_netns_fd=other.fileno(), **macs)])
        net.send([netlink.add_address(netlink.index_of(name), address)])

    def inside() -> None:
        with netlink.Netlink() as net:
            net.send([netlink.set_link("eth0", up=True)])
            net.send([netlink.add_address(netlink.index_of("eth0"), peer_address)])

    namespaces.inside(netns, inside)


async def test_service_addresses_work_though_the_gateways_link_has_no_carrier(node: Node) -> None:
    """A bridge without ports loses its carrier a moment after it is made; routes over it must still count."""
    made = await servers(node, "a")
    await node.pod("client")
    await node.services.sync([web(*made)])
    async with asyncio.timeout(10):
        while "NO-CARRIER" not in (await spawn.run(["ip", "-br", "link"], timeout_s=5)).out.decode():  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    for netns in (None, node.netns["client"]):
        assert await ask(netns, VIP, 80) == "a"
        with pytest.raises(ConnectionRefusedError):
            await ask(netns, "10.112.0.99", 80)
    for server in made.values():
        server.close()
