"""Networks of one's own and published ports by the stock client and docker-py: as people use them, and as they fail."""

import json
import socket
import urllib.request
from collections.abc import Iterator
from urllib.error import URLError

import docker as docker_py
import pytest

from tests.doors.conftest import Docker
from wherry.clock import machine

pytestmark = pytest.mark.root
SERVE = ("sh", "-c", "mkdir -p /www; hostname > /www/index.html; exec busybox httpd -f -p 80 -h /www")
SPEAK = ("sh", "-c", r"printf 'GET / HTTP/1.0\r\n\r\n' | busybox nc -w 2 $0 80")
"""Read the page at an address from inside: a static wget cannot (it asks glibc for names), nc can."""


def page(port: int, host: str = "127.0.0.1") -> str:
    """Read the page at a port, as soon as somebody serves it; "" when nobody does for two seconds."""
    deadline = machine.monotonic() + 2
    while machine.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"http://{host}:{port}/", timeout=2) as answer:
                return answer.read().decode().strip()
        except (URLError, ConnectionError, TimeoutError):
            machine.pause(0.02)
    return ""


def lookup(docker: Docker, inside: tuple[str, ...], name: str) -> str:
    """Ask DNS for a name from inside (`run ... web:1`, `exec ...`); "" when there is none. A static wget cannot."""
    done = docker(*inside, "busybox", "nslookup", "-type=a", name, code=None)
    found = [line.split()[-1] for line in done.out.splitlines() if line.startswith("Address:")]
    return found[1] if len(found) > 1 else ""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def clear(docker: Docker) -> None:
    if names := docker("ps", "-aq").out.split():
        docker("rm", "-f", *names)
    docker("network", "prune", "-f")
    assert docker("network", "ls", "-q", "--filter", "type=custom").out == ""


@pytest.fixture
def clean(docker: Docker) -> Iterator[None]:
    """Containers and networks of a test go with it."""
    yield
    clear(docker)


@pytest.fixture
def last(newest: Docker) -> Iterator[Docker]:
    """The newest client alone, for what depends on no client; containers and networks go with the test."""
    yield newest
    clear(newest)


def test_a_published_port_serves_and_is_shown(docker: Docker, clean: None) -> None:
    port = free_port()
    docker("run", "-d", "--name", "web", "-h", "web", "-p", f"{port}:80", "web:1", *SERVE)
    for host in ("127.0.0.1", "localhost", "[::1]"):
        assert page(port, host) == "web"
    gateway = docker("network", "inspect", "-f", "{{(index .IPAM.Config 0).Gateway}}", "bridge").out
    assert docker("inspect", "-f", "{{.NetworkSettings.Networks.bridge.Gateway}}", "web").out == gateway
    assert f"0.0.0.0:{port}->80/tcp" in docker("ps", "--format", "{{.Ports}}").out
    assert f"0.0.0.0:{port}" in docker("port", "web", "80").out
    refused = docker("run", "-d", "--name", "other", "-p", f"{port}:80", "web:1", *SERVE, code=125)
    assert f"Bind for 0.0.0.0:{port} failed: port is already allocated" in refused.err
    docker("rm", "other")
    docker("stop", "-t", "0", "web")
    assert docker("port", "web").out == ""
    docker("run", "-d", "--name", "heir", "-h", "heir", "-p", f"{port}:80", "web:1", *SERVE)
    assert page(port) == "heir"
    docker("rm", "-f", "heir")
    docker("start", "web")
    assert page(port) == "web"


def test_any_free_port_ranges_and_one_address(docker: Docker, clean: None) -> None:
    docker("run", "-d", "--name", "a", "-p", "127.0.0.1::80", "-p", "53/udp", "web:1", *SERVE)
    (address, port) = docker("port", "a", "80").out.strip().split(":")
    assert address == "127.0.0.1"
    assert len(page(int(port))) == 12
    assert "/udp" in docker("ps", "--format", "{{.Ports}}").out
    docker("run", "-d", "--name", "b", "--expose", "80", "-P", "web:1", *SERVE)
    assert len(page(int(docker("port", "b", "80").out.split()[0].rpartition(":")[2]))) == 12
    names = ("ps", "--format", "{{.Names}}", "--filter")
    assert docker(*names, f"publish={port}").out == "a\n"
    assert docker(*names, "publish=1-2").out == ""
    assert set(docker(*names, "expose=80").out.split()) == {"a", "b"}
    assert docker(*names, "expose=53/udp").out == "a\n"
    assert set(docker(*names, "network=bridge").out.split()) == {"a", "b"}
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        number = taken.getsockname()[1]
        refused = docker("run", "--rm", "-p", f"127.0.0.1:{number}:80", "web:1", "true", code=125)
        assert "address already in use" in refused.err
    assert "sctp" in docker("run", "--rm", "-p", "7:7/sctp", "web:1", "true", code=125).err


