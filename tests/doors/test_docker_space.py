"""stats, events of the past, prune and `system df` by the stock client."""

import json

import pytest

from tests.doors.conftest import Docker
from wherry.clock import machine

pytestmark = pytest.mark.root


def test_stats(newest: Docker) -> None:
    newest("run", "-d", "--name", "web", "-m", "64m", "--pids-limit", "50", "web:1", "sleep", "100")
    shown = json.loads(newest("stats", "--no-stream", "--format", "{{json .}}", "web").out)
    assert shown["Name"] == "web"
    assert shown["PIDs"] == "1"
    assert shown["MemUsage"].endswith("/ 64MiB")
    assert float(shown["CPUPerc"].removesuffix("%")) >= 0
    told = newest.popen("stats", "--format", "{{.Name}} {{.MemPerc}}", "web")
    assert told.stdout is not None
    line = told.stdout.readline()
    told.kill()
    told.communicate(timeout=5)
    assert "web" in line
    newest("stop", "-t", "0", "web")
    assert json.loads(newest("stats", "--no-stream", "--format", "{{json .}}", "web").out)["PIDs"] == "0"


def test_events_of_the_past(newest: Docker) -> None:
    began = machine.now()
    newest("run", "--name", "teller", "-l", "a=b", "web:1", "true")
    newest("volume", "create", "told")
    newest("volume", "rm", "told")
    newest("rm", "teller")
    wanted = ("--since", f"{began:.6f}", "--until", f"{machine.now():.6f}", "--format", "{{.Type}} {{.Action}}")
    seen = newest("events", *wanted).out.splitlines()
    assert [line for line in seen if line.startswith("container")] == [
        "container create", "container start", "container die", "container destroy",
    ]  # fmt: skip
    assert [line for line in seen if line.startswith("volume")] == ["volume create", "volume destroy"]
    assert not [line for line in seen if line.startswith("sandbox")]
    assert newest("events", *wanted, "-f", "event=die", "-f", "label=a=b").out == "container die\n"
    assert newest("events", *wanted, "-f", "volume=told", "-f", "event=create").out == "volume create\n"
    assert newest("events", *wanted, "-f", "container=other").out == ""
    assert newest("events", "--since", "10m", "--until", "9m").out == ""


def test_prune_and_usage(newest: Docker) -> None:
    newest("run", "--name", "done", "-l", "keep=no", "web:1", "dd", "if=/dev/zero", "of=/big", "bs=1M", "count=2")
    newest("run", "-d", "--name", "live", "-v", "used:/v", "web:1", "sleep", "100")
    rows = [json.loads(line) for line in newest("system", "df", "--format", "{{json .}}").out.splitlines()]
    kinds = {row["Type"]: row for row in rows}
    assert (kinds["Containers"]["TotalCount"], kinds["Containers"]["Active"]) == ("2", "1")
    assert kinds["Local Volumes"]["Active"] == "1"
    assert kinds["Images"]["Size"] not in ("0B", "")
    verbose = newest("system", "df", "-v").out
    assert "2.1MB" in verbose or "2.097MB" in verbose
    assert "done" not in newest("container", "prune", "-f", "--filter", "label=keep=yes").out
    assert newest("container", "prune", "-f", "--filter", "until=1h").out.count("\n") <= 2
    text = newest("container", "prune", "-f", "--filter", "label!=keep=yes").out
    assert "Total reclaimed space: 2.097MB" in text
    assert newest("ps", "-a", "--format", "{{.Names}}").out == "live\n"
    id = newest("commit", "live").out.strip()
    assert id.removeprefix("sha256:")[:12] in newest("images", "-q", "-f", "dangling=true").out
    assert id in newest("image", "prune", "-f").out
    newest("tag", "web:1", "unused:1")
    assert "more than one" in newest("image", "prune", "-f", "--filter", "until=1h", "--filter", "until=2h", code=1).err
    newest("rm", "-f", "live")
    newest("volume", "prune", "-f", "--filter", "all=1")
    newest("rmi", "unused:1")
    assert newest("volume", "ls", "-q").out == ""
