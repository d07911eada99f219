"""The OCI runtime (crun, or runc) and conmon: found, checked, called.

Both are small programs that come and go; nothing of theirs stays in our process. `state` is never asked on a hot path:
pid files and exit files say the same for free.
"""

import asyncio
import os
import re
import shutil
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from wherry.errors import Broken, Invalid, NotFound, WherryError
from wherry.host.spawn import Child, Finished, Spawner, needs_mask, plain

NAMES = ("crun", "runc")
"""The OCI runtimes that we know."""
OLDEST = {"crun": (1, 0), "runc": (1, 1), "conmon": (2, 1)}
ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TZ": "UTC", "LC_ALL": "C"}
"""What conmon and the runtime get, whatever we were started with; UTC is then the time zone of logs."""

CALL_TIMEOUT_S = 30.0
_VERSION = re.compile(r"version:? (\d+)\.(\d+)(\S*)")


class CommandFailed(Broken):
    """The command of a container cannot be run: `code` is 127 when it is not there, 126 when it may not be executed,
    128 when its user is not there."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class Tool:
    """A program that we found, and its version."""

    name: str
    path: str
    version: str


class Runtime:
    """An OCI runtime whose containers live below `state`, and the conmon that watches them."""

    def __init__(self, spawner: Spawner, tool: Tool, monitor: Tool, state: Path) -> None:
        self.spawner = spawner
        self.tool = tool
        self.monitor = monitor
        self.state = state

    async def start(self, id: str) -> None:
        """Let a created container's process go. Raises CommandFailed or Broken with the runtime's words."""
        if self.tool.name == "crun" and self._open_gate(id):
            return
        done = await self._call("start", id)
        if done.code != 0:
            raise failure(words_of(done), f"container {id[:12]}: {self.tool.name} start")

    async def delete(self, id: str) -> None:
        """Forget a container, killed if it lives; nothing if there is none. Raises Broken."""
        if not (self.state / id).exists():
            return
        done = await self._call("delete", "--force", id)
        if done.code != 0 and (self.state / id).exists():
            raise Broken(f"container {id[:12]}: {self.tool.name} delete: {words_of(done)}")

    async def status(self, id: str) -> str:
        """Ask for its status: created, running, stopped; "" when the runtime knows none."""
        if not (self.state / id).exists():
            return ""
        done = await self._call("state", id)
        found = re.search(rb'"status"\s*:\s*"(\w+)"', done.out)
        return found[1].decode() if done.code == 0 and found else ""

    async def exec(
        self,
        id: str,
        process: Path,
        pid_file: Path,
        log: Path,
        *,
        stdin: int | None,
        stdout: int | None,
        stderr: int | None,
        console: str = "",
    ) -> Child:
        """Run the process of the file `process` in a container; the child lives as long as it and has its exit code.

        `pid_file` is written when it runs; what the runtime itself has to say goes to `log`, not to stderr. With
        `console`, a unix socket, the terminal's master comes over it.
        """
        to = f"file:{log}" if self.tool.name == "crun" else str(log)
        argv = [self.tool.path, "--root", str(self.state), "--log", to, "exec"]
        argv += ["--process", str(process), "--pid-file", str(pid_file)]
        if console:
            argv += ["--tty", "--console-socket", console]
        return await self.spawner.start(
            [*argv, id], stdin=stdin, stdout=stdout, stderr=stderr, env=ENVIRONMENT, new_session=True
        )

    def monitor_argv(self, id: str, bundle: Path, exits: Path, *, log: str, log_max_bytes: int) -> list[str]:
        """Write conmon's command line, without the options that depend on stdin and terminal."""
        argv = [self.monitor.path, "--sync", "--cid", id, "--cuuid", id, "--name", id]
        argv += ["--runtime", self.tool.path, "--runtime-arg", "--root", "--runtime-arg", str(self.state)]
        argv += ["--bundle", str(bundle), "--container-pidfile", str(bundle / "pid")]
        argv += ["--persist-dir", str(bundle), "--exit-dir", str(exits), "--full-attach", "--no-sync-log"]
        argv += ["--log-level", "error", "--log-path", log]
        if log_max_bytes > 0:
            argv += ["--log-size-max", str(log_max_bytes)]
        return argv

    def _argv(self, verb: str) -> list[str]:
        return [self.tool.path, "--root", str(self.state), verb]

    async def _call(self, verb: str, *words: str) -> Finished:
        return await self.spawner.run([*self._argv(verb), *words], timeout_s=CALL_TIMEOUT_S, env=ENVIRONMENT)

    def _open_gate(self, id: str) -> bool:
        """Do what `crun start` does, without its process (5 ms): a byte into the fifo that the container waits at.

        False when there is no such fifo, or nobody reads it: then crun itself is asked, and has the words.
        """
        gate = self.state / id / "exec.fifo"
        try:
            fd = os.open(gate, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            gate.unlink()
            return os.write(fd, b"\0") == 1
        except OSError:
            return False
        finally:
            os.close(fd)


class Runtimes:
    """The runtimes of this machine, by name; "" is the engine's own."""

    def __init__(self, default: Runtime, others: Sequence[Runtime] = ()) -> None:
        self.default = default
        self.all = {each.tool.name: each for each in (default, *others)}

    def named(self, name: str) -> Runtime:
        """Find one. Raises Invalid in Docker's words."""
        found = self.all.get(name) if name else self.default
        if found is None:
            raise Invalid(f"unknown or invalid runtime name: {name}; on this machine are {', '.join(self.all)}")
        return found


async def find(name: str, spawner: Spawner) -> Tool:
    """Find a program by PATH and check its version. Raises NotFound, naming the package; Broken when it is too old."""
    path = shutil.which(name, path=os.environ.get("PATH", "") + os.pathsep + ENVIRONMENT["PATH"])
    if path is None:
        raise NotFound(f"{name} is not on this machine: install the package {name}")
    done = await spawner.run([path, "--version"], timeout_s=CALL_TIMEOUT_S, env=ENVIRONMENT)
    found = _VERSION.search(done.out.decode(errors="replace"))
    if found is None:
        raise Broken(f"{path} --version says {words_of(done)!r}: not a {name} that we know")
    oldest = OLDEST[name]
    if (int(found[1]), int(found[2])) < oldest:
        raise Broken(f"{path} is version {found[1]}.{found[2]}: at least {oldest[0]}.{oldest[1]} is needed")
    return Tool(name, path, f"{found[1]}.{found[2]}{found[3]}")


async def find_if_there(name: str) -> Tool | None:
    """Find a program that nobody needs; None when it is not there, or too old."""
    try:
        return await find(name, plain)
    except WherryError:
        return None


async def find_runtime(name: str, spawner: Spawner) -> Tool:
    """Find the runtime that was asked for; for "" crun, else runc."""
    if name and name not in NAMES:
        raise Invalid(f"runtime {name!r}: use crun or runc")
    try:
        return await find(name or "crun", spawner)
    except WherryError as first:
        if name:
            raise
        try:
            return await find("runc", spawner)
        except WherryError:
            raise first from None


async def find_runtimes(wanted: str, state: Path, stack: AsyncExitStack) -> Runtimes:
    """Find the engine's runtime ("" for crun, else runc), conmon, and what other runtime there is. Raises NotFound, Broken."""
    (tool, watcher), known = await asyncio.gather(
        asyncio.gather(find_runtime(wanted, plain), find("conmon", plain)),
        asyncio.gather(*(find_if_there(name) for name in NAMES)),
    )
    made: list[Runtime] = []
    for each in (tool, *(each for each in known if each is not None and each.name != tool.name)):
        masked = each.name == "crun" and needs_mask()
        spawner = await stack.enter_async_context(Spawner(mask_controllers=masked))
        made.append(Runtime(spawner, each, watcher, state / each.name))
    return Runtimes(made[0], made[1:])


def words_of(done: Finished) -> str:
    """Return what a runtime said went wrong, without its dates and levels."""
    return clean((done.err.strip() or done.out.strip()).decode(errors="replace")) or f"ended with {done.code}"


def clean(text: str) -> str:
    """Keep the message of a runtime's error output: crun writes dates before it, runc `level=error msg="..."`."""
    lines: list[str] = []
    for line in text.strip().splitlines():
        message = re.search(r'msg="((?:[^"\\]|\\.)*)"', line)
        if message:
            line = message[1].replace('\\"', '"')
        lines.append(re.sub(r"^(?:\d{4}-\d\d-\d\dT\S+: |\[conmon:\w+\]: |runc \w+ failed: )+", "", line))
    return "; ".join(line for line in lines if line)


def failure(words: str, what: str) -> Broken:
    """Turn a runtime's words into an error: CommandFailed where they say that the command cannot be run."""
    message = f"{what}: {words}"
    code = command_code(words)
    return CommandFailed(message, code) if code else Broken(message)


def command_code(words: str) -> int:
    """Say what a shell would exit with: 127 for a command that is not there, 126 for one not executable, else 0."""
    low = words.lower()
    if "executable file" in low and ("not found" in low or "no such file" in low):
        return 127
    if re.search(r"(exec|start of container process|starting container process)", low):
        if "no such file or directory" in low:
            return 127
        if any(
            word in low
            for word in ("permission denied", "operation not permitted", "exec format error", "is a directory")
        ):
            return 126
    return 0
