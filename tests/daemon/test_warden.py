"""The warden as a process: what it restarts, in what order it stops, what it fences, and what it answers."""

import itertools
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import wherry.daemon.warden as warden_module
from wherry.clock import machine
from wherry.daemon.instance import ask

SCRIPT = Path(warden_module.__file__)
SLEEPS = "exec sleep 1000"


def until(holds: Callable[[], Any], what: str, timeout_s: float = 15.0) -> Any:
    """Wait for a state."""
    deadline = machine.monotonic() + timeout_s
    while not (found := holds()):
        assert machine.monotonic() < deadline, f"not within {timeout_s:g} s: {what}"
        machine.pause(0.02)
    return found


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False


class Watched:
    """A warden over shell scripts, in a directory of its own."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.socket = place / "warden.sock"
        self.process: subprocess.Popen[bytes] | None = None

    def role(self, name: str, script: str, **more: Any) -> dict[str, Any]:
        return {
            "name": name,
            "argv": ["/bin/sh", "-c", script],
            "env": {"PATH": "/usr/bin:/bin"},
            "log": str(self.place / f"{name}.log"),
            **more,
        }

    def start(self, roles: Sequence[dict[str, Any]], *, owner_fd: int | None = None) -> "Watched":
        sweep = ["/bin/sh", "-c", f"echo swept > {self.place}/swept"]
        plan = {"id": "x", "run": str(self.place), "owner_fd": owner_fd, "sweep": sweep, "roles": list(roles)}
        (self.place / "plan.json").write_text(json.dumps(plan))
        self.process = subprocess.Popen(
            [sys.executable, "-IS", str(SCRIPT), str(self.place / "plan.json")],
            pass_fds=(owner_fd,) if owner_fd is not None else (),
            start_new_session=True,
            stderr=(self.place / "stderr").open("ab"),
        )
        until(self.socket.exists, "its socket")
        until(lambda: all(each["pid"] for each in self.roles().values()), "the roles run")
        return self

    def ask(self, **request: Any) -> dict[str, Any]:
        return ask(self.socket, request)

    def raw(self, data: bytes) -> bytes:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(5)
            client.connect(str(self.socket))
            client.sendall(data)
            client.shutdown(socket.SHUT_WR)
            answer = b""
            while part := client.recv(65536):
                answer += part
        return answer

    def said(self, name: str) -> str:
        """What a role has written."""
        log = self.place / f"{name}.log"
        return log.read_text() if log.exists() else ""

    def roles(self) -> dict[str, dict[str, Any]]:
        return {each["name"]: each for each in self.ask(op="status")["roles"]}

    def ended(self) -> int:
        assert self.process is not None
        return self.process.wait(20)


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Watched]:
    made = Watched(tmp_path)
    yield made
    if made.process is not None and made.process.poll() is None:
        roles = made.roles()
        made.ask(op="sweep")
        made.ended()
        until(lambda: not any(lives(each["pid"]) for each in roles.values()), "the roles are gone")


def test_a_killed_role_comes_back(watched: Watched) -> None:
    before = watched.start([watched.role("server", SLEEPS), watched.role("node", SLEEPS)]).roles()
    os.kill(before["server"]["pid"], signal.SIGKILL)
    now = until(lambda: (r := watched.roles())["server"]["starts"] == 2 and r["server"]["pid"] and r, "a second start")
    assert now["server"]["last_exit"] == -signal.SIGKILL
    assert now["server"]["state"] == "running"
    assert now["node"] == before["node"]


def test_a_role_that_crashes_at_once_is_tried_later_each_time(watched: Watched) -> None:
    """The times between its starts grow; the other role and the warden's answers do not suffer."""
    log = watched.place / "times"
    watched.start([watched.role("server", SLEEPS)])
    watched.ask(op="add", role=watched.role("bad", f"cut -d' ' -f1 /proc/uptime >> {log}; exit 3"))
    until(lambda: watched.roles()["bad"]["starts"] >= 5, "five starts")
    times = [float(line) for line in log.read_text().split()]
    gaps = [after - before for before, after in itertools.pairwise(times)][:4]
    assert gaps == sorted(gaps)
    assert gaps[-1] > 3 * gaps[0]
    assert watched.roles()["bad"]["last_exit"] == 3
    assert watched.roles()["server"]["starts"] == 1


def test_a_role_whose_program_is_not_there_says_so_in_its_log(watched: Watched) -> None:
    watched.start([watched.role("server", SLEEPS)])
    watched.ask(op="add", role={**watched.role("none", ""), "argv": ["/none/such"]})
    until(lambda: watched.roles()["none"]["last_exit"] == 70, "its exit code")
    assert "cannot start: " in (watched.place / "none.log").read_text()


def test_stop_ends_the_nodes_first_and_the_server_last(watched: Watched) -> None:
    order = watched.place / "order"

    def script(name: str, slow: str) -> str:
        return f"trap 'sleep {slow}; echo {name} >> {order}; exit 0' TERM; echo up; while :; do sleep 0.05; done"

    names = ("server", "node-1", "node-2")
    watched.start(
        [watched.role(name, script(name, slow)) for name, slow in zip(names, ["0", "0.4", "0.2"], strict=True)]
    )
    until(lambda: all(watched.said(name) for name in names), "the traps are set")
    assert watched.ask(op="stop") == {"ok": True}
    assert watched.ended() == 0
    assert order.read_text().split() == ["node-2", "node-1", "server"]
    assert not (watched.place / "swept").exists()


