"""From nothing to a running, self-healing application on two nodes, step by step: what `make demo` runs.

Every step shows what it did and how long it took, and checks it; the first that does not show what it should ends the
demo with exit code 1. Everything is taken down at the end, whatever happened.
"""

import collections
import http.client
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
BIN = Path(sys.executable).parent
ROOT = Path(os.environ.get("WHERRY_DEMO_ROOT", "/var/lib/wherry-demo"))
WHERRY = str(BIN / "wherry")
KUBECTL = str(BIN / "kubectl")
PATH = "/cgi-bin/hello"


class Failed(Exception):
    """A step does not show what it should."""


class Demo:
    """The steps, and the time each took."""

    def __init__(self) -> None:
        self.times: list[tuple[str, float]] = []
        self.env = {**os.environ, "WHERRY_ROOT": str(ROOT), "PATH": f"{BIN}:{os.environ['PATH']}"}
        self.address = ""

    def step(self, title: str, begin: float) -> None:
        """Say that a step is done."""
        seconds = time.monotonic() - begin
        self.times.append((title, seconds))
        print(f"  [{seconds:6.2f} s] {title}", flush=True)

    def run(self, *argv: str, quiet: bool = True) -> str:
        """Run a program; its output, or Failed with what it said."""
        done = subprocess.run(argv, env=self.env, capture_output=True, text=True, timeout=120)
        if done.returncode != 0:
            raise Failed(f"{' '.join(argv)}\n{done.stdout}{done.stderr}")
        if not quiet:
            print("    " + done.stdout.rstrip().replace("\n", "\n    "), flush=True)
        return done.stdout

    def kubectl(self, *argv: str, quiet: bool = True) -> str:
        """Run the stock kubectl."""
        return self.run(KUBECTL, *argv, quiet=quiet)

    def pods(self) -> list[dict[str, Any]]:
        """The application's pods, without those that are on their way out."""
        found = json.loads(self.kubectl("get", "pods", "-l", "app=web", "-o", "json"))["items"]
        return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]

    # the steps --------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """1. Server and two nodes, the second in a network namespace with its own root."""
        begin = time.monotonic()
        self.run(WHERRY, "up", "--detach", "--nodes", "2", "--profile", "fast-failover")
        for line in self.run(WHERRY, "env").splitlines():
            name, _, value = line.removeprefix("export ").partition("=")
            self.env[name] = value
        self.step("wherry is up: API server, registry, two nodes (profile fast-failover)", begin)
        self.kubectl("get", "nodes", "-o", "wide", quiet=False)

    def build(self) -> None:
        """2. Two versions of the image, from its Dockerfile."""
        begin = time.monotonic()
        context = ROOT / "context"
        shutil.copytree(HERE, context, ignore=shutil.ignore_patterns("*.py", "*.yaml"), dirs_exist_ok=True)
        busybox = shutil.which("busybox") or "/bin/busybox"
        shutil.copy(busybox, context / "busybox")
        for version in ("1", "2"):
            arguments = ("--build-arg", f"VERSION={version}", "--tag", f"web:{version}", str(context))
            self.run(WHERRY, "build", *arguments)
        self.step("images web:1 and web:2 are built; both nodes can run them, nothing was pushed or loaded", begin)
        self.run(WHERRY, "images", quiet=False)

    def apply(self) -> None:
        """3. A Deployment of three and a Service."""
        begin = time.monotonic()
        self.kubectl("apply", "-f", str(HERE / "web.yaml"), quiet=False)
        self.kubectl("rollout", "status", "deployment/web", "--timeout=60s")
        self.address = self.kubectl("get", "service", "web", "-o", "jsonpath={.spec.clusterIP}")
        self.step(f"3 replicas are ready behind http://{self.address}", begin)
        self.kubectl("get", "pods", "-o", "wide", quiet=False)

    def ask(self, timeout_s: float = 2.0) -> str:
        """One request to the Service's address, on a connection of its own."""
        connection = http.client.HTTPConnection(self.address, 80, timeout=timeout_s)
        try:
            connection.request("GET", PATH)
            answer = connection.getresponse()
            text = answer.read().decode().strip()
            if answer.status != 200 or " version " not in text:
                raise Failed(f"the Service answered {answer.status}: {text!r}")
            return text
        finally:
            connection.close()

    def spread(self) -> None:
        """4. 300 requests."""
        begin = time.monotonic()
        seen = collections.Counter(self.ask().split()[0] for _ in range(300))
        self.step("300 requests to the Service's address, by pod:", begin)
        for name, count in sorted(seen.items()):
            print(f"      {name:<24} {count:4}  {'#' * (count // 4)}")
        names = {pod["metadata"]["name"] for pod in self.pods()}
        if set(seen) != names or min(seen.values()) < 50:
            raise Failed(f"300 requests should reach all of {sorted(names)} about alike; they reached {dict(seen)}")

    def scale(self) -> None:
        """5. Ten replicas, then version 2 while requests run."""
        begin = time.monotonic()
        self.kubectl("scale", "deployment/web", "--replicas=10")
        self.kubectl("rollout", "status", "deployment/web", "--timeout=60s")
        self.step("scaled from 3 to 10: all are ready", begin)
        begin = time.monotonic()
        with Load(self) as load:
            self.kubectl("set", "image", "deployment/web", "web=web:2")
            self.kubectl("rollout", "status", "deployment/web", "--timeout=90s")
            load.until(lambda: load.good > 200)
        self.step(f"rolled out version 2 while requests ran: {load.good} answered, {len(load.errors)} failed", begin)
        if load.errors:
            raise Failed(f"requests failed during the rollout: {load.errors[:3]}")
        if not self.ask().endswith("version 2"):
            raise Failed(f"version 2 was rolled out and {self.ask()!r} answered")

    def heal(self) -> None:
        """6. A container is killed, then a node."""
        begin = time.monotonic()
        victim = next(pod for pod in self.pods() if pod["spec"]["nodeName"] == "node-1")
        name = victim["metadata"]["name"]
        container = victim["status"]["containerStatuses"][0]["containerID"].removeprefix("wherry://")
        self.run(WHERRY, "kill", container)
        restarts = "{.status.containerStatuses[0].restartCount}"
        self.kubectl("wait", f"pod/{name}", f"--for=jsonpath={restarts}=1", "--timeout=30s")
        self.kubectl("wait", f"pod/{name}", "--for=condition=Ready", "--timeout=30s")
        self.step(f"killed the container of {name}: it was started again and is ready", begin)
        begin = time.monotonic()
        lost = [pod["metadata"]["name"] for pod in self.pods() if pod["spec"]["nodeName"] == "node-2"]
        if not lost:
            raise Failed("no pod runs on node-2")
        with Load(self) as load:
            self.run(WHERRY, "node", "kill", "node-2")
            deadline = time.monotonic() + 60
            while True:
                ready = [pod for pod in self.pods() if pod["spec"].get("nodeName") == "node-1" and is_ready(pod)]
                if len(ready) == 10:
                    break
                if time.monotonic() > deadline:
                    raise Failed(f"60 s after node-2 was killed only {len(ready)} of 10 pods are ready on node-1")
                time.sleep(0.05)
            healed = load.good
            load.until(lambda: load.good > healed + 50)
        self.step(
            f"killed node-2 with {len(lost)} pods: all 10 are ready on node-1; meanwhile {load.good} requests were "
            f"answered, {len(load.errors)} failed",
            begin,
        )
        self.kubectl("get", "nodes,pods", "-o", "wide", quiet=False)

    def end(self) -> bool:
        """7. Everything is taken down, and nothing is left."""
        begin = time.monotonic()
        done = subprocess.run(
            [WHERRY, "down", "--purge"], env=self.env, capture_output=True, text=True, timeout=120, check=False
        )
        print("    " + (done.stdout + done.stderr).strip().replace("\n", "\n    "))
        if done.returncode == 0 and not ROOT.exists():
            self.step("everything is taken down; nothing is left", begin)
            return True
        return False


