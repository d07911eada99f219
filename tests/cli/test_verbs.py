"""The verbs about containers and images, by the command, on a real cluster."""

import os
import pty
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.doors.conftest import Done, busybox_archive
from wherry.clock import machine
from wherry.content.oci import this_platform
from wherry.testing import Cluster
from wherry.wire.blocking import request

pytestmark = pytest.mark.root
HERE = this_platform()
PROGRAM = [sys.executable, "-m", "wherry.cli.main"]


class Wherry:
    def __init__(self, cluster: Cluster) -> None:
        self.environment = {**os.environ, **cluster.environment, "WHERRY_ROOT": cluster.root}
        self.registry = cluster.environment["WHERRY_REGISTRY"]

    def __call__(self, *argv: str, input: str = "", code: int = 0) -> Done:
        done = subprocess.run(
            [*PROGRAM, *argv],
            env=self.environment,
            input=input,
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
        assert done.returncode == code, (argv, done.returncode, done.stdout, done.stderr)
        assert "Traceback" not in done.stderr
        return Done(done.returncode, done.stdout, done.stderr)

    def popen(self, *argv: str) -> "subprocess.Popen[str]":
        pipe = subprocess.PIPE
        return subprocess.Popen([*PROGRAM, *argv], env=self.environment, stdout=pipe, stderr=pipe, text=True)


@pytest.fixture
def wherry(cluster: Cluster) -> Iterator[Wherry]:
    answer = request(cluster.docker_host.removeprefix("unix://"), "POST", "/images/load", body=busybox_archive())
    answer.read()
    answer.close()
    command = Wherry(cluster)
    yield command
    if left := command("ps", "-aq").out.split():
        command("rm", "-f", *left)


def test_run_has_dockers_exit_codes(wherry: Wherry) -> None:
    done = wherry("run", "--rm", "web:1", "sh", "-c", "echo out; echo err >&2; exit 7", code=7)
    assert (done.out, done.err) == ("out\n", "err\n")
    assert "not found" in wherry("run", "--rm", "web:1", "no-such-command", code=127).err
    assert "permission denied" in wherry("run", "--rm", "web:1", "/etc", code=126).err
    assert "network foo not found" in wherry("run", "--network", "foo", "web:1", code=125).err
    wherry("run", "-p", "far:away", "web:1", code=2)
    wherry("run", "--memory", "much", "web:1", code=2)
    wherry("run", "--cpus", "nan", "web:1", code=2)
    assert wherry("ps", "-aq").out == ""


def test_stdin_and_large_output_come_through_whole(wherry: Wherry) -> None:
    text = "x" * 79 + "\n"
    assert wherry("run", "-i", "--rm", "web:1", "cat", input=text * 20000).out == text * 20000
    assert wherry("run", "-i", "--rm", "web:1", "head", "-n1", input=text * 20000).out == text
    assert wherry("run", "--rm", "web:1", "seq", "100000").out == "".join(f"{n}\n" for n in range(1, 100001))


def test_a_container_from_start_to_end(wherry: Wherry) -> None:
    wherry("run", "-d", "--name", "web", "-l", "app=boat", "web:1", "sh", "-c", "echo one; exec sleep 100")
    assert "web:1" in wherry("ps").out
    assert wherry("ps", "-q", "--filter", "label=app=none").out == ""
    while wherry("logs", "web").out != "one\n":
        machine.pause(0.02)
    assert wherry("exec", "web", "sh", "-c", "echo in; exit 3", code=3).out == "in\n"
    assert wherry("exec", "-i", "web", "cat", input="through").out == "through"
    wherry("exec", "web", "no-such-command", code=127)
    wherry("exec", "nobody", "true", code=1)
    assert "stop the container" in wherry("rm", "web", code=1).err
    following = wherry.popen("logs", "-f", "web")
    assert wherry("stop", "-t", "0", "web").out == "web\n"
    assert following.communicate(timeout=10)[0] == "one\n"
    assert "not running" in wherry("kill", "web", code=1).err
    assert "Exited (137)" in wherry("ps", "-a").out
    wherry("rm", "web")


def test_images(wherry: Wherry) -> None:
    name = f"{wherry.registry}/cli:1"
    wherry("tag", "web:1", name)
    wherry("push", "-q", name)
    assert "Untagged" in wherry("rmi", name).out
    wherry("pull", name)
    assert f"{wherry.registry}/cli" in wherry("images").out
    wherry("rmi", name)
    assert "No such image" in wherry("rmi", name, code=1).err
    repository, other = name.rpartition(":")[0], f"{wherry.registry}/cli:2"
    wherry("tag", "web:1", other)
    assert wherry("push", "-q", "--platform", f"linux/{HERE.architecture}", other).out == f"{other}\n"
    wherry("rmi", other)
    assert "wanted linux/s390x" in wherry("pull", "--platform", "linux/s390x", name, code=1).err
    assert "--all-tags" in wherry("pull", "-a", name, code=2).err
    assert wherry("pull", "-q", "-a", repository).out == f"{repository}\n"
    shown = wherry("images", "--digests", "-f", f"reference={repository}:2").out.splitlines()
    assert (len(shown), shown[1].split()[:2]) == (2, [repository, "2"])
    assert shown[1].split()[2].startswith("sha256:")
    assert wherry("pull", "-q", name).out == f"{name}\n"
    wherry("rmi", name, other)


def test_build(wherry: Wherry, tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text('FROM web:1\nCOPY big /big\nCMD ["wc", "-c", "/big"]\n')
    (tmp_path / "big").write_bytes(b"x" * 1_000_001)
    wherry("build", "-t", "sized:1", str(tmp_path))
    assert wherry("run", "--rm", "sized:1").out.split()[0] == "1000001"
    wherry("rmi", "sized:1")
    assert "not a directory" in wherry("build", str(tmp_path / "none"), code=2).err


def test_a_terminal_is_a_terminal(wherry: Wherry) -> None:
    pid, master = pty.fork()
    if pid == 0:
        argv = [*PROGRAM, "run", "-it", "--rm", "web:1", "sh", "-c", "read a; echo got-$a; test -t 0 && exit 9"]
        os.execve(sys.executable, argv, wherry.environment)
    seen = b""
    os.write(master, b"hello\n")
    alarm = threading.Timer(15.0, os.kill, (pid, signal.SIGKILL))
    alarm.start()
    try:
        while data := os.read(master, 4096):
            seen += data
    except OSError:
        pass  # the other side is closed
    finally:
        alarm.cancel()
    assert b"got-hello" in seen
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
    os.close(master)


def test_signals_go_to_the_container(wherry: Wherry) -> None:
    script = "trap 'echo caught; exit 5' INT; echo ready; while true; do sleep 0.05; done"
    running = wherry.popen("run", "--rm", "web:1", "sh", "-c", script)
    assert running.stdout is not None
    assert running.stdout.readline() == "ready\n"
    running.send_signal(signal.SIGINT)
    assert running.communicate(timeout=10)[0] == "caught\n"
    assert running.returncode == 5


def test_a_closed_pipe_and_ctrl_c_end_quietly(wherry: Wherry) -> None:
    wherry("run", "-d", "--name", "chatty", "web:1", "sh", "-c", "while true; do echo line; sleep 0.01; done")
    reader = wherry.popen("logs", "-f", "chatty")
    assert reader.stdout is not None
    reader.stdout.readline()
    reader.stdout.close()
    reader.stdout = None
    assert reader.communicate(timeout=10)[1] == ""
    assert reader.returncode == 141
    follower = wherry.popen("logs", "-f", "chatty")
    assert follower.stdout is not None
    follower.stdout.readline()
    follower.send_signal(signal.SIGINT)
    assert follower.communicate(timeout=10)[1] == ""
    assert follower.returncode == 130


def test_ps_imports_next_to_nothing(wherry: Wherry) -> None:
    script = (
        "import sys; sys.argv = ['wherry', 'ps']\nfrom wherry.cli.main import main\n"
        "try: main()\nexcept SystemExit: pass\nsys.stderr.write(' '.join(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env=wherry.environment, capture_output=True, text=True, check=True
    )
    loaded = set(done.stderr.split())
    assert loaded & {"asyncio", "argparse", "http.client", "msgspec", "aiohttp", "ssl"} == set()
