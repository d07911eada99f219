"""Published ports: from afar, from the machine itself, by loopback in both families; refused where somebody else is."""

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.network.conftest import Node, Server, ask, make, outsider, until
from wherry.errors import Conflict, Invalid, Unsupported
from wherry.host import namespaces
from wherry.network import port_rules as published
from wherry.network.ports import Ports
from wherry.network.types import PortBinding, PortTarget, PublishedPort

ADDRESSES = st.sampled_from(["10.64.1.2", "10.64.1.3", "10.64.1.4"])
PORTS = st.builds(
    PublishedPort,
    protocol=st.sampled_from(["tcp", "udp"]),
    host_address=st.sampled_from(["", "0.0.0.0", "127.0.0.1", "192.0.2.1", "::", "::1", "2001:db8::1"]),
    host_port=st.integers(1, 65535),
    address=ADDRESSES,
    port=st.integers(1, 65535),
    gateway=st.just("10.64.1.1"),
    both=st.booleans(),
    address6=st.sampled_from(["", "fd00::2"]),
    gateway6=st.just("fd00::1"),
)


@settings(max_examples=60)
@given(old=st.lists(PORTS, max_size=6), new=st.lists(PORTS, max_size=6))
def test_a_change_names_only_what_differs(old: list[PublishedPort], new: list[PublishedPort]) -> None:
    before, after = published.elements_of(old), published.elements_of(new)
    commands = published.changes("12345678", before, after)
    assert (commands == "") == (before == after)
    kept = {key for key, value in before["everywhere"].items() if after["everywhere"].get(key) == value}
    for line in commands.splitlines():
        if " everywhere " in line:
            named = {each.partition(" : ")[0].strip() for each in line.partition("{")[2].rstrip(" }").split(",")}
            assert not named & kept


@pytest.fixture
async def ports(node: Node) -> AsyncIterator[Ports]:
    made = Ports(node.instance, node.nft, node.guard)
    await made.start()
    yield made
    await made.close(remove=True)
    tables = [item["table"]["name"] for item in await node.nft.read("list tables ip") if "table" in item]
    assert published.table_name(node.instance) not in tables


async def _say(netns: str | None, address: str, port: int) -> str:
    client = make(netns, socket.SOCK_DGRAM, address)
    client.setblocking(False)
    try:
        async with asyncio.timeout(5):
            await asyncio.get_running_loop().sock_sendto(client, b"x", (address, port))
            return (await asyncio.get_running_loop().sock_recv(client, 100)).decode()
    finally:
        client.close()


def _outsider(node: Node, tmp_path: Path) -> str:
    netns = outsider(tmp_path / "outside")
    node.netns["../outside"] = netns
    return netns


@pytest.mark.root
async def test_a_published_port_answers_from_everywhere(node: Node, ports: Ports, tmp_path: Path) -> None:
    outside = _outsider(node, tmp_path)
    address = await node.pod("web")
    other = await node.pod("other")
    web = Server(node.netns["web"], "web", 80)
    (got,) = await ports.publish("web", [PortBinding(80, host_first=8080)], PortTarget(address, node.pods.gateway))
    assert (got.host_address, got.host_port) == ("", 8080)
    for place, target in ((outside, "192.0.2.1"), (None, "192.0.2.1"), (None, "127.0.0.1"),
                          (node.netns["other"], "192.0.2.1"), (node.netns["web"], "192.0.2.1")):  # fmt: skip
        assert await ask(place, target, 8080) == "web"
    assert web.hits == ["192.0.2.2", "192.0.2.1", node.pods.gateway, other, node.pods.gateway]
    reader, writer = await asyncio.open_connection("::1", 8080)
    assert await reader.read() == b"web"
    writer.close()
    ports.unpublish("web")
    await ports.settled()
    with pytest.raises(ConnectionRefusedError):
        await ask(None, "127.0.0.1", 8080)
    web.close()


