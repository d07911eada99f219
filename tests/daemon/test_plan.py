"""An instance's places and its plan on disk."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from wherry.daemon.instance import Instance, NodePlan, Plan, environment, reachable_by, unprivileged_uid
from wherry.errors import Conflict, Invalid, NotFound

PLAN = Plan(
    id="0123abcd",
    profile="default",
    nodes=(NodePlan("node-1", 1, True, False, "10.65.1.0/24", "10.65.1.1"),),
    service_cidr="10.66.0.0/20",
    pod_cidr="10.65.0.0/16",
    server_uid=61200,
    api_port=6443,
    registry_port=5000,
)


@pytest.fixture
def instance(tmp_path: Path) -> Instance:
    return Instance.at(tmp_path)


def test_a_plan_is_read_as_it_was_written(instance: Instance) -> None:
    instance.save(PLAN)
    assert instance.load() == PLAN
    instance.save(msgspec.structs.replace(PLAN, nodes=()))
    assert instance.load().nodes == ()
    assert [path.name for path in instance.root.iterdir()] == ["instance.json"]


def test_where_nothing_was_made_the_error_names_the_command(instance: Instance) -> None:
    with pytest.raises(NotFound, match=f"wherry up --root {instance.root}"):
        instance.load()


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (b"", "instance.json"),
        (b'{"id": "0123', "instance.json"),
        (b"[]", "object"),
        (b'{"id": "0123abcd", "profile": "slow"}', "profile"),
        (b"\xff\xfe\x00", "instance.json"),
        (b"{}", "id"),
    ],
)
def test_a_damaged_plan_is_named_never_overwritten(instance: Instance, damage: bytes, named: str) -> None:
    instance.plan_path.write_bytes(damage)
    with pytest.raises(Invalid, match=named):
        instance.load()
    done = subprocess.run(
        [sys.executable, "-m", "wherry.cli.main", "up", "--detach", "--simulated", "1", "--root", str(instance.root)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 1
    assert "instance.json" in done.stderr
    assert "Traceback" not in done.stderr
    assert instance.plan_path.read_bytes() == damage


def test_of_two_commands_one_is_at_work(instance: Instance) -> None:
    first = instance.lock()
    with pytest.raises(Conflict, match="another wherry command"):
        instance.lock()
    os.close(first)
    os.close(instance.lock())


def test_an_id_follows_from_the_root_and_sockets_fit(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    assert Instance.at(tmp_path / "real") == Instance.at(tmp_path / "link")
    deep = Instance.at(tmp_path.joinpath(*["deeper" * 4] * 8))
    assert deep.id != Instance.at(tmp_path / "real").id
    assert len(deep.id) == 8
    assert len(str(deep.docker_socket("n" * 40))) < 108


def test_the_servers_user_is_its_own(tmp_path: Path) -> None:
    uids = {unprivileged_uid(Instance.at(tmp_path / str(number)).id) for number in range(50)}
    assert all(61184 <= uid < 65184 for uid in uids)
    assert len(uids) > 40


def test_who_can_reach_a_path(tmp_path: Path) -> None:
    """The mode bits of the path and of all directories above decide."""
    assert reachable_by(61200, "/usr/bin/env")
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    (closed / "file").write_text("x")
    assert not reachable_by(61200, closed / "file")
    assert reachable_by(os.geteuid(), closed / "file") or not reachable_by(os.geteuid(), tmp_path)
    assert not reachable_by(61200, tmp_path / "none")


def test_roles_get_settings_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s")
    monkeypatch.setenv("PYTHONPATH", "/nowhere")
    monkeypatch.setenv("WHERRY_LOG_LEVEL", "debug")
    found = environment({"EXTRA": "1"})
    assert found["WHERRY_LOG_LEVEL"] == "debug"
    assert found["EXTRA"] == "1"
    assert "AWS_SECRET_ACCESS_KEY" not in found
    assert "PYTHONPATH" not in found


def test_a_port_that_another_program_has_taken_is_named_at_once(tmp_path: Path) -> None:
    root = tmp_path / "w"
    words = [sys.executable, "-m", "wherry.cli.main"]
    up = [*words, "up", "--detach", "--nodes", "0", "--simulated", "1", "--durability", "test", "--root", str(root)]
    down = [*words, "down", "--root", str(root)]
    subprocess.run(up, check=True, capture_output=True, timeout=60)
    subprocess.run(down, check=True, capture_output=True, timeout=60)
    port = Instance.at(root).load().api_port
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        refused = subprocess.run(up, capture_output=True, text=True, timeout=60, check=False)
    assert refused.returncode == 1
    assert f"port {port}" in refused.stderr
    assert "ss -ltnp" in refused.stderr
    subprocess.run([*down, "--purge"], check=True, capture_output=True, timeout=60)
