"""Limits of a container: read and held against what a machine can do, laid on a new one, changed while it runs."""

import json
import re
from dataclasses import replace
from typing import Any

import pytest

from tests.doors.conftest import Docker
from wherry.doors.docker.limits import (
    check_cpus,
    check_unmixed,
    deprecated,
    fit,
    merged_limits,
    read_limits,
    show_limits,
)
from wherry.errors import BadRequest
from wherry.host.abilities import Abilities
from wherry.host.limits import Limits

ABLE = Abilities(
    version=1, swappiness=True, oom_kill_disable=True, kernel_tcp=True, realtime=True, cpus=4, cpuset_cpus="0-3",
    cpuset_mems="0",
)  # fmt: skip
MEBI = 1 << 20


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"Memory": MEBI}, "Minimum memory limit allowed is 6MB"),
        ({"Memory": 64 * MEBI, "MemorySwap": 32 * MEBI}, "Minimum memoryswap limit should be larger"),
        ({"MemorySwap": 32 * MEBI}, "You should always set the Memory limit"),
        ({"MemorySwappiness": 101}, "valid memory swappiness range is 0-100"),
        ({"MemoryReservation": MEBI}, "Minimum memory reservation allowed is 6MB"),
        ({"Memory": 32 * MEBI, "MemoryReservation": 64 * MEBI}, "can not be less than memory reservation limit"),
        ({"NanoCpus": 10**9, "CpuQuota": 5000}, "Nano CPUs and CPU Quota cannot both be set"),
        ({"NanoCpus": 10**9, "CpuPeriod": 5000}, "Nano CPUs and CPU Period cannot both be set"),
        ({"NanoCpus": 5 * 10**9}, "there are only 4 CPUs available"),
        ({"CpuPeriod": 10}, "CPU cfs period can not be less than 1ms"),
        ({"CpuQuota": 10}, "CPU cfs quota can not be less than 1ms"),
        ({"CpuRealtimeRuntime": 2000, "CpuRealtimePeriod": 1000}, "runtime cannot be higher than cpu real-time period"),
        ({"CpusetCpus": "3-4"}, "Requested CPUs are not available - requested 3-4, available: 0-3"),
        ({"CpusetMems": "1"}, "Requested memory nodes are not available - requested 1, available: 0"),
        ({"CpusetCpus": "a"}, "Invalid value a for cpuset cpus"),
        ({"BlkioWeight": 9}, "Range of blkio weight is from 10 to 1000"),
        ({"BlkioWeightDevice": [{"Path": "/dev/x", "Weight": 1001}]}, "invalid weight for device: /dev/x:1001"),
        ({"BlkioDeviceReadBps": [{"Path": "/dev/x"}]}, "needs Path and Rate"),
    ],
)
def test_limits_that_cannot_be_are_refused_in_dockers_words(asked: dict[str, Any], says: str) -> None:
    def read() -> None:
        check_cpus(asked, ABLE)
        fit(read_limits(asked), ABLE)

    with pytest.raises(BadRequest, match=re.escape(says)):
        read()


def test_what_a_machine_cannot_do_is_discarded_with_a_warning() -> None:
    device = [{"Path": "/dev/x", "Rate": 5}]
    asked = {
        "Memory": 64 * MEBI, "MemorySwap": 96 * MEBI, "MemoryReservation": 32 * MEBI, "MemorySwappiness": 5,
        "OomKillDisable": True, "KernelMemoryTCP": 5, "CpuShares": 5, "CpuQuota": 5000, "CpusetCpus": "0", "PidsLimit": 3,
        "BlkioWeight": 50, "BlkioWeightDevice": [{"Path": "/dev/x", "Weight": 50}], "BlkioDeviceReadBps": device,
        "BlkioDeviceWriteIOps": device,
    }  # fmt: skip
    limits, warnings = fit(read_limits(asked), ABLE)
    assert (limits, warnings) == (read_limits(asked), [])
    unable = Abilities(
        memory=False, swap=False, reservation=False, pids=False, cpu_shares=False, cpu_quota=False, cpuset=False,
        io_weight=False, io_weight_device=False, io_rates=False,
    )  # fmt: skip
    limits, warnings = fit(limits, unable)
    assert limits == Limits()
    assert len(warnings) == 13
    assert all("discarded" in each for each in warnings)
    kept, warnings = fit(read_limits({"Memory": 64 * MEBI}), replace(ABLE, swap=False))
    assert (kept.memory_bytes, kept.memory_swap_bytes) == (64 * MEBI, -1)
    assert "Memory limited without swap" in warnings[0]
    with pytest.raises(BadRequest, match="does not support CPU real-time scheduler"):
        fit(Limits(realtime_runtime_us=5), unable)
    assert "no memory limit is set" in fit(Limits(oom_kill_disable=True), ABLE)[1][0]
    assert len(deprecated({"KernelMemory": 50 * MEBI, "CpuPercent": 5})) == 2


