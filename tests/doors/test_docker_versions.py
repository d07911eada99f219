"""Old and new clients at one door: versions, what older ones get otherwise, and what the engine says of itself."""

import base64
import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.doors.conftest import Docker
from wherry.doors.docker import versions
from wherry.doors.docker.system import security_options
from wherry.testing import Cluster
from wherry.wire.blocking import request
from wherry.wire.http import Response

pytestmark = pytest.mark.root


def ask(
    cluster: Cluster, target: str, method: str = "GET", body: Any = None, headers: Mapping[str, str] | None = None
) -> tuple[int, Any, Mapping[str, str]]:
    """One request, as it stands; status, answer, headers."""
    data = b"" if body is None else json.dumps(body).encode()
    fields = {"Content-Type": "application/json", **(headers or {})}
    answer = request(cluster.docker_host.removeprefix("unix://"), method, target, headers=fields, body=data)
    try:
        text = answer.read()
        found = json.loads(text) if text and "json" in answer.headers.get("content-type", "") else text.decode()
        return answer.status, found, answer.headers
    finally:
        answer.close()


def registry_of(cluster: Cluster) -> str:
    return cluster.environment["WHERRY_REGISTRY"]


def test_versions_are_taken_from_the_oldest_to_the_newest_and_no_others(loaded: Cluster) -> None:
    for version in ("1.24", "1.30", "1.41", "1.43", "1.50", versions.text(versions.NEWEST)):
        status, found, headers = ask(loaded, f"/v{version}/version")
        assert (status, found["ApiVersion"], found["MinAPIVersion"]) == (200, "1.51", "1.24")
        assert headers["api-version"] == "1.51"
        assert ask(loaded, f"/v{version}/containers/json")[0] == 200
    status, found, _ = ask(loaded, "/v1.23/containers/json")
    assert (status, "client version 1.23 is too old. Minimum supported API version is 1.24" in found["message"]) == (
        400,
        True,
    )
    status, found, _ = ask(loaded, "/v1.52/containers/json")
    assert (status, found["message"]) == (400, "client version 1.52 is too new. Maximum supported API version is 1.51")
    assert ask(loaded, "/v1.41/nothing")[0] == 404
    status, text, headers = ask(loaded, "/_ping")
    assert (status, text, headers["builder-version"], headers["swarm"]) == (200, "OK", "1", "inactive")


def test_images_as_each_version_shows_them(loaded: Cluster) -> None:
    size = ask(loaded, "/v1.50/images/web:1/json")[1]["Size"]
    assert "VirtualSize" not in ask(loaded, "/v1.44/images/web:1/json")[1]
    assert ask(loaded, "/v1.43/images/web:1/json")[1]["VirtualSize"] == size
    for version, has in (("1.24", True), ("1.43", True), ("1.44", False), ("1.51", False)):
        listed = ask(loaded, f"/v{version}/images/json")[1]
        assert all(("VirtualSize" in image) is has for image in listed), version
        spent = ask(loaded, f"/v{version}/system/df")[1]["Images"]
        assert all(("VirtualSize" in image) is has for image in spent), version
    assert all(image["Containers"] == -1 for image in ask(loaded, "/v1.50/images/json")[1])
    assert all(image["Containers"] >= 0 for image in ask(loaded, "/v1.51/images/json")[1])


def test_an_image_without_a_name_is_shown_so(loaded: Cluster, newest: Docker) -> None:
    name = newest("create", "web:1", "true").out.strip()
    image = newest("commit", name).out.strip()
    try:
        new = next(each for each in ask(loaded, "/v1.43/images/json")[1] if each["Id"] == image)
        assert (new["RepoTags"], new["RepoDigests"]) == ([], [])
        old = next(each for each in ask(loaded, "/v1.42/images/json")[1] if each["Id"] == image)
        assert (old["RepoTags"], old["RepoDigests"]) == (["<none>:<none>"], ["<none>@<none>"])
    finally:
        newest("rm", name)
        newest("rmi", image)


def test_a_stream_has_the_type_that_its_version_knows(loaded: Cluster, newest: Docker) -> None:
    name = newest("run", "-d", "web:1", "echo", "hello").out.strip()
    newest("wait", name)
    logs = f"containers/{name}/logs?stdout=1"
    assert ask(loaded, f"/v1.42/{logs}")[2]["content-type"] == "application/vnd.docker.multiplexed-stream"
    assert ask(loaded, f"/v1.41/{logs}")[2]["content-type"] == "application/vnd.docker.raw-stream"


