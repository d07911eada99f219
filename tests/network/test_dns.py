"""The DNS server as pods meet it, on loopback, with an upstream of the test's own."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import cast

import dnslib
import pytest

from wherry.errors import Broken, Unavailable
from wherry.network import dns_wire, upstream
from wherry.network.dns import DnsServer, DnsService, Zone
from wherry.network.upstream import parse_resolv_conf, read_resolvers

HERE = "127.0.0.1"


class Peer(asyncio.DatagramProtocol):
    """A resolver that answers A for everything but `nowhere`, and counts; silent names get nothing."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        made = self.answer(data)
        if made:
            self.transport.sendto(
                dnslib.DNSRecord(dnslib.DNSHeader(id=1, qr=1)).pack(), addr
            )  # a forgery that fits not
            self.transport.sendto(made, addr)

    def answer(self, data: bytes, *, tcp: bool = False) -> bytes:
        query = dnslib.DNSRecord.parse(data)
        name = str(query.q.qname)
        self.asked.append(f"{name}{'/tcp' if tcp else ''}")
        reply = query.reply()
        if name.startswith("silent"):
            return b""
        if name.startswith("nowhere"):
            reply.header.rcode = 3
            soa = dnslib.SOA("ns.example", "x.example", (1, 2, 3, 4, 9))
            reply.add_auth(dnslib.RR("example", dnslib.QTYPE.SOA, rdata=soa, ttl=60))
        elif name.startswith("big"):
            if not tcp:
                reply.header.tc = 1
            else:
                for number in range(100):
                    reply.add_answer(dnslib.RR(name, rdata=dnslib.A(f"10.9.9.{number}"), ttl=60))
        else:
            reply.add_answer(dnslib.RR(name, rdata=dnslib.A("198.51.100.7"), ttl=60))
        return bytes(reply.pack())

    async def by_tcp(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        data = await reader.readexactly(int.from_bytes(await reader.readexactly(2), "big"))
        made = self.answer(data, tcp=True)
        writer.write(len(made).to_bytes(2, "big") + made)
        writer.close()


@asynccontextmanager
async def peer() -> AsyncIterator[tuple[Peer, int]]:
    loop = asyncio.get_running_loop()
    made = Peer()
    server = await asyncio.start_server(made.by_tcp, HERE, 0)
    port = server.sockets[0].getsockname()[1]
    transport, _ = await loop.create_datagram_endpoint(lambda: made, local_addr=(HERE, port))
    yield made, port
    transport.close()
    server.close()


@asynccontextmanager
async def serving(port: int = 1, upstreams: tuple[str, ...] = (HERE,)) -> AsyncIterator[DnsServer]:
    server = DnsServer([HERE], port=0, zone=Zone(), upstreams=upstreams, upstream_port=port)
    server.sync(
        [DnsService("default", "web", ["10.112.0.9"]), DnsService("default", "out", external_name="far.example")]
    )
    async with server:
        yield server


async def ask(server: DnsServer, name: str, kind: str = "A", *, tcp: bool = False) -> dnslib.DNSRecord:
    query = bytes(dnslib.DNSRecord.question(name, kind).pack())
    return dnslib.DNSRecord.parse(await (by_tcp if tcp else by_udp)(server, query))


async def by_udp(server: DnsServer, data: bytes) -> bytes:
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.setblocking(False)
        client.connect((HERE, server.port))
        client.send(data)
        return await asyncio.wait_for(loop.sock_recv(client, 65535), 10)


async def by_tcp(server: DnsServer, data: bytes) -> bytes:
    reader, writer = await asyncio.open_connection(HERE, server.port)
    writer.write(len(data).to_bytes(2, "big") + data)
    made = await asyncio.wait_for(reader.readexactly(int.from_bytes(await reader.readexactly(2), "big")), 10)
    writer.close()
    return made


@pytest.mark.parametrize("tcp", [False, True])
async def test_our_names_are_answered_and_never_asked_of_others(tcp: bool) -> None:
    async with peer() as (other, port), serving(port) as server:
        found = await ask(server, "WEB.default.svc.cluster.local", tcp=tcp)
        assert (str(found.rr[0].rdata), str(found.rr[0].rname)) == ("10.112.0.9", "WEB.default.svc.cluster.local.")
        missing = await ask(server, "web.default.svc.cluster.local.default.svc.cluster.local", tcp=tcp)
        assert missing.header.rcode == 3
        assert missing.auth[0].rtype == dnslib.QTYPE.SOA
        no_data = await ask(server, "web.default.svc.cluster.local", "AAAA", tcp=tcp)
        assert (no_data.header.rcode, no_data.rr) == (0, [])
        assert not other.asked


async def test_other_names_are_asked_once_and_kept() -> None:
    async with peer() as (other, port), serving(port) as server:
        answers = await asyncio.gather(*(ask(server, "far.example") for _ in range(20)))
        assert {str(answer.rr[0].rdata) for answer in answers} == {"198.51.100.7"}
        assert len({answer.header.id for answer in answers}) > 1
        await ask(server, "FAR.example")
        assert (await ask(server, "nowhere.example")).header.rcode == 3
        assert (await ask(server, "nowhere.example")).header.rcode == 3
        assert other.asked == ["far.example.", "nowhere.example."]


async def test_long_answers_come_by_tcp() -> None:
    async with peer() as (other, port), serving(port) as server:
        assert (await ask(server, "big.example")).header.tc == 1
        assert len((await ask(server, "big.example", tcp=True)).rr) == 100
        cut = await ask(server, "big.example")
        assert (cut.header.tc, cut.rr) == (1, [])
        assert other.asked == ["big.example.", "big.example./tcp"]


async def test_another_name_for_something_outside_is_followed() -> None:
    async with peer() as (_, port), serving(port) as server:
        found = await ask(server, "out.default.svc.cluster.local")
        assert [str(rr.rdata) for rr in found.rr] == ["far.example.", "198.51.100.7"]


async def test_nobody_answering_is_a_failure_in_good_time(monkeypatch: pytest.MonkeyPatch) -> None:
    async with peer() as (_, port):
        monkeypatch.setattr(upstream.Upstream.__init__, "__kwdefaults__", {
            **upstream.Upstream.__init__.__kwdefaults__, "try_s": 0.1, "total_s": 0.5,
        })  # fmt: skip
        async with serving(port) as server:
            assert (await ask(server, "silent.example")).header.rcode == 2
    async with serving(upstreams=()) as server:
        assert (await ask(server, "far.example")).header.rcode == 2
        assert str((await ask(server, "web.default.svc.cluster.local")).rr[0].rdata) == "10.112.0.9"


async def test_while_nobody_answers_further_questions_fail_at_once() -> None:
    async with peer() as (other, port):
        asker = upstream.Upstream(lambda: [HERE], port=port, try_s=0.05, total_s=0.2, rest_s=0.3)

        async def answers(name: str) -> bool:
            question = dns_wire.parse(bytes(dnslib.DNSRecord.question(name).pack()))
            try:
                await asker.ask(question)
            except Unavailable:
                return False
            return True

        assert not await answers("silent.example")
        seen = len(other.asked)
        assert not await answers("far.example")
        assert len(other.asked) == seen  # nobody was asked
        async with asyncio.timeout(10):
            while not await answers("far.example"):  # noqa: ASYNC110 (a state of its own)
                await asyncio.sleep(0.02)
        slow = asyncio.create_task(answers("silent.example"))
        while not slow.done():  # others are answered meanwhile: so it is this name alone
            await answers(f"far{len(other.asked)}.example")
        assert not slow.result()
        assert await answers("further.example")
        await asker.close()


async def test_the_second_resolver_helps_when_the_first_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    defaults = upstream.Upstream.__init__.__kwdefaults__
    monkeypatch.setattr(upstream.Upstream.__init__, "__kwdefaults__", {**defaults, "try_s": 0.2})
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as deaf:
        async with peer() as (other, port):
            deaf.bind(("127.0.0.2", port))
            async with serving(port, ("127.0.0.2", HERE)) as server:
                assert (await ask(server, "far.example")).header.rcode == 0
                assert (await ask(server, "further.example")).header.rcode == 0  # now the one that answered comes first
                assert other.asked == ["far.example.", "further.example."]


async def test_wrong_messages_get_their_code_or_nothing() -> None:
    async with serving() as server:
        question = bytes(dnslib.DNSRecord.question("a.b").pack())
        notify = bytearray(question)
        notify[2] |= 4 << 3
        assert (await by_udp(server, bytes(notify)))[3] & 15 == 4
        assert (await by_udp(server, question[:-3]))[3] & 15 == 1
        chaos = question[:-2] + b"\0\3"
        assert (await by_udp(server, chaos))[3] & 15 == 5
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.sendto(b"short", (HERE, server.port))
            client.sendto(bytes(12), (HERE, server.port))
        assert (await ask(server, "web.default.svc.cluster.local")).header.rcode == 0


async def test_a_taken_port_is_said() -> None:
    async with serving() as server:
        with pytest.raises(Broken, match=f"listen for DNS on 127.0.0.1 port {server.port}: Address already in use"):
            async with DnsServer([HERE], port=server.port, upstreams=()):
                raise AssertionError("it listens twice")


def test_stubs_on_loopback_are_passed_over(tmp_path: Path) -> None:
    stub, real = tmp_path / "stub", tmp_path / "real"
    stub.write_text("# systemd\nnameserver 127.0.0.53\noptions edns0 trust-ad\nsearch lan\n")
    real.write_text("nameserver 192.0.2.53\nnameserver 192.0.2.54 # two\n")
    found = read_resolvers([str(stub), str(real)])
    assert (found.servers, found.searches) == (["192.0.2.53", "192.0.2.54"], ["lan"])
    assert read_resolvers([str(stub), str(tmp_path / "absent")]).servers == []
    assert read_resolvers([str(real)], exclude=["192.0.2.53"]).servers == ["192.0.2.54"]
    assert read_resolvers([str(tmp_path / "absent")]).servers == ()
    assert parse_resolv_conf("domain a\nsearch b c\n").searches == ["b", "c"]


def test_a_changed_resolv_conf_is_followed(tmp_path: Path) -> None:
    path = tmp_path / "resolv.conf"
    path.write_text("nameserver 192.0.2.1\n")
    servers = upstream.WatchedResolvers([str(path)])
    assert servers() == ["192.0.2.1"]
    path.write_text("nameserver 192.0.2.2\nnameserver 192.0.2.3\n")
    assert servers() == ["192.0.2.2", "192.0.2.3"]
