"""Both families on people's networks, and containers on several: who leads out, where ports lead, whom DNS asks."""

import asyncio
import socket
from pathlib import Path

import pytest
from tests.engine.boxes import spec
from tests.engine.test_ports import read
from tests.engine.test_user_networks import resolve, start
from tests.engine.towns import Town, host, town
from tests.network.conftest import Server

from wherry.engine.local import LocalEngine
from wherry.engine.types import Container, Dns, Join, NetworkSpec, Pool, SandboxSpec
from wherry.errors import AlreadyExists, Forbidden, Invalid
from wherry.host import namespaces, netlink
from wherry.network import dns_wire
from wherry.network.types import PortBinding

pytestmark = pytest.mark.root
__all__ = ["host", "town"]


async def links_of(engine: LocalEngine, container: Container) -> dict[str, tuple[str, list[str]]]:
    """List the links inside by name: hardware address, and the addresses of both families but link-local ones."""

    def look() -> dict[str, tuple[str, list[str]]]:
        with netlink.Netlink() as net:
            found = [*net.addresses(), *net.addresses6()]
            return {
                link.name: (
                    link.mac,
                    [
                        str(each.interface)
                        for each in found
                        if each.index == link.index and not each.interface.is_link_local
                    ],
                )
                for link in net.links()
                if link.name != "lo"
            }

    return namespaces.inside((await engine.sandbox(container.sandbox)).netns, look)


async def way_out(engine: LocalEngine, container: Container) -> str:
    """Name the link that leads to everywhere."""

    def look() -> str:
        with netlink.Netlink() as net:
            (index,) = [route.index for route in net.routes() if route.destination.prefixlen == 0]
            return socket.if_indextoname(index)

    return namespaces.inside((await engine.sandbox(container.sandbox)).netns, look)


def text_in(engine: LocalEngine, container: Container, name: str) -> str:
    """Read what a container sees as /etc/NAME."""
    return (Path(engine._sandboxes.files(engine._sandboxes.row(container.sandbox))[f"/etc/{name}"])).read_text()


async def test_addresses_of_both_families(town: Town) -> None:
    pool6 = Pool("fd00:9::/64", "fd00:9::fe", "fd00:9::10/126", {"printer": "fd00:9::11"})
    async with town.engine() as engine:
        made = await engine.networks.create(NetworkSpec("six", ipv6=True, pool6=pool6, interface="net"))
        fixed = await start(engine, "fixed", Join("six", address6="fd00:9::13", mac="02:42:00:00:00:07"))
        any_one = await start(engine, "any", Join("six"))
        places = {each.name: engine.networks.endpoints_of(each.sandbox)[0] for each in (fixed, any_one)}
        assert [places[name].address6 for name in ("fixed", "any")] == ["fd00:9::13", "fd00:9::10"]
        (mac, addresses) = (await links_of(engine, fixed))["net0"]
        assert (mac, addresses) == ("02:42:00:00:00:07", [f"{fixed.address}/24", "fd00:9::13/64"])
        assert await resolve(engine, any_one, "fixed", dns_wire.AAAA) == [
            socket.inet_pton(socket.AF_INET6, "fd00:9::13")
        ]
        back = "3.1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.9.0.0.0.0.0.d.f.ip6.arpa"
        assert await resolve(engine, any_one, back, dns_wire.PTR) == [dns_wire.encode_name("fixed.six")]
        assert "fd00:9::13\tfixed" in text_in(engine, fixed, "hosts")
        await start(engine, "last", Join("six"))
        with pytest.raises(Forbidden, match="no available IPv6 addresses"):
            await start(engine, "more", Join("six"))
        for wrong, says in (
            ("fd00:9::13", "already in use"),
            ("fd00:8::1", "does not belong"),
            ("nonsense", "invalid IP"),
        ):
            with pytest.raises((Forbidden, Invalid), match=says):
                await start(engine, f"w{len(says)}", Join("six", address6=wrong))
        with pytest.raises(Forbidden, match="Pool overlaps"):
            await engine.networks.create(NetworkSpec("again", ipv6=True, pool6=Pool("fd00:9::/72")))
        for wish, says in (
            (NetworkSpec("w", pool6=Pool("fd00:5::/64")), "--ipv6"),
            (NetworkSpec("w", ipv6=True, pool6=Pool("10.0.0.0/24")), "not of IPv6"),
            (NetworkSpec("w", ipv6=True, pool6=Pool("fd00:5::1/64")), "it should be fd00:5::/64"),
            (
                NetworkSpec("w", ipv6=True, pool6=Pool("fd00:5::/64", ip_range="fd00:6::/80")),
                "no matching subnet for range",
            ),
            (NetworkSpec("w", host_address="::1"), "no IPv4 address"),
            (NetworkSpec("w", interface="a/b"), "cannot begin the name"),
        ):
            with pytest.raises(Invalid, match=says):
                await engine.networks.create(wish)
        assert [each.spec.name for each in engine.networks.all() if not each.predefined] == ["six"]
        other = await engine.networks.create(NetworkSpec("other", ipv6=True))
        assert other.spec.pool6.subnet.startswith("fd")
    async with town.engine() as engine:
        assert engine.networks.find("six").spec == made.spec
        assert await resolve(engine, any_one, "fixed", dns_wire.AAAA) != []
        with pytest.raises(AlreadyExists):
            await engine.networks.create(NetworkSpec("other", ipv6=True))


