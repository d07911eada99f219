"""Which elements services need, service by service: what one owns, who is refused, what a change touches. Pure."""

import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address

from wherry.network import flat
from wherry.network.flat import Elements
from wherry.network.types import Port, Service

PROTOCOLS = {"TCP": "tcp", "UDP": "udp"}


@dataclass(frozen=True, slots=True)
class Part:
    """What one service owns. `claims`: its keys in `ports` and `node_ports`, each after "" or "node_"."""

    elements: Elements
    slots: Mapping[str, tuple[str, ...]]
    claims: frozenset[str]
    hairpins: frozenset[str]
    refused: str = ""
    is_in_conflict: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """What the table should hold. `slots`: the backends of each claim in their order; `refused`: service to reason.

    The rest makes the next plan cheap: who owns what, and how many lean on what is shared.
    """

    elements: Elements = field(default_factory=flat.no_elements)
    slots: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    chains: frozenset[str] = frozenset()
    refused: Mapping[str, str] = field(default_factory=dict[str, str])
    services: Mapping[str, Service] = field(default_factory=dict[str, Service])
    parts: Mapping[str, Part] = field(default_factory=dict[str, Part])
    owners: Mapping[str, str] = field(default_factory=dict[str, str])
    uses: Mapping[str, int] = field(default_factory=dict[str, int])


@dataclass(frozen=True, slots=True)
class Step:
    """A plan, and the elements before and after that may differ: all others stay as they are."""

    plan: Plan
    old: Elements
    new: Elements


def plan(services: Iterable[Service], before: Plan | None = None) -> Plan:
    """Turn services into elements; see `step`."""
    return step(services, before or Plan()).plan


def taken_up(elements: Elements, slots: Mapping[str, tuple[str, ...]]) -> Plan:
    """Make a plan of what a kernel's table holds, from before our start: whose it is, is not known."""
    return Plan(elements=elements, slots=slots, chains=flat.chains_for(elements))


def step(services: Iterable[Service], before: Plan) -> Step:
    """Turn services into elements. Backends that stay keep their slots, so little changes.

    What cannot be (IPv6, SCTP, an address and port that another service has) is left out and said in `refused`. When
    few services differ from those before, only those are looked at, with the same result.
    """
    wanted = {service.key: service for service in services}
    changed = [service for key, service in wanted.items() if not _is_same(before.services.get(key), service)]
    gone = [key for key in before.services if key not in wanted]
    few = len(changed) + len(gone) <= 16 + len(wanted) // 8
    contested = any(part.is_in_conflict for key in before.refused if (part := before.parts.get(key)))
    made = _small_step(changed, gone, wanted, before) if few and before.services and not contested else None
    if made is None:
        whole = _whole(wanted, before.slots)
        made = Step(whole, before.elements, whole.elements)
    return made


def _whole(wanted: Mapping[str, Service], slots: Mapping[str, tuple[str, ...]]) -> Plan:
    """Plan everything; of two services that want the same, the first by key has it."""
    owners: dict[str, str] = {}
    parts: dict[str, Part] = {}
    for key in sorted(wanted):
        part = parts[key] = part_of(wanted[key], slots, owners)
        owners.update(dict.fromkeys(part.claims, key))
    uses = Counter[str]()
    elements = {name: dict[str, str]() for name in flat.MAPS}
    ordered: dict[str, tuple[str, ...]] = {}
    for part in parts.values():
        uses.update(_shared(part))
        ordered.update(part.slots)
        for name, pairs in part.elements.items():
            elements[name].update(pairs)
    elements["hairpin"] = {key: "" for key in uses if " . " in key}
    return _plan(elements, ordered, wanted, parts, owners, uses)


def _small_step(
    changed: Sequence[Service], gone: Sequence[str], wanted: Mapping[str, Service], before: Plan
) -> Step | None:
    """Plan the changed services alone; None when two want the same: then all have to be looked at."""
    old_parts = [before.parts[key] for key in [*gone, *(service.key for service in changed)] if key in before.parts]
    owners = dict(before.owners)
    for claim in (claim for part in old_parts for claim in part.claims):
        owners.pop(claim, None)
    new_parts: dict[str, Part] = {}
    for service in changed:
        part = new_parts[service.key] = part_of(service, before.slots, owners)
        if part.is_in_conflict:
            return None
        owners.update(dict.fromkeys(part.claims, service.key))
    uses = Counter(before.uses)
    uses.subtract(Counter(each for part in old_parts for each in _shared(part)))
    uses.update(each for part in new_parts.values() for each in _shared(part))
    hairpins = {each for part in [*old_parts, *new_parts.values()] for each in part.hairpins}
    old, new = _merged(old_parts), _merged(list(new_parts.values()))
    old["hairpin"] = {each: "" for each in hairpins if before.uses.get(each, 0) > 0}
    new["hairpin"] = {each: "" for each in hairpins if uses[each] > 0}
    elements = dict(before.elements)
    for name in {*old, *new}:
        pairs = dict(before.elements[name])
        for key in old.get(name, {}):
            del pairs[key]
        elements[name] = pairs | new.get(name, {})
    slots = dict(before.slots)
    for part in old_parts:
        for claim in part.slots:
            slots.pop(claim, None)
    for part in new_parts.values():
        slots.update(part.slots)
    left = set(gone)
    parts = {key: part for key, part in before.parts.items() if key not in left} | new_parts
    uses = Counter({each: count for each, count in uses.items() if count > 0})
    return Step(_plan(elements, slots, wanted, parts, owners, uses), old, new)


