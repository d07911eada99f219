"""How long people wait: `wherry up --nodes 2` until it returns, and a Deployment of one until its pod is ready.

Run as root: `python benchmarks/start.py [ROUNDS]` (default 7). Everything takes turns, round by round, so that other load
hits all alike; the first round warms caches and is not counted. Floors of the same run: Python's own start, Python with
asyncio and ssl (every role needs them), and a bare `crun run` of the image's files with /bin/true.

Phases of `up` come from the line that each process logs when it is ready; phases of a pod from a watch of pods and
Docker's events of the node, both read by this process, so they include the way to it. Its root is /var/tmp/bench-start.
"""

import asyncio
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from engine_start import BUSYBOX, bare_runtime

from wherry.clock import machine
from wherry.daemon.instance import Instance
from wherry.errors import WherryError
from wherry.host import cgroups
from wherry.wire.blocking import request

BIN = Path(sys.executable).parent
BASE = Path("/var/tmp/bench-start")
ROOT = BASE / "instance"
IMAGE = "bench:1"
READY = re.compile(r"ready after ([0-9.]+) s \((.*)\)")
UP_AIM_S, POD_AIM_S = 1.0, 0.150

Times = dict[str, list[float]]


def run(*argv: str | Path, stdin: str | None = None) -> float:
    """Run a program; how long it took. Raises CalledProcessError."""
    environment = {**os.environ, "WHERRY_ROOT": str(ROOT), "KUBECONFIG": str(Instance.at(ROOT).kubeconfig)}
    begun = machine.monotonic()
    done = subprocess.run(
        [str(word) for word in argv], env=environment, input=stdin, capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip
    took_s = machine.monotonic() - begun
    if done.returncode:
        raise SystemExit(f"start: {' '.join(map(str, argv))}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    return took_s


def deployment(name: str) -> dict[str, Any]:
    """A Deployment of one container that sleeps, on the node that has the image."""
    labels = {"app": name}
    container = {"name": "main", "image": IMAGE, "command": ["/bin/sleep", "3600"]}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels},
                "spec": {
                    "containers": [container],
                    "nodeSelector": {"kubernetes.io/hostname": "node-1"},
                    "terminationGracePeriodSeconds": 0,
                },
            },
        },
    }


class Seen:
    """When what happened to the one pod that comes up now, from two streams."""

    def __init__(self, instance: Instance) -> None:
        self.times: dict[str, float] = {}
        self.is_ready, self.is_gone = threading.Event(), threading.Event()
        self._answers = [
            request(str(instance.api_socket), "GET", "/api/v1/namespaces/default/pods?watch=true", timeout_s=60),
            request(str(instance.docker_socket("node-1")), "GET", "/v1.44/events", timeout_s=60),
        ]
        self._threads = [
            threading.Thread(target=self._read, args=(answer, take), daemon=True)
            for answer, take in zip(self._answers, (self._pod, self._docker), strict=True)
        ]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """End the streams; their threads end with them."""
        for answer in self._answers:
            answer.hijack()[0].shutdown(2)
        for thread in self._threads:
            thread.join(5.0)
        for answer in self._answers:
            answer.close()

    def _read(self, answer: Any, take: Callable[[dict[str, Any]], None]) -> None:
        rest = b""
        try:
            for chunk in answer.chunks():
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    if line.strip():
                        take(json.loads(line))
        except (OSError, ValueError, WherryError):
            return

    def _mark(self, what: str) -> None:
        self.times.setdefault(what, machine.monotonic())

    def _pod(self, event: dict[str, Any]) -> None:
        pod = event["object"]
        if event["type"] == "DELETED":
            self.is_gone.set()
            return
        self._mark("pod created")
        if pod["spec"].get("nodeName"):
            self._mark("scheduled")
        status = pod.get("status") or {}
        if any("running" in (each.get("state") or {}) for each in status.get("containerStatuses") or ()):
            self._mark("seen running")
        if any(each["type"] == "Ready" and each["status"] == "True" for each in status.get("conditions") or ()):
            self._mark("ready")
            self.is_ready.set()

    def _docker(self, event: dict[str, Any]) -> None:
        kind, action = event.get("Type"), event.get("Action", "")
        if kind == "container" and action in ("create", "start"):
            self._mark("container created" if action == "create" else "container started")


PHASES = ("pod created", "scheduled", "container created", "container started", "seen running", "ready")


def pod(times: Times, title: str, instance: Instance, name: str, make: Callable[[str], None]) -> None:
    """Time one Deployment, then take it away and wait until its pod is gone."""
    seen = Seen(instance)
    try:
        begun = machine.monotonic()
        make(name)
        if not seen.is_ready.wait(30):
            raise SystemExit(f"start: the pod of {name} was not ready after 30 s; seen: {list(seen.times)}")
        times.setdefault(title, []).append(seen.times["ready"] - begun)
        last = begun
        for phase in PHASES:
            if phase in seen.times:
                times.setdefault(f"{title}: {phase}", []).append(seen.times[phase] - last)
                last = max(last, seen.times[phase])
        ask(instance, "DELETE", f"/apis/apps/v1/namespaces/default/deployments/{name}")
        if not seen.is_gone.wait(30):
            raise SystemExit(f"start: the pod of {name} was not gone after 30 s")
    finally:
        seen.close()


