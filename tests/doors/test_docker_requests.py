"""The Docker API itself: wrong requests, frames, docker-py, images."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker as docker_py
import pytest

from tests.doors.conftest import Docker
from wherry.testing import Cluster
from wherry.wire.blocking import request

pytestmark = pytest.mark.root


def ask(cluster: Cluster, method: str, path: str, body: Any = None) -> tuple[int, str]:
    """One request; the status and the message."""
    data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    answer = request(cluster.docker_host.removeprefix("unix://"), method, path, body=data)
    try:
        text = answer.read()
    finally:
        answer.close()
    decoded = json.loads(text)
    return answer.status, decoded["message"] if isinstance(decoded, dict) and "message" in decoded else ""


CREATE = "/v1.41/containers/create"


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "says"),
    [
        ("POST", CREATE, b"{", 400, "invalid JSON"),
        ("POST", CREATE, b"\xff\xfe", 400, "invalid JSON"),
        ("POST", CREATE, {}, 400, "Image"),
        ("POST", CREATE, {"Image": "no-such:1"}, 404, "No such image: no-such:1"),
        ("POST", CREATE, {"Image": "web:1", "Env": 5}, 400, "Env"),
        ("POST", CREATE, {"Image": "web:1", "HostConfig": []}, 400, "HostConfig"),
        ("POST", CREATE, {"Image": "web:1", "HostConfig": {"Memory": "lots"}}, 400, "HostConfig.Memory"),
        ("POST", CREATE, {"Image": "web:1", "HostConfig": {"Ulimits": [{"Name": "nofile"}]}}, 400, "Ulimits"),
        (
            "POST",
            CREATE,
            {"Image": "web:1", "HostConfig": {"UsernsMode": "keep-id"}},
            400,
            "invalid user namespace mode",
        ),
        ("POST", CREATE, {"Image": "web:1", "Colour": "red"}, 501, "Colour"),
        ("POST", CREATE, {"Image": "web:1", "Runtime": "none-such"}, 400, "none-such"),
        ("POST", "/networks/bridge/connect", {"Container": "x", "EndpointConfig": {"Links": ["a:b"]}}, 501, "Links"),
        ("POST", CREATE + "?name=a%20b", {"Image": "web:1"}, 400, "a b"),
        ("POST", CREATE + "?platform=linux/s390x", {"Image": "web:1"}, 404, "s390x"),
        ("GET", "/v1.99/containers/json", None, 400, "too new"),
        ("GET", "/v1.12/containers/json", None, 400, "too old"),
        ("GET", "/containers/json?filters=%7B", None, 400, "invalid filter"),
        ("GET", "/containers/json?filters=%7B%22colour%22%3A%5B%5D%7D", None, 400, "colour"),
        ("GET", "/containers/json?filters=%7B%22status%22%3A%5B%22odd%22%5D%7D", None, 400, "status=odd"),
        ("GET", "/containers/none/json", None, 404, "No such container: none"),
        ("GET", "/containers/none/logs?stdout=1", None, 404, "No such container"),
        ("POST", "/containers/none/wait?condition=never", None, 400, "never"),
        ("POST", "/exec/none/start", {}, 404, "No such exec instance"),
        ("GET", "/images/none/json", None, 404, "No such image"),
        ("POST", "/images/create", None, 400, "fromImage"),
        ("POST", "/images/web:1/tag", None, 400, "repo"),
        ("POST", "/networks/create", {"Name": "x", "EnableIPv4": False, "EnableIPv6": True}, 501, "EnableIPv4"),
        ("GET", "/networks/none-such", None, 404, "not found"),
        ("GET", "/containers/x/top", None, 404, "No such container"),
        ("POST", "/commit", None, 404, "No such container"),
        ("GET", "/swarm", None, 503, "swarm"),
        ("GET", "/services", None, 503, "not a swarm manager"),
        ("GET", "/nowhere", None, 404, "page not found"),
        ("PUT", "/containers/json", None, 405, "GET"),
        ("GET", "/events?since=x", None, 400, "since"),
    ],
)
def test_wrong_requests_are_answered_in_dockers_form(
    loaded: Cluster, method: str, path: str, body: Any, status: int, says: str
) -> None:
    found, message = ask(loaded, method, path, body)
    assert (found, says in message) == (status, True), (found, message)


@pytest.fixture
def library(loaded: Cluster) -> Iterator[docker_py.DockerClient]:
    client = docker_py.DockerClient(base_url=loaded.docker_host, timeout=20)
    yield client
    for each in client.containers.list(all=True):
        each.remove(force=True)
    client.close()


def test_docker_py_walks(library: docker_py.DockerClient) -> None:
    assert library.ping()
    assert library.containers.run("web:1", ["echo", "hello"], remove=True) == b"hello\n"
    with pytest.raises(docker_py.errors.ContainerError) as caught:
        library.containers.run("web:1", ["sh", "-c", "echo no >&2; exit 3"])
    assert (caught.value.exit_status, caught.value.stderr) == (3, b"no\n")
    box = library.containers.run("web:1", ["sh", "-c", "echo a; echo b >&2; exec sleep 100"], detach=True, name="py")
    assert library.containers.get("py").status == "running"
    assert box.exec_run(["sh", "-c", "echo out; echo err >&2; exit 4"], demux=True) == (4, (b"out\n", b"err\n"))
    assert set(box.logs(stream=True, follow=False)) == {b"a\n", b"b\n"}
    attached = box.attach(stream=True, logs=True, demux=True)
    assert {next(attached), next(attached)} == {(b"a\n", None), (None, b"b\n")}
    box.kill()
    assert box.wait()["StatusCode"] == 137
    with pytest.raises(docker_py.errors.NotFound):
        library.containers.get("nobody")
    with pytest.raises(docker_py.errors.ImageNotFound):
        library.containers.create("no-such:1")
    assert library.images.get("web:1").tags == ["web:1"]


def test_a_socket_attached_before_start_is_half_closed(library: docker_py.DockerClient) -> None:
    box = library.containers.create("web:1", ["wc", "-c"], stdin_open=True)
    raw = box.attach_socket(params={"stdin": 1, "stdout": 1, "stderr": 1, "stream": 1})
    box.start()
    raw._sock.sendall(b"12345")
    raw._sock.shutdown(1)
    received = b""
    while piece := raw._sock.recv(4096):
        received += piece
    raw.close()
    assert received == b"\x01\0\0\0\0\0\0\x02" + b"5\n"
    assert box.wait()["StatusCode"] == 0


def test_images_by_their_names(docker: Docker, loaded: Cluster, tmp_path: Path) -> None:
    registry = loaded.environment["WHERRY_REGISTRY"]
    docker("tag", "web:1", "boat:2")
    assert docker("images", "--format", "{{.Repository}}:{{.Tag}}", "boat").out == "boat:2\n"
    assert docker("images", "-q", "boat").out == docker("images", "-q", "web").out
    docker("tag", "web:1", f"{registry}/boat:3")
    assert "digest: sha256:" in docker("push", f"{registry}/boat:3").out
    docker("rmi", f"{registry}/boat:3")
    assert f"{registry}/boat" in docker("pull", f"{registry}/boat:3").out
    assert docker("run", "--rm", f"{registry}/boat:3", "echo", "pulled").out == "pulled\n"
    assert json.loads(docker("image", "inspect", "boat:2").out)[0]["Config"]["Labels"] == {"team": "boats"}
    assert "tests" in docker("history", "boat:2").out
    docker("save", "-o", str(tmp_path / "saved.tar"), "boat:2")
    done = docker("rmi", "boat:2", f"{registry}/boat:3").out
    assert "Untagged: boat:2" in done
    assert "Loaded image: boat:2" in docker("load", "-i", str(tmp_path / "saved.tar")).out
    docker("rmi", "boat:2")
    assert "No such image" in docker("rmi", "boat:2", code=1).err
    docker("run", "-d", "--name", "user", "web:1", "sleep", "100")
    assert "is using its referenced image" in docker("rmi", "web:1", code=1).err


def test_the_classic_builder(docker: Docker, tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text(
        'FROM web:1\nCOPY file /file\nRUN cat /file > /copied\nCMD ["cat", "/copied"]\n'
    )
    (tmp_path / "file").write_text("built\n")
    done = docker("build", "-t", "made:1", str(tmp_path), timeout_s=40.0)
    assert "Successfully tagged made:1" in done.out
    assert docker("run", "--rm", "made:1").out == "built\n"
    docker("rmi", "made:1")
    quiet = docker("build", "-q", str(tmp_path), timeout_s=40.0)
    assert re.fullmatch(r"sha256:[0-9a-f]{64}\n", quiet.out)
    assert "cgroupparent" in docker("build", "--cgroup-parent", "/x", str(tmp_path), code=1).err
    (tmp_path / "Dockerfile").write_text("FROM web:1\nCOPYY a b\n")
    assert "COPYY" in docker("build", str(tmp_path), code=1).err