def _plan(
    elements: Elements,
    slots: Mapping[str, tuple[str, ...]],
    wanted: Mapping[str, Service],
    parts: Mapping[str, Part],
    owners: Mapping[str, str],
    uses: Mapping[str, int],
) -> Plan:
    chains = flat.with_hits(each for each in uses if " . " not in each)
    refused = {key: part.refused for key, part in parts.items() if part.refused}
    return Plan(elements, slots, chains, refused, wanted, parts, owners, uses)


def part_of(service: Service, slots: Mapping[str, tuple[str, ...]], owners: Mapping[str, str]) -> Part:
    """Say what a service needs, but for claims that others have. `slots` are the orders of before."""
    elements: dict[str, dict[str, str]] = {}
    ordered: dict[str, tuple[str, ...]] = {}
    claims: set[str] = set()
    hairpins: set[str] = set()
    refused, is_in_conflict = "", False
    for port in service.ports:
        problem = _problem(service, port)
        if problem:
            refused = problem
            continue
        protocol = PROTOCOLS[port.protocol]
        backends = {f"{address} . {number}" for address, number in port.endpoints}
        keys = [("", f"{address} . {protocol} . {port.port}") for address in service.addresses if _is_v4(address)]
        if port.node_port:
            keys.append(("node_", f"{protocol} . {port.node_port}"))
        for kind, key in keys:
            claim = kind + key
            if claim in owners or claim in claims:
                refused, is_in_conflict = f"{key.replace(' . ', ' ')} belongs to another service", True
                continue
            claims.add(claim)
            if backends:
                order = ordered[claim] = assign(slots.get(claim, ()), backends)
                _add(elements, kind, key, order, service.affinity_s)
            elif not kind:
                elements.setdefault("empty", {})[key] = ""
        hairpins.update(f"{address} . {address}" for address, _ in port.endpoints)
    return Part(elements, ordered, frozenset(claims), frozenset(hairpins), refused, is_in_conflict)


def assign(before: Sequence[str], wanted: Iterable[str]) -> tuple[str, ...]:
    """Order the wanted backends so that those which stay keep their places; holes are filled by new ones, then the last."""
    missing = set(wanted)
    order: list[str | None] = []
    for backend in before:
        order.append(backend if backend in missing else None)
        missing.discard(backend)
    fresh = sorted(missing)
    for place, backend in enumerate(order):
        if backend is None and fresh:
            order[place] = fresh.pop(0)
    order += fresh
    while None in order:
        last = order.pop()
        if last is not None:
            order[order.index(None)] = last
    return tuple(backend for backend in order if backend is not None)


def ids(backends: Sequence[str]) -> list[str]:
    """Give each backend a number of its own that stays the same whichever others there are (but for rare clashes)."""
    taken: dict[int, str] = {}
    for backend in sorted(backends):
        number = zlib.crc32(backend.encode()) | 0x8000_0000
        while number in taken:
            number = 0x8000_0000 | (number + 1)
        taken[number] = backend
    by_backend = {backend: number for number, backend in taken.items()}
    return [flat.slot(by_backend[backend]) for backend in backends]


def _add(elements: dict[str, dict[str, str]], kind: str, key: str, order: Sequence[str], affinity_s: int) -> None:
    chain = f"{'n' if kind else 'e'}{len(order)}"
    if not affinity_s:
        elements.setdefault(f"{kind}ports", {})[key] = f"goto {chain}"
        elements.setdefault(f"{kind}backends", {}).update(
            (f"{key} . {flat.slot(number)}", backend) for number, backend in enumerate(order)
        )
        return
    elements.setdefault(f"{kind}ports", {})[key] = f"goto {chain}t{affinity_s}"
    for number, (backend, name) in enumerate(zip(order, ids(order), strict=True)):
        elements.setdefault(f"{kind}pick", {})[f"{key} . {flat.slot(number)}"] = name
        elements.setdefault(f"{kind}backends", {})[f"{key} . {name}"] = backend


def _shared(part: Part) -> list[str]:
    """List what a part leans on that others may lean on too: chains (`e3`), once for each claim, and hairpins."""
    values = [value for name in ("ports", "node_ports") for value in part.elements.get(name, {}).values()]
    return [value.removeprefix("goto ") for value in values] + list(part.hairpins)


def _merged(parts: Sequence[Part]) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    for part in parts:
        for name, pairs in part.elements.items():
            found.setdefault(name, {}).update(pairs)
    return found


def _is_same(one: Service | None, other: Service) -> bool:
    return one is other or one == other


def _problem(service: Service, port: Port) -> str:
    if port.protocol not in PROTOCOLS:
        return f"port {port.port}: protocol {port.protocol} is not supported, only TCP and UDP are"
    if any(not _is_v4(address) for address, _ in port.endpoints):
        return f"port {port.port}: IPv6 endpoints are not supported"
    if service.addresses and not any(_is_v4(address) for address in service.addresses):
        return "IPv6 addresses are not supported"
    return ""


def _is_v4(address: str) -> bool:
    try:
        IPv4Address(address)
    except ValueError:
        return False
    return True
