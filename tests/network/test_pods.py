"""The pod network with real links and packets, in a namespace that stands for the host."""

import asyncio
import os
import socket
from pathlib import Path

import pytest

from wherry.errors import Broken, Unavailable
from wherry.host import namespaces, netlink, processes
from wherry.network.pods import LocalPodNetwork
from wherry.network.ranges import Ranges

from .conftest import RANGES, Node, Server, ask

pytestmark = pytest.mark.root


def link_names() -> set[str]:
    with netlink.Netlink() as net:
        return {link.name for link in net.links()}


async def test_pods_reach_each_other_and_the_host_reaches_them(node: Node) -> None:
    first, second = await node.pod("a"), await node.pod("b")
    assert (first, second) == ("10.64.1.2", "10.64.1.3")
    server = Server(node.netns["b"], "b", 80)
    assert await ask(node.netns["a"], second, 80) == "b"
    assert await ask(None, second, 80) == "b"
    assert server.hits == [first, node.pods.gateway]
    server.close()
    mine = Server(node.netns["b"], "b", 81)
    with pytest.raises(OSError, match="Errno 113"):
        await ask(node.netns["a"], "10.64.1.77", 81)  # nobody has it, and nobody waits for long
    mine.close()


async def test_a_pod_reaches_a_listener_on_the_gateway(node: Node, host: str) -> None:
    await node.pod("a")
    server = Server(host, "host", 5353, address=node.pods.gateway)
    assert await ask(node.netns["a"], node.pods.gateway, 5353) == "host"
    server.close()


async def test_attach_is_repeatable_and_detach_frees(node: Node) -> None:
    address = await node.pod("a")
    again = await node.pods.attach("a", node.netns["a"])
    assert (again.address, again.gateway) == (address, "10.64.1.1")
    assert again.link in link_names()
    assert len(again.link) <= 15
    assert [owner for owner, _ in await node.pods.attachments()] == ["a"]
    await node.pods.detach("a")
    await node.pods.detach("a")
    assert again.link not in link_names()
    assert await node.pods.attachments() == []
    assert (await node.pods.attach("a", node.netns["a"])).address != address  # the one just freed comes last


async def test_a_new_namespace_of_the_same_owner_is_connected(node: Node) -> None:
    address = await node.pod("a")
    namespaces.remove(str(node.directory / "ns" / "a"))
    assert await node.pod("a") == address
    server = Server(node.netns["a"], "again", 80)
    assert await ask(None, address, 80) == "again"
    server.close()


async def test_after_a_restart_the_pods_are_found_again(node: Node) -> None:
    addresses = [await node.pod(name) for name in ("a", "b")]
    stray = f"wh{node.instance}pffff"
    with netlink.Netlink() as net:
        net.send([netlink.add_bridge(stray)])
    half = node.directory / "pods" / "10.64.1.9"
    half.write_text("{half")
    earlier = node.directory / "pods" / "10.64.1.10"
    record = (node.directory / "pods" / addresses[0]).read_text()
    earlier.write_text(
        record.replace(addresses[0], "10.64.1.10").replace('"a"', '"z"').replace(processes.boot_id(), "1")
    )
    async with LocalPodNetwork(node.instance, 0, RANGES, str(node.directory / "pods"), node.nft, node.guard) as again:
        found = {owner: attachment.address for owner, attachment in await again.attachments()}
        assert found == {"a": addresses[0], "b": addresses[1]}
        assert stray not in link_names()
        assert not half.exists()
        assert not earlier.exists()
        assert (await again.attach("a", node.netns["a"])).address == addresses[0]
        third = namespaces.create(str(node.directory / "ns" / "c"), ("net",))["net"]
        node.netns["c"] = third
        assert (await again.attach("c", third)).address not in addresses
    server = Server(node.netns["b"], "b", 80)
    assert await ask(node.netns["a"], addresses[1], 80) == "b"
    server.close()


async def test_an_attach_that_was_cut_short_is_finished_by_the_next(node: Node) -> None:
    netns = namespaces.create(str(node.directory / "ns" / "a"), ("net",))["net"]
    node.netns["a"] = netns
    fd = os.open(netns, os.O_RDONLY)
    with netlink.Netlink() as net:  # as after a kill in the middle: both ends are there, nothing is set
        macs = {"mac": "0a:57:0a:40:01:02", "peer_mac": "0a:58:0a:40:01:02"}
        net.send([netlink.add_veth(f"wh{node.instance}p0102", peer="eth0", peer_netns_fd=fd, **macs)])
    os.close(fd)
    address = (await node.pods.attach("a", netns)).address
    server = Server(netns, "a", 80)
    assert await ask(None, address, 80) == "a"
    server.close()


