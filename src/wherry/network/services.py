"""The service table of one node in the kernel: kept equal to what it is told, element by element, and repaired."""

import asyncio
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from wherry.errors import Broken
from wherry.host import conntrack
from wherry.host.nftables import Nft
from wherry.network import flat, plans
from wherry.network.flat import Elements
from wherry.network.guard import Guard
from wherry.network.plans import Plan
from wherry.network.ranges import Ranges
from wherry.network.types import Service

log = logging.getLogger(__name__)
_UDP = 17
_PROTOCOL_NAMES = {"6": "tcp", "17": "udp"}


class NftServices:
    """`types.Services` by nftables. The first `sync` takes up a table of before, with its open sessions, if it fits.

    Connections that stand live on when their backend leaves; only UDP flows to it are forgotten, since they have no end.
    """

    def __init__(self, instance: str, node: Ranges, nft: Nft, guard: Guard) -> None:
        self.refused: Mapping[str, str] = {}
        self._table, self._ranges = table_name(instance), node
        self._nft, self._guard = nft, guard
        self._plan = Plan()
        self._is_made = False
        self._lock = asyncio.Lock()

    async def sync(self, services: Sequence[Service]) -> None:
        """See Services. What cannot be served is left out, logged once and kept in `refused`."""
        async with self._lock:
            if not self._is_made:
                await self._make()
            step = plans.step(services, self._plan)
            target = step.plan
            commands = flat.changes(self._table, step.old, step.new, self._plan.chains, target.chains)
            if commands:
                try:
                    async with self._guard.own_change():
                        await self._nft.run(commands)
                except Broken:
                    if not await self._differs():  # nft itself is at fault, not somebody else's change
                        raise
                    log.warning("%s was changed by somebody else: it is written anew", self._table)
                    await self._write_anew(target)
            gone = lost_udp(step.old, step.new)
            self._plan = target
            self._tell(target.refused)
            if gone:
                await self._nft.call(lambda: conntrack.forget(lambda flow: _is_lost(flow, gone)))

    async def close(self, *, remove: bool = False) -> None:
        """Stop looking after the table; with `remove` take it away."""
        self._guard.drop("services")
        if remove:
            async with self._lock:
                await self._nft.run(f"add table ip {self._table}\ndelete table ip {self._table}")
                self._plan, self._is_made = Plan(), False

    async def read(self) -> Elements:
        """Read back what the kernel has; empty when the table is not there."""
        if not await self._chains():
            return {}
        found: dict[str, Mapping[str, str]] = {}
        for name, definition in flat.MAPS.items():
            kind = definition.partition(" ")[0]
            found |= elements_of(await self._nft.read(f"list {kind} ip {self._table} {name}"))
        return found

    async def _make(self) -> None:
        """Take up the table of before, if it was made by this version for these ranges; else make an empty one."""
        found = await self._read_whole()
        if found is None:
            await self._nft.run(flat.frame(self._table, self._ranges))
            self._plan = Plan()
        else:
            self._plan = plans.taken_up(found, slots_of(found))
        self._is_made = True
        self._guard.add("services", self._check)

    async def _check(self) -> bool:
        async with self._lock:
            if not self._is_made or not await self._differs():
                return False
            await self._write_anew(self._plan)
            return True

    async def _differs(self) -> bool:
        return await self._read_whole() != self._plan.elements

    async def _read_whole(self) -> Elements | None:
        """Read the elements back; None when the table, a map or rules are missing, or there are more rules."""
        chains = await self._chains()
        try:
            found = await self.read() if chains else {}
        except Broken:  # a map that somebody took away
            return None
        if found.keys() != flat.MAPS.keys():
            return None
        return found if chains == flat.chains_of(self._ranges, flat.chains_for(found)) else None

    async def _chains(self) -> Mapping[str, int]:
        """Count the rules of each chain; empty when the table is not there."""
        try:
            return count_rules(await self._nft.read_text(f"list table ip {self._table}"))
        except Broken as error:
            if "No such file or directory" in error.message:
                return {}
            raise

    async def _write_anew(self, target: Plan) -> None:
        fill = flat.changes(self._table, flat.no_elements(), target.elements, frozenset(), target.chains)
        await self._nft.run(f"{flat.frame(self._table, self._ranges)}\n{fill}")

    def _tell(self, refused: Mapping[str, str]) -> None:
        for key, reason in refused.items():
            if self.refused.get(key) != reason:
                log.warning("%s is not served: %s", key, reason)
        self.refused = dict(refused)


