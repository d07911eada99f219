"""An engine that stands alone, as people have it who used dockerd: its socket, its TLS address, and what outlives it."""

import grp
import os
import pty
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from tests.daemon.conftest import Wherry
from tests.doors.conftest import CLIENTS, busybox_archive
from tests.traces import of_kernel, processes, traces

pytestmark = pytest.mark.root

DOCKERS = [path for path in CLIENTS.values() if os.path.exists(path)]
MEMBERS = "daemon"
"""A group that every machine has, in place of `wherry`."""


class Engine(Wherry):
    """`wherry engine serve` on a root of its own, and the stock clients."""

    def __init__(self) -> None:
        super().__init__(Path(tempfile.mkdtemp(prefix="wherry-alone-", dir="/var/tmp")))
        self.root.chmod(0o755)
        self.socket = self.root / "extra.sock"
        self.bundle = self.root / "bundle"
        self.tcp = ""
        self._process: subprocess.Popen[str] | None = None

    def serve(self, *words: str) -> list[str]:
        """Start it; the addresses that it says it answers at."""
        argv = [*self.argv, "engine", "serve", "--root", str(self.root), *words]
        with (self.root / "serve.log").open("a") as log:
            self._process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=log, text=True)
        assert self._process.stdout is not None
        found: list[str] = []
        for line in self._process.stdout:
            found.append(line.removeprefix("engine: ").strip())
            if line.startswith("engine: tcp:") or "--tcp" not in words:
                return found
        raise AssertionError((self.root / "serve.log").read_text())

    def logs(self) -> str:
        """The end of what it has told."""
        return "\n".join((self.root / "serve.log").read_text().splitlines()[-12:])

    def end(self, number: int) -> int:
        """End the process by a signal; its exit code."""
        assert self._process is not None
        assert self._process.stdout is not None
        self._process.send_signal(number)
        self._process.stdout.close()
        return self._process.wait(20)

    def docker(self, *words: str, program: str = DOCKERS[-1], input: str = "", code: int = 0, **more: str) -> str:
        """A stock client at the engine's own socket, or where `more` variables say."""
        done = subprocess.run(
            [program, *words], env=self.variables(more), input=input, capture_output=True, text=True, timeout=30,
            check=False,
        )  # fmt: skip
        assert done.returncode == code, (words, done.returncode, done.stdout, done.stderr, self.logs())
        return (done.stdout + done.stderr) if code else done.stdout

    def variables(self, more: Mapping[str, str]) -> dict[str, str]:
        own = {"DOCKER_HOST": f"unix://{self.socket}", "DOCKER_BUILDKIT": "0", "HOME": str(self.root)}
        return {name: value for name, value in {**os.environ, **own, **more}.items() if value}

    @property
    def by_tls(self) -> dict[str, str]:
        return {"DOCKER_HOST": self.tcp, "DOCKER_TLS_VERIFY": "1", "DOCKER_CERT_PATH": str(self.bundle)}


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    """One for all walks, with a socket of the group's and a TLS address."""
    made = Engine()
    try:
        words = ("--socket", str(made.socket), "--group", MEMBERS, "--tcp", "127.0.0.1:0", "--tls-name", "boat.test")
        made.tcp = made.serve(*words)[-1]
        made("engine", "client", str(made.bundle), "--root", str(made.root), "--name", "tests")
        archive = made.root / "web.tar"
        archive.write_bytes(busybox_archive())
        assert "Loaded image: web:1" in made.docker("load", "-i", str(archive))
        yield made
        made.end(signal.SIGTERM)
    finally:
        made.clear()


