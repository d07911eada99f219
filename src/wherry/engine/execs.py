"""One more process in a running container, with pipes or a terminal of its own.

The runtime stays beside it as our child and gives us its exit code. A caller who closes the session leaves it running; its
output is then read and dropped. An engine that was killed cannot be attached to again, so its successor ends such processes
(`sweep`); those that were started detached, and have no pipes of ours, live on.
"""

import asyncio
import os
import secrets
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import msgspec

from wherry.clock import machine
from wherry.engine import capabilities, users
from wherry.engine.paths import Paths
from wherry.engine.runtime import Runtime, clean, command_code
from wherry.engine.sessions import CHUNK_BYTES, Output
from wherry.engine.spec import exec_process
from wherry.engine.tasks import Tasks
from wherry.engine.types import ExecSpec
from wherry.errors import Broken, Conflict
from wherry.host import engine_calls, processes
from wherry.host.processes import Identity
from wherry.host.spawn import Child

CONSOLE_S = 10.0
ATTACHED, DETACHED = "exec-", "run-"
"""What the files of an exec in the bundle are called: NAME.json (its process), NAME.pid, NAME.log."""
NOT_STARTED = 126
"""The exit code of an exec that the runtime refused for another reason than a command that is not there (127)."""


async def execute(
    paths: Paths, runtime: Runtime, tasks: Tasks, id: str, process: Identity, spec: ExecSpec
) -> "Executed":
    """Run a process in the running container `id`, whose main process is `process`. Raises Invalid, Conflict, Broken.

    A command that cannot be run is no error here: the session says so on stderr and ends with 127 or 126.
    """
    bundle = paths.bundle(id)
    container = msgspec.json.decode((bundle / "config.json").read_bytes())["process"]
    user = _look_up(process, spec.user) if spec.user else None
    document = exec_process(container, spec, user)
    if spec.privileged:
        document = document | {"capabilities": _all_capabilities()}
    if spec.tty and spec.size is not None:  # before it runs: it may ask at once
        document = document | {"consoleSize": {"height": spec.size[0], "width": spec.size[1]}}
    prefix = DETACHED if spec.detached and not spec.tty else ATTACHED
    session = Executed(runtime, bundle, f"{prefix}{secrets.token_hex(8)}", tty=spec.tty, stdin=spec.stdin)
    session.command = spec.argv[0]
    session.terminal_size = spec.size
    await session.begin(id, msgspec.json.encode(document), tasks)
    return session


