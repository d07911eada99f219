"""stats, events of the past, prune and `system df` by the stock client."""

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from tests.doors.conftest import Docker
from tests.doors.raw import call
from wherry.clock import machine
from wherry.testing import Cluster

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


def test_the_numbers_of_stats_are_the_kernels(newest: Docker) -> None:
    """Memory and its limit, CPU and its throttling, what is written, and each interface by its name."""
    script = (
        "dd if=/dev/zero of=/dev/shm/x bs=1M count=24; busybox nslookup boat.invalid; touch /ready; while :; do :; done"
    )
    newest("run", "-d", "--name", "web", "-m", "64m", "--cpus", "0.2", "--pids-limit", "9", "web:1", "sh", "-c", script)
    newest("exec", "web", "sh", "-c", "while ! ls /ready 2>/dev/null; do sleep 0.02; done; sleep 0.3")
    found = call(newest, "GET", "/containers/web/stats?stream=0&one-shot=1").json
    memory, cpu, eth0 = found["memory_stats"], found["cpu_stats"], found["networks"]["eth0"]
    assert memory["limit"] == 64 << 20
    assert 24 << 20 <= memory["usage"] < 64 << 20
    assert cpu["cpu_usage"]["total_usage"] > 10_000_000
    assert cpu["cpu_usage"]["usage_in_usermode"] > 0
    assert cpu["throttling_data"]["throttled_periods"] >= 1
    assert cpu["throttling_data"]["throttled_time"] > 0
    assert cpu["system_cpu_usage"] > cpu["cpu_usage"]["total_usage"]
    assert (found["pids_stats"]["current"], found["pids_stats"]["limit"]) == (1, 9)
    assert list(found["networks"]) == ["eth0"]
    own = newest("exec", "web", "cat", "/proc/net/dev").out.split("eth0:")[1].split()
    assert 1 <= eth0["tx_packets"] <= int(own[9])
    assert 1 <= eth0["rx_packets"] <= int(own[1])
    assert 40 <= eth0["tx_bytes"] <= int(own[8])
    later = call(newest, "GET", "/containers/web/stats?stream=0").json
    assert later["preread"] > found["read"]
    assert later["cpu_stats"]["cpu_usage"]["total_usage"] > later["precpu_stats"]["cpu_usage"]["total_usage"]


def test_events_of_the_past(newest: Docker) -> None:
    began = machine.now()
    newest("run", "--name", "teller", "-l", "a=b", "web:1", "true")
    newest("volume", "create", "told")
    newest("volume", "rm", "told")
    newest("rm", "teller")
    wanted = ("--since", f"{began:.6f}", "--until", f"{machine.now():.6f}", "--format", "{{.Type}} {{.Action}}")
    seen = newest("events", *wanted).out.splitlines()
    assert [line for line in seen if line.startswith("container")] == [
        "container create", "container attach", "container start", "container die", "container destroy",
    ]  # fmt: skip
    assert [line for line in seen if line.startswith("volume")] == ["volume create", "volume destroy"]
    assert not [line for line in seen if line.startswith("sandbox")]
    assert newest("events", *wanted, "-f", "event=die", "-f", "label=a=b").out == "container die\n"
    assert newest("events", *wanted, "-f", "volume=told", "-f", "event=create").out == "volume create\n"
    assert newest("events", *wanted, "-f", "container=other").out == ""
    assert newest("events", "--since", "10m", "--until", "9m").out == ""


