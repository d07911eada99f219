"""Projects of docker-compose 1.29, as Debian packages it: up in order, changed, looked at, taken down without a trace."""

import json
import subprocess
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.walks.clients import Done, Engine

from wherry.clock import machine

pytestmark = pytest.mark.root
Json = dict[str, Any]
SERVE = "mkdir -p /www; echo $SAYS > /www/index.html; sleep 0.3; exec httpd -f -p 80 -h /www"
PROJECT: Json = {
    "version": "2.4",
    "services": {
        "store": {
            "image": "busybox",
            "command": ["sh", "-c", SERVE.replace("$", "$$")],
            "environment": {"SAYS": "${GREETING:?greet}"},
            "healthcheck": {
                "test": ["CMD", "wget", "-qO-", "http://127.0.0.1/"], "interval": "0.2s", "timeout": "2s", "retries": 30,
            },
            "networks": {"back": {"aliases": ["warehouse"]}},
            "volumes": ["data:/data", "/scratch"],
            "stop_grace_period": "0s",
        },
        "web": {
            "build": {"context": "web", "args": {"COLOUR": "blue"}},
            "command": ["sh", "-c", "wget -qO /first http://warehouse/ && " + SERVE.replace("$", "$$")],
            "environment": ["SAYS=front"],
            "env_file": ["web/web.env"],
            "depends_on": {"store": {"condition": "service_healthy"}},
            "networks": ["front", "back"],
            "ports": ["127.0.0.1::80"],
            "volumes": ["./web:/source:ro"],
            "labels": {"team": "boats"},
            "init": True,
            "stop_grace_period": "0s",
        },
        "tool": {"image": "busybox", "command": "echo the tool ran", "profiles": ["tools"], "network_mode": "none"},
    },
    "networks": {"front": {}, "back": {"internal": True}},
    "volumes": {"data": {"labels": {"keep": "no"}}},
}  # fmt: skip


@dataclass(frozen=True)
class Compose:
    """docker-compose in a directory that holds a project."""

    engine: Engine
    place: Path

    def __call__(self, *words: str, code: int | None = 0) -> Done:
        return self.engine.run("docker-compose", "--ansi", "never", *words, code=code, cwd=self.place)

    @property
    def label(self) -> str:
        return f"com.docker.compose.project={self.place.name}"

    def write(self, project: Json) -> None:
        (self.place / "docker-compose.yml").write_text(json.dumps(project))

    def states(self) -> dict[str, str]:
        """The state of each container, by its name without the project's."""
        lines = self.engine.docker(
            "ps", "-a", "--filter", f"label={self.label}", "--format", "{{.Names}} {{.State}}"
        ).splitlines()  # fmt: skip
        return {
            name.removeprefix(self.place.name + "_"): state
            for name, _, state in (each.partition(" ") for each in lines)
        }

    def inspect(self, name: str) -> Json:
        return json.loads(self.engine.docker("inspect", f"{self.place.name}_{name}"))[0]


@pytest.fixture
def compose(engine: Engine, tmp_path: Path) -> Iterator[Compose]:
    """A project of its own name; whatever a test has made of it is gone afterwards."""
    place = tmp_path / f"walk{tmp_path.parent.name.rpartition('-')[2]}"
    (place / "web").mkdir(parents=True)
    (place / ".env").write_text("GREETING=moin\n")
    (place / "web" / "web.env").write_text("# a comment\nFROM_FILE=a b\n")
    (place / "web" / "Dockerfile").write_text("FROM busybox\nARG COLOUR\nRUN echo $COLOUR > /colour\n")
    made = Compose(engine, place)
    made.write(PROJECT)
    yield made
    made("down", "-v", "--rmi", "local", "--remove-orphans", "-t", "0")
    assert engine.left(made.label) == []


def answer(address: str) -> str:
    with urllib.request.urlopen(f"http://{address}/", timeout=5) as got:
        return got.read().decode().strip()


def test_a_project_comes_up_in_order_and_talks(compose: Compose) -> None:
    shown = compose("config").out
    assert "SAYS: moin" in shown
    assert "condition: service_healthy" in shown
    first = compose("up", "-d")
    assert "Successfully tagged" in first.out + first.err
    assert compose.states() == {"store_1": "running", "web_1": "running"}
    assert "Up (healthy)" in compose("ps").out
    assert compose.inspect("store_1")["State"]["Health"]["Status"] == "healthy"
    began = [compose.inspect(name)["State"]["StartedAt"] for name in ("store_1", "web_1")]
    assert began == sorted(began)  # the one that waits for health began later
    inside = "cat /first /colour; echo $SAYS $FROM_FILE; ls /source; wget -qO- http://store"
    assert compose("exec", "-T", "web", "sh", "-c", inside).out.splitlines() == [
        "moin", "blue", "front a b", "Dockerfile", "web.env", "moin",
    ]  # fmt: skip
    assert compose("exec", "-T", "web", "sh", "-c", "exit 3", code=3).code == 3
    assert answer(compose("port", "web", "80").out.strip()) == "front"
    alone = compose("exec", "-T", "store", "ip", "route").out  # its one network is internal: no way out
    assert "default" not in alone
    assert "httpd" in compose("top", "web").out
    assert f"{compose.place.name}_web" in compose("images").out
    compose("up", "-d", "--scale", "web=3")
    ports = {compose("port", f"--index={index}", "web", "80").out.strip() for index in (1, 2, 3)}
    assert len(ports) == 3
    assert {answer(each) for each in ports} == {"front"}
    found = compose("exec", "-T", "store", "nslookup", "web").out
    assert sum(line.startswith("Address") for line in found.splitlines()) >= 3
    compose("up", "-d", "--scale", "web=1")
    assert sorted(compose.states()) == ["store_1", "web_1"]


