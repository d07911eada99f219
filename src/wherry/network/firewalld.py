"""Living beside firewalld: our containers' addresses are sources of its zone `trusted`, while it runs.

firewalld rejects what is forwarded between zones that it was not told of. It publishes zones for that; a source of a zone
at run time goes with firewalld's end or reload, changes no file, and is there again a second later. What comes from
afar to published ports firewalld lets through by itself. Source: firewalld's manual.
"""

import logging
from collections.abc import Sequence
from ipaddress import ip_network

from wherry.errors import Broken, WherryError
from wherry.host import spawn
from wherry.host.nftables import Nft
from wherry.network.claims import overlap

log = logging.getLogger(__name__)
TABLE, ZONE = "inet firewalld", "trusted"
_TIMEOUT_S = 30.0


async def rules(nft: Nft) -> str | None:
    """Read its rules; None while it does not run by nftables."""
    try:
        return await nft.read_text(f"list table {TABLE}")
    except Broken as error:
        if "No such file or directory" in error.message:
            return None
        raise


def missing(rules: str, subnets: Sequence[str]) -> list[str]:
    """Say which subnets are no sources of the zone, by firewalld's rules. Pure."""
    return [each for each in subnets if f"saddr {each} goto filter_IN_{ZONE}" not in rules]


async def ensure(nft: Nft, subnets: Sequence[str]) -> bool:
    """Add the subnets that are missing to the zone; True when some were. What fails is logged."""
    found = await rules(nft)
    wanted = missing(found, subnets) if found is not None else []
    return bool(wanted) and await _zone(*(f"--add-source={each}" for each in wanted)) is not None


async def remove(nft: Nft, ranges: Sequence[str]) -> None:
    """Take all sources that lie within our ranges out of the zone."""
    if await rules(nft) is None:
        return
    mine = [ip_network(each) for each in ranges]
    listed = (await _zone("--list-sources") or "").split()
    gone = [each for each in listed if ":" not in each.partition("/")[0] or "::" in each]
    gone = [each for each in gone if any(overlap(ip_network(each, strict=False), other) for other in mine)]
    if gone:
        await _zone(*(f"--remove-source={each}" for each in gone))


async def _zone(*words: str) -> str | None:
    try:
        done = (await spawn.run(["firewall-cmd", f"--zone={ZONE}", *words], timeout_s=_TIMEOUT_S)).check()
    except (WherryError, OSError) as error:
        log.warning("firewalld does not let our containers through: %s", error)
        return None
    return done.out.decode(errors="replace")