async def test_who_leads_out_of_several_networks(town: Town) -> None:
    async with town.engine() as engine:
        for name in ("alpha", "beta", "gamma"):
            await engine.networks.create(NetworkSpec(name))
        await engine.networks.create(NetworkSpec("inner", internal=True))
        sandbox = SandboxSpec(
            "", "web", "user", networks=[Join("inner"), Join("beta")], ports=[PortBinding(80, host_first=8080)]
        )
        made = await engine.create(spec("/bin/sleep", "1000", name="web", sandbox_spec=sandbox))
        await engine.connect(made.id, Join("gamma"))  # before it runs
        await engine.start(made.id)
        web = Server((await engine.sandbox(made.sandbox)).netns, "hello", 80)

        async def leads() -> tuple[str, str]:
            (port,) = (await engine.container(made.id)).ports
            places = {each.address: each.name for each in engine.networks.endpoints_of(made.id)}
            assert await read(8080) == "hello"
            assert await read(8080, "::1") == "hello"
            return await way_out(engine, made), places[port.address]

        assert await leads() == ("eth1", "beta")
        await engine.connect(made.id, Join("alpha"))  # the first by name
        assert await leads() == ("eth3", "alpha")
        await engine.disconnect(made.id, "alpha")
        assert await leads() == ("eth1", "beta")
        await engine.connect(made.id, Join("alpha", priority=-1))
        assert await leads() == ("eth1", "beta")
        await engine.disconnect(made.id, "beta")
        await engine.disconnect(made.id, "alpha")
        assert await leads() == ("eth2", "gamma")
        await engine.connect(made.id, Join("beta", priority=7))
    async with town.engine() as engine:
        assert await leads() == ("eth1", "beta")
        web.close()
        plain = await start(engine, "plain", network="pod")
        await engine.connect(plain.id, Join("alpha"))
        assert await way_out(engine, plain) == "eth0"
        await engine.connect(plain.id, Join("gamma", priority=1))
        assert await way_out(engine, plain) == "eth2"
        await engine.disconnect(plain.id, "gamma")
        assert await way_out(engine, plain) == "eth0"
        await engine.disconnect(plain.id, "bridge")
        assert await way_out(engine, plain) == "eth1"


async def test_ports_of_a_network_that_says_where_they_go(town: Town) -> None:
    async with town.engine() as engine:
        await engine.networks.create(NetworkSpec("here", host_address="127.0.0.1"))
        ports = [PortBinding(80, host_first=8080), PortBinding(81, "tcp", "0.0.0.0", 8081)]
        sandbox = SandboxSpec("", "web", "user", networks=[Join("here")], ports=ports)
        made = await engine.create(spec("/bin/sleep", "1000", sandbox_spec=sandbox))
        await engine.start(made.id)
        web = Server((await engine.sandbox(made.sandbox)).netns, "hello", 80)
        assert [each.host_address for each in (await engine.container(made.id)).ports] == ["127.0.0.1", "0.0.0.0"]
        assert await read(8080) == "hello"
        web.close()


class Resolver(asyncio.DatagramProtocol):
    """Answers every question with one address."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        question = dns_wire.parse(data)
        answer = dns_wire.answer(question, [dns_wire.a(question.name, "198.51.100.7", 60)])
        self.transport.sendto(answer, addr)  # type: ignore[attr-defined]  # it is a datagram transport


async def test_servers_of_a_containers_own_and_the_machines_name(town: Town) -> None:
    with netlink.Netlink() as net:
        net.send([netlink.add_bridge("dns0")])
        net.send([netlink.add_address(netlink.index_of("dns0"), "192.0.2.53/32")])
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(Resolver, local_addr=("192.0.2.53", 53))
    async with town.engine() as engine:
        await engine.networks.create(NetworkSpec("front"))
        dns = Dns(["192.0.2.53"], ["lan"], ["timeout:1"])
        hosts = [("machine", "host-gateway"), ("far", "198.51.100.9"), ("far", "2001:db8::9")]
        sandbox = SandboxSpec("", "web", "user", networks=[Join("front")], dns=dns, hosts=hosts)
        web = await engine.create(spec("/bin/sleep", "1000", name="web", sandbox_spec=sandbox))
        await engine.start(web.id)
        other = await start(engine, "other", Join("front"))
        gateway = engine.networks.find("front").spec.gateway
        assert text_in(engine, web, "resolv.conf") == f"nameserver {gateway}\nsearch lan\noptions timeout:1\n"
        lines = text_in(engine, web, "hosts").splitlines()
        assert {f"{gateway}\tmachine", "198.51.100.9\tfar", "2001:db8::9\tfar"} <= set(lines)
        assert await resolve(engine, web, "other") == [other.address]
        assert await resolve(engine, web, "far.example") == ["198.51.100.7"]
        assert await resolve(engine, other, "web") == [(await engine.container(web.id)).address]
    async with town.engine() as engine:
        assert await resolve(engine, web, "further.example") == ["198.51.100.7"]
        for wrong in (SandboxSpec("", "x", dns=Dns(["nowhere"])), SandboxSpec("", "x", hosts=[("a", "b")])):
            with pytest.raises(Invalid, match="address"):
                await engine.create(spec("/bin/true", sandbox_spec=wrong))
    transport.close()
