"""The names of a cluster: what each service, headless pod and address is called. Pure: values in, records out.

Source: "Kubernetes DNS-Based Service Discovery", version 1.1.0. Names of services are asked for with search lists, so
"there is no such name" is as frequent an answer as any, and as quick.
"""

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network

from wherry.network import dns_wire
from wherry.network.dns_wire import NAME_ERROR, NO_ERROR, Record

TTL_S = 5
"""How long answers may be kept: short, since pods come and go."""

_REVERSE = ".in-addr.arpa"


@dataclass(frozen=True, slots=True)
class DnsPort:
    """A named port; `protocol` is TCP or UDP."""

    name: str
    protocol: str
    port: int


@dataclass(frozen=True, slots=True)
class DnsEndpoint:
    """A backend to be named: only for headless services. Without `hostname` its address in dashes stands for it."""

    address: str
    hostname: str = ""
    ports: Sequence[DnsPort] = ()

    @property
    def label(self) -> str:
        """Its name within the service."""
        return self.hostname or self.address.replace(".", "-")


@dataclass(frozen=True, slots=True)
class DnsService:
    """A service as DNS knows it: with `addresses`, or headless with `endpoints`, or another name for `external_name`."""

    namespace: str
    name: str
    addresses: Sequence[str] = ()
    ports: Sequence[DnsPort] = ()
    endpoints: Sequence[DnsEndpoint] = ()
    external_name: str = ""


@dataclass(frozen=True, slots=True)
class Found:
    """What a zone says: a code, answers, and records that the asker will want next. `follow`: a name to look up on."""

    code: int = NO_ERROR
    records: Sequence[Record] = ()
    additional: Sequence[Record] = ()
    follow: str = ""


