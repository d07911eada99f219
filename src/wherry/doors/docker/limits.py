"""Limits of a container as Docker's clients write them: read, held against what the machine can do, shown.

What the machine cannot do is discarded with a warning where Docker warns, and refused where Docker refuses. The words are
Docker's own, since people and scripts look for them.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from wherry.errors import BadRequest
from wherry.host.abilities import Abilities
from wherry.host.limits import Limits

Json = Mapping[str, Any]

LEAST_MEMORY_BYTES = 6 * 1024 * 1024
IO_KINDS: Mapping[str, str] = {
    "BlkioDeviceReadBps": "ReadBps", "BlkioDeviceWriteBps": "WriteBps", "BlkioDeviceReadIOps": "ReadIOPS",
    "BlkioDeviceWriteIOps": "WriteIOPS",
}  # fmt: skip
_IO_WORDS: Mapping[str, tuple[str, str]] = {
    "ReadBps": ("BPS Block I/O read limit", "Block I/O BPS read limit"),
    "WriteBps": ("BPS Block I/O write limit", "Block I/O BPS write limit"),
    "ReadIOPS": ("IOPS Block read limit", "Block I/O IOPS read limit"),
    "WriteIOPS": ("IOPS Block write limit", "Block I/O IOPS write limit"),
}
_NO_SWAP_WITHOUT_MEMORY = "You should always set the Memory limit when using Memoryswap limit, see usage"
_SWAP_BELOW_MEMORY = "Minimum memoryswap limit should be larger than memory limit, see usage"


def read_limits(host: Json) -> Limits:
    """Read the limits of a new container's HostConfig. Raises BadRequest. Memory alone gets as much swap, as in Docker."""
    memory, swap = _whole(host, "Memory"), _whole(host, "MemorySwap")
    if memory > 0 and swap == 0:
        swap = 2 * memory
    if swap > 0 and not memory:
        raise BadRequest(_NO_SWAP_WITHOUT_MEMORY)
    _check_cpu_conflicts(host)
    return _limits(host, memory, swap)


def merged_limits(old: Limits, asked: Json) -> Limits | None:
    """Lay the limits of `update` over those that a container has; None when it asks for none. Raises BadRequest."""
    if not any(value not in (None, 0, "", False) for value in asked.values()):
        return None
    memory, swap = _whole(asked, "Memory"), _whole(asked, "MemorySwap")
    if memory and not swap and 0 < (old.memory_swap_bytes or 0) < memory:
        raise BadRequest(
            "Memory limit should be smaller than already set memoryswap limit, update the memoryswap at the same time"
        )
    memory, swap = memory or old.memory_bytes or 0, swap or old.memory_swap_bytes or 0
    if swap > 0 and not memory:
        raise BadRequest(_NO_SWAP_WITHOUT_MEMORY)
    _check_cpu_conflicts(asked)
    has_nano = bool(_whole(asked, "NanoCpus") or _whole(asked, "NanoCPUs"))
    new = _limits({"CpuPeriod": 0 if has_nano else old.cpu_period_us, **_given(asked)}, memory, swap)
    return replace(
        old,
        cpu_quota_us=new.cpu_quota_us or old.cpu_quota_us,
        cpu_period_us=new.cpu_period_us,
        cpu_shares=new.cpu_shares or old.cpu_shares,
        memory_bytes=new.memory_bytes,
        memory_swap_bytes=new.memory_swap_bytes,
        memory_reservation_bytes=new.memory_reservation_bytes or old.memory_reservation_bytes,
        pids=new.pids if asked.get("PidsLimit") else old.pids,
        cpuset_cpus=new.cpuset_cpus or old.cpuset_cpus,
        cpuset_mems=new.cpuset_mems or old.cpuset_mems,
        blkio_weight=new.blkio_weight or old.blkio_weight,
        realtime_period_us=new.realtime_period_us or old.realtime_period_us,
        realtime_runtime_us=new.realtime_runtime_us or old.realtime_runtime_us,
    )


