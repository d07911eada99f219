"""What the cluster's names mean, as a table."""

import pytest

from wherry.network import dns_wire as wire
from wherry.network.zone import DnsEndpoint, DnsPort, DnsService, Zone

HTTP = DnsPort("http", "TCP", 80)
ZONE = Zone("cluster.local", ["10.64.0.0/16", "10.112.0.0/20"])
ZONE.sync(
    [
        DnsService("default", "web", ["10.112.0.9"], [HTTP, DnsPort("", "UDP", 53)]),
        DnsService(
            "default",
            "db",
            endpoints=[
                DnsEndpoint("10.64.1.2", "db-0", [DnsPort("sql", "TCP", 5432)]),
                DnsEndpoint("10.64.2.3", "db-1", [DnsPort("sql", "TCP", 5432)]),
                DnsEndpoint("10.64.2.4", ports=[DnsPort("sql", "TCP", 5432)]),
            ],
        ),
        DnsService("default", "empty"),
        DnsService("other", "out", external_name="Example.COM."),
    ],
    hosts={"Registry.wherry": ["10.64.1.1"]},
)


def shown(name: str, kind: int) -> str:
    """The answer in one line: its code, then kind and data of each record."""
    found = ZONE.lookup(name, kind)
    if found is None:
        return "not ours"
    words = [str(found.code)]
    for record in found.records:
        if record.kind == wire.A:
            words.append(".".join(map(str, record.data)))
        elif record.kind == wire.SRV:
            words.append(f"{int.from_bytes(record.data[4:6], 'big')}@{wire.read_name(record.data, 6)[0]}")
        elif record.kind in (wire.PTR, wire.CNAME):
            words.append(wire.read_name(record.data, 0)[0])
        else:
            words.append(str(record.kind))
    return " ".join([words[0], *sorted(words[1:])])


@pytest.mark.parametrize(
    ("name", "kind", "answer"),
    [
        ("web.default.svc.cluster.local", wire.A, "0 10.112.0.9"),
        ("web.default.svc.cluster.local", wire.AAAA, "0"),
        ("web.other.svc.cluster.local", wire.A, "3"),
        ("web.svc.cluster.local", wire.A, "3"),
        ("web.cluster.local", wire.A, "3"),
        ("web.default.svc.cluster.local.default.svc.cluster.local", wire.A, "3"),
        ("default.svc.cluster.local", wire.A, "0"),
        ("svc.cluster.local", wire.A, "0"),
        ("cluster.local", wire.SOA, "0 6"),
        ("_http._tcp.web.default.svc.cluster.local", wire.SRV, "0 80@web.default.svc.cluster.local"),
        ("_http._udp.web.default.svc.cluster.local", wire.SRV, "3"),
        ("_http._tcp.web.default.svc.cluster.local", wire.A, "0"),
        ("_https._tcp.web.default.svc.cluster.local", wire.SRV, "3"),
        ("db.default.svc.cluster.local", wire.A, "0 10.64.1.2 10.64.2.3 10.64.2.4"),
        ("db-1.db.default.svc.cluster.local", wire.A, "0 10.64.2.3"),
        ("10-64-2-4.db.default.svc.cluster.local", wire.A, "0 10.64.2.4"),
        ("db-7.db.default.svc.cluster.local", wire.A, "3"),
        ("db-0.web.default.svc.cluster.local", wire.A, "3"),
        (
            "_sql._tcp.db.default.svc.cluster.local",
            wire.SRV,
            "0 5432@10-64-2-4.db.default.svc.cluster.local "
            "5432@db-0.db.default.svc.cluster.local 5432@db-1.db.default.svc.cluster.local",
        ),
        ("empty.default.svc.cluster.local", wire.A, "0"),
        ("out.other.svc.cluster.local", wire.CNAME, "0 example.com"),
        ("9.0.112.10.in-addr.arpa", wire.PTR, "0 web.default.svc.cluster.local"),
        ("2.1.64.10.in-addr.arpa", wire.PTR, "0 db-0.db.default.svc.cluster.local"),
        ("77.1.64.10.in-addr.arpa", wire.PTR, "3"),
        ("8.8.8.8.in-addr.arpa", wire.PTR, "not ours"),
        ("x.8.8.8.in-addr.arpa", wire.PTR, "not ours"),
        ("dns-version.cluster.local", wire.TXT, "0 16"),
        ("registry.wherry", wire.A, "0 10.64.1.1"),
        ("example.com", wire.A, "not ours"),
        ("notcluster.local", wire.A, "not ours"),
        ("", wire.A, "not ours"),
    ],
)
def test_names_mean_what_the_specification_says(name: str, kind: int, answer: str) -> None:
    assert shown(name, kind) == answer


def test_srv_answers_bring_the_addresses_along() -> None:
    found = ZONE.lookup("_sql._tcp.db.default.svc.cluster.local", wire.SRV)
    assert found is not None
    assert sorted(record.name.partition(".")[0] for record in found.additional) == ["10-64-2-4", "db-0", "db-1"]
