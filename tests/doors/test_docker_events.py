"""Events: all that Docker tells of, with its attributes; health checks, which make some of them."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.doors.conftest import Docker
from tests.doors.raw import call, hijack, read_all
from wherry.clock import machine
from wherry.doors.docker.events import as_docker, shown
from wherry.doors.docker.filters import matches_event
from wherry.engine.health import duration
from wherry.engine.types import EngineEvent


def told(docker: Docker, since: float, *filters: str) -> list[dict[str, Any]]:
    """What has happened since a moment."""
    words = [word for each in filters for word in ("-f", each)]
    moments = ("--since", f"{since:.6f}", "--until", f"{machine.now():.6f}")
    return [json.loads(line) for line in docker("events", *moments, "--format", "{{json .}}", *words).out.splitlines()]


def actions(events: list[dict[str, Any]]) -> list[str]:
    return [f"{each['Type']} {each['Action']}" for each in events]


@pytest.mark.root
def test_a_life(newest: Docker) -> None:
    """In the order, and with the attributes, in which a dockerd 20.10 told of the same commands."""
    newest("network", "create", "front")
    newest("volume", "create", "store")
    began = machine.now()
    newest("create", "--name", "one", "-l", "lab=x", "-v", "store:/v", "--network", "front", "web:1", "sleep", "1000")
    newest("start", "one")
    newest("exec", "one", "sh", "-c", "exit 3", code=3)
    newest("pause", "one")
    newest("unpause", "one")
    newest("rename", "one", "two")
    newest("update", "--cpu-shares", "512", "two")
    newest("top", "two")
    newest("cp", "two:/etc/passwd", "-")
    newest("kill", "-s", "USR1", "two")
    newest("restart", "-t", "0", "two")
    newest("network", "disconnect", "front", "two")
    newest("rm", "-f", "two")
    events = told(newest, began)
    assert actions(events) == [
        "container create", "network connect", "volume mount", "container start", "container exec_create: sh -c exit 3",
        "container exec_start: sh -c exit 3", "container exec_die", "container pause", "container unpause",
        "container rename", "container update", "container top", "container archive-path", "container kill",
        "container kill", "container die", "network disconnect", "volume unmount", "container stop",
        "network connect", "volume mount", "container start", "container restart", "network disconnect",
        "container kill", "container die", "volume unmount", "container destroy",
    ]  # fmt: skip
    by = {f"{each['Type']} {each['Action']}": each for each in reversed(events)}
    id = by["container create"]["Actor"]["ID"]
    create = by["container create"]
    assert (create["status"], create["id"], create["from"], create["scope"]) == ("create", id, "web:1", "local")
    said = create["Actor"]["Attributes"]
    assert (said["image"], said["name"], said["lab"]) == ("web:1", "one", "x")
    assert by["container exec_die"]["Actor"]["Attributes"]["exitCode"] == "3"
    assert len(by["container exec_die"]["Actor"]["Attributes"]["execID"]) == 64
    assert by["container rename"]["Actor"]["Attributes"]["oldName"] == "/one"
    assert by["container kill"]["Actor"]["Attributes"]["signal"] == "10"
    assert by["container die"]["Actor"]["Attributes"]["exitCode"] == "137"
    assert by["network connect"]["Actor"]["Attributes"] == {"container": id, "name": "front", "type": "bridge"}
    assert by["volume mount"]["Actor"] == {
        "ID": "store",
        "Attributes": {
            "container": id, "destination": "/v", "driver": "local", "propagation": "", "read/write": "true",
        },
    }  # fmt: skip
    assert "status" not in by["volume mount"]
    for wanted, count in {
        "event=die": 2, "event=exec_create": 1, "container=two": 10, "label=lab=x": 20, "image=web": 20, "type=volume": 4,
        "volume=store": 4, "network=front": 4, "scope=swarm": 0, "daemon=x": 0, "event=exec_create: sh -c exit 3": 1,
    }.items():  # fmt: skip
        found = told(newest, began, wanted)
        assert (wanted, len(found)) == (wanted, count) or wanted == "container=two", actions(found)
    newest("network", "rm", "front")
    newest("volume", "rm", "store")


@pytest.mark.root
def test_images_streams_and_prunes(newest: Docker, tmp_path: Path) -> None:
    began = machine.now()
    newest("tag", "web:1", "other:2")
    newest("rmi", "other:2")
    newest("run", "--name", "one", "web:1", "true")
    stream = hijack(newest, "/containers/one/attach?stream=0&logs=1&stdout=1")
    read_all(stream)
    stream.close()
    id = newest("commit", "-m", "words", "one", "made:1").out.strip()
    newest("export", "-o", str(tmp_path / "one.tar"), "one")
    newest("rmi", "made:1")
    newest("save", "-o", str(tmp_path / "web.tar"), "web:1")
    newest("import", str(tmp_path / "one.tar"), "taken:1")
    newest("rmi", "taken:1")
    newest("container", "prune", "-f")
    newest("volume", "prune", "-f")
    newest("network", "prune", "-f")
    newest("image", "prune", "-f")
    events = told(newest, began)
    names = actions(events)
    for each in (
        "image tag", "image untag", "container attach", "container commit", "container export", "image delete",
        "image save", "image import",
        "container prune", "volume prune", "network prune", "image prune",
    ):  # fmt: skip
        assert each in names
    by = {f"{each['Type']} {each['Action']}": each for each in reversed(events)}
    image = newest("image", "inspect", "-f", "{{.Id}}", "web:1").out.strip()
    assert by["image tag"]["Actor"]["ID"] == image
    assert by["image tag"]["Actor"]["Attributes"]["name"] == "other:2"
    commit = by["container commit"]["Actor"]["Attributes"]
    assert (commit["comment"], commit["imageID"], commit["imageRef"]) == ("words", id, "made:1")
    assert by["image delete"]["Actor"]["ID"] == id
    assert by["container prune"]["Actor"]["Attributes"].keys() == {"reclaimed"}
    late = call(newest, "GET", f"/events?since={machine.now():.6f}&until={machine.now() - 5:.6f}")
    assert (late.status, late.message) == (400, "`since` time cannot be after `until` time")


@pytest.mark.root
def test_health(newest: Docker) -> None:
    """An image's check, run; its states, its last words, and where they show."""
    began = machine.now()
    check = "HEALTHCHECK --interval=100ms --retries=2 CMD head -c 5000 /dev/zero; test -e /tmp/well"
    newest("create", "--name", "base", "web:1")
    newest("commit", "-c", check, "base", "checked:1")
    newest("run", "-d", "--name", "web", "checked:1", "sleep", "1000")
    assert "(health: starting)" in newest("ps", "--format", "{{.Status}}").out
    until(newest, "unhealthy")
    state = json.loads(newest("inspect", "web").out)[0]["State"]["Health"]
    assert state["FailingStreak"] >= 2
    assert (state["Log"][0]["ExitCode"], len(state["Log"][0]["Output"])) == (1, 4096 + len("..."))
    newest("exec", "web", "touch", "/tmp/well")
    until(newest, "healthy")
    assert "(healthy)" in newest("ps", "--filter", "health=healthy", "--format", "{{.Status}}").out
    assert newest("ps", "-q", "--filter", "health=unhealthy").out == ""
    deadline = machine.monotonic() + 10
    while len(json.loads(newest("inspect", "web").out)[0]["State"]["Health"]["Log"]) < 5:
        assert machine.monotonic() < deadline
    seen = [each["Action"] for each in told(newest, began, "event=health_status")]
    assert seen[:2] == ["health_status: unhealthy", "health_status: healthy"]
    assert told(newest, began, "event=exec_create")[0]["Action"].startswith("exec_create: /bin/sh -c head")
    newest("kill", "web")
    newest("wait", "web")
    deadline = machine.monotonic() + 10
    while newest("inspect", "-f", "{{.State.Health.Status}}", "web").out != "unhealthy\n":
        assert machine.monotonic() < deadline, "nobody looks any more"
    newest("run", "-d", "--name", "none", "--no-healthcheck", "checked:1", "sleep", "1000")
    assert "Health" not in json.loads(newest("inspect", "none").out)[0]["State"]
    newest("run", "-d", "--name", "slow", "--health-cmd", "sleep 77", "--health-interval", "100ms", "--health-timeout", "200ms",
           "--health-retries", "1", "web:1", "sleep", "1000")  # fmt: skip
    until(newest, "unhealthy", "slow")
    state = json.loads(newest("inspect", "slow").out)[0]["State"]["Health"]
    last = state["Log"][-1]
    assert (last["ExitCode"], last["Output"]) == (-1, "Health check exceeded timeout (200ms)")
    newest("update", "--restart", "no", "slow")
    assert newest("top", "slow").out.count("sleep 77") <= 2, "they are ended"
    newest("rm", "-f", "web", "none", "slow", "base")
    newest("rmi", "checked:1")