def test_a_sweep_overtakes_a_stop_that_hangs(watched: Watched) -> None:
    watched.start(
        [watched.role("server", SLEEPS), watched.role("node", "trap '' TERM; echo up; while :; do sleep 1; done")]
    )
    until(lambda: watched.said("node"), "the trap is set")
    pids = [each["pid"] for each in watched.roles().values()]
    watched.ask(op="stop")
    watched.ask(op="sweep")
    assert watched.ended() == 0
    assert not any(lives(pid) for pid in pids)
    assert (watched.place / "swept").read_text() == "swept\n"


def test_when_the_owner_dies_everything_is_swept(watched: Watched) -> None:
    reading, writing = os.pipe()
    watched.start(
        [watched.role("server", SLEEPS), watched.role("node", "trap '' TERM; exec sleep 1000")], owner_fd=reading
    )
    os.close(reading)
    pids = [each["pid"] for each in watched.roles().values()]
    os.close(writing)
    assert watched.ended() == 0
    assert not any(lives(pid) for pid in pids)
    assert (watched.place / "swept").exists()


def test_a_silent_agent_is_fenced_and_starts_again(watched: Watched) -> None:
    """A stopped process (SIGSTOP) stands for one that hangs: nothing but its heartbeat's age shows it."""
    heartbeat = watched.place / "heartbeat"
    beats = f"while :; do touch {heartbeat}; sleep 0.1; done"
    watched.start([watched.role("server", SLEEPS), watched.role("node", beats, heartbeat=str(heartbeat), fence_s=1.0)])
    until(heartbeat.exists, "the first beat")
    before = watched.roles()["node"]
    assert before["fenced"] == 0
    os.kill(before["pid"], signal.SIGSTOP)
    after = until(
        lambda: (r := watched.roles()["node"])["fenced"] and r["pid"] not in (0, before["pid"]) and r, "fence"
    )
    assert not lives(before["pid"])
    assert after["starts"] == 2
    until(heartbeat.exists, "it beats again")


BAD = [
    b"\n",
    b"",
    b"nonsense\n",
    b"[]\n",
    b"3\n",
    b'"status"\n',
    b"\xff\xff\n",
    b"[" * 100_000 + b"\n",
    b'{"op": "status"',
    b"{}\n",
    b'{"op": ["status"]}\n',
    b'{"op": "dance"}\n',
    b'{"op": "kill"}\n',
    b'{"op": "kill", "name": "none"}\n',
    b'{"op": "kill", "name": ["server"]}\n',
    b'{"op": "remove", "name": {}}\n',
    b'{"op": "add"}\n',
    b'{"op": "add", "role": 3}\n',
    b'{"op": "add", "role": {"name": "x"}}\n',
    b'{"op": "add", "role": {"name": "server", "argv": ["/bin/true"], "env": {"A": "1"}, "log": "/dev/null"}}\n',
]


def test_bad_requests_are_refused_and_change_nothing(watched: Watched) -> None:
    before = watched.start([watched.role("server", SLEEPS)]).roles()
    for data in BAD:
        answer = json.loads(watched.raw(data))
        assert answer.keys() == {"error"}, data[:80]
    with socket.socket(socket.AF_UNIX) as silent, socket.socket(socket.AF_UNIX) as half:
        silent.connect(str(watched.socket))
        half.connect(str(watched.socket))
        half.sendall(b'{"op"')
        assert watched.roles() == before
    assert watched.roles() == before


def test_the_socket_is_for_its_own_user_only(watched: Watched) -> None:
    watched.start([watched.role("server", SLEEPS)])
    assert watched.socket.stat().st_mode & 0o777 == 0o600


def test_remove_forgets_a_role_and_its_name_is_free_again(watched: Watched) -> None:
    watched.start([watched.role("server", SLEEPS), watched.role("node", SLEEPS)])
    pid = watched.roles()["node"]["pid"]
    assert watched.ask(op="remove", name="node") == {"ok": True, "pid": pid}
    until(lambda: "node" not in watched.roles(), "it is forgotten")
    assert not lives(pid)
    assert watched.ask(op="add", role=watched.role("node", SLEEPS)) == {"ok": True}
    until(lambda: watched.roles()["node"]["pid"], "it runs again")
    watched.ask(op="kill", name="node", forever=True)
    until(lambda: watched.roles()["node"]["state"] == "stopped", "it stays dead")


def test_it_is_small(watched: Watched) -> None:
    """Below 10 MB, as `benchmarks/idle` counts: pages that several processes share are counted in part (PSS)."""
    watched.start([watched.role("server", SLEEPS), watched.role("node", SLEEPS)])
    assert watched.process is not None
    lines = Path(f"/proc/{watched.process.pid}/smaps_rollup").read_text().splitlines()
    assert int(next(line.split()[1] for line in lines if line.startswith("Pss:"))) < 10 * 1024


def test_it_imports_nothing_of_ours() -> None:
    """Nor anything large: this is what keeps it small."""
    code = f"import sys; exec(compile(open({str(SCRIPT)!r}).read(), 'w', 'exec'), {{'__name__': 'w'}}); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-IS", "-c", code], capture_output=True, text=True, timeout=20, check=True)
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert not loaded & {"wherry", "msgspec", "asyncio", "typing", "subprocess", "logging", "ctypes", "pathlib", "ssl"}
