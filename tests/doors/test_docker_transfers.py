"""push, pull, load and save by the stock clients, with the registry of the same cluster: what is told, and what is moved."""

import gzip
import json
import os
import signal
from pathlib import Path

import pytest

from tests.doors.conftest import Docker
from wherry.daemon.instance import Instance
from wherry.daemon.status import status
from wherry.testing import Cluster
from wherry.wire.blocking import request

pytestmark = pytest.mark.root


def test_push_and_pull_are_told_layer_by_layer(newest: Docker, loaded: Cluster) -> None:
    repository = f"{loaded.environment['WHERRY_REGISTRY']}/told/web"
    name, other = f"{repository}:1", f"{repository}:2"
    newest("tag", "web:1", name)
    pushed = newest("push", name).out
    assert "Layer already exists" in pushed
    assert "digest: sha256:" in pushed
    assert " size: " in pushed
    newest("rmi", name)
    text = newest("pull", name).out
    assert text.startswith("1: Pulling from told/web\n")
    assert "Already exists" in text
    assert f"Status: Downloaded newer image for {name}" in text
    assert f"Status: Image is up to date for {name}" in newest("pull", name).out
    assert newest("run", "--rm", name, "echo", "hi").out == "hi\n"
    wrong = "does not match the specified platform: wanted linux/s390x"
    assert wrong in newest("pull", "--platform", "linux/s390x", name, code=1).err
    assert "linux/s390x" in newest("run", "--rm", "--platform", "linux/s390x", name, code=125).err
    assert wrong in newest("image", "inspect", "--platform", "linux/s390x", name, code=1).err
    assert "manifest unknown" in newest("pull", f"{repository}:none", code=1).err
    assert "does not exist locally" in newest("push", f"{repository}:none", code=1).err
    newest("tag", name, other)
    assert newest("push", "--all-tags", repository).out.count("digest: sha256:") == 2
    newest("rmi", name, other)
    newest("pull", "-q", "--all-tags", repository)
    assert sorted(newest("images", "--format", "{{.Tag}}", repository).out.split()) == ["1", "2"]
    newest("rmi", name, other)


def test_nothing_moves_between_engine_and_registry_of_one_machine(newest: Docker, loaded: Cluster) -> None:
    """Whatever the name, and after a restart of the registry: no byte of a blob on the wire, no block on the disk."""
    instance = Instance.at(loaded.root)
    registry = loaded.environment["WHERRY_REGISTRY"]
    content = Path(loaded.root, "content")

    def blobs() -> dict[str, tuple[int, int]]:
        """Blocks of each blob; documents of some hundred bytes may be written again."""
        found = {path.name: path.stat() for path in (content / "blobs/sha256").iterdir()}
        return {name: (seen.st_ino if seen.st_size > 100_000 else 0, seen.st_blocks) for name, seen in found.items()}

    def moved() -> tuple[float, float]:
        answer = request(str(instance.registry_socket), "GET", "/metrics")
        rows = dict(line.rsplit(" ", 1) for line in answer.read().decode().splitlines() if line[:1] != "#")
        answer.close()
        counts = ("wherry_registry_received_bytes_total", "wherry_registry_sent_bytes_total")
        return float(rows[counts[0]]), float(rows[counts[1]])

    def walk(name: str) -> None:
        newest("tag", "web:1", name)
        newest("push", name) if registry in name else None
        newest("rmi", name)
        newest("pull", "-q", name)
        assert newest("run", "--rm", name, "echo", "ran").out == "ran\n"

    layer = max(seen[1] for seen in blobs().values()) * 512
    assert layer > 500_000
    before, began = blobs(), moved()
    walk(f"{registry}/moves/nothing:1")
    walk("moves/nothing:2")
    walk("far.example:5000/moves/nothing:3")
    server = next(each for each in status(instance).roles if each["name"] == "server")
    os.kill(server["pid"], signal.SIGKILL)
    loaded.until(lambda: status(instance).is_ready and instance.registry_socket.exists(), "ready again")
    walk(f"{registry}/moves/nothing:1")
    walk("moves/more:1")
    assert blobs() == before
    assert sum(moved()) - sum(began) < 20_000  # manifests alone
    assert list((content / "uploads").iterdir()) == []
    for name in newest("images", "--format", "{{.Repository}}:{{.Tag}}").out.split():
        if "/moves/" in name or name.startswith("moves/"):
            newest("rmi", name)


