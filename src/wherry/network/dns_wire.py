"""DNS messages as bytes: one question in, records out. Only what a cluster's resolver needs. Source: RFC 1035, 6891.

A library for this costs 23 ms of start-up and 65 us for each answer; pods ask several times for each connection.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, ip_address

from wherry.errors import BadRequest

A, NS, CNAME, SOA, PTR, TXT, AAAA, SRV, OPT, ANY = 1, 2, 5, 6, 12, 16, 28, 33, 41, 255
NO_ERROR, FORMAT_ERROR, SERVER_FAILURE, NAME_ERROR, NOT_IMPLEMENTED, REFUSED = range(6)
IN = 1
PLAIN_BYTES, EDNS_BYTES = 512, 1232
"""What fits in a UDP answer: without EDNS, and the most we send with it, so that no network cuts it in pieces."""

_AUTHORITATIVE, _TRUNCATED, _RECURSION_WANTED, _RECURSION_THERE = 0x400, 0x200, 0x100, 0x80


@dataclass(frozen=True, slots=True)
class Question:
    """What somebody asks. `name` is in small letters, without the last dot; `room_bytes`: what their UDP takes."""

    id: int
    name: str
    kind: int
    flags: int
    raw: bytes
    has_edns: bool
    wants_dnssec: bool
    room_bytes: int


@dataclass(frozen=True, slots=True)
class Record:
    """One answer. `data` is ready for the wire; `name` is written as in `Question.name`."""

    name: str
    kind: int
    ttl_s: int
    data: bytes


def a(name: str, address: str, ttl_s: int) -> Record:
    """An IPv4 address."""
    return Record(name, A, ttl_s, IPv4Address(address).packed)


def address(name: str, address: str, ttl_s: int) -> Record:
    """An address of either family."""
    found = ip_address(address)
    return Record(name, A if found.version == 4 else AAAA, ttl_s, found.packed)


def cname(name: str, target: str, ttl_s: int) -> Record:
    """Another name for the same."""
    return Record(name, CNAME, ttl_s, encode_name(target))


def ptr(name: str, target: str, ttl_s: int) -> Record:
    """The name of an address."""
    return Record(name, PTR, ttl_s, encode_name(target))


def srv(name: str, target: str, port: int, weight: int, ttl_s: int) -> Record:
    """Where a service's port is served."""
    return Record(name, SRV, ttl_s, struct.pack(">HHH", 0, weight, port) + encode_name(target))


def txt(name: str, text: str, ttl_s: int) -> Record:
    """A short text."""
    return Record(name, TXT, ttl_s, bytes([len(text)]) + text.encode())


def soa(zone: str, ttl_s: int) -> Record:
    """Who answers for a zone; its last number says how long "there is none" may be believed."""
    body = encode_name(f"ns.dns.{zone}") + encode_name(f"hostmaster.{zone}")
    return Record(zone, SOA, ttl_s, body + struct.pack(">IIIII", 1, 7200, 1800, 86400, ttl_s))


def parse(message: bytes) -> Question:
    """Read a query. Raises BadRequest when it has no single readable question, or is an answer."""
    if len(message) < 12:
        raise BadRequest("a DNS message has at least 12 bytes")
    number, flags, questions, answers, authorities, additionals = struct.unpack_from(">HHHHHH", message)
    if flags & 0x8000:
        raise BadRequest("this is an answer")
    if questions != 1 or answers or authorities:
        raise BadRequest("a query has one question")
    name, at = read_name(message, 12, may_point=False)
    if at + 4 > len(message):
        raise BadRequest("the question is cut off")
    kind, family = struct.unpack_from(">HH", message, at)
    if family != IN:
        raise BadRequest(f"class {family} is not the internet's")
    raw = message[12 : at + 4]
    at += 4
    has_edns, wants_dnssec, room = False, False, PLAIN_BYTES
    for _ in range(additionals):
        _, at = read_name(message, at)
        if at + 10 > len(message):
            raise BadRequest("a record is cut off")
        found, size, ttl, length = struct.unpack_from(">HHIH", message, at)
        if found == OPT:
            has_edns, wants_dnssec, room = True, bool(ttl & 0x8000), min(EDNS_BYTES, max(PLAIN_BYTES, size))
        at += 10 + length
    return Question(number, name, kind, flags, raw, has_edns, wants_dnssec, room)


def answer(
    question: Question,
    records: Sequence[Record] = (),
    *,
    code: int = NO_ERROR,
    authority: Sequence[Record] = (),
    additional: Sequence[Record] = (),
    authoritative: bool = True,
    limit_bytes: int = 65535,
) -> bytes:
    """Write an answer of at most `limit_bytes`. What is too much is left out, and said so: ask again by TCP."""
    tail = struct.pack(">BHHIH", 0, OPT, EDNS_BYTES, 0, 0) if question.has_edns else b""
    room = limit_bytes - 12 - len(question.raw) - len(tail)
    counts, parts, is_cut = [0, 0, 0], list[bytes](), False
    for place, group in enumerate((records, authority, additional)):
        for record in group:
            data = _encode(record, question)
            if len(data) > room:
                is_cut = is_cut or place < 2  # additional records are a courtesy
                break
            parts.append(data)
            room -= len(data)
            counts[place] += 1
        if is_cut:
            break
    flags = 0x8000 | (question.flags & 0x7800) | (question.flags & _RECURSION_WANTED) | _RECURSION_THERE | code
    flags |= (_AUTHORITATIVE if authoritative else 0) | (_TRUNCATED if is_cut else 0)
    head = struct.pack(">HHHHHH", question.id, flags, 1, counts[0], counts[1], counts[2] + bool(tail))
    return head + question.raw + b"".join(parts) + tail


