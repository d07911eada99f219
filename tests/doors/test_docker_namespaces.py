"""Namespaces, names, cgroups, security options and runtimes of a container by the stock client."""

import json
import os
from pathlib import Path

import pytest

from tests.doors.conftest import Docker
from wherry.clock import machine
from wherry.doors.docker.security import read_security
from wherry.errors import BadRequest

pytestmark = pytest.mark.root


def config_of(newest: Docker, name: str, part: str = "HostConfig") -> dict[str, object]:
    return json.loads(newest("inspect", name).out)[0][part]


def test_names_and_domains(newest: Docker) -> None:
    script = "cat /proc/sys/kernel/domainname /etc/hostname; head -n 99 /etc/hosts"
    argv = ("-h", "boat", "--domainname", "example.org", "--mac-address", "02:42:0a:00:00:99")
    done = newest(
        "run", "--name", "web", *argv, "web:1", "sh", "-c", f"{script}; cat /sys/class/net/eth0/address"
    )  # fmt: skip
    lines = done.out.splitlines()
    assert lines[:2] == ["example.org", "boat"]
    assert any(line.endswith("\tboat.example.org boat") for line in lines)
    assert lines[-1] == "02:42:0a:00:00:99"
    config = config_of(newest, "web", "Config")
    assert (config["Hostname"], config["Domainname"]) == ("boat", "example.org")
    own = os.uname().nodename
    done = newest(
        "run", "--name", "host", "--uts", "host", "web:1", "sh", "-c", "cat /proc/sys/kernel/hostname; echo $HOSTNAME"
    )
    assert done.out == f"{own}\n{own}\n"
    assert config_of(newest, "host")["UTSMode"] == "host"
    assert "conflicting options" in newest("create", "--uts", "host", "-h", "x", "web:1", code=1).err
    assert newest("run", "--rm", "--network", "none", "web:1", "ls", "/sys/class/net").out == "lo\n"


def test_shared_memory_of_nobody_of_one_and_of_another(newest: Docker) -> None:
    look = "mount | while read a b c d; do [ $c = /dev/shm ] && echo there; done; true"
    assert newest("run", "--rm", "--ipc", "none", "web:1", "sh", "-c", look).out == ""
    assert newest("run", "--rm", "web:1", "sh", "-c", look).out == "there\n"
    script = "echo hi > /dev/shm/x; sleep 100"
    id = newest("run", "-d", "--name", "donor", "--ipc", "shareable", "web:1", "sh", "-c", script).out.strip()
    while newest("exec", "donor", "ls", "/dev/shm").out != "x\n":
        machine.pause(0.02)
    assert newest("run", "--name", "other", "--ipc", "container:donor", "web:1", "cat", "/dev/shm/x").out == "hi\n"
    assert config_of(newest, "other")["IpcMode"] == f"container:{id}"
    assert config_of(newest, "donor")["IpcMode"] == "shareable"
    newest("run", "-d", "--name", "private", "web:1", "sleep", "100")
    assert "non-shareable IPC" in newest("create", "--ipc", "container:private", "web:1", code=1).err
    newest("stop", "-t", "0", "donor")
    assert "non running" in newest("start", "-a", "other", code=1).err
    assert "IPC mode" in newest("create", "--ipc", "strange", "web:1", code=None).err.replace("ipc", "IPC")


def test_its_group_and_the_namespace_of_groups(newest: Docker) -> None:
    own = newest("run", "--rm", "--cgroupns", "private", "web:1", "cat", "/proc/self/cgroup").out.splitlines()
    assert all(line.endswith(":/") for line in own)
    parent = f"/wherry-test-{os.getpid()}"
    done = newest(
        "run", "-d", "--name", "web", "--cgroupns", "host", "--cgroup-parent", f"{parent}/inner", "web:1", "sleep", "100"
    )  # fmt: skip
    lines = newest("exec", "web", "cat", "/proc/1/cgroup").out.splitlines()
    assert all(line.partition(":/")[2].startswith(f"{parent[1:]}/inner/{done.out.strip()}") for line in lines)
    assert config_of(newest, "web")["CgroupParent"] == f"{parent}/inner"
    newest("update", "--pids-limit", "9", "web")
    newest("rm", "-f", "web")
    root = Path("/sys/fs/cgroup")
    deadline = machine.monotonic() + 10
    while any((each / parent[1:]).exists() for each in (root, *root.iterdir())):  # what was made for it goes, behind
        assert machine.monotonic() < deadline
        machine.pause(0.02)
    assert "without '..'" in newest("create", "--cgroup-parent", "/../x", "web:1", code=1).err
    newest("create", "--name", "below", "--cgroup-parent", "mine", "web:1", "true")
    newest("start", "-a", "below")