def test_containers_networks_volumes_ports_and_builds_need_no_cluster(engine: Engine) -> None:
    status = engine.status()
    assert (status["kind"], status["is_ready"], status["nodes"]) == ("engine", True, [])
    assert f"docker    unix://{engine.socket}" in engine("status")
    env = dict(line.removeprefix("export ").split("=", 1) for line in engine("env").splitlines())
    assert set(env) == {"DOCKER_HOST", "DOCKER_BUILDKIT", "WHERRY_ROOT"}
    running = [words for words in processes(engine.root).values() if "conmon" not in words]
    assert len(running) == 1, running  # no API server, no scheduler, no warden
    engine.docker("network", "create", "front")
    engine.docker("volume", "create", "data")
    engine.docker(
        "run", "-d", "--name", "store", "--network", "front", "--network-alias", "db", "-v", "data:/data", "web:1", "sh", "-c",
        "echo kept > /data/file; sleep 1000",
    )  # fmt: skip
    found = engine.docker("run", "--rm", "--network", "front", "web:1", "busybox", "nslookup", "-type=a", "db")
    address = engine.docker("inspect", "-f", "{{.NetworkSettings.Networks.front.IPAddress}}", "store").strip()
    assert address in found
    engine.until(
        lambda: "kept" in engine.docker("run", "--rm", "-v", "data:/data:ro", "web:1", "cat", "/data/file"), "the file"
    )
    dockerfile = "FROM web:1\nRUN busybox mkdir /www && echo built > /www/index.html\n"
    assert "Successfully tagged site:1" in engine.docker("build", "-t", "site:1", "-", input=dockerfile)
    engine.docker(
        "run",
        "-d",
        "--name",
        "site",
        "-p",
        "127.0.0.1::80",
        "site:1",
        "busybox",
        "httpd",
        "-f",
        "-p",
        "80",
        "-h",
        "/www",
    )
    port = engine.docker("port", "site", "80").strip()
    engine.until(lambda: _get(f"http://{port}/") == b"built\n", "the site answers")
    resolver = engine.docker("exec", "site", "cat", "/etc/resolv.conf").split()[1]
    words = ("exec", "site", "busybox", "nslookup", "-type=a", "boat.invalid", resolver)
    assert "NXDOMAIN" in engine.docker(*words, code=1)  # it answers, on the default network too
    engine.docker("rm", "-f", "store", "site")


def _get(url: str) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return answer.read()
    except OSError:
        return b""


def test_a_root_has_one_engine_and_no_cluster_beside_it(engine: Engine) -> None:
    assert "an engine runs on it already" in engine("engine", "serve", "--root", str(engine.root), code=1)
    assert "holds an engine that stands alone" in engine("up", "--detach", "--nodes", "1", code=1)
    assert "it has no nodes" in engine("node", "add", "node-2", code=2)
    assert "port 2375 is Docker's for TCP without TLS" in engine("engine", "serve", "--tcp", "0.0.0.0:2375", code=1)
    assert "did you mean serve?" in engine("engine", "server", code=2)
    assert "no such group" in engine("engine", "serve", "--root", f"{engine.root}/other", "--group", "nobody-s", code=1)


def test_members_of_the_group_use_the_socket_and_nobody_else_does(engine: Engine) -> None:
    gid = grp.getgrnam(MEMBERS).gr_gid
    for path in (engine.socket, Path(engine.status()["docker"][0].removeprefix("unix://"))):
        found = path.stat()
        assert (found.st_mode & 0o777, found.st_uid, found.st_gid) == (0o660, 0, gid)

    def run(group: int) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [DOCKERS[0], "version", "-f", "{{.Server.Os}}"], env=engine.variables({}), user=65534, group=group,
            extra_groups=[], capture_output=True, text=True, timeout=30, check=False,
        )  # fmt: skip

    assert run(gid).stdout == "linux\n"
    assert "permission denied" in run(65534).stderr


@pytest.mark.parametrize("program", DOCKERS)
def test_stock_clients_by_tls_and_by_a_context(engine: Engine, program: str) -> None:
    """Input that ends before the output does, which needs an end of one direction within TLS."""
    tls = engine.by_tls
    run = ("run", "--rm", "-i", "web:1")
    assert engine.docker(*run, "cat", program=program, input="all of it\n", **tls) == "all of it\n"
    assert engine.docker(*run, "wc", "-c", program=program, input="x" * 300_000, **tls).strip() == "300000"
    name = engine.docker("run", "-d", "web:1", "sleep", "1000", program=program, **tls).strip()
    assert engine.docker("exec", "-i", name, "cat", program=program, input="echo\n", **tls) == "echo\n"
    assert _in_a_terminal(engine, [program, "exec", "-it", name, "sh", "-c", "stty size; echo $0 done"]).endswith(
        " done"
    )
    engine.docker("rm", "-f", name, program=program, **tls)
    place = f"host={engine.tcp},ca={engine.bundle}/ca.pem,cert={engine.bundle}/cert.pem,key={engine.bundle}/key.pem"
    context = os.path.basename(program) + str(DOCKERS.index(program))
    engine.docker("context", "create", context, "--docker", place, program=program, DOCKER_HOST="")
    words = ("--context", context, "version", "-f", "{{.Server.Arch}}")
    assert engine.docker(*words, program=program, DOCKER_HOST="").strip() in ("amd64", "arm64")


