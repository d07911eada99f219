"""Published ports as flat nftables maps: which elements there should be, and how to get there. Pure.

The table of IPv6 is there while a container with an IPv6 address has published something. What comes to `::1` or to a
link's own address is left to the relays: such an address means nothing on another link.
"""

from collections.abc import Mapping, Sequence

from wherry.network.types import PublishedPort

_ADDRESS, _PORT = "{0} . inet_proto . inet_service", "{0} . inet_service"
_SHAPES: Mapping[str, str] = {
    "published": f"map {{1}} published{{2}} {{{{ type {_ADDRESS} : {_PORT}; }}}}",
    "everywhere": f"map {{1}} everywhere{{2}} {{{{ type inet_proto . inet_service : {_PORT}; }}}}",
    "gateways": "map {1} gateways{2} {{ type {0} : {0}; }}",
    "targets": f"set {{1}} targets{{2}} {{{{ type {_ADDRESS}; }}}}",
    "hairpin": "set {1} hairpin{2} {{ type {0} . {0}; }}",
}
FAMILIES: Mapping[str, tuple[str, str]] = {"ip": ("", "ipv4_addr"), "ip6": ("6", "ipv6_addr")}
"""What the names of a family's maps end with, and its type of addresses."""
MAPS: Mapping[str, str] = {f"{name}{end}": family for family, (end, _) in FAMILIES.items() for name in _SHAPES}
"""The maps and sets that carry the ports, each with its family."""

RULES: Mapping[str, Sequence[str]] = {
    "ip": (
        "arriving dnat ip to ip daddr . meta l4proto . th dport map @published",
        "arriving fib daddr type local dnat ip to meta l4proto . th dport map @everywhere",
        "own dnat ip to ip daddr . meta l4proto . th dport map @published",
        "own fib daddr type local dnat ip to meta l4proto . th dport map @everywhere",
        # Answers have to come back this way; all others keep their address, whatever the rules for services say later.
        "leaving ct status dnat ip saddr 127.0.0.0/8 snat ip to ip daddr map @gateways",
        "leaving ct status dnat ip saddr . ip daddr @hairpin snat ip to ip daddr map @gateways",
        "leaving ct status dnat ip daddr . meta l4proto . th dport @targets snat ip to ip saddr",
    ),
    "ip6": (
        "arriving ip6 daddr fe80::/10 return",
        "arriving dnat ip6 to ip6 daddr . meta l4proto . th dport map @published6",
        "arriving fib daddr type local dnat ip6 to meta l4proto . th dport map @everywhere6",
        "own ip6 daddr { ::1, fe80::/10 } return",
        "own dnat ip6 to ip6 daddr . meta l4proto . th dport map @published6",
        "own fib daddr type local dnat ip6 to meta l4proto . th dport map @everywhere6",
        "leaving ct status dnat ip6 saddr . ip6 daddr @hairpin6 snat ip6 to ip6 daddr map @gateways6",
        "leaving ct status dnat ip6 daddr . meta l4proto . th dport @targets6 snat ip6 to ip6 saddr",
    ),
}
_CHAINS = (
    "arriving { type nat hook prerouting priority dstnat - 1; }",
    "own { type nat hook output priority -101; }",
    "leaving { type nat hook postrouting priority srcnat - 10; }",
)
ANY4, ANY6 = "0.0.0.0", "::"

Elements = dict[str, dict[str, str]]


def table_name(instance: str) -> str:
    """Name the tables for published ports."""
    return f"wherry-{instance}-ports"


def no_elements() -> Elements:
    """Return the elements of empty tables."""
    return {name: {} for name in MAPS}


def has(elements: Elements, family: str) -> bool:
    """Say whether a family's table is to be there: that of IPv4 always is."""
    return family == "ip" or any(pairs for name, pairs in elements.items() if MAPS[name] == family)


def frame(instance: str, family: str = "ip") -> str:
    """Write a family's table without any port, in place of the one that may be there."""
    table = f"{family} {table_name(instance)}"
    end, kind = FAMILIES[family]
    lines = [f"add table {table}", f"delete table {table}", f"add table {table}"]
    lines += [f"add {shape.format(kind, table, end)}" for shape in _SHAPES.values()]
    lines += [f"add chain {table} {chain}" for chain in _CHAINS]
    lines += [f"add rule {table} {rule}" for rule in RULES[family]]
    return "\n".join(lines)


def elements_of(ports: Sequence[PublishedPort]) -> Elements:
    """Say which elements these ports need."""
    found = no_elements()
    for each in ports:
        host, six = each.host_address, ":" in each.host_address
        if each.address and not six:
            _add(found, "", each, "" if host in ("", ANY4) else host, each.address, each.gateway)
        if each.address6 and (six or (not host and each.both)) and host != "::1":
            _add(found, "6", each, "" if host in ("", ANY6) else host, each.address6, each.gateway6)
    return found


def _add(found: Elements, end: str, port: PublishedPort, host: str, address: str, gateway: str) -> None:
    target = f"{address} . {port.port}"
    if host:
        found[f"published{end}"][f"{host} . {port.protocol} . {port.host_port}"] = target
    else:
        found[f"everywhere{end}"][f"{port.protocol} . {port.host_port}"] = target
    found[f"gateways{end}"][address] = gateway
    found[f"targets{end}"][f"{address} . {port.protocol} . {port.port}"] = ""
    found[f"hairpin{end}"][f"{address} . {address}"] = ""


def changes(instance: str, old: Elements, new: Elements) -> str:
    """Write the commands that turn `old` into `new`; "" when they are equal."""
    lines: list[str] = []
    for family in FAMILIES:
        if has(new, family) and not has(old, family):
            lines.append(frame(instance, family))
        elif has(old, family) and not has(new, family):
            lines.append(f"delete table {family} {table_name(instance)}")
            continue
        for name in (name for name, of in MAPS.items() if of == family):
            table, was, shall = f"{family} {table_name(instance)}", old[name], new[name]
            gone = [key for key, value in was.items() if shall.get(key) != value]
            come = [f"{key} : {value}" if value else key for key, value in shall.items() if was.get(key) != value]
            lines += [f"delete element {table} {name} {{ {', '.join(gone)} }}"] if gone else []
            lines += [f"add element {table} {name} {{ {', '.join(come)} }}"] if come else []
    return "\n".join(lines)


def anew(instance: str, elements: Elements) -> str:
    """Write the commands that make the tables with these elements, whatever there is now."""
    gone = f"add table ip6 {table_name(instance)}\ndelete table ip6 {table_name(instance)}"
    return f"{gone}\n{frame(instance)}\n{changes(instance, no_elements(), elements)}"


def overlaps(one: str, other: str) -> bool:
    """Say whether two host addresses share a port: "" stands for every address, 0.0.0.0 and :: for a family's."""
    if not one or not other:
        return True
    return (":" in one) == (":" in other) and (one == other or one in (ANY4, ANY6) or other in (ANY4, ANY6))
