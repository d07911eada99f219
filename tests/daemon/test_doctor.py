"""What `wherry doctor` says of the network: each walk in a network namespace of its own, where we may be somebody else."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from wherry.daemon import doctor_network
from wherry.daemon.findings import Finding, Grade
from wherry.daemon.instance import Instance


def examined(tmp_path: Path, before: str) -> dict[str, dict[str, str]]:
    """The findings in a fresh network namespace, after a shell did `before`."""
    command = f"{before} && exec {sys.executable} -m wherry.cli.main doctor -o json --root {tmp_path}"
    done = subprocess.run(
        ["unshare", "--net", "sh", "-ec", command], env={**os.environ, "PYTHONPATH": "src"}, capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip
    return {each["name"]: each for each in json.loads(done.stdout)}


@pytest.mark.root
def test_a_foreign_chain_that_drops_is_named_with_the_rule_that_mends_it(tmp_path: Path) -> None:
    policy = "{ type filter hook forward priority 0; policy drop; }"
    chain = f"nft add table inet strict; nft 'add chain inet strict transit {policy}'"
    found = examined(tmp_path, f"{chain}; echo 0 > /proc/sys/net/ipv4/ip_forward")
    walls = found["firewalls"]
    assert (walls["grade"], "chain inet strict transit" in walls["seen"]) == ("WARN", True)
    rule = next(each for each in walls["fix"].split("; ") if "iifname" in each)
    assert rule.startswith("nft insert rule inet strict transit iifname")
    assert (found["forwarding"]["grade"], "ip_forward = 0" in found["forwarding"]["seen"]) == ("PASS", True)
    assert found["rules"]["seen"] == "none of this instance, which is down"


@pytest.mark.root
def test_what_a_killed_instance_left_is_named_and_a_clean_machine_is_well(tmp_path: Path) -> None:
    table = f"wherry-{Instance.at(tmp_path).id}-pods"
    found = examined(tmp_path, f"nft add table ip {table}; echo 1 > /proc/sys/net/ipv4/ip_forward")
    assert (found["rules"]["grade"], f"ip {table}" in found["rules"]["seen"]) == ("WARN", True)
    assert found["rules"]["fix"] == f"wherry down --root {tmp_path}"
    assert found["firewalls"]["grade"] == "PASS"
    assert "ip_forward = 1" in found["forwarding"]["seen"]


def servers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, here: str, behind: str) -> Finding:
    for name, text in (("RESOLV", here), ("BEHIND", behind)):
        path = tmp_path / name
        if text:
            path.write_text(f"nameserver {text}\n")
        monkeypatch.setattr(doctor_network, name, path)
    return doctor_network.resolvers(Instance.at(tmp_path))


def test_a_stub_of_systemd_is_read_past(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = servers(tmp_path, monkeypatch, "127.0.0.53", "192.0.2.1")
    assert (found.grade, "192.0.2.1, read past systemd-resolved's stub 127.0.0.53" in found.seen) == (Grade.PASS, True)


def test_a_loopback_resolver_with_nothing_behind_it_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = servers(tmp_path, monkeypatch, "127.0.0.1", "")
    assert (found.grade, "only loopback resolvers (127.0.0.1)" in found.seen) == (Grade.WARN, True)


def test_forwarding_that_somebody_turned_off_is_a_warning_only_while_we_are_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = tmp_path / "ip_forward"
    setting.write_text("0\n")
    monkeypatch.setattr(doctor_network, "FORWARD", setting)
    instance = Instance(tmp_path, tmp_path, "00000000")
    assert doctor_network.forwarding(instance).grade is Grade.PASS
    instance.warden_socket.touch()
    found = doctor_network.forwarding(instance)
    assert (found.grade, found.fix) == (Grade.WARN, "sysctl -w net.ipv4.ip_forward=1")