def test_listing(newest: Docker) -> None:
    """Filters as a dockerd 20.10 answers them."""
    newest("run", "--name", "first", "-l", "a=b", "web:1", "sh", "-c", "exit 3", code=3)
    newest(
        "run",
        "-d",
        "--name",
        "second",
        "-p",
        "127.0.0.1::80",
        "--expose",
        "90/udp",
        "-v",
        "kept:/v",
        "web:1",
        "sleep",
        "1000",
    )
    newest("create", "--name", "third", "-l", "a=c", "web:1", "dd", "if=/dev/zero", "of=/big", "bs=1M", "count=2")
    newest("start", "third")
    newest("wait", "third")

    def names(*filters: str) -> list[str]:
        words = [word for each in filters for word in ("-f", each)]
        return newest("ps", "-a", "--format", "{{.Names}}", *words).out.split()

    id = newest("inspect", "-f", "{{.Id}}", "second").out.strip()
    port = newest("port", "second", "80").out.strip().rpartition(":")[2]
    for asked, found in {
        ("since=first",): ["third", "second"], ("before=third",): ["second", "first"],
        ("since=first", "before=third"): ["second"],
        (f"since={id[:12]}",): ["third"], ("exited=3",): ["first"], ("exited=0", "exited=3"): ["third", "first"],
        ("is-task=false",): ["third", "second", "first"], ("is-task=true",): [], ("name=^second$",): ["second"],
        ("name=^/first$",): ["first"], ("name=ir",): ["third", "first"], ("label=a",): ["third", "first"],
        ("label=a=b",): ["first"], ("label=a", "label=b"): [], ("status=exited",): ["third", "first"],
        ("status=running",): ["second"],
        (f"publish={port}",): ["second"], (f"publish={int(port) - 1}-{port}/tcp",): ["second"], ("publish=80",): [],
        ("expose=90/udp",): ["second"], ("expose=90",): [], ("volume=kept",): ["second"], ("volume=/v",): ["second"],
        ("network=bridge", "name=first"): ["first"], ("network=none",): [], ("ancestor=web:1", "id=" + id): ["second"],
        ("ancestor=none:1",): [], ("health=none", "name=second"): ["second"], ("isolation=default", "name=second"): ["second"],
    }.items():  # fmt: skip
        assert (asked, names(*asked)) == (asked, found)
    for wrong, said in {
        "since=nobody": "o such container", "exited=x": "exited", "status=odd": "status=odd", "health=odd": "health: odd",
        "expose=x": "expose", "publish=99999": "99999", "is-task=maybe": "is-task", "nothing=1": "nothing",
    }.items():  # fmt: skip
        assert said in newest("ps", "-a", "-f", wrong, code=1).err
    assert newest("ps", "--format", "{{.Names}}").out == "second\n"
    assert newest("ps", "-n", "2", "--format", "{{.Names}}").out == "third\nsecond\n"
    assert newest("ps", "-l", "--format", "{{.Names}}").out == "third\n"
    assert newest("ps", "-s", "-f", "name=third", "-a", "--format", "{{.Size}}").out.startswith("2.1MB (virtual 4")
    assert "SizeRw" not in call(newest, "GET", "/containers/json").json[0]
    shown = call(newest, "GET", "/containers/third/json?size=1").json
    assert shown["SizeRootFs"] - shown["SizeRw"] == call(newest, "GET", "/images/web:1/json").json["Size"]
    newest("rm", "-f", "first", "second", "third")
    newest("volume", "rm", "kept")


OF_REGISTRY = """
WITH RECURSIVE kept(digest) AS (
  SELECT digest FROM holds WHERE holder LIKE 'repo/%' UNION SELECT child FROM refs JOIN kept ON parent = digest
) SELECT digest FROM kept
"""
"""What the registry keeps: it covers what was pushed of late, for some minutes."""


def test_an_empty_store_after_prune(newest: Docker, loaded: Cluster, tmp_path: Path) -> None:
    """What builds, containers, images and volumes have taken from the disk is given back, and is in the sums before."""
    (tmp_path / "Dockerfile").write_text(
        "FROM web:1\nRUN head -c 3000000 /dev/zero >/made\n"
        "RUN --mount=type=cache,target=/c head -c 2000000 /dev/zero >/c/kept\n"
    )
    newest("builder", "prune", "-af", timeout_s=60)  # of other tests
    newest("build", "-t", "built:1", str(tmp_path), timeout_s=60)
    newest(
        "run", "--name", "loud", "-v", "/data", "built:1", "sh", "-c", "head -c 1000000 /dev/zero >/data/x; seq 100000"
    )
    rows = {row["Type"]: row for row in call_df(newest)}
    assert rows["Build Cache"]["TotalCount"] == "3"
    assert float(rows["Containers"]["Size"].removesuffix("MB")) > 1, "the log counts"
    cached = call(newest, "GET", "/system/df?type=build-cache").json["BuildCache"]
    assert sorted((each["Type"], each["Shared"], each["Size"] > 1_000_000) for each in cached) == [
        ("exec.cachemount", False, True), ("regular", True, False), ("regular", True, False),
    ]  # fmt: skip
    assert "Total reclaimed space" in newest("builder", "prune", "-f", "--filter", "until=1h").out
    assert len(call(newest, "GET", "/system/df?type=build-cache").json["BuildCache"]) == 3
    newest("save", "-o", str(tmp_path / "web.tar"), "web:1")
    try:
        newest("system", "prune", "-af", "--volumes", timeout_s=60)
        assert call(newest, "GET", "/images/json?all=1").json == []
        usage = call(newest, "GET", "/system/df").json
        assert (usage["LayersSize"], usage["Images"], usage["Containers"], usage["Volumes"], usage["BuildCache"]) == (
            0, [], [], [], [],
        )  # fmt: skip
        with closing(sqlite3.connect(Path(loaded.root) / "content" / "index.db")) as ledger:
            holders = [who for (who,) in ledger.execute("SELECT DISTINCT holder FROM holds")]
            leases = ledger.execute(f"SELECT count(*) FROM covers WHERE digest NOT IN ({OF_REGISTRY})").fetchone()[0]
        assert [who for who in holders if not who.startswith("repo/")] == [], "but for what the registry has"
        assert leases == 0
    finally:
        newest("load", "-i", str(tmp_path / "web.tar"))


def call_df(docker: Docker) -> list[dict[str, str]]:
    return [json.loads(line) for line in docker("system", "df", "--format", "{{json .}}").out.splitlines()]


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
