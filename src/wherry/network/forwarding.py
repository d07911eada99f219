"""Forwarding: machine-wide settings that containers need, turned on with care and put back at the end."""

import os
from collections.abc import Mapping
from contextlib import suppress

from wherry.errors import Broken
from wherry.host import namespaces, netlink

FORWARD, FORWARD6 = "net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"
_CONF6 = "/proc/sys/net/ipv6/conf"


def forward() -> dict[str, str]:
    """Let this network namespace forward packets; return what was otherwise before, for `restore`."""
    before = namespaces.read_sysctl(FORWARD)
    if before == "1":
        return {}
    namespaces.sysctl(FORWARD, "1")
    return {FORWARD: before}


def forward6() -> dict[str, str]:
    """Let this network namespace forward IPv6; return what was otherwise before, for `restore`.

    A machine that forwards takes no notice of routers' announcements, unless told to (`accept_ra` 2): links that learnt
    their way out by them go on doing so. Source: the kernel's ip-sysctl.
    """
    before = namespaces.read_sysctl(FORWARD6)
    if before != "0":
        return {}
    changed = {FORWARD6: before}
    for name in sorted(os.listdir(_CONF6)):
        setting = f"net/ipv6/conf/{name}/accept_ra"
        if name not in ("all", "default", "lo") and namespaces.read_sysctl(setting) == "1":
            namespaces.sysctl(setting, "2")
            changed[setting] = "1"
    namespaces.sysctl(FORWARD6, "1")
    return changed


def restore(settings: Mapping[str, str]) -> list[str]:
    """Put machine-wide settings back, unless others may count on them by now; name those that were put back.

    Forwarding stays on where there are bridges or pairs of links: somebody else's containers or machines.
    """
    if not settings:
        return []
    with netlink.Netlink() as net:
        if any(link.kind in ("bridge", "veth", "tun", "macvlan") for link in net.links()):
            return []
    for name, value in settings.items():
        with suppress(Broken):  # the link has gone
            namespaces.sysctl(name, value)
    return list(settings)