def check_unmixed(shown: Json, old: Limits, asked: Json) -> None:
    """Refuse an update that mixes `--cpus` with a quota or period that was set before. Raises BadRequest."""
    nano = _whole(asked, "NanoCpus") or _whole(asked, "NanoCPUs")
    had_nano = bool(shown.get("NanoCpus"))
    for field, called in (("CpuPeriod", "CPU Period"), ("CpuQuota", "CPU Quota")):
        if asked.get(field) and had_nano and not nano:
            raise BadRequest(f"Conflicting options: {called} cannot be updated as NanoCPUs has already been set")
    if nano and not had_nano and old.cpu_quota_us:
        raise BadRequest("Conflicting options: NanoCPUs cannot be updated as CPU Quota has already been set")


def fit(limits: Limits, machine: Abilities) -> tuple[Limits, Sequence[str]]:
    """Hold limits against what the machine can do: (those that stay, warnings). Raises BadRequest in Docker's words."""
    warnings: list[str] = []
    limits = _fit_memory(limits, machine, warnings)
    limits = _fit_cpu(limits, machine, warnings)
    limits = _fit_io(limits, machine, warnings)
    if limits.pids and not machine.pids:
        warnings.append(_discarded("PIDs limit capabilities", "PIDs limit"))
        limits = replace(limits, pids=None)
    return limits, warnings


def deprecated(host: Json) -> Sequence[str]:
    """What Docker still takes, discards and warns of."""
    warnings: list[str] = []
    if _whole(host, "KernelMemory") > 0:
        warnings.append(_discarded("kernel memory limit capabilities", "Limitation"))
    if _whole(host, "CpuPercent") > 0:
        warnings.append("linux does not support CPU percent. Percent discarded.")
    return warnings


def show_limits(limits: Limits) -> Json:
    """The fields of HostConfig that limits are shown as."""
    shown: dict[str, Any] = {
        "CpuShares": limits.cpu_shares or 0, "Memory": limits.memory_bytes or 0, "NanoCpus": 0,
        "MemorySwap": limits.memory_swap_bytes or 0, "MemoryReservation": limits.memory_reservation_bytes or 0,
        "MemorySwappiness": limits.swappiness, "OomKillDisable": limits.oom_kill_disable,
        "CpuQuota": limits.cpu_quota_us or 0, "CpuPeriod": limits.cpu_period_us if limits.cpu_quota_us else 0,
        "CpuRealtimePeriod": limits.realtime_period_us or 0, "CpuRealtimeRuntime": limits.realtime_runtime_us or 0,
        "CpusetCpus": limits.cpuset_cpus, "CpusetMems": limits.cpuset_mems, "PidsLimit": limits.pids,
        "BlkioWeight": limits.blkio_weight or 0, "KernelMemoryTCP": limits.kernel_tcp_bytes or 0,
        "BlkioWeightDevice": [{"Path": path, "Weight": weight} for path, weight in limits.io_weights],
    }  # fmt: skip
    for field, kind in IO_KINDS.items():
        rates = limits.io_rates.get(kind) or ()
        shown[field] = [{"Path": path, "Rate": rate} for path, rate in rates] or None
    return shown


def _check_cpu_conflicts(host: Json) -> None:
    if not (_whole(host, "NanoCpus") or _whole(host, "NanoCPUs")):
        return
    for field, called in (("CpuPeriod", "CPU Period"), ("CpuQuota", "CPU Quota")):
        if _whole(host, field) > 0:
            raise BadRequest(f"Conflicting options: Nano CPUs and {called} cannot both be set")


