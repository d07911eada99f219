"""docker-py: what its own integration tests ask of an engine, in our words. scripts/docker-py-suite runs those themselves."""

import importlib
import io
import struct
from collections.abc import Iterator
from typing import Any

import pytest
from tests.walks.clients import Engine

pytestmark = pytest.mark.root
WALK = {"walk": "docker-py"}


@pytest.fixture(scope="module")
def client(engine: Engine) -> Iterator[Any]:
    made: Any = importlib.import_module("docker").APIClient(base_url=engine.host, version="1.41", timeout=30)
    yield made
    for each in made.containers(all=True, filters={"label": "walk=docker-py"}):
        made.remove_container(each["Id"], force=True, v=True)
    made.close()
    assert engine.left("walk=docker-py") == []


@pytest.fixture(scope="module")
def errors() -> Any:
    return importlib.import_module("docker.errors")


@pytest.fixture(scope="module")
def sleeping(client: Any) -> str:
    """A container that only waits, on the default bridge with an address of its link that was asked for."""
    made = client.create_container("busybox", "sleep 600", labels=WALK, mac_address="02:42:ac:11:00:0a")
    client.start(made)
    return made["Id"]


def frames(data: bytes) -> list[tuple[int, bytes]]:
    """Take a multiplexed stream apart."""
    found: list[tuple[int, bytes]] = []
    while data:
        kind, size = struct.unpack(">BxxxL", data[:8])
        found.append((kind, data[8 : 8 + size]))
        data = data[8 + size :]
    return found


def test_the_start_of_an_exec_says_whether_its_output_is_framed(client: Any, sleeping: str) -> None:
    command = ["sh", "-c", "echo out; echo err >&2"]
    with_terminal = client.exec_create(sleeping, command, tty=True)
    assert client.exec_start(with_terminal, demux=True) == (b"out\r\nerr\r\n", None)  # a terminal has one output
    raw = client.exec_create(sleeping, command, tty=True)
    assert client.exec_start(raw, tty=True) == b"out\r\nerr\r\n"
    plain = client.exec_create(sleeping, command)
    assert client.exec_start(plain, demux=True) == (b"out\n", b"err\n")
    socket: Any = client.exec_start(client.exec_create(sleeping, command), socket=True)
    data = b""
    while piece := socket.read(4096):
        data += piece
    socket.close()
    assert sorted(frames(data)) == [(1, b"out\n"), (2, b"err\n")]


def test_what_inspect_shows_of_options(client: Any, sleeping: str) -> None:
    shown = client.inspect_container(sleeping)
    assert shown["NetworkSettings"]["MacAddress"] == "02:42:ac:11:00:0a"
    assert client.exec_start(client.exec_create(sleeping, "cat /sys/class/net/eth0/address")) == b"02:42:ac:11:00:0a\n"
    client._general_configs = {
        "detachKeys": "ctrl-p"
    }  # what people write in their configuration is sent in another case
    try:
        made = client.exec_create(sleeping, "true", stdin=True, tty=True)
    finally:
        client._general_configs = {}
    assert client.exec_inspect(made)["ProcessConfig"]["entrypoint"] == "true"
    network = client.create_network("docker-py-walk", labels=WALK)["Id"]
    config = client.create_networking_config({"docker-py-walk": client.create_endpoint_config(aliases=["hello"])})
    other = client.create_container(
        "busybox", "sleep 600", labels=WALK, networking_config=config, stop_timeout=25,
        host_config=client.create_host_config(network_mode="docker-py-walk", tmpfs={"/t": "size=1m"}),
    )["Id"]  # fmt: skip
    try:
        shown = client.inspect_container(other)
        assert shown["NetworkSettings"]["Networks"]["docker-py-walk"]["Aliases"] == ["hello"]
        assert shown["HostConfig"]["Tmpfs"] == {"/t": "size=1m"}
        assert shown["Config"]["StopTimeout"] == 25
        client.start(other)
        running = client.inspect_container(other)["NetworkSettings"]["Networks"]["docker-py-walk"]
        assert "hello" in running["Aliases"]
    finally:
        client.remove_container(other, force=True)
        client.remove_network(network)


def test_a_mac_address_is_shown_before_the_start_and_a_runtime_may_stand_on_top(client: Any, sleeping: str) -> None:
    network = client.create_network("docker-py-mac", labels=WALK)["Id"]
    id = client.create_container("busybox", "sleep 600", labels=WALK, runtime="runc")["Id"]
    try:
        client.connect_container_to_network(id, network, mac_address="02:42:ac:11:00:02")
        seen = client.inspect_container(id)
        assert seen["NetworkSettings"]["Networks"]["docker-py-mac"]["MacAddress"] == "02:42:ac:11:00:02"
        assert seen["HostConfig"]["Runtime"] == "runc"
    finally:
        client.remove_container(id, force=True)
        client.remove_network(network)


def test_a_container_that_is_about_to_be_restarted_is_not_removed_without_force(client: Any, errors: Any) -> None:
    policy = client.create_host_config(restart_policy={"Name": "always", "MaximumRetryCount": 0}, network_mode="none")
    made = client.create_container("busybox", "false", labels=WALK, host_config=policy)["Id"]
    client.start(made)
    client.wait(made)
    for _ in range(20):  # running or waiting to be: never something to be removed
        with pytest.raises(errors.APIError, match="stop the container before"):
            client.remove_container(made)
    client.remove_container(made, force=True)


def test_a_container_may_end_while_it_is_made_an_image(client: Any) -> None:
    for number in range(8):
        made = client.create_container("busybox", ["touch", f"/made-{number}"], labels=WALK)["Id"]
        client.start(made)
        image = client.commit(made, changes=["EXPOSE 8000", 'CMD ["ls"]'])["Id"]
        config = client.inspect_image(image)["Config"]
        assert config["Cmd"] == ["ls"]
        assert "8000/tcp" in config["ExposedPorts"]
        client.remove_container(made, force=True)
        client.remove_image(image)


def lines(client: Any, dockerfile: str, **more: Any) -> list[dict[str, Any]]:
    return list(client.build(fileobj=io.BytesIO(dockerfile.encode()), decode=True, rm=True, **more))


def test_builds_with_all_that_the_classic_api_knows(client: Any, errors: Any) -> None:
    network = client.create_network("docker-py-build", labels=WALK)["Id"]
    try:
        said = lines(
            client,
            "FROM busybox\nRUN grep 10.9.8.7 /etc/hosts && df -k /dev/shm && ulimit -n && nslookup $(hostname) >&2 || true\n",
            tag="docker-py:built", extra_hosts={"far.away": "10.9.8.7"}, shmsize=8 << 20, network_mode=network,
            nocache=True, container_limits={"memory": 64 << 20},
        )  # fmt: skip
        text = "".join(line.get("stream", "") for line in said)
        assert "10.9.8.7" in text
        assert "8192" in text
        assert "Successfully tagged docker-py:built" in text
        client.remove_image("docker-py:built")
    finally:
        client.remove_network(network)
    said = lines(
        client, "FROM busybox\nRUN echo to the other stream >&2 && exit 3\n", tag="docker-py:none", nocache=True
    )
    assert any(line.get("stream") == "\x1b[91mto the other stream\n\x1b[0m" for line in said)
    assert said[-1]["errorDetail"]["code"] == 3
    assert (
        "The command '/bin/sh -c echo to the other stream >&2 && exit 3' returned a non-zero code: 3"
        in said[-1]["error"]
    )
    with pytest.raises(errors.ImageNotFound):
        client.inspect_image("docker-py:none")
