"""Control groups: plans, a fake v2 tree, and the kernel's own trees."""

import os
import secrets
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from wherry.errors import Broken, NotFound
from wherry.host import abilities, cgroups, mounts
from wherry.host import cgroup_files as files
from wherry.host.cgroups import CgroupsV1, CgroupsV2, Limits


def fake_v2(root: Path, controllers: str = "cpuset cpu io memory pids") -> CgroupsV2:
    """A tree as the kernel would show it, as far as files alone can."""
    for directory in (root, root / "wherry", root / "wherry" / "aa", root / "wherry" / "aa" / "pods"):
        directory.mkdir(exist_ok=True)
        (directory / "cgroup.controllers").write_text(controllers)
        (directory / "cgroup.subtree_control").write_text("")
    return CgroupsV2("wherry/aa", str(root))


def test_v2_limits_become_files() -> None:
    limits = Limits(
        cpu_quota_us=50_000, cpu_shares=1024, memory_bytes=64, memory_swap_bytes=96, pids=7, cpuset_cpus="0-1"
    )
    assert cgroups.plan_v2(limits) == {
        "cpu.max": "50000 100000",
        "memory.max": "64",
        "memory.swap.max": "32",
        "pids.max": "7",
        "cpu.weight": "39",
        "cpuset.cpus": "0-1",
    }


def test_further_limits_become_files() -> None:
    limits = Limits(
        cpuset_mems="0", memory_reservation_bytes=5, blkio_weight=10, realtime_runtime_us=6, realtime_period_us=7
    )
    assert {
        "cpuset.mems": "0", "memory.low": "5", "io.bfq.weight": "10", "io.weight": "default 1",
    }.items() <= cgroups.plan_v2(limits).items()  # fmt: skip
    assert cgroups.plan_v2(Limits(blkio_weight=1000))["io.weight"] == "default 10000"
    plan = cgroups.plan_v1(limits)
    assert plan["cpuset"] == {"cpuset.mems": "0"}
    assert plan["memory"]["memory.soft_limit_in_bytes"] == "5"
    assert plan["blkio"] == {"blkio.bfq.weight": "10", "blkio.weight": "10"}
    assert {"cpu.rt_runtime_us": "6", "cpu.rt_period_us": "7"}.items() <= plan["cpu"].items()


def test_of_two_files_that_say_the_same_the_kernels_is_written(tmp_path: Path) -> None:
    groups = fake_v2(tmp_path)
    pods = tmp_path / "wherry/aa/pods"
    (pods / "io.weight").write_text("default 100")
    groups.limit("pods", Limits(blkio_weight=10))
    assert (pods / "io.weight").read_text() == "default 1"
    assert not (pods / "io.bfq.weight").exists()
    (pods / "io.weight").write_text("default 100")
    (pods / "io.bfq.weight").write_text("100")
    groups.limit("pods", Limits(blkio_weight=10))
    assert ((pods / "io.weight").read_text(), (pods / "io.bfq.weight").read_text()) == ("default 100", "10")


def test_what_a_v2_machine_can_limit(tmp_path: Path) -> None:
    groups = fake_v2(tmp_path)
    pods = tmp_path / "wherry/aa/pods"
    for name, text in (
        ("memory.max", "max"), ("memory.low", "0"), ("pids.max", "max"), ("cpu.max", "max"), ("cpuset.cpus", ""),
        ("cpuset.cpus.effective", "0-5\n"), ("io.max", ""),
    ):  # fmt: skip
        (pods / name).write_text(text)
    able = abilities.look(groups, "pods")
    assert (able.version, able.memory, able.pids, able.cpu_quota, able.cpuset, able.io_rates) == (2, *[True] * 5)
    assert (able.swap, able.cpu_shares, able.io_weight, able.realtime, able.oom_kill_disable) == (*[False] * 5,)
    assert (able.cpuset_cpus, able.cpuset_mems) == ("0-5", "0")


def test_a_path_of_the_whole_machine_and_what_was_made_above_it(tmp_path: Path) -> None:
    groups = fake_v2(tmp_path)
    (tmp_path / "theirs").mkdir()
    assert groups.first_missing("/theirs/mine/a/b") == "/theirs/mine"
    assert groups.first_missing("pods/b") == ""
    for directory in (
        tmp_path / "theirs/mine",
        tmp_path / "theirs/mine/a",
    ):  # as files alone the tree has no controllers
        directory.mkdir()
    assert groups.runtime_path("/theirs/mine/a/b") == "/theirs/mine/a/b"
    groups.remove_empty_above("/theirs/mine/a/b", "/theirs/mine")
    assert (tmp_path / "theirs").is_dir()
    assert not (tmp_path / "theirs/mine").exists()


