"""DNS messages against a library of others, and against nonsense."""

from contextlib import suppress

import dnslib
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wherry.errors import BadRequest
from wherry.network import dns_wire as wire

LABEL = st.text("abcdefghijklmnopqrstuvwxyz0123456789-_", min_size=1, max_size=20)
NAME = st.lists(LABEL, min_size=1, max_size=6).map(".".join)


@given(NAME, st.sampled_from(["A", "AAAA", "SRV", "PTR"]), st.integers(0, 65535), st.booleans())
def test_queries_are_read_as_others_write_them(name: str, kind: str, number: int, edns: bool) -> None:
    made = dnslib.DNSRecord(dnslib.DNSHeader(id=number, rd=1), q=dnslib.DNSQuestion(name, getattr(dnslib.QTYPE, kind)))
    if edns:
        made.add_ar(dnslib.EDNS0(udp_len=4096))
    question = wire.parse(bytes(made.pack()))
    assert (question.id, question.name, question.kind) == (number, name, getattr(dnslib.QTYPE, kind))
    assert question.room_bytes == (1232 if edns else 512)


@given(NAME, NAME, st.lists(st.ip_addresses(v=4).map(str), max_size=5))
def test_answers_are_read_by_others_as_we_meant_them(name: str, other: str, addresses: list[str]) -> None:
    question = wire.parse(bytes(dnslib.DNSRecord.question(name, "A").pack()))
    records = [wire.a(name, address, 5) for address in addresses] + [wire.srv(other, name, 80, 1, 5)]
    message = wire.answer(question, records, authority=[wire.soa("cluster.local", 5)])
    read = dnslib.DNSRecord.parse(message)
    assert read.header.aa == read.header.ra == read.header.qr == 1
    assert [str(rr.rdata) for rr in read.rr[:-1]] == addresses
    assert str(read.rr[-1].rdata) == f"0 1 80 {name}."
    assert str(read.auth[0].rname) == "cluster.local."


def test_what_does_not_fit_is_cut_and_said_so() -> None:
    question = wire.parse(bytes(dnslib.DNSRecord.question("big.example", "A").pack()))
    records = [wire.a("big.example", f"10.0.{n}.1", 5) for n in range(100)]
    message = wire.answer(question, records, limit_bytes=512)
    assert len(message) <= 512
    read = dnslib.DNSRecord.parse(message)
    assert read.header.tc == 1
    assert 20 < len(read.rr) < 100


@given(st.binary(max_size=80))
def test_nonsense_is_never_more_than_a_bad_request(data: bytes) -> None:
    for read in (wire.parse, wire.lifetimes):
        with suppress(BadRequest):
            read(data)
    assert isinstance(wire.refusal(data, wire.FORMAT_ERROR), bytes)


@given(st.binary(max_size=60))
def test_nonsense_after_a_good_header(data: bytes) -> None:
    head = bytes.fromhex("000101000001000000000001")
    for read in (wire.parse, wire.lifetimes, lambda message: wire.answers(message, wire.A)):
        with suppress(BadRequest):
            read(head + data)


@pytest.mark.parametrize("name", ["a..b", "x" * 64, ".".join(["x" * 60] * 5)])
def test_impossible_names_are_refused(name: str) -> None:
    with pytest.raises(BadRequest, match="no DNS name"):
        wire.encode_name(name)


def test_a_kept_answer_ages() -> None:
    asked = wire.parse(bytes(dnslib.DNSRecord.question("a.example", "A").pack()))
    upstream = wire.answer(asked, [wire.a("a.example", "1.2.3.4", 100)], authoritative=False)
    code, keep_s, places = wire.lifetimes(upstream)
    assert (code, keep_s) == (0, 100)
    again = wire.parse(bytes(dnslib.DNSRecord.question("A.Example", "A").pack()))
    read = dnslib.DNSRecord.parse(wire.aged(upstream, again.id, again, places, 30))
    assert read.header.id == again.id
    assert read.rr[0].ttl == 70
    assert wire.lifetimes(wire.answer(asked, code=3, authority=[wire.soa("example", 20)]))[:2] == (3, 20)
    assert wire.lifetimes(wire.answer(asked, code=2))[:2] == (2, 0)
