"""Instances of real nodes: through restarts, kills and changes of their nodes, and gone without a trace."""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from tests import images
from tests.daemon.conftest import Wherry
from tests.traces import processes, traces

import wherry as wherry_package
from wherry.daemon.instance import reachable_by, unprivileged_uid

pytestmark = pytest.mark.root

MANIFEST = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 4
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - {name: web, image: IMAGE, command: [sleep, "100000"]}
"""


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return images.layout(tmp_path_factory.mktemp("image") / "box", "1")


def deploy(wherry: Wherry, box: Path) -> None:
    """Publish the image and run four pods of it."""
    image = images.publish(wherry.root, wherry.status()["registry"], box, "box:1")
    manifest = wherry.root / "web.yaml"
    manifest.write_text(MANIFEST.replace("IMAGE", image))
    wherry.kubectl("apply", "-f", str(manifest))
    wherry.kubectl("rollout", "status", "deployment/web", "--timeout=60s")


def nodes_used(wherry: Wherry) -> set[str]:
    return set(wherry.kubectl("get", "pods", "-o", "jsonpath={.items[*].spec.nodeName}").split())


def all_ready(wherry: Wherry) -> bool:
    return wherry.kubectl("get", "deploy", "web", "-o", "jsonpath={.status.readyReplicas}") == "4"


def test_nodes_come_and_go_and_an_instance_goes_without_a_trace(wherry: Wherry, box: Path) -> None:
    wherry.up("--nodes", "2", "--profile", "fast-failover")
    deploy(wherry, box)
    assert nodes_used(wherry) == {"node-1", "node-2"}
    assert "node node-3 is ready" in wherry("node", "add", "node-3")
    assert "already there" in wherry("node", "add", "node-3", code=1)
    assert [node["name"] for node in wherry.status()["nodes"]] == ["node-1", "node-2", "node-3"]
    assert wherry.status()["is_ready"]
    wherry.kubectl("scale", "deployment/web", "--replicas=6")
    wherry.kubectl("rollout", "status", "deployment/web", "--timeout=60s")
    wherry.until(lambda: "node-3" in nodes_used(wherry), "a pod on the new node")
    assert "node node-3 is gone" in wherry("node", "remove", "node-3")
    assert "NotFound" in wherry.kubectl("get", "node", "node-3", code=1)
    assert not [line for line in traces(wherry.root) if "node-3" in line]
    wherry.kubectl("scale", "deployment/web", "--replicas=4")
    assert "node node-2 is dead" in wherry("node", "kill", "node-2")
    wherry.until(
        lambda: nodes_used(wherry) == {"node-1"} and all_ready(wherry), "four pods on the node that is left", 60
    )
    wherry("node", "remove", "node-2")
    assert wherry.status()["is_ready"]
    assert "node node-2 is ready" in wherry("node", "add", "node-2")
    wherry("down")
    assert traces(wherry.root) == []


def test_after_kill_9_of_everything_the_next_up_cleans_and_all_is_as_before(wherry: Wherry, box: Path) -> None:
    wherry.up("--nodes", "2")
    deploy(wherry, box)
    before = wherry.status()
    addresses = wherry.kubectl("get", "nodes", "-o", "jsonpath={.items[*].status.addresses[0].address}")
    for pid, words in processes(wherry.root).items():
        if "conmon" not in words and "sleep" not in words:  # wherry's own, with the warden; the containers stay behind
            os.kill(pid, signal.SIGKILL)
    assert "removing what an instance that was killed has left" in wherry("up", "--detach", "--nodes", "2")
    now = wherry.status()
    assert [(node["name"], node["ready"], node["pod_cidr"]) for node in now["nodes"]] == [
        (node["name"], node["ready"], node["pod_cidr"]) for node in before["nodes"]
    ]
    assert (now["api"], now["registry"]) == (before["api"], before["registry"])
    assert addresses == wherry.kubectl("get", "nodes", "-o", "jsonpath={.items[*].status.addresses[0].address}")
    wherry.until(lambda: all_ready(wherry), "its pods run again", 60)


def files_of(name: str, seen: set[str]) -> Iterator[tuple[Path, Path]]:
    """The files of a distribution and of all that it needs to run: (where, below site-packages)."""
    found = re.match(r"[\w.-]+", name)
    assert found is not None
    if found[0].lower() in seen or "extra ==" in name:
        return
    seen.add(found[0].lower())
    try:
        distribution = metadata.distribution(found[0])
    except metadata.PackageNotFoundError:  # needed on other machines than this one
        return
    for file in distribution.files or ():
        if file.suffix != ".pyc" and not str(file).startswith("..") and file.suffix != ".pth":
            yield Path(str(file.locate())), Path(str(file))
    for needed in distribution.requires or ():
        yield from files_of(needed, seen)


@pytest.fixture
def installed() -> Iterator[tuple[str, ...]]:
    """The command as an installation that every user may read has it, wherever this checkout is."""
    place = Path(tempfile.mkdtemp(prefix="wherry-installed-", dir="/var/tmp"))
    place.chmod(0o755)
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    system = shutil.which(version, path="/usr/local/bin:/usr/bin") or sys.executable
    subprocess.run([system, "-m", "venv", "--without-pip", str(place / "venv")], check=True, timeout=60)
    target = place / "venv" / "lib" / version / "site-packages"
    ours = Path(wherry_package.__file__).parent
    shutil.copytree(ours, target / "wherry", ignore=shutil.ignore_patterns("__pycache__"))
    for source, below in files_of("wherry", set()):
        if source.exists() and below.parts[0] != "wherry":
            (target / below).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target / below)
    for path in (place, *place.rglob("*")):
        if not path.is_symlink():
            path.chmod(path.stat().st_mode | 0o444 | (0o111 if path.is_dir() else 0))
    yield (str(place / "venv" / "bin" / "python"), "-m", "wherry.cli.main")
    shutil.rmtree(place)


def test_the_server_of_an_installation_has_a_user_of_its_own(
    wherry: Wherry, installed: tuple[str, ...], box: Path
) -> None:
    """And everything works: pods run, images are pushed and pulled, logs come, nothing but its own files is its own."""
    wherry.root.chmod(0o755)
    wherry.argv = installed
    wherry.up("--nodes", "1")
    uid = unprivileged_uid(wherry.status()["id"])
    expected = uid if reachable_by(uid, os.path.realpath(installed[0])) else 0
    pids = {role["name"]: role["pid"] for role in wherry.status()["roles"]}
    assert Path(f"/proc/{pids['server']}").stat().st_uid == expected
    assert Path(f"/proc/{pids['node-1']}").stat().st_uid == 0
    fields = Path(f"/proc/{pids['server']}/status").read_text()
    if expected:
        assert "CapEff:\t0000000000000000" in fields
        assert (wherry.root / "server").stat().st_uid == uid
    deploy(wherry, box)
    wherry.argv = (sys.executable, "-m", "wherry.cli.main")
    pod = wherry.kubectl("get", "pods", "-o", "jsonpath={.items[0].metadata.name}")
    assert wherry.kubectl("exec", pod, "--", "echo", "hello") == "hello\n"
    os.kill(pids["server"], signal.SIGKILL)
    wherry.until(lambda: wherry.status()["is_ready"], "ready again")
    assert all_ready(wherry)


@pytest.mark.root
def test_an_instance_that_is_down_keeps_its_ranges_until_it_is_purged(tmp_path: Path) -> None:
    from wherry.daemon.instance import Instance
    from wherry.network.claims import Claims

    def wherry(*words: str) -> None:
        argv = [sys.executable, "-m", "wherry.cli.main", *words, "--root", str(tmp_path / "w")]
        subprocess.run(argv, check=True, capture_output=True, timeout=90)

    def claims() -> list[str]:
        return [each.pods for each in Claims().all() if each.instance == Instance.at(tmp_path / "w").id]

    wherry("up", "--detach", "--nodes", "1", "--durability", "test")
    before = claims()
    assert len(before) == 1
    wherry("down")
    assert claims() == before
    wherry("up", "--detach", "--durability", "test")
    assert claims() == before
    wherry("down", "--purge")
    assert claims() == []