def test_real_time_is_handed_down_as_far_as_it_is_needed(tmp_path: Path) -> None:
    root = tmp_path / "cpu"
    for name in ("", "w", "w/n", "w/n/one", "w/n/two"):
        (root / name).mkdir()
        (root / name / "cpu.rt_period_us").write_text("1000000")
        (root / name / "cpu.rt_runtime_us").write_text("0")
    (root / "w/n/one/cpu.rt_runtime_us").write_text("30000")
    (root / "w/n/cpu.rt_runtime_us").write_text("30000")
    CgroupsV1("w/n", {"cpu": str(root)}).allow_realtime("two/c", 5_000, 500_000)
    shares = {name: (root / name / "cpu.rt_runtime_us").read_text() for name in ("w", "w/n", "w/n/one", "w/n/two")}
    assert shares == {"w": "40000", "w/n": "40000", "w/n/one": "30000", "w/n/two": "10000"}
    with pytest.raises(Broken, match="no such limit"):
        fake_v2(tmp_path).allow_realtime("pods/one", 5, 10)


def test_no_limits_lift_those_that_were() -> None:
    assert cgroups.plan_v2(Limits()) == {"cpu.max": "max 100000", "memory.max": "max", "pids.max": "max"}
    assert cgroups.plan_v1(Limits())["memory"]["memory.limit_in_bytes"] == "-1"


@pytest.mark.parametrize(("shares", "weight"), [(0, 1), (2, 1), (1024, 39), (262_144, 10_000), (10**9, 10_000)])
def test_shares_become_weights_within_bounds(shares: int, weight: int) -> None:
    assert cgroups.plan_v2(Limits(cpu_shares=shares))["cpu.weight"] == str(weight)


def test_a_v2_group_is_made_with_its_controllers_handed_down(tmp_path: Path) -> None:
    groups = fake_v2(tmp_path)
    groups.create("pods/one", Limits(pids=3))
    assert (tmp_path / "wherry/aa/pods/one/pids.max").read_text() == "3"
    assert "+" in (tmp_path / "wherry/aa/pods/cgroup.subtree_control").read_text()
    assert groups.runtime_path("pods/one/c") == "/wherry/aa/pods/one/c"
    assert groups.children("pods") == ["one"]


def test_v2_usage_is_read_from_its_files(tmp_path: Path) -> None:
    groups = fake_v2(tmp_path)
    pods = tmp_path / "wherry/aa/pods"
    (pods / "cpu.stat").write_text("usage_usec 1500\nuser_usec 1000\n")
    (pods / "memory.current").write_text("1000\n")
    (pods / "memory.stat").write_text("anon 600\ninactive_file 300\n")
    (pods / "pids.current").write_text("4\n")
    (pods / "memory.events").write_text("oom 2\noom_kill 1\n")
    assert groups.usage("pods") == cgroups.Usage(1_500_000, 1000, 700, 4, 1)
    assert groups.usage("pods/absent") == cgroups.Usage()
    assert groups.processes("pods/absent") == []


def test_missing_controllers_are_named(tmp_path: Path) -> None:
    assert fake_v2(tmp_path, "cpu io").missing_controllers() == ["memory", "pids"]


def test_a_path_may_not_leave_the_base(tmp_path: Path) -> None:
    with pytest.raises(Broken, match="leaves its base"):
        fake_v2(tmp_path).create("../other")


def test_the_mounted_trees_are_found_by_what_is_mounted() -> None:
    def point(kind: str, target: str, options: str) -> mounts.MountPoint:
        return mounts.MountPoint(1, 0, "/", target, frozenset(), 0, kind, kind, tuple(options.split(",")))

    unified = point("cgroup2", "/sys/fs/cgroup", "rw,nsdelegate")
    assert cgroups.find("x", [unified]).version == 2
    hybrid = [point("cgroup", "/c/cpu,cpuacct", "rw,cpu,cpuacct"), point("cgroup", "/c/memory", "rw,memory"), unified]
    found = cgroups.find("x", hybrid)
    assert found.version == 1
    assert found.missing_controllers() == ["pids"]
    with pytest.raises(Broken, match="no cgroup file system"):
        cgroups.find("x", [])