def test_a_project_is_changed_stopped_and_started(compose: Compose) -> None:
    compose("up", "-d", "store")
    compose("exec", "-T", "store", "sh", "-c", "echo kept > /data/file; echo moved > /scratch/file")
    before = compose.inspect("store_1")
    (compose.place / ".env").write_text("GREETING=ahoy\n")
    compose("up", "-d", "store")  # made anew, with the volumes of the one before
    after = compose.inspect("store_1")
    assert after["Id"] != before["Id"]
    assert "SAYS=ahoy" in after["Config"]["Env"]
    assert compose("exec", "-T", "store", "cat", "/data/file", "/scratch/file").out == "kept\nmoved\n"
    compose("up", "-d", "store")
    assert compose.inspect("store_1")["Id"] == after["Id"]  # nothing has changed: it is left alone
    compose("restart", "-t", "0", "store")
    assert compose.inspect("store_1")["State"]["StartedAt"] > after["State"]["StartedAt"]
    compose("pause", "store")
    assert compose.states() == {"store_1": "paused"}
    compose("unpause", "store")
    compose("kill", "-s", "KILL", "store")
    assert compose.inspect("store_1")["State"]["ExitCode"] == 137
    compose("start", "store")
    assert compose.states() == {"store_1": "running"}
    compose("stop", "-t", "0")
    assert compose.states() == {"store_1": "exited"}
    assert compose("run", "--rm", "tool").out == "the tool ran\n"
    compose("--profile", "tools", "up", "-d", "tool")
    assert "the tool ran" in compose("logs", "tool").out
    smaller = {**PROJECT, "services": {"store": PROJECT["services"]["store"]}}
    compose.write(smaller)
    compose("up", "-d", "--remove-orphans")
    assert compose.states() == {"store_1": "running"}
    compose("rm", "-s", "-f", "-v", "store")
    assert compose.states() == {}
    assert [each.split()[0] for each in compose.engine.left(compose.label)] == ["network", "network", "volume"]
    compose.write(PROJECT)  # `down` leaves a network alone that no service names any more


def test_a_dependency_that_stays_unhealthy_is_told(compose: Compose) -> None:
    store = {**PROJECT["services"]["store"], "command": "sleep 600"}
    store["healthcheck"] = {"test": "exit 1", "interval": "0.1s", "retries": 2}
    compose.write({**PROJECT, "services": {**PROJECT["services"], "store": store}})
    failed = compose("up", "-d", code=1)
    assert "is unhealthy" in failed.err
    assert compose.states() == {"store_1": "running"}


def test_up_in_front_follows_every_output_and_ends_with_the_one_asked_for(compose: Compose) -> None:
    services: Json = {
        "steady": {
            "image": "busybox", "command": "sh -c 'while :; do echo steady; sleep 0.2; done'", "stop_grace_period": "0s",
        },
        "brief": {
            "image": "busybox", "command": "sh -c 'echo begins; sleep 0.5; echo ends; exit 5'", "depends_on": ["steady"],
        },
    }  # fmt: skip
    compose.write({"version": "3.8", "services": services})
    done = compose("up", "--abort-on-container-exit", "--exit-code-from", "brief", code=5)
    for wanted in ("steady_1  | steady", "brief_1   | begins", "brief_1   | ends", "exited with code 5"):
        assert wanted in done.out, done.out
    assert set(compose.states().values()) == {"exited"}
    follower = subprocess.Popen(
        ["docker-compose", "--ansi", "never", "events", "--json"], cwd=compose.place, env=compose.engine.environment,
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    try:
        assert follower.stdout is not None
        seen: list[str] = []
        ends = machine.monotonic() + 15
        while not seen and machine.monotonic() < ends:  # the first start may come before the client listens
            compose("restart", "-t", "0", "brief")
            compose("kill", "steady", code=None)
            seen = [json.loads(follower.stdout.readline())["action"] for _ in range(2)]
        assert set(seen) <= {"start", "die", "restart", "stop", "kill"}
    finally:
        follower.kill()
        follower.wait()
        if follower.stdout:
            follower.stdout.close()