@pytest.mark.root
async def test_udp_and_one_address_alone(node: Node, ports: Ports, tmp_path: Path) -> None:
    outside = _outsider(node, tmp_path)
    first, second = await node.pod("one"), await node.pod("two")
    servers = [Server(node.netns[name], name, 53, udp=True) for name in ("one", "two")]
    await ports.publish("one", [PortBinding(53, "udp", "127.0.0.1", 5300)], PortTarget(first, node.pods.gateway))
    assert await _say(None, "127.0.0.1", 5300) == "one"
    with pytest.raises((TimeoutError, ConnectionRefusedError)):
        await asyncio.wait_for(_say(outside, "192.0.2.1", 5300), 0.5)
    ports.unpublish("one")
    await ports.publish("two", [PortBinding(53, "udp", "", 5300)], PortTarget(second, node.pods.gateway))
    assert await _say(None, "127.0.0.1", 5300) == "two"
    assert await _say(outside, "192.0.2.1", 5300) == "two"
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as client:
        client.setblocking(False)
        loop = asyncio.get_running_loop()
        for _ in range(2):
            await loop.sock_sendto(client, b"x", ("::1", 5300))
            async with asyncio.timeout(5):
                assert await loop.sock_recv(client, 100) == b"two"
    for server in servers:
        server.close()


@pytest.mark.root
async def test_a_port_that_somebody_has_is_refused_in_dockers_words(node: Node, ports: Ports) -> None:
    address = await node.pod("web")
    await ports.publish("a", [PortBinding(80, host_first=8080)], PortTarget(address, node.pods.gateway))
    with pytest.raises(Conflict, match=r"Bind for 0\.0\.0\.0:8080 failed: port is already allocated"):
        await ports.publish("b", [PortBinding(81, host_first=8080)], PortTarget(address, node.pods.gateway))
    with pytest.raises(Conflict, match=r"Bind for 127\.0\.0\.1:8080 failed: port is already allocated"):
        await ports.publish("b", [PortBinding(81, "tcp", "127.0.0.1", 8080)], PortTarget(address, node.pods.gateway))
    assert ports.of("b") == ()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 8081))
        listener.listen()
        with pytest.raises(Conflict, match="address already in use"):
            await ports.publish("b", [PortBinding(81, host_first=8081)], PortTarget(address, node.pods.gateway))
    with pytest.raises(OSError, match="in use"), socket.socket() as late:  # and others cannot have ours
        late.bind(("127.0.0.1", 8080))
    with pytest.raises(Unsupported, match="sctp"):
        await ports.publish("b", [PortBinding(81, "sctp", "", 8082)], PortTarget(address, node.pods.gateway))
    with pytest.raises(Invalid, match="invalid IP address"):
        await ports.publish("b", [PortBinding(81, "tcp", "somewhere", 8082)], PortTarget(address, node.pods.gateway))


@pytest.mark.root
async def test_ranges_and_free_ports(node: Node, ports: Ports) -> None:
    address = await node.pod("web")
    wish = PortBinding(80, host_first=8100, host_last=8102)
    got = [(await ports.publish(name, [wish], PortTarget(address, node.pods.gateway)))[0].host_port for name in "abc"]
    assert got == [8100, 8101, 8102]
    with pytest.raises(Conflict, match="already allocated"):
        await ports.publish("d", [wish], PortTarget(address, node.pods.gateway))
    (one, two) = await ports.publish(
        "e", [PortBinding(80), PortBinding(80, "udp")], PortTarget(address, node.pods.gateway)
    )
    assert one.host_port > 1023
    assert two.host_port > 1023


