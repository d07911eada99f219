"""Services as flat nftables maps: which chains and elements there should be, and how to get there from what there is.

All pure. One look-up in `ports` (or `node_ports`) finds how many backends an address and port have; a chain for that
number, shared by all services, draws one; a second look-up in `backends` finds where it is. So the cost of a change does
not grow with the number of services.

The number drawn travels from one look-up to the next in the packet's priority: unlike the packet mark it means nothing
to routing, and the kernel sets it anew when it forwards.

With ClientIP affinity the number drawn names a slot in `pick`, which gives the backend's own id; `affinity` remembers the
id of each client, and `backends` is asked by id. An id that is gone is forgotten on the way and another one drawn.
"""

import zlib
from collections.abc import Iterable, Mapping, Sequence

from wherry.network.ranges import Ranges

_KEY, _NODE_KEY = "ip daddr . meta l4proto . th dport", "meta l4proto . th dport"
_CLIENT = f"ip saddr . {_KEY}"
_SCALARS = "ipv4_addr . inet_proto . inet_service"

MAPS: Mapping[str, str] = {
    "ports": f"map {{ type {_SCALARS} : verdict; }}",
    "backends": f"map {{ type {_SCALARS} . classid : ipv4_addr . inet_service; }}",
    "pick": f"map {{ type {_SCALARS} . classid : classid; }}",
    "node_ports": "map { type inet_proto . inet_service : verdict; }",
    "node_backends": "map { type inet_proto . inet_service . classid : ipv4_addr . inet_service; }",
    "node_pick": "map { type inet_proto . inet_service . classid : classid; }",
    "empty": f"set {{ type {_SCALARS}; }}",
    "hairpin": "set { type ipv4_addr . ipv4_addr; }",
}
"""The sets and maps that carry services, each with its nftables type."""

Elements = Mapping[str, Mapping[str, str]]
"""By name of the map: keys to values, as nftables writes them; values of a set are empty."""


def no_elements() -> Elements:
    """Return the elements of an empty table."""
    return {name: {} for name in MAPS}


def chains_for(elements: Elements) -> frozenset[str]:
    """Name the shared chains that elements lead to."""
    values = [value for name in ("ports", "node_ports") for value in elements.get(name, {}).values()]
    return with_hits({value.removeprefix("goto ") for value in values})


def with_hits(chains: Iterable[str]) -> frozenset[str]:
    """Add those chains that chains with affinity lead to."""
    found = set(chains)
    return frozenset(found | {f"{chain[0]}hit{chain.partition('t')[2]}" for chain in found if "t" in chain})


def changes(table: str, old: Elements, new: Elements, old_chains: frozenset[str], new_chains: frozenset[str]) -> str:
    """Write the commands that turn `old` into `new`, as one transaction; "" when they are equal."""
    lines: list[str] = []
    for chain in sorted(new_chains - old_chains, key=lambda name: ("hit" not in name, name)):  # those jumped to first
        lines += [
            f"add chain ip {table} {chain}",
            *(f"add rule ip {table} {chain} {rule}" for rule in chain_rules(chain)),
        ]
    for name in MAPS:
        was, shall = old.get(name, {}), new.get(name, {})
        gone = [key for key, value in was.items() if shall.get(key) != value]
        come = [f"{key} : {value}" if value else key for key, value in shall.items() if was.get(key) != value]
        lines += _batches(f"delete element ip {table} {name}", gone)
        lines += _batches(f"add element ip {table} {name}", come)
    surplus = sorted(old_chains - new_chains, key=lambda name: ("hit" in name, name))
    lines += [f"flush chain ip {table} {chain}" for chain in surplus]
    lines += [f"delete chain ip {table} {chain}" for chain in surplus]
    return "\n".join(lines)


