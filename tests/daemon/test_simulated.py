"""Instances of simulated nodes, as a person has them who only wants an API."""

import itertools
import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from tests.daemon.conftest import Wherry
from tests.traces import processes, traces

from wherry.daemon.doctor import CHECKS, Grade, examine
from wherry.daemon.instance import Instance


def test_from_up_to_down_and_up_again(wherry: Wherry) -> None:
    """Ports and objects are the same after a restart; each command may be given twice."""
    assert "2 simulated nodes (their pods only seem to run)" in wherry.up("--simulated", "2")
    first = wherry.status()
    assert first["is_ready"]
    assert [(node["name"], node["ready"], node["kind"]) for node in first["nodes"]] == [
        ("sim-1", True, "simulated"),
        ("sim-2", True, "simulated"),
    ]
    assert [(role["name"], role["state"], role["starts"]) for role in first["roles"]] == [("server", "running", 1)]
    table = wherry("status")
    assert f"instance  {first['id']}  {wherry.root}" in table
    assert "state     ready" in table
    again = wherry("up", "--detach", "--simulated", "2", code=1)
    assert "the instance is up already" in again
    env = dict(line.removeprefix("export ").split("=", 1) for line in wherry("env").splitlines())
    assert env == {"KUBECONFIG": f"{wherry.root}/server/kubeconfig", "WHERRY_ROOT": str(wherry.root)}
    assert Path(env["KUBECONFIG"]).stat().st_mode & 0o777 == 0o600
    wherry.kubectl("create", "configmap", "kept", "--from-literal=a=1")
    assert "down; no process" in wherry("down")
    assert traces(wherry.root) == []
    assert "state     down" in wherry("status", code=1)
    wherry("down")
    wherry.up("--simulated", "2")
    assert wherry.kubectl("get", "configmap", "kept", "-o", "jsonpath={.data.a}") == "1"
    now = wherry.status()
    assert (now["api"], now["registry"], now["nodes"]) == (first["api"], first["registry"], first["nodes"])
    wherry("down", "--purge")
    assert not wherry.root.exists()
    assert "no wherry instance" in wherry("status", code=1)
    assert "no wherry instance" in wherry("down", code=1)


def test_two_side_by_side(wherry: Wherry, another: Wherry) -> None:
    wherry.up("--simulated", "1")
    another.up("--simulated", "1")
    one, two = wherry.status(), another.status()
    assert one["is_ready"]
    assert two["is_ready"]
    assert len({one["api"], two["api"], one["registry"], two["registry"]}) == 4
    wherry.kubectl("create", "namespace", "mine")
    assert "NotFound" in another.kubectl("get", "namespace", "mine", code=1)
    wherry("down")
    assert another.status()["is_ready"]


def test_after_kill_9_of_everything_up_cleans_and_nothing_acknowledged_is_lost(wherry: Wherry) -> None:
    wherry("up", "--detach", "--simulated", "1")
    before = wherry.status()
    wherry.kubectl("create", "configmap", "kept", "--from-literal=a=1")
    found = processes(wherry.root)
    assert len(found) == 2, found
    for pid in found:
        os.kill(pid, signal.SIGKILL)
    wherry.until(lambda: not processes(wherry.root), "they are dead")
    assert "state     down" in wherry("status", code=1)
    assert "removing what an instance that was killed has left" in wherry("up", "--detach", "--simulated", "1")
    assert wherry.kubectl("get", "configmap", "kept", "-o", "name") == "configmap/kept\n"
    assert wherry.status()["api"] == before["api"]


def test_the_first_interrupt_ends_in_order(wherry: Wherry) -> None:
    words = [*wherry.argv, "server", "--simulated", "1", "--root", str(wherry.root)]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as front:
        assert front.stderr is not None
        for line in front.stderr:
            if "Ctrl-C" in line:
                break
        assert wherry.status()["is_ready"]
        front.send_signal(signal.SIGINT)
        said = front.stderr.read()
        assert front.wait(30) == 0, said
    assert "stopping" in said
    assert "no process" in said
    assert traces(wherry.root) == []


