"""What others do to the machine's network is put back: rules flushed, bridges, links and addresses taken away."""

import asyncio
from collections.abc import Sequence

import pytest
from tests.engine.boxes import spec
from tests.engine.test_ports import read
from tests.engine.test_user_networks import resolve, start
from tests.engine.towns import Town, host, town
from tests.network.conftest import Server, ask, until

from wherry.engine.types import Join, NetworkSpec, SandboxSpec
from wherry.host import namespaces, netlink
from wherry.host.netlink import Request
from wherry.network.ranges import gateway_link, link_prefix, pod_link
from wherry.network.types import PortBinding

pytestmark = pytest.mark.root
__all__ = ["host", "town"]


def spoil(*requests: Request) -> None:
    with netlink.Netlink() as net:
        net.send(requests)


async def test_a_network_is_put_together_again(town: Town) -> None:
    async with town.engine() as engine:
        await engine.networks.create(NetworkSpec("front", ipv6=True))
        sandbox = SandboxSpec("", "web", "user", networks=[Join("front")], ports=[PortBinding(80, host_first=8080)])
        made = await engine.create(spec("/bin/sleep", "1000", name="web", sandbox_spec=sandbox))
        await engine.start(made.id)
        other, plain = await start(engine, "other", Join("front")), await start(engine, "plain", network="pod")
        servers = [Server((await engine.sandbox(each.sandbox)).netns, each.name, 80) for each in (made, plain)]
        (place,) = engine.networks.endpoints_of(made.sandbox)
        links = engine.networks._networking.bridges.links()  # type: ignore[union-attr]  # it is there
        front = next(name for name in links if name.startswith(f"{link_prefix(town.instance)}b"))

        async def all_work() -> None:
            netns = (await engine.sandbox(other.sandbox)).netns
            address = next(iter(engine.networks.endpoints_of(made.sandbox))).address
            assert await resolve(engine, other, "web") == [address]
            assert await ask(netns, address, 80) == "web"
            assert await read(8080) == "web"
            assert await ask(None, plain.address, 80) == "plain"

        damage: Sequence[Sequence[Request]] = (
            [netlink.delete_link(front)],
            [netlink.delete_link(place.link)],
            [netlink.set_link(place.link, master=0)],
            [netlink.set_link(front, up=False)],
            [netlink.delete_link(gateway_link(town.instance, 0))],
            [netlink.delete_link(pod_link(town.instance, plain.address))],
        )
        await all_work()
        for requests in damage:
            spoil(*requests)
            assert await town.guard.look_at_all()
            assert await town.guard.look_at_all() == []
            await all_work()
        with netlink.Netlink() as net:
            index = netlink.index_of(front)
            held = [str(each.interface) for each in (*net.addresses(), *net.addresses6()) if each.index == index]
        spoil(*(netlink.delete_address(index, each) for each in held if not each.startswith("fe80")))
        namespaces.sysctl("net.ipv4.ip_forward", "0")
        spoil(netlink.add_bridge(f"{link_prefix(town.instance)}bffff"))
        assert set(await town.guard.look_at_all()) == {"bridges", "pods' links"}
        await all_work()
        assert f"{link_prefix(town.instance)}bffff" not in engine.networks._networking.bridges.links()  # type: ignore[union-attr]
        async with town.guard:  # while the engine, its networks and pods are there: only this test's own namespace
            await asyncio.sleep(0)
            before = town.guard.repairs
            await town.nft.run("flush ruleset")
            await until(lambda: town.guard.repairs > before)
            await all_work()
        for each in servers:
            each.close()