def _in_a_terminal(engine: Engine, argv: list[str]) -> str:
    """Run a client at a terminal of its own, by TLS; what it showed."""
    main, side = pty.openpty()
    process = subprocess.Popen(
        argv, env={**engine.variables(engine.by_tls), "TERM": "xterm"}, stdin=side, stdout=side, stderr=side,
        start_new_session=True,
    )  # fmt: skip
    os.close(side)
    shown = b""
    try:
        while data := os.read(main, 4096):
            shown += data
    except OSError:  # the other side is closed
        pass
    os.close(main)
    assert process.wait(20) == 0, shown
    return shown.decode().strip()


def test_docker_py_by_tls(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    import docker

    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):  # requests prefers them to what it is told
        monkeypatch.delenv(name, raising=False)

    bundle = engine.bundle
    config = docker.tls.TLSConfig(
        client_cert=(str(bundle / "cert.pem"), str(bundle / "key.pem")), ca_cert=str(bundle / "ca.pem"), verify=True
    )
    client = docker.DockerClient(base_url=engine.tcp.replace("tcp://", "https://"), tls=config)
    assert client.containers.run("web:1", ["echo", "hello"], remove=True) == b"hello\n"
    container = client.containers.run("web:1", ["sleep", "1000"], detach=True)
    code, output = container.exec_run(["sh", "-c", "echo out; echo err >&2"], demux=True)
    assert (code, output) == (0, (b"out\n", b"err\n"))
    container.remove(force=True)
    client.close()


def test_only_clients_of_our_own_authority_get_in(engine: Engine, tmp_path: Path) -> None:
    host, _, port = engine.tcp.removeprefix("tcp://").rpartition(":")
    shown = engine.docker("ps", code=1, DOCKER_HOST=engine.tcp)
    assert "Client sent an HTTP request to an HTTPS server" in shown
    stranger = Wherry(tmp_path / "other")
    stranger("engine", "client", str(tmp_path / "bundle"), "--root", str(stranger.root))
    context = ssl.create_default_context(cafile=str(engine.bundle / "ca.pem"))
    context.load_cert_chain(tmp_path / "bundle" / "cert.pem", tmp_path / "bundle" / "key.pem")
    with (
        socket.create_connection((host, int(port)), 10) as plain,
        context.wrap_socket(plain, server_hostname="boat.test") as wrapped,
        pytest.raises(ssl.SSLError, match=r"unknown ca|certificate"),
    ):
        wrapped.recv(100)
    assert (engine.bundle / "key.pem").stat().st_mode & 0o777 == 0o600
    assert engine.bundle.stat().st_mode & 0o777 == 0o700
    assert "is there already" in engine("engine", "client", str(engine.bundle), code=1)


