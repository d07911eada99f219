"""What instances take and give back, by several processes at once."""

import os
import socket
import subprocess
import sys
from ipaddress import IPv4Network
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wherry.errors import AlreadyExists, Invalid, Unavailable
from wherry.network import ranges
from wherry.network.claims import Claim, Claims, networks_in_use
from wherry.network.ranges import Ranges


@pytest.fixture
def claims(tmp_path: Path) -> Claims:
    return Claims(str(tmp_path / "claims"), busy=[])


def dead(claims: Claims, instance: str, root: str, **more: str) -> Claim:
    """Claim by a process that has ended."""
    with subprocess.Popen(["sleep", "60"]) as process:
        made = claims.claim(instance, root, owner=process.pid, **more)
        process.kill()
    return made


def test_instances_get_ranges_apart_and_keep_them(claims: Claims, tmp_path: Path) -> None:
    made = [claims.claim(f"{number:08x}", str(tmp_path)) for number in range(20)]
    taken = [IPv4Network(text) for claim in made for text in (claim.pods, claim.services, claim.links)]
    assert not [pair for pair in combinations(taken, 2) if pair[0].overlaps(pair[1])]
    assert all(network.subnet_of(IPv4Network("10.64.0.0/10")) for network in taken)
    assert claims.claim("00000003", str(tmp_path)) == made[3]
    assert made[0].link_pair(2)[0].startswith(str(IPv4Network(made[0].links)[9]))


def test_what_the_machine_has_is_left_alone(tmp_path: Path) -> None:
    claims = Claims(str(tmp_path / "claims"), busy=["10.64.0.0/15", "10.66.3.0/24", "10.127.255.1/32"])
    made = claims.claim("aa", str(tmp_path))
    assert made.pods == "10.67.0.0/16"
    assert made.services == "10.127.224.0/20"


def test_wishes_are_granted_when_they_are_free(claims: Claims, tmp_path: Path) -> None:
    first = claims.claim("aa", str(tmp_path), pods="10.70.0.0/16")
    second = claims.claim("bb", str(tmp_path), pods="10.70.0.0/16")
    assert first.pods == "10.70.0.0/16"
    assert second.pods == "10.64.0.0/16"


def test_names_and_instances_have_one_holder(claims: Claims, tmp_path: Path) -> None:
    claims.claim("aa", str(tmp_path), name="dev")
    with pytest.raises(AlreadyExists, match="the name 'dev' belongs to"):
        claims.claim("bb", str(tmp_path), name="dev")
    with subprocess.Popen(["sleep", "60"]) as process:
        claims.claim("cc", str(tmp_path), owner=process.pid)
        with pytest.raises(AlreadyExists, match=f"hands of process {process.pid}"):
            claims.claim("cc", str(tmp_path))
        process.kill()
    assert claims.claim("cc", str(tmp_path)).owner[1] == os.getpid()


def test_a_dead_instance_keeps_its_ranges_while_its_state_is_there(claims: Claims, tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    before = dead(claims, "aa", str(root))
    assert claims.claim("bb", str(tmp_path)).pods != before.pods
    assert claims.claim("aa", str(root)).pods == before.pods
    claims.release("aa")
    dead(claims, "aa", str(root))
    root.rmdir()
    assert [claim.instance for claim in claims.all()] == ["bb"]


def test_released_ranges_come_back(claims: Claims, tmp_path: Path) -> None:
    first = claims.claim("aa", str(tmp_path))
    claims.release("aa")
    claims.release("aa")
    assert claims.claim("bb", str(tmp_path)).pods == first.pods


def test_a_full_pool_is_said(tmp_path: Path) -> None:
    claims = Claims(str(tmp_path / "claims"), busy=[], pool="10.64.0.0/15")
    claims.claim("aa", str(tmp_path))
    with pytest.raises(Unavailable, match=r"no /16 is free in 10\.64\.0\.0/15"):
        claims.claim("bb", str(tmp_path))


def test_ports_are_taken_once(claims: Claims, tmp_path: Path) -> None:
    claims.claim("aa", str(tmp_path))
    claims.claim("bb", str(tmp_path))
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        busy = other.getsockname()[1]
        first = claims.claim_port("aa", [busy])
    assert first != busy
    assert claims.claim_port("aa", [first]) == first
    assert claims.claim_port("bb", [first]) != first


def test_the_last_instance_puts_settings_back(claims: Claims, tmp_path: Path) -> None:
    for instance in ("aa", "bb"):
        claims.claim(instance, str(tmp_path))
    claims.note_before("aa", "net.ipv4.ip_forward", "0")
    claims.note_before("aa", "net.ipv4.ip_forward", "1")
    assert claims.release("aa") == {}
    assert claims.release("bb") == {"net.ipv4.ip_forward": "0"}


def test_processes_racing_for_ranges_never_share(tmp_path: Path) -> None:
    script = (
        "import sys, os\nfrom wherry.network.claims import Claims\n"
        "print(Claims(sys.argv[1], busy=[]).claim(sys.argv[2], '/').pods)"
    )
    directory = str(tmp_path / "claims")
    racers = [
        subprocess.Popen([sys.executable, "-c", script, directory, f"{number}"], stdout=subprocess.PIPE)
        for number in range(6)
    ]
    outputs = [racer.communicate(timeout=30)[0].decode().strip() for racer in racers]
    assert len(set(outputs)) == 6
    assert all(output.endswith("/16") for output in outputs)


def test_damaged_files_do_not_stop_anybody(claims: Claims, tmp_path: Path) -> None:
    claims.claim("aa", str(tmp_path))
    (tmp_path / "claims" / "bb.json").write_text("{")
    assert [claim.instance for claim in claims.all()] == ["aa"]


def test_the_machines_own_networks_are_seen() -> None:
    assert IPv4Network("127.0.0.0/8") in networks_in_use()


@given(st.lists(st.integers(0, 15), max_size=15))
def test_the_first_free_subnet_is_found_from_both_ends(busy: list[int]) -> None:
    taken = [IPv4Network((int(IPv4Network("10.0.0.0/20")[0]) + number * 256, 24)) for number in busy]
    free = sorted(set(range(16)) - set(busy))
    for from_end, number in ((False, free[0]), (True, free[-1])):
        assert ranges.first_free("10.0.0.0/20", 24, taken, from_end=from_end) == f"10.0.{number}.0/24"


@pytest.mark.parametrize(
    ("pods", "services", "node", "words"),
    [
        ("10.64.0.0/16", "10.112.0.0/20", "10.65.1.0/24", "is not in the cluster's"),
        ("10.64.0.0/16", "10.64.128.0/20", "10.64.1.0/24", "overlap"),
        ("10.64.0.0/16", "10.112.0.0/20", "10.64.1.0/31", "prefix of 16 to 30"),
        ("10.64.0.1/16", "10.112.0.0/20", "10.64.1.0/24", "no IPv4 network"),
    ],
)
def test_ranges_that_do_not_fit_are_refused(pods: str, services: str, node: str, words: str) -> None:
    with pytest.raises(Invalid, match=words):
        Ranges(pods=pods, services=services, node=node)


def test_nodes_ranges_are_cut_in_order() -> None:
    cut = ranges.node_ranges("10.64.0.0/16")
    assert [next(cut), next(cut)] == ["10.64.1.0/24", "10.64.2.0/24"]