def test_containers_find_each_other_by_name(docker: Docker, clean: None) -> None:
    docker("network", "create", "--label", "team=boats", "front")
    docker("network", "create", "back")
    docker("run", "-d", "--name", "web", "-h", "web", "--network", "front", "--network-alias", "site", "web:1", *SERVE)
    address = docker("inspect", "-f", "{{.NetworkSettings.Networks.front.IPAddress}}", "web").out.strip()
    inside = ("run", "--rm", "--network", "front", "web:1")
    for name in ("web", "site", "web.front", docker("ps", "-q").out.strip(), "WEB"):
        assert lookup(docker, inside, name) == address
    assert lookup(docker, inside, "nobody") == ""
    assert "web.front" in docker(*inside, "busybox", "nslookup", address).out
    assert docker("run", "--rm", "--network", "front", "web:1", *SPEAK, address).out.endswith("\nweb\n")
    assert lookup(docker, ("run", "--rm", "--network", "back", "web:1"), "web") == ""
    for network in ("back", "bridge"):
        assert docker("run", "--rm", "--network", network, "web:1", *SPEAK, address, code=1).out == ""
    docker("rename", "web", "shop", code=None)
    shown = json.loads(docker("network", "inspect", "front").out)[0]
    assert shown["Labels"] == {"team": "boats"}
    assert [each["IPv4Address"].partition("/")[0] for each in shown["Containers"].values()] == [address]
    assert docker("network", "ls", "-q", "--filter", "label=team=boats").out.strip() == shown["Id"][:12]
    assert "has active endpoints" in docker("network", "rm", "front", code=1).err


def test_connect_and_disconnect_while_it_runs(docker: Docker, clean: None) -> None:
    for name in ("front", "back"):
        docker("network", "create", name)
    docker("run", "-d", "--name", "web", "-h", "web", "--network", "front", "web:1", *SERVE)
    docker("run", "-d", "--name", "other", "--network", "back", "web:1", "sleep", "1000")
    assert lookup(docker, ("exec", "other"), "db") == ""
    docker("network", "connect", "--alias", "db", "back", "web")
    address = lookup(docker, ("exec", "other"), "db")
    ask = ("exec", "other", *SPEAK, address)
    assert docker(*ask).out.endswith("\nweb\n")
    assert lookup(docker, ("exec", "web"), "other") != ""  # on both networks it knows the names of both
    assert docker("exec", "web", "busybox", "ip", "-o", "-4", "addr").out.count("eth") >= 2
    assert "already exists in network" in docker("network", "connect", "back", "web", code=1).err
    docker("network", "disconnect", "back", "web")
    docker(*ask, code=1)
    assert lookup(docker, ("exec", "other"), "db") == ""
    assert "is not connected to" in docker("network", "disconnect", "back", "web", code=1).err
    docker("run", "-d", "--name", "plain", "web:1", "sleep", "1000")  # from the default network
    docker("network", "connect", "front", "plain")
    address = lookup(docker, ("exec", "plain"), "web")
    docker("network", "disconnect", "bridge", "plain")
    assert docker("exec", "plain", *SPEAK, address).out.endswith("\nweb\n")
    assert set(json.loads(docker("inspect", "plain").out)[0]["NetworkSettings"]["Networks"]) == {"front"}


