"""Other tools' firewalls: our containers are let through where each of them publishes a place for that, and nowhere else.

dockerd's chain DOCKER-USER (by either iptables), firewalld's zones, ufw's route rules. What we add is there again after
they reload, and goes with the network or instance that it is for.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from wherry.host.nftables import Nft
from wherry.network import firewalld, iptables_legacy, ufw
from wherry.network.docker import CHAIN, DockerUser, rules_of
from wherry.network.ranges import link_prefix


@dataclass(frozen=True, slots=True)
class Place:
    """Where containers of ours are: a subnet, and our address there. `internal`: nothing leaves it."""

    subnet: str
    gateway: str
    internal: bool = False


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A firewall of this machine as `doctor` shows it: what was seen, and what helps ("" where our containers pass)."""

    name: str
    seen: str
    fix: str = ""

    @property
    def lets_through(self) -> bool:
        """Whether our containers' packets pass it."""
        return not self.fix


class Firewalls:
    """Our places in others' firewalls. `ensure` again after others' changes."""

    def __init__(self, nft: Nft, instance: str) -> None:
        self._nft, self._instance = nft, instance
        self._docker = DockerUser(nft, instance)
        self._lock = asyncio.Lock()

    async def ensure(self, places: Sequence[Place] = (), links: Sequence[str] = ()) -> bool:
        """Add what is missing for these places, and for links of chosen names; True when something was."""
        async with self._lock:
            rules = [rule for each in places for rule in ufw.wanted(each.subnet, each.gateway, internal=each.internal)]
            return any(
                [
                    await self._docker.ensure(links),
                    await iptables_legacy.ensure(self._nft, self._instance, links),
                    await firewalld.ensure(self._nft, [each.subnet for each in places]),
                    await ufw.ensure(self._nft, self._instance, rules),
                ]
            )

    async def drop(self, places: Sequence[Place], link: str = "") -> None:
        """Take away what was added for these places, and for a link of a chosen name."""
        async with self._lock:
            await firewalld.remove(self._nft, [each.subnet for each in places])
            rules = [rule for each in places for rule in ufw.wanted(each.subnet, each.gateway)]
            await ufw.remove(self._instance, rules)
            if link:
                await self._docker.drop(link)
                await iptables_legacy.remove(self._nft, self._instance, link)


async def remove(nft: Nft, instance: str, ranges: Sequence[str] = ()) -> None:
    """Take everything of an instance away; `ranges` are the addresses that it had."""
    await DockerUser(nft, instance).remove()
    await iptables_legacy.remove(nft, instance)
    await firewalld.remove(nft, ranges)
    await ufw.remove(instance)


async def neighbours(nft: Nft, instance: str = "", places: Sequence[Place] = ()) -> list[Neighbour]:
    """Describe the firewalls of this machine, and whether an instance's containers pass them. For `doctor`."""
    found: list[Neighbour] = []
    prefix = f"{link_prefix(instance)}*" if instance else "wh*"
    for family in ("ip", "ip6"):
        rules = await rules_of(nft, family)
        if rules is not None:
            mine = sum(rule.get("comment", "") == f"wherry-{instance}" for rule in rules)
            wants = bool(instance and places and not mine)
            found.append(Neighbour("dockerd", f"chain {family} {CHAIN}, {mine} rules of this instance",
                                   "it is repaired within a second while the instance is up" if wants else ""))  # fmt: skip
    if listed := await iptables_legacy.acting(await nft.call(iptables_legacy.has_tables)):
        can = await iptables_legacy.rules() is not None
        fix = (
            "" if can else "update-alternatives --set iptables /usr/sbin/iptables-nft, then restart what uses iptables"
        )
        found.append(Neighbour("iptables-legacy", f"rules in {', '.join(listed)}", fix))
    text = await firewalld.rules(nft)
    if text is not None:
        gone = firewalld.missing(text, [each.subnet for each in places])
        fix = (
            f"firewall-cmd --zone={firewalld.ZONE} {' '.join(f'--add-source={each}' for each in gone)}" if gone else ""
        )
        found.append(Neighbour("firewalld", f"running; zone {firewalld.ZONE} is ours to add to", fix))
    if await ufw.is_on(nft):
        there = ufw.there(instance) if instance else []
        gone = [rule for each in places for rule in ufw.wanted(each.subnet, each.gateway, internal=each.internal)]
        gone = [rule for rule in gone if rule not in there]
        fix = "; ".join(" ".join(["ufw", *ufw.words(rule, "allow")]) for rule in gone)
        found.append(Neighbour("ufw", f"on; {len(there)} rules of this instance", fix))
    items = await nft.read("list chains")
    return [
        *found,
        *(_refusing(item["chain"], prefix) for item in items if "chain" in item and _refuses(item["chain"])),
    ]


_KNOWN = (("ip", "filter"), ("ip6", "filter"), ("inet", "firewalld"))


def _refuses(chain: dict[str, Any]) -> bool:
    """Whether a chain of somebody unknown drops what is forwarded unless it was told otherwise."""
    drops = chain.get("hook") == "forward" and chain.get("policy") == "drop"
    return drops and (chain["family"], chain["table"]) not in _KNOWN


def _refusing(chain: dict[str, Any], prefix: str) -> Neighbour:
    name = f"{chain['family']} {chain['table']} {chain['name']}"
    accept = "; ".join(f"nft insert rule {name} {key} '\"{prefix}\"' accept" for key in ("iifname", "oifname"))
    return Neighbour("nftables", f"chain {name} drops what is forwarded; no tool publishes a place there", accept)