def test_images_are_listed_filtered_and_described(newest: Docker, loaded: Cluster) -> None:
    root = json.loads(newest("image", "inspect", "web:1").out)[0]
    newest("tag", "web:1", "team/listed:1")
    newest("tag", "web:1", "team/listed:2")
    shown = newest("images", "--digests", "--format", "{{.Repository}} {{.Tag}} {{.Digest}}", "team/listed").out
    digest = root["RepoDigests"][0].partition("@")[2]
    assert sorted(shown.splitlines()) == [f"team/listed 1 {digest}", f"team/listed 2 {digest}"]

    def names(*words: str) -> list[str]:
        return sorted(newest("images", "--format", "{{.Repository}}:{{.Tag}}", *words).out.split())

    assert names("-f", "reference=team/*:2") == ["team/listed:2"]
    assert names("-f", "reference=*:2") == []  # a star stays between slashes
    assert names("-f", "label=team=boats", "-f", "reference=web") == ["web:1"]
    assert names("-f", "label=team=cars") == []
    for when in ("before", "since"):
        assert not {"web:1", "team/listed:1"} & set(names("-f", f"{when}=web:1"))
    assert names("-f", "until=2020-01-01T00:00:00Z") == []
    assert "team/listed:1" in names("-f", "until=1s", "-f", "dangling=false")
    assert "No such image" in newest("images", "-f", "before=none:1", code=1).err
    assert "syntax error in pattern" in newest("images", "-f", "reference=[x", code=1).err
    assert "linux/" in newest("image", "ls", "--tree", "web:1").out
    steps = [
        json.loads(line) for line in newest("history", "--no-trunc", "--format", "{{json .}}", "web:1").out.splitlines()
    ]
    assert steps[0]["CreatedBy"] == "tests"
    assert steps[0]["Size"] not in ("0B", "")
    newest("rmi", "team/listed:1", "team/listed:2")

    def ask(version: str, path: str) -> dict[str, object]:
        answer = request(loaded.docker_host.removeprefix("unix://"), "GET", f"/v{version}{path}")
        found = json.loads(answer.read())
        answer.close()
        return found[0] if isinstance(found, list) else found

    old, new = ask("1.41", "/images/json?filters=%7B%7D"), ask("1.47", "/images/json?manifests=1")
    assert ("VirtualSize" in old, "VirtualSize" in new) == (True, False)
    assert ("Manifests" in old, "Manifests" in new) == (False, True)
    assert new["Containers"] == -1
    one = ask("1.41", "/images/web:1/json")
    assert {"VirtualSize", "ContainerConfig", "Container"} <= set(one)
    assert "VirtualSize" not in ask("1.47", "/images/web:1/json")


def test_archives_go_out_and_in(docker: Docker, archive: Path, tmp_path: Path) -> None:
    docker("tag", "web:1", "arch/ive:1")
    docker("tag", "web:1", "arch/ive:2")
    out = tmp_path / "out.tar"
    docker("save", "-o", str(out), "arch/ive")  # a repository is all its tags
    id = docker("inspect", "-f", "{{.Id}}", "web:1").out
    docker("rmi", "arch/ive:1", "arch/ive:2")
    squeezed = tmp_path / "out.tar.gz"
    squeezed.write_bytes(gzip.compress(out.read_bytes(), 1))
    for path in (out, squeezed):
        assert sorted(docker("load", "-i", str(path)).out.splitlines()) == [
            "Loaded image: arch/ive:1", "Loaded image: arch/ive:2",
        ]  # fmt: skip
        assert docker("inspect", "-f", "{{.Id}}", "arch/ive:2").out == id
    made = docker("import", "-m", "by hand", "-c", 'CMD ["/bin/x"]', str(archive), "arch/ive:1").out.strip()
    text = docker("load", "-i", str(out)).out
    assert f"The image arch/ive:1 already exists, renaming the old one with ID {made} to empty string" in text
    assert docker("images", "-q", "--no-trunc", "-f", "dangling=true").out.strip() == made
    assert made in docker("image", "prune", "-f").out
    docker("rmi", "arch/ive:1", "arch/ive:2")
    assert "No such image" in docker("save", "-o", str(tmp_path / "none"), "none:1", code=1).err
    (tmp_path / "junk").write_bytes(b"junk" * 1000)
    assert docker("load", "-i", str(tmp_path / "junk"), code=1).err
    many = [line for line in docker("images", "--format", "{{.Repository}}:{{.Tag}}").out.split() if "arch" in line]
    assert many == []


def test_the_lines_of_a_pull() -> None:
    from wherry.content.protocol import Digest
    from wherry.content.steps import Step
    from wherry.doors.docker.progress import Progress

    said: list[dict[str, object]] = []
    tell = Progress(said.append)
    digest = Digest("sha256:" + "a" * 64)
    for action, current in (
        ("download", 10),
        ("download", 20),
        ("download", 100),
        ("done", 100),
        ("extract", 0),
        ("unpacked", 100),
    ):
        tell(Step(digest, action, current, 100))
    tell(Step(Digest("sha256:" + "b" * 64), "done", 5, 5, layer=False))
    assert [line["status"] for line in said] == [
        "Pulling fs layer", "Downloading", "Downloading", "Download complete", "Extracting", "Pull complete",
    ]  # fmt: skip
    assert {line["id"] for line in said} == {"a" * 12}
    assert said[2]["progressDetail"] == {"current": 100, "total": 100}
    json.dumps(said)
