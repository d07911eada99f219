"""`docker run`, `exec`, `logs` and their kin by the stock clients: what is printed, where, and the exit codes."""

import json
from pathlib import Path

import pytest

from tests.doors.conftest import Docker
from wherry.clock import machine

pytestmark = pytest.mark.root


def test_the_client_and_the_engine_know_each_other(docker: Docker) -> None:
    assert json.loads(docker("version", "--format", "{{json .Server}}").out)["Os"] == "linux"
    info = docker("info")
    assert "Server Version" in info.out
    assert "WARNING: No memory" not in info.err
    assert "bridge" in docker("network", "ls").out


def test_streams_and_exit_codes_are_the_commands_own(docker: Docker) -> None:
    done = docker("run", "--rm", "web:1", "sh", "-c", "echo out; echo err >&2; exit 7", code=7)
    assert (done.out, done.err) == ("out\n", "err\n")
    assert docker("run", "--rm", "web:1", "true").out == ""
    docker("run", "--rm", "web:1", "sh", "-c", "sh -c 'kill -9 $$'; exit $?", code=137)
    assert docker("ps", "-aq").out == ""


@pytest.mark.parametrize(
    ("argv", "code", "says"),
    [
        (("web:1", "no-such-command"), 127, "executable file not found"),
        (("web:1", "/etc"), 126, "permission denied"),
        (("web:1", "/etc/passwd"), 126, "permission denied"),
        (("-p", "7:7/sctp", "web:1", "true"), 125, "sctp"),
        (("--network", "foo", "web:1", "true"), 125, "network foo not found"),
        (("-m", "1m", "web:1", "true"), 125, "6MB"),
        (("web:1", "/no/such"), 127, "stat /no/such: no such file or directory"),
        (("-w", "here", "web:1", "true"), 125, "the working directory 'here' is invalid"),
        (("-w", "/etc/passwd", "web:1", "true"), 125, "Cannot mkdir: /etc/passwd is not a directory"),
        (("-u", "none", "web:1", "true"), 125, "unable to find user none: no matching entries in passwd file"),
        (("-u", "0:none", "web:1", "true"), 125, "unable to find group none: no matching entries in group file"),
        (("--storage-opt", "size=1G", "web:1", "true"), 125, "--storage-opt"),
        (("--gpus", "all", "web:1", "true"), 125, "--gpus"),
        (("--device", "/etc/passwd", "web:1", "true"), 125, "not a device node"),
        (("-v", "/no/such/place/here:/x:strange", "web:1", "true"), 125, "strange"),
    ],
)
def test_what_cannot_be_run_says_so(docker: Docker, argv: tuple[str, ...], code: int, says: str) -> None:
    assert says in docker("run", "--rm", *argv, code=code).err
    assert docker("ps", "-aq").out == ""


def test_stdin_is_carried_whole_and_its_end_too(docker: Docker) -> None:
    text = "x" * 79 + "\n"
    assert docker("run", "-i", "--rm", "web:1", "cat", input=text * 20000).out == text * 20000
    assert docker("run", "-i", "--rm", "web:1", "head", "-n1", input=text * 20000).out == text
    assert docker("run", "-i", "--rm", "web:1", "wc", "-c", input=text).out.strip() == "80"


