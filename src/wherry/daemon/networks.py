"""An instance's places on the machine beyond its directories: claims, namespaces, links, tables, cgroups, mounts.

Everything here can be repeated, and `leftovers` looks for each thing that `remove_all` takes away.
"""

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Network
from pathlib import Path

from wherry.daemon.instance import Instance, NodePlan, Plan
from wherry.errors import WherryError

FORWARD = "net.ipv4.ip_forward"


@dataclass(frozen=True, slots=True)
class Subnets:
    """The ranges of an instance."""

    pods: str
    services: str


def is_root() -> bool:
    """Whether we may touch the machine's network."""
    return os.geteuid() == 0


def claim(instance: Instance, *, real: bool) -> Subnets:
    """Take ranges that nobody on this machine has; a purely simulated instance takes none from it."""
    if not real or not is_root():
        return Subnets("10.127.0.0/16", "10.126.240.0/20")
    from wherry.network.claims import Claims

    got = Claims().claim(instance.id, str(instance.root))
    return Subnets(got.pods, got.services)


def claim_again(instance: Instance, plan: Plan) -> None:
    """Take the ranges that the plan names again, after a restart or a reboot."""
    if not is_root() or not any(node.real for node in plan.nodes):
        return
    from wherry.errors import Unavailable
    from wherry.network.claims import Claims

    got = Claims().claim(instance.id, str(instance.root), pods=plan.pod_cidr, services=plan.service_cidr)
    if (got.pods, got.services) != (plan.pod_cidr, plan.service_cidr):
        Claims().release(instance.id)
        raise Unavailable(
            f"the ranges of this instance ({plan.pod_cidr}, {plan.service_cidr}) are taken by another or by a route of this "
            f"machine; `wherry down --purge` gives it up, then `wherry up` takes others"
        )


def hand_over(instance: Instance, plan: Plan, pid: int) -> None:
    """Say that the process `pid`, the warden, has the claims from now on."""
    if is_root() and any(node.real for node in plan.nodes):
        from wherry.network.claims import Claims

        Claims().claim(instance.id, str(instance.root), owner=pid)


def claim_ports(instance: Instance, wanted: Sequence[int]) -> list[int]:
    """Take TCP ports of loopback: each the first free one from the wanted number upwards."""
    from wherry.network.claims import Claims

    return [Claims().claim_port(instance.id, range(first, first + 100)) for first in wanted]


def node_range(pods: str, index: int) -> str:
    """The index-th range of the cluster's pods; the zeroth is left out."""
    return str(list(IPv4Network(pods).subnets(new_prefix=24))[index])


def node_address(instance: Instance, plan: Plan, index: int, cidr: str, *, apart: bool) -> str:
    """The address that a node is known by: its link's where it stands apart, else its gateway."""
    if not apart:
        return str(IPv4Network(cidr)[1])
    return _link_pair(instance, index)[1].partition("/")[0]


def _link_pair(instance: Instance, index: int) -> tuple[str, str]:
    from wherry.network.claims import Claims

    mine = next((each for each in Claims().all() if each.instance == instance.id), None)
    if mine is None:
        mine = Claims().claim(instance.id, str(instance.root))
    return mine.link_pair(index)


def namespace_directory(instance: Instance, node: NodePlan) -> Path:
    """Where the namespace of a node that stands apart is pinned: not in its run directory, over which its engine mounts."""
    return instance.run / "namespaces" / node.name


def namespace_path(instance: Instance, node: NodePlan) -> str:
    """The pinned network namespace of a node that stands apart."""
    return str(namespace_directory(instance, node) / "net")


def local_ranges(instance: Instance, plan: Plan) -> str:
    """The cluster's own ranges, as an nft set: what is never masked."""
    from wherry.network.claims import Claims

    links = [each.links for each in Claims().all() if each.instance == instance.id]
    return ", ".join([plan.pod_cidr, plan.service_cidr, *links])


async def prepare(instance: Instance, plan: Plan) -> None:
    """Make the namespaces of the nodes that stand apart, and remember how the machine was before."""
    if not is_root() or not any(node.real for node in plan.nodes):
        return
    from wherry.host import namespaces
    from wherry.host.nftables import Nft
    from wherry.network.claims import Claims
    from wherry.network.machines import NodeNamespace

    Claims().note_before(instance.id, FORWARD, namespaces.read_sysctl(FORWARD))
    apart = [node for node in plan.nodes if node.apart]
    if not apart:
        return
    with Nft() as nft:
        for node in apart:
            directory = namespace_directory(instance, node)
            directory.parent.mkdir(parents=True, exist_ok=True)
            await NodeNamespace(
                instance.id, node.index, str(directory), nft, addresses=_link_pair(instance, node.index),
                local=local_ranges(instance, plan),
            ).create()  # fmt: skip


async def remove_node(instance: Instance, plan: Plan, node: NodePlan) -> None:
    """Take the network of one node that stands apart away."""
    if not node.apart or not is_root():
        return
    from wherry.host import mounts
    from wherry.host.nftables import Nft
    from wherry.network.machines import NodeNamespace

    mounts.unmount_below(str(instance.node_run(node.name)))  # the engine shares its run directory: pins lie below it
    with Nft() as nft:
        await NodeNamespace(
            instance.id, node.index, str(namespace_directory(instance, node)), nft,
            addresses=_link_pair(instance, node.index), local=local_ranges(instance, plan),
        ).remove()  # fmt: skip


