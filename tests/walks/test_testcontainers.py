"""Test suites that use testcontainers: ports, logs, volumes, networks, and a reaper for what a dead run has left."""

import importlib
import io
import os
import re
import subprocess
import sys
import tarfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.walks import clients
from tests.walks.clients import Engine

from wherry.clock import machine

pytestmark = pytest.mark.root
SESSION = "org.testcontainers.session-id"
SERVE = ["sh", "-c", "mkdir -p /www; echo moin > /www/index.html; echo ready to serve; exec httpd -f -p 8080 -h /www"]
REAPER = """#!/bin/sh
# One caller: it names labels, a line each, and hears ACK. When it has gone, all that carries them goes too.
while read -r line; do
  label=${line%?}
  echo ACK
  found="$found $label"
done
for label in $found; do
  docker rm -f -v $(docker ps -aq --filter "$label") 2>&1
  docker network rm $(docker network ls -q --filter "$label") 2>&1
done >> /reaped
"""
STAY = """
import sys
from testcontainers.core.container import DockerContainer
kept = DockerContainer("busybox").with_command("sleep 600").start()
print(kept.get_wrapped_container().id, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def containers(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The library, read anew with this engine's environment and without a reaper; nothing of its session stays."""
    for name, value in {**engine.environment, "TESTCONTAINERS_RYUK_DISABLED": "true"}.items():
        monkeypatch.setenv(name, value)
    for name in [name for name in sys.modules if name.startswith("testcontainers")]:
        monkeypatch.delitem(sys.modules, name)
    library: Any = importlib.import_module("testcontainers.core.container")
    yield library
    labels: Any = importlib.import_module("testcontainers.core.labels")
    assert engine.left(f"{SESSION}={labels.SESSION_ID}") == []


def answer(container: Any, port: int) -> str:
    """Ask a web server in a container, at the place where the library says that it is."""
    address = f"http://{container.get_container_host_ip()}:{container.get_exposed_port(port)}/"
    with urllib.request.urlopen(address, timeout=5) as got:
        return got.read().decode()


def test_a_container_with_ports_logs_files_and_exec(containers: Any, tmp_path: Path) -> None:
    logs: Any = importlib.import_module("testcontainers.core.waiting_utils")
    strategies: Any = importlib.import_module("testcontainers.core.wait_strategies")
    tmp_path.joinpath("shared").write_text("from the host\n")
    made = containers.DockerContainer("busybox").with_command(SERVE).with_exposed_ports(8080)
    made = made.with_env("COLOUR", "blue").with_volume_mapping(str(tmp_path), "/shared", "rw")
    with made as running:
        logs.wait_for_logs(running, strategies.LogMessageWaitStrategy("ready to serve"), timeout=10)
        assert answer(running, 8080) == "moin\n"
        assert running.get_logs()[0] == b"ready to serve\n"
        said = running.exec(["sh", "-c", "echo $COLOUR; cat /shared/shared; echo inside > /shared/back; exit 4"])
        assert (said.exit_code, said.output) == (4, b"blue\nfrom the host\n")
        assert tmp_path.joinpath("back").read_text() == "inside\n"
        assert running.get_wrapped_container().status in ("created", "running")
        id = running.get_wrapped_container().id
    client: Any = importlib.import_module("docker").from_env()
    with pytest.raises(importlib.import_module("docker.errors").NotFound):
        client.containers.get(id)
    client.close()


def test_containers_of_one_network_find_each_other(containers: Any) -> None:
    networks: Any = importlib.import_module("testcontainers.core.network")
    strategies: Any = importlib.import_module("testcontainers.core.wait_strategies")
    container = containers.DockerContainer
    with networks.Network() as network:
        server = container("busybox").with_command(SERVE).with_network(network).with_network_aliases("shop")
        server = server.with_exposed_ports(8080).waiting_for(strategies.HttpWaitStrategy(8080).for_status_code(200))
        asking = container("busybox").with_command(["wget", "-qO-", "http://shop:8080/"]).with_network(network)
        with server, asking as asked:
            assert asked.get_wrapped_container().wait(timeout=10)["StatusCode"] == 0
            assert asked.get_logs()[0] == b"moin\n"


def test_a_published_port_is_in_inspect_as_soon_as_start_returns(engine: Engine) -> None:
    client: Any = importlib.import_module("docker").DockerClient(base_url=engine.host)
    try:
        for number in range(10):
            made = client.containers.create("busybox", ["sleep", "600"], ports={"8080/tcp": None, "53/udp": None})
            try:
                made.start()
                shown = client.api.inspect_container(made.id)["NetworkSettings"]["Ports"]
                assert all(int(shown[port][0]["HostPort"]) > 0 for port in ("8080/tcp", "53/udp")), (number, shown)
            finally:
                made.remove(force=True)
    finally:
        client.close()


def reaper_image() -> bytes:
    """The stock docker in busybox with a script that speaks the reaper's protocol, as a tar."""
    whole = io.BytesIO(clients.rootfs())
    program = clients.newest()
    libraries = subprocess.run(["ldd", program], capture_output=True, text=True, check=False).stdout
    files = {"bin/docker": Path(program).read_bytes(), "reap": REAPER.encode()}
    files |= {found.lstrip("/"): Path(found).read_bytes() for found in re.findall(r"(/\S+) \(0x", libraries)}
    with tarfile.open(fileobj=whole, mode="a") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo("usr/" + name if name.startswith("lib") else name)
            member.size, member.mode = len(data), 0o755
            archive.addfile(member, io.BytesIO(data))
    return whole.getvalue()


def test_a_reaper_removes_what_a_killed_run_has_left(engine: Engine, tmp_path: Path) -> None:
    tmp_path.joinpath("reaper.tar").write_bytes(reaper_image())
    serve = 'CMD ["sh", "-c", "echo Reaper Started!; exec nc -ll -p 8080 -e /reap"]'
    changes = ("--change", "ENV PATH=/bin", "--change", serve, "--change", "EXPOSE 8080")
    engine.docker("import", *changes, str(tmp_path / "reaper.tar"), "reaper:1")
    environment = {**engine.environment, "RYUK_CONTAINER_IMAGE": "reaper:1"}
    with subprocess.Popen(
        [sys.executable, "-c", STAY], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as run:
        assert run.stdout is not None
        id = run.stdout.readline().strip()
        assert len(id) == 64
        run.kill()
    names = ("ps", "-a", "--no-trunc", "--format", "{{.ID}}")
    ends = machine.monotonic() + 20
    while id in engine.docker(*names):
        assert machine.monotonic() < ends, "the reaper did not remove the container"
        machine.pause(0.1)
    left = engine.docker("ps", "-aq", "--filter", "ancestor=reaper:1").split()
    assert len(left) == 1  # it waits for others
    assert id[:12] in engine.docker("exec", left[0], "cat", "/reaped")
    engine.docker("rm", "-f", *left)
    engine.docker("rmi", "reaper:1")
    assert os.path.exists(engine.host.removeprefix("unix://"))