def test_subnets_and_fixed_addresses(last: Docker) -> None:
    docker = last
    docker("network", "create", "--subnet", "172.30.77.0/24", "--gateway", "172.30.77.254", "-o",
           "com.docker.network.driver.mtu=1400", "plan")  # fmt: skip
    docker("run", "-d", "--name", "web", "--network", "plan", "--ip", "172.30.77.9", "-p", "80", "web:1", *SERVE)
    links = docker("exec", "web", "busybox", "ip", "addr", "show", "eth0").out
    assert "172.30.77.9/24" in links
    assert "mtu 1400" in links
    assert "default via 172.30.77.254" in docker("exec", "web", "busybox", "ip", "route").out
    assert len(page(int(docker("port", "web", "80").out.split()[0].rpartition(":")[2]))) == 12
    taken = docker("run", "--rm", "--network", "plan", "--ip", "172.30.77.9", "web:1", "true", code=125)
    assert "Address already in use" in taken.err
    outside = docker("run", "--rm", "--network", "plan", "--ip", "172.30.78.9", "web:1", "true", code=125)
    assert "does not belong to any of this network's subnets" in outside.err
    assert "Pool overlaps" in docker("network", "create", "--subnet", "172.30.77.0/25", "again", code=1).err
    docker("network", "create", "any")
    assert (
        "user configured subnets"
        in docker("run", "--network", "any", "--ip", "10.0.0.9", "web:1", "true", code=125).err
    )
    assert "172.30.77.9" in docker("exec", "web", "cat", "/etc/hosts").out
    assert docker("exec", "web", "cat", "/etc/resolv.conf").out.startswith("nameserver 172.30.77.254\n")


def test_both_families(last: Docker) -> None:
    docker = last
    docker("network", "create", "--ipv6", "--subnet", "172.30.78.0/24", "--subnet", "fd00:30:78::/64", "--gateway",
           "fd00:30:78::fe", "-o", "com.docker.network.bridge.name=wh-six", "six")  # fmt: skip
    port = free_port()
    docker("run", "-d", "--name", "web", "-h", "web", "--network", "six", "--ip6", "fd00:30:78::9", "-p", f"{port}:80",
           "web:1", *SERVE)  # fmt: skip
    shown = json.loads(docker("network", "inspect", "six").out)[0]
    assert shown["EnableIPv6"]
    assert shown["IPAM"]["Config"] == [
        {"Subnet": "172.30.78.0/24", "Gateway": "172.30.78.1"}, {"Subnet": "fd00:30:78::/64", "Gateway": "fd00:30:78::fe"},
    ]  # fmt: skip
    assert [each["IPv6Address"] for each in shown["Containers"].values()] == ["fd00:30:78::9/64"]
    place = json.loads(docker("inspect", "web").out)[0]["NetworkSettings"]["Networks"]["six"]
    assert (place["GlobalIPv6Address"], place["GlobalIPv6PrefixLen"]) == ("fd00:30:78::9", 64)
    assert (place["IPv6Gateway"], place["IPAMConfig"]) == ("fd00:30:78::fe", {"IPv6Address": "fd00:30:78::9"})
    asked = docker("run", "--rm", "--network", "six", "web:1", "busybox", "nslookup", "-type=aaaa", "web").out
    assert "fd00:30:78::9" in asked
    for host in ("127.0.0.1", "[::1]", "[fd00:30:78::fe]"):
        assert page(port, host) == "web"
    assert docker("exec", "web", "busybox", "ip", "-6", "route").out.count("default via fd00:30:78::fe") == 1
    docker("network", "create", "--ipv6", "any")
    config = json.loads(docker("network", "inspect", "any").out)[0]["IPAM"]["Config"]
    assert config[1]["Subnet"].startswith("fd")
    outside = docker("run", "--rm", "--network", "six", "--ip6", "fd00::9", "web:1", "true", code=125)
    assert "does not belong to any of this network's subnets" in outside.err


