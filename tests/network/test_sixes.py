"""IPv6 on people's networks: neighbours, strangers, the world, published ports and what a neighbour may pretend."""

import socket
from pathlib import Path

import pytest

from tests.network.conftest import Server, ask, make, outsider
from tests.network.test_bridges import Town, is_cut_off, town
from tests.network.test_ports import _say as say
from wherry.errors import Conflict
from wherry.host import conntrack, namespaces, netlink
from wherry.network import bridges
from wherry.network.claims import Claims
from wherry.network.forwarding import FORWARD6, forward6
from wherry.network.machines import leftovers, sweep
from wherry.network.ports import Ports
from wherry.network.types import BridgeNetwork, PortBinding, PortTarget

pytestmark = pytest.mark.root
__all__ = ["town"]


def six(network: BridgeNetwork, number: int) -> str:
    return network.subnet6.replace("::/64", f"::{number}")


async def test_neighbours_meet_strangers_do_not_and_the_world_is_there(town: Town, tmp_path: Path) -> None:
    outside = outsider(tmp_path / "outside")
    town.netns["../outside"] = outside
    red, blue = await town.network("aaaa1111", six=True), await town.network("bbbb2222", six=True)
    plain, inner = await town.network("cccc3333"), await town.network("dddd4444", six=True, internal=True)
    for name, network in (("server", red), ("far", blue), ("plain", plain), ("inner", inner)):
        await town.house(name, network, 2)
    await town.house("near", red, 3)
    web, world = (Server(town.netns[name], name, 80, address="::") for name in ("server", "../outside"))
    assert await ask(town.netns["near"], six(red, 2), 80) == "server"
    assert await ask(None, six(red, 2), 80) == "server"
    assert await ask(town.netns["near"], "2001:db8::2", 80) == "../outside"
    assert world.hits == ["2001:db8::1"]
    for name in ("far", "inner", "plain"):
        assert await is_cut_off(town.netns[name], six(red, 2), 80)
    assert await is_cut_off(town.netns["inner"], "2001:db8::2", 80)
    assert web.hits == [six(red, 3), red.gateway6]
    web.close()
    world.close()


async def test_a_published_port_is_led_by_the_kernel_and_keeps_who_asks(town: Town, tmp_path: Path) -> None:
    outside = outsider(tmp_path / "outside")
    town.netns["../outside"] = outside
    red, blue = await town.network("aaaa1111", six=True), await town.network("bbbb2222", six=True)
    for name, network, number in (("server", red, 2), ("other", red, 3), ("far", blue, 2)):
        await town.house(name, network, number)
    web = Server(town.netns["server"], "web", 80, address="::")
    names = Server(town.netns["server"], "names", 53, udp=True, address="::")
    ports = Ports(town.instance, town.nft, town.guard)
    await ports.start()
    target = PortTarget(red.subnet.replace(".0/24", ".2"), red.gateway, six(red, 2), red.gateway6)
    wishes = [PortBinding(80, host_first=8080), PortBinding(53, "udp", "2001:db8::1", 5300)]
    await ports.publish("server", wishes, target)
    for place in (outside, town.netns["other"], town.netns["far"], town.netns["server"], None):
        assert await ask(place, "2001:db8::1", 8080) == "web"
    assert web.hits == ["2001:db8::2", red.gateway6, red.gateway6, red.gateway6, "2001:db8::1"]
    assert await ask(None, "::1", 8080) == "web"  # by the relay: the kernel leads nothing out of loopback
    assert await say(outside, "2001:db8::1", 5300) == "names"
    flows = [flow for flow in conntrack.flows() if flow.target == ("2001:db8::1", 5300)]
    assert [flow.answerer for flow in flows] == [(six(red, 2), 53)]
    await ports.retarget(
        "server", PortTarget(red.subnet.replace(".0/24", ".3"), red.gateway, six(red, 3), red.gateway6)
    )
    heir = Server(town.netns["other"], "heir", 80, address="::")
    for address in ("2001:db8::1", "::1", "192.0.2.1"):
        assert await ask(None, address, 8080) == "heir"
    assert not [flow for flow in conntrack.flows() if flow.target == ("2001:db8::1", 5300)]
    await town.nft.run("flush ruleset")
    await town.guard.look()
    assert await ask(outside, "2001:db8::1", 8080) == "heir"
    ports.unpublish("server")
    await ports.settled()
    assert f"table ip6 wherry-{town.instance}-ports" not in await leftovers(town.instance, town.nft)
    await ports.close(remove=True)
    for each in (web, names, heir):
        each.close()