def chain_rules(chain: str) -> list[str]:
    """Write the rules of a shared chain by its name.

    `e3` and `n3` draw one of three, for addresses and node ports; `e3t60` and `n3t60` do with an affinity of 60 s;
    `ehit60` and `nhit60` send to the backend with the id in the priority, and forget the client's id when it has gone.
    """
    kind, rest = ("node_", _NODE_KEY) if chain[0] == "n" else ("", _KEY)
    send = f"dnat ip to {rest} . meta priority map @{kind}backends"
    if chain[1:].startswith("hit"):
        timeout = chain[4:]
        return [
            f"update @affinity {{ {_CLIENT} timeout {timeout}s : meta priority }} {send}",
            f"delete @affinity {{ {_CLIENT} : meta priority }}",
        ]
    count, _, affinity = chain[1:].partition("t")
    draw = f"meta priority set numgen random mod {count}"
    if not affinity:
        return [f"{draw} {send}"]
    return [
        f"meta priority set {_CLIENT} map @affinity jump {chain[0]}hit{affinity}",
        draw,
        f"meta priority set {rest} . meta priority map @{kind}pick",
        f"goto {chain[0]}hit{affinity}",
    ]


def frame(table: str, node: Ranges) -> str:
    """Write the table without any service, in place of the one that may be there."""
    lines = [f"add table ip {table}", f"delete table ip {table}", f"add table ip {table}"]
    for name, definition in MAPS.items():
        kind, _, body = definition.partition(" ")
        lines.append(f"add {kind} ip {table} {name} {body}")
    lines += [
        f"add map ip {table} affinity {{ type ipv4_addr . {_SCALARS} : classid; flags dynamic,timeout; timeout 3h; "
        "size 65536; }",
        *(f"add chain ip {table} {name} {body}" for name, body in _BASE_CHAINS.items()),
        *(f"add rule ip {table} {rule}" for rule in _base_rules(node)),
        f"add chain ip {table} {frame_mark(node)}",
    ]
    return "\n".join(lines)


def frame_mark(node: Ranges) -> str:
    """Name the empty chain whose presence says that the table was made by this very version, for these ranges."""
    text = repr((_BASE_CHAINS, _base_rules(node), MAPS, chain_rules("e2"), chain_rules("n2t9"), chain_rules("ehit9")))
    return f"made_by_{zlib.crc32(text.encode()):08x}"


def chains_of(node: Ranges, shared: Iterable[str]) -> dict[str, int]:
    """Say which chains the table has, and how many rules each, when it has these shared chains."""
    counts = dict.fromkeys([*_BASE_CHAINS, frame_mark(node)], 0)
    for rule in _base_rules(node):
        counts[rule.partition(" ")[0]] += 1
    return counts | {chain: len(chain_rules(chain)) for chain in shared}


_BASE_CHAINS: Mapping[str, str] = {
    "serve": "",
    "refuse": "",
    "arriving": "{ type nat hook prerouting priority dstnat; }",
    "own": "{ type nat hook output priority -100; }",
    "leaving": "{ type nat hook postrouting priority srcnat; }",
    "refuse_forwarded": "{ type filter hook forward priority filter; }",
    "refuse_own": "{ type filter hook output priority filter; }",
}


def _base_rules(node: Ranges) -> list[str]:
    return [
        f"serve {_KEY} vmap @ports",
        f"serve fib daddr type local {_NODE_KEY} vmap @node_ports",
        "arriving jump serve",
        "own jump serve",
        # What still goes to a service address has no backend; nobody shall wait for an answer.
        f"refuse_forwarded ip daddr {node.services} goto refuse",
        f"refuse_forwarded {_KEY} @empty goto refuse",
        f"refuse_own ip daddr {node.services} goto refuse",
        f"refuse_own {_KEY} @empty goto refuse",
        "refuse meta l4proto tcp reject with tcp reset",
        "refuse reject",
        # Answers have to come back this way: to a pod that reached itself, and to who is outside the pod network.
        f"leaving ct status dnat ip saddr . ip daddr @hairpin snat ip to {node.gateway}",
        f"leaving ct status dnat ip daddr {node.pods} ip saddr != {node.pods} snat ip to {node.gateway}",
    ]


def slot(number: int) -> str:
    """Write a number as nftables writes a priority."""
    return f"{number >> 16:x}:{number & 0xFFFF:x}" if number else "none"


def _batches(command: str, items: Sequence[str], size: int = 2000) -> list[str]:
    return [f"{command} {{ {', '.join(items[at : at + size])} }}" for at in range(0, len(items), size)]
