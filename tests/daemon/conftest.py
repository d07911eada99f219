"""The `wherry` command on roots of our own, which are taken down in the end."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.traces import traces

from wherry.clock import machine


class Wherry:
    """The command, and one root."""

    def __init__(self, root: Path, argv: tuple[str, ...] = (sys.executable, "-m", "wherry.cli.main")) -> None:
        self.root = root
        self.argv = argv

    def __call__(self, *words: str, code: int = 0, timeout_s: float = 60) -> str:
        """Run it; return its output, both kinds. The exit code must be `code`, and never is there a traceback."""
        done = subprocess.run(
            [*self.argv, *words], env={**os.environ, "WHERRY_ROOT": str(self.root)}, capture_output=True, text=True,
            timeout=timeout_s, check=False,
        )  # fmt: skip
        text = done.stdout + done.stderr
        assert "Traceback" not in text, text
        assert done.returncode == code, f"{words}: exit code {done.returncode}: {text}{self.logs()}"
        return text

    def logs(self) -> str:
        """The ends of the logs."""
        return "\n".join(
            f"--- {path.name}\n" + "\n".join(path.read_text(errors="replace").splitlines()[-12:])
            for path in sorted((self.root / "log").glob("*.log"))
        )

    def up(self, *words: str) -> str:
        return self("up", "--detach", "--durability", "test", *words)

    def status(self) -> dict[str, Any]:
        """What `wherry status -o json` says, whatever its exit code."""
        done = subprocess.run(
            [*self.argv, "status", "-o", "json", "--root", str(self.root)], capture_output=True, text=True, timeout=30,
            check=False,
        )  # fmt: skip
        return json.loads(done.stdout)

    def kubectl(self, *words: str, code: int = 0) -> str:
        return self("kubectl", *words, code=code)

    def until(self, holds: Callable[[], Any], what: str, timeout_s: float = 30) -> Any:
        """Wait for a state."""
        deadline = machine.monotonic() + timeout_s
        while not (found := holds()):
            assert machine.monotonic() < deadline, f"not within {timeout_s:g} s: {what}\n{self.logs()}"
            machine.pause(0.05)
        return found

    def clear(self) -> None:
        """Take it down with its state; nothing may be left."""
        if (self.root / "instance.json").exists():
            self("down", "--purge")
        shutil.rmtree(self.root, ignore_errors=True)
        left = traces(self.root)
        assert left == []


@pytest.fixture
def wherry() -> Iterator[Wherry]:
    made = Wherry(Path(tempfile.mkdtemp(prefix="wherry-daemon-", dir="/var/tmp")))
    yield made
    made.clear()


@pytest.fixture
def another() -> Iterator[Wherry]:
    made = Wherry(Path(tempfile.mkdtemp(prefix="wherry-daemon-", dir="/var/tmp")))
    yield made
    made.clear()