def is_ready(pod: dict[str, Any]) -> bool:
    """Whether a pod's Ready condition is True."""
    return any(each["type"] == "Ready" and each["status"] == "True" for each in pod["status"].get("conditions", ()))


class Load:
    """Requests in the background, one after the other, each on a connection of its own."""

    def __init__(self, demo: Demo) -> None:
        self._demo = demo
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(2)]
        self.good = 0
        self.errors: list[str] = []

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._demo.ask(1.0)
                self.good += 1
            except (OSError, http.client.HTTPException, Failed) as error:
                self.errors.append(f"{type(error).__name__}: {error}")
            self._stop.wait(0.005)

    def until(self, holds: Any, timeout_s: float = 30.0) -> None:
        """Wait until enough was asked."""
        deadline = time.monotonic() + timeout_s
        while not holds():
            if time.monotonic() > deadline:
                raise Failed(f"requests do not flow: {self.good} answered, {self.errors[-3:]}")
            time.sleep(0.01)


def main() -> int:
    """Run all steps; the exit code."""
    if os.geteuid() != 0:
        print("make demo needs root: it runs real containers on two nodes.")
        print("As a plain user: make setup; .venv/bin/wherry server --simulated 2")
        return 2
    demo = Demo()
    print("wherry: from nothing to a self-healing application\n")
    begin = time.monotonic()
    failure = ""
    try:
        for each in (demo.start, demo.build, demo.apply, demo.spread, demo.scale, demo.heal):
            each()
    except (Failed, OSError, subprocess.SubprocessError, KeyboardInterrupt) as error:
        failure = str(error) or type(error).__name__
        print(f"\n  FAILED: {failure}")
        for log in sorted((ROOT / "log").glob("*.log")):
            print(f"\n--- the end of {log}\n" + "".join(log.read_text(errors="replace").splitlines(True)[-25:]))
    clean = demo.end()
    if failure or not clean:
        print("\nThe demo did not show what it should." if failure else "\nSomething was left behind.")
        return 1
    print(f"\n{len(demo.times)} steps in {time.monotonic() - begin:.1f} s. Next:")
    print("  make up                        # one that stays, until Ctrl-C")
    print("  eval $(.venv/bin/wherry env)   # then kubectl, docker and helm talk to it")
    print("  .venv/bin/wherry --help")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