Groups = CgroupsV1 | CgroupsV2


@pytest.fixture(params=["machine", "v2"])
def groups(request: pytest.FixtureRequest) -> Iterator[Groups]:
    """Groups of the kernel: those that the machine has, and v2 also where it stands beside v1."""
    base = f"wherry/test-{secrets.token_hex(4)}/a"
    found: Groups = cgroups.find(base)
    if request.param == "v2":
        root = next((point.target for point in mounts.table() if point.kind == "cgroup2"), "")
        if not root or found.version == 2:
            return  # nothing more to show here
        found = CgroupsV2(base, root)
    yield found
    found.kill("")
    found.remove("")


def sleeper() -> "subprocess.Popen[bytes]":
    return subprocess.Popen(["sleep", "60"])


@pytest.mark.root
def test_processes_enter_are_seen_and_all_end(groups: Groups) -> None:
    groups.create("pods/x")
    groups.create("pods/y")
    first, second = sleeper(), sleeper()
    groups.enter("pods/x", first.pid)
    groups.enter("pods/y", second.pid)
    assert groups.processes("") == sorted([first.pid, second.pid])
    assert groups.processes("pods/x") == [first.pid]
    with pytest.raises(Broken, match="busy"):
        groups.remove("pods/x")
    groups.freeze("pods/x", frozen=True)
    groups.kill("")  # the frozen one too
    assert first.wait(5) == second.wait(5) == -9
    assert groups.processes("") == []
    groups.remove("pods/x")
    groups.remove("pods/x")
    groups.freeze("pods/x", frozen=False)  # gone with its last process: a commit that paused it goes on
    with pytest.raises(NotFound, match="has ended"):
        groups.freeze("pods/x", frozen=True)
    assert groups.children("pods") == ["y"]


@pytest.mark.root
def test_a_group_may_go_while_it_is_let_go_on(groups: Groups, monkeypatch: pytest.MonkeyPatch) -> None:
    groups.create("pods/x")
    groups.freeze("pods/x", frozen=True)
    write = files.write

    def gone(path: str, value: str) -> None:
        groups.remove("pods/x")  # between our look and our word
        write(path, value)

    monkeypatch.setattr(files, "write", gone)
    groups.freeze("pods/x", frozen=False)


@pytest.mark.root
def test_a_fork_bomb_ends_too(groups: Groups) -> None:
    groups.create("bomb", Limits(pids=64) if groups.version == 1 else None)
    gate = "read go; bomb() { while :; do sleep 0.01 & done; }; bomb & bomb & bomb & wait"
    with subprocess.Popen(["sh", "-c", gate], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL) as bomb:
        groups.enter("bomb", bomb.pid)
        assert bomb.stdin is not None
        bomb.stdin.write(b"go\n")
        bomb.stdin.close()
        groups.kill("bomb")
        assert groups.processes("bomb") == []


@pytest.mark.root
def test_limits_reach_the_kernel_and_usage_comes_back() -> None:
    base = f"wherry/test-{secrets.token_hex(4)}/a"
    groups = cgroups.find(base)
    try:
        groups.create("x", Limits(memory_bytes=32 << 20, pids=5, cpu_quota_us=50_000, cpu_shares=512))
        groups.limit("x", Limits(memory_bytes=64 << 20, pids=6))
        groups.limit("x", Limits(memory_bytes=16 << 20, pids=6))
        with subprocess.Popen(
            ["sh", "-c", "read go; exec head -c 100000000 /dev/zero | tail"], stdin=subprocess.PIPE
        ) as hog:
            groups.enter("x", hog.pid)
            assert groups.usage("x").pids >= 1
            assert hog.stdin is not None
            hog.stdin.write(b"go\n")
            hog.stdin.close()
            hog.wait(20)
        usage = groups.usage("x")
        assert usage.oom_kills >= 1
        assert usage.cpu_usage_ns > 0
    finally:
        groups.kill("")
        groups.remove("")
    assert groups.children("") == []
    assert not [root for root, names, _ in os.walk("/sys/fs/cgroup") if base.split("/")[1] in names]
