"""The rules between people's networks, as text: one table for IPv4, and one for IPv6 while a network has it. Pure."""

from collections.abc import Sequence

from wherry.network.types import BridgeNetwork

FAMILIES = ("ip", "ip6")

_BETWEEN = (
    "between iifname . oifname @same accept",
    "between iifname @internal drop",
    "between oifname @internal drop",
    "between ct state established,related accept",
    "between oifname @bridges ct status dnat accept",
    "between oifname @bridges drop",
)

RULES = {
    "ip": (
        # Links of ours have route_localnet for published ports: nobody else shall use it.
        'guard iifname != "lo" ip daddr 127.0.0.0/8 drop',
        *_BETWEEN,
        # Neighbours that meet by a published port must answer by way of us.
        "leaving ct status dnat ip saddr @subnets oifname @bridges masquerade",
        "outgoing ip saddr @masked oifname != @bridges masquerade",
    ),
    "ip6": (
        # What rp_filter does for IPv4: nobody sends from an address that is not theirs (:: asks whether one is free).
        "guard iifname @bridges ip6 saddr != :: fib saddr . iif oif missing drop",
        *_BETWEEN,
        "leaving ct status dnat ip6 saddr @subnets oifname @bridges masquerade",
        "outgoing ip6 saddr @masked oifname != @bridges masquerade",
    ),
}
"""By family, each rule after the name of its chain."""


def table_name(instance: str) -> str:
    """Name the tables for bridges."""
    return f"wherry-{instance}-nets"


def networks_of(family: str, networks: Sequence[BridgeNetwork]) -> list[BridgeNetwork]:
    """Say which networks a family's table is about: all, since an IPv6 table stands between those without it too."""
    return list(networks) if family == "ip" or any(each.subnet6 for each in networks) else []


def nets_table(instance: str, networks: Sequence[BridgeNetwork], family: str = "ip") -> str:
    """Write a family's table, in place of the one that may be there; without networks that have it, none."""
    name = table_name(instance)
    mine = networks_of(family, networks)
    gone = [f"add table {family} {name}", f"delete table {family} {name}"]
    if not mine:
        return "\n".join(gone)
    table = f"{family} {name}"
    links = [f'"{each.link}"' for each in mine]
    same = [f'"{each.link}" . "{each.link}"' for each in mine if each.icc]
    internal = [f'"{each.link}"' for each in mine if each.internal]
    subnets = [(each, each.subnet if family == "ip" else each.subnet6) for each in mine]
    masked = [subnet for each, subnet in subnets if subnet and each.masquerade and not each.internal]
    kind = "ipv4_addr" if family == "ip" else "ipv6_addr"

    def elements(name: str, items: Sequence[str]) -> list[str]:
        return [f"add element {table} {name} {{ {', '.join(items)} }}"] if items else []

    return "\n".join(
        [
            *gone,
            f"add table {table}",
            f"add set {table} bridges {{ type ifname; }}",
            f"add set {table} internal {{ type ifname; }}",
            f"add set {table} same {{ type ifname . ifname; }}",
            f"add set {table} subnets {{ type {kind}; flags interval; }}",
            f"add set {table} masked {{ type {kind}; flags interval; }}",
            *elements("bridges", links),
            *elements("internal", internal),
            *elements("same", same),
            *elements("subnets", [subnet for _, subnet in subnets if subnet]),
            *elements("masked", masked),
            f"add chain {table} guard {{ type filter hook prerouting priority raw; }}",
            f"add chain {table} between {{ type filter hook forward priority filter - 1; }}",
            f"add chain {table} leaving {{ type nat hook postrouting priority srcnat - 20; }}",
            f"add chain {table} outgoing {{ type nat hook postrouting priority srcnat; }}",
            *(f"add rule {table} {rule}" for rule in RULES[family]),
        ]
    )
