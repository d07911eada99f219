"""The builds of examples/04-builds as their page has them: packages from Debian, PyPI and npm, twice each, and run.

They need the network and mmdebstrap (Makefile, APT_TEST), so they are long counts. The page's small one runs with the pages.
"""

import re
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.builder.peers import Peer, ours

from wherry.clock import machine

pytestmark = [pytest.mark.root, pytest.mark.soak]

EXAMPLES = Path(__file__).parents[2] / "examples/04-builds"
CERTIFICATES = ("--build-context", "certificates=/etc/ssl/certs")
ANSWER_S = 30.0


@dataclass(frozen=True)
class Bench:
    """An engine with a Debian, and a copy of the examples to change."""

    engine: Peer
    place: Path

    def build(self, name: str, tag: str, *words: str) -> str:
        """Build one of them; return what was said."""
        return self.engine.wherry("build", "-t", tag, *words, str(self.place / name)).stdout

    def twice(self, name: str, *words: str) -> None:
        """Build it, and again: then every step that has files is known, and the image is the same one."""
        first = self.build(name, f"{name}:1", *words)
        second = self.build(name, f"{name}:1", *words)
        assert fresh(second) == 0
        assert built(second) == built(first)

    def answer(self, image: str, port: int, path: str = "/") -> str:
        """Run it, and ask it."""
        self.engine.wherry("run", "-d", "--name", "asked", "-p", f"127.0.0.1:0:{port}", image)
        try:
            place = self.engine.wherry("port", "asked", str(port)).stdout.split()[0]
            end = machine.monotonic() + ANSWER_S
            while True:
                try:
                    with urllib.request.urlopen(f"http://{place}{path}", timeout=5) as got:
                        return got.read().decode()
                except OSError:
                    if machine.monotonic() > end:
                        pytest.fail(self.engine.wherry("logs", "asked", check=False).stdout)
                    machine.pause(0.2)
        finally:
            self.engine.wherry("rm", "-f", "asked")


def built(said: str) -> str:
    """The image's id."""
    return said.partition("Successfully built ")[2].split()[0]


def fresh(said: str) -> int:
    """How many steps with files did not come from the cache. (Stages run beside each other, so their lines are mixed.)"""
    steps = re.findall(r"Step \d+/\d+ : (?:RUN|COPY|ADD|WORKDIR)\b", said)
    return len(steps) - said.count(" ---> Using cache\n")


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    base = tmp_path_factory.mktemp("real")
    place = base / "examples"
    shutil.copytree(EXAMPLES, place)
    words = ["mmdebstrap", "--variant=minbase", "bookworm", str(place / "base/debian.tar")]
    subprocess.run(words, check=True, capture_output=True, timeout=600)
    with ours(base / "engine") as engine:
        made = Bench(engine, place)
        made.build("base", "debian:local")
        yield made


def test_a_debian_with_apt_steps(bench: Bench) -> None:
    bench.twice("base")
    listed = bench.engine.wherry("run", "--rm", "debian:local", "dpkg-query", "-W", "ca-certificates").stdout
    assert listed.startswith("ca-certificates")
    kept = bench.engine.wherry("run", "--rm", "debian:local", "ls", "/var/lib/apt/lists", "/var/cache/apt").stdout
    assert "_Packages" not in kept  # they are in the cache mounts
    assert ".deb" not in kept


def test_a_c_program_on_scratch(bench: Bench) -> None:
    bench.twice("c")
    assert bench.engine.wherry("run", "--rm", "c:1", "engineer").stdout == "hello, engineer\n"
    other = bench.build("c", "c:2", "--build-arg", "GREETING=ahoy")
    assert fresh(other) == 2  # the compiler's, and the copy of what it made
    assert bench.engine.wherry("run", "--rm", "c:2").stdout == "ahoy, world\n"
    layers = bench.engine.docker("image", "inspect", "-f", "{{len .RootFS.Layers}}", "c:1").stdout
    assert layers == "1\n"


def test_a_python_web_application(bench: Bench) -> None:
    bench.twice("python", *CERTIFICATES)
    assert bench.answer("python:1", 8000) == "hello from flask\n"
    wanted = bench.place / "python/requirements.txt"
    wanted.write_text(wanted.read_text() + "# again\n")
    said = bench.build("python", "python:2", *CERTIFICATES)
    assert "File was already downloaded /wheels/flask" in said  # the step ran again, and pip found what it had fetched
    assert "Saved" not in said
    assert fresh(said) == 5  # all from requirements.txt on
    assert bench.answer("python:2", 8000) == "hello from flask\n"


def test_a_node_front_end(bench: Bench) -> None:
    bench.twice("node", *CERTIFICATES)
    assert "app.min.js" in bench.answer("node:1", 8080)
    assert "hello from preact" in bench.answer("node:1", 8080, "/app.min.js")
    (bench.place / "node/app.js").write_text('console.log("other");\n')
    said = bench.build("node", "node:2", *CERTIFICATES)
    assert fresh(said) == 3  # the sources, the bundle, the copy of it: not npm's
    assert "other" in bench.answer("node:2", 8080, "/app.min.js")
