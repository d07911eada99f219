"""Child processes: spawned without copying us (vfork), waited for by pidfd, with their output gathered.

On a machine with cgroup v1 and v2 side by side crun refuses to work while cgroup v2 lists controllers. A `Spawner` with
`mask_controllers` keeps one thread in a mount namespace of its own, where that list is empty, and spawns from there: a
child is born in the namespace of the thread that makes it, so this costs nothing for each child. Mounts that appear in
the machine's namespace later are seen there too, if they lie on a shared mount (see `mounts.share`).
"""

import asyncio
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from wherry.errors import Broken, DeadlineExceeded
from wherry.host import kernel, mounts, processes

HYBRID_CONTROLLERS = "/sys/fs/cgroup/unified/cgroup.controllers"
_CHUNK_BYTES = 65536
_DRAIN_TURNS = 64


@dataclass(frozen=True, slots=True)
class Finished:
    """How a child ended. `code` is its exit status, or -n for signal n; `cut` when output passed the limit."""

    argv: Sequence[str]
    code: int
    out: bytes
    err: bytes
    cut: bool = False

    def check(self) -> Self:
        """Return itself when the code is 0, else raise Broken with the last words of its stderr (or stdout)."""
        if self.code == 0:
            return self
        how = f"was killed by signal {-self.code}" if self.code < 0 else f"ended with {self.code}"
        words = (self.err.strip() or self.out.strip()).decode(errors="replace")[-2000:]
        raise Broken(f"{os.path.basename(self.argv[0])} {how}: {words or 'it said nothing'}")


class Child:
    """A child process of ours. Its pidfd is open until `close`; whoever spawned it waits for it and closes it."""

    def __init__(self, argv: Sequence[str], popen: "subprocess.Popen[bytes]", pidfd: int) -> None:
        self.argv = tuple(argv)
        self.pid = popen.pid
        self.pidfd = pidfd
        self._popen = popen

    @property
    def code(self) -> int | None:
        """Its exit status, or -n for signal n; None while it runs."""
        return self._popen.poll()

    async def wait(self, *, timeout_s: float | None = None) -> int | None:
        """Wait for its end and return `code`; None when it still runs after `timeout_s`."""
        if self.code is None and not await processes.wait_exit(self.pidfd, timeout_s=timeout_s):
            return None
        return self.code

    def signal(self, number: int) -> bool:
        """Send it a signal; False when it is gone."""
        return self._popen.poll() is None and processes.send_signal(self.pidfd, number)

    async def end(self, *, grace_s: float = 0.0, kill_s: float = 5.0) -> int:
        """SIGTERM, up to `grace_s` seconds, SIGKILL (at once for 0); return `code`. Raises Broken when it stays."""
        if grace_s > 0:
            self.signal(signal.SIGTERM)
            code = await self.wait(timeout_s=grace_s)
            if code is not None:
                return code
        self.signal(signal.SIGKILL)
        code = await self.wait(timeout_s=kill_s)
        if code is None:
            raise Broken(f"{self.argv[0]} ({self.pid}) is still there {kill_s:g} s after SIGKILL")
        return code

    def close(self) -> None:
        """Let go of the pidfd."""
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1


