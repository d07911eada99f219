"""--network container:NAME and --pid container:NAME by the stock client."""

import pytest

from tests.doors.conftest import Docker

pytestmark = pytest.mark.root


def test_another_container_s_network(newest: Docker) -> None:
    id = newest("run", "-d", "--name", "web", "--hostname", "boat", "web:1", "sleep", "100").out.strip()
    look = (
        "sh",
        "-c",
        "cat /proc/net/dev /etc/hosts /etc/hostname | wc -c; ls -l /proc/self/ns/net; cat /etc/hostname",
    )
    done = newest("run", "--name", "side", "--network", "container:web", "web:1", *look)
    here = newest("exec", "web", "ls", "-l", "/proc/self/ns/net").out
    assert here.split(" -> ")[1] in done.out
    assert done.out.endswith("boat\n")
    assert newest("inspect", "-f", "{{.HostConfig.NetworkMode}}", "side").out == f"container:{id}\n"
    assert "conflicting options" in newest("create", "--network", "container:web", "-p", "80", "web:1", code=1).err
    assert "No such container" in newest("create", "--network", "container:none", "web:1", code=1).err
    newest("rm", "-f", "web")
    assert newest("start", "side", code=1).err


def test_another_container_s_processes(newest: Docker) -> None:
    newest("run", "-d", "--name", "web", "web:1", "sleep", "100")
    assert "sleep\x00100" in newest("run", "--rm", "--pid", "container:web", "web:1", "cat", "/proc/1/cmdline").out
    newest("run", "-d", "--name", "side", "--pid", "container:web", "web:1", "sh", "-c", "sleep 50 & sleep 60")
    newest("rm", "-f", "side")
    newest("exec", "web", "true")
    newest("stop", "-t", "0", "web")
    assert "does not run" in newest("create", "--pid", "container:web", "web:1", code=1).err
