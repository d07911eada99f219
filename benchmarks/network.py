"""What the network costs: a pod attached, a service added among many, a name looked up, each beside its peer.

Run as root: `python benchmarks/network.py [ROUNDS]`. All of it happens in network namespaces of its own, and measurements
that are compared take turns, so that other load hits both alike. Nothing is left behind.

A peer of `attach` is what a shell script does: seven `ip` commands. The peer of one more service is the table written
anew, as a reload of a rules file does, and `nft -f` of the one element. That of DNS is dnslib making the same answer.
"""

import asyncio
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable

from wherry.clock import machine
from wherry.host import kernel, namespaces
from wherry.host.nftables import Nft
from wherry.network import dns_wire, flat, plans
from wherry.network.guard import Guard
from wherry.network.pods import LocalPodNetwork
from wherry.network.ranges import Ranges
from wherry.network.services import NftServices, table_name
from wherry.network.types import Port, Service
from wherry.network.zone import DnsService, Zone

RANGES = Ranges(pods="10.64.0.0/16", services="10.112.0.0/16", node="10.64.0.0/20")
INSTANCE = "be4c4b0b"
KEPT = frozenset({"e3"})


def row(what: str, times_s: list[float], note: str = "") -> None:
    """Print least and middle."""
    print(f"  {what:<58} {min(times_s) * 1000:9.2f} {statistics.median(times_s) * 1000:9.2f}  {note}")


async def timed(times_s: list[float], work: Callable[[], Awaitable[object]]) -> None:
    """Add how long `work` took."""
    begun = machine.monotonic()
    await work()
    times_s.append(machine.monotonic() - begun)


async def main(rounds: int) -> None:
    """Measure and print a table."""
    base = tempfile.mkdtemp(prefix="wherry-bench-", dir="/tmp")
    path = namespaces.create(f"{base}/host", ("net",))["net"]
    host = os.open(path, os.O_RDONLY)
    kernel.setns(host, kernel.CLONE_NEWNET, path)
    os.close(host)
    try:
        with Nft() as nft:
            guard = Guard(nft)
            pods = LocalPodNetwork(INSTANCE, 0, RANGES, f"{base}/pods", nft, guard)
            async with pods:
                print(f"  {'':<58} {'least ms':>9} {'median ms':>9}")
                await attach(base, pods, rounds)
                for count in (1_000, 10_000):
                    await one_more_service(nft, guard, count, rounds)
                names(rounds * 200)
    finally:
        for name in os.listdir(base):
            if os.path.isdir(f"{base}/{name}") and name != "pods":
                namespaces.remove(f"{base}/{name}")
        shutil.rmtree(base, ignore_errors=True)


async def attach(base: str, pods: LocalPodNetwork, rounds: int) -> None:
    """Time a pod's link, address and routes."""
    ours: list[float] = []
    made: list[float] = []
    theirs: list[float] = []
    away: list[float] = []
    for number in range(rounds):
        directory = f"{base}/pod{number}"
        await timed(made, lambda directory=directory: namespaces.create_async(directory))
        await timed(ours, lambda owner=f"p{number}", netns=f"{directory}/net": pods.attach(owner, netns))
        await timed(theirs, lambda number=number: by_commands(f"{base}/peer{number}", number))
        await timed(away, lambda owner=f"p{number}": pods.detach(owner))
        namespaces.remove(f"{base}/peer{number}")
    row("three namespaces of a sandbox made and pinned", made)
    row("pod attached: wherry", ours)
    row(
        "pod attached: `ip`, seven commands", theirs, f"{statistics.median(theirs) / statistics.median(ours):.1f} times"
    )
    row("pod detached: wherry (the kernel waits)", away)