def test_an_internal_network_has_no_way_out(last: Docker) -> None:
    docker = last
    docker("network", "create", "--internal", "inner")
    docker("run", "-d", "--name", "web", "-h", "web", "--network", "inner", "-p", "80", "web:1", *SERVE)
    address = lookup(docker, ("run", "--rm", "--network", "inner", "web:1"), "web")
    assert docker("run", "--rm", "--network", "inner", "web:1", *SPEAK, address).out.endswith("\nweb\n")
    assert "default" not in docker("exec", "web", "busybox", "ip", "route").out
    assert docker("port", "web").out == ""


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (("create", "bridge"), "predefined bridge network"),
        (("create", "--driver", "overlay", "x"), "overlay"),
        (("create", "-o", "com.docker.network.bridge.name=lo", "x"), "not wherry's"),
        (("create", "-o", "com.docker.network.bridge.name=a-name-that-is-long", "x"), "no name of a link"),
        (("create", "-o", "com.docker.network.bridge.gateway_mode_ipv6=routed", "x"), "gateway_mode_ipv6=routed"),
        (("create", "-o", "com.docker.network.bridge.enable_icc=maybe", "x"), "true or false"),
        (("create", "-o", "parent=eth0", "x"), "parent=eth0"),
        (("create", "--subnet", "fd00:7::/64", "x"), "--ipv6"),
        (("create", "--subnet", "10.5.5.0/24", "--subnet", "10.5.6.0/24", "x"), "multiple subnets"),
        (("create", "--ipv6", "--subnet", "fd00:7::/64", "--gateway", "fd00:8::1", "x"), "gateway"),
        (("create", "--scope", "swarm", "x"), "not a swarm manager"),
        (("create", "--ingress", "x"), "Ingress network can only be global"),
        (("create", "--subnet", "10.5.5.5/24", "x"), "10.5.5.0/24"),
        (("create", "--subnet", "172.30.1.0/24", "--gateway", "172.30.2.1", "x"), "gateway"),
        (("rm", "host"), "pre-defined"),
        (("rm", "nowhere"), "nowhere"),
        (("inspect", "nowhere"), "nowhere"),
    ],
)
def test_what_cannot_be_says_so(newest: Docker, argv: tuple[str, ...], says: str) -> None:
    docker = newest
    assert says in docker("network", *argv, code=1).err


def test_a_network_that_is_not_there_is_no_missing_image(docker: Docker) -> None:
    done = docker("run", "--rm", "--network", "nowhere", "web:1", "true", code=125)
    assert "network nowhere not found" in done.err
    assert "Unable to find image" not in done.err


def test_names_of_networks_are_taken_once(last: Docker) -> None:
    docker = last
    docker("network", "create", "one")
    assert "network with name one already exists" in docker("network", "create", "one", code=1).err
    assert set(docker("network", "ls", "--format", "{{.Name}}").out.split()) == {"bridge", "host", "none", "one"}
    docker("network", "rm", "one")


def inspected(docker: Docker, name: str, network: str) -> dict[str, object]:
    """What `inspect` says of a container's place on a network."""
    return json.loads(docker("inspect", name).out)[0]["NetworkSettings"]["Networks"][network]


def test_several_networks_at_once(last: Docker) -> None:
    docker = last
    docker("network", "create", "--subnet", "172.30.81.0/24", "front")
    docker("network", "create", "-o", "com.docker.network.container_iface_prefix=net", "back")
    docker("network", "create", "-o", "com.docker.network.bridge.enable_icc=false", "apart")
    port = free_port()
    docker("create", "--name", "web", "-h", "web", "-p", f"{port}:80", "--add-host", "machine:host-gateway",
           "--network", "name=front,alias=site,ip=172.30.81.7,mac-address=02:42:00:00:00:09",
           "--network", "name=back,gw-priority=3", "web:1", *SERVE)  # fmt: skip
    docker("network", "connect", "--alias", "late", "apart", "web")  # before it is started
    docker("start", "web")
    assert page(port) == "web"
    assert "default via 172.30.81.1" not in docker("exec", "web", "busybox", "ip", "route").out
    links = docker("exec", "web", "busybox", "ip", "addr").out
    assert "02:42:00:00:00:09" in links
    assert "net1@" in links
    place = inspected(docker, "web", "front")
    assert (place["IPAddress"], place["MacAddress"], place["GwPriority"]) == ("172.30.81.7", "02:42:00:00:00:09", 0)
    assert {"web", "site"} <= set(place["DNSNames"])  # type: ignore[arg-type]  # a list
    assert inspected(docker, "web", "back")["GwPriority"] == 3
    gateway = inspected(docker, "web", "front")["Gateway"]
    assert f"{gateway}\tmachine" in docker("exec", "web", "cat", "/etc/hosts").out
    address = str(inspected(docker, "web", "apart")["IPAddress"])
    assert lookup(docker, ("run", "--rm", "--network", "apart", "web:1"), "late") == address
    assert docker("run", "--rm", "--network", "apart", "web:1", *SPEAK, address, code=1).out == ""
    docker("network", "disconnect", "back", "web")
    assert page(port) == "web"  # the port leads to another of its networks now
    assert "default via" in docker("exec", "web", "busybox", "ip", "route").out
    wrong = docker("run", "--rm", "--network", "name=front,driver-opt=a.b=c", "web:1", "true", code=125)
    assert "DriverOpts" in wrong.err
    wrong = docker("run", "--rm", "--network", "name=front,link-local-ip=169.254.7.7", "web:1", "true", code=125)
    assert "LinkLocalIPs" in wrong.err