def test_limits_are_shown_as_they_were_written() -> None:
    asked = {
        "Memory": 64 * MEBI, "MemorySwap": -1, "CpuShares": 7, "CpuQuota": 5000, "CpuPeriod": 20_000, "CpusetMems": "0",
        "BlkioWeightDevice": [{"Path": "/dev/x", "Weight": 50}], "BlkioDeviceWriteBps": [{"Path": "/dev/x", "Rate": 5}],
        "MemorySwappiness": 5, "PidsLimit": 3, "OomKillDisable": True, "CpuRealtimeRuntime": 900,
    }  # fmt: skip
    shown = show_limits(read_limits(asked))
    assert {name: shown[name] for name in asked} == asked
    assert show_limits(read_limits({"Memory": 64 * MEBI}))["MemorySwap"] == 128 * MEBI


def test_an_update_lays_over_what_was() -> None:
    old = read_limits({"Memory": 64 * MEBI, "PidsLimit": 3, "CpuQuota": 5000, "CpuPeriod": 20_000})
    assert merged_limits(old, {"Memory": 0, "CpusetCpus": ""}) is None
    new = merged_limits(old, {"Memory": 100 * MEBI, "CpuQuota": 6000, "PidsLimit": -1})
    assert new is not None
    assert new == replace(old, memory_bytes=100 * MEBI, cpu_quota_us=6000, pids=None)
    assert new.cpu_period_us == 20_000
    with pytest.raises(BadRequest, match="smaller than already set memoryswap limit"):
        merged_limits(old, {"Memory": 129 * MEBI})
    with pytest.raises(BadRequest, match="You should always set the Memory limit"):
        merged_limits(Limits(), {"MemorySwap": 129 * MEBI})
    with pytest.raises(BadRequest, match="CPU Quota cannot be updated as NanoCPUs"):
        check_unmixed({"NanoCpus": 5}, old, {"CpuQuota": 5000})
    with pytest.raises(BadRequest, match="NanoCPUs cannot be updated as CPU Quota"):
        check_unmixed({}, old, {"NanoCpus": 10**9})


READ = "cd /sys/fs/cgroup; for f in {}; do [ -e $f ] && echo $f $(cat $f); done; true"
FILES = (
    "memory/memory.limit_in_bytes memory/memory.memsw.limit_in_bytes memory/memory.soft_limit_in_bytes "
    "memory/memory.swappiness cpu/cpu.shares cpu/cpu.cfs_quota_us cpu/cpu.rt_runtime_us cpuset/cpuset.cpus "
    "cpuset/cpuset.mems pids/pids.max memory.max memory.swap.max memory.low cpu.weight cpu.max cpuset.cpus cpuset.mems "
    "pids.max"
)
ALIKE = {
    "memory.max": "memory/memory.limit_in_bytes", "memory.low": "memory/memory.soft_limit_in_bytes",
    "cpuset.cpus": "cpuset/cpuset.cpus", "cpuset.mems": "cpuset/cpuset.mems", "pids.max": "pids/pids.max",
}  # fmt: skip


def seen(text: str) -> dict[str, str]:
    found = {name: value for name, _, value in (line.partition(" ") for line in text.splitlines())}
    return {ALIKE.get(name, name): value for name, value in found.items()}