async def by_commands(directory: str, number: int) -> None:
    """Do the same with the `ip` command in a namespace that is there already."""
    netns = namespaces.create(directory, ("net",))["net"]
    name, address = f"peer{number}", f"10.99.{number >> 8}.{number & 255}"
    fd = os.open(netns, os.O_RDONLY)
    inside = ["nsenter", f"--net={netns}"]
    for command in (
        ["ip", "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", f"/proc/{os.getpid()}/fd/{fd}"],
        ["ip", "link", "set", name, "up"],
        ["ip", "route", "add", f"{address}/32", "dev", name],
        [*inside, "ip", "link", "set", "eth0", "up"],
        [*inside, "ip", "address", "add", f"{address}/32", "dev", "eth0"],
        [*inside, "ip", "route", "add", "10.64.0.1", "dev", "eth0"],
        [*inside, "ip", "route", "add", "default", "via", "10.64.0.1"],
    ):
        subprocess.run(command, check=True)  # noqa: ASYNC221 (it is what is measured)
    os.close(fd)


def service(number: int) -> Service:
    """One of many services, with three backends."""
    address = f"10.112.{number >> 8}.{number & 255}"
    backends = [(f"10.64.{place}.{number % 250 + 2}", 8080) for place in (1, 2, 3)]
    return Service(f"default/s{number}", [address], [Port("TCP", 80, backends)])


async def one_more_service(nft: Nft, guard: Guard, count: int, rounds: int) -> None:
    """Time one change among `count` services, and the whole table."""
    table = NftServices(INSTANCE, RANGES, nft, guard)
    services = [service(number) for number in range(count)]
    full: list[float] = []
    await timed(full, lambda: table.sync(services))
    one: list[float] = []
    kernel_part: list[float] = []
    by_nft: list[float] = []
    for number in range(rounds):
        more = [*services, service(count + number)]
        await timed(one, lambda more=more: table.sync(more))
        await table.sync(services)
        fresh = plans.plan([service(count + number)])
        text = flat.changes(table_name(INSTANCE), flat.no_elements(), fresh.elements, KEPT, KEPT)
        await timed(kernel_part, lambda text=text: nft.run(text))
        undo = flat.changes(table_name(INSTANCE), fresh.elements, flat.no_elements(), KEPT, KEPT)
        await nft.run(undo)
        await timed(by_nft, lambda text=text: asyncio.to_thread(subprocess.run, ["nft", text], check=True))
        await nft.run(undo)
    for _ in range(2):
        await table.close(remove=True)
        await timed(full, lambda: table.sync(services))
    await table.close(remove=True)
    row(f"one service more among {count:,}: the kernel's part", kernel_part)
    row(f"one service more among {count:,}: with the plan of all", one)
    row(f"one service more among {count:,}: peer, nft command", by_nft)
    row(f"all {count:,} services written anew", full, f"{min(full) / min(one):.0f} times")


def names(count: int) -> None:
    """Time the making of one DNS answer, ours and dnslib's, in microseconds of one thread."""
    import dnslib

    zone = Zone()
    zone.sync(
        [DnsService("default", f"s{number}", [f"10.112.{number >> 8}.{number & 255}"]) for number in range(10_000)]
    )
    name = "s77.default.svc.cluster.local"
    query = bytes(dnslib.DNSRecord.question(name).pack())
    begun = machine.monotonic()
    for _ in range(count):
        question = dns_wire.parse(query)
        found = zone.lookup(question.name, question.kind)
        assert found is not None
        dns_wire.answer(question, found.records)
    ours_s = (machine.monotonic() - begun) / count
    begun = machine.monotonic()
    for _ in range(count):
        reply = dnslib.DNSRecord.parse(query).reply()
        reply.add_answer(dnslib.RR(name, rdata=dnslib.A("10.112.0.77"), ttl=5))
        reply.pack()
    theirs_s = (machine.monotonic() - begun) / count
    print(f"  a name among 10,000 services: wherry {ours_s * 1e6:.0f} us, dnslib {theirs_s * 1e6:.0f} us")


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 20))
