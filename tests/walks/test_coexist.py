"""Two instances and a dockerd on one host at once, each with a working network; all removed without a trace."""

import signal
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import pytest
from tests import images
from tests.traces import identity, traces

from wherry.clock import machine
from wherry.testing import Cluster

pytestmark = pytest.mark.root


@contextmanager
def dockerd(place: Path) -> Iterator[str]:
    """A stock dockerd with a bridge of its own; gives the address of its socket. Its /run is its own."""
    host = f"unix://{place}/docker.sock"
    script = 'mount -t tmpfs tmpfs /run && exec dockerd "$@"'
    options = ["--data-root", f"{place}/data", "--exec-root", f"{place}/exec", "-p", f"{place}/pid", "-H", host]
    with (place / "dockerd.log").open("wb") as log:
        process = subprocess.Popen(
            ["unshare", "--mount", "sh", "-c", script, "sh", "--storage-driver", "vfs", *options],
            stdout=log,
            stderr=log,
        )
    try:
        deadline = machine.monotonic() + 40
        while "API listen" not in (place / "dockerd.log").read_text(errors="replace"):
            assert process.poll() is None, (place / "dockerd.log").read_text(errors="replace")[-2000:]
            assert machine.monotonic() < deadline, "dockerd does not listen"
            machine.pause(0.1)
        yield host
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def docker(host: str, *words: str) -> str:
    done = subprocess.run(["docker", "-H", host, *words], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def answer(url: str) -> str:
    with urllib.request.urlopen(url, timeout=5) as got:
        return got.read().decode()


def serve(cluster: Cluster, place: Path, version: str) -> str:
    """Run three pods of a web server behind a service; return the service's address."""
    layout = images.layout(place, version, entrypoint=("/bin/sh", "/web"))
    image = images.publish(cluster.root, cluster.environment["WHERRY_REGISTRY"], layout, "web:1")
    cluster.kubectl("create", "deployment", "web", f"--image={image}", "--replicas=2")
    cluster.kubectl("expose", "deployment", "web", "--port=80", "--target-port=8080")
    cluster.wait("deployment/web", "Available")
    return cluster.kubectl("get", "service", "web", "-o", "jsonpath={.spec.clusterIP}")


def check(cluster: Cluster, address: str, version: str) -> None:
    """The service answers the host, and a pod by name."""

    def answers() -> bool:
        try:
            return f"version {version}" in answer(f"http://{address}/cgi-bin/hello")
        except OSError:
            return False

    cluster.until(answers, f"the service of {cluster} answers the host")
    ask = "timeout 5 wget -qO- http://web.default.svc.cluster.local/cgi-bin/hello"
    assert f"version {version}" in cluster.kubectl("exec", "deploy/web", "--", "sh", "-c", ask)


def test_side_by_side_and_gone(tmp_path: Path) -> None:
    with Cluster(nodes=2) as one:
        first = serve(one, tmp_path / "one", "first")
        check(one, first, "first")
        with dockerd(tmp_path) as host, Cluster(nodes=1) as two:
            second = serve(two, tmp_path / "two", "second")
            assert first != second
            subprocess.run(
                ["docker", "-H", host, "import", "-", "web:1"], stdin=rootfs(tmp_path), check=True, capture_output=True,
                timeout=60,
            )  # fmt: skip
            run = ("run", "-d", "--name", "theirs", "-e", "VERSION=docker", "-e", "PATH=/bin", "-p", "127.0.0.1::8080")
            docker(host, *run, "web:1", "/bin/sh", "/web")
            port = docker(host, "port", "theirs", "8080").strip().rpartition(":")[2]
            check(one, first, "first")
            check(two, second, "second")
            two.until(
                lambda: "version docker" in quiet(f"http://127.0.0.1:{port}/cgi-bin/hello"), "docker's port answers"
            )
            inside = docker(host, "exec", "theirs", "timeout", "5", "wget", "-qO-", f"http://{first}/cgi-bin/hello")
            assert "version first" in inside
            root = two.root
            docker(host, "rm", "-f", "theirs")
        assert traces(root) == []
        check(one, first, "first")
    assert traces(one.root) == []
    rules = subprocess.run(["iptables-save"], capture_output=True, text=True, timeout=20, check=False).stdout
    assert identity(one.root) not in rules
    assert identity(root) not in rules


def quiet(url: str) -> str:
    try:
        return answer(url)
    except OSError:
        return ""


def rootfs(place: Path) -> BinaryIO:
    """The image's tree as a tar, for `docker import`."""
    path = place / "tree.tar"
    path.write_bytes(images.tree())
    return path.open("rb")