@pytest.mark.root
@pytest.mark.parametrize("runtime", ["crun", "runc"])
def test_limits_are_in_force_and_shown(newest: Docker, runtime: str) -> None:
    argv = (
        "--runtime", runtime, "-m", "64m", "--memory-swap", "96m", "--memory-reservation", "32m", "--cpu-shares", "512",
        "--cpu-quota", "50000", "--cpuset-cpus", "0", "--cpuset-mems", "0", "--pids-limit", "33", "--memory-swappiness",
        "10", "--oom-kill-disable", "--blkio-weight", "500",
    )  # fmt: skip
    done = newest("run", "--name", "web", *argv, "web:1", "sh", "-c", READ.format(FILES))
    found = seen(done.out)
    assert found["memory/memory.limit_in_bytes"] == str(64 * MEBI)
    assert found["memory/memory.soft_limit_in_bytes"] == str(32 * MEBI)
    assert (found["cpuset/cpuset.cpus"], found["cpuset/cpuset.mems"], found["pids/pids.max"]) == ("0", "0", "33")
    if "cpu/cpu.shares" in found:
        assert found["memory/memory.memsw.limit_in_bytes"] == str(96 * MEBI)
        assert (found["memory/memory.swappiness"], found["cpu/cpu.shares"]) == ("10", "512")
        assert found["cpu/cpu.cfs_quota_us"] == "50000"
    else:
        assert (found["memory.swap.max"], found["cpu.max"]) == (str(32 * MEBI), "50000 100000")
        assert "swappiness discarded" in done.err
    host = json.loads(newest("inspect", "web").out)[0]["HostConfig"]
    wanted = {
        "Memory": 64 * MEBI, "MemorySwap": 96 * MEBI, "MemoryReservation": 32 * MEBI, "CpuShares": 512, "CpuQuota": 50000,
        "CpusetCpus": "0", "CpusetMems": "0", "PidsLimit": 33, "Runtime": runtime,
    }  # fmt: skip
    assert {name: host[name] for name in wanted} == wanted


@pytest.mark.root
def test_real_time_runs_where_the_kernel_has_it(newest: Docker) -> None:
    asked = ("--cpu-rt-runtime", "5000", "--cpu-rt-period", "1000000")
    script = READ.format("cpu/cpu.rt_runtime_us")
    done = newest("run", "--name", "web", *asked, "web:1", "sh", "-c", script, code=None)
    if done.code:
        assert "real-time" in done.err
        return
    assert done.out == "cpu/cpu.rt_runtime_us 5000\n"
    newest("run", "-d", "--name", "two", "web:1", "sleep", "100")
    newest("update", "--cpu-rt-runtime", "4000", "two")
    assert newest("exec", "two", "sh", "-c", script).out == "cpu/cpu.rt_runtime_us 4000\n"


@pytest.mark.root
def test_all_that_update_changes(newest: Docker) -> None:
    newest("run", "-d", "--name", "web", "-m", "64m", "web:1", "sleep", "100")
    assert "at the same time" in newest("update", "-m", "200m", "web", code=1).err
    changes = (
        "-m", "200m", "--memory-swap", "-1", "--memory-reservation", "48m", "--cpu-shares", "100", "--cpu-quota", "7000",
        "--cpu-period", "50000", "--cpuset-cpus", "0", "--cpuset-mems", "0", "--pids-limit", "12", "--restart", "always",
    )  # fmt: skip
    newest("update", *changes, "web")
    found = seen(newest("exec", "web", "sh", "-c", READ.format(FILES)).out)
    assert found["memory/memory.limit_in_bytes"] == str(200 * MEBI)
    assert found["memory/memory.soft_limit_in_bytes"] == str(48 * MEBI)
    assert found.get("cpu/cpu.cfs_quota_us", found.get("cpu.max")) in ("7000", "7000 50000")
    assert (found["cpuset/cpuset.cpus"], found["cpuset/cpuset.mems"], found["pids/pids.max"]) == ("0", "0", "12")
    assert "NanoCPUs cannot be updated" in newest("update", "--cpus", "0.5", "web", code=1).err
    assert "not available" in newest("update", "--cpuset-cpus", "5000", "web", code=1).err
    host = json.loads(newest("inspect", "web").out)[0]["HostConfig"]
    assert (host["CpuQuota"], host["CpuPeriod"], host["MemorySwap"]) == (7000, 50000, -1)
    assert host["RestartPolicy"]["Name"] == "always"
    newest("run", "-d", "--name", "two", "web:1", "sleep", "100")
    newest("update", "--cpus", "0.5", "two")
    host = json.loads(newest("inspect", "two").out)[0]["HostConfig"]
    assert (host["NanoCpus"], host["CpuQuota"]) == (500_000_000, 0)
