"""Living beside ufw: route rules that let our containers out, and to the DNS of their networks, while ufw is on.

ufw drops what is forwarded, and what comes in. It publishes `ufw route` for the one and `ufw allow` for the other. Our rules
carry our name as a comment, stand behind people's own (whose refusals win), and go with us. What comes from afar to
published ports is left to ufw's rules: `ufw route allow proto tcp from any to any port 80` (the container's port) lets
it in. Source: ufw's manual.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

from wherry.errors import Broken, WherryError
from wherry.host import spawn
from wherry.host.nftables import Nft

log = logging.getLogger(__name__)
RULES = Path("/etc/ufw")
FILES = ("user.rules", "user6.rules")
_TIMEOUT_S = 30.0


async def is_on(nft: Nft) -> bool:
    """Say whether ufw's chains are there, by the nftables form of iptables."""
    try:
        await nft.read_text("list chain ip filter ufw-user-forward")
    except Broken as error:
        if "No such file or directory" in error.message:
            return False
        raise
    return True


def wanted(subnet: str, gateway: str, *, internal: bool = False) -> list[list[str]]:
    """Write the rules that one network needs, without `allow` and comment. Pure."""
    names = ["in", "from", subnet, "to", gateway, "port", "53"]
    return [names] if internal else [["route", "from", subnet], names]


def ours(text: str, instance: str) -> list[list[str]]:
    """Read our rules out of ufw's file, in the words of `wanted`. Pure."""
    found: list[list[str]] = []
    for line in text.splitlines():
        words = line.split()
        if words[:3] != ["###", "tuple", "###"] or f"comment={_comment(instance).encode().hex()}" not in words:
            continue
        action, _, port, target, _, source = words[3:9]
        found.append(["route", "from", source] if action.startswith("route:") else
                     ["in", "from", source, "to", target, "port", port])  # fmt: skip
    return found


async def ensure(nft: Nft, instance: str, rules: Sequence[Sequence[str]]) -> bool:
    """Add the rules that are missing; True when some were. What fails is logged."""
    if not rules or not await is_on(nft):
        return False
    held = there(instance)
    missing = [list(rule) for rule in rules if list(rule) not in held]
    done = [await _run(words(rule, "allow"), "comment", _comment(instance)) for rule in missing]
    return any(done)


async def remove(instance: str, rules: Sequence[Sequence[str]] | None = None) -> None:
    """Take our rules away: all, or those of `rules`."""
    for rule in there(instance):
        if rules is None or rule in [list(each) for each in rules]:
            await _run(words(rule, "delete allow"))


def there(instance: str) -> list[list[str]]:
    """Read our rules as ufw keeps them."""
    found: list[list[str]] = []
    for name in FILES:
        path = RULES / name
        if path.exists():
            found += ours(path.read_text(errors="replace"), instance)
    return found


def words(rule: Sequence[str], action: str) -> list[str]:
    """Put the action where ufw wants it: behind `route`."""
    routed = rule[0] == "route"
    return [*(["route"] if routed else []), *action.split(), *rule[routed:]]


async def _run(words: Sequence[str], *more: str) -> bool:
    try:
        (await spawn.run(["ufw", *words, *more], timeout_s=_TIMEOUT_S)).check()
    except (WherryError, OSError) as error:
        log.warning("ufw does not let our containers through: %s", error)
        return False
    return True


def _comment(instance: str) -> str:
    return f"wherry-{instance}"