class Zone:
    """All names below `domain`, and of addresses in `ranges`. `sync` and `lookup` belong to one thread.

    `hosts` are further names, of any form, with their addresses. `servers` are asked for all others, where there are some.
    """

    servers: Sequence[str] = ()

    def __init__(self, domain: str = "cluster.local", ranges: Sequence[str] = ()) -> None:
        self.domain = domain
        self._suffix = f".{domain}"
        self._ranges = [IPv4Network(text) for text in ranges]
        self._services: dict[str, dict[str, DnsService]] = {}
        self._names: dict[str, str] = {}
        self._hosts: Mapping[str, Sequence[str]] = {}

    def sync(self, services: Iterable[DnsService], hosts: Mapping[str, Sequence[str]] | None = None) -> None:
        """Say from now on what `services` (and `hosts`) are called, and nothing else."""
        found: dict[str, dict[str, DnsService]] = {}
        names: dict[str, str] = {}
        for service in services:
            found.setdefault(service.namespace, {})[service.name] = service
            own = self._name_of(service)
            for endpoint in service.endpoints:
                if not service.addresses:
                    names[endpoint.address] = f"{endpoint.label}.{own}"
            names.update(dict.fromkeys(service.addresses, own))
        self._services, self._names = found, names
        self._hosts = {name.lower().rstrip("."): list(addresses) for name, addresses in (hosts or {}).items()}

    def lookup(self, name: str, kind: int) -> Found | None:
        """Answer a question; None when the name is not ours to answer."""
        if name in self._hosts:
            return Found(records=_pick(kind, [dns_wire.a(name, address, TTL_S) for address in self._hosts[name]]))
        if name == self.domain:
            return Found(records=[dns_wire.soa(name, TTL_S)] if kind == dns_wire.SOA else ())
        if name.endswith(self._suffix):
            return self._inside(name, name.removesuffix(self._suffix).split("."), kind)
        if name.endswith(_REVERSE):
            return self._reverse(name, kind)
        return None

    def denial(self, name: str) -> Sequence[Record]:
        """Return what goes with "no such name" or "no such record", so that it may be kept for a while."""
        return () if name in self._hosts else (dns_wire.soa(self.domain, TTL_S),)

    def _inside(self, name: str, labels: list[str], kind: int) -> Found:
        if labels == ["dns-version"]:
            return Found(records=[dns_wire.txt(name, "1.1.0", TTL_S)] if kind == dns_wire.TXT else ())
        if labels.pop() != "svc":
            return Found(NAME_ERROR)
        if not labels:
            return Found()
        services = self._services.get(labels.pop())
        if services is None:
            return Found(NAME_ERROR)
        if not labels:
            return Found()
        service = services.get(labels.pop())
        if service is None:
            return Found(NAME_ERROR)
        if not labels:
            return _service(name, service, kind)
        if service.external_name:
            return Found(NAME_ERROR)
        if len(labels) == 1 and not labels[0].startswith("_"):
            return _endpoint(name, service, labels[0], kind)
        if len(labels) <= 2 and labels[-1] in ("_tcp", "_udp"):
            port_name = labels[0] if len(labels) == 2 else ""
            return self._port(name, service, port_name.removeprefix("_"), labels[-1][1:].upper(), kind)
        return Found(NAME_ERROR)

    def _port(self, name: str, service: DnsService, port_name: str, protocol: str, kind: int) -> Found:
        own = self._name_of(service)
        records: list[Record] = []
        additional: list[Record] = []
        is_there = False
        if service.addresses:
            for port in service.ports:
                if port.protocol != protocol or (port_name and port.name != port_name):
                    continue
                is_there = True
                if port_name:
                    records.append(dns_wire.srv(name, own, port.port, 100, TTL_S))
            additional = [dns_wire.a(own, address, TTL_S) for address in service.addresses] if records else []
        else:
            weight = 100 // max(1, len(service.endpoints)) or 1
            for endpoint in service.endpoints:
                for port in endpoint.ports:
                    if port.protocol != protocol or (port_name and port.name != port_name):
                        continue
                    is_there = True
                    if port_name:
                        target = f"{endpoint.label}.{own}"
                        records.append(dns_wire.srv(name, target, port.port, weight, TTL_S))
                        additional.append(dns_wire.a(target, endpoint.address, TTL_S))
        if not is_there:
            return Found(NAME_ERROR)
        return Found(records=records, additional=additional) if kind in (dns_wire.SRV, dns_wire.ANY) else Found()

    def _reverse(self, name: str, kind: int) -> Found | None:
        labels = name.removesuffix(_REVERSE).split(".")
        try:
            address = IPv4Address(".".join(reversed(labels)))
        except ValueError:
            return None
        target = self._names.get(str(address))
        if target is not None:
            return Found(records=_pick(kind, [dns_wire.ptr(name, target, TTL_S)]))
        return Found(NAME_ERROR) if any(address in network for network in self._ranges) else None

    def _name_of(self, service: DnsService) -> str:
        return f"{service.name}.{service.namespace}.svc{self._suffix}"


def _service(name: str, service: DnsService, kind: int) -> Found:
    if service.external_name:
        target = service.external_name.rstrip(".").lower()
        records = [dns_wire.cname(name, target, TTL_S)]
        return Found(records=records, follow="" if kind == dns_wire.CNAME else target)
    addresses = list(service.addresses)
    if not addresses:
        addresses = list(dict.fromkeys(endpoint.address for endpoint in service.endpoints))
        random.shuffle(addresses)  # clients take the first
    return Found(records=_pick(kind, [dns_wire.a(name, each, TTL_S) for each in addresses if ":" not in each]))


def _endpoint(name: str, service: DnsService, label: str, kind: int) -> Found:
    if label in ("_tcp", "_udp"):
        return Found()
    found = [] if service.addresses else [each.address for each in service.endpoints if each.label == label]
    if not found:
        return Found(NAME_ERROR)
    return Found(records=_pick(kind, [dns_wire.a(name, address, TTL_S) for address in dict.fromkeys(found)]))


def _pick(kind: int, records: Sequence[Record]) -> Sequence[Record]:
    return [record for record in records if kind in (record.kind, dns_wire.ANY)]
