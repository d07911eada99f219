"""Networks of people's own: neighbours meet, strangers do not, the world is there unless the network is internal."""

import asyncio
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.network.conftest import Server, ask, until
from wherry.errors import Conflict
from wherry.host import namespaces, netlink
from wherry.host.nftables import Nft
from wherry.network import bridges
from wherry.network.bridges import Bridges
from wherry.network.claims import Claims
from wherry.network.guard import Guard
from wherry.network.machines import leftovers, sweep
from wherry.network.ports import Ports
from wherry.network.types import BridgeNetwork, BridgePort, PortBinding, PortTarget

pytestmark = pytest.mark.root


@dataclass
class Town:
    """Bridges in the test's host namespace, and namespaces on them."""

    base: Path
    instance: str
    nft: Nft
    guard: Guard
    claims: Claims
    bridges: Bridges
    netns: dict[str, str] = field(default_factory=dict[str, str])

    async def network(
        self, id: str, wanted: str = "", *, internal: bool = False, mtu: int = 0, six: bool = False, icc: bool = True,
        link: str = "",
    ) -> BridgeNetwork:  # fmt: skip
        subnet, subnet6 = await self.bridges.subnet(wanted), await self.bridges.subnet(six=True) if six else ""
        gateway, gateway6 = subnet.replace(".0/24", ".1"), subnet6.replace("::/64", "::1")
        link = link or bridges.bridge_link(self.instance, id)
        made = BridgeNetwork(id, link, subnet, gateway, mtu, internal, subnet6=subnet6, gateway6=gateway6, icc=icc)
        await self.bridges.add(made)
        return made

    async def house(self, name: str, network: BridgeNetwork, number: int, interface: str = "eth0") -> str:
        self.netns.setdefault(name, namespaces.create(str(self.base / "ns" / name), ("net",))["net"])
        address = network.subnet.replace(".0/24", f".{number}")
        link = bridges.port_link(self.instance, network.id, name)
        port = BridgePort(link, interface, address, network.subnet6.replace("::/64", f"::{number}"))
        leads = interface == "eth0"
        await self.bridges.attach(network, port, self.netns[name], is_way_out=leads, is_way_out6=leads)
        return address


@pytest.fixture
async def town(host: str, tmp_path: Path) -> AsyncIterator[Town]:
    instance = secrets.token_hex(4)
    claims = Claims(str(tmp_path / "claims"), busy=[])
    claims.claim(instance, str(tmp_path))
    nft = Nft()
    guard = Guard(nft, period_s=0.05)
    made = Town(tmp_path, instance, nft, guard, claims, Bridges(instance, nft, guard, subnets=claims))
    await made.bridges.start([], {})
    yield made
    await made.bridges.close(remove=True)
    for name in made.netns:
        namespaces.remove(str(tmp_path / "ns" / name))
    left = await leftovers(instance, nft)
    nft.close()
    assert left == []
    assert next(each for each in claims.all()).networks == ()


async def is_cut_off(netns: str, address: str, port: int) -> bool:
    try:
        await ask(netns, address, port, timeout_s=0.4)
    except (TimeoutError, OSError):
        return True
    return False


async def test_neighbours_meet_and_strangers_do_not(town: Town) -> None:
    red, blue = await town.network("aaaa1111"), await town.network("bbbb2222")
    server = await town.house("server", red, 2)
    await town.house("near", red, 3)
    await town.house("far", blue, 2)
    web = Server(town.netns["server"], "web", 80)
    assert await ask(town.netns["near"], server, 80) == "web"
    assert await ask(None, server, 80) == "web"
    assert await is_cut_off(town.netns["far"], server, 80)
    await town.house("far", red, 9, interface="eth1")  # connected later, while it lives
    assert await ask(town.netns["far"], server, 80) == "web"
    await town.bridges.detach(bridges.port_link(town.instance, red.id, "far"))
    assert await is_cut_off(town.netns["far"], server, 80)
    assert web.hits == [red.subnet.replace(".0/24", ".3"), red.gateway, red.subnet.replace(".0/24", ".9")]
    web.close()


async def test_a_published_port_leads_onto_a_bridge(town: Town) -> None:
    red, blue = await town.network("aaaa1111"), await town.network("bbbb2222")
    server = await town.house("server", red, 2)
    await town.house("near", red, 3)
    await town.house("far", blue, 2)
    web = Server(town.netns["server"], "web", 80)
    ports = Ports(town.instance, town.nft, town.guard)
    await ports.start()
    await ports.publish("server", [PortBinding(80, host_first=8080)], PortTarget(server, red.gateway))
    assert await ask(None, "127.0.0.1", 8080) == "web"
    for name in ("near", "far", "server"):
        assert await ask(town.netns[name], red.gateway, 8080) == "web"
    await ports.close(remove=True)
    web.close()