async def test_a_namespace_that_is_not_there_takes_no_address(node: Node) -> None:
    with pytest.raises(Broken, match="No such file"):
        await node.pods.attach("a", str(node.directory / "absent"))
    taken = namespaces.create(str(node.directory / "ns" / "b"), ("net",))["net"]
    node.netns["b"] = taken
    namespaces.inside(taken, lambda: _make_bridge("eth0"))
    with pytest.raises(Broken, match="File exists"):
        await node.pods.attach("b", taken)
    assert await node.pods.attachments() == []


def _make_bridge(name: str) -> None:
    with netlink.Netlink() as net:
        net.send([netlink.add_bridge(name)])


async def test_many_at_once_get_different_addresses_until_there_are_none(node: Node, tmp_path: Path) -> None:
    small = Ranges(pods="10.65.0.0/16", services="10.113.0.0/20", node="10.65.1.0/28")
    async with LocalPodNetwork(node.instance, 1, small, str(tmp_path / "small"), node.nft, node.guard) as pods:
        names = [f"p{number}" for number in range(14)]
        for name in names:
            node.netns[name] = namespaces.create(str(node.directory / "ns" / name), ("net",))["net"]
        results = await asyncio.gather(*(pods.attach(name, node.netns[name]) for name in names), return_exceptions=True)
        refused = [result for result in results if isinstance(result, Unavailable)]
        assert [str(error) for error in refused] == ["all 13 pod addresses of 10.65.1.0/28 are taken"]
        assert len({result.address for result in results if not isinstance(result, BaseException)}) == 13
        await pods.close(remove=True)


async def test_close_with_remove_leaves_nothing(node: Node) -> None:
    before = await node.nft.read("list tables")
    assert before
    await node.pod("a")
    await node.services.sync([])
    await node.services.close(remove=True)
    await node.pods.close(remove=True)
    assert not [name for name in link_names() if name.startswith(f"wh{node.instance}")]
    assert await node.nft.read("list tables") == []
    with netlink.Netlink() as net:
        assert net.routes() == []
    assert not (node.directory / "pods").exists()
    await node.pods.close(remove=True)


async def test_pods_do_not_reach_what_listens_on_the_hosts_loopback(node: Node, host: str) -> None:
    """Node ports need route_localnet on pods' links; a pod that routes 127.0.0.1 outwards must not profit."""
    await node.pod("a")
    server = Server(host, "secret", 6000, address="127.0.0.1")

    def route_loopback_out() -> None:
        namespaces.sysctl("net.ipv4.conf.eth0.route_localnet", "1")
        with netlink.Netlink() as net:
            net.send([netlink.delete_address(1, "127.0.0.1/8")])
            net.send([netlink.add_route("127.0.0.1/32", netlink.index_of("eth0"), gateway="10.64.1.1", onlink=True)])

    namespaces.inside(node.netns["a"], route_loopback_out)
    with pytest.raises((TimeoutError, OSError)):
        await ask(node.netns["a"], "127.0.0.1", 6000, timeout_s=0.5)
    assert server.hits == []
    server.close()


async def test_a_pod_cannot_send_from_anothers_address(node: Node) -> None:
    await node.pod("a")
    address = await node.pod("b")
    server = Server(node.netns["b"], "b", 53, udp=True)

    def lie() -> None:
        with netlink.Netlink() as net:
            net.send([netlink.add_address(netlink.index_of("eth0"), "10.64.1.200/32")])
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as liar:
            liar.bind(("10.64.1.200", 0))
            liar.sendto(b"x", (address, 53))

    namespaces.inside(node.netns["a"], lie)
    with namespaces.socket_inside(node.netns["a"], socket.AF_INET, socket.SOCK_DGRAM) as honest:
        honest.setblocking(False)
        await asyncio.get_running_loop().sock_sendto(honest, b"x", (address, 53))
        await asyncio.wait_for(asyncio.get_running_loop().sock_recv(honest, 10), 5)
    assert server.hits == ["10.64.1.2"]
    server.close()
