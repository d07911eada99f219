"""`wherry doctor` on the network: forwarding, other tools' firewalls, our own rules, resolvers, the sockets' group."""

import asyncio
import os
import re
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from ipaddress import ip_network
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from wherry.daemon.findings import Finding, Grade
from wherry.daemon.instance import Instance
from wherry.errors import WherryError

if TYPE_CHECKING:
    from wherry.host.nftables import Nft
    from wherry.network.firewalls import Place

T = TypeVar("T")
FORWARD = Path("/proc/sys/net/ipv4/ip_forward")
RESOLV, BEHIND = Path("/etc/resolv.conf"), Path("/run/systemd/resolve/resolv.conf")


def forwarding(instance: Instance) -> Finding:
    """net.ipv4.ip_forward, and who turned it on."""
    value = FORWARD.read_text().strip() if FORWARD.exists() else ""
    up = _is_up(instance)
    if value == "1":
        return Finding("forwarding", Grade.PASS, f"net.ipv4.ip_forward = 1{_turned_on(instance)}")
    if not up:
        return Finding(
            "forwarding", Grade.PASS, "net.ipv4.ip_forward = 0: turned on at the start, put back by `wherry down`"
        )
    return Finding(
        "forwarding", Grade.WARN, "net.ipv4.ip_forward = 0 while the instance is up",
        "somebody has turned it off: containers reach neither each other nor the outside", "sysctl -w net.ipv4.ip_forward=1",
    )  # fmt: skip


def _turned_on(instance: Instance) -> str:
    if os.geteuid() != 0:
        return ""
    from wherry.network.claims import Claims

    with suppress(WherryError):
        if any("net.ipv4.ip_forward" in each.before for each in Claims().all()):
            return " (by wherry: the last `wherry down` puts it back)"
    return ""


def firewalls(instance: Instance) -> Finding:
    """dockerd, firewalld, ufw, the old iptables, and chains of nobody known that drop what is forwarded."""
    if os.geteuid() != 0:
        return Finding("firewalls", Grade.PASS, "not looked at (needs root)")
    from wherry.network import firewalls

    places = _places(instance) if _is_up(instance) else []
    try:
        found = _with_nft(lambda nft: firewalls.neighbours(nft, instance.id, places))
    except (WherryError, OSError) as error:
        return _unread("firewalls", error)
    if not found:
        return Finding("firewalls", Grade.PASS, "no dockerd, firewalld or ufw, and no foreign chain that drops")
    seen = "; ".join(f"{each.name}: {each.seen}" for each in found)
    closed = [each for each in found if not each.lets_through]
    if not closed:
        return Finding("firewalls", Grade.PASS, seen)
    return Finding(
        "firewalls", Grade.WARN, seen,
        "another table's drop cannot be overruled from ours: containers reach neither each other nor the outside",
        "; ".join(each.fix for each in closed),
    )  # fmt: skip


def own_rules(instance: Instance) -> Finding:
    """Our own nftables tables: there while the instance is up, and gone while it is down."""
    if os.geteuid() != 0:
        return Finding("rules", Grade.PASS, "not looked at (needs root)")
    mark = f"wherry-{instance.id}"
    try:
        items = _with_nft(lambda nft: nft.read("list tables"))
    except (WherryError, OSError) as error:
        return _unread("rules", error)
    tables = sorted({f"{each['table']['family']} {each['table']['name']}" for each in items if "table" in each})
    mine = [each for each in tables if mark in each]
    if _is_up(instance):
        if mine:
            return Finding("rules", Grade.PASS, f"nftables: {', '.join(mine)}")
        return Finding(
            "rules", Grade.WARN, "no nftables table of this instance is there",
            "somebody has flushed the rules: they come back within seconds while a node runs",
            "wherry status   (does its node run?)",
        )  # fmt: skip
    if mine:
        return Finding(
            "rules", Grade.WARN, f"nftables: {', '.join(mine)}, and the instance is down",
            "they are left of an instance that was killed", f"wherry down --root {instance.root}",
        )  # fmt: skip
    return Finding("rules", Grade.PASS, "none of this instance, which is down")


def resolvers(instance: Instance) -> Finding:
    """Upstream resolvers beyond a loopback stub."""
    here = _servers(RESOLV)
    useful = [each for each in here if not each.startswith("127.") and each != "::1"]
    if useful:
        return Finding("dns", Grade.PASS, f"upstream resolvers {', '.join(useful)}")
    behind = _servers(BEHIND)
    if behind:
        seen = f"upstream resolvers {', '.join(behind)}, read past systemd-resolved's stub {', '.join(here)}"
        return Finding("dns", Grade.PASS, seen)
    return Finding(
        "dns", Grade.WARN, f"only loopback resolvers ({', '.join(here) or 'none'})",
        "containers cannot ask a resolver on the machine's loopback: names outside the cluster do not resolve",
        "put a nameserver that is no loopback address into /etc/resolv.conf",
    )  # fmt: skip


def _servers(path: Path) -> Sequence[str]:
    with suppress(OSError):
        return re.findall(r"^nameserver\s+(\S+)", path.read_text(), re.M)
    return []


def group(instance: Instance) -> Finding:
    """The group that may use the Docker socket."""
    import grp

    from wherry.daemon.engine import GROUP

    try:
        members = grp.getgrnam(GROUP).gr_mem
    except KeyError:
        how = f"groupadd --system {GROUP} && usermod -aG {GROUP} USER lets USER use it after the next start"
        return Finding("group", Grade.PASS, f"no group {GROUP}: the Docker socket is for root alone ({how})")
    who = ", ".join(members) or "no members"
    return Finding("group", Grade.PASS, f"group {GROUP} may use the Docker socket, and so is root here: {who}")


def _is_up(instance: Instance) -> bool:
    """Whether anything of it runs; root or not."""
    if instance.warden_socket.exists():
        return True
    from wherry.daemon.alone import running_record

    return running_record(instance) is not None


def _places(instance: Instance) -> "list[Place]":
    """Where the containers of an instance are."""
    from wherry.network.claims import Claims
    from wherry.network.firewalls import Place

    subnets: list[str] = []
    with suppress(WherryError):
        subnets += [each.pod_cidr for each in instance.load().nodes if each.real and not each.apart]
        subnets += [one for each in Claims().all() if each.instance == instance.id for one in each.networks]
    return [Place(each, str(ip_network(each)[1])) for each in subnets]


def _with_nft(ask: "Callable[[Nft], Coroutine[Any, Any, T]]") -> T:
    from wherry.host.nftables import Nft

    async def run() -> T:
        with Nft() as nft:
            return await ask(nft)

    return asyncio.run(run())


def _unread(name: str, error: Exception) -> Finding:
    return Finding(
        name, Grade.WARN, f"nftables cannot be read: {error}", "services, masquerade and published ports are nftables rules",
        "apt-get install libnftables1; modprobe nf_tables",
    )  # fmt: skip
