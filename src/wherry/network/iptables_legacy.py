"""Living beside a dockerd of the old iptables, whose rules nftables does not see: the same two rules, by its own tool."""

import logging
from collections.abc import Sequence

from wherry.errors import WherryError
from wherry.host import facts, spawn
from wherry.host.nftables import Nft
from wherry.network.ranges import link_prefix

log = logging.getLogger(__name__)
_TOOL, _CHAIN = "iptables-legacy", "DOCKER-USER"
_TIMEOUT_S = 15.0


def has_tables() -> list[str]:
    """Name the tables that the old iptables has in the calling thread's network namespace."""
    try:
        with open("/proc/thread-self/net/ip_tables_names", encoding="ascii") as file:
            return file.read().split()
    except OSError:
        return []


def missing(listed: str, instance: str, links: Sequence[str] = ()) -> list[list[str]]:
    """Say which of our rules are not among those that `-S` listed. Pure."""
    there = [line.replace('"', "").split()[2:] for line in listed.splitlines() if line.startswith(f"-A {_CHAIN} ")]
    return [rule for rule in _wanted(instance, [f"{link_prefix(instance)}+", *links]) if rule not in there]


async def rules() -> str | None:
    """List the rules of Docker's chain; None when there is no such chain or tool."""
    if not facts.find_program(_TOOL):
        return None
    done = await spawn.run([_TOOL, "-w", "5", "-S", _CHAIN], timeout_s=_TIMEOUT_S)
    return done.out.decode(errors="replace") if done.code == 0 else None


async def acting(tables: Sequence[str]) -> list[str]:
    """Name those of `tables` that do something: a rule, or a policy that drops. All of them where nobody can tell.

    Whoever asked the old iptables once, for a list even, has left its table behind, empty.
    """
    if not facts.find_program(_TOOL):
        return list(tables)
    found: list[str] = []
    for table in tables:
        done = await spawn.run([_TOOL, "-w", "5", "-t", table, "-S"], timeout_s=_TIMEOUT_S)
        lines = done.out.decode(errors="replace").splitlines()
        if done.code != 0 or any(line.startswith("-A") or line.endswith(" DROP") for line in lines):
            found.append(table)
    return found


async def ensure(nft: Nft, instance: str, links: Sequence[str] = ()) -> bool:
    """Add the rules that are missing; True when some were. What fails is logged."""
    if "filter" not in await nft.call(has_tables):
        return False
    listed = await rules()
    wanted = missing(listed, instance, links) if listed is not None else []
    place = place_in(listed or "")
    return any([await _run("-I" if place else "-A", rule, place) for rule in wanted])


async def remove(nft: Nft, instance: str, link: str = "") -> None:
    """Take our rules away: all, or those for one link."""
    if "filter" not in await nft.call(has_tables):
        return
    for line in (await rules() or "").splitlines():
        rule = line.replace('"', "").split()[2:]
        if f"wherry-{instance}" in rule and (not link or link in rule):
            await _run("-D", rule)


def _wanted(instance: str, links: Sequence[str]) -> list[list[str]]:
    comment = ["-m", "comment", "--comment", f"wherry-{instance}"]
    return [[option, link, *comment, "-j", "ACCEPT"] for link in links for option in ("-i", "-o")]


def place_in(listed: str) -> str:
    """Say before which rule ours go: people's own come first, and win; "" means at the end. Pure."""
    lines = [line for line in listed.splitlines() if line.startswith(f"-A {_CHAIN} ")]
    return next((str(number) for number, line in enumerate(lines, 1) if line == f"-A {_CHAIN} -j RETURN"), "")


async def _run(action: str, rule: Sequence[str], *place: str) -> bool:
    words = [_TOOL, "-w", "5", action, _CHAIN, *filter(None, place), *rule]
    try:
        (await spawn.run(words, timeout_s=_TIMEOUT_S)).check()
    except WherryError as error:
        log.warning("dockerd's old iptables does not let our containers through: %s", error)
        return False
    return True