def test_wrong_words_are_answered_with_the_right_ones(wherry: Wherry) -> None:
    assert "--nodes or, as a plain user, --simulated" in wherry("up", "--nodes", "0", code=2)
    assert "fast-failover" in wherry("up", "--profile", "quick", code=2)
    assert "--simulated" in wherry("up", "--simulatd", "2", code=2)
    assert "no wherry instance" in wherry("env", code=1)
    assert "no wherry instance" in wherry("node", "add", "x", code=1)
    wherry.up("--simulated", "1")
    assert "usage: wherry node" in wherry("node", "paint", "x", code=2)
    assert "usage: wherry node" in wherry("node", "add", code=2)
    assert "simulated nodes live in the server's process" in wherry("node", "remove", "sim-1", code=1)
    assert "no real node" in wherry("node", "kill", "sim-1", code=1)
    assert "no node none; there are sim-1" in wherry("node", "remove", "none", code=1)
    assert "already there" in wherry("node", "add", "sim-1", code=1)
    assert "lower-case" in wherry("node", "add", "Not_A_Name", code=1)
    assert "sim-1\tsimulated\t" in wherry("node", "list")


@pytest.mark.root
def test_without_root_the_same_cluster_runs_on_simulated_nodes(wherry: Wherry) -> None:
    """As user nobody. It may read our checkout, wherever that is, and has no other right."""
    os.chown(wherry.root, 65534, 65534)
    drop = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
    read = ("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search")
    plain = Wherry(wherry.root, (*drop, *read, sys.executable, "-m", "wherry.cli.main"))
    words = [*plain.argv, "server", "--simulated", "2", "--root", str(wherry.root)]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as front:
        try:
            assert front.stderr is not None
            heard = ""
            for line in front.stderr:
                heard += line
                if "Ctrl-C" in line:
                    break
            assert "2 simulated nodes" in heard
            assert plain.status()["is_ready"]
            owners = {Path(f"/proc/{pid}").stat().st_uid for pid in processes(wherry.root) if pid != front.pid}
            assert owners == {65534}
            plain.kubectl("create", "deployment", "web", "--image=web:1", "--replicas=3")
            plain.kubectl("rollout", "status", "deployment/web", "--timeout=20s")
            assert "real nodes need root" in plain("up", "--nodes", "1", code=2)
            doctor = plain("doctor")
            assert "WARN  root" in doctor
            front.send_signal(signal.SIGINT)
            front.stderr.read()
            assert front.wait(30) == 0
        finally:
            with suppress(ProcessLookupError):
                front.kill()
    left = list(Path("/tmp").glob("wherry-65534/wherry/*"))
    assert left == []


def test_doctor_says_what_why_and_the_fix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With nothing in PATH nearly everything is amiss; each finding that is no PASS explains itself."""
    monkeypatch.setenv("PATH", str(tmp_path))
    findings = examine(Instance.at(tmp_path))
    assert len(findings) == len(CHECKS)
    assert len({each.name for each in findings}) == len(CHECKS)
    bad = [each for each in findings if each.grade is not Grade.PASS]
    assert {"oci-runtime", "conmon"} <= {each.name for each in bad}
    for each in bad:
        assert each.seen, each
        assert each.why, each
        assert each.fix, each
    assert all(not each.fix for each in findings if each.grade is Grade.PASS)


def test_doctor_as_a_command(wherry: Wherry) -> None:
    lines = wherry("doctor").splitlines()
    assert lines[0].startswith("PASS  python")
    for before, line in itertools.pairwise(lines):
        if before.startswith(("WARN", "FAIL")):
            assert line.strip().startswith("why: ")
    document = wherry("doctor", "-o", "json")
    assert {"name", "grade", "seen"} <= json.loads(document)[0].keys()
