"""The pure parts: command lines, environments, limits, capabilities, seccomp, users, sandbox files. No root is needed."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wherry.engine import capabilities, seccomp, spec, ulimits, users
from wherry.engine.runtime import clean, command_code
from wherry.engine.sandboxes import check, hosts_file, kinds_of, resolv_conf
from wherry.engine.signals import signal_number
from wherry.engine.types import ContainerSpec, Dns, ExecSpec, Limits, Mount, SandboxSpec
from wherry.engine.users import Identity
from wherry.errors import Invalid, Unsupported

BASE = ContainerSpec(name="c", image="i")
PLACE = spec.Place(
    root="/r",
    user=Identity(0, 0, (0,), "/root"),
    cgroup="/wherry/x",
    hostname="h",
    namespaces={"network": "/n", "uts": "/u"},
    fresh=("pid", "mount", "ipc"),
    files={"/etc/hosts": "/s/hosts"},
    capabilities=("CAP_CHOWN", "CAP_KILL"),
)
PASSWD = "root:x:0:0:root:/root:/bin/sh\nann:x:1000:1001::/home/ann:\nbad line\n7:x:70:71::/seven:\nbob:x:x:1::/:\n"
GROUP = "root:x:0:\nann:x:1001:\naudio:x:29:ann,bob\nstaff:x:50:bob\nworse\n"


@pytest.mark.parametrize(
    ("entrypoint", "command", "image", "argv"),
    [
        (None, None, {"Entrypoint": ["/e"], "Cmd": ["c"]}, ["/e", "c"]),
        (None, ["x"], {"Entrypoint": ["/e"], "Cmd": ["c"]}, ["/e", "x"]),
        (["/n"], None, {"Entrypoint": ["/e"], "Cmd": ["c"]}, ["/n"]),
        (["/n"], ["x"], {"Cmd": ["c"]}, ["/n", "x"]),
        ([""], ["x"], {"Entrypoint": ["/e"]}, ["x"]),
        (None, None, {"Cmd": ["c", "d"]}, ["c", "d"]),
        (None, [], {"Cmd": ["c"]}, ["c"]),
    ],
)
def test_command_lines_merge_as_docker_s(entrypoint: Any, command: Any, image: dict[str, Any], argv: list[str]) -> None:
    assert spec.command_line(replace(BASE, entrypoint=entrypoint, command=command), {"config": image}) == argv


def test_no_command_is_refused() -> None:
    for image in ({}, {"config": None}, {"config": {"Cmd": None}}):
        with pytest.raises(Invalid, match="no command"):
            spec.command_line(BASE, image)


def test_environment() -> None:
    image = {"config": {"Env": ["PATH=/p", "A=1", "B=2"]}}
    made = spec.environment(replace(BASE, env=["A=9", "B", "C=x=y"], tty=True), image, hostname="h", home="/h")
    assert made == ["PATH=/p", "HOSTNAME=h", "TERM=xterm", "A=9", "C=x=y", "HOME=/h"]
    assert spec.environment(BASE, {}, hostname="", home="/") == [f"PATH={spec.DEFAULT_PATH}", "HOME=/"]
    with pytest.raises(Invalid):
        spec.environment(replace(BASE, env=["=x"]), {}, hostname="", home="/")


def test_the_whole_document() -> None:
    made = spec.make(replace(BASE, command=["/x"], limits=Limits(memory_bytes=1 << 30, pids=5)), {}, PLACE)
    assert made["process"]["args"] == ["/x"]
    assert made["process"]["capabilities"]["effective"] == ["CAP_CHOWN", "CAP_KILL"]
    assert made["process"]["capabilities"]["ambient"] == []
    assert {n["type"]: n.get("path") for n in made["linux"]["namespaces"]} == {
        "network": "/n",
        "uts": "/u",
        "pid": None,
        "mount": None,
        "ipc": None,
    }
    assert made["linux"]["resources"]["pids"] == {"limit": 5}
    assert made["linux"]["resources"]["memory"] == {"limit": 1 << 30}
    assert made["linux"]["resources"]["devices"][0] == {"allow": False, "access": "rwm"}
    assert set(spec.MASKED_PATHS) == set(made["linux"]["maskedPaths"])
    targets = [mount["destination"] for mount in made["mounts"]]
    assert targets[:2] == ["/proc", "/dev"]
    assert "/etc/hosts" in targets


def test_who_is_not_root_has_nothing_but_bounds() -> None:
    place = replace(PLACE, user=Identity(5, 5))
    held = spec.make(replace(BASE, command=["x"]), {}, place)["process"]["capabilities"]
    assert held["bounding"] == ["CAP_CHOWN", "CAP_KILL"]
    assert held["effective"] == held["permitted"] == held["inheritable"] == held["ambient"] == []


def test_privileged_is_not_masked() -> None:
    place = replace(PLACE, devices=(spec.Device("/dev/x", "c", 1, 2, 0o666),))
    made = spec.make(replace(BASE, command=["x"], privileged=True), {}, place)
    assert "maskedPaths" not in made["linux"]
    assert made["linux"]["devices"][0]["path"] == "/dev/x"
    assert made["linux"]["resources"]["devices"] == [{"allow": True, "access": "rwm"}]


def test_a_compiled_filter_replaces_the_rules() -> None:
    rules = {"defaultAction": "SCMP_ACT_ERRNO", "syscalls": []}
    plain = spec.make(replace(BASE, command=["x"]), {}, replace(PLACE, seccomp=rules))
    assert plain["linux"]["seccomp"] == rules
    compiled = spec.make(replace(BASE, command=["x"]), {}, replace(PLACE, seccomp=rules, seccomp_filter="AAAA"))
    assert "seccomp" not in compiled["linux"]
    assert compiled["annotations"]["run.oci.seccomp_bpf_data"] == "AAAA"


def test_own_mounts_come_after_the_system_s_and_parents_first() -> None:
    mounts = [
        Mount("/a/b/c", "/1"),
        Mount("/a", "/2", read_only=True),
        Mount("/dev/shm", kind="tmpfs"),
        Mount("/v", "v", kind="volume"),
    ]
    made = spec.make(replace(BASE, command=["x"], mounts=mounts), {}, replace(PLACE, sources={"/v": "/volumes/v"}))
    targets = [mount["destination"] for mount in made["mounts"]]
    assert targets.count("/dev/shm") == 1
    assert targets.index("/a") < targets.index("/a/b/c")
    by_target = {mount["destination"]: mount for mount in made["mounts"]}
    assert "ro" in by_target["/a"]["options"]
    assert by_target["/v"]["source"] == "/volumes/v"
    for wrong in (Mount("a", "/1"), Mount("/", "/1"), Mount("/x", "y"), Mount("/x", kind="magic")):
        with pytest.raises(Invalid):
            spec.make(replace(BASE, command=["x"], mounts=[wrong]), {}, PLACE)
    with pytest.raises(Invalid, match="two mounts"):
        spec.make(replace(BASE, command=["x"], mounts=[Mount("/a", "/1"), Mount("/a/", "/2")]), {}, PLACE)


@pytest.mark.parametrize(
    ("limits", "field"),
    [
        (Limits(memory_bytes=1), "memory_bytes"),
        (Limits(cpu_quota_us=1), "cpu_quota_us"),
        (Limits(cpu_period_us=1), "cpu_period_us"),
        (Limits(cpuset_cpus="x"), "cpuset_cpus"),
        (Limits(pids=-1), "pids"),
    ],
)
def test_limits_that_cannot_be(limits: Limits, field: str) -> None:
    with pytest.raises(Invalid, match=field):
        spec.resources(limits)


def test_no_limits_is_no_limits() -> None:
    assert spec.resources(Limits()) == {}
    assert spec.resources(
        Limits(cpu_quota_us=50_000, cpu_shares=0, cpuset_cpus="0-1", memory_bytes=1 << 30, memory_swap_bytes=1 << 31)
    ) == {
        "cpu": {"quota": 50_000, "period": 100_000, "shares": 2, "cpus": "0-1"},
        "memory": {"limit": 1 << 30, "swap": 1 << 31},
    }


def test_an_exec_takes_after_the_container() -> None:
    container = spec.make(replace(BASE, command=["x"], env=["A=1"]), {}, PLACE)["process"]
    made = spec.exec_process(container, ExecSpec(["y"], env=["B=2"]), None)
    assert made["args"] == ["y"]
    assert {"A=1", "B=2"} <= set(made["env"])
    assert made["user"] == container["user"]
    other = spec.exec_process(container, ExecSpec(["y"], tty=True, workdir="/w/../v"), Identity(5, 6, (7,), "/five"))
    assert (other["user"]["uid"], other["user"]["additionalGids"], other["cwd"]) == (5, [7], "/v")
    assert "HOME=/five" in other["env"]
    assert "TERM=xterm" in other["env"]
    assert other["capabilities"]["effective"] == []


# capabilities, seccomp ------------------------------------------------------------------------------------------------
def test_capabilities() -> None:
    every = capabilities.ALL

    def choose(add: list[str], drop: list[str], **further: Any) -> set[str]:
        return set(capabilities.choose(add, drop, **({"privileged": False, "available": every} | further)))

    assert choose([], []) == capabilities.DEFAULT
    assert len(capabilities.DEFAULT) == 14
    assert choose(["net_admin"], ["CAP_CHOWN"]) == capabilities.DEFAULT - {"CAP_CHOWN"} | {"CAP_NET_ADMIN"}
    assert choose([], ["ALL"]) == set()
    assert choose(["KILL"], ["all"]) == {"CAP_KILL"}
    assert choose(["ALL"], ["KILL"]) == set(every) - {"CAP_KILL"}
    assert choose([], [], privileged=True, available={"CAP_KILL"}) == {"CAP_KILL"}
    assert choose(["ALL"], [], available={"CAP_KILL"}) == {"CAP_KILL"}
    with pytest.raises(Invalid, match="does not have it itself"):
        choose(["SYS_ADMIN"], [], available=capabilities.DEFAULT)
    with pytest.raises(Invalid, match="no such capability"):
        choose(["FLY"], [])
    assert capabilities.decode(0xA80425FB) == capabilities.DEFAULT


PROFILE = {
    "defaultAction": "SCMP_ACT_ERRNO",
    "defaultErrnoRet": 38,
    "archMap": [{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]}],
    "syscalls": [
        {"names": ["read", "mount", "clone", "unshare"], "action": "SCMP_ACT_ALLOW"},
        {"names": ["arch_only"], "action": "SCMP_ACT_ALLOW", "includes": {"arches": ["arm64"]}},
        {"names": ["setns"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_ADMIN"]}},
        {"names": ["setns"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1, "excludes": {"caps": ["CAP_SYS_ADMIN"]}},
    ],
}


def allowed(rules: dict[str, Any]) -> set[str]:
    return {
        name
        for rule in rules["syscalls"]
        for name in rule["names"]
        if rule["action"] == "SCMP_ACT_ALLOW" and "args" not in rule
    }


def test_the_profile_is_narrowed_for_who_is_no_administrator() -> None:
    made = seccomp.rules(PROFILE, capabilities=capabilities.DEFAULT, machine="x86_64")
    assert allowed(made) == {"read"}
    assert made["architectures"] == ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"]
    clone = [rule for rule in made["syscalls"] if rule["names"] == ["clone"]]
    assert clone[0]["args"][0]["value"] == 0x7E020000
    admin = seccomp.rules(PROFILE, capabilities=capabilities.ALL, machine="x86_64")
    assert allowed(admin) == {"read", "mount", "clone", "unshare", "setns"}
    own = seccomp.rules(PROFILE, capabilities=(), machine="aarch64", narrow=False)
    assert allowed(own) == {"read", "mount", "clone", "unshare", "arch_only"}


def test_a_profile_that_a_request_brings() -> None:
    old = seccomp.parse(
        '{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"name": "mkdir", "action": "SCMP_ACT_ERRNO"}]}'
    )
    assert old["syscalls"][0]["names"] == ["mkdir"]
    for wrong in ("x", "[]", "{}", '{"defaultAction": "a", "syscalls": [{}]}'):
        with pytest.raises(Invalid, match="seccomp"):
            seccomp.parse(wrong)


# users ----------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("user", "expected"),
    [
        ("", Identity(0, 0, (0,), "/root")),
        ("root", Identity(0, 0, (0,), "/root")),
        ("ann", Identity(1000, 1001, (1001, 29), "/home/ann")),
        ("1000", Identity(1000, 1001, (1001, 29), "/home/ann")),
        ("ann:staff", Identity(1000, 50, (50,), "/home/ann")),
        ("ann:77", Identity(1000, 77, (77,), "/home/ann")),
        ("1234", Identity(1234, 0, (0,), "/")),
        ("1234:5678", Identity(1234, 5678, (5678,), "/")),
        ("7", Identity(70, 71, (71,), "/seven")),
        (":50", Identity(0, 50, (50,), "/root")),
    ],
)
def test_users(user: str, expected: Identity) -> None:
    assert users.resolve(user, PASSWD, GROUP) == expected


def test_users_that_are_not_there() -> None:
    for wrong in ("nobody", "bob", "ann:nothing", "-1", "4294967295", "99999999999"):
        with pytest.raises(Invalid):
            users.resolve(wrong, PASSWD, GROUP)
    assert users.resolve("ann", PASSWD, GROUP, (29, 7, 1001)).groups == (1001, 29, 7)


@given(st.text(max_size=300), st.text(max_size=300), st.text(max_size=20))
def test_hostile_files_only_ever_say_no(passwd: str, group: str, user: str) -> None:
    try:
        found = users.resolve(user, passwd, group)
    except Invalid:
        return
    assert 0 <= found.uid <= users.MAX_ID
    assert 0 <= found.gid <= users.MAX_ID


# sandboxes, words -----------------------------------------------------------------------------------------------------
def test_sandbox_files() -> None:
    made = SandboxSpec(id="s", hostname="web-1", hosts=[("db", "10.0.0.9")])
    text = hosts_file(made, ["10.1.1.1"])
    assert "10.1.1.1\tweb-1\n" in text
    assert text.endswith("10.0.0.9\tdb\n")
    assert resolv_conf(Dns(), "10.1.0.1") == "nameserver 10.1.0.1\n"
    asked = Dns(["9.9.9.9"], ["a.b", "b"], ["ndots:5"])
    assert resolv_conf(asked, "10.1.0.1") == "nameserver 9.9.9.9\nsearch a.b b\noptions ndots:5\n"
    host = "search lan\nnameserver 192.168.0.1\n"
    assert resolv_conf(Dns(), "", host) == host
    assert "search lan" not in resolv_conf(Dns(searches=["x"]), "", host)


def test_sandbox_namespaces_and_refusals() -> None:
    assert kinds_of(SandboxSpec("s", "h")) == ["net", "ipc", "uts"]
    assert kinds_of(SandboxSpec("s", "", network="host", host_ipc=True)) == []
    wrong = (
        SandboxSpec("../x", "h"),
        SandboxSpec("s", "h", network="magic"),
        SandboxSpec("s", "under_score!"),
        SandboxSpec("s", "h", sysctls={"kernel.panic": "1"}),
        SandboxSpec("s", "h", network="host", sysctls={"net.ipv4.ip_forward": "1"}),
    )
    for made in wrong:
        with pytest.raises(Invalid):
            check(made)
    with pytest.raises(Unsupported, match="PID"):
        check(SandboxSpec("s", "h", share_pid=True))


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ("executable file `x` not found in $PATH: No such file or directory", 127),
        ('exec: "x": executable file not found in $PATH', 127),
        ("open executable: Permission denied", 126),
        ('unable to start container process: exec: "/x": permission denied', 126),
        ('unable to start container process: exec: "/x": stat /x: no such file or directory', 127),
        ("mount `/x` to `/y`: No such file or directory", 0),
        ("cannot set memory limit: Permission denied", 0),
    ],
)
def test_what_a_runtime_s_words_mean(words: str, code: int) -> None:
    assert command_code(words) == code


def test_a_runtime_s_words_without_dates() -> None:
    assert clean("2026-01-01T00:00:00.000000Z: exec failed") == "exec failed"
    assert clean('time="2026" level=error msg="runc create failed: unable to \\"x\\""\n') == 'unable to "x"'


def test_signals() -> None:
    assert [signal_number(name) for name in ("SIGTERM", "term", "15", "SIGKILL", "RTMIN+3")] == [15, 15, 15, 9, 37]
    for wrong in ("", "0", "65", "SIGNOTHING", "RTMIN+99"):
        with pytest.raises(Invalid):
            signal_number(wrong)


def test_all_limits_are_written_out() -> None:
    limits = Limits(
        realtime_runtime_us=5, realtime_period_us=9, swappiness=0, oom_kill_disable=True, kernel_tcp_bytes=7,
        memory_reservation_bytes=8, cpuset_mems="0",
    )  # fmt: skip
    assert spec.resources(limits) == {
        "cpu": {"mems": "0", "realtimeRuntime": 5, "realtimePeriod": 9},
        "memory": {"reservation": 8, "swappiness": 0, "disableOOMKiller": True, "kernelTCP": 7},
    }


def test_paths_annotations_and_profiles_as_asked() -> None:
    asked = replace(
        BASE, command=["x"], masked_paths=["/proc/a"], read_only_paths=[], annotations={"a": "1"}, apparmor="mine",
    )  # fmt: skip
    made = spec.make(asked, {}, replace(PLACE, seccomp={"syscalls": []}, seccomp_filter="AAAA", oom_score_adj=5))
    assert made["linux"]["maskedPaths"] == ["/proc/a"]
    assert "readonlyPaths" not in made["linux"]
    assert made["annotations"] == {"a": "1", "run.oci.seccomp_bpf_data": "AAAA"}
    assert (made["process"]["apparmorProfile"], made["process"]["oomScoreAdj"]) == ("mine", 5)
    privileged = spec.make(replace(asked, privileged=True), {}, PLACE)
    assert privileged["linux"]["maskedPaths"] == ["/proc/a"]


def test_shared_memory_of_ones_own_of_a_sandbox_and_none() -> None:
    def shm(place: spec.Place) -> list[dict[str, Any]]:
        made = spec.make(replace(BASE, command=["x"]), {}, place)
        return [mount for mount in made["mounts"] if mount["destination"] == "/dev/shm"]

    assert [mount["type"] for mount in shm(PLACE)] == ["tmpfs"]
    assert [mount["source"] for mount in shm(replace(PLACE, shm="/s/shm"))] == ["/s/shm"]
    assert shm(replace(PLACE, shm=None)) == []


def test_mounts_read_only_below_and_options_of_tmpfs() -> None:
    mounts = [
        Mount("/a", "/1", read_only=True, read_only_below=True),
        Mount("/b", "/1", read_only=True, read_only_below=True, recursive=False),
        Mount("/c", "/1", read_only_below=True),
        Mount("/d", "web:1", kind="image", read_only=True),
        Mount("/e", kind="tmpfs", options=["exec", "size=1m"]),
    ]
    made = spec.make(
        replace(BASE, command=["x"], mounts=mounts), {}, replace(PLACE, sources={"/d": "/image", "/a": "/2"})
    )
    by_target = {mount["destination"]: mount for mount in made["mounts"]}
    assert [("rro" in by_target[target]["options"]) for target in ("/a", "/b", "/c", "/d")] == [
        True,
        False,
        False,
        False,
    ]
    assert (by_target["/a"]["source"], by_target["/d"]["source"]) == ("/2", "/image")
    assert by_target["/e"]["options"] == ["nosuid", "nodev", "rw", "exec", "size=1m"]


def test_groups_by_name_and_scores() -> None:
    assert users.resolve("ann", PASSWD, GROUP, ["staff", 7]).groups == (1001, 50, 7, 29)
    with pytest.raises(Invalid, match="unable to find group none"):
        users.resolve("ann", PASSWD, GROUP, ["none"])
    assert ulimits.oom_score(5, ()) == (5, "")
    assert ulimits.oom_score(-1000, ["CAP_SYS_RESOURCE"]) == (-1000, "")
    score, warning = ulimits.oom_score(-1000, ())
    assert (score == -1000) == (warning == "")
    with pytest.raises(Invalid, match="range for oom score"):
        ulimits.oom_score(1001, ())


def test_names_in_the_hosts_file() -> None:
    sandbox = SandboxSpec("s", "boat", domain="example.org", hosts=[("db", "10.0.0.9")])
    lines = hosts_file(sandbox, ["10.0.0.2"], ["10.0.0.3\tbase db"]).splitlines()
    assert lines[-3:] == ["10.0.0.2\tboat.example.org boat", "10.0.0.9\tdb", "10.0.0.3\tbase db"]
    assert "10.0.0.2\ta.b a" in hosts_file(SandboxSpec("s", "a.b"), ["10.0.0.2"]).splitlines()
    assert kinds_of(SandboxSpec("s", "", host_uts=True)) == ["net", "ipc"]


@pytest.mark.parametrize(
    ("sandbox", "says"),
    [
        (SandboxSpec("s", "h", host_ipc=True, sysctls={"kernel.shmmni": "1"}), "host ipc namespace"),
        (SandboxSpec("s", "h", network="host", sysctls={"net.core.somaxconn": "1"}), "host network namespace"),
        (SandboxSpec("s", "h", domain="a b"), "domain name"),
        (SandboxSpec("s", "h", cgroup_parent="/a/../b"), "cgroup parent"),
    ],
)
def test_sandboxes_that_would_reach_the_machine(sandbox: SandboxSpec, says: str) -> None:
    with pytest.raises(Invalid, match=says):
        check(sandbox)