def test_killed_it_leaves_containers_running_and_the_next_start_takes_them_up(engine: Engine) -> None:
    engine.docker("network", "create", "kept")
    name = engine.docker(
        "run", "-d", "--name", "site2", "--network", "kept", "-p", "127.0.0.1::80", "web:1", "sh", "-c",
        "busybox mkdir /www; echo here > /www/index.html; exec busybox httpd -f -p 80 -h /www",
    ).strip()  # fmt: skip
    pid = engine.docker("inspect", "-f", "{{.State.Pid}}", name).strip()
    port = engine.docker("port", "site2", "80").strip()
    for number, code in ((signal.SIGKILL, -9), (signal.SIGTERM, 0)):
        assert engine.end(number) == code
        assert engine.status()["is_ready"] is False
        assert Path(f"/proc/{pid}").exists()
        assert _get(f"http://{port}/") == b"here\n"  # the kernel leads the way, no process of ours
        engine.tcp = engine.serve("--socket", str(engine.socket), "--group", MEMBERS, "--tcp", "127.0.0.1:0")[-1]
        assert engine.docker("inspect", "-f", "{{.State.Status}} {{.State.Pid}}", name) == f"running {pid}\n"
        assert engine.docker("exec", name, "cat", "/www/index.html") == "here\n"
        assert engine.docker("port", "site2", "80").strip() == port
    engine.docker("stop", "-t", "0", name)
    assert engine.docker("wait", name) == "137\n"
    engine.docker("rm", name)
    engine.docker("network", "rm", "kept")


def test_down_ends_it_with_its_containers_and_what_stays_comes_back(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And who starts it is told when it is ready, as systemd wants it: by a datagram to NOTIFY_SOCKET."""
    name = engine.docker("run", "-d", "--restart", "always", "web:1", "sleep", "1000").strip()
    assert "down; no process" in engine("down")
    assert traces(engine.root) == []
    assert not engine.socket.exists()
    assert "state     down" in engine("status", code=1)
    assert engine.end(signal.SIGTERM) == 0  # it had ended in order already
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        listening.settimeout(20)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        engine.tcp = engine.serve("--socket", str(engine.socket), "--group", MEMBERS, "--tcp", "127.0.0.1:0")[-1]
        assert listening.recv(100) == b"READY=1"
    state = ("inspect", "-f", "{{.State.Status}}", name)
    engine.until(lambda: engine.docker(*state) == "running\n", "it is started again")
    engine.docker("rm", "-f", name)
    assert "Loaded image" not in engine.docker("images")
    assert "web" in engine.docker("images")
    assert of_kernel(engine.root)


def test_a_unit_for_systemd_names_the_options(tmp_path: Path) -> None:
    words = [
        sys.executable,
        "-m",
        "wherry.cli.main",
        "engine",
        "unit",
        "--root",
        str(tmp_path),
        "--tcp",
        "0.0.0.0:2376",
    ]
    done = subprocess.run(words, capture_output=True, text=True, timeout=30, check=True)
    line = next(line for line in done.stdout.splitlines() if line.startswith("ExecStart="))
    assert line.endswith(f"engine serve --root {tmp_path} --tcp 0.0.0.0:2376")
    assert "Type=notify" in done.stdout
    assert "KillMode=process" in done.stdout


def layers_in(pile: Path) -> dict[str, int]:
    """The blobs that are no documents, with their inodes: a layer that was sent would be another file."""
    return {
        each.name: each.stat().st_ino for each in pile.rglob("*") if each.is_file() and each.stat().st_size > 100_000
    }


def test_a_registry_on_the_same_root_has_the_engines_images(engine: Engine) -> None:
    """Push and pull between the two by name, as anybody does: the blobs are one pile, and only manifests are told of."""
    pile = engine.root / "content" / "blobs"
    argv = [*engine.argv, "registry", "serve", "--root", str(engine.root), "--listen", "127.0.0.1:0"]
    registry = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert registry.stdout is not None
    try:
        address = registry.stdout.readline().split()[1].removeprefix("http://")
        name = f"localhost:{address.rpartition(':')[2]}/shop/web:1"
        before = layers_in(pile)
        assert before
        engine.docker("tag", "web:1", name)
        assert "digest: sha256:" in engine.docker("push", name)
        engine.docker("rmi", name)
        assert "Downloaded newer image" in engine.docker("pull", name)
        assert engine.docker("run", "--rm", name, "echo", "hi") == "hi\n"
        assert layers_in(pile) == before
        engine.docker("rmi", name)
    finally:
        registry.terminate()
        registry.stdout.close()
        registry.wait(20)
    assert not (engine.root / "registry-address").exists()
    engine.docker("tag", "web:1", name)
    assert "cannot be reached" in engine.docker("push", name, code=1)
    engine.docker("rmi", name)