async def cut(instance: Instance, node: NodePlan) -> None:
    """Cut the link of a node that stands apart, as a power cut would."""
    if node.apart:
        from wherry.network import machines

        await machines.cut(instance.id, node.index)


async def remove_all(instance: Instance, plan: Plan | None) -> None:
    """Take links, tables, rules and namespaces away, and put settings back.

    The ranges stay claimed as long as the state is there: the cluster's addresses are written in it. `give_up` ends that.
    """
    if not is_root():
        return
    from wherry.host.nftables import Nft
    from wherry.network import forwarding, machines
    from wherry.network.claims import Claims

    with Nft() as nft:
        if plan is not None:
            for node in plan.nodes:
                if node.apart:
                    with suppress(WherryError):
                        await remove_node(instance, plan, node)
        held = next((each for each in Claims().all() if each.instance == instance.id), None)
        await machines.sweep(
            instance.id, nft, [held.pods, held.links, *held.networks] if held is not None else []
        )  # fmt: skip
    with suppress(WherryError):
        forwarding.restore(Claims().release(instance.id))
        if held is not None and instance.plan_path.exists():
            Claims().claim(
                instance.id, str(instance.root), pods=held.pods, services=held.services, links=held.links
            )  # fmt: skip


def give_up(instance: Instance) -> None:
    """Give the ranges and ports of an instance back, whose state is gone."""
    if is_root():
        from wherry.network.claims import Claims

        Claims().release(instance.id)


# cgroups and mounts ---------------------------------------------------------------------------------------------------


def _v2_root() -> str:
    """Where the cgroup-v2 tree is: processes of a role are gathered there, also where limits are v1's."""
    for place in ("/sys/fs/cgroup/unified", "/sys/fs/cgroup"):
        if os.path.exists(f"{place}/cgroup.procs") and os.path.exists(f"{place}/cgroup.controllers"):
            return place
    return ""


def role_cgroup(instance: Instance, role: str) -> str:
    """The directory of a role's cgroup; "" where there is no v2 tree, or no right to it."""
    root = _v2_root()
    return f"{root}/wherry/{instance.id}/{role}" if root and is_root() else ""


def kill_cgroups(instance: Instance, role: str = "") -> None:
    """Kill every process of the instance (or of one role, with its containers)."""
    if not is_root():
        return
    from wherry.host import cgroups

    base = f"wherry/{instance.id}" + (f"/{role}" if role else "")
    root = _v2_root()
    if root:
        with suppress(WherryError):
            cgroups.CgroupsV2(base, root).kill("")
    with suppress(WherryError):
        cgroups.find(base).kill("")


def remove_cgroups(instance: Instance, role: str = "") -> None:
    """Remove the empty groups."""
    if not is_root():
        return
    from wherry.host import cgroups

    base = f"wherry/{instance.id}" + (f"/{role}" if role else "")
    root = _v2_root()
    if root:
        with suppress(WherryError):
            cgroups.CgroupsV2(base, root).remove("")
    with suppress(WherryError):
        cgroups.find(base).remove("")


def _places(instance: Instance, plan: Plan | None, node: NodePlan | None = None) -> list[Path]:
    if node is not None:
        return [instance.node_run(node.name), instance.node_root(node)]
    return [instance.run, instance.root]


def unmount(instance: Instance, plan: Plan | None, node: NodePlan | None = None) -> None:
    """Unmount everything below the instance's directories (or one node's)."""
    if not is_root():
        return
    from wherry.host import mounts

    for place in _places(instance, plan, node):
        mounts.unmount_below(str(place))


def leftovers(instance: Instance) -> list[str]:
    """Name what of the instance is still here: processes, mounts, links, tables, cgroups, claims."""
    found: list[str] = []
    if is_root():
        found += _kernel_leftovers(instance)
    for pid in _processes(instance):
        found.append(f"process {pid}")
    return found


def _kernel_leftovers(instance: Instance) -> list[str]:
    import asyncio

    from wherry.host import mounts
    from wherry.host.nftables import Nft, is_there
    from wherry.network import machines
    from wherry.network.claims import Claims

    found: list[str] = []
    for point in mounts.table():
        if any(point.target == str(place) or point.target.startswith(f"{place}/") for place in _places(instance, None)):
            found.append(f"mount {point.target}")
    if is_there():

        async def look() -> list[str]:
            with Nft() as nft:
                return await machines.leftovers(instance.id, nft)

        found += asyncio.run(look())
    for root in ("/sys/fs/cgroup", "/sys/fs/cgroup/unified", *(str(each) for each in Path("/sys/fs/cgroup").glob("*"))):
        place = f"{root}/wherry/{instance.id}"
        if os.path.isdir(place):
            found.append(f"cgroup {place}")
    if not instance.plan_path.exists():
        found += [f"claim of {each.pods}" for each in Claims().all() if each.instance == instance.id]
    return found


def _processes(instance: Instance) -> list[int]:
    """The processes that were started for this instance: its roles, its warden, the monitors of its containers."""
    marks = (str(instance.run).encode() + b"/", str(instance.root).encode())
    found: list[int] = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        with suppress(OSError):
            words = Path(f"/proc/{entry}/cmdline").read_bytes().split(b"\0")
            is_role = b"wherry.daemon.main" in words and marks[1] in words
            is_warden = any(word.endswith(b"warden.py") for word in words) and any(marks[0] in word for word in words)
            is_monitor = words[0].endswith(b"conmon") and any(marks[0] in word for word in words)
            if is_role or is_warden or is_monitor:
                found.append(int(entry))
    return found
