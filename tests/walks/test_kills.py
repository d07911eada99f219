"""kill -9 of each role's process under load at random moments: nothing acknowledged is lost, nothing that runs stops."""

import json
import os
import random
import re
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from tests.walks.conftest import Real

from wherry.clock import machine
from wherry.daemon.instance import Instance
from wherry.daemon.status import status
from wherry.errors import WherryError
from wherry.testing import Cluster
from wherry.wire.blocking import request

pytestmark = pytest.mark.root
KILLS = 5
WRITERS = 3


class Load:
    """Writers that keep books: what was acknowledged, and what was asked for last (which may or may not be there)."""

    def __init__(self, cluster: Cluster, namespace: str) -> None:
        self._socket = str(Instance.at(cluster.root).api_socket)
        self._base = f"/api/v1/namespaces/{namespace}/configmaps"
        self._stop = threading.Event()
        self.acknowledged: dict[str, int] = {}
        self.asked: dict[str, int] = {}
        self.wrong: list[str] = []
        self.count = 0

    def _send(self, method: str, path: str, body: dict[str, Any]) -> int:
        answer = request(
            self._socket, method, path, headers={"Content-Type": "application/json"}, body=json.dumps(body).encode(),
            timeout_s=10,
        )  # fmt: skip
        try:
            text = answer.read()
        finally:
            answer.close()
        if answer.status not in (200, 201, 404, 409, 429, 503):
            self.wrong.append(f"{method} {path}: {answer.status} {text[:300]!r}")
        return answer.status

    def _write(self, writer: int) -> None:
        number = 0
        while not self._stop.is_set():
            number += 1
            name = f"w{writer}-{number % 20}"
            body = {"metadata": {"name": name}, "data": {"number": str(number)}}
            self.asked[name] = number
            try:
                code = self._send("PUT", f"{self._base}/{name}", body)
                if code == 404:
                    code = self._send("POST", self._base, body)
                if code in (200, 201):
                    self.acknowledged[name] = number
                    self.count += 1
                else:
                    machine.pause(0.02)
            except (WherryError, OSError):  # the server is away: what was asked may have been done or not
                machine.pause(0.02)

    @contextmanager
    def running(self) -> Iterator["Load"]:
        threads = [threading.Thread(target=self._write, args=(each,)) for each in range(WRITERS)]
        for thread in threads:
            thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            for thread in threads:
                thread.join(30)

    def check(self, cluster: Cluster) -> None:
        """Each object is what was acknowledged, or something that was asked for later."""
        items = cluster.request("GET", self._base)["items"]
        found = {
            each["metadata"]["name"]: int(each["data"]["number"]) for each in items if "number" in each.get("data", {})
        }
        for name, number in self.acknowledged.items():
            assert name in found, f"{name}: acknowledged at {number}, and lost"
            assert number <= found[name] <= self.asked[name], (
                f"{name}: {number} was acknowledged, {found[name]} is there"
            )
        assert self.wrong == []


def until(cluster: Cluster, holds: Callable[[], Any], what: str, timeout_s: float = 30) -> Any:
    """Wait for a state; that the API is away meanwhile is no error."""

    def quietly() -> Any:
        try:
            return holds()
        except (WherryError, OSError, AssertionError):
            return None

    return cluster.until(quietly, what, timeout_s)


def containers(cluster: Cluster, namespace: str) -> dict[str, tuple[str, int]]:
    """Each container of the namespace's pods: id and number of restarts, by pod."""
    result: dict[str, tuple[str, int]] = {}
    for pod in cluster.request("GET", f"/api/v1/namespaces/{namespace}/pods")["items"]:
        for each in pod["status"].get("containerStatuses", []):
            result[pod["metadata"]["name"]] = (each["containerID"], each["restartCount"])
    return result


def processes(space: str) -> list[int]:
    """The pids of the containers' first processes, by the mark in their command line."""
    found: list[int] = []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError):
            words = Path(f"/proc/{entry}/cmdline").read_bytes()
            numbers = re.search(r"NSpid:.*", Path(f"/proc/{entry}/status").read_text())
            if f"MARK={space}".encode() in words and numbers and numbers[0].split()[-1] == "1":
                found.append(int(entry))
    return sorted(found)


COUNTS = "MARK={space}; n=0; while :; do n=$((n+1)); echo $n > /tmp/count; usleep 100000; done"


def deploy(real: Real, space: str) -> None:
    """Three containers that count."""
    container = {"name": "count", "image": real.box, "command": ["sh", "-c", COUNTS.format(space=space)]}
    labels = {"app": "count"}
    spec = {"terminationGracePeriodSeconds": 0, "containers": [container]}
    template = {"metadata": {"labels": labels}, "spec": spec}
    deployment = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "count"},
        "spec": {"replicas": 3, "selector": {"matchLabels": labels}, "template": template},
    }
    real.cluster.apply(deployment, space)
    real.cluster.wait("deployment/count", "Available", space)


def kill_again_and_again(real: Real, space: str, role: str, kills: int) -> None:
    cluster = real.cluster
    seed = int(os.environ.get("WHERRY_SOAK_SEED", "0")) or random.randrange(1, 1 << 30)
    print(f"WHERRY_SOAK_SEED={seed}")
    chance = random.Random(seed)
    instance = Instance.at(cluster.root)
    deploy(real, space)
    before, pids = containers(cluster, space), processes(space)
    assert len(before) == 3
    assert len(pids) == 3

    def role_now() -> dict[str, Any]:
        return next(each for each in status(instance).roles if each["name"] == role)

    load = Load(cluster, space)
    with load.running():
        for _ in range(kills):
            old, count = role_now(), load.count
            machine.pause(chance.uniform(0.05, 0.6))
            os.kill(old["pid"], signal.SIGKILL)
            until(
                cluster, lambda old=old: role_now()["starts"] > old["starts"] and role_now()["pid"], "it starts again"
            )
            until(cluster, lambda: status(instance).is_ready, "the instance is ready again")
            until(cluster, lambda count=count: load.count > count + 5, "writes are acknowledged again")
    load.check(cluster)

    def all_ready() -> bool:
        found = cluster.request("GET", f"/apis/apps/v1/namespaces/{space}/deployments/count")["status"]
        return found.get("readyReplicas") == 3 and containers(cluster, space) == before

    until(cluster, all_ready, f"the same three containers are ready: {before}")
    assert processes(space) == pids
    assert load.count > 20 * kills
    cluster.kubectl("scale", "deployment/count", "-n", space, "--replicas=4")  # and everything still works
    cluster.kubectl("rollout", "status", "deployment/count", "-n", space, "--timeout=30s")
    for pod in before:
        words = ("exec", "-n", space, pod, "--", "cat", "/tmp/count")
        assert int(until(cluster, lambda words=words: cluster.kubectl(*words), "its agent answers again")) > 5


@pytest.mark.parametrize("role", ["server", "node-1", "node-2"])
def test_killed_under_load(real: Real, space: str, role: str) -> None:
    kill_again_and_again(real, space, role, KILLS)


@pytest.mark.soak
@pytest.mark.parametrize("role", ["server", "node-1", "node-2"])
def test_killed_under_load_for_long(real: Real, space: str, role: str) -> None:
    kill_again_and_again(real, space, role, int(os.environ.get("WHERRY_SOAK_COUNT", "50")))
