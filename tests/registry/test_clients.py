"""Stock clients at one `wherry registry serve` with accounts: dockerd with two dockers, podman, skopeo, oras, Helm.

Each signs in, is refused where it may not, pushes, pulls and deletes in its own way, and sees what the others pushed.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests import images

from wherry.clock import machine

DOCKERS = ("/usr/bin/docker", "/usr/local/bin/docker")
"""Debian's docker, and a newer one where there is one."""
POLICY = {"Statement": [{"Effect": "Allow", "Action": ["pull", "push", "delete"], "Resource": "team/*"}]}


@dataclass(frozen=True)
class Hub:
    """The registry, a home for the clients' configuration, and `password`, ann's; she may all below `team/`."""

    address: str
    place: Path
    password: str = "correct horse"

    def run(self, *argv: str, input: str = "", code: int | None = 0, **more: str) -> str:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("DOCKER_", "WHERRY_"))}
        environment = {**kept, "HOME": str(self.place), "REGISTRY_AUTH_FILE": str(self.place / "auth.json"), **more}
        done = subprocess.run(
            argv, env=environment, input=input, capture_output=True, text=True, timeout=60, check=False,
            cwd=self.place, errors="replace",
        )  # fmt: skip
        assert code is None or done.returncode == code, (argv, done.returncode, done.stdout, done.stderr)
        return done.stdout + done.stderr

    def python(self, script: str) -> Any:
        """Run a client that is a library in a process of its own; return the JSON that it prints last."""
        head = f"import json; registry, user, password = {self.address!r}, 'ann', {self.password!r}\n"
        home = tempfile.mkdtemp(dir=self.place)
        said = self.run(sys.executable, "-c", head + script, DOCKER_HOST="unix:///nowhere", HOME=home)
        return json.loads(said.splitlines()[-1])


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    place = tmp_path_factory.mktemp("hub")
    wherry = [sys.executable, "-m", "wherry.cli.main", "registry"]
    root = ["--root", str(place / "registry")]
    argv = [*wherry, "serve", *root, "--listen", "127.0.0.1:0"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        found = re.search(r"http://(\S+)", process.stdout.readline())
        assert found is not None
        hub = Hub(found[1], place)
        hub.run(*wherry, "add", "ann", "--password-stdin", *root, input=hub.password + "\n")
        (place / "policy.json").write_text(json.dumps(POLICY))
        hub.run(*wherry, "policy", "user/ann", "team", str(place / "policy.json"), *root)
        (place / "root.tar").write_bytes(images.tree())
        (place / "auth.json").write_text("{}")
        images.layout(place / "layout", "1")
        yield hub
        process.terminate()


@contextmanager
def dockerd(place: Path) -> Iterator[str]:
    """A stock dockerd without a network; gives the address of its socket."""
    host = f"unix://{place}/docker.sock"
    argv = ["dockerd", "--data-root", f"{place}/data", "--exec-root", f"{place}/exec", "-p", f"{place}/pid", "-H", host,
            "--storage-driver", "vfs", "--bridge", "none", "--iptables=false", "--ip6tables=false"]  # fmt: skip
    with (place / "log").open("wb") as log:
        process = subprocess.Popen(
            ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs tmpfs /run && exec "$@"', "sh", *argv],
            stdout=log, stderr=log,
        )  # fmt: skip
    try:
        deadline = machine.monotonic() + 40
        while "API listen" not in (place / "log").read_text(errors="replace"):
            waited = process.poll() is None and machine.monotonic() < deadline
            assert waited, (place / "log").read_text(errors="replace")[-2000:]
            machine.pause(0.05)
        yield host
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@pytest.mark.root
def test_docker_signs_in_pushes_pulls_and_makes_a_multi_arch_index(hub: Hub, tmp_path: Path) -> None:
    with dockerd(tmp_path) as host:
        for docker in filter(os.path.exists, DOCKERS):
            _docker(hub, host, docker, f"{hub.address}/team/docker{DOCKERS.index(docker)}")


def _docker(hub: Hub, host: str, docker: str, name: str) -> None:
    stock = [docker, "--config", str(hub.place / name.rpartition("/")[2]), "-H", host]
    hub.run(*stock, "import", str(hub.place / "root.tar"), f"{name}:1")
    assert "denied" in hub.run(*stock, "push", f"{name}:1", code=1)
    hub.run(*stock, "login", "-u", "ann", "--password-stdin", hub.address, input="wrong", code=1)
    login = hub.run(*stock, "login", "-u", "ann", "--password-stdin", hub.address, input=hub.password)
    assert "Login Succeeded" in login
    assert "digest: sha256:" in hub.run(*stock, "push", f"{name}:1")
    hub.run(*stock, "tag", f"{name}:1", f"{name}/mounted:1")
    assert "Mounted from team/docker" in hub.run(*stock, "push", f"{name}/mounted:1")
    hub.run(*stock, "tag", f"{name}:1", f"{hub.address}/other:1")
    assert "denied" in hub.run(*stock, "push", f"{hub.address}/other:1", code=1)
    if docker == DOCKERS[-1]:  # in Debian's it is still an experiment
        hub.run(*stock, "manifest", "create", "--insecure", f"{name}:all", f"{name}:1")
        hub.run(*stock, "manifest", "annotate", "--arch", "riscv64", f"{name}:all", f"{name}:1")
        assert "sha256:" in hub.run(*stock, "manifest", "push", "--insecure", f"{name}:all")
        assert "riscv64" in hub.run(*stock, "manifest", "inspect", "--insecure", f"{name}:all")
    identity = hub.run(*stock, "images", "-q", "--no-trunc", f"{name}:1")
    hub.run(*stock, "rmi", "-f", identity.split()[0])
    pulled = hub.run(*stock, "pull", f"{name}:1")
    assert re.search(r"Digest: sha256:\w{64}\nStatus: Downloaded newer image", pulled)
    assert hub.run(*stock, "images", "-q", "--no-trunc", f"{name}:1") == identity
    hub.run(*stock, "rmi", "-f", identity.split()[0])
    hub.run(*stock, "logout", hub.address)
    assert "denied" in hub.run(*stock, "pull", f"{name}:1", code=1)


@pytest.mark.root
def test_podman_signs_in_pushes_pulls_and_makes_a_multi_arch_index(hub: Hub) -> None:
    assert shutil.which("podman"), "podman is not installed: make apt-bench"
    place = tempfile.mkdtemp(prefix="wherry-podman-")  # podman takes 50 characters at most
    podman = ["podman", "--root", f"{place}/root", "--runroot", f"{place}/run", "--storage-driver", "vfs",
              "--cgroup-manager", "cgroupfs", "--events-backend", "none", "--tmpdir", f"{place}/tmp"]  # fmt: skip
    name, plain = f"{hub.address}/team/podman", "--tls-verify=false"
    try:
        hub.run(*podman, "import", str(hub.place / "root.tar"), f"{name}:1")
        assert "403 (Forbidden)" in hub.run(*podman, "push", plain, f"{name}:1", code=125)
        hub.run(*podman, "login", plain, "-u", "ann", "--password-stdin", hub.address, input="wrong", code=125)
        hub.run(*podman, "login", plain, "-u", "ann", "--password-stdin", hub.address, input=hub.password)
        hub.run(*podman, "push", plain, f"{name}:1")
        hub.run(*podman, "push", plain, "--format", "v2s2", f"{name}:1", f"{name}:docker")
        hub.run(*podman, "manifest", "create", "all")
        hub.run(*podman, "manifest", "add", plain, "--arch", "riscv64", "all", f"docker://{name}:1")
        hub.run(*podman, "manifest", "push", plain, "--all", "all", f"docker://{name}:all")
        listed = json.loads(hub.run(*podman, "search", plain, "--list-tags", "--format", "json", name))
        assert listed[0]["Tags"] == ["1", "all", "docker"]
        identity = hub.run(*podman, "images", "-q", "--no-trunc", f"{name}:1")
        hub.run(*podman, "rmi", "-f", "-a")
        assert hub.run(*podman, "pull", "-q", plain, "--platform", "linux/riscv64", f"{name}:all")
        hub.run(*podman, "rmi", "-f", "-a")
        hub.run(*podman, "pull", "-q", plain, f"{name}:1")
        assert hub.run(*podman, "images", "-q", "--no-trunc", f"{name}:1") == identity
        hub.run(*podman, "logout", hub.address)
        assert "denied" in hub.run(*podman, "pull", plain, f"{name}:docker", code=125)
    finally:
        hub.run(*podman, "rmi", "-f", "-a", code=None)
        shutil.rmtree(place)


def test_skopeo_signs_in_copies_all_architectures_and_deletes(hub: Hub, tmp_path: Path) -> None:
    skopeo, plain = ["skopeo", "--insecure-policy"], "--tls-verify=false"
    name = f"docker://{hub.address}/team/skopeo"
    hub.run(*skopeo, "login", plain, "-u", "ann", "--password-stdin", hub.address, input=hub.password)
    index = _index(hub.place / "layout", tmp_path / "multi")
    hub.run(*skopeo, "copy", "-q", "--all", "--preserve-digests", "--dest-tls-verify=false", f"oci:{tmp_path}/multi",
            f"{name}:all")  # fmt: skip
    assert json.loads(hub.run(*skopeo, "inspect", plain, "--raw", f"{name}:all")) == index
    hub.run(*skopeo, "copy", "-q", "--all", "--src-tls-verify=false", f"{name}:all", f"oci:{tmp_path}/back")
    assert (
        len(list((tmp_path / "back/blobs/sha256").iterdir())) == 4
    )  # the index, the image, its configuration, its layer
    digest = index["manifests"][0]["digest"]
    hub.run(
        *skopeo, "copy", "-q", "--src-tls-verify=false", "--dest-tls-verify=false", f"{name}@{digest}", f"{name}:one"
    )
    assert json.loads(hub.run(*skopeo, "list-tags", plain, name))["Tags"] == ["all", "one"]
    hub.run(*skopeo, "delete", plain, f"{name}:all")
    assert json.loads(hub.run(*skopeo, "list-tags", plain, name))["Tags"] == ["one"]
    hub.run(*skopeo, "logout", hub.address)
    assert "log in with an account that may" in hub.run(*skopeo, "inspect", plain, f"{name}:one", code=1)


def _index(layout: Path, place: Path) -> dict[str, Any]:
    """Write a layout whose image is there for two architectures."""
    import hashlib

    shutil.copytree(layout, place)
    [image] = json.loads((layout / "index.json").read_text())["manifests"]
    del image["annotations"]
    entries = [{**image, "platform": {"os": "linux", "architecture": name}} for name in ("amd64", "riscv64")]
    kind = "application/vnd.oci.image.index.v1+json"
    index = {"schemaVersion": 2, "mediaType": kind, "manifests": entries}
    data = json.dumps(index).encode()
    digest = hashlib.sha256(data).hexdigest()
    (place / "blobs/sha256" / digest).write_bytes(data)
    top = {"mediaType": kind, "digest": f"sha256:{digest}", "size": len(data)}
    (place / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [top]}))
    return index


