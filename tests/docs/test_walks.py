"""Every block that a page marks as runnable is run: a page is one script, in a directory of its own, as its reader would.

A page whose blocks say `root` gets the session's real cluster; the others one of simulated nodes, and no root. A page that
starts an instance of its own does so below its directory, and it is taken down afterwards, whatever happened.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.pages import PAGES, ROOT, script
from wherry.testing import Cluster

TIMEOUT_S = 90
SCRIPTS = [(page, *script(page)) for page in PAGES]
SIMULATED = [page for page, text, needs_root in SCRIPTS if text and not needs_root]
REAL = [page for page, text, needs_root in SCRIPTS if text and needs_root]


def names(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.fixture(scope="module")
def simulated() -> Iterator[Cluster]:
    with Cluster(simulated=2) as cluster:
        yield cluster


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A directory like a fresh checkout's; instances made in it are taken down at the end."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples", ignore=shutil.ignore_patterns("__pycache__"))
    yield tmp_path
    for plan in tmp_path.glob("*/instance.json"):
        words = [sys.executable, "-m", "wherry.cli.main", "down", "--purge", "--root", str(plan.parent)]
        subprocess.run(words, check=False, capture_output=True, timeout=TIMEOUT_S)


def read(page: Path, place: Path, environment: dict[str, str]) -> None:
    """Type what the page says. The shell stops at the first command that fails, and says which."""
    text, _ = script(page)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euxo", "pipefail", "-c", text], cwd=place, env={**os.environ, "PATH": path, **environment},
        capture_output=True, text=True, timeout=TIMEOUT_S, stdin=subprocess.DEVNULL, check=False,
    )  # fmt: skip
    if done.returncode:
        seen = what_was_there(place / "state", path)
        pytest.fail(f"{names(page)}\n{done.stdout[-3000:]}\n{done.stderr[-5000:]}\n{seen}")


def what_was_there(root: Path, path: str) -> str:
    """The pods and events of an instance in which a page failed, and the last lines of its logs: what to judge it by."""
    if not root.is_dir():
        return ""
    environment = {**os.environ, "PATH": path, "KUBECONFIG": str(root / "server" / "kubeconfig")}
    seen: list[str] = []
    for words in (
        "get pods -A -o wide",
        "get events -A",
        "get pods -A -o jsonpath={range.items[*]}{.status}{'\\n'}{end}",
    ):
        done = subprocess.run(
            ["kubectl", *words.split()], env=environment, capture_output=True, text=True, timeout=20, check=False
        )
        seen.append(done.stdout[-6000:] + done.stderr[-500:])
    seen += [f"== {log.name}\n{log.read_text()[-3000:]}" for log in sorted(root.rglob("*.log")) if log.is_file()]
    return "\n".join(seen)


@pytest.mark.parametrize("page", SIMULATED, ids=names)
def test_a_page_for_everybody(page: Path, place: Path, simulated: Cluster) -> None:
    read(page, place, simulated.environment)


@pytest.mark.root
@pytest.mark.parametrize("page", REAL, ids=names)
def test_a_page_with_real_containers(page: Path, place: Path, cluster: Cluster, namespace: str) -> None:
    if "wherry up" in script(page)[0]:  # it begins with nothing, in a root of its own
        read(page, place, {"WHERRY_ROOT": str(place / "state")})
        return
    kubeconfig = place / "kubeconfig"
    kubeconfig.write_text(Path(cluster.kubeconfig).read_text())
    environment = {**cluster.environment, "KUBECONFIG": str(kubeconfig)}
    words = ("kubectl", "config", "set-context", "--current", f"--namespace={namespace}")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    subprocess.run(words, env={**os.environ, "PATH": path, **environment}, check=True, capture_output=True)
    read(page, place, environment)