@pytest.mark.root
async def test_a_foreign_flush_is_repaired(node: Node, ports: Ports) -> None:
    address = await node.pod("web")
    web = Server(node.netns["web"], "web", 80)
    await ports.publish("web", [PortBinding(80, host_first=8080)], PortTarget(address, node.pods.gateway))
    async with node.guard:
        await node.nft.run("flush ruleset")
        repaired = node.guard.repairs

        assert await ask(None, "127.0.0.1", 8080) == "web"  # by hand, until the rules are back
        await until(lambda: node.guard.repairs > repaired)
        assert await ask(None, "127.0.0.1", 8080) == "web"
    assert web.hits[-1] == node.pods.gateway
    web.close()


@pytest.mark.root
async def test_the_next_engine_takes_the_ports_up(node: Node, ports: Ports) -> None:
    address = await node.pod("web")
    web = Server(node.netns["web"], "web", 80)
    got = await ports.publish("web", [PortBinding(80, host_first=8080)], PortTarget(address, node.pods.gateway))
    await ports.close()
    assert await ask(None, "127.0.0.1", 8080) == "web"  # nobody of ours is there, the kernel leads on
    again = Ports(node.instance, node.nft, node.guard)
    await again.adopt("web", got)
    await again.start()
    assert await ask(None, "127.0.0.1", 8080) == "web"
    with pytest.raises(Conflict, match="already allocated"):
        await again.publish("b", [PortBinding(81, host_first=8080)], PortTarget(address, node.pods.gateway))
    await again.close()
    web.close()


@pytest.mark.root
async def test_the_machines_firewall_is_not_gone_around(node: Node, ports: Ports, tmp_path: Path) -> None:
    outside = _outsider(node, tmp_path)
    address = await node.pod("web")
    web = Server(node.netns["web"], "web", 80)
    wishes = [PortBinding(80, host_first=8080), PortBinding(80, "tcp", "127.0.0.1", 8081)]
    await ports.publish("web", wishes, PortTarget(address, node.pods.gateway))
    assert await ask(outside, "192.0.2.1", 8080) == "web"
    with pytest.raises((TimeoutError, ConnectionRefusedError)):  # on loopback alone, whoever asks
        await ask(outside, "192.0.2.1", 8081, timeout_s=0.3)
    await node.nft.run(
        "add table inet mine\nadd chain inet mine passing { type filter hook forward priority 0; }\n"
        'add rule inet mine passing iifname "o*" meta l4proto tcp ct original proto-dst 8080 drop'
    )
    with pytest.raises(TimeoutError):
        await ask(outside, "192.0.2.1", 8080, timeout_s=0.3)
    assert await ask(None, "192.0.2.1", 8080) == "web"
    web.close()


@pytest.mark.root
async def test_a_free_port_is_one_of_those_for_that(node: Node, ports: Ports) -> None:
    namespaces.sysctl("net.ipv4.ip_local_port_range", "45000 45007")
    address = await node.pod("web")
    target = PortTarget(address, node.pods.gateway)
    got = [(await ports.publish(name, [PortBinding(80)], target))[0].host_port for name in "abcd"]
    assert len(set(got)) == 4
    assert set(got) <= set(range(45000, 45008))


@pytest.mark.root
async def test_every_address_or_those_of_one_family(node: Node, ports: Ports) -> None:
    address = await node.pod("web")
    web = Server(node.netns["web"], "web", 80)
    target = PortTarget(address, node.pods.gateway)
    (four,) = await ports.publish("four", [PortBinding(80, "tcp", "0.0.0.0", 8080)], target)
    (six,) = await ports.publish("six", [PortBinding(80, "tcp", "[::]", 8080)], target)
    assert [(each.host_address, each.both) for each in (four, six)] == [("0.0.0.0", False), ("::", False)]
    assert await ask(None, "127.0.0.1", 8080) == "web"
    assert await ask(None, "::1", 8080) == "web"
    for wish in ("", "127.0.0.1", "::1"):
        with pytest.raises(Conflict, match="already allocated"):
            await ports.publish("more", [PortBinding(80, "tcp", wish, 8080)], target)
    web.close()
