"""Living beside dockerd: our pods' packets are let through where Docker lets others add rules.

dockerd sets the policy of the `filter` table's FORWARD chain to drop, for everybody. No table of ours can overrule that;
Docker keeps the chain DOCKER-USER for this. Our rules there carry our name as a comment, and go with us. Source:
Docker's manual, "Packet filtering and firewalls".
"""

from collections.abc import Mapping, Sequence
from typing import Any

from wherry.errors import Broken
from wherry.host.nftables import Nft
from wherry.network.ranges import link_prefix

CHAIN = "ip filter DOCKER-USER"


class DockerUser:
    """Our two rules in Docker's chain, as far as there is such a chain. `ensure` again after others' changes."""

    def __init__(self, nft: Nft, instance: str) -> None:
        self._nft, self._instance = nft, instance

    async def ensure(self) -> bool:
        """Add the rules that are missing; True when some were."""
        rules = await _rules(self._nft)
        if rules is None:
            return False
        missing = missing_rules(self._instance, rules)
        await self._nft.run("\n".join(f"insert rule {CHAIN} {rule}" for rule in missing))
        return bool(missing)

    async def remove(self) -> None:
        """Take our rules away; fine when they, or Docker, are not there."""
        await remove_rules(self._nft, self._instance)


def has_legacy_tables() -> bool:
    """Say whether the old iptables (not its nftables form) holds rules: nothing of ours can let pods through there.

    What helps: `update-alternatives --set iptables /usr/sbin/iptables-nft`, then restart dockerd.
    """
    try:
        with open("/proc/net/ip_tables_names", encoding="ascii") as file:
            return "filter" in file.read().split()
    except OSError:
        return False


async def remove_rules(nft: Nft, instance: str) -> None:
    """Take an instance's rules out of Docker's chain."""
    handles = [rule["handle"] for rule in await _rules(nft) or () if rule.get("comment", "") == _comment(instance)]
    await nft.run("\n".join(f"delete rule {CHAIN} handle {handle}" for handle in handles))


def missing_rules(instance: str, rules: Sequence[Mapping[str, Any]]) -> list[str]:
    """Say which of our rules are not among those that the chain has (in nft's JSON form)."""
    there = {
        match["left"]["meta"]["key"]
        for rule in rules
        if rule.get("comment", "") == _comment(instance)
        for expression in rule["expr"]
        if isinstance(match := expression.get("match"), dict) and "meta" in match["left"]
    }
    wanted = ("iifname", "oifname")
    return [
        f'{key} "{link_prefix(instance)}*" counter accept comment "{_comment(instance)}"'
        for key in wanted
        if key not in there
    ]


def _comment(instance: str) -> str:
    return f"wherry-{instance}"


async def _rules(nft: Nft) -> list[Mapping[str, Any]] | None:
    """List the chain's rules; None when there is no such chain."""
    try:
        items = await nft.read(f"list chain {CHAIN}")
    except Broken as error:
        if "No such file or directory" in error.message:
            return None
        raise
    return [item["rule"] for item in items if "rule" in item]
