"""Namespaces made, pinned and visited without moving the daemon's own threads."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from wherry.errors import Broken
from wherry.host import namespaces

pytestmark = pytest.mark.root


@pytest.fixture
def pins(tmp_path: Path) -> Iterator[str]:
    directory = str(tmp_path / "ns")
    yield directory
    namespaces.remove(directory)
    assert not os.path.exists(directory)


def own(kind: str) -> str:
    return os.readlink(f"/proc/thread-self/ns/{kind}")


def test_new_namespaces_are_pinned_and_ours_stay(pins: str) -> None:
    before = [own(kind) for kind in ("net", "ipc", "uts")]
    name = socket.gethostname()
    made = namespaces.create(pins, hostname="pod-a", sysctls={"net.ipv4.ip_unprivileged_port_start": "0"})
    assert sorted(made) == ["ipc", "net", "uts"]
    assert [own(kind) for kind in ("net", "ipc", "uts")] == before
    assert socket.gethostname() == name
    assert namespaces.inside(made["uts"], socket.gethostname, kind="uts") == "pod-a"
    read = lambda: namespaces.read_sysctl("net.ipv4.ip_unprivileged_port_start")  # noqa: E731
    assert namespaces.inside(made["net"], read) == "0"
    again = namespaces.create(pins)
    assert again == made
    assert namespaces.inside(made["net"], lambda: own("net")) not in before


def test_lo_is_up_inside(pins: str) -> None:
    made = namespaces.create(pins, ("net",))
    with namespaces.socket_inside(made["net"], socket.AF_INET, socket.SOCK_STREAM) as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        with namespaces.socket_inside(made["net"], socket.AF_INET, socket.SOCK_STREAM) as client:
            client.settimeout(5)
            client.connect(server.getsockname())
    with pytest.raises(ConnectionRefusedError), socket.socket() as outside:
        outside.connect(("127.0.0.1", 1))


async def test_the_loop_goes_on_meanwhile(pins: str) -> None:
    made = await namespaces.create_async(pins, ("net", "uts"), hostname="b")
    assert await namespaces.inside_async(made["uts"], socket.gethostname, kind="uts") == "b"
    with pytest.raises(ZeroDivisionError):
        await namespaces.inside_async(made["net"], lambda: 1 / 0)


def test_a_failure_leaves_nothing(pins: str) -> None:
    with pytest.raises(Broken, match=r"sysctl net\.no\.such"):
        namespaces.create(pins, sysctls={"net.no.such": "1"})
    assert os.listdir(pins) == []
    with pytest.raises(Broken, match="no such setting"):
        namespaces.sysctl("../../etc/passwd", "x")


def test_what_is_no_namespace_is_refused(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_text("")
    assert not namespaces.is_pinned(str(plain))
    assert not namespaces.is_pinned(str(tmp_path / "absent"))
    with pytest.raises(Broken, match="Invalid argument"):
        namespaces.inside(str(plain), lambda: None)
    with pytest.raises(Broken, match="No such file"):
        namespaces.inside(str(tmp_path / "absent"), lambda: None)


def test_a_pin_left_by_a_reboot_is_made_anew(pins: str) -> None:
    os.makedirs(pins)
    Path(pins, "net").write_text("")
    made = namespaces.create(pins, ("net",))
    assert namespaces.is_pinned(made["net"])