ORAS = """
import hashlib, pathlib
from oras.client import OrasClient
from oras.oci import Subject
pathlib.Path("sbom.json").write_text('{"packages": []}')
pathlib.Path("large.bin").write_bytes(bytes(range(256)) * 8192)
try:
    nobody = OrasClient(hostname=registry, insecure=True, tls_verify=False)
    nobody.push(f"{registry}/team/artifact:0", files=["sbom.json"], quiet=True)
    refused = ""
except Exception as error:
    refused = str(error)
client = OrasClient(hostname=registry, insecure=True, tls_verify=False, auth_backend="basic")
client.login(username=user, password=password, hostname=registry, tls_verify=False)
client.push(f"{registry}/team/artifact:1", files=["sbom.json:application/x"], quiet=True)
got = client.get_manifest(f"{registry}/team/artifact:1")
raw = client.do_request(f"http://{registry}/v2/team/artifact/manifests/1").content
subject = Subject(got["mediaType"], "sha256:" + hashlib.sha256(raw).hexdigest(), len(raw))
client.push(f"{registry}/team/artifact:sbom", files=["large.bin"], subject=subject, do_chunked=True, chunk_size=500000,
            quiet=True)
referrers = client.do_request(f"http://{registry}/v2/team/artifact/referrers/{subject.digest}").json()
bearer = OrasClient(hostname=registry, insecure=True, tls_verify=False)
bearer.login(username=user, password=password, hostname=registry, tls_verify=False)
files = bearer.pull(f"{registry}/team/artifact:sbom", outdir="pulled")
same = [pathlib.Path(file).read_bytes() == pathlib.Path("large.bin").read_bytes() for file in files]
tags = client.get_tags(f"{registry}/team/artifact")
client.delete_tags(f"{registry}/team/artifact", ["sbom"])
left = client.get_tags(f"{registry}/team/artifact")
print(json.dumps([refused, [one["size"] > 0 for one in referrers["manifests"]], same, tags, left]))
"""