class Spawner:
    """Spawns the children of one role. An async or plain context manager; leaving it ends no child."""

    def __init__(self, *, mask_controllers: bool = False) -> None:
        self.is_masked = mask_controllers
        self._thread: ThreadPoolExecutor | None = None

    def __enter__(self) -> Self:
        if self.is_masked:
            self._thread = ThreadPoolExecutor(1, "spawn")
            try:
                self._thread.submit(_mask).result()
            except BaseException:
                self.close()
                raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the spawning thread; its namespace lives on with the children born in it."""
        if self._thread is not None:
            self._thread.shutdown(wait=True)
            self._thread = None

    async def start(
        self,
        argv: Sequence[str],
        *,
        stdin: int | None = None,
        stdout: int | None = None,
        stderr: int | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        pass_fds: Sequence[int] = (),
        new_session: bool = False,
    ) -> Child:
        """Spawn `argv`; the streams are file descriptors, None is /dev/null. Raises Broken when it cannot be run.

        `pass_fds` keep their numbers in the child. `env` None means our own environment.
        """
        null = subprocess.DEVNULL

        def spawn() -> Child:
            try:
                popen = subprocess.Popen(
                    list(argv),
                    stdin=null if stdin is None else stdin,
                    stdout=null if stdout is None else stdout,
                    stderr=null if stderr is None else stderr,
                    env=dict(env) if env is not None else None,
                    cwd=cwd,
                    pass_fds=tuple(pass_fds),
                    start_new_session=new_session,
                )
            except OSError as error:
                raise kernel.refused(f"run {argv[0]}", error.errno or 0) from error
            try:
                return Child(argv, popen, os.pidfd_open(popen.pid))
            except OSError as error:
                popen.kill()
                popen.wait()
                raise kernel.refused(f"pidfd_open({popen.pid})", error.errno or 0) from error

        if self._thread is None:
            if self.is_masked:
                raise Broken("this Spawner has not been entered, or is closed")
            return spawn()
        waiting = asyncio.get_running_loop().run_in_executor(self._thread, spawn)
        try:
            return await asyncio.shield(waiting)
        except asyncio.CancelledError:
            waiting.add_done_callback(_end_unwanted)
            raise

    async def run(
        self,
        argv: Sequence[str],
        *,
        timeout_s: float,
        stdin: bytes = b"",
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        pass_fds: Sequence[int] = (),
        limit_bytes: int = 1 << 20,
    ) -> Finished:
        """Run `argv` to its end and gather what it says, up to `limit_bytes` of each stream.

        Children that it leaves behind (conmon) may keep the streams: nobody waits for those. Raises DeadlineExceeded
        after `timeout_s`, with the child killed, and Broken when it cannot be run.
        """
        out, err = _Gatherer(limit_bytes), _Gatherer(limit_bytes)
        source = _memory_file(stdin) if stdin else None
        try:
            child = await self.start(
                argv, stdin=source, stdout=out.write_end, stderr=err.write_end, env=env, cwd=cwd, pass_fds=pass_fds
            )
            try:
                out.begin()
                err.begin()
                code = await child.wait(timeout_s=timeout_s)
                if code is None:
                    said = err.end().decode(errors="replace").strip()[-500:]
                    raise DeadlineExceeded(
                        f"{' '.join(argv)[:200]}: not done after {timeout_s:g} s: {said or 'silent'}"
                    )
                return Finished(tuple(argv), code, out.end(), err.end(), out.is_cut or err.is_cut)
            finally:
                if child.code is None:
                    child.signal(signal.SIGKILL)
                    await asyncio.shield(child.wait(timeout_s=5.0))
                child.close()
        finally:
            out.end()
            err.end()
            if source is not None:
                os.close(source)


plain = Spawner()


async def run(
    argv: Sequence[str],
    *,
    timeout_s: float,
    stdin: bytes = b"",
    env: Mapping[str, str] | None = None,
    cwd: str | None = None,
) -> Finished:
    """Run a command to its end in our own namespaces, as `Spawner.run` does."""
    return await plain.run(argv, timeout_s=timeout_s, stdin=stdin, env=env, cwd=cwd)


def needs_mask() -> bool:
    """Say whether crun needs `mask_controllers` here: cgroup v1 with a v2 beside it that lists controllers."""
    try:
        with open(HYBRID_CONTROLLERS, encoding="ascii") as file:
            return bool(file.read().strip())
    except FileNotFoundError:
        return False


class _Gatherer:
    """Reads one stream of a child as it comes, keeps the first `limit_bytes`, drops the rest."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._read_end, self.write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        os.set_blocking(self.write_end, True)
        self._data = bytearray()
        self._loop: asyncio.AbstractEventLoop | None = None
        self.is_cut = False

    def begin(self) -> None:
        """Close our copy of the child's end, and read from now on."""
        self._close_write_end()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._read_end, self._read)

    def end(self) -> bytes:
        """Take what is there already, stop, and return everything. May be called twice."""
        if self._read_end >= 0:
            if self._loop is not None:
                for _ in range(_DRAIN_TURNS):
                    if not self._read():
                        break
                self._loop.remove_reader(self._read_end)
            os.close(self._read_end)
            self._read_end = -1
        self._close_write_end()
        return bytes(self._data)

    def _read(self) -> bool:
        """Read once; False at the end, and when there is nothing now."""
        try:
            data = os.read(self._read_end, _CHUNK_BYTES)
        except BlockingIOError:
            return False
        if not data:
            if self._loop is not None:
                self._loop.remove_reader(self._read_end)
            return False
        room = self._limit_bytes - len(self._data)
        self.is_cut = self.is_cut or len(data) > room
        self._data += data[: max(0, room)]
        return True

    def _close_write_end(self) -> None:
        if self.write_end >= 0:
            os.close(self.write_end)
            self.write_end = -1


def _memory_file(data: bytes) -> int:
    fd = os.memfd_create("stdin", os.MFD_CLOEXEC)
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def _end_unwanted(waiting: "asyncio.Future[Child]") -> None:
    """Kill a child whose caller was cancelled during its birth; `subprocess` collects it with its next one."""
    if not waiting.cancelled() and waiting.exception() is None:
        child = waiting.result()
        child.signal(signal.SIGKILL)
        child.close()


def _mask() -> None:
    """Move this thread into a mount namespace where cgroup v2 lists no controllers. Nobody else sees it."""
    kernel.unshare(kernel.CLONE_FS)
    kernel.unshare(kernel.CLONE_NEWNS)
    mounts.propagate("/", "slave", recursive=True)
    with suppress(FileNotFoundError):
        os.stat(HYBRID_CONTROLLERS)
        mounts.bind("/dev/null", HYBRID_CONTROLLERS)
