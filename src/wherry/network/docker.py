"""Living beside dockerd: our pods' packets are let through where Docker lets others add rules.

dockerd sets the policy of the `filter` table's FORWARD chain to drop, for everybody. No table of ours can overrule that;
Docker keeps the chain DOCKER-USER for this. Our rules there carry our name as a comment, and go with us. Source:
Docker's manual, "Packet filtering and firewalls".
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from wherry.errors import Broken
from wherry.host.nftables import Nft
from wherry.network.ranges import link_prefix

FAMILIES = ("ip", "ip6")
CHAIN = "filter DOCKER-USER"


class DockerUser:
    """Our rules in Docker's chains, as far as there are such chains. `ensure` again after others' changes."""

    def __init__(self, nft: Nft, instance: str) -> None:
        self._nft, self._instance = nft, instance

    async def ensure(self, links: Sequence[str] = ()) -> bool:
        """Add the rules that are missing, for all links with our prefix and for `links`; True when some were."""
        commands: list[str] = []
        for family in FAMILIES:
            rules = await rules_of(self._nft, family)
            if rules is not None:
                place = place_in(rules)
                commands += [
                    f"{'insert' if place else 'add'} rule {family} {CHAIN} {place}{rule}"
                    for rule in missing_rules(self._instance, rules, links)
                ]
        await self._nft.run("\n".join(commands))
        return bool(commands)

    async def drop(self, link: str) -> None:
        """Take the rules for one link away."""
        await _remove(self._nft, self._instance, lambda rule: any(name == link for _, name in _names(rule)))

    async def remove(self) -> None:
        """Take our rules away; fine when they, or Docker, are not there."""
        await remove_rules(self._nft, self._instance)


async def remove_rules(nft: Nft, instance: str) -> None:
    """Take an instance's rules out of Docker's chains."""
    await _remove(nft, instance, lambda rule: True)


async def _remove(nft: Nft, instance: str, chosen: Callable[[Mapping[str, Any]], bool]) -> None:
    commands = [
        f"delete rule {family} {CHAIN} handle {rule['handle']}"
        for family in FAMILIES
        for rule in await rules_of(nft, family) or ()
        if rule.get("comment", "") == _comment(instance) and chosen(rule)
    ]
    await nft.run("\n".join(commands))


def missing_rules(instance: str, rules: Sequence[Mapping[str, Any]], links: Sequence[str] = ()) -> list[str]:
    """Say which of our rules are not among those that the chain has (in nft's JSON form)."""
    there = {pair for rule in rules if rule.get("comment", "") == _comment(instance) for pair in _names(rule)}
    wanted = [(key, name) for name in (f"{link_prefix(instance)}*", *links) for key in ("iifname", "oifname")]
    return [
        f'{key} "{name}" counter accept comment "{_comment(instance)}"'
        for key, name in wanted
        if (key, name) not in there
    ]


def place_in(rules: Sequence[Mapping[str, Any]]) -> str:
    """Say where our rules go: behind people's own, whose refusals win, but before the last word that dockerd writes there."""
    for rule in rules:
        verdicts = [expression for expression in rule["expr"] if "counter" not in expression]
        if verdicts == [{"return": None}]:
            return f"handle {rule['handle']} "
    return ""


def _names(rule: Mapping[str, Any]) -> list[tuple[str, str]]:
    """List what a rule says of interfaces: (`iifname` or `oifname`, name)."""
    return [
        (match["left"]["meta"]["key"], match["right"])
        for expression in rule["expr"]
        if isinstance(match := expression.get("match"), dict) and "meta" in match["left"]
    ]


def _comment(instance: str) -> str:
    return f"wherry-{instance}"


async def rules_of(nft: Nft, family: str = "ip") -> list[Mapping[str, Any]] | None:
    """List the chain's rules; None when there is no such chain."""
    try:
        items = await nft.read(f"list chain {family} {CHAIN}")
    except Broken as error:
        if "No such file or directory" in error.message:
            return None
        raise
    return [item["rule"] for item in items if "rule" in item]