def test_info_is_complete_and_as_old_as_who_asks(loaded: Cluster) -> None:
    newest = ask(loaded, "/v1.51/info")[1]
    assert newest["FirewallBackend"] == {"Driver": "nftables"}
    assert newest["DockerRootDir"].startswith(loaded.root)
    assert newest["NCPU"] == os.cpu_count()
    assert newest["Runtimes"][newest["DefaultRuntime"]]["path"].startswith("/")
    assert newest["Warnings"] == []
    assert len(newest["ID"]) == 36
    assert "BridgeNfIptables" not in newest
    assert "KernelMemory" not in newest
    at_48 = ask(loaded, "/v1.48/info")[1]
    assert {"BridgeNfIptables", "BridgeNfIp6tables"} < set(at_48)
    assert {"FirewallBackend", "DiscoveredDevices"} & set(at_48) == set()
    at_41 = ask(loaded, "/v1.41/info")[1]
    assert at_41["KernelMemory"] is False
    assert all("status" not in each for each in at_41["Runtimes"].values())
    at_24 = ask(loaded, "/v1.24/info")[1]
    assert "seccomp" in at_24["SecurityOptions"]
    assert at_24["ExecutionDriver"] == "<not supported>"


def test_info_says_what_keeps_containers_apart() -> None:
    assert security_options(1, is_remapped=False) == ["name=seccomp,profile=default"]
    assert security_options(2, is_remapped=True) == ["name=seccomp,profile=default", "name=userns", "name=cgroupns"]


def test_the_stock_client_shows_the_engine_and_warns_of_nothing_untrue(docker: Docker) -> None:
    shown = docker("info")
    for line in ("Storage Driver: overlay2", "Default Runtime: crun", "Live Restore Enabled: true", "Swarm: inactive"):
        assert line in shown.out
    able = json.loads(docker("info", "-f", "{{json .}}").out)
    told = {line for line in shown.err.splitlines() if line.startswith("WARNING")}
    untrue = {
        "WARNING: No memory limit support": able["MemoryLimit"], "WARNING: No swap limit support": able["SwapLimit"],
        "WARNING: No cpu cfs quota support": able["CpuCfsQuota"], "WARNING: No cpuset support": able["CPUSet"],
        "WARNING: IPv4 forwarding is disabled": able["IPv4Forwarding"], "WARNING: No pids limit support": able["PidsLimit"],
    }  # fmt: skip
    assert not [text for text, has in untrue.items() if has and text in told]
    assert "Cannot" not in shown.err
    version = docker("version", "-f", "{{range .Server.Components}}{{.Name}} {{end}}").out
    assert version.split() == ["Engine", "crun", "conmon"]
    assert docker("plugin", "ls", "-q").out == ""
    df = docker("system", "df").out
    assert [line.split()[0] for line in df.splitlines()] == ["TYPE", "Images", "Containers", "Local", "Build"]


def test_what_there_is_not_is_refused_with_what_helps(loaded: Cluster) -> None:
    for method, path, word in (
        ("POST", "/session", "DOCKER_BUILDKIT=0"),
        ("POST", "/grpc", "DOCKER_BUILDKIT=0"),
        ("POST", "/plugins/pull?remote=x", "volumes are local"),
        ("GET", "/images/search?term=busybox", "docker search HOST:PORT/busybox"),
    ):
        status, found, _ = ask(loaded, f"/v1.43{path}", method)
        assert (status, word in found["message"]) == (501, True), found
    assert ask(loaded, "/v1.43/images/search?term=h:1/x&limit=101")[0] == 400
    assert ask(loaded, "/v1.43/auth", "POST", {})[0] == 400
    assert ask(loaded, "/v1.43/auth", "POST", {"username": "a", "password": "b", "serveraddress": "x y"})[0] == 400
    assert (
        ask(loaded, "/v1.43/auth", "POST", {"username": "a", "password": "b", "serveraddress": "127.0.0.1:1"})[0] == 503
    )


