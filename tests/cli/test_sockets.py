"""Which socket a command speaks to, and how it writes its words into a request."""

import os
import subprocess
import sys
from pathlib import Path
from urllib.parse import parse_qsl, unquote

import pytest

from wherry.cli import engine
from wherry.daemon.instance import Instance, NodePlan, Plan


def plan(instance: Instance, *nodes: NodePlan) -> Plan:
    return Plan(
        id=instance.id, profile="default", nodes=nodes, service_cidr="10.96.0.0/20", pod_cidr="10.64.0.0/16", server_uid=0,
        api_port=0, registry_port=0,
    )  # fmt: skip


def node(name: str, *, real: bool) -> NodePlan:
    return NodePlan(name=name, index=1, real=real, apart=False, pod_cidr="10.64.1.0/24")


@pytest.mark.parametrize("user", [0, 1000])
def test_the_socket_is_that_of_the_first_real_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, user: int) -> None:
    """Read by hand where that is quicker, it is the same path that those who know instances would say."""
    monkeypatch.setattr(os, "geteuid", lambda: user)
    instance = Instance.at(tmp_path)
    instance.save(plan(instance, node("shadow", real=False), node("b", real=True), node("c", real=True)))
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    monkeypatch.setenv("WHERRY_ROOT", str(tmp_path))
    assert engine.socket_path() == str(instance.docker_socket("b"))


def test_an_instance_without_a_real_node_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    instance = Instance.at(tmp_path)
    instance.save(plan(instance, node("shadow", real=False)))
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    monkeypatch.setenv("WHERRY_ROOT", str(tmp_path))
    with pytest.raises(engine.Refused, match="simulated nodes only"):
        engine.socket_path()


@pytest.mark.parametrize("text", ["web:1", "a b&c=d", "ü/ß?#", "", "100%", '{"label":["x=y"]}', "-._~"])
def test_words_survive_the_way_into_a_request(text: str) -> None:
    assert unquote(engine.part(text)) == text
    query = "&".join(engine._pairs({"t": [text, text], "none": None, "n": 3}))  # pyright: ignore[reportPrivateUsage]
    assert parse_qsl(query, keep_blank_values=True) == [("t", text), ("t", text), ("n", "3")]


def test_a_command_for_containers_imports_nearly_nothing() -> None:
    """These cost more to import than the request takes (see benchmarks/RESULTS.md, engine.py)."""
    heavy = (
        "dataclasses",
        "inspect",
        "urllib.parse",
        "ipaddress",
        "msgspec",
        "asyncio",
        "hashlib",
        "http.client",
        "argparse",
    )
    code = f"import sys, wherry.cli.containers; print(*[name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout.split() == []
