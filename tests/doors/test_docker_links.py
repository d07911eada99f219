"""`--link`: names of other containers, and variables that describe them."""

import pytest

from tests.doors.conftest import Docker
from wherry.engine.joins import link_variables

pytestmark = pytest.mark.root


def test_variables_of_a_link() -> None:
    made = link_variables("app", "data-base", "10.1.1.1", [(80, "tcp"), (53, "udp")], ["A=1=2", "PATH=/bin", "HOME=/"])
    assert made == [
        "DATA_BASE_NAME=/app/data-base",
        "DATA_BASE_PORT=tcp://10.1.1.1:80",
        "DATA_BASE_PORT_80_TCP=tcp://10.1.1.1:80",
        "DATA_BASE_PORT_80_TCP_ADDR=10.1.1.1",
        "DATA_BASE_PORT_80_TCP_PORT=80",
        "DATA_BASE_PORT_80_TCP_PROTO=tcp",
        "DATA_BASE_PORT_53_UDP=udp://10.1.1.1:53",
        "DATA_BASE_PORT_53_UDP_ADDR=10.1.1.1",
        "DATA_BASE_PORT_53_UDP_PORT=53",
        "DATA_BASE_PORT_53_UDP_PROTO=udp",
        "DATA_BASE_ENV_A=1=2",
    ]


def test_a_link_on_the_default_network(newest: Docker) -> None:
    newest("run", "-d", "--name", "db", "-e", "KEY=1", "--expose", "5432", "web:1", "sleep", "100")
    address = newest("inspect", "-f", "{{.NetworkSettings.IPAddress}}", "db").out.strip()
    done = newest("run", "--name", "app", "--link", "db:base", "web:1", "sh", "-c", "env; cat /etc/hosts")
    lines = done.out.splitlines()
    assert f"BASE_PORT_5432_TCP=tcp://{address}:5432" in lines
    assert "BASE_ENV_KEY=1" in lines
    assert any(line.startswith(f"{address}\tbase ") and line.endswith(" db") for line in lines)
    assert newest("inspect", "-f", "{{len .HostConfig.Links}}", "app").out == "1\n"
    newest("stop", "-t", "0", "db")
    assert "Cannot link to a non running container" in newest("start", "-a", "app", code=1).err
    assert "No such container: none" in newest("create", "--link", "none:x", "web:1", code=1).err
    newest("start", "db")
    newest("start", "-a", "app")
    said = newest("create", "--network", "host", "--link", "db", "web:1", code=1).err
    assert "conflicting options" in said


def test_a_link_on_a_network_of_ones_own_is_a_name(newest: Docker) -> None:
    newest("network", "create", "boats")
    try:
        newest("run", "-d", "--network", "boats", "--name", "db", "web:1", "sleep", "100")
        done = newest(
            "run", "--rm", "--network", "boats", "--link", "db:base", "web:1", "sh", "-c", "env; cat /etc/hosts"
        )
        assert "\tbase " in done.out
        assert "BASE_" not in done.out
        assert "does not belong to a network" in newest("run", "--rm", "--link", "db:base", "web:1", code=125).err
        newest("rm", "-f", "db")
    finally:
        newest("network", "rm", "boats")
