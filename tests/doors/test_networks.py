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


@pytest.fixture
def clean(docker: Docker) -> Iterator[None]:
    """Containers and networks of a test go with it."""
    yield
    if names := docker("ps", "-aq").out.split():
        docker("rm", "-f", *names)
    docker("network", "prune", "-f")
    assert docker("network", "ls", "-q", "--filter", "type=custom").out == ""


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


def test_subnets_and_fixed_addresses(docker: Docker, clean: None) -> None:
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


def test_an_internal_network_has_no_way_out(docker: Docker, clean: None) -> None:
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
        (("create", "--ipv6", "x"), "EnableIPv6"),
        (("create", "-o", "com.docker.network.bridge.name=br7", "x"), "bridge.name"),
        (("create", "--subnet", "fd00::/64", "x"), "IPv6"),
        (("create", "--subnet", "10.5.5.5/24", "x"), "10.5.5.0/24"),
        (("create", "--subnet", "172.30.1.0/24", "--gateway", "172.30.2.1", "x"), "gateway"),
        (("rm", "host"), "pre-defined"),
        (("rm", "nowhere"), "nowhere"),
        (("inspect", "nowhere"), "nowhere"),
    ],
)
def test_what_cannot_be_says_so(docker: Docker, argv: tuple[str, ...], says: str) -> None:
    assert says in docker("network", *argv, code=1).err


def test_a_network_that_is_not_there_is_no_missing_image(docker: Docker) -> None:
    done = docker("run", "--rm", "--network", "nowhere", "web:1", "true", code=125)
    assert "network nowhere not found" in done.err
    assert "Unable to find image" not in done.err


def test_names_of_networks_are_taken_once(docker: Docker, clean: None) -> None:
    docker("network", "create", "one")
    assert "network with name one already exists" in docker("network", "create", "one", code=1).err
    assert set(docker("network", "ls", "--format", "{{.Name}}").out.split()) == {"bridge", "host", "none", "one"}
    docker("network", "rm", "one")


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