def refusal(message: bytes, code: int) -> bytes:
    """Answer a message that `parse` could not read; b"" for what deserves none."""
    if len(message) < 12 or message[2] & 0x80:
        return b""
    flags = 0x8000 | (int.from_bytes(message[2:4], "big") & 0x7900) | code
    return message[:2] + struct.pack(">HHHHH", flags, 0, 0, 0, 0)


def opcode(message: bytes) -> int:
    """Say what sort of request it is; 0 is a query."""
    return (message[2] >> 3) & 0xF if len(message) > 2 else 0


def lifetimes(message: bytes) -> tuple[int, int, list[int]]:
    """Read an upstream's answer: (its code, how long in seconds it may be kept, where its TTLs stand).

    A denial is kept as long as its SOA says (RFC 2308), one without SOA not at all. Raises BadRequest for nonsense.
    """
    if len(message) < 12:
        raise BadRequest("the answer is too short")
    _, flags, questions, answers, authorities, additionals = struct.unpack_from(">HHHHHH", message)
    at = 12
    for _ in range(questions):
        _, at = read_name(message, at)
        at += 4
    places: list[int] = []
    ttls: list[int] = []
    denial_s = 0
    for number in range(answers + authorities + additionals):
        _, at = read_name(message, at)
        if at + 10 > len(message):
            raise BadRequest("a record is cut off")
        kind, _, ttl, length = struct.unpack_from(">HHIH", message, at)
        if at + 10 + length > len(message):
            raise BadRequest("a record is cut off")
        if kind != OPT:
            places.append(at + 4)
            if number < answers:
                ttls.append(ttl)
            elif kind == SOA and number < answers + authorities and length >= 4:
                denial_s = min(ttl, struct.unpack_from(">I", message, at + 6 + length)[0])
        at += 10 + length
    code = flags & 0xF
    keep_s = min(ttls) if ttls and code == NO_ERROR else denial_s
    return code, keep_s, places


def answers(message: bytes, kind: int) -> list[Record]:
    """Take the addresses (`kind` A or AAAA) and further names out of an upstream's answer. Raises BadRequest."""
    _, _, questions, count, _, _ = struct.unpack_from(">HHHHHH", message)
    at = 12
    for _ in range(questions):
        _, at = read_name(message, at)
        at += 4
    found: list[Record] = []
    for _ in range(count):
        name, at = read_name(message, at)
        if at + 10 > len(message):
            raise BadRequest("a record is cut off")
        got, _, ttl, length = struct.unpack_from(">HHIH", message, at)
        at += 10
        if got == CNAME:
            found.append(cname(name, read_name(message, at)[0], ttl))
        elif got == kind and kind in (A, AAAA):
            found.append(Record(name, got, ttl, message[at : at + length]))
        at += length
    return found


def aged(message: bytes, number: int, question: Question, places: Sequence[int], age_s: int) -> bytes:
    """Make a kept answer fit a new question (the same but for its id and letters) `age_s` seconds later."""
    made = bytearray(message)
    made[:2] = number.to_bytes(2, "big")
    made[12 : 12 + len(question.raw)] = question.raw
    for place in places:
        ttl = max(0, int.from_bytes(made[place : place + 4], "big") - age_s)
        made[place : place + 4] = ttl.to_bytes(4, "big")
    return bytes(made)


def is_truncated(message: bytes) -> bool:
    """Say whether an answer was cut and should be asked for by TCP."""
    return len(message) > 3 and bool(message[2] & 2)


def encode_name(name: str) -> bytes:
    """Write a name as labels. Raises BadRequest for a label or name that is too long or empty."""
    made = bytearray()
    for label in name.split(".") if name else []:
        data = label.encode("latin-1", "replace")
        if not 0 < len(data) < 64:
            raise BadRequest(f"{name!r} is no DNS name: each part has 1 to 63 bytes")
        made += bytes([len(data)]) + data
    if len(made) > 254:
        raise BadRequest(f"{name[:40]!r}... is no DNS name: it has at most 253 bytes")
    return bytes(made) + b"\0"


def read_name(message: bytes, at: int, *, may_point: bool = True) -> tuple[str, int]:
    """Read a name at a place; return it in small letters, and the place after it. Raises BadRequest."""
    labels: list[str] = []
    after, length, jumps = -1, 0, 0
    while True:
        if at >= len(message):
            raise BadRequest("a name is cut off")
        size = message[at]
        if size >= 0xC0:
            if not may_point or jumps > 20 or at + 1 >= len(message):
                raise BadRequest("a name points astray")
            if after < 0:
                after = at + 2
            at = (size & 0x3F) << 8 | message[at + 1]
            jumps += 1
            continue
        if size > 63 or at + 1 + size > len(message):
            raise BadRequest("a name is cut off")
        at += 1
        if size == 0:
            return ".".join(labels), at if after < 0 else after
        labels.append(message[at : at + size].decode("latin-1").lower())
        at += size
        length += size + 1
        if length > 254:
            raise BadRequest("a name is too long")


def _encode(record: Record, question: Question) -> bytes:
    name = b"\xc0\x0c" if record.name == question.name else encode_name(record.name)
    return name + struct.pack(">HHIH", record.kind, IN, record.ttl_s, len(record.data)) + record.data