def test_networks_are_found_and_pruned_by_filters(last: Docker) -> None:
    docker = last
    for name, label in (("one", "a=1"), ("two", "a=2"), ("three", "b=1")):
        docker("network", "create", "--label", label, name)
    docker("run", "-d", "--name", "used", "--network", "one", "web:1", "sleep", "1000")

    def names(*wanted: str) -> set[str]:
        words = [word for each in wanted for word in ("--filter", each)]
        return set(docker("network", "ls", "--format", "{{.Name}}", *words).out.split())

    assert names("label=a") == {"one", "two"}
    assert names("label=a=2") == {"two"}
    assert names("name=t", "type=custom") == {"two", "three"}
    assert names("dangling=true", "label=a") == {"two"}
    assert names("driver=host") == {"host"}
    assert names("scope=global") == set()
    assert "invalid filter" in docker("network", "ls", "--filter", "colour=red", code=1).err
    assert docker("network", "prune", "-f", "--filter", "until=1h30m").out == ""
    assert docker("network", "prune", "-f", "--filter", "label!=b").out.split()[-1] == "two"
    assert docker("network", "prune", "-f", "--filter", "label=a").out == ""
    docker("rm", "-f", "used")
    assert set(docker("network", "prune", "-f").out.split()[2:]) == {"one", "three"}


@pytest.fixture
def client(docker: Docker) -> Iterator[docker_py.DockerClient]:
    """docker-py at the same socket."""
    made = docker_py.DockerClient(base_url=docker.environment["DOCKER_HOST"], version="auto")
    yield made
    made.close()


@pytest.mark.parametrize("docker", [pytest.param("/usr/local/bin/docker", id="docker-py")], indirect=True)
def test_docker_py_speaks_of_networks_and_ports(client: docker_py.DockerClient, docker: Docker, clean: None) -> None:
    pool = docker_py.types.IPAMPool(subnet="172.30.80.0/24", gateway="172.30.80.1", iprange="172.30.80.128/25")
    made = client.networks.create("py", ipam=docker_py.types.IPAMConfig(pool_configs=[pool]), labels={"a": "b"})
    assert [each.name for each in client.networks.list(filters={"label": "a=b"})] == ["py"]
    assert [each.name for each in client.networks.list(names=["py"])] == ["py"]
    made.reload()
    assert made.attrs["IPAM"]["Config"][0]["IPRange"] == "172.30.80.128/25"
    assert made.attrs["Containers"] == {}
    sleeper = client.containers.create(
        "web:1", ["sleep", "1000"], ports={"80/tcp": None, "81/tcp": [None, ("127.0.0.1", 0)]}
    )
    made.connect(sleeper, aliases=["z"], ipv4_address="172.30.80.200")
    sleeper.start()
    made.reload()
    assert [each.id for each in made.containers] == [sleeper.id]
    sleeper.reload()
    place = sleeper.attrs["NetworkSettings"]["Networks"]["py"]
    assert place["IPAddress"] == "172.30.80.200"
    assert place["IPAMConfig"] == {"IPv4Address": "172.30.80.200"}
    assert "z" in place["Aliases"]
    ports = sleeper.attrs["NetworkSettings"]["Ports"]
    assert set(ports) == {"80/tcp", "81/tcp"}
    assert {each["HostIp"] for each in ports["81/tcp"]} == {"0.0.0.0", "::", "127.0.0.1"}
    made.disconnect(sleeper)
    made.reload()
    assert made.containers == []
    settings = {"by-config": client.api.create_endpoint_config(aliases=["x"])}
    client.networks.create("by-config")
    config = client.api.create_networking_config(settings)
    id = client.api.create_container("web:1", ["sleep", "1000"], networking_config=config)["Id"]
    client.api.start(id)
    assert set(client.api.inspect_container(id)["NetworkSettings"]["Networks"]) == {"by-config"}
    sleeper.remove(force=True)
    client.api.remove_container(id, force=True)
    assert sorted(client.networks.prune()["NetworksDeleted"]) == ["by-config", "py"]
    with pytest.raises(docker_py.errors.NotFound):
        client.networks.get("py")
