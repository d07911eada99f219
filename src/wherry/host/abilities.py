"""What this machine's control groups can limit: what `docker info` shows, and what a limit is checked against."""

import os
from dataclasses import dataclass, replace

from wherry.host.cgroups import Cgroups


@dataclass(frozen=True, slots=True)
class Abilities:
    """What can be limited. `cpuset_cpus` and `cpuset_mems` are the processors and memory nodes there are, as `0-3,6`."""

    version: int = 2
    memory: bool = True
    swap: bool = True
    reservation: bool = True
    swappiness: bool = False
    oom_kill_disable: bool = False
    kernel_tcp: bool = False
    pids: bool = True
    cpu_shares: bool = True
    cpu_quota: bool = True
    realtime: bool = False
    cpuset: bool = True
    io_weight: bool = True
    io_weight_device: bool = True
    io_rates: bool = True
    cpuset_cpus: str = "0"
    cpuset_mems: str = "0"
    cpus: int = 1


def look(groups: Cgroups, group: str) -> Abilities:
    """Look at the files of a group that is there. Blocks for a few file reads."""

    def has(controller: str, *names: str) -> bool:
        return any(os.path.exists(f"{groups.directory(controller, group)}/{name}") for name in names)

    def read(*names: str) -> str:
        for name in names:
            try:
                with open(f"{groups.directory('cpuset', group)}/{name}", encoding="ascii") as file:
                    if text := file.read().strip():
                        return text
            except OSError:
                continue
        return ""

    cpus = os.cpu_count() or 1
    machine = Abilities(
        version=groups.version,
        cpuset_cpus=read("cpuset.cpus.effective", "cpuset.effective_cpus", "cpuset.cpus") or f"0-{cpus - 1}",
        cpuset_mems=read("cpuset.mems.effective", "cpuset.effective_mems", "cpuset.mems") or "0",
        cpus=cpus,
    )
    if groups.version == 2:
        return replace(
            machine,
            memory=has("memory", "memory.max"),
            swap=has("memory", "memory.swap.max"),
            reservation=has("memory", "memory.low"),
            pids=has("pids", "pids.max"),
            cpu_shares=has("cpu", "cpu.weight"),
            cpu_quota=has("cpu", "cpu.max"),
            cpuset=has("cpuset", "cpuset.cpus"),
            io_weight=has("io", "io.weight", "io.bfq.weight"),
            io_weight_device=has("io", "io.weight", "io.bfq.weight"),
            io_rates=has("io", "io.max"),
        )
    return replace(
        machine,
        memory=has("memory", "memory.limit_in_bytes"),
        swap=has("memory", "memory.memsw.limit_in_bytes"),
        reservation=has("memory", "memory.soft_limit_in_bytes"),
        swappiness=has("memory", "memory.swappiness"),
        oom_kill_disable=has("memory", "memory.oom_control"),
        kernel_tcp=has("memory", "memory.kmem.tcp.limit_in_bytes"),
        pids=has("pids", "pids.max"),
        cpu_shares=has("cpu", "cpu.shares"),
        cpu_quota=has("cpu", "cpu.cfs_quota_us"),
        realtime=has("cpu", "cpu.rt_runtime_us"),
        cpuset=has("cpuset", "cpuset.cpus"),
        io_weight=has("blkio", "blkio.weight", "blkio.bfq.weight"),
        io_weight_device=has("blkio", "blkio.weight_device", "blkio.bfq.weight_device"),
        io_rates=has("blkio", "blkio.throttle.read_bps_device"),
    )