def test_settings_arrive_in_the_container(docker: Docker, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    (tmp_path / "file").write_text("from outside\n")
    script = "echo $A-$B; pwd; id -u; cat /data/file; touch /scratch/x && echo scratch; touch /data/no; touch /no; true"
    done = docker(
        "run", "--rm", "-e", "A=1", "-e", "B=two words", "-w", "/tmp", "-u", "app", "-v", f"{tmp_path}:/data:ro",
        "--tmpfs", "/scratch", "--read-only", "--hostname", "boat", "web:1", "sh", "-c", script,
    )  # fmt: skip
    assert done.out == "1-two words\n/tmp\n1000\nfrom outside\nscratch\n"
    assert done.err.count("Read-only file system") == 2
    script = "cat /proc/self/status | while read a b; do [ $a = CapEff: ] && echo $b; done; cat /etc/hostname"
    done = docker("run", "--rm", "--cap-drop", "ALL", "--hostname", "boat", "web:1", "sh", "-c", script, code=None)
    assert done.out.splitlines()[0] == "0000000000000000"


def test_memory_is_bounded(docker: Docker) -> None:
    docker(
        "run",
        "--name",
        "big",
        "-m",
        "24m",
        "web:1",
        "dd",
        "if=/dev/zero",
        "of=/dev/null",
        "bs=200M",
        "count=1",
        code=137,
    )
    assert docker("inspect", "-f", "{{.State.OOMKilled}} {{.State.ExitCode}}", "big").out == "true 137\n"


def test_a_container_in_the_background_from_start_to_end(docker: Docker) -> None:
    script = "echo one; echo two >&2; echo three; sleep 100"
    id = docker("run", "-d", "--name", "web", "-l", "app=boat", "web:1", "sh", "-c", script).out.strip()
    assert len(id) == 64
    assert docker("ps", "--no-trunc", "--format", "{{.ID}} {{.Image}} {{.Names}}").out == f"{id} web:1 web\n"
    for wanted, shown in (
        ("name=web", True), ("name=^/web$", True), ("name=other", False), ("label=app=boat", True), ("label=app=x", False),
        ("status=exited", False), ("status=running", True), ("ancestor=web:1", True), (f"id={id[:8]}", True),
    ):  # fmt: skip
        assert bool(docker("ps", "-q", "--filter", wanted).out) == shown, wanted
    assert "invalid filter" in docker("ps", "--filter", "colour=red", code=1).err
    assert docker("ps", "-q", "-n", "1").out.strip() == id[:12]
    while len((logged := docker("logs", "web")).out.splitlines() + logged.err.splitlines()) < 3:
        machine.pause(0.02)
    assert (logged.out, logged.err) == ("one\nthree\n", "two\n")
    last = docker("logs", "--tail", "1", "web")  # two streams: which came last is not told
    assert len((last.out + last.err).splitlines()) == 1
    first = docker("logs", "-t", "web").out.splitlines()[0]
    assert first.startswith("20")
    assert first.endswith("Z one")
    done = docker("exec", "-e", "X=5", "-w", "/tmp", "web", "sh", "-c", "echo $X; pwd; exit 3", code=3)
    assert done.out == "5\n/tmp\n"
    assert docker("exec", "-i", "web", "cat", input="through\n").out == "through\n"
    docker("exec", "web", "no-such-command", code=127)
    assert docker("exec", "-u", "1000", "web", "id", "-u").out == "1000\n"
    docker("exec", "-d", "web", "touch", "/made")
    while "made" not in docker("exec", "web", "ls", "/").out:
        machine.pause(0.02)
    waiting = docker.popen("wait", "web")
    following = docker.popen("logs", "-f", "web")
    assert "cannot" in docker("rm", "web", code=1).err
    assert docker("kill", "web").out == "web\n"
    assert "is not running" in docker("kill", "web", code=1).err
    assert waiting.communicate(timeout=10)[0] == "137\n"
    assert following.communicate(timeout=10)[0] == "one\nthree\n"
    assert docker("ps", "-aq", "--filter", "exited=137").out
    found = json.loads(docker("inspect", "web").out)[0]
    assert (found["State"]["Status"], found["State"]["ExitCode"]) == ("exited", 137)
    assert found["Config"]["Labels"] == {"app": "boat", "team": "boats"}  # its own, and its image's
    assert "is not running" in docker("exec", "web", "true", code=1).err
    docker("rm", "web")
    assert "No such container" in docker("logs", "web", code=1).err
    assert "No such" in docker("inspect", "web", code=1).err


def test_stop_sends_the_signal_first(docker: Docker) -> None:
    script = "trap 'echo bye; exit 4' TERM; echo ready; while true; do sleep 0.05; done"
    docker("run", "-d", "--name", "polite", "web:1", "sh", "-c", script)
    while "ready" not in docker("logs", "polite").out:
        machine.pause(0.02)
    docker("stop", "polite")
    assert docker("logs", "polite").out.endswith("bye\n")
    assert docker("wait", "polite").out == "4\n"
    docker("start", "polite")
    assert docker("ps", "-q").out
    docker("restart", "-t", "0", "polite")
    docker("rm", "-f", "polite")
    assert docker("ps", "-aq").out == ""


def test_start_attached_gives_the_output_of_this_run(docker: Docker) -> None:
    docker("create", "--name", "again", "web:1", "sh", "-c", "echo run; touch /twice 2>/dev/null; exit 5")
    assert docker("start", "-a", "again", code=5).out == "run\n"
    assert docker("start", "-a", "again", code=5).out == "run\n"
    assert docker("logs", "again").out == "run\nrun\n"
    docker("rm", "again")


def test_a_name_is_taken_once(newest: Docker) -> None:
    newest("create", "--name", "one", "web:1", "true")
    assert 'container name "/one" is already in use' in newest("create", "--name", "one", "web:1", "true", code=1).err


def test_an_image_that_cannot_be_pulled_says_where_from(newest: Docker) -> None:
    assert "127.0.0.1:1" in newest("run", "--rm", "127.0.0.1:1/none:1", "true", code=125, timeout_s=25.0).err


def test_events_are_told(newest: Docker, tmp_path: Path) -> None:
    told = tmp_path / "events"
    with told.open("w") as file:
        client = newest.popen(
            "events", "--format", "{{.Type}} {{.Action}}", "--filter", "container=teller", stdout=file
        )  # fmt: skip
    try:
        deadline = machine.monotonic() + 15
        while "destroy" not in told.read_text():  # the client does not say when it has begun to listen
            assert machine.monotonic() < deadline, told.read_text()
            newest("run", "--rm", "--name", "teller", "web:1", "true")
    finally:
        client.terminate()
        client.communicate(timeout=5)
    last = told.read_text().splitlines()
    end = last.index("container destroy")
    if end >= 4:
        assert last[end - 4 : end] == ["container create", "container attach", "container start", "container die"]
