"""conmon beside one run of a container: it keeps the streams, the log and the exit status, whatever becomes of us.

It is our child (so its pid is known before it does anything) in a session and a cgroup of its own. It waits at a pipe
until we have written down who it is; since it holds both ends of that pipe, our death leaves it waiting, not going on.
Protocols: conmon(8) of 2.1 (start and sync pipes, attach socket, control fifo).
"""

import asyncio
import contextlib
import json
import os
import socket
from collections.abc import Sequence
from pathlib import Path

from wherry.clock import machine
from wherry.engine.runtime import ENVIRONMENT, Runtime, clean, failure
from wherry.errors import Broken, Conflict
from wherry.host import processes
from wherry.host.processes import Identity
from wherry.host.spawn import Child

STDIN_BYTES = 8192
"""The largest message to the attach socket: conmon takes 32 KiB, and drops what is over."""


class Waiting:
    """A conmon that has been spawned and waits for `go`."""

    def __init__(self, child: Child, identity: Identity, start: int, sync: int, bundle: Path) -> None:
        self.child = child
        self.identity = identity
        self._start = start
        self._sync = sync
        self._bundle = bundle

    async def go(self, what: str, timeout_s: float) -> int:
        """Let it create the container; return its process's pid.

        Raises CommandFailed or Broken with the runtime's words; then conmon has ended.
        """
        try:
            with contextlib.suppress(BrokenPipeError):  # it has ended already; what it said is read below
                os.write(self._start, b"\0")
            os.close(self._start)
            self._start = -1
            try:
                async with machine.timeout(timeout_s):
                    answer = await _read_line(self._sync)
            except TimeoutError:
                raise Broken(f"{what}: the runtime was not done after {timeout_s:g} s") from None
        finally:
            self.close()
        pid, message = _parse(answer)
        if pid > 0:
            return pid
        said = message or self._last_words()
        raise failure(clean(said) or "conmon ended without a word", what)

    def close(self) -> None:
        """Close the pipes. A conmon that waits goes on waiting: end it."""
        for fd in (self._start, self._sync):
            if fd >= 0:
                os.close(fd)
        self._start = self._sync = -1

    def _last_words(self) -> str:
        with contextlib.suppress(OSError):
            return (self._bundle / "conmon.err").read_text(errors="replace")[-4000:]
        return ""


async def spawn(runtime: Runtime, argv: Sequence[str], bundle: Path) -> Waiting:
    """Spawn conmon up to the point where it waits. Raises Broken."""
    start_read, start_write = os.pipe2(os.O_CLOEXEC)
    sync_read, sync_write = os.pipe2(os.O_CLOEXEC)
    os.set_blocking(sync_read, False)
    errors = os.open(bundle / "conmon.err", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        environment = ENVIRONMENT | {"_OCI_STARTPIPE": str(start_read), "_OCI_SYNCPIPE": str(sync_write)}
        child = await runtime.spawner.start(
            argv,
            stderr=errors,
            env=environment,
            cwd=str(bundle),
            pass_fds=(start_read, start_write, sync_write),
            new_session=True,
        )
    except BaseException:
        os.close(start_write)
        os.close(sync_read)
        raise
    finally:
        for fd in (start_read, sync_write, errors):
            os.close(fd)
    try:
        identity = processes.identify(child.pid)
        if identity is None:
            raise Broken(f"conmon ended at once: {(bundle / 'conmon.err').read_text(errors='replace')[-1000:]}")
    except BaseException:
        os.close(start_write)
        os.close(sync_read)
        await asyncio.shield(child.end())
        child.close()
        raise
    return Waiting(child, identity, start_write, sync_read, bundle)


def resize(bundle: Path, rows: int, columns: int) -> None:
    """Tell conmon the size of the container's terminal. Raises Conflict when it is not there any more."""
    _control(bundle, f"1 {rows} {columns}\n")


def reopen_log(bundle: Path) -> None:
    """Tell conmon to open its log anew, after it was renamed. Raises Conflict when it is not there any more."""
    _control(bundle, "2 0 0\n")


async def connect(bundle: Path) -> socket.socket:
    """Connect to the attach socket: messages of a byte (2 stdout, 3 stderr) and data; what we send is stdin.

    Raises Conflict when conmon is not there any more.
    """
    directory = _open_directory(bundle)
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        # A socket's path has 108 bytes, ours may be longer.
        connection.connect(f"/proc/self/fd/{directory}/attach")
    except OSError as error:
        connection.close()
        raise Conflict(f"container {bundle.name[:12]}: nothing to attach to: {error.strerror}") from error
    finally:
        os.close(directory)
    return connection


def _control(bundle: Path, line: str) -> None:
    try:
        fd = os.open(bundle / "ctl", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise Conflict(f"container {bundle.name[:12]}: its monitor is not there: {error.strerror}") from error
    try:
        os.write(fd, line.encode())
    finally:
        os.close(fd)


def _open_directory(path: Path) -> int:
    try:
        return os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise Conflict(f"container {path.name[:12]}: it does not run: {error.strerror}") from error


async def _read_line(fd: int) -> bytes:
    loop = asyncio.get_running_loop()
    data = bytearray()
    done: asyncio.Future[None] = loop.create_future()

    def ready() -> None:
        with contextlib.suppress(BlockingIOError):
            piece = os.read(fd, 65536)
            data.extend(piece)
            if (not piece or b"\n" in piece) and not done.done():
                done.set_result(None)

    loop.add_reader(fd, ready)
    try:
        await done
    finally:
        loop.remove_reader(fd)
    return bytes(data)


def _parse(answer: bytes) -> tuple[int, str]:
    """Read `{"pid": N, "message": "..."}`; (0, "") when conmon said nothing."""
    if not answer:
        return 0, ""
    try:
        document = json.loads(answer)
        return int(document.get("pid", document.get("data", 0))), str(document.get("message") or "")
    except (ValueError, TypeError):
        return 0, answer.decode(errors="replace")