class Executed:
    """An exec'ed process (engine/types.Session)."""

    def __init__(self, runtime: Runtime, bundle: Path, name: str, *, tty: bool, stdin: bool) -> None:
        self._runtime = runtime
        self._document = bundle / f"{name}.json"
        self._log = bundle / f"{name}.log"
        self._pid_file = bundle / f"{name}.pid"
        self._name = name
        self._bundle = bundle
        self._tty = tty
        self._detached = name.startswith(DETACHED)
        self._wants_stdin = stdin and not self._detached
        self._stdin = -1
        self._master = -1
        self.command = ""
        self.terminal_size: tuple[int, int] | None = None
        self._has_begun = False
        self._output = Output()
        self._has_ended = False
        self._sleepers: set[asyncio.Future[None]] = set()
        self._code: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    @property
    def pid(self) -> int:
        """The process's pid on the machine; 0 before it runs and after it has ended."""
        with suppress(OSError, ValueError):
            return int(self._pid_file.read_text())
        return 0

    @property
    def has_output_ended(self) -> bool:
        """Whether all that it writes has been read."""
        return self._output.has_ended

    def output(self) -> AsyncIterator[tuple[str, bytes]]:
        """Yield what it writes; with a terminal everything is stdout."""
        return self._output.read()

    async def write(self, data: bytes) -> None:
        """Send to stdin; waits while the process does not read. Raises Conflict when stdin is closed."""
        view = memoryview(data)
        while view:
            fd = self._master if self._tty else self._stdin
            if fd < 0:
                raise Conflict("stdin of this process is closed")
            try:
                view = view[os.write(fd, view) :]
            except BlockingIOError:
                await self._until(fd, writable=True)
            except OSError as error:
                raise Conflict(f"stdin of this process is closed: {error.strerror}") from error

    async def close_stdin(self) -> None:
        """End stdin; a terminal has no such end."""
        if self._stdin >= 0:
            self._wake_all()  # who writes must not wait for a descriptor that is somebody else's by then
            asyncio.get_running_loop().remove_writer(self._stdin)
            os.close(self._stdin)
            self._stdin = -1

    async def resize(self, rows: int, columns: int) -> None:
        """Set the terminal's size; nothing without a terminal."""
        self.terminal_size = (rows, columns)
        if self._master >= 0:
            engine_calls.resize_terminal(self._master, rows, columns)

    async def wait(self) -> int:
        """Return the exit code."""
        return await asyncio.shield(self._code)

    async def close(self) -> None:
        """Let go of the streams; the process goes on, and what it writes is dropped."""
        await self.close_stdin()
        self._output.drop()

    async def begin(self, id: str, document: bytes, tasks: Tasks) -> None:
        """Spawn the runtime, and the task that follows it."""
        self._document.write_bytes(document)
        try:
            child, streams = await (self._begin_terminal(id) if self._tty else self._begin_pipes(id))
        except BaseException:
            self._remove_files()
            raise
        tasks.start(self._follow(child, streams), f"exec {self._name} in {id[:12]}")

    async def _begin_pipes(self, id: str) -> tuple[Child, dict[int, str]]:
        ours: dict[int, str] = {}
        theirs: list[int] = []
        try:
            stdin = None
            if self._wants_stdin:
                stdin, self._stdin = os.pipe2(os.O_CLOEXEC)
                theirs.append(stdin)
                os.set_blocking(self._stdin, False)
            if self._detached:
                theirs += [os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC) for _ in range(2)]
            for stream in () if self._detached else ("stdout", "stderr"):
                read, write = os.pipe2(os.O_CLOEXEC)
                os.set_blocking(read, False)
                ours[read] = stream
                theirs.append(write)
            child = await self._runtime.exec(
                id, self._document, self._pid_file, self._log, stdin=stdin, stdout=theirs[-2], stderr=theirs[-1]
            )
        except BaseException:
            for fd in ours:
                os.close(fd)
            await self.close_stdin()
            raise
        finally:
            for fd in theirs:
                os.close(fd)
        return child, ours

    async def _begin_terminal(self, id: str) -> tuple[Child, dict[int, str]]:
        directory = os.open(self._bundle, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        try:
            # A socket's path has 108 bytes, ours may be longer: so by way of our own descriptor, for the runtime too.
            path = f"/proc/{os.getpid()}/fd/{directory}/{self._name}.sock"
            listener.bind(path)
            listener.listen(1)
            child = await self._runtime.exec(
                id, self._document, self._pid_file, self._log, stdin=None, stdout=None, stderr=None, console=path
            )
            await self._take_terminal(listener, child)
        finally:
            listener.close()
            os.close(directory)
        return child, {self._master: "stdout"} if self._master >= 0 else {}

    async def _take_terminal(self, listener: socket.socket, child: Child) -> None:
        """Get the terminal's master from the runtime; nothing comes when it ends before."""
        loop = asyncio.get_running_loop()
        accepting = asyncio.ensure_future(loop.sock_accept(listener))
        ending = asyncio.ensure_future(child.wait(timeout_s=CONSOLE_S))
        try:
            await asyncio.wait((accepting, ending), return_when=asyncio.FIRST_COMPLETED)
            if accepting.done():
                connection, _ = accepting.result()
                with connection:
                    await self._until(connection.fileno(), writable=False)
                    _, fds, _, _ = socket.recv_fds(connection, 4096, 1)
                if fds:
                    self._master = fds[0]
                    os.set_blocking(self._master, False)
                    os.set_inheritable(self._master, False)
                    if self.terminal_size is not None:
                        engine_calls.resize_terminal(self._master, *self.terminal_size)
            elif child.code is None:
                await child.end()
                raise Broken(f"exec: the runtime brought no terminal within {CONSOLE_S:g} s")
        finally:
            for future in (accepting, ending):
                future.cancel()
            await asyncio.gather(accepting, ending, return_exceptions=True)

    async def _follow(self, child: Child, streams: dict[int, str]) -> None:
        """Read its output, wait for its end, read the rest."""
        pumps = [asyncio.ensure_future(self._pump(fd, stream)) for fd, stream in streams.items()]
        try:
            code = await child.wait()
            code = 0 if code is None else code
            self._has_ended = True
            self._wake_all()
            await asyncio.gather(*pumps)
            if code != 0 and not self._pid_file.exists():
                code = await self._refused()
            self._settle(128 - code if code < 0 else code)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            if child.code is None and not self._detached:  # the engine is left: nobody can attach to it again
                if (identity := processes.identify(self.pid)) is not None:
                    processes.send_signal(identity, signal.SIGKILL)
                child.signal(signal.SIGKILL)
                await asyncio.shield(child.wait(timeout_s=2.0))
            child.close()
            self._settle(NOT_STARTED)
            for fd in streams:
                os.close(fd)
            self._master = -1
            await self.close_stdin()
            self._output.end()
            self._remove_files()

    async def _refused(self) -> int:
        """Say on stderr why the runtime did not start it, in the words by which clients know it; return the code."""
        words = ""
        with suppress(OSError):
            words = clean(self._log.read_text(errors="replace"))
        code = command_code(words)
        why = {126: "permission denied", 127: "executable file not found in $PATH"}.get(code, "")
        if code == 127 and "/" in self.command:
            why = f"stat {self.command}: no such file or directory"
        words = f'exec: "{self.command}": {why}' if why else words or "the runtime did not start it"
        line = f"OCI runtime exec failed: exec failed: unable to start container process: {words}"
        stream, end = ("stdout", "\r\n") if self._tty else ("stderr", "\n")
        await self._output.put(stream, f"{line}{end}".encode())
        return code or NOT_STARTED

    async def _is_its_own(self) -> bool:
        """Wait until it runs, and say whether it does: till then the runtime, which has its stderr or terminal, may speak."""
        while not self._has_begun:
            has_ended = self._has_ended
            self._has_begun = self._pid_file.exists()
            if has_ended:
                return self._has_begun
            if not self._has_begun:
                await machine.sleep(0.002)
        return True

    async def _pump(self, fd: int, stream: str) -> None:
        """Read until the end, or until the process has ended and all that it wrote is read.

        What it left behind in the background may keep the pipe open for ever; nobody waits for that.
        """
        while True:
            has_ended = self._has_ended
            try:
                data = os.read(fd, CHUNK_BYTES)
            except BlockingIOError:
                if has_ended:
                    return
                await self._until(fd, writable=False)
                continue
            except OSError:  # EIO: the last one has closed the terminal
                if has_ended or stream != "stdout":
                    return
                await machine.sleep(0.01)
                continue
            if not data:
                return
            if (stream == "stdout" and not self._tty) or await self._is_its_own():
                await self._output.put(stream, data)

    async def _until(self, fd: int, *, writable: bool) -> None:
        """Wait until `fd` can be read or written, or `_wake_all`."""
        loop = asyncio.get_running_loop()
        ready: asyncio.Future[None] = loop.create_future()

        def wake() -> None:
            if not ready.done():
                ready.set_result(None)

        add, remove = (loop.add_writer, loop.remove_writer) if writable else (loop.add_reader, loop.remove_reader)
        add(fd, wake)
        self._sleepers.add(ready)
        try:
            await ready
        finally:
            self._sleepers.discard(ready)
            remove(fd)

    def _wake_all(self) -> None:
        for sleeper in self._sleepers:
            if not sleeper.done():
                sleeper.set_result(None)

    def _settle(self, code: int) -> None:
        if not self._code.done():
            self._code.set_result(code)

    def _remove_files(self) -> None:
        for path in (self._document, self._log, self._pid_file, self._bundle / f"{self._name}.sock"):
            path.unlink(missing_ok=True)


def sweep(bundle: Path, id: str) -> int:
    """End the processes of sessions that went with an engine that was killed, and remove their files; return how many."""
    ended = 0
    for document in bundle.glob(f"{ATTACHED}*.json"):
        name = document.name.removesuffix(".json")
        with suppress(OSError, ValueError):
            pid = int((bundle / f"{name}.pid").read_text())
            identity = processes.identify(pid)
            inside = id in Path(f"/proc/{pid}/cgroup").read_text()  # the pid may be somebody else's by now
            if identity is not None and inside and processes.send_signal(identity, signal.SIGKILL):
                ended += 1
        for end in (".json", ".log", ".pid", ".sock"):
            (bundle / f"{name}{end}").unlink(missing_ok=True)
    return ended


def _look_up(process: Identity, user: str) -> users.Identity:
    """Find a user in the files of a running container."""
    with processes.opened(process) as alive:
        if alive is None:
            raise Conflict("exec: the container has just ended")
        try:
            root = os.open(f"/proc/{process.pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise Conflict(f"exec: the container has just ended: {error.strerror}") from error
        try:
            if not processes.is_alive(process):
                raise Conflict("exec: the container has just ended")
            return users.look_up(root, user)
        finally:
            os.close(root)


def _all_capabilities() -> dict[str, list[str]]:
    """Give everything that the engine itself has: what `--privileged` means for an exec."""
    held = capabilities.own()
    names = [name for name in capabilities.ALL if name in held]
    return {"bounding": names, "effective": names, "permitted": names, "inheritable": [], "ambient": []}
