"""pause, rename, update, top, diff and restart policies by the stock client."""

import json

import pytest

from tests.doors.conftest import Docker
from wherry.clock import machine

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
    assert "is not running" in newest("pause", newest("create", "web:1", "true").out.strip(), code=1).err


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
    newest("run", "-d", "--name", "web", "web:1", "sh", "-c", "echo a > /tmp/new; rm /etc/passwd; sleep 100")
    while "/etc/passwd" not in newest("diff", "web").out:
        machine.pause(0.02)
    assert sorted(newest("diff", "web").out.splitlines()) == ["A /tmp/new", "C /etc", "C /tmp", "D /etc/passwd"]
    lines = newest("top", "web").out.splitlines()
    assert lines[0].split()[:3] == ["UID", "PID", "PPID"]
    assert any("sleep 100" in line for line in lines[1:])
    assert newest("top", "web", "-o", "pid,comm").out.splitlines()[0].split() == ["PID", "COMMAND"]
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
