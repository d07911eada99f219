"""nftables and the connection tracker, in a network namespace of the test's own."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from wherry.errors import Broken
from wherry.host import conntrack, facts, namespaces, nftables
from wherry.host.nftables import Nft


@pytest.fixture
def netns(tmp_path: Path) -> Iterator[str]:
    pins = str(tmp_path / "ns")
    yield namespaces.create(pins, ("net",))["net"]
    namespaces.remove(pins)


@pytest.mark.root
async def test_a_transaction_is_done_whole_or_not_at_all(netns: str) -> None:
    with Nft(netns) as nft:
        await nft.run("add table ip t\nadd set ip t s { type ipv4_addr; }\nadd element ip t s { 10.0.0.1 }")
        with pytest.raises(Broken, match="nft: Error: No such file or directory add element"):
            await nft.run("add element ip t s { 10.0.0.2 }\nadd element ip t nowhere { 10.0.0.2 }")
        (held,) = [item["set"]["elem"] for item in await nft.read("list set ip t s") if "set" in item]
        assert held == ["10.0.0.1"]
        assert "10.0.0.1" not in await nft.read_text("list table ip t")
        await nft.run("")
    with Nft() as ours:
        assert {"family": "ip", "name": "t"} not in [
            {key: item["table"][key] for key in ("family", "name")} for item in await ours.read("list tables")
        ]


@pytest.mark.root
async def test_each_change_moves_the_generation_by_one(netns: str) -> None:
    with Nft(netns) as nft:
        before = await nft.generation()
        await nft.run("add table ip a\nadd table ip b")
        assert await nft.generation() == before + 1
        await nft.read("list ruleset")
        assert await nft.generation() == before + 1


@pytest.mark.root
def test_connections_are_listed_and_forgotten(netns: str) -> None:
    def body() -> None:
        with Nft() as nft:
            nft._thread.submit(
                nft._ready_and,
                lambda: nft._run("add table ip t\nadd chain ip t c { type filter hook output priority 0; }\n"
                                 "add rule ip t c ct state new accept", 0),
            ).result()  # fmt: skip
            with (
                socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server,
                socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client,
            ):
                server.bind(("127.0.0.1", 0))
                client.bind(("127.0.0.1", 0))
                client.sendto(b"x", server.getsockname())
                (flow,) = [flow for flow in conntrack.flows() if flow.source == client.getsockname()]
                assert (flow.protocol, flow.target, flow.answerer) == (17, server.getsockname(), server.getsockname())
                assert conntrack.forget(lambda each: each.source == flow.source) == 1
                assert conntrack.forget(lambda each: each.source == flow.source) == 0

    namespaces.inside(netns, body)


def test_the_machine_is_described() -> None:
    found = facts.read()
    assert found.cpus >= 1
    assert found.memory_bytes > 1 << 26
    assert found.cgroup in ("v1", "v2", "hybrid", "none")
    assert "proc" in found.filesystems
    assert len(found.boot_id) == 36
    assert found.has_nftables == nftables.is_there()
    assert facts.find_program("no-such-program") == ""