def _limits(host: Json, memory: int, swap: int) -> Limits:
    nano = _whole(host, "NanoCpus") or _whole(host, "NanoCPUs")
    period, quota = _whole(host, "CpuPeriod"), _whole(host, "CpuQuota")
    pids, swappiness = _whole(host, "PidsLimit"), host.get("MemorySwappiness")
    return Limits(
        cpu_quota_us=(quota if quota > 0 else None) or nano * (period or 100_000) // 1_000_000_000 or None,
        cpu_period_us=period or 100_000,
        cpu_shares=_whole(host, "CpuShares") or None,
        memory_bytes=memory or None,
        memory_swap_bytes=swap or None,
        pids=pids if pids > 0 else None,
        cpuset_cpus=str(host.get("CpusetCpus") or ""),
        cpuset_mems=str(host.get("CpusetMems") or ""),
        memory_reservation_bytes=_whole(host, "MemoryReservation") or None,
        blkio_weight=_whole(host, "BlkioWeight") or None,
        io_rates=_io_rates(host),
        io_weights=_device_numbers(host, "BlkioWeightDevice", "Weight"),
        realtime_period_us=_whole(host, "CpuRealtimePeriod") or None,
        realtime_runtime_us=_whole(host, "CpuRealtimeRuntime") or None,
        swappiness=None if swappiness is None or swappiness == -1 else int(swappiness),
        oom_kill_disable=bool(host.get("OomKillDisable")),
        kernel_tcp_bytes=_whole(host, "KernelMemoryTCP") or None,
    )


def _fit_memory(limits: Limits, machine: Abilities, warnings: list[str]) -> Limits:
    memory, swap, reservation = limits.memory_bytes, limits.memory_swap_bytes, limits.memory_reservation_bytes
    if memory is not None and memory < LEAST_MEMORY_BYTES:
        raise BadRequest("Minimum memory limit allowed is 6MB")
    if memory is not None and not machine.memory:
        warnings.append(_discarded("memory limit capabilities", "Limitation"))
        memory = swap = None
    if memory is not None and swap is not None and swap != -1 and not machine.swap:
        warnings.append(
            "Your kernel does not support swap limit capabilities or the cgroup is not mounted. Memory limited without "
            "swap."
        )
        swap = -1
    if memory is not None and swap is not None and 0 < swap < memory:
        raise BadRequest(_SWAP_BELOW_MEMORY)
    swappiness = limits.swappiness
    if swappiness is not None and not machine.swappiness:
        warnings.append(_discarded("memory swappiness capabilities", "Memory swappiness"))
        swappiness = None
    if swappiness is not None and not 0 <= swappiness <= 100:
        raise BadRequest(f"Invalid value: {swappiness}, valid memory swappiness range is 0-100")
    if reservation is not None and not machine.reservation:
        warnings.append(_discarded("memory soft limit capabilities", "Limitation"))
        reservation = None
    if reservation is not None and reservation < LEAST_MEMORY_BYTES:
        raise BadRequest("Minimum memory reservation allowed is 6MB")
    if memory is not None and reservation is not None and memory < reservation:
        raise BadRequest("Minimum memory limit can not be less than memory reservation limit, see usage")
    kill, tcp = limits.oom_kill_disable, limits.kernel_tcp_bytes
    if kill and not machine.oom_kill_disable:
        warnings.append("Your kernel does not support OomKillDisable. OomKillDisable discarded.")
        kill = False
    if kill and memory is None:
        warnings.append(
            "OOM killer is disabled for the container, but no memory limit is set, this can result in the system running "
            "out of resources."
        )
    if tcp is not None and not machine.kernel_tcp:
        warnings.append(_discarded("kernel memory TCP limit capabilities", "Limitation"))
        tcp = None
    return replace(
        limits, memory_bytes=memory, memory_swap_bytes=swap, memory_reservation_bytes=reservation, swappiness=swappiness,
        oom_kill_disable=kill, kernel_tcp_bytes=tcp,
    )  # fmt: skip