def test_oras_pushes_an_artifact_and_a_referrer_in_chunks_and_deletes_a_tag(hub: Hub) -> None:
    refused, referrers, same, tags, left = hub.python(ORAS)
    assert "denied" in refused.lower(), refused
    assert (referrers, same, tags, left) == ([True], [True], ["1", "sbom"], ["1"])


HELM = """
import helm_python as helm
helm.Chart.create("boat", ".").close()
helm.package("boat", destination=".", version="1.2.3")
with helm.RegistryClient(plain_http=True, credentials_file="helm.json") as client:
    try:
        client.push("boat-1.2.3.tgz", f"oci://{registry}/team/charts", plain_http=True)
        refused = ""
    except helm.HelmError as error:
        refused = str(error)
    client.login(registry, user, password, plain_http=True)
    client.push("boat-1.2.3.tgz", f"oci://{registry}/team/charts", plain_http=True)
    tags = client.tags(f"{registry}/team/charts/boat")
    found = client.resolve(f"{registry}/team/charts/boat:1.2.3")
    client.pull(f"oci://{registry}/team/charts/boat", version="1.2.3", destination="charts", plain_http=True)
    same = open("charts/boat-1.2.3.tgz", "rb").read() == open("boat-1.2.3.tgz", "rb").read()
    client.logout(registry)
print(json.dumps([refused, tags, found["media_type"], same]))
"""


def test_helm_pushes_a_chart_lists_its_versions_and_pulls_it(hub: Hub) -> None:
    (hub.place / "charts").mkdir()
    refused, tags, kind, same = hub.python(HELM)
    assert "403: Forbidden" in refused
    assert (tags, kind, same) == (["1.2.3"], "application/vnd.oci.image.manifest.v1+json", True)