def ask(instance: Instance, method: str, target: str, body: bytes = b"") -> None:
    """One request to the API's socket."""
    headers = {"Content-Type": "application/json"}
    answer = request(str(instance.api_socket), method, target, headers=headers, body=body, timeout_s=30)
    text = answer.read()
    answer.close()
    if answer.status >= 300:
        raise SystemExit(f"start: {method} {target}: {answer.status} {text[:300]!r}")


def phases_of(root: Path, times: Times) -> None:
    """What each process logged of its start."""
    for log in sorted((root / "log").glob("*.log")):
        found = [READY.search(line) for line in log.read_text().splitlines()]
        last = next((match for match in reversed(found) if match), None)
        if last is not None:
            role = "a node" if log.stem.startswith("node-") else log.stem
            times.setdefault(f"{role}: ready, from its fork", []).append(float(last[1]))
            for part in last[2].split(", "):
                phase, _, seconds = part.rpartition(" ")
                times.setdefault(f"{role}:   {phase}", []).append(float(seconds))


@contextmanager
def prepared() -> Iterator[Instance]:
    """The files of the image, and an instance that is purged at the end whatever happens."""
    shutil.rmtree(BASE, ignore_errors=True)
    source = BASE / "source"
    for folder in ("bin", "etc", "proc", "sys", "dev"):
        (source / folder).mkdir(parents=True)
    shutil.copy(BUSYBOX, source / "bin/busybox")
    for applet in ("true", "sleep"):
        (source / "bin" / applet).symlink_to("busybox")
    context = BASE / "context"
    shutil.copytree(source / "bin", context / "bin", symlinks=True)
    (context / "Dockerfile").write_text("FROM scratch\nCOPY bin /bin\n")
    try:
        yield Instance.at(ROOT)
    finally:
        if ROOT.exists():
            run(BIN / "wherry", "down", "--purge")


def round_of(number: int, instance: Instance, times: Times, bare: Callable[[], float]) -> None:
    """One turn of everything."""
    floors = times.setdefault
    floors("floor: python -IS -c pass", []).append(run(sys.executable, "-IS", "-c", "pass"))
    floors("floor: python -I -c 'import asyncio, ssl'", []).append(
        run(sys.executable, "-I", "-c", "import asyncio, ssl")
    )
    floors("floor: crun run, /bin/true", []).append(bare())
    floors("floor: kubectl version --client", []).append(run(BIN / "kubectl", "version", "--client"))
    up = (BIN / "wherry", "up", "--detach", "--nodes", "2")
    floors("up, a new instance", []).append(run(*up))
    phases_of(ROOT, times)
    run(BIN / "wherry", "build", "--tag", IMAGE, BASE / "context")

    def post(name: str) -> None:
        ask(instance, "POST", "/apis/apps/v1/namespaces/default/deployments", json.dumps(deployment(name)).encode())

    def apply(name: str) -> None:
        run(BIN / "kubectl", "apply", "-f", "-", stdin=json.dumps(deployment(name)))

    pod({}, "the first unpacks the image", instance, "first", post)
    pod(times, "POST to ready", instance, f"post-{number}", post)
    pod(times, "kubectl apply to ready", instance, f"apply-{number}", apply)
    run(BIN / "wherry", "down")
    floors("up, an instance again", []).append(run(*up))
    run(BIN / "wherry", "down", "--purge")


def table(times: Times) -> None:
    """Print it, with the ratio to the floor that fits."""
    python = statistics.median(times["floor: python -I -c 'import asyncio, ssl'"])
    crun = statistics.median(times["floor: crun run, /bin/true"])
    print(f"{'milliseconds':<46}{'median':>9}{'least':>9}{'most':>9}   of its floor")
    for what, found in times.items():
        middle = statistics.median(found)
        ratio = ""
        if what.startswith("up,") or what.endswith("from its fork"):
            ratio = f"{middle / python:5.1f} x python with asyncio"
        elif what.endswith("to ready"):
            ratio = f"{middle / crun:5.1f} x crun"
        name = what if ": " not in what or what.startswith("floor") else f"  {what}"
        print(f"{name:<46}{middle * 1e3:9.1f}{min(found) * 1e3:9.1f}{max(found) * 1e3:9.1f}   {ratio}")
    up, ready = statistics.median(times["up, a new instance"]), statistics.median(times["POST to ready"])
    print(f"aim: up < {UP_AIM_S:g} s: {up:.2f} s, {'kept' if up < UP_AIM_S else 'MISSED'}")
    over = ready - crun
    print(f"aim: pod < {POD_AIM_S * 1e3:g} ms over crun: {over * 1e3:.0f}, {'kept' if over < POD_AIM_S else 'MISSED'}")


def main(rounds: int) -> int:
    """Measure and print."""
    if os.geteuid() != 0:
        print("start: needs root: real nodes")
        return 2
    loadavg = Path("/proc/loadavg")
    print(f"{rounds} rounds, {os.cpu_count()} processors; load before: {loadavg.read_text().strip()}")
    times: Times = {}
    try:
        with prepared() as instance, asyncio.Runner() as runner:
            bare = runner.run(bare_runtime(BASE, BASE / "source"))
            count = iter(range(10**6))
            for number in range(rounds + 1):
                if number == 1:
                    times.clear()
                round_of(number, instance, times, lambda: runner.run(bare(next(count))))
    finally:
        shutil.rmtree(BASE, ignore_errors=True)
        cgroups.find("wherry/be4c4b0a").remove("")
    table(times)
    print(f"load after: {loadavg.read_text().strip()} (this benchmark alone makes about 1)")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 7))