async def test_nobody_sends_from_an_address_that_is_not_theirs(town: Town, tmp_path: Path) -> None:
    outside = outsider(tmp_path / "outside")
    town.netns["../outside"] = outside
    red = await town.network("aaaa1111", six=True)
    await town.house("liar", red, 2)

    def pretend() -> None:
        with netlink.Netlink() as net:
            net.send([netlink.add_address(netlink.index_of("eth0"), "2001:db8:7::7/128")])

    namespaces.inside(town.netns["liar"], pretend)
    listener = make(outside, socket.SOCK_DGRAM, "::")
    listener.bind(("::", 9))
    listener.settimeout(5)
    for source in ("2001:db8:7::7", six(red, 2)):
        with make(town.netns["liar"], socket.SOCK_DGRAM, "::") as client:
            client.bind((source, 0))
            client.sendto(source.encode(), ("2001:db8::2", 9))
    assert listener.recv(100).decode() == six(red, 2)  # the other one came first, if it came
    listener.close()


async def test_neighbours_that_shall_not_meet(town: Town) -> None:
    red = await town.network("aaaa1111", six=True, icc=False)
    for number, name in ((2, "a"), (3, "b")):
        await town.house(name, red, number)
    web = Server(town.netns["b"], "b", 80, address="::")
    for address in (red.subnet.replace(".0/24", ".3"), six(red, 3)):
        assert await is_cut_off(town.netns["a"], address, 80)
        assert await ask(None, address, 80) == "b"
    web.close()


async def test_a_bridge_of_a_chosen_name_is_ours_until_the_end(town: Town) -> None:
    await town.nft.run("add table ip filter\nadd chain ip filter DOCKER-USER")
    red = await town.network("aaaa1111", link="br-red")
    await town.house("a", red, 2)

    async def docker_rules() -> str:
        return await town.nft.read_text("list chain ip filter DOCKER-USER")

    assert 'iifname "br-red"' in await docker_rules()
    assert "link br-red" in await leftovers(town.instance, town.nft)
    other = bridges.Bridges("0000ffff", town.nft, town.guard, subnets=town.claims)
    with pytest.raises(Conflict, match="that link is not wherry's"):
        await other.add(BridgeNetwork("eeee5555", "br-red", "172.30.99.0/24", "172.30.99.1"))
    await town.bridges.remove(red.id)
    assert "br-red" not in await docker_rules()
    await town.network("aaaa1111", link="br-red")
    await sweep(town.instance, town.nft)
    assert await leftovers(town.instance, town.nft) == []
    assert "wherry" not in await docker_rules()


async def test_a_machine_that_learns_its_way_out_goes_on_doing_so(host: str) -> None:
    with netlink.Netlink() as net:
        net.send([netlink.add_bridge("wan0")])
    namespaces.sysctl("net/ipv6/conf/wan0/accept_ra", "1")
    namespaces.sysctl(FORWARD6, "0")
    assert forward6() == {FORWARD6: "0", "net/ipv6/conf/wan0/accept_ra": "1"}
    assert namespaces.read_sysctl("net/ipv6/conf/wan0/accept_ra") == "2"
    assert forward6() == {}


def test_subnets_of_both_families_are_taken_once(host: str, tmp_path: Path) -> None:
    with netlink.Netlink() as net:
        net.send([netlink.add_bridge("wan0")])
        net.send([netlink.add_address(netlink.index_of("wan0"), "2001:db8:5::1/64")])
    claims = Claims(str(tmp_path / "claims"))
    claims.claim("aaaa0000", str(tmp_path))
    claims.claim("bbbb0000", str(tmp_path))
    mine = [claims.claim_network("aaaa0000", six=True) for _ in range(2)]
    assert len(set(mine)) == 2
    assert mine[0].startswith("fd")
    assert mine[0].rpartition("::")[0][:14] == mine[1].rpartition(":")[0][:14]
    assert claims.claim_network("bbbb0000", six=True) not in mine
    for wanted in (mine[0], "2001:db8:5::/72", "fd00::/8"):
        with pytest.raises(Conflict, match="Pool overlaps"):
            claims.claim_network("bbbb0000", wanted)
    claims.release_network("aaaa0000", mine[0])
    assert claims.claim_network("bbbb0000", mine[0]) == mine[0]
    claims.release("aaaa0000")
    claims.release("bbbb0000")
