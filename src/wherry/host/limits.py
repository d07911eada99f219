"""What a control group may use, and which files of cgroup v2 and v1 say so. Pure.

The OCI runtime lays the limits of new containers itself; these plans are for the groups that we make, and for changes to
groups that are there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

EITHER = (("io.bfq.weight", "io.weight"), ("blkio.bfq.weight", "blkio.weight"))
"""Files that say the same: the kernel has one of each two, by its I/O scheduler, or none."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a group may use; None is unlimited, 0 pids too.

    CPU: `cpu_quota_us` in each `cpu_period_us`; `cpu_shares` is v1's weight (2..262144, 1024 is usual). Real-time threads
    have `realtime_runtime_us` in each `realtime_period_us` (v1 only). `memory_swap_bytes` counts memory and swap together,
    as Docker does; -1 is unlimited. `kernel_tcp_bytes`, `swappiness` (0..100) and `oom_kill_disable` are v1's. `io_weight`
    is 10..1000. `io_rates`: (device path, most per second) by "ReadBps", "WriteBps", "ReadIOPS" or "WriteIOPS";
    `io_weights`: (device path, weight); these two hold for new containers only.
    """

    cpu_quota_us: int | None = None
    cpu_period_us: int = 100_000
    cpu_shares: int | None = None
    memory_bytes: int | None = None
    memory_swap_bytes: int | None = None
    pids: int | None = None
    cpuset_cpus: str = ""
    cpuset_mems: str = ""
    memory_reservation_bytes: int | None = None
    blkio_weight: int | None = None
    io_rates: Mapping[str, Sequence[tuple[str, int]]] = field(default_factory=dict[str, Sequence[tuple[str, int]]])
    io_weights: Sequence[tuple[str, int]] = ()
    realtime_period_us: int | None = None
    realtime_runtime_us: int | None = None
    swappiness: int | None = None
    oom_kill_disable: bool = False
    kernel_tcp_bytes: int | None = None


def plan_v2(limits: Limits) -> dict[str, str]:
    """Say which files get which values on cgroup v2.

    Shares and I/O weights become v2's weights as crun and runc turn them: 2..262144, or 10..1000, onto 1..10000.
    """
    quota = "max" if limits.cpu_quota_us is None else str(limits.cpu_quota_us)
    plan = {"cpu.max": f"{quota} {limits.cpu_period_us}"}
    plan["memory.max"] = "max" if limits.memory_bytes is None else str(limits.memory_bytes)
    if limits.memory_bytes is not None and limits.memory_swap_bytes is not None:
        swap = limits.memory_swap_bytes
        plan["memory.swap.max"] = "max" if swap < 0 else str(max(0, swap - limits.memory_bytes))
    if limits.memory_reservation_bytes is not None:
        plan["memory.low"] = str(limits.memory_reservation_bytes)
    plan["pids.max"] = str(limits.pids) if limits.pids else "max"
    if limits.cpu_shares is not None:
        shares = min(262_144, max(2, limits.cpu_shares))
        plan["cpu.weight"] = str(1 + (shares - 2) * 9999 // 262_142)
    if limits.cpuset_cpus:
        plan["cpuset.cpus"] = limits.cpuset_cpus
    if limits.cpuset_mems:
        plan["cpuset.mems"] = limits.cpuset_mems
    if limits.blkio_weight is not None:
        plan["io.bfq.weight"] = str(limits.blkio_weight)
        plan["io.weight"] = f"default {1 + (limits.blkio_weight - 10) * 9999 // 990}"
    return plan


def plan_v1(limits: Limits) -> dict[str, dict[str, str]]:
    """Say which files of which controllers get which values on cgroup v1."""
    memory = {"memory.limit_in_bytes": "-1" if limits.memory_bytes is None else str(limits.memory_bytes)}
    if limits.memory_bytes is None or limits.memory_swap_bytes is not None:
        memory["memory.memsw.limit_in_bytes"] = str(-1 if limits.memory_bytes is None else limits.memory_swap_bytes)
    if limits.memory_reservation_bytes is not None:
        memory["memory.soft_limit_in_bytes"] = str(limits.memory_reservation_bytes)
    cpu = {"cpu.cfs_period_us": str(limits.cpu_period_us)}
    cpu["cpu.cfs_quota_us"] = "-1" if limits.cpu_quota_us is None else str(limits.cpu_quota_us)
    if limits.cpu_shares is not None:
        cpu["cpu.shares"] = str(max(2, limits.cpu_shares))
    if limits.realtime_period_us is not None:
        cpu["cpu.rt_period_us"] = str(limits.realtime_period_us)
    if limits.realtime_runtime_us is not None:
        cpu["cpu.rt_runtime_us"] = str(limits.realtime_runtime_us)
    plan = {"cpu": cpu, "memory": memory, "pids": {"pids.max": str(limits.pids) if limits.pids else "max"}}
    sets = {"cpuset.cpus": limits.cpuset_cpus, "cpuset.mems": limits.cpuset_mems}
    if any(sets.values()):
        plan["cpuset"] = {name: value for name, value in sets.items() if value}
    if limits.blkio_weight is not None:
        weight = str(limits.blkio_weight)
        plan["blkio"] = {"blkio.bfq.weight": weight, "blkio.weight": weight}
    return plan