def table_name(instance: str) -> str:
    """Name the table for services."""
    return f"wherry-{instance}"


def count_rules(text: str) -> dict[str, int]:
    """Count the rules of each chain in nft's text list of a table."""
    found: dict[str, int] = {}
    chain = ""
    for line in text.splitlines():
        words = line.split()
        if words[:1] == ["chain"]:
            chain = words[1]
            found[chain] = 0
        elif words == ["}"]:
            chain = ""
        elif chain and words and words[0] != "type":
            found[chain] += 1
    return found


def elements_of(items: Iterable[Mapping[str, Any]]) -> Elements:
    """Read the elements out of nft's JSON list of maps and sets."""
    found: dict[str, dict[str, str]] = {}
    for item in items:
        held = item.get("map") or item.get("set")
        if held is None or held["name"] not in flat.MAPS:
            continue
        place = {"hairpin": -1}.get(held["name"], 0 if held["name"].startswith("node_") else 1)
        pairs = found[held["name"]] = {}
        for element in held.get("elem", ()):
            key, value = element if isinstance(element, list) else (element, "")
            words = [str(word) for word in key["concat"]]
            if place >= 0:
                words[place] = _PROTOCOL_NAMES.get(words[place], words[place])
            if held["name"].endswith(("backends", "pick")):  # versions of nft write these numbers in several ways
                words[-1] = flat.slot(_number(words[-1]))
            if held["name"].endswith("pick"):
                value = flat.slot(_number(str(value)))
            pairs[" . ".join(words)] = _value(value)
    return found


def slots_of(elements: Elements) -> dict[str, tuple[str, ...]]:
    """Find each key's backends in the order of their slots, as `Plan.slots` has them."""
    found: dict[str, dict[int, str]] = {}
    for kind in ("", "node_"):
        by_id = elements.get(f"{kind}backends", {})
        for name in ("pick", "backends"):
            for key, value in elements.get(f"{kind}{name}", {}).items():
                base, _, number = key.rpartition(" . ")
                place = _number(number)
                if place < 0x8000_0000:
                    backend = by_id.get(f"{base} . {value}", "") if name == "pick" else value
                    found.setdefault(kind + base, {})[place] = backend
    return {key: tuple(places[place] for place in sorted(places)) for key, places in found.items()}


def lost_udp(old: Elements, new: Elements) -> set[tuple[str, str]]:
    """Say which (service address and port, backend) pairs of UDP are no more; the address of a node port is ""."""

    def pairs(elements: Elements) -> set[tuple[str, str]]:
        found: set[tuple[str, str]] = set()
        for kind in ("", "node_"):
            for key, backend in elements.get(f"{kind}backends", {}).items():
                words = key.split(" . ")
                if "udp" in words:
                    place = words.index("udp")
                    found.add((f"{words[0] if place else ''}:{words[place + 1]}", backend))
        return found

    return pairs(old) - pairs(new)


def _is_lost(flow: conntrack.Flow, gone: set[tuple[str, str]]) -> bool:
    if flow.protocol != _UDP:
        return False
    backend = f"{flow.answerer[0]} . {flow.answerer[1]}"
    return (f"{flow.target[0]}:{flow.target[1]}", backend) in gone or (f":{flow.target[1]}", backend) in gone


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        if "goto" in value:
            return f"goto {value['goto']['target']}"
        return " . ".join(str(word) for word in value["concat"])
    return str(value)


def _number(text: str) -> int:
    """Read a priority as nft writes it: `none`, `root`, `8001:ab`, `8001:`, `:ab` (hexadecimal), or a plain number."""
    if text in ("none", "root"):
        return 0 if text == "none" else 0xFFFF_FFFF
    high, colon, low = text.partition(":")
    return int(high or "0", 16) << 16 | int(low or "0", 16) if colon else int(text, 0)