async def test_an_internal_network_has_no_way_out(town: Town) -> None:
    inner, outer = await town.network("aaaa1111", internal=True), await town.network("bbbb2222")
    await town.house("in", inner, 2)
    away = await town.house("out", outer, 2)
    Server(town.netns["out"], "out", 80)
    assert await is_cut_off(town.netns["in"], away, 80)
    assert await town.house("in2", inner, 3)
    web = Server(town.netns["in2"], "in2", 80)
    assert await ask(town.netns["in"], inner.subnet.replace(".0/24", ".3"), 80) == "in2"
    web.close()

    def routes() -> list[str]:
        with netlink.Netlink() as net:
            return [str(route.destination) for route in net.routes()]

    assert namespaces.inside(town.netns["in"], routes) == [inner.subnet]


async def test_the_mtu_is_what_was_asked_for(town: Town) -> None:
    small = await town.network("aaaa1111", mtu=1400)
    await town.house("a", small, 2)

    def mtu() -> int:
        with netlink.Netlink() as net:
            link = net.link("eth0")
            assert link is not None
            return link.mtu

    assert namespaces.inside(town.netns["a"], mtu) == 1400


async def test_a_foreign_flush_is_repaired(town: Town) -> None:
    red, blue = await town.network("aaaa1111"), await town.network("bbbb2222")
    server = await town.house("server", red, 2)
    await town.house("far", blue, 2)
    web = Server(town.netns["server"], "web", 80)
    async with town.guard:
        await asyncio.sleep(0)
        before = town.guard.repairs
        await town.nft.run("flush ruleset")
        await until(lambda: town.guard.repairs > before)
    assert await is_cut_off(town.netns["far"], server, 80)
    web.close()


async def test_a_subnet_is_taken_once(town: Town) -> None:
    await town.bridges.subnet("172.28.0.0/16")
    other = Claims(str(town.base / "claims"), busy=[])
    other.claim("other123", str(town.base))
    with pytest.raises(Conflict, match="Pool overlaps"):
        other.claim_network("other123", "172.28.5.0/24")
    assert other.claim_network("other123", "172.29.0.0/16") == "172.29.0.0/16"
    assert await town.bridges.subnet("172.28.0.0/16") == "172.28.0.0/16"
    other.release("other123")
    await town.bridges.give_back("172.28.0.0/16")


async def test_the_next_start_finds_bridges_and_takes_strays_away(town: Town) -> None:
    red, blue = await town.network("aaaa1111"), await town.network("bbbb2222")
    server = await town.house("server", red, 2)
    await town.house("near", red, 3)
    web = Server(town.netns["server"], "web", 80)
    kept = {bridges.port_link(town.instance, red.id, name): red.id for name in ("server", "near")}
    again = Bridges(town.instance, town.nft, town.guard, subnets=town.claims)
    await again.start([red], kept)
    assert await ask(town.netns["near"], server, 80) == "web"
    assert blue.link not in await town.nft.call(again.links)
    await again.close()
    web.close()


async def test_a_subnet_that_a_kill_left_without_a_network_is_free_again(town: Town) -> None:
    """Of the engine that starts, and of no other one of its instance."""
    red = await town.network("aaaa1111")
    another = Bridges(town.instance, town.nft, town.guard, subnets=town.claims, holder="node-2")
    lost, others = await town.bridges.subnet("172.30.13.0/24"), await another.subnet("172.30.14.0/24")
    again = Bridges(town.instance, town.nft, town.guard, subnets=town.claims)
    await again.start([red], {})
    mine = next(each for each in town.claims.all() if each.instance == town.instance)
    assert set(mine.networks) == {red.subnet, others}
    other = Claims(str(town.base / "claims"), busy=[])
    other.claim("other123", str(town.base))
    assert other.claim_network("other123", lost) == lost
    await again.close()
    await another.give_back(others)
    other.release("other123")


async def test_a_network_whose_subnet_was_taken_stays_away(town: Town) -> None:
    red = await town.network("aaaa1111", "172.30.12.0/24")
    await town.bridges.remove(red.id)
    other = Claims(str(town.base / "claims"), busy=[])
    other.claim("other123", str(town.base))
    other.claim_network("other123", red.subnet)
    again = Bridges(town.instance, town.nft, town.guard, subnets=town.claims)
    await again.start([red], {})
    with pytest.raises(Conflict, match="somebody else's by now"):
        await town.house("a", red, 2)
    assert await town.nft.call(again.links) == []
    await again.close()
    other.release("other123")


async def test_a_sweep_takes_everything(town: Town) -> None:
    await town.house("a", await town.network("aaaa1111"), 2)
    ports = Ports(town.instance, town.nft, town.guard)
    await ports.start()
    assert len(await leftovers(town.instance, town.nft)) == 4
    await ports.close()
    await sweep(town.instance, town.nft)
    assert await leftovers(town.instance, town.nft) == []
