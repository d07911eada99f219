"""Health checks, --init, ulimits, devices, shared memory and log options by the stock client."""

import json

import pytest

from tests.doors.conftest import Docker
from wherry.clock import machine

pytestmark = pytest.mark.root


def until(newest: Docker, name: str, what: str, wanted: str) -> None:
    deadline = machine.monotonic() + 15
    while (seen := newest("inspect", "-f", what, name).out.strip()) != wanted:
        assert machine.monotonic() < deadline, seen
        machine.pause(0.05)


def test_health_comes_and_goes(newest: Docker) -> None:
    began = machine.now()
    newest(
        "run", "-d", "--name", "web", "--health-cmd", "echo looked; cat /tmp/well", "--health-interval", "100ms",
        "--health-retries", "2", "--health-timeout", "2s", "web:1", "sleep", "100",
    )  # fmt: skip
    until(newest, "web", "{{.State.Health.Status}}", "unhealthy")
    health = json.loads(newest("inspect", "web").out)[0]["State"]["Health"]
    assert health["FailingStreak"] >= 2
    assert health["Log"][-1]["ExitCode"] == 1
    assert health["Log"][-1]["Output"].startswith("looked\n")
    assert newest("ps", "-q", "--filter", "health=unhealthy").out
    newest("exec", "web", "touch", "/tmp/well")
    until(newest, "web", "{{.State.Health.Status}}", "healthy")
    assert newest("ps", "--format", "{{.Status}}").out.strip().endswith("(healthy)")
    wanted = ("--since", f"{began:.6f}", "--until", f"{machine.now():.6f}", "--format", "{{.Action}}")
    told = newest("events", *wanted, "-f", "event=health_status").out.splitlines()
    assert told == ["health_status: unhealthy", "health_status: healthy"]
    newest("rm", "-f", "web")
    slow = (
        "--health-cmd",
        "sleep 5",
        "--health-interval",
        "100ms",
        "--health-timeout",
        "200ms",
        "--health-retries",
        "1",
    )
    newest("run", "-d", "--name", "slow", *slow, "web:1", "sleep", "100")
    until(newest, "slow", "{{.State.Health.Status}}", "unhealthy")
    assert "exceeded timeout" in newest("inspect", "-f", "{{(index .State.Health.Log 0).Output}}", "slow").out
    assert "1ms" in newest("create", "--health-cmd", "true", "--health-interval", "1us", "web:1", code=1).err
    id = newest("create", "--health-cmd", "true", "--health-retries", "2", "web:1").out.strip()
    own = json.loads(newest("inspect", id).out)[0]["Config"]["Healthcheck"]
    assert own == {"Test": ["CMD-SHELL", "true"], "Retries": 2}  # what was asked for, and not our defaults
    id = newest("create", "--no-healthcheck", "web:1").out.strip()
    assert "Healthcheck" not in json.loads(newest("inspect", id).out)[0]["Config"]


def test_init_is_the_first_process_and_leaves_no_trace(newest: Docker) -> None:
    script = "cat /proc/1/cmdline; exit 9"
    text = newest("run", "--name", "web", "--init", "web:1", "sh", "-c", script, code=9).out
    assert text.startswith("/dev/docker-init\0--\0sh\0")
    assert newest("inspect", "-f", "{{.HostConfig.Init}}", "web").out == "true\n"
    assert newest("diff", "web").out == ""


def test_ulimits_fall_back_with_a_warning(newest: Docker) -> None:
    done = newest(
        "run", "--rm", "--ulimit", "nofile=500:600", "--ulimit", "core=0", "web:1", "cat", "/proc/self/limits"
    )
    (line,) = [line.split() for line in done.out.splitlines() if line.startswith("Max open files")]
    assert line[3:5] == ["500", "600"]
    assert "soft limit" in newest("create", "--ulimit", "nofile=700:600", "web:1", code=None).err.lower()
    newest("run", "--rm", "--ulimit", "nofile=100000000:200000000", "web:1", "true", code=None)


def test_devices(newest: Docker) -> None:
    newest("run", "--rm", "--device", "/dev/zero:/dev/nought:r", "web:1", "head", "-c", "1", "/dev/nought")
    assert "no such" in newest("create", "--device", "/dev/none", "web:1", code=1).err.lower()
    assert "device cgroup" in newest("create", "--device-cgroup-rule", "x 1:1 r", "web:1", code=None).err


def test_shared_memory_and_priorities(newest: Docker) -> None:
    script = "mount | while read a b c d; do [ $c = /dev/shm ] && echo $d; done; cat /proc/self/oom_score_adj"
    text = newest("run", "--rm", "--shm-size", "8m", "--oom-score-adj", "500", "web:1", "sh", "-c", script).out
    assert "size=8192k" in text
    assert text.endswith("500\n")


def test_log_options(newest: Docker) -> None:
    newest("run", "--name", "web", "--log-opt", "max-size=10k", "--log-opt", "max-file=2", "web:1", "echo", "hi")
    config = json.loads(newest("inspect", "web").out)[0]["HostConfig"]["LogConfig"]
    assert config == {"Type": "json-file", "Config": {"max-size": "10k", "max-file": "2"}}
    assert newest("logs", "web").out == "hi\n"
    newest("run", "--name", "local", "--log-driver", "local", "web:1", "echo", "hi")
    assert newest("logs", "local").out == "hi\n"
    newest("run", "--name", "mute", "--log-driver", "none", "web:1", "echo", "hi")
    assert newest("logs", "mute", code=1).err
    assert "not supported by wherry" in newest("create", "--log-driver", "gelf", "web:1", code=1).err
    assert "invalid size" in newest("create", "--log-opt", "max-size=x", "web:1", code=1).err
