"""`Cluster`: an instance of one's own, on free ports, gone afterwards even when the test run is killed."""

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path
    from typing import Any, Self

POLL_S = 0.02


class ClusterError(AssertionError):
    """The cluster did not do, or show, what was asked; the message has its words."""


class Cluster:
    """A cluster for a test, with real containers where there is root, and with simulated ones, saying so, where there is not.

    `with Cluster() as cluster:` starts it and takes it down. `nodes` real nodes (root), or `simulated` ones; with neither
    given, one real node, or two simulated. `root` keeps its state elsewhere than in a temporary directory.
    """

    def __init__(
        self,
        *,
        nodes: "int | None" = None,
        simulated: "int | None" = None,
        profile: str = "default",
        root: "str | Path | None" = None,
        timeout_s: float = 60.0,
    ) -> None:
        is_root = os.geteuid() == 0
        if nodes is None and simulated is None:
            nodes, simulated = (1, 0) if is_root else (0, 2)
        self.nodes, self.simulated = nodes or 0, simulated or 0
        if self.nodes and not is_root:
            raise ClusterError("real nodes need root; give simulated=2 instead")
        self._profile = profile
        self._given_root = root
        self._timeout_s = timeout_s
        self._pipe = -1
        self.root = ""
        self.environment: dict[str, str] = {}
        self.is_real = self.nodes > 0

    def __repr__(self) -> str:
        kind = f"{self.nodes} real nodes" if self.is_real else f"{self.simulated} simulated nodes"
        return f"Cluster({kind} in {self.root or 'no directory yet'})"

    def __enter__(self) -> "Self":
        return self.start()

    def __exit__(self, *error: object) -> None:
        self.stop()

    def start(self) -> "Self":
        """Start it and wait until the API and all nodes are ready. Raises ClusterError with what `wherry up` said."""
        import subprocess
        import tempfile

        self.root = str(self._given_root or tempfile.mkdtemp(prefix="wherry-test-", dir="/var/tmp"))
        if not self.is_real:
            sys.stderr.write("wherry.testing: simulated pods (no root, or asked for); nothing really runs in them\n")
        reading, self._pipe = os.pipe()
        words = [
            "up", "--root", self.root, "--profile", self._profile, "--durability", "test", "--nodes", str(self.nodes),
            "--simulated", str(self.simulated), "--owner-fd", str(reading), "--timeout", str(int(self._timeout_s)),
            *([] if self._given_root else ["--temporary"]),
        ]  # fmt: skip
        try:
            done = subprocess.run(
                [sys.executable, "-m", "wherry.cli.main", *words], capture_output=True, text=True, pass_fds=(reading,),
                check=False,
            )  # fmt: skip
        finally:
            os.close(reading)
        if done.returncode != 0:
            self.stop()
            raise ClusterError(f"wherry up: {done.stderr.strip()}\n{self.role_logs()}")
        for line in self.wherry("env").splitlines():
            name, _, value = line.removeprefix("export ").partition("=")
            self.environment[name] = value.strip("'")
        return self

    def stop(self) -> None:
        """Take it down with its state. Raises ClusterError when something is left behind."""
        import subprocess

        if not self.root:
            return
        words = ["down", "--root", self.root, *([] if self._given_root else ["--purge"])]
        done = subprocess.run(
            [sys.executable, "-m", "wherry.cli.main", *words], capture_output=True, text=True, check=False
        )
        if self._pipe >= 0:
            os.close(self._pipe)
            self._pipe = -1
        if done.returncode != 0 and "no wherry instance" not in done.stderr:
            raise ClusterError(f"wherry down: {done.stderr.strip()}")

    def role_logs(self, lines: int = 15) -> str:
        """The ends of the logs of its processes."""
        from pathlib import Path

        parts: list[str] = []
        for path in sorted(Path(self.root, "log").glob("*.log")):
            parts.append(f"--- {path.name}\n" + "\n".join(path.read_text(errors="replace").splitlines()[-lines:]))
        return "\n".join(parts)

    # talking to it ----------------------------------------------------------------------------------------------------

    @property
    def kubeconfig(self) -> str:
        """The path of the administrator's kubeconfig, for any client library."""
        return self.environment["KUBECONFIG"]

    @property
    def docker_host(self) -> str:
        """The address of the first node's Docker socket, such as `unix:///run/...`."""
        return self.environment["DOCKER_HOST"]

    def run(self, *argv: str, input: "str | None" = None, check: bool = True, timeout_s: float = 120.0) -> str:
        """Run a program with this cluster's environment; return its output. Raises ClusterError when it fails."""
        import subprocess

        done = subprocess.run(
            argv, env={**os.environ, **self.environment, "WHERRY_ROOT": self.root}, input=input, capture_output=True,
            text=True, timeout=timeout_s, check=False,
        )  # fmt: skip
        if check and done.returncode != 0:
            raise ClusterError(f"{' '.join(argv)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout if check else done.stdout + done.stderr

    def wherry(self, *argv: str, input: "str | None" = None, check: bool = True) -> str:
        """Run the wherry command on this instance."""
        return self.run(sys.executable, "-m", "wherry.cli.main", *argv, input=input, check=check)

    def kubectl(self, *argv: str, input: "str | None" = None, check: bool = True) -> str:
        """Run the stock kubectl (the one beside this Python, or in PATH)."""
        from pathlib import Path

        beside = Path(sys.executable).with_name("kubectl")
        return self.run(str(beside) if beside.exists() else "kubectl", *argv, input=input, check=check)

    def request(self, method: str, path: str, body: "Any" = None, *, content_type: str = "application/json") -> "Any":
        """Ask the API as administrator; return the decoded answer. Raises ClusterError with the Status's message."""
        import json

        from wherry.daemon.instance import Instance
        from wherry.wire.blocking import request

        data = b"" if body is None else body.encode() if isinstance(body, str) else json.dumps(body).encode()
        socket = str(Instance.at(self.root).api_socket)
        answer = request(socket, method, path, headers={"Content-Type": content_type}, body=data)
        try:
            text = answer.read()
        finally:
            answer.close()
        decoded = json.loads(text) if text[:1] in (b"{", b"[") else text.decode(errors="replace")
        if answer.status >= 400:
            message = decoded.get("message", decoded) if isinstance(decoded, dict) else decoded
            raise ClusterError(f"{method} {path}: {answer.status}: {message}")
        return decoded

    def apply(self, what: "str | Path | Mapping[str, Any] | Sequence[Mapping[str, Any]]", namespace: str = "") -> None:
        """Apply a file, YAML text, or objects, by the stock kubectl."""
        import json

        where = ("-n", namespace) if namespace else ()
        if isinstance(what, str) and "\n" in what:
            self.kubectl("apply", "-f", "-", *where, input=what)
        elif isinstance(what, (str, os.PathLike)):
            self.kubectl("apply", "-f", str(what), *where)
        else:
            items = [what] if not isinstance(what, (list, tuple)) else list(what)
            document = {"apiVersion": "v1", "kind": "List", "items": items}
            self.kubectl("apply", "-f", "-", *where, input=json.dumps(document))

    def wait(self, what: str, condition: str, namespace: str = "default", timeout_s: float = 60.0) -> None:
        """Wait for a condition of an object (`deployment/web`, `Available`), or for `delete`, or a `jsonpath=...`."""
        wanted = condition if "=" in condition or condition == "delete" else f"condition={condition}"
        self.kubectl("wait", what, f"--for={wanted}", "-n", namespace, f"--timeout={int(timeout_s)}s")

    def until(self, holds: "Any", what: str, timeout_s: float = 30.0) -> "Any":
        """Ask `holds()` until it returns something true; return that. Raises ClusterError naming `what`."""
        from wherry.clock import machine

        deadline = machine.monotonic() + timeout_s
        while True:
            found = holds()
            if found:
                return found
            if machine.monotonic() > deadline:
                raise ClusterError(f"not within {timeout_s:g} s: {what}\n{self.role_logs()}")
            machine.pause(POLL_S)
