"""push and pull by the stock client, from the registry of the same cluster: what is told, and what is moved."""

import json

import pytest

from tests.doors.conftest import Docker
from wherry.testing import Cluster

pytestmark = pytest.mark.root


def test_push_and_pull_are_told_layer_by_layer(newest: Docker, loaded: Cluster) -> None:
    name = f"{loaded.environment['WHERRY_REGISTRY']}/told/web:1"
    newest("tag", "web:1", name)
    assert "digest: sha256:" in newest("push", name).out
    newest("rmi", name)
    text = newest("pull", name).out
    assert "Already exists" in text
    assert f"Status: Downloaded newer image for {name}" in text
    assert f"Status: Image is up to date for {name}" in newest("pull", name).out
    assert newest("run", "--rm", name, "echo", "hi").out == "hi\n"
    assert "linux/s390x" in newest("run", "--rm", "--platform", "linux/s390x", name, code=125).err
    newest("rmi", name)


def test_the_lines_of_a_pull() -> None:
    from wherry.content.protocol import Digest
    from wherry.content.transfer import Step
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
        "Pulling fs layer", "Downloading", "Downloading", "Download complete", "Pull complete",
    ]  # fmt: skip
    assert {line["id"] for line in said} == {"a" * 12}
    assert said[2]["progressDetail"] == {"current": 100, "total": 100}
    json.dumps(said)
