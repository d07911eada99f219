"""What a control group uses, from made-up trees of both versions as the kernel writes them."""

from pathlib import Path

from wherry.host import engine_usage
from wherry.host.cgroups import CgroupsV1, CgroupsV2
from wherry.host.engine_usage import Detail


def write(place: Path, files: dict[str, str]) -> None:
    place.mkdir(parents=True)
    for name, text in files.items():
        (place / name).write_text(text)


def test_version_2(tmp_path: Path) -> None:
    write(
        tmp_path / "own/one",
        {
            "cpu.stat": "usage_usec 1500\nuser_usec 1000\nsystem_usec 500\nnr_periods 9\nnr_throttled 4\nthrottled_usec 70\n",
            "memory.current": "4096\n", "memory.peak": "8192\n", "memory.max": "67108864\n",
            "memory.stat": "anon 10\ninactive_file 20\n", "pids.current": "3\n", "pids.max": "7\n",
            "io.stat": "8:0 rbytes=10 wbytes=20 rios=1 wios=2 dbytes=5 dios=1\n8:16 rbytes=0 wbytes=3\n",
        },
    )  # fmt: skip
    groups = CgroupsV2("own", str(tmp_path))
    assert engine_usage.detail(groups, "one") == Detail(
        2, cpu_ns=1_500_000, kernel_ns=500_000, user_ns=1_000_000, periods=9, throttled_periods=4, throttled_ns=70_000,
        memory=4096, memory_peak=8192, memory_limit=67108864, memory_stats={"anon": 10, "inactive_file": 20}, pids=3,
        pids_limit=7, io=[(8, 0, "read", 10), (8, 0, "write", 20), (8, 16, "read", 0), (8, 16, "write", 3)],
    )  # fmt: skip
    (tmp_path / "own/one/memory.max").write_text("max\n")
    (tmp_path / "own/one/pids.max").write_text("max\n")
    unlimited = engine_usage.detail(groups, "one")
    assert (unlimited.memory_limit, unlimited.pids_limit) == (0, 0)
    assert engine_usage.detail(groups, "gone") == Detail(2, io=[])


def test_version_1(tmp_path: Path) -> None:
    roots = {name: str(tmp_path / name) for name in ("cpu", "cpuacct", "memory", "pids", "blkio")}
    files = {
        "cpu": {"cpu.stat": "nr_periods 9\nnr_throttled 4\nthrottled_time 70\n"},
        "cpuacct": {"cpuacct.usage": "1500\n", "cpuacct.usage_percpu": "500 1000 \n", "cpuacct.stat": "user 3\nsystem 2\n"},
        "memory": {
            "memory.usage_in_bytes": "4096\n", "memory.max_usage_in_bytes": "8192\n",
            "memory.limit_in_bytes": "9223372036854771712\n", "memory.stat": "total_inactive_file 20\n",
        },
        "pids": {"pids.current": "3\n", "pids.max": "max\n"},
        "blkio": {
            "blkio.throttle.io_service_bytes_recursive": "8:0 Read 10\n8:0 Write 20\n8:0 Sync 30\n8:0 Total 30\nTotal 30\n"
        },
    }  # fmt: skip
    for name, each in files.items():
        write(tmp_path / name / "own/one", each)
    tick = 1_000_000_000 // 100
    assert engine_usage.detail(CgroupsV1("own", roots), "one") == Detail(
        1, cpu_ns=1500, kernel_ns=2 * tick, user_ns=3 * tick, per_cpu_ns=[500, 1000], periods=9, throttled_periods=4,
        throttled_ns=70, memory=4096, memory_peak=8192, memory_limit=0, memory_stats={"total_inactive_file": 20}, pids=3,
        pids_limit=0, io=[(8, 0, "read", 10), (8, 0, "write", 20)],
    )  # fmt: skip


def test_traffic_leaves_the_loopback_out() -> None:
    assert "lo" not in engine_usage.traffic(1)
    assert engine_usage.traffic(2**22 + 1) == {}
    assert engine_usage.system_cpu_ns() > 0
