"""pause, rename, update, top, diff and restart policies by the stock client."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.doors.conftest import Docker
from wherry.clock import machine
from wherry.wire.blocking import request

pytestmark = pytest.mark.root


def test_pause_and_what_a_paused_container_does(newest: Docker) -> None:
    newest("run", "-d", "--name", "web", "web:1", "sh", "-c", "trap 'exit 6' TERM; while true; do sleep 0.05; done")
    newest("pause", "web")
    assert "already paused" in newest("pause", "web", code=1).err
    assert newest("ps", "--format", "{{.State}} {{.Status}}", "-f", "status=paused").out.endswith("(Paused)\n")
    assert "paused" in newest("exec", "web", "true", code=1).err
    newest("unpause", "web")
    assert "not paused" in newest("unpause", "web", code=1).err
    newest("exec", "web", "true")
    newest("pause", "web")
    newest("stop", "-t", "5", "web")
    assert newest("inspect", "-f", "{{.State.ExitCode}} {{.State.Paused}}", "web").out == "6 false\n"
    newest("start", "web")
    newest("pause", "web")
    newest("rm", "-f", "web")
    idle = newest("create", "web:1", "true").out.strip()
    assert "is not running" in newest("pause", idle, code=1).err
    assert "is not paused" in newest("unpause", idle, code=1).err
    assert "Invalid signal: NOPE" in newest("kill", "-s", "NOPE", idle, code=1).err


def test_a_new_name(newest: Docker) -> None:
    newest("create", "--name", "one", "web:1", "true")
    newest("create", "--name", "two", "web:1", "true")
    assert "already in use" in newest("rename", "one", "two", code=1).err
    newest("rename", "one", "three")
    assert sorted(newest("ps", "-a", "--format", "{{.Names}}").out.split()) == ["three", "two"]
    assert "No such" in newest("inspect", "one", code=1).err
    newest("create", "--name", "one", "web:1", "true")


def test_limits_change_while_it_runs(newest: Docker) -> None:
    newest("run", "-d", "--name", "web", "-m", "64m", "--pids-limit", "20", "web:1", "sleep", "100")
    newest("update", "-m", "96m", "--cpus", "0.5", "--pids-limit", "30", "--restart", "on-failure:3", "web")
    host = json.loads(newest("inspect", "web").out)[0]["HostConfig"]
    assert (host["Memory"], host["PidsLimit"]) == (96 << 20, 30)
    assert host["RestartPolicy"] == {"Name": "on-failure", "MaximumRetryCount": 3}
    script = "cat /sys/fs/cgroup/memory.max 2>/dev/null || cat /sys/fs/cgroup/memory/memory.limit_in_bytes"
    assert newest("exec", "web", "sh", "-c", script).out == f"{96 << 20}\n"
    script = "cat /sys/fs/cgroup/pids.max 2>/dev/null || cat /sys/fs/cgroup/pids/pids.max"
    assert newest("exec", "web", "sh", "-c", script).out == "30\n"
    assert "6MB" in newest("update", "-m", "1m", "web", code=1).err


def test_top_and_diff(newest: Docker) -> None:
    newest("run", "-dt", "--name", "web", "web:1", "sh", "-c", "echo a > /tmp/new; rm /etc/passwd; sleep 100")
    while "/etc/passwd" not in newest("diff", "web").out:
        machine.pause(0.02)
    assert sorted(newest("diff", "web").out.splitlines()) == ["A /tmp/new", "C /etc", "C /tmp", "D /etc/passwd"]
    lines = newest("top", "web").out.splitlines()
    assert lines[0].split()[:3] == ["UID", "PID", "PPID"]
    assert any("sleep 100" in line for line in lines[1:])
    titles, *rows = newest("top", "web", "-o", "pid,comm").out.splitlines()
    assert titles.split() == ["PID", "COMMAND"]
    assert [row.split()[1] for row in rows] == ["sleep"]  # by itself ps would list only those without a terminal
    assert newest("ps", "--no-trunc", "--format", "{{.Command}}").out.startswith("\"sh -c 'echo a > /tmp/new;")
    assert "COMMAND" in newest("top", "web", "f").out  # ps refuses this one together with a choice of processes
    said = newest("top", "web", "-o", "nothing", code=1).err
    assert 'ps: error: unknown user-defined format specifier "nothing"' in said
    assert "Usage" not in said
    assert "no column PID" in newest("top", "web", "-o", "comm", code=1).err
    assert newest("diff", newest("create", "web:1", "true").out.strip()).out == ""


def test_restarts_are_counted_and_end(newest: Docker) -> None:
    newest("run", "-d", "--name", "web", "--restart", "on-failure:2", "web:1", "sh", "-c", "exit 3")
    deadline = machine.monotonic() + 20
    while newest("inspect", "-f", "{{.RestartCount}} {{.State.Status}}", "web").out != "2 exited\n":
        assert machine.monotonic() < deadline
        machine.pause(0.05)
    newest("run", "-d", "--name", "always", "--restart", "always", "web:1", "sh", "-c", "exit 3")
    while "restarting" not in (
        seen := newest("ps", "--format", "{{.State}}: {{.Status}}", "-f", "name=always", "-a").out
    ):
        assert machine.monotonic() < deadline
    assert "Restarting (3)" in seen
    newest("stop", "always")
    assert newest("inspect", "-f", "{{.State.Status}}", "always").out == "exited\n"


def test_restart_policies_that_cannot_be_and_a_count_that_starts_anew(newest: Docker) -> None:
    assert "unknown policy 'strange'" in newest("create", "--restart", "strange", "web:1", code=1).err
    assert "only be used with 'on-failure'" in newest("create", "--restart", "always:3", "web:1", code=1).err
    id = newest("create", "--rm", "--name", "gone", "-v", "/data", "web:1", "true").out.strip()
    assert "AutoRemove is enabled" in newest("update", "--restart", "always", "gone", code=1).err
    volume = newest("inspect", "-f", "{{(index .Mounts 0).Name}}", "gone").out.strip()
    newest("start", "-a", "gone")
    deadline = machine.monotonic() + 10
    while newest("ps", "-aq", "--no-trunc", "-f", f"id={id}").out or volume in newest("volume", "ls", "-q").out:
        assert machine.monotonic() < deadline
        machine.pause(0.05)
    newest("run", "-d", "--name", "web", "--restart", "on-failure:1", "web:1", "sh", "-c", "exit 3")
    for _ in range(2):
        while newest("inspect", "-f", "{{.RestartCount}} {{.State.Status}}", "web").out != "1 exited\n":
            assert machine.monotonic() < deadline
            machine.pause(0.05)
        newest("start", "web")


def test_an_unhealthy_container_is_started_anew_or_stopped(newest: Docker) -> None:
    sick = (
        "--health-cmd",
        "cat /tmp/well",
        "--health-interval",
        "100ms",
        "--health-retries",
        "1",
        "--stop-timeout",
        "0",
    )
    script = "[ -e /tmp/once ] && touch /tmp/well; touch /tmp/once; sleep 100"
    newest("run", "-d", "--name", "web", *sick, "--label", "wherry.on-unhealthy=restart", "web:1", "sh", "-c", script)
    newest("run", "-d", "--name", "two", *sick, "--label", "wherry.on-unhealthy=stop", "web:1", "sleep", "100")
    deadline = machine.monotonic() + 15
    for name, wanted in (("web", "1 running healthy\n"), ("two", "0 exited unhealthy\n")):
        shown = "{{.RestartCount}} {{.State.Status}} {{.State.Health.Status}}"
        while (seen := newest("inspect", "-f", shown, name).out) != wanted:
            assert machine.monotonic() < deadline, seen
            machine.pause(0.05)
    label = ("--label", "wherry.on-unhealthy=restart")
    assert "cannot both be removed" in newest("create", "--rm", *label, "web:1", code=1).err
    assert "use stop or restart" in newest("create", "--label", "wherry.on-unhealthy=cry", "web:1", code=1).err


def test_ports_mounts_and_variables_of_a_stopped_container(newest: Docker, tmp_path: Path) -> None:
    """What Docker's clients cannot ask for: so by the API itself."""

    def update(body: Mapping[str, object]) -> tuple[int, str]:
        path = newest.environment["DOCKER_HOST"].removeprefix("unix://")
        answer = request(path, "POST", "/containers/web/update", body=json.dumps(body).encode())
        try:
            return answer.status, answer.read().decode()
        finally:
            answer.close()

    (tmp_path / "file").write_text("seen\n")
    tmp_path.chmod(0o755)
    script = "echo run >> /kept; cat /data/file /kept; echo $COLOUR; touch /old/x; sleep 100"
    newest("run", "-d", "--name", "web", "-v", "/old", "-e", "COLOUR=red", "web:1", "sh", "-c", script)
    before = newest("inspect", "-f", "{{(index .Mounts 0).Name}}", "web").out
    assert update({"PortBindings": {}})[0] == 409
    newest("stop", "-t", "0", "web")
    change = {"PortBindings": {"80/tcp": [{"HostPort": ""}]}, "Binds": [f"{tmp_path}:/data:ro"], "Env": ["COLOUR=blue"]}
    assert update(change) == (200, '{"Warnings":[]}')
    newest("start", "web")
    deadline = machine.monotonic() + 10
    while not (said := newest("logs", "web").out).endswith("run\nrun\nblue\n"):
        assert machine.monotonic() < deadline, said
        machine.pause(0.02)
    assert "seen\n" in said
    assert newest("port", "web", "80").out
    shown = json.loads(newest("inspect", "web").out)[0]
    assert shown["HostConfig"]["Binds"] == [f"{tmp_path}:/data:ro"]
    assert {each["Destination"]: each.get("Name", "") for each in shown["Mounts"]} == {
        "/data": "",
        "/old": before.strip(),
    }
    newest("stop", "-t", "0", "web")
    assert update({"Binds": None, "PortBindings": None})[0] == 200
    newest("start", "web")
    assert newest("port", "web").out == ""
    assert update({"Env": "A=1"})[0] == 400
    assert update({"Hostname": "x"})[0] == 501
    newest("rm", "-f", "-v", "web")
    newest("create", "--name", "web", "web:1", "cat", "/data/file")  # its process waits already
    assert update({"Binds": [f"{tmp_path}:/data"]})[0] == 200
    assert newest("start", "-a", "web").out == "seen\n"