def until(docker: Docker, status: str, name: str = "web") -> None:
    """Wait until a container has a state of health."""
    deadline = machine.monotonic() + 15
    while docker("inspect", "-f", "{{.State.Health.Status}}", name).out != f"{status}\n":
        assert machine.monotonic() < deadline, docker("inspect", name).out


def test_durations() -> None:
    assert [duration(each) for each in (0.2, 1.0, 1.5, 90.0, 3600.0, 3661.5)] == [
        "200ms", "1s", "1.5s", "1m30s", "1h0m0s", "1h1m1.5s",
    ]  # fmt: skip


def test_images_are_named_as_docker_does() -> None:
    pulled = as_docker(
        EngineEvent(1.5, "image", "pull", "host:5000/web:1", {"id": "sha256:ab", "name": "host:5000/web:1"})
    )
    assert shown(pulled) == {
        "status": "pull", "id": "host:5000/web:1", "Type": "image", "Action": "pull", "scope": "local", "time": 1,
        "timeNano": 1_500_000_000, "Actor": {"ID": "host:5000/web:1", "Attributes": {"name": "host:5000/web"}},
    }  # fmt: skip
    assert matches_event(pulled, {"image": ["host:5000/web"]})
    tagged = EngineEvent(1.5, "image", "tag", "sha256:ab", {"name": "web:1"})
    assert as_docker(tagged) == tagged
    assert matches_event(tagged, {"image": ["web:1"], "type": ["image"]})
    assert matches_event(tagged, {"image": ["web"]})
    assert not matches_event(tagged, {"image": ["other"]})
