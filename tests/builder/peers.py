"""Two engines behind Docker sockets, ours and a dockerd of its own, and the images that they built beside each other."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from wherry.builder.tree import Node, Tree
from wherry.clock import machine
from wherry.content.digests import digest_of
from wherry.content.inflate import pieces
from wherry.content.tars import Tar

WHERRY = [sys.executable, "-m", "wherry.cli.main"]
READY_S = 30.0
LIMIT_S = 600
CONFIG = (
    *("Env", "Cmd", "Entrypoint", "WorkingDir", "User", "Labels", "ExposedPorts", "Volumes", "StopSignal"),
    *("Healthcheck", "OnBuild", "Shell"),
)


@dataclass(frozen=True)
class Peer:
    """A Docker socket, asked by the stock client."""

    socket: Path

    def docker(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """The stock client, with the classic builder."""
        return self._run(["docker", *words], check)

    def wherry(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Our own."""
        return self._run([*WHERRY, *words], check)

    def _run(self, argv: Sequence[str], check: bool) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "DOCKER_HOST": f"unix://{self.socket}", "DOCKER_BUILDKIT": "0"}
        done = subprocess.run(
            argv,
            env=environment,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        if check and done.returncode:
            pytest.fail(f"{self.socket}: {' '.join(argv)}\n{done.stdout[-3000:]}\n{done.stderr[-2000:]}")
        return done


@contextmanager
def serving(argv: Sequence[str], socket: Path, log: Path) -> Generator[Peer]:
    """Run a daemon until the end, from when it answers."""
    peer = Peer(socket)
    with log.open("wb") as file, subprocess.Popen(argv, stdout=file, stderr=file) as child:
        try:
            end = machine.monotonic() + READY_S
            while not socket.exists() or peer.docker("version", check=False).returncode:
                if machine.monotonic() > end or child.poll() is not None:
                    pytest.fail(f"{argv[0]} does not answer\n{log.read_text()[-2000:]}")
                machine.pause(0.1)
            yield peer
        finally:
            child.terminate()
            child.wait(timeout=30)


@contextmanager
def ours(base: Path) -> Generator[Peer]:
    """An engine of its own."""
    base.mkdir()
    socket, root = base / "docker.sock", base / "root"
    try:
        with serving(
            [*WHERRY, "engine", "serve", "--root", str(root), "--socket", str(socket)], socket, base / "log"
        ) as peer:
            yield peer
    finally:
        subprocess.run([*WHERRY, "down", "--purge", "--root", str(root)], check=False, capture_output=True, timeout=60)


@contextmanager
def dockers(base: Path) -> Generator[Peer]:
    """A dockerd of its own, without networks."""
    base.mkdir()
    argv = [
        *(
            "dockerd",
            "--data-root",
            str(base / "data"),
            "--exec-root",
            str(base / "exec"),
            "-H",
            f"unix://{base}/docker.sock",
        ),
        *("--pidfile", str(base / "pid"), "--bridge=none", "--iptables=false", "--ip-masq=false", "--ip6tables=false"),
    ]
    try:
        with serving(argv, base / "docker.sock", base / "log") as peer:
            yield peer
    finally:
        shutil.rmtree(base, ignore_errors=True)


def images_of(peer: Peer, names: Sequence[str], place: Path) -> dict[str, tuple[Mapping[str, Any], Mapping[str, str]]]:
    """Each image's config (what peers agree on) and its files by path: kind, mode, owner, link, content."""
    peer.docker("save", "-o", str(place / "saved.tar"), *names)
    folder = place / "saved"
    with tarfile.open(place / "saved.tar") as archive:
        archive.extractall(folder)
    (place / "saved.tar").unlink()
    found: dict[str, tuple[Mapping[str, Any], Mapping[str, str]]] = {}
    seen: dict[str, str] = {}
    for entry in json.loads((folder / "manifest.json").read_text()):
        config = json.loads((folder / entry["Config"]).read_text())["config"]
        said = {key: config[key] for key in CONFIG if config.get(key)}
        tree = Tree()
        for layer in entry["Layers"]:
            _lay(tree, folder / layer, seen)
        files = {path: _said(node, seen) for path, node in tree.walk("")}
        for name in entry["RepoTags"]:
            found[name] = (said, files)
    shutil.rmtree(folder)
    return found


def _lay(tree: Tree, layer: Path, seen: dict[str, str]) -> None:
    with layer.open("rb") as file:
        tar = Tar(pieces(file.fileno(), name=str(layer)), name=str(layer))
        members = list[Any]()
        for member in tar:
            members.append(member)
            if member.kind == "file":
                seen[f"{layer}/{member.path}"] = digest_of(b"".join(bytes(part) for part in tar.data()))
    tree.lay(str(layer), members)


def _said(node: Node, seen: Mapping[str, str]) -> str:
    content = seen["/".join(node.origin)] if isinstance(node.origin, tuple) else ""
    return f"{node.kind} {node.mode:#o} {node.uid}:{node.gid} {node.link} {content}"
