"""Links, addresses and routes in a network namespace of the test's own."""

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from wherry.errors import Broken
from wherry.host import kernel, namespaces, netlink
from wherry.host.netlink import Netlink

pytestmark = pytest.mark.root


@pytest.fixture
def netns(tmp_path: Path) -> Iterator[str]:
    pins = str(tmp_path / "ns")
    yield namespaces.create(pins, ("net",))["net"]
    namespaces.remove(pins)


@pytest.fixture
def other(tmp_path: Path) -> Iterator[str]:
    pins = str(tmp_path / "other")
    yield namespaces.create(pins, ("net",))["net"]
    namespaces.remove(pins)


def within(netns: str, work: Callable[[Netlink], None]) -> None:
    def body() -> None:
        with Netlink() as net:
            work(net)

    namespaces.inside(netns, body)


def test_a_pair_of_links_between_two_namespaces(netns: str, other: str) -> None:
    fd = os.open(other, os.O_RDONLY)
    macs = {"mac": "0a:57:00:00:00:01", "peer_mac": "0a:58:00:00:00:01"}

    def here(net: Netlink) -> None:
        net.send([netlink.add_veth("wh1", peer="eth0", peer_netns_fd=fd, mtu=1400, **macs)])
        net.send([netlink.set_link("wh1", alias="of a test")])
        link = net.link("wh1")
        assert link is not None
        assert (link.kind, link.mac, link.mtu, link.is_up, link.alias) == ("veth", macs["mac"], 1400, True, "of a test")
        assert net.link("nobody") is None

    def there(net: Netlink) -> None:
        found = net.link("eth0")
        assert found is not None
        assert (found.mac, found.mtu, found.is_up) == (macs["peer_mac"], 1400, False)

    within(netns, here)
    within(other, there)
    within(netns, lambda net: net.send([netlink.delete_link("wh1"), netlink.delete_link("wh1")]))
    within(other, lambda net: _equal([link.name for link in net.links()], ["lo"]))
    os.close(fd)


def test_addresses_and_routes_come_and_go_and_may_be_repeated(netns: str) -> None:
    def work(net: Netlink) -> None:
        net.send([netlink.add_bridge("br"), netlink.add_bridge("br"), netlink.add_bridge("port")])
        index = netlink.index_of("br")
        for _ in range(2):
            net.send(
                [
                    netlink.add_address(index, "10.1.0.1/24"),
                    netlink.add_route("10.2.0.0/16", index, source="10.1.0.1"),
                    netlink.add_route("0.0.0.0/0", 0, gateway="10.1.0.9"),
                    netlink.add_neighbour(index, "10.1.0.9", "0a:00:00:00:00:09"),
                    netlink.add_unreachable("10.3.0.0/16"),
                ]
            )
        assert [str(one.interface) for one in net.addresses() if one.index == index] == ["10.1.0.1/24"]
        routes = {str(route.destination): route for route in net.routes()}
        assert set(routes) == {"10.1.0.0/24", "10.2.0.0/16", "0.0.0.0/0", "10.3.0.0/16"}
        assert str(routes["0.0.0.0/0"].gateway) == "10.1.0.9"
        assert str(routes["10.2.0.0/16"].source) == "10.1.0.1"
        assert routes["10.3.0.0/16"].is_unreachable
        for _ in range(2):
            net.send(
                [
                    netlink.delete_route("0.0.0.0/0"),
                    netlink.delete_route("10.2.0.0/16", index=index),
                    netlink.delete_unreachable("10.3.0.0/16"),
                    netlink.delete_address(index, "10.1.0.1/24"),
                ]
            )
        assert net.routes() == []
        net.send([netlink.set_link("br", up=False)])
        down = net.link("br")
        assert down is not None
        assert not down.is_up

    within(netns, work)


def test_a_refusal_names_what_was_asked_and_the_rest_is_still_done(netns: str) -> None:
    def work(net: Netlink) -> None:
        wanted = [netlink.add_route("10.9.0.0/16", 0, gateway="192.0.2.1"), netlink.add_bridge("after")]
        with pytest.raises(
            Broken, match=r"add route to 10\.9\.0\.0/16: Network is unreachable \(ENETUNREACH\)"
        ) as caught:
            net.send(wanted)
        assert kernel.errno_of(caught.value) == errno.ENETUNREACH
        assert net.link("after") is not None
        with pytest.raises(Broken, match="link nobody"):
            netlink.index_of("nobody")
        with pytest.raises(Broken, match="on nobody: No such file"):
            netlink.set_for_link("nobody", [("rp_filter", "1")])

    within(netns, work)


def test_a_long_batch_is_sent_in_parts(netns: str) -> None:
    def work(net: Netlink) -> None:
        net.send([netlink.add_bridge("br")])
        index = netlink.index_of("br")
        net.send([netlink.add_route(f"10.{high}.{low}.0/24", index) for high in range(8) for low in range(256)])
        assert len(net.routes()) == 2048

    within(netns, work)


def _equal(left: object, right: object) -> None:
    assert left == right