def test_signing_in_checks_the_credentials_at_the_registry(loaded: Cluster, docker: Docker) -> None:
    host = registry_of(loaded)
    secret = Path(loaded.root, "server", "registry-token").read_text().strip()
    folder = os.path.join(loaded.root, "signed-in")
    at = ("--config", folder)
    done = docker(*at, "login", host, "-u", "wherry", "--password-stdin", input=secret)
    assert "Login Succeeded" in done.out
    done = docker(*at, "login", host, "-u", "wherry", "--password-stdin", input="wrong", code=None)
    assert done.code != 0
    assert "401" in done.err or "unauthorized" in done.err.lower()
    docker(*at, "logout", host)


def test_a_registry_is_asked_what_is_behind_a_name_and_looked_through(loaded: Cluster, newest: Docker) -> None:
    secret = Path(loaded.root, "server", "registry-token").read_text().strip()
    name = f"{registry_of(loaded)}/boats/web:2"
    newest("tag", "web:1", name)
    auth = {"username": "wherry", "password": secret}
    fields = {"X-Registry-Auth": base64.urlsafe_b64encode(json.dumps(auth).encode()).decode()}
    newest("--config", os.path.join(loaded.root, "pushing"), "login", registry_of(loaded), "-u", "wherry", "-p", secret)
    newest("--config", os.path.join(loaded.root, "pushing"), "push", name)
    status, found, _ = ask(loaded, f"/distribution/{name}/json", headers=fields)
    assert status == 200, found
    assert found["Descriptor"]["digest"].startswith("sha256:")
    assert found["Descriptor"]["size"] > 100
    assert [each["os"] for each in found["Platforms"]] == ["linux"]
    pinned = name.rpartition(":")[0] + "@" + found["Descriptor"]["digest"]
    assert ask(loaded, f"/distribution/{pinned}/json", headers=fields)[1] == found
    assert ask(loaded, f"/distribution/{registry_of(loaded)}/boats/none:1/json", headers=fields)[0] == 404
    status, hits, _ = ask(loaded, f"/images/search?term={registry_of(loaded)}/boats", headers=fields)
    assert [each["name"] for each in hits] == [f"{registry_of(loaded)}/boats/web"]
    assert ask(loaded, f"/images/search?term={registry_of(loaded)}/nobody", headers=fields)[1] == []
    newest("rmi", name)


def test_an_answer_that_nobody_changes_is_left_as_it_is() -> None:
    response = Response.json([{"Id": "x"}])
    before = response.body
    versions.as_of((1, 24), "GET", "/containers/json", response)
    assert response.body is before
    failed = Response.json({"message": "no"}, status=404)
    versions.as_of((1, 24), "GET", "/images/x/json", failed)
    assert failed.body == Response.json({"message": "no"}).body


def test_an_old_client_of_the_cli_negotiates(newest: Docker) -> None:
    for version in ("1.24", "1.30", "1.43"):
        done = subprocess.run(
            [newest.program, "images", "-q", "web:1"], env={**newest.environment, "DOCKER_API_VERSION": version},
            capture_output=True, text=True, timeout=20, check=False,
        )  # fmt: skip
        assert (done.returncode, len(done.stdout.split())) == (0, 1), done.stderr


def test_inspect_names_a_containers_files_and_its_namespace(newest: Docker) -> None:
    """Scripts look for them there, and clients older than 1.52 for the default network's fields beside the networks."""
    newest("run", "-d", "--name", "web", "-h", "boat_1", "web:1", "sleep", "100")
    shown = json.loads(newest("inspect", "web").out)[0]
    assert Path(shown["HostnamePath"]).read_text() == "boat_1\n"
    assert "boat_1" in Path(shown["HostsPath"]).read_text()
    assert "nameserver" in Path(shown["ResolvConfPath"]).read_text()
    own = shown["NetworkSettings"]
    process = os.stat(f"/proc/{shown['State']['Pid']}/ns/net")
    assert os.stat(own["SandboxKey"]).st_ino == process.st_ino
    for name in ("EndpointID", "GlobalIPv6Address", "GlobalIPv6PrefixLen", "IPv6Gateway", "MacAddress", "Gateway"):
        assert own[name] == own["Networks"]["bridge"][name]
    assert (own["HairpinMode"], own["SecondaryIPAddresses"], own["LinkLocalIPv6PrefixLen"]) == (False, None, 0)
    newest("stop", "-t", "0", "web")
    assert json.loads(newest("inspect", "web").out)[0]["NetworkSettings"]["SandboxKey"] == ""
