"""How a start is measured and waited for: the line in each log, and whose readiness counts."""

import re
from pathlib import Path

import pytest

from wherry.clock import machine
from wherry.daemon import status
from wherry.daemon.instance import Instance, NodePlan
from wherry.daemon.phases import Phases


def test_the_phases_of_a_start_add_up_to_its_time() -> None:
    phases = Phases()
    machine.pause(0.02)
    phases.mark("one thing")
    phases.mark("another")
    found = re.fullmatch(r"after ([0-9.]+) s \((.*)\)", str(phases))
    assert found is not None
    parts = {name: float(seconds) for name, _, seconds in (each.rpartition(" ") for each in found[2].split(", "))}
    assert list(parts) == ["python", "one thing", "another"]
    assert parts["one thing"] >= 0.02
    assert sum(parts.values()) == pytest.approx(float(found[1]), abs=0.002)


def test_a_node_is_ready_by_an_agent_of_this_start_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a restart the store still says Ready of the agents before: `wherry up` came back before they were there."""
    instance = Instance.at(tmp_path / "root", tmp_path / "run")
    real = NodePlan("node-1", 1, real=True, apart=False, pod_cidr="10.64.0.0/24")
    simulated = NodePlan("sim-1", 2, real=False, apart=False, pod_cidr="10.64.1.0/24")
    monkeypatch.setattr(status, "nodes_of", lambda instance: {"node-1": True, "sim-1": True})
    monkeypatch.setattr(status, "get", lambda path, target: (200, b"ok"))
    for node in (real, simulated):
        instance.node_run(node.name).mkdir(parents=True)
    instance.registry_socket.parent.mkdir(parents=True)
    instance.registry_socket.touch()
    assert not status.is_ready(instance, [real, simulated])
    instance.heartbeat("node-1").touch()
    assert status.is_ready(instance, [real])
    assert not status.is_ready(instance, [real, simulated])
    instance.agent_socket("sim-1").touch()
    assert status.is_ready(instance, [real, simulated])