def test_what_is_hidden_and_what_is_filtered(newest: Docker, tmp_path: Path) -> None:
    masked = "mount | while read a b c d; do case $c in /proc/*|/sys/firmware*) echo $c;; esac; done"
    assert "/proc/sys" in newest("run", "--rm", "web:1", "sh", "-c", masked).out
    newest(
        "run", "--name", "open", "--security-opt", "systempaths=unconfined", "web:1", "sh", "-c", f"{masked}; true"
    )  # fmt: skip
    assert newest("logs", "open").out == ""
    assert config_of(newest, "open")["MaskedPaths"] == []
    profile = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["utimensat", "utimes", "utime"], "action": "SCMP_ACT_ERRNO"}],
    }
    (tmp_path / "profile.json").write_text(json.dumps(profile))
    own = f"seccomp={tmp_path / 'profile.json'}"
    for runtime in ("crun", "runc"):
        argv = ("--runtime", runtime, "--security-opt", own, "web:1")
        assert "not permitted" in newest("run", "--rm", *argv, "touch", "/tmp/a", code=1).err
    status = "while read a b; do case $a in Seccomp:|NoNewPrivs:) echo $a $b;; esac; done < /proc/self/status"
    filtered = newest(
        "run", "--rm", "--security-opt", own, "--security-opt", "no-new-privileges", "web:1", "sh", "-c", status
    )
    assert filtered.out == "NoNewPrivs: 1\nSeccomp: 2\n"
    free = newest("run", "--rm", "--security-opt", "seccomp=unconfined", "web:1", "sh", "-c", status)
    assert free.out == "NoNewPrivs: 0\nSeccomp: 0\n"
    (tmp_path / "profile.json").write_text("{}")
    assert "seccomp profile" in newest("create", "--security-opt", own, "web:1", code=1).err
    warned = newest("create", "--name", "armed", "--security-opt", "apparmor=mine", "web:1")
    if not Path("/sys/module/apparmor").exists():
        assert "AppArmor" in warned.err
    assert config_of(newest, "armed")["SecurityOpt"] == ["apparmor=mine"]


@pytest.mark.parametrize("option", ["strange", "strange=1", "no-new-privileges=perhaps", "seccomp={"])
def test_security_options_that_are_none(option: str) -> None:
    with pytest.raises(BadRequest, match=r"security-opt|seccomp"):
        read_security([option])


def test_runtimes_annotations_and_groups_by_name(newest: Docker) -> None:
    for runtime in ("crun", "runc"):
        name = f"by-{runtime}"
        newest("run", "-d", "--name", name, "--runtime", runtime, "--annotation", "boat=1", "web:1", "sleep", "100")
        assert newest("exec", name, "echo", "in").out == "in\n"
        host = config_of(newest, name)
        assert (host["Runtime"], host["Annotations"]) == (runtime, {"boat": "1"})
        newest("pause", name)
        newest("rm", "-f", name)
    assert "unknown or invalid runtime name: strange" in newest("create", "--runtime", "strange", "web:1", code=1).err
    assert "no matching entries in group file" in newest("run", "--group-add", "none", "web:1", code=125).err
    id = newest("create", "-u", "none", "web:1").out.strip()  # the start fails, as with a command that is not there
    assert "no matching entries in passwd file" in newest("start", id, code=1).err
    assert "29" in newest("run", "--rm", "--group-add", "29", "web:1", "id", "-G").out.split()


def test_sysctls_and_scores_stay_the_containers_own(newest: Docker) -> None:
    script = "cat /proc/sys/net/ipv4/ip_local_port_range /proc/sys/kernel/shmmni"
    argv = ("--sysctl", "net.ipv4.ip_local_port_range=2000 3000", "--sysctl", "kernel.shmmni=77")
    assert newest("run", "--rm", *argv, "web:1", "sh", "-c", script).out.split() == ["2000", "3000", "77"]
    said = newest("create", "--sysctl", "kernel.shmmni=77", "--ipc", "host", "web:1", code=1).err
    assert "not allowed in host ipc namespace" in said
    said = newest("create", "--sysctl", "net.core.somaxconn=77", "--network", "host", "web:1", code=1).err
    assert "not allowed in host network namespace" in said
    assert "[-1000, 1000]" in newest("create", "--oom-score-adj", "-1001", "web:1", code=1).err
    done = newest("run", "--rm", "--oom-score-adj", "-500", "web:1", "cat", "/proc/self/oom_score_adj")
    assert done.out == "-500\n" or "oom-score-adj" in done.err
