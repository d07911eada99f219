"""The warden: a tiny process that outlives the roles of an instance, restarts them and, at the end, removes them.

It is plain standard library, because it must stay small (below 10 MB, pages shared with others counted in part) and
must not break with the rest: it is run as
`python -IS warden.py PLAN.json` and imports nothing of wherry. It is not a supervisor for containers: these live under
conmon and in the cgroup of their node.

Its plan (JSON): `{"id", "run", "owner_fd", "sweep": argv, "roles": [role, ...]}` where a role is `{"name", "argv", "env",
"uid", "gid", "netns", "cgroup", "log", "heartbeat", "fence_s"}`. `cgroup` is a directory of the cgroup-v2 tree: the process
runs in its leaf `role`, and everything it starts stays below it. It listens on `RUN/warden.sock` for one JSON line a
connection: `{"op": "status" | "add" | "remove" | "kill" | "stop" | "sweep", ...}`; the answer is one JSON line.

States of a role: starting -> running -> (exit) -> waiting (back-off) -> running ...; `remove` ends it for good.
When the owner's pipe closes (a test run was killed) or on `sweep`, everything is killed and the sweep command runs.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import sys
from time import monotonic, time  # the one module besides clock.py that reads the time: it may import nothing of ours

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

BACKOFF_FIRST_S = 0.1
BACKOFF_MOST_S = 10.0
HEALTHY_AFTER_S = 10.0
CLONE_NEWNET = 0x40000000
TERM_GRACE_S = 15.0
CLIENTS_MOST = 64
OURS = (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, signal.SIGHUP)


class Role:
    """One process that is kept running."""

    def __init__(self, plan: dict[str, Any]) -> None:
        self.plan = plan
        self.name = plan["name"]
        self.pid = 0
        self.starts = 0
        self.started = 0.0
        self.due = 0.0
        self.backoff = BACKOFF_FIRST_S
        self.stopping = False
        self.asked = False
        self.removed = False
        self.last_exit: int | None = None
        self.fenced = 0

    def start(self) -> None:
        """Fork and execute; the child enters its cgroup, namespace and user first."""
        self.starts += 1
        self.started = monotonic()
        held = signal.pthread_sigmask(signal.SIG_BLOCK, OURS)  # our handlers must not take a signal meant for the child
        pid = os.fork()
        if pid:
            signal.pthread_sigmask(signal.SIG_SETMASK, held)
            self.pid = pid
            return
        try:
            self._become()
        except OSError as error:
            os.write(2, f"warden: {self.name}: cannot start: {error}\n".encode())
        finally:
            os._exit(70)

    def _become(self) -> None:
        plan = self.plan
        os.setsid()
        for number in OURS:
            signal.signal(number, signal.SIG_DFL)
        signal.set_wakeup_fd(-1)
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        log = os.open(plan["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o640)
        null = os.open("/dev/null", os.O_RDONLY)
        os.dup2(null, 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.closerange(3, 256)
        if plan.get("cgroup"):
            leaf = os.path.join(plan["cgroup"], "role")
            os.makedirs(leaf, exist_ok=True)
            with open(os.path.join(leaf, "cgroup.procs"), "w") as procs:
                procs.write(str(os.getpid()))
        if plan.get("netns"):
            import ctypes  # in the child alone: the warden stays small

            libc = ctypes.CDLL(None, use_errno=True)
            fd = os.open(plan["netns"], os.O_RDONLY | os.O_CLOEXEC)
            if libc.setns(fd, CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), "setns", plan["netns"])
        if plan.get("uid"):
            os.setgroups([])
            os.setresgid(plan["gid"], plan["gid"], plan["gid"])
            os.setresuid(plan["uid"], plan["uid"], plan["uid"])
        os.execve(plan["argv"][0], plan["argv"], plan["env"])

    def ended(self, status: int) -> None:
        """Note the exit and plan the next start, later each time it fails soon."""
        self.pid = 0
        self.last_exit = os.waitstatus_to_exitcode(status)
        if monotonic() - self.started > HEALTHY_AFTER_S:
            self.backoff = BACKOFF_FIRST_S
        self.due = monotonic() + self.backoff
        self.backoff = min(self.backoff * 2, BACKOFF_MOST_S)

    def silent_s(self) -> float:
        """Say for how many seconds the heartbeat file has not been touched; 0 where there is none yet."""
        path = self.plan.get("heartbeat")
        if not path:
            return 0.0
        try:
            return time() - os.stat(path).st_mtime
        except OSError:
            return 0.0

    def status(self) -> dict[str, Any]:
        """Say how it is, as JSON."""
        state = "running" if self.pid else "stopped" if self.stopping else "waiting"
        return {
            "name": self.name, "pid": self.pid, "state": state, "starts": self.starts,
            "last_exit": self.last_exit, "fenced": self.fenced,
        }  # fmt: skip

    def signal(self, number: int) -> None:
        """Send the process a signal; nothing where it does not run."""
        if self.pid:
            with contextlib.suppress(OSError):
                os.kill(self.pid, number)


def kill_cgroup(path: str | None) -> None:
    """Kill every process below a cgroup-v2 directory; nothing when it is not there."""
    if not path:
        return
    try:
        with open(os.path.join(path, "cgroup.kill"), "w") as file:
            file.write("1")
    except OSError:
        for folder, _, _ in os.walk(path):
            with contextlib.suppress(OSError), open(os.path.join(folder, "cgroup.procs")) as procs:
                for pid in procs.read().split():
                    with contextlib.suppress(OSError):
                        os.kill(int(pid), signal.SIGKILL)


class Warden:
    """The loop: children, the owner's pipe, the control socket, fences."""

    def __init__(self, plan: dict[str, Any]) -> None:
        self.plan = plan
        self.roles = {role["name"]: Role(role) for role in plan["roles"]}
        self.ending: str | None = None
        self.deadline = 0.0
        self.wake, self.waker = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.clients: dict[int, socket.socket] = {}

    def listen(self) -> socket.socket:
        """Open the control socket, for this user only."""
        path = os.path.join(self.plan["run"], "warden.sock")
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        previous = os.umask(0o177)
        try:
            listener.bind(path)
        finally:
            os.umask(previous)
        listener.listen(16)
        listener.setblocking(False)
        return listener

    def run(self) -> bool:
        """Serve until `stop` or `sweep`; return whether to sweep."""
        signal.set_wakeup_fd(self.waker, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, lambda *_: self.end("sweep"))
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        listener = self.listen()
        poll = select.poll()
        poll.register(self.wake, select.POLLIN)
        poll.register(listener, select.POLLIN)
        owner = self.plan.get("owner_fd")
        if owner is not None:
            poll.register(owner, select.POLLIN | select.POLLHUP)
        while True:
            self.tend()
            if self.ending and not any(role.pid for role in self.roles.values()):
                break
            for fd, _ in poll.poll(self.patience_ms()):
                if fd == self.wake:
                    with contextlib.suppress(BlockingIOError):
                        os.read(self.wake, 4096)
                elif fd == listener.fileno():
                    self.accept(listener, poll)
                elif owner is not None and fd == owner:
                    if not os.read(owner, 4096):
                        poll.unregister(owner)
                        self.end("sweep")
                elif fd in self.clients:
                    self.serve(fd, poll)
        listener.close()
        return self.ending == "sweep"

    def patience_ms(self) -> int:
        """How long the loop may sleep: to the next back-off, fence or deadline."""
        waits = [1.0]
        if not any(role.plan.get("heartbeat") and role.plan.get("fence_s") for role in self.roles.values()):
            waits = [30.0]
        waits += [
            max(0.0, role.due - monotonic()) for role in self.roles.values() if not role.pid and not role.stopping
        ]
        if self.ending:
            waits.append(0.2)
        return int(min(waits) * 1000) + 1

    def tend(self) -> None:
        """Reap, restart what is due, fence what is silent."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == 0:
                break
            for role in self.roles.values():
                if role.pid == pid:
                    role.ended(status)
        self.roles = {name: role for name, role in self.roles.items() if role.pid or not role.removed}
        now = monotonic()
        for role in list(self.roles.values()):
            if role.stopping and not role.pid:
                continue
            fence_s = role.plan.get("fence_s")
            if fence_s and not self.ending and role.silent_s() > fence_s and now - role.started > fence_s:
                self.fence(role)
            if not role.pid and not role.stopping and not self.ending and now >= role.due:
                role.start()
        if self.ending == "stop":
            self.stop_next()
        if self.ending and now > self.deadline:
            for role in self.roles.values():
                role.signal(signal.SIGKILL)

    def stop_next(self) -> None:
        """Ask the first role of the plan, the server, to stop when all others, which speak to it, have ended."""
        if not self.roles:
            return
        first, *others = self.roles.values()
        if first.pid and not first.asked and not any(role.pid for role in others):
            first.asked = True
            first.signal(signal.SIGTERM)

    def fence(self, role: Role) -> None:
        """A silent agent's pods will be replaced elsewhere: nothing of the node may go on running here."""
        role.fenced += 1
        kill_cgroup(role.plan.get("cgroup"))
        role.signal(signal.SIGKILL)
        if role.plan.get("heartbeat"):
            with contextlib.suppress(OSError):
                os.unlink(role.plan["heartbeat"])

    def end(self, how: str) -> None:
        """Stop all roles in order (SIGTERM, later SIGKILL); then leave, or sweep. A sweep overtakes a stop."""
        if self.ending == how or self.ending == "sweep":
            return
        self.ending = how
        self.deadline = monotonic() + (TERM_GRACE_S if how == "stop" else 0.0)
        for number, role in enumerate(self.roles.values()):
            role.stopping = True
            if how == "sweep":
                role.signal(signal.SIGKILL)
                kill_cgroup(role.plan.get("cgroup"))
            elif number:
                role.asked = True
                role.signal(signal.SIGTERM)

    def accept(self, listener: socket.socket, poll: select.poll) -> None:
        """Take a control connection."""
        with contextlib.suppress(BlockingIOError):
            client, _ = listener.accept()
            if len(self.clients) >= CLIENTS_MOST:
                client.close()
                return
            client.settimeout(0.5)
            self.clients[client.fileno()] = client
            poll.register(client, select.POLLIN | select.POLLHUP)

    def serve(self, fd: int, poll: select.poll) -> None:
        """Answer one request line."""
        client = self.clients.pop(fd)
        poll.unregister(fd)
        with client, contextlib.suppress(OSError):
            line = b""
            while not line.endswith(b"\n") and len(line) < 1 << 20:
                part = client.recv(65536)
                if not part:
                    break
                line += part
            try:
                request = json.loads(line)
                answer = self.answer(request) if isinstance(request, dict) else {"error": "the request is no object"}
            except (ValueError, RecursionError):
                answer = {"error": "the request is no line of JSON"}
            client.sendall(json.dumps(answer).encode() + b"\n")

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Do what a control request says."""
        op, name = request.get("op"), request.get("name")
        if op == "status":
            return {"pid": os.getpid(), "ending": self.ending, "roles": [role.status() for role in self.roles.values()]}
        if op == "add":
            plan = request.get("role")
            if not isinstance(plan, dict) or not all(plan.get(key) for key in ("name", "argv", "env", "log")):
                return {"error": "a role needs name, argv, env and log"}
            if self.ending:
                return {"error": "the instance is stopping"}
            if plan["name"] in self.roles:
                return {"error": f"role {plan['name']!r} is already there"}
            self.roles[plan["name"]] = Role(plan)
            return {"ok": True}
        if op in ("stop", "sweep"):
            self.end(op)
            return {"ok": True}
        if op in ("remove", "kill") and isinstance(name, str) and name in self.roles:
            role = self.roles[name]
            if op == "kill":
                if request.get("forever"):
                    role.stopping = True
                if request.get("all"):
                    kill_cgroup(role.plan.get("cgroup"))
                role.signal(signal.SIGKILL)
                return {"ok": True}
            role.stopping = role.removed = True
            role.signal(signal.SIGTERM)
            return {"ok": True, "pid": role.pid}
        return {"error": f"no such operation or role: {op!r} {name!r}"}


def main() -> None:
    """Run the plan named on the command line."""
    with open(sys.argv[1]) as file:
        plan = json.load(file)
    warden = Warden(plan)
    if warden.run():
        for role in plan["roles"]:
            kill_cgroup(role.get("cgroup"))
        os.execve(plan["sweep"][0], plan["sweep"], dict(os.environ))


if __name__ == "__main__":
    main()