def _fit_cpu(limits: Limits, machine: Abilities, warnings: list[str]) -> Limits:
    quota, period = limits.cpu_quota_us, limits.cpu_period_us
    if quota is not None and not machine.cpu_quota:
        warnings.append(_discarded("CPU CFS quota", "Quota"))
        quota = None
    if limits.cpu_shares is not None and not machine.cpu_shares:
        warnings.append("Your kernel does not support CPU shares or the cgroup is not mounted. Shares discarded.")
        limits = replace(limits, cpu_shares=None)
    if not 1000 <= period <= 1_000_000:
        raise BadRequest("CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)")
    if quota is not None and quota < 1000:
        raise BadRequest("CPU cfs quota can not be less than 1ms (i.e. 1000)")
    runtime, length = limits.realtime_runtime_us, limits.realtime_period_us
    if (runtime is not None or length is not None) and not machine.realtime:
        raise BadRequest("Your kernel does not support CPU real-time scheduler")
    if runtime is not None and runtime > (length or 1_000_000):
        raise BadRequest("cpu real-time runtime cannot be higher than cpu real-time period")
    if (limits.cpuset_cpus or limits.cpuset_mems) and not machine.cpuset:
        warnings.append(_discarded("cpuset", "Cpuset"))
        limits = replace(limits, cpuset_cpus="", cpuset_mems="")
    for field, asked, there, called in (
        ("cpus", limits.cpuset_cpus, machine.cpuset_cpus, "CPUs"),
        ("mems", limits.cpuset_mems, machine.cpuset_mems, "memory nodes"),
    ):
        wanted = _numbers(asked)
        if wanted is None:
            raise BadRequest(f"Invalid value {asked} for cpuset {field}")
        if not wanted <= (_numbers(there) or set()):
            raise BadRequest(f"Requested {called} are not available - requested {asked}, available: {there}")
    return replace(limits, cpu_quota_us=quota)


def check_cpus(host: Json, machine: Abilities) -> None:
    """Refuse more processors than there are (`--cpus`). Raises BadRequest."""
    nano = _whole(host, "NanoCpus") or _whole(host, "NanoCPUs")
    if nano < 0 or nano > machine.cpus * 1_000_000_000:
        raise BadRequest(
            f"range of CPUs is from 0.01 to {machine.cpus}.00, as there are only {machine.cpus} CPUs available"
        )


def _fit_io(limits: Limits, machine: Abilities, warnings: list[str]) -> Limits:
    if limits.blkio_weight is not None and not machine.io_weight:
        warnings.append(_discarded("Block I/O weight", "Weight"))
        limits = replace(limits, blkio_weight=None)
    if limits.blkio_weight is not None and not 10 <= limits.blkio_weight <= 1000:
        raise BadRequest("Range of blkio weight is from 10 to 1000")
    if limits.io_weights and not machine.io_weight_device:
        warnings.append(_discarded("Block I/O weight_device", "Weight-device"))
        limits = replace(limits, io_weights=())
    for path, weight in limits.io_weights:
        if not 10 <= weight <= 1000:
            raise BadRequest(f"invalid weight for device: {path}:{weight}: the range is from 10 to 1000")
    if limits.io_rates and not machine.io_rates:
        for kind in limits.io_rates:
            what, said = _IO_WORDS[kind]
            warnings.append(_discarded(what, said))
        limits = replace(limits, io_rates={})
    return limits


def _discarded(what: str, said: str) -> str:
    return f"Your kernel does not support {what} or the cgroup is not mounted. {said} discarded."


def _given(asked: Json) -> dict[str, Any]:
    return {name: value for name, value in asked.items() if value}


def _whole(host: Json, name: str) -> int:
    value = host.get(name) or 0
    try:
        return int(value)
    except (TypeError, ValueError):
        raise BadRequest(f"{name}: {value!r}: a number is wanted") from None


def _io_rates(host: Json) -> Mapping[str, Sequence[tuple[str, int]]]:
    found = {kind: _device_numbers(host, field, "Rate") for field, kind in IO_KINDS.items()}
    return {kind: rates for kind, rates in found.items() if rates}


def _device_numbers(host: Json, field: str, name: str) -> Sequence[tuple[str, int]]:
    try:
        return [(str(each["Path"]), int(each[name])) for each in host.get(field) or ()]
    except (KeyError, TypeError, ValueError):
        raise BadRequest(f"HostConfig.{field}: each needs Path and {name}") from None


def _numbers(text: str) -> set[int] | None:
    """Read `0-2,4`; None for any other text."""
    if not text:
        return set()
    if re.fullmatch(r"\d+(-\d+)?(,\d+(-\d+)?)*", text, re.ASCII) is None:
        return None
    found: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        if int(last or first) > 8192:
            return None
        found.update(range(int(first), int(last or first) + 1))
    return found
